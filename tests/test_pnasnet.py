"""PNASNet: its two paddings, what of it has a backward pass, and the order in which its statistics are renewed."""

import dataclasses
import importlib

import jax
import numpy as np
import optax
import pytest

from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.machines import sharding
from fixres_jax.models import EVAL, Mode, pnasnet
from fixres_jax.training import state
from fixres_jax.training.step import make_train_step
from goldens import weights
from test_families import apply, variables_of

NAME = 'pnasnet5large'
WIDTH = 8


def create(**options):
    return models.create(NAME, weights.CLASSES, width=WIDTH, **options)


def images_of(size):
    return np.float32(weights.images(2, size)) / 127.5 - 1


SLOW = pytest.mark.slow  # most of a minute each, of compiling


@SLOW
@pytest.mark.parametrize('size', [64, 75, 96])
def test_cadenes_padding_is_that_of_its_own_network(size):
    pytest.importorskip('torchvision_cpu', exc_type=ImportError)
    pytest.importorskip('timm', exc_type=ImportError)
    reference = importlib.import_module('goldens.pnasnet_models')
    theirs = reference.pad_as_cadene(reference.load(NAME, width=WIDTH))
    model = create(padding='cadene')
    expected = reference.apply(theirs, images_of(size))
    logits, endpoints = apply(model, variables_of(model), images_of(size), EVAL)
    for found, wanted in zip((logits, endpoints['embedding']), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def pads_of(padding, size):
    """Return the padding of every strided window of the network on images of a size; None where it takes none."""
    usual, of_cell_4 = pnasnet.PADDINGS[padding]
    found, rows = [], (size - 3) // 2 + 1  # of the stem's output
    for name, _, stride in pnasnet.CELLS:
        if stride == 1:
            continue
        try:
            pads = {side: (of_cell_4 if name == 'cell_4' else usual)(rows, side, stride) for side in (3, 5, 7)}
        except UsageError:
            return None
        found.append(pads)
        rows = (rows + sum(pads[3]) - 3) // stride + 1
    return found


def test_the_windows_of_both_paddings_are_the_same_at_331_and_32_more():
    for size in range(299, 513):
        same, cadene = pads_of('same', size), pads_of('cadene', size)
        assert (cadene is None) == (size % 16 in range(3, 11)), size
        # One pixel more, which the stem's stride leaves out, makes no odds.
        assert (same == cadene) == (size % 32 in (11, 12)), size


@SLOW
@pytest.mark.parametrize(('size', 'equal'), [(75, True), (64, False), (96, False)])
def test_the_paddings_agree_at_sizes_of_331s_class_alone(size, equal):
    same, cadene = (create(padding=padding) for padding in ('same', 'cadene'))
    variables = variables_of(same)
    first, second = (apply(model, variables, images_of(size), EVAL)[0] for model in (same, cadene))
    difference = np.abs(first - second).max() / np.abs(first).max()
    assert difference < 1e-5 if equal else difference > 1e-3
    assert (size % 32 == 331 % 32) == equal and (480 % 32) in {64 % 32, 96 % 32}


def test_a_size_that_cadenes_padding_cannot_take_is_refused():
    model = create(padding='cadene')
    (cell_4,) = [place for place in model.module.places if place.name == 'cell_4']
    with pytest.raises(UsageError, match='padding=cadene cell_4 takes maps of even sizes, and .* 9 pixels: .* 480'):
        cell_4.padding(9, 5, cell_4.stride)
    with pytest.raises(UsageError, match=r"padding='symmetric' is none of \('same', 'cadene'\)"):
        create(padding='symmetric')


def flops_of(model, trainable, mode, size):
    """Return the FLOPs of a compiled training step on two images."""
    mesh, tx = sharding.make_mesh(jax.devices()[:1]), optax.sgd(1e-3)
    step = make_train_step(model, tx, trainable, mode, mesh=mesh)
    abstract = state.abstract(model, tx, trainable, mesh=mesh, layout='replicated')
    batch = {
        'image': jax.ShapeDtypeStruct((2, size, size, 3), np.float32),
        'label': jax.ShapeDtypeStruct((2,), np.int32),
    }
    lowered = step.lower(abstract, batch, jax.random.key(0))
    return lowered.compile().cost_analysis()['flops']


def forward_flops(model, size):
    images = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    forward = jax.jit(lambda variables, images: model.apply(variables, images, EVAL)[0])
    return forward.lower(model.shapes(), images).compile().cost_analysis()['flops']


@SLOW
@pytest.mark.parametrize(('width', 'size'), [(16, 64), (96, 64)])
def test_cells_9_to_11_alone_have_a_backward_pass(width, size):
    model = models.create(NAME, weights.CLASSES, width=width, bn_group_size=2)
    rule = model.architecture.finetune('code')
    trunk = dataclasses.replace(model, module=model.module.clone(places=model.module.places[:-3]))
    forward = forward_flops(model, size)
    of_tail = forward - forward_flops(trunk, size)
    step = flops_of(model, rule['trainable'], Mode(batch_norm=rule['batch_norm'], dropout=True), size)
    # The backward pass of a convolution costs two of it, and batch statistics a little; a fourth cell would add 0.67.
    assert 1.8 * of_tail < step - forward < 2.9 * of_tail
    assert of_tail < 0.4 * forward


def test_what_the_two_rules_name():
    shapes = create().shapes()
    code, paper = (models.find(NAME).finetune(rule) for rule in ('code', 'paper'))
    layers = models.batch_norm_layers(shapes['batch_stats'], code['batch_norm'])
    assert len(layers) == 42 and {layer.split('/')[0] for layer in layers} == {'cell_9', 'cell_10', 'cell_11'}
    names = trees.flatten(trees.split(shapes['params'], code['trainable'])[0])
    assert {name.split('/')[0] for name in names} == {'cell_9', 'cell_10', 'cell_11', 'last_linear'}
    assert set(models.batch_norm_layers(shapes['batch_stats'], paper['batch_norm'])) == {
        'cell_11/conv_prev_1x1/bn', 'cell_11/conv_1x1/bn', 'cell_11/comb_iter_0_left/bn_sep_2',
        'cell_11/comb_iter_1_left/bn_sep_2', 'cell_11/comb_iter_2_left/bn_sep_2', 'cell_11/comb_iter_2_right/bn_sep_2',
        'cell_11/comb_iter_3_left/bn_sep_2', 'cell_11/comb_iter_4_left/bn_sep_2',
    }  # fmt: skip
    assert paper['trainable'] == 'last_linear/.*'
    assert models.create(NAME).module.dropout == 0.5
