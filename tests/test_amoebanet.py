"""AmoebaNet: its cells computed by hand with numpy, its shapes, and what small images make of it."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.models import EVAL, TRAIN, amoebanet, cells, layers

EPSILON = 1e-3


class Weights:
    """Layers of one cell in numpy, by the names of their weights."""

    def __init__(self, variables):
        self.flat = trees.flatten(variables)
        self.used = set()

    def _take(self, name):
        self.used.add(name)
        return np.asarray(self.flat[name], np.float64)

    def norm(self, name, x):
        mean, var = (self._take(f'batch_stats/{name}/{leaf}') for leaf in ('mean', 'var'))
        scale, bias = (self._take(f'params/{name}/{leaf}') for leaf in ('scale', 'bias'))
        return (x - mean) / np.sqrt(var + EPSILON) * scale + bias

    def conv(self, name, x, stride=1):
        """Convolve in TensorFlow's padding; a kernel of one input channel to many maps is by channel."""
        kernel = self._take(f'params/{name}/kernel')
        gathered = windows(x, kernel.shape[0], stride, 0.0)
        if kernel.shape[2] == 1 < x.shape[-1]:
            return np.einsum('bijhwc,hwc->bijc', gathered, kernel[:, :, 0])
        return np.einsum('bijhwc,hwco->bijo', gathered, kernel)

    def relu_conv_norm(self, name, x, stride=1, conv='conv', norm='bn'):
        return self.norm(f'{name}/{norm}', self.conv(f'{name}/{conv}', np.maximum(x, 0), stride))

    def separable(self, name, x, stride=1):
        for number, step in ((1, stride), (2, 1)):
            x = self.conv(f'{name}/separable_{number}/depthwise_conv2d', np.maximum(x, 0), step)
            x = self.norm(f'{name}/bn_sep_{number}', self.conv(f'{name}/separable_{number}/pointwise_conv2d', x))
        return x

    def reduced(self, name, x):
        x = np.maximum(x, 0)
        shifted = np.zeros_like(x)
        shifted[:, :-1, :-1] = x[:, 1:, 1:]
        grids = [self.conv(f'{name}/path_{i}/conv', y[:, ::2, ::2]) for i, y in ((1, x), (2, shifted))]
        return self.norm(f'{name}/final_path_bn', np.concatenate(grids, -1))


