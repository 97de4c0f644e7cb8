"""ConvNeXt and vision transformers: positions at every size, what is refused, names of the authors' own files."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from fixres_jax import models
from fixres_jax.core.errors import UsageError
from fixres_jax.models import EVAL, layers, vit
from fixres_jax.runs import settings
from fixres_jax.studies import advice
from fixres_jax.studies.sizes import TestCrop, TrainCrop
from fixres_jax.weights import lineages, torch_weights
from goldens import weights


def matrix(before, after):
    """Return float64[after, before]: what bicubic resizing with antialiasing is along one axis."""

    def keys(x, a=-0.5):  # Keys 1981
        x = np.abs(x)
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    stretch = max(before / after, 1)
    centre = (np.arange(after)[:, None] + 0.5) * before / after - 0.5
    found = keys((centre - np.arange(before)[None]) / stretch)
    return found / found.sum(1, keepdims=True)


@pytest.mark.parametrize('grid', [(14, 14), (5, 5), (18, 24), (6, 18), (1, 28)])
def test_positions_are_resized_along_both_axes(grid):
    positions = np.random.default_rng(0).normal(size=(1, 196, 3)).astype(np.float32)
    wanted = np.einsum(
        'yr,xc,rck->yxk', matrix(14, grid[0]), matrix(14, grid[1]), positions.reshape(14, 14, 3), optimize=True
    )
    found = vit.resize_positions(jnp.asarray(positions), *grid)
    np.testing.assert_allclose(found, wanted.reshape(1, -1, 3), atol=1e-5)


@partial(jax.jit, static_argnums=0)
def evaluate(model, variables, images):
    return model.apply(variables, images, EVAL)


def small(name, **options):
    model = models.create(name, 4, **options)
    shapes = torch_weights.torch_shapes(model)
    return model, torch_weights.from_torch(
        {key: weights.weight(key, leaf.shape) for key, leaf in shapes.items()}, model
    )


def test_the_slot_of_the_class_token_is_the_same_at_every_size():
    """With a class token of which nothing else depends on the size: no patch is attended to."""
    model, variables = small('deit_small_patch16_224', width=16)
    for block in variables['params']['blocks'].values():
        block['attn']['proj']['kernel'] = np.zeros_like(block['attn']['proj']['kernel'])
    found = [evaluate(model, variables, weights.images(1, size))[1] for size in (32, 48)]
    np.testing.assert_allclose(found[0]['embedding'], found[1]['embedding'], rtol=1e-5)
    assert [one['features'].shape for one in found] == [(1, 2, 2, 16), (1, 3, 3, 16)]


def test_activations_may_be_bfloat16():
    model, variables = small('deit3_small_patch16_224', width=16)
    images = weights.images(2, 32)
    logits, endpoints = evaluate(model.clone(dtype=jnp.bfloat16), variables, images)
    assert logits.dtype == endpoints['embedding'].dtype == jnp.float32
    assert endpoints['features'].dtype == jnp.bfloat16
    exact = evaluate(model, variables, images)[0]
    np.testing.assert_allclose(logits, exact, atol=0.1 * np.abs(exact).max())


def test_attention_never_has_queries_keys_and_values_and_heads_as_axes_of_one_map():
    layer, x = vit.Attention(3), jnp.zeros((2, 5, 24))
    variables = layer.init(jax.random.key(0), x)
    text = jax.jit(jax.grad(lambda variables: layer.apply(variables, x).sum())).lower(variables).as_text()
    assert 'tensor<2x5x3x8xf32>' in text  # heads and their channels
    assert '2x5x3x3x8' not in text


def test_a_channel_without_any_response_has_a_gradient():
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
    x[0, ..., 1] = 0
    layer = layers.ResponseNorm()
    variables = {'params': {'scale': np.ones(4, np.float32), 'bias': np.full(4, 0.5, np.float32)}}
    norm = np.sqrt((x**2).sum((1, 2), keepdims=True))
    wanted = x + x * norm / (norm.mean(-1, keepdims=True) + 1e-6) + 0.5
    np.testing.assert_allclose(layer.apply(variables, x), wanted, rtol=1e-5, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: layer.apply(variables, x).sum())(x)).all()


@pytest.mark.parametrize(
    ('options', 'size', 'message'),
    [
        ({}, (40, 48), 'Images of 40x48 pixels do not divide into patches of 16x16'),
        ({'width': 100}, (32, 32), 'width=100 makes no transformer: .* such as 128'),
        ({'remat': 'stage'}, (32, 32), "remat='stage' is none of"),
        ({'zero_init_residual': True}, (32, 32), 'a vit_small_patch16_224 has no such option'),
    ],
)
def test_networks_and_images_that_there_cannot_be_are_refused(options, size, message):
    with pytest.raises(UsageError, match=message):
        model = models.create('vit_small_patch16_224', **{'width': 16} | options)
        jax.eval_shape(lambda x: model.apply(model.shapes(), x, EVAL), jnp.zeros((1, *size, 3), jnp.uint8))


def test_resolutions_that_are_no_multiple_of_the_patch_are_refused_before_the_run():
    config = base.get_config()
    config.data.source = 'drawings'
    name = config.model.name = 'deit_small_patch16_224'
    config.test.resolutions = (224, 280)
    with pytest.raises(UsageError, match=r'test.resolutions=280: deit_small_patch16_224 takes multiples of 16, such'):
        settings.check_architecture(settings.read(config), name, models.find(name))


def test_advice_keeps_to_multiples_of_the_patch():
    model = models.create('vit_small_patch16_224', width=16)
    found = advice.advise(32, TrainCrop(), TestCrop(), model=model, wanted_test_resolution=48)
    sizes = {found.test_resolution, *found.sweep, *found.train_resolution_for.values()}
    sizes |= {row['resolution'] for row in found.costs}
    assert not any(size % 16 for size in sizes)
    with pytest.raises(UsageError, match='train_resolution=200: the network takes multiples of 16, such as 192'):
        advice.advise(200, TrainCrop(), TestCrop(), model=model)


@pytest.mark.parametrize(('name', 'published'), [('vit_small_patch16_224', 4.6e9), ('convnext_tiny', 4.5e9)])
def test_work_is_counted_as_published(name, published):
    """Multiply-adds at 224, of DeiT III's table and ConvNeXt's; XLA counts what is no product too."""
    assert advice.flops(models.create(name), (224,))[224] == pytest.approx(2 * published, rel=0.08)


def theirs(name):
    """Return the names that the authors' own program gives to the arrays of a network, by timm's."""
    given = {'convnextv2_tiny': AUTHORS_CONVNEXT, 'deit3_small_patch16_224': AUTHORS_DEIT3}[name]
    keys = torch_weights.torch_shapes(models.create(name))
    return {key: next((key.replace(ours, own) for ours, own in given.items() if ours in key), key) for key in keys}


AUTHORS_CONVNEXT = {
    'stem.': 'downsample_layers.0.',
    'stages.1.downsample.': 'downsample_layers.1.',
    'stages.2.downsample.': 'downsample_layers.2.',
    'stages.3.downsample.': 'downsample_layers.3.',
    'conv_dw': 'dwconv',
    'mlp.fc1': 'pwconv1',
    'mlp.fc2': 'pwconv2',
    'mlp.grn.weight': 'grn.gamma',
    'mlp.grn.bias': 'grn.beta',
    'head.norm': 'norm',
    'head.fc': 'head',
}
AUTHORS_DEIT3 = {'ls1.gamma': 'gamma_1', 'ls2.gamma': 'gamma_2'}


@pytest.mark.parametrize('name', ['convnextv2_tiny', 'deit3_small_patch16_224'])
def test_names_of_the_authors_are_brought_to_timms(name):
    shapes = torch_weights.torch_shapes(models.create(name))
    given = {}
    for ours, own in theirs(name).items():
        axes = (1, 1, 1) if '.grn.' in own else ()
        given[own.replace('.blocks.', '.')] = np.empty((*axes, *shapes[ours].shape), np.float32)
    marker = 'downsample_layers.0.0.weight' if 'convnext' in name else 'blocks.0.gamma_1'
    assert marker in given and given.keys() != shapes.keys()
    found = lineages.to_timm(given, name)
    assert {key: array.shape for key, array in found.items()} == {key: leaf.shape for key, leaf in shapes.items()}
