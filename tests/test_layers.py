"""The layers that networks share, beside XLA's own convolution and torch's pools."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from fixres_jax import models
from fixres_jax.core.errors import UsageError
from fixres_jax.machines import sharding
from fixres_jax.models import EVAL, TRAIN, Mode, layers
from fixres_jax.models.depthwise import depthwise
from fixres_jax.models.devices import by_platform

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
DROPS = Mode(dropout=True, drop_path=True)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def convolution(x, kernel, stride, pads):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=DIMENSIONS, feature_group_count=x.shape[-1]
    )


@pytest.mark.parametrize(
    ('shape', 'sides', 'stride', 'pads'),
    [
        ((2, 9, 12, 5), (3, 3), 1, ((1, 1), (1, 1))),
        ((2, 12, 9, 5), (5, 5), 2, ((1, 2), (2, 2))),
        ((1, 8, 7, 3), (3, 5), 2, ((0, 0), (0, 1))),
        ((2, 7, 7, 4), (7, 1), 3, ((3, 3), (0, 0))),
    ],
)
def test_shifts_are_the_depthwise_convolution_and_so_are_their_gradients(shape, sides, stride, pads):
    x, kernel = draw(*shape), draw(*sides, 1, shape[-1], seed=1)
    found, pull = jax.vjp(lambda x, kernel: depthwise(x, kernel, stride, pads), x, kernel)
    expected, pull_expected = jax.vjp(lambda x, kernel: convolution(x, kernel, stride, pads), x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    gradient = draw(*found.shape, seed=2)
    for got, wanted in zip(pull(gradient), pull_expected(gradient), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    small = depthwise(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16), stride, pads)
    assert small.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(small), expected, rtol=0.05, atol=0.1)


def test_on_a_cpu_a_1x1_convolution_and_its_gradients_are_plain_products():
    layer = layers.Conv(6, 1, stride=2, padding=layers.symmetric)
    x = jnp.zeros((2, 8, 8, 4))
    variables = layer.init(jax.random.key(0), x)
    pull = jax.jit(jax.grad(lambda variables, x: layer.apply(variables, x).sum(), (0, 1)))
    text = pull.trace(variables, x).lower(lowering_platforms=('cpu',)).as_text()
    # Over several axes at once XLA:CPU first copies the map with its axes reversed.
    contracted = re.findall(r'contracting_dims = \[(.*?)\] x \[(.*?)\]', text)
    assert len(contracted) == 2 and 'convolution' not in text
    assert all(',' not in axes for pair in contracted for axes in pair)


def on_a_mesh_of(platform, function):
    device = jax.sharding.AbstractDevice(device_kind='', num_cores=None, platform=platform)
    mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)

    def on_mesh(*arguments):
        with jax.sharding.use_abstract_mesh(mesh):
            return function(*arguments)

    return on_mesh


def test_the_devices_of_a_mesh_choose_the_function_when_it_is_traced_and_without_a_mesh_the_lowering_does():
    def function(x):
        return by_platform(x, cpu=jnp.sin, tpu=jnp.cos, default=jnp.tan)

    def used(traced, platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return {name for name in ('sine', 'cosine', 'tan') if f'stablehlo.{name} ' in text}

    for device, platform, name in (('cpu', 'cpu', 'sine'), ('tpu', 'tpu', 'cosine'), ('gpu', 'cuda', 'tan')):
        assert used(jax.jit(function).trace(1.0), platform) == {name}
        assert used(jax.jit(on_a_mesh_of(device, function)).trace(1.0), 'cpu') == {name}


@pytest.mark.parametrize('platform', ['cpu', 'tpu', 'gpu'])
def test_a_step_on_a_mesh_traces_no_layer_for_another_platform(platform):
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, mode):
            x = layers.Conv(8, 3, padding=layers.symmetric)(x)
            x = layers.BatchNorm(2, 1e-5, 0.1)(x, mode)
            x = layers.max_pool(x, 3, 2, layers.symmetric)
            x = layers.Conv(8, 3, groups=8, padding=layers.symmetric)(x)
            return layers.Conv(8, 1, padding=layers.symmetric)(x).sum()

    network, x = Network(), draw(4, 8, 8, 3)
    variables = network.init(jax.random.key(0), x, TRAIN)

    def loss(params):
        return network.apply({**variables, 'params': params}, x, TRAIN, mutable=['batch_stats'])[0]

    traced = {on: str(jax.make_jaxpr(jax.grad(on))(variables['params'])) for on in (loss, on_a_mesh_of(platform, loss))}
    assert ['platform_index' in text for text in traced.values()] == [True, False]


@pytest.mark.parametrize('name', ['resnet18', 'efficientnet_b0'])
def test_parameters_are_drawn_without_a_layer_for_any_platform(name):
    model, key, image = models.create(name, 3), jax.random.key(0), draw(1, 32, 32, 3)
    variables = model.shapes()
    traced = [jax.make_jaxpr(model.init)(key), jax.make_jaxpr(lambda v: model.apply(v, image, EVAL))(variables)]
    assert ['platform_index' in str(text) for text in traced] == [False, True]


def test_accelerators_keep_the_depthwise_convolution():
    layer = layers.Conv(6, 3, groups=6, padding=layers.same)
    x = jnp.zeros((2, 8, 8, 6))
    variables = layer.init(jax.random.key(0), x)
    lowered = jax.jit(layer.apply).trace(variables, x)
    assert 'convolution' not in lowered.lower(lowering_platforms=('cpu',)).as_text()
    for platform in ('tpu', 'cuda'):
        assert 'convolution' in lowered.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('size', [5, 8, 9])
@pytest.mark.parametrize('side', [1, 3, 5])
@pytest.mark.parametrize('stride', [1, 2])
def test_paddings_are_torchs_and_xlas(size, side, stride):
    x, kernel = draw(1, size, size + 1, 2), draw(side, side, 2, 3, seed=1)
    for padding, theirs in (
        (layers.same, 'SAME'),
        (layers.symmetric, ((side // 2,) * 2,) * 2),
        (layers.valid, 'VALID'),
    ):
        layer = layers.Conv(3, side, stride, padding=padding)
        found = layer.apply({'params': {'kernel': kernel}}, x)
        expected = lax.conv_general_dilated(x, kernel, (stride, stride), theirs, dimension_numbers=DIMENSIONS)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_may_be_oblong_and_have_a_bias():
    x, kernel, bias = draw(2, 6, 7, 4), draw(1, 7, 4, 3, seed=1), draw(3, seed=2)
    layer = layers.Conv(3, (1, 7), padding=layers.symmetric, bias=True)
    found = layer.apply({'params': {'kernel': kernel, 'bias': bias}}, x)
    expected = lax.conv_general_dilated(x, kernel, (1, 1), ((0, 0), (3, 3)), dimension_numbers=DIMENSIONS)
    np.testing.assert_allclose(found, expected + bias.reshape(1, 1, 1, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('shape', 'side', 'stride', 'groups'),
    [((2, 2, 2, 8), 3, 1, 1), ((2, 4, 4, 8), 3, 2, 1), ((2, 1, 2, 8), 3, 1, 4), ((2, 3, 4, 8), 5, 2, 2)],
)
def test_a_map_smaller_than_the_window_is_convolved_alike_and_without_xlas_slow_program_on_cpu(
    shape, side, stride, groups
):
    layer = layers.Conv(12, side, stride, groups, padding=layers.symmetric)
    x, kernel = draw(*shape), draw(side, side, shape[-1] // groups, 12, seed=1)

    def ours(x, kernel):
        return layer.apply({'params': {'kernel': kernel}}, x)

    def xlas(x, kernel):
        pads = ((side // 2, side // 2),) * 2
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, dimension_numbers=DIMENSIONS, feature_group_count=groups
        )

    found, pull = jax.vjp(ours, x, kernel)
    expected, pull_expected = jax.vjp(xlas, x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    gradient = draw(*found.shape, seed=2)
    for got, wanted in zip(pull(gradient), pull_expected(gradient), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    lowered = jax.jit(lambda *a: jax.vjp(ours, *a[:2])[1](a[2])).trace(x, kernel, gradient)
    for platform, there in {'cpu': False, 'tpu': True, 'cuda': True}.items():
        assert ('convolution' in lowered.lower(lowering_platforms=(platform,)).as_text()) == there


def test_patches_that_do_not_overlap_stay_a_convolution_everywhere():
    layer, x = layers.Conv(6, 4, 4, padding=layers.valid), jnp.zeros((2, 8, 8, 3))
    lowered = jax.jit(layer.apply).trace(layer.init(jax.random.key(0), x), x)
    assert 'convolution' in lowered.lower(lowering_platforms=('cpu',)).as_text()


@pytest.mark.parametrize(('channels', 'features', 'groups'), [(1, 8, 8), (4, 0, 1), (4, 6, 4), (6, 8, 4)])
def test_channels_that_make_no_groups_are_refused(channels, features, groups):
    layer = layers.Conv(features, 3, groups=groups, padding=layers.symmetric)
    with pytest.raises(UsageError, match=f'maps {channels} channels to {features} in {groups} groups'):
        layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, channels)))


def test_an_image_too_small_for_a_window_is_refused():
    with pytest.raises(UsageError, match='4x9 pixels has reached a window of 7x7'):
        layers.Conv(3, 7, padding=layers.valid).init(jax.random.key(0), jnp.zeros((1, 4, 9, 3)))


@pytest.mark.parametrize('size', [6, 7, 9])
@pytest.mark.parametrize(
    ('side', 'stride', 'padding', 'ceil_mode'),
    [(3, 2, 0, True), (3, 2, 0, False), (3, 2, 1, True), (2, 2, 0, True), (3, 1, 1, False), (2, 3, 0, True)],
)
def test_pools_are_torchs(size, side, stride, padding, ceil_mode):
    torch = pytest.importorskip('torch', exc_type=ImportError)
    x = draw(2, size, size + 3, 3) - 3  # below zero: padding must never be the maximum
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2))
    pad = layers.symmetric if padding else layers.valid
    wanted = torch.nn.functional.max_pool2d(theirs, side, stride, padding, ceil_mode=ceil_mode)
    found = layers.max_pool(x, side, stride, pad, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(found, wanted.numpy().transpose(0, 2, 3, 1))
    for counts in (True, False):
        wanted = torch.nn.functional.avg_pool2d(
            theirs, side, stride, padding, ceil_mode=ceil_mode, count_include_pad=counts
        )
        found = layers.avg_pool(x, side, stride, pad, ceil_mode=ceil_mode, count_include_pad=counts)
        np.testing.assert_allclose(found, wanted.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(2, 3, 5, 4), (1, 7, 7, 2), (1, 12, 6, 2)])
def test_a_pool_to_a_given_size_is_torchs(shape):
    torch = pytest.importorskip('torch', exc_type=ImportError)
    x = draw(*shape)
    wanted = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x.transpose(0, 3, 1, 2)), (7, 8))
    found = layers.adaptive_avg_pool(x, 7, 8)
    np.testing.assert_allclose(found, wanted.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)


def test_layer_norm_is_torchs():
    torch = pytest.importorskip('torch', exc_type=ImportError)
    x, scale, bias = draw(3, 4, 6) + 2, draw(6, seed=1), draw(6, seed=2)
    found = layers.LayerNorm(1e-6).apply({'params': {'scale': scale, 'bias': bias}}, x)
    wanted = torch.nn.functional.layer_norm(
        *map(torch.from_numpy, (x,)), (6,), *map(torch.from_numpy, (scale, bias)), 1e-6
    )
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('layer', 'values'), [(layers.Dropout, 7), (layers.DropPath, 1)])
def test_what_is_left_out_and_how_much(layer, values):
    rate, x = 0.3, np.ones((4000, 1, 7), np.float32)
    apply = functools.partial(layer(rate).apply, {}, x)
    np.testing.assert_array_equal(apply(EVAL), x)
    found = np.asarray(apply(DROPS, rngs={'dropout': jax.random.key(0)}))
    kept = found > 0
    np.testing.assert_allclose(found[kept], 1 / (1 - rate), rtol=1e-6)
    assert np.abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / (4000 * values))
    assert (values == 1) == bool((kept == kept[..., :1]).all())  # drop path leaves out whole images
    np.testing.assert_array_equal(layer(0.0).apply({}, x, DROPS), x)  # without a key


@pytest.mark.parametrize('layer', [layers.Dropout, layers.DropPath])
def test_what_is_left_out_does_not_depend_on_the_devices(layer):
    x, found = np.ones((16, 3, 3, 5), np.float32), []
    for count in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:count])
        split = NamedSharding(mesh, PartitionSpec('data'))
        step = jax.jit(lambda x, key: layer(0.5).apply({}, x, DROPS, rngs={'dropout': key}), in_shardings=(split, None))
        found.append(np.asarray(step(x, jax.random.key(3))))
    np.testing.assert_array_equal(*found)
    assert 0 < np.mean(found[0] > 0) < 1


def test_a_gate_scales_channels_by_their_mean():
    x = draw(2, 5, 6, 4)
    layer = layers.SqueezeExcite(2)
    variables = layer.init(jax.random.key(0), x)
    params = variables['params']
    assert set(params) == {'conv_reduce', 'conv_expand'}
    inner = np.maximum(x.mean((1, 2)) @ params['conv_reduce']['kernel'][0, 0], 0)
    gate = 1 / (1 + np.exp(-(inner @ params['conv_expand']['kernel'][0, 0])))
    np.testing.assert_allclose(layer.apply(variables, x), x * gate.reshape(2, 1, 1, 4), rtol=1e-4, atol=1e-5)