def windows(x, side, stride, fill):
    """Return the windows of TensorFlow's padding, [B, rows, columns, side, side, C]."""
    around = []
    for size in x.shape[1:3]:
        total = max((-(-size // stride) - 1) * stride + side - size, 0)
        around.append((total // 2, total - total // 2))
    padded = np.pad(x, ((0, 0), *around, (0, 0)), constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))[:, ::stride, ::stride]
    return found.transpose(0, 1, 2, 4, 5, 3)


def max_pool(x, side, stride=1):
    return windows(x, side, stride, -np.inf).max((3, 4))


def mean_pool(x):
    return np.nanmean(windows(x, 3, 1, np.nan), (3, 4))


def normal_cell(w, before, last):
    h0, h1 = w.relu_conv_norm('conv_1x1', last), w.relu_conv_norm('conv_prev_1x1', before)
    h2 = w.relu_conv_norm('comb_iter_0_left', h1) + max_pool(h1, 3)
    h3 = h1 + w.separable('comb_iter_1_right', h0)
    h4 = w.relu_conv_norm('comb_iter_2_left', h1) + w.separable('comb_iter_2_right', h0)
    h5 = w.relu_conv_norm('comb_iter_3_left', h2) + h2
    h6 = mean_pool(h1) + w.relu_conv_norm('comb_iter_4_right', h5)
    return np.concatenate([h0, h3, h4, h6], -1)


def reduction_cell(w, before, last):
    h0, h1 = w.relu_conv_norm('conv_1x1', last), w.reduced('conv_prev_1x1', before)
    h2 = max_pool(h0, 2, 2) + max_pool(h0, 3, 2)
    branch = w.relu_conv_norm('comb_iter_1_right', h1, conv='pre_conv', norm='pre_bn')
    branch = w.relu_conv_norm('comb_iter_1_right', branch, 2)
    h3 = h2 + w.relu_conv_norm('comb_iter_1_right', branch, conv='post_conv', norm='post_bn')
    h4 = w.separable('comb_iter_2_left', h2) + max_pool(h2, 3)
    h5 = h3 + w.separable('comb_iter_3_right', h1, 2)
    h6 = mean_pool(h4) + w.relu_conv_norm('comb_iter_4_right', h3)
    return np.concatenate([h5, h6], -1)


def drawn(variables):
    """Return variables whose statistics and affine parameters are far from their defaults."""
    rng, flat = np.random.default_rng(0), {}
    for name, leaf in sorted(trees.flatten(variables).items()):
        if name.endswith(('/scale', '/var')):
            flat[name] = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            flat[name] = rng.normal(0, 0.4, leaf.shape)
    return trees.unflatten({name: np.float32(array) for name, array in flat.items()})


@pytest.mark.parametrize('last_size', [(6, 8), (7, 5)])
@pytest.mark.parametrize(('kind', 'by_hand'), [('NORMAL', normal_cell), ('REDUCTION', reduction_cell)])
def test_a_cell_is_what_hand_and_numpy_make_of_it(kind, by_hand, last_size):
    table, features = getattr(amoebanet, kind), 8
    stride = 2 if kind == 'REDUCTION' else 1
    before_size = last_size if stride == 1 else tuple(2 * size - 1 for size in last_size)
    if stride == 2:  # both inputs at the size of the last one, as its first projection makes them
        features = 12
    rng = np.random.default_rng(1)
    before = rng.normal(size=(2, *before_size, 10)).astype(np.float32)
    last = rng.normal(size=(2, *last_size, 14)).astype(np.float32)
    norm = partial(layers.BatchNorm, None, epsilon=EPSILON, momentum=0.1)
    place = cells.Place('cell', table, features, stride, layers.same)
    cell = cells.Cell(place, cells.Pieces(norm, layers.same, 0.0))
    variables = drawn(jax.eval_shape(cell.init, jax.random.key(0), before, last, EVAL))
    found = jax.jit(cell.apply, static_argnums=3)(variables, before, last, EVAL)
    weights = Weights(variables)
    wanted = by_hand(weights, np.float64(before), np.float64(last))
    assert found.shape == wanted.shape and weights.used == weights.flat.keys()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_inputs_of_the_cells():
    """The stem's cells and the one after a reduction stand on what they should, by the shapes of their weights."""
    params = trees.flatten(models.create('amoebanet_b_small', 4).shapes()['params'])
    assert not [name for name in params if name.startswith(('cell_stem_0/conv_prev', 'cell_1/conv_prev'))]
    assert params['cell_stem_0/conv_1x1/conv/kernel'].shape == (1, 1, 2, 8)  # of 32 channels a quarter
    assert params['cell_stem_0/comb_iter_1_right/pre_conv/kernel'].shape == (1, 1, 2, 2)
    assert params['cell_stem_1/conv_prev_1x1/path_2/conv/kernel'].shape == (1, 1, 2, 8)
    assert params['cell_0/conv_1x1/conv/kernel'].shape == (1, 1, 32, 32)
    assert params['reduction_cell_0/conv_prev_1x1/conv/kernel'].shape == (1, 1, 128, 64)
    assert params['cell_2/conv_prev_1x1/path_1/conv/kernel'].shape == (1, 1, 128, 32)
    assert params['cell_3/conv_prev_1x1/conv/kernel'].shape == (1, 1, 128, 64)
    assert params['last_linear/kernel'].shape == (512, 4)


@pytest.mark.slow
def test_the_shapes_of_the_published_network():
    model = models.create('amoebanet_b')
    images = np.zeros((1, 480, 480, 3), np.float32)
    outputs = jax.eval_shape(lambda variables: model.apply(variables, images, EVAL), model.shapes())
    assert outputs[1]['features'].shape == (1, 15, 15, 8192)
    assert outputs[1]['embedding'].shape == (1, 8192) and outputs[0].shape == (1, 1000)


def test_drop_path_leaves_identities_alone():
    """Each operation but `none` draws for every image whether it is left out."""
    norm = partial(layers.BatchNorm, None, epsilon=EPSILON, momentum=0.1)
    x = np.ones((64, 1, 1, 4), np.float32)
    mode = dataclasses.replace(TRAIN, batch_norm='')
    for kind, kept in (('none', {1.0}), ('max 3x3', {0.0, 2.0})):
        operation = cells.Operation(kind, cells.Pieces(norm, layers.same, 0.5), 4, 1)
        found = operation.apply({}, x, mode, rngs={'dropout': jax.random.key(0)})
        assert set(np.unique(found)) == kept
        assert isinstance(operation, nn.Module) and (found == found[..., :1]).all()
