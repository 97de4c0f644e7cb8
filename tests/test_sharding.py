"""Layouts, recomputation and parts of a batch: the same step, in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fixres_jax import models
from fixres_jax.adaptation import embeddings, statistics
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.evaluation import evaluate
from fixres_jax.machines import footprint, sharding
from fixres_jax.models import Model, layers
from fixres_jax.models.architecture import IMAGENET_MEAN, IMAGENET_STD, REMAT
from fixres_jax.models.resnet import Bottleneck, ResNet
from fixres_jax.training import state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.schedules import make_schedule
from fixres_jax.training.step import Procedure, make_train_step

TX = make_sgd(make_schedule('constant', 0.05, num_steps=5), momentum=0.9, weight_decay=1e-4)
OPTIONS = {
    'plain': {},
    'fsdp': {'layout': 'fsdp'},
    'parts': {'procedure': Procedure(accumulate_steps=2)},
    'block': {},
    'stage': {},
}


def make_model(remat=''):
    options = {'num_classes': 64, 'width': 16, 'bn_group_size': 8, 'remat': remat}
    module = ResNet(Bottleneck, (1, 1, 1, 1), mean=IMAGENET_MEAN, std=IMAGENET_STD, **options)
    return Model(models.ARCHITECTURES['resnet50'], module)


@pytest.fixture(scope='module')
def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope='module')
def outcomes(mesh):
    """Two steps of each option from the same start: option -> (start and first state, losses, last state, memory)."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (64, 64, 64, 3), np.uint8), rng.integers(0, 64, 64, np.int32)
    batch = sharding.put({'image': image, 'label': label}, mesh)
    found = {}
    for name, options in OPTIONS.items():
        model = make_model(name if name in REMAT else '')
        key, layout = jax.random.key(1), options.get('layout', 'replicated')
        now = state.create(model, TX, '.*', key=key, mesh=mesh, layout=layout)
        step_fn = make_train_step(model, TX, '.*', models.TRAIN, mesh=mesh, **options)
        compiled = step_fn.lower(now, batch, key).compile()
        states, losses = [jax.tree.map(np.array, now)], []
        for _ in range(2):
            now, scalars = compiled(now, batch, key)
            states.append(jax.tree.map(np.array, now))
            losses.append(jax.device_get(scalars))
        found[name] = states[:2], losses, now, compiled.memory_analysis()
    return found


def assert_same_changes(start, plain, other, tolerance):
    """Compare what happened to each leaf since the start, relative to how much did."""
    for old, a, b in zip(*map(jax.tree.leaves, (start, plain, other)), strict=True):
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(a - old)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in OPTIONS if name != 'plain'])
def test_every_option_takes_the_plain_step(outcomes, name):
    (start, plain), losses, _, _ = outcomes['plain']
    (other_start, other), other_losses, _, _ = outcomes[name]
    jax.tree.map(np.testing.assert_array_equal, start, other_start)
    # Rounding differs by 1e-6, but can move one activation across zero, and a gradient with it by some 3e-3.
    assert_same_changes(start, plain, other, 1e-2)
    for a, b, tolerance in zip(losses, other_losses, (1e-5, 1e-3), strict=True):
        np.testing.assert_allclose(a['loss'], b['loss'], rtol=tolerance)
        np.testing.assert_allclose(a['gradient_norm'], b['gradient_norm'], rtol=1e-2)


@pytest.mark.slow
def test_fsdp_splits_the_memory_of_the_state(outcomes):
    _, _, plain, memory = outcomes['plain']
    _, _, split, split_memory = outcomes['fsdp']
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(plain))
    small = sum(leaf.nbytes for leaf in jax.tree.leaves(plain) if leaf.size < sharding.FSDP_MIN_SIZE)
    saved = memory.argument_size_in_bytes - split_memory.argument_size_in_bytes
    assert saved == pytest.approx((total - small) * 7 / 8, rel=0.01)
    assert saved > 0.75 * total  # The network is large enough for the test to mean something.
    # Kernels are whole where they are used, not all of them at once.
    assert split_memory.temp_size_in_bytes < memory.temp_size_in_bytes + 0.5 * (total - small) / 2
    kernel = split.params['layer4']['0']['conv2']['kernel']
    assert kernel.sharding.spec == PartitionSpec(None, None, 'data')
    assert kernel.addressable_shards[0].data.size == kernel.size // 8


def lower_train(model, mesh, layout, variables, image, label):
    blank = state.abstract(model, TX, '.*', mesh=mesh, layout=layout)
    step_fn = make_train_step(model, TX, '.*', models.TRAIN, mesh=mesh, layout=layout)
    return step_fn.lower(blank, {'image': image, 'label': label}, jax.eval_shape(lambda: jax.random.key(0)))


PROGRAMS = {
    'train': lower_train,
    'evaluate': lambda model, mesh, _, variables, image, label: evaluate.make_eval_step(model, mesh).lower(
        variables, image, label
    ),
    'embed': lambda model, mesh, _, variables, image, label: embeddings.make_embed_step(model, mesh).lower(
        variables, {'one': {}}, image
    ),
    'moments': lambda model, mesh, _, variables, image, label: statistics._make_moments(
        model, ('layer1/0/bn3',), mesh
    ).lower(variables, {}, image),
}


@pytest.mark.parametrize('program', PROGRAMS)
def test_fsdp_gathers_each_kernel_that_a_program_uses_once_and_moves_nothing_else(mesh, program):
    module = ResNet(Bottleneck, (1,), mean=IMAGENET_MEAN, std=IMAGENET_STD, num_classes=64, width=32, bn_group_size=2)
    model = Model(models.ARCHITECTURES['resnet50'], module)
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding.by_example(mesh))
    batch = shape((16, 32, 32, 3), jnp.uint8), shape((16,), jnp.int32)
    found = {}
    for layout in sharding.LAYOUTS:
        variables = state.abstract(model, TX, '.*', mesh=mesh, layout=layout).variables
        compiled = PROGRAMS[program](model, mesh, layout, variables, *batch).compile()
        found[layout] = dict(footprint.count(compiled.as_text()).collectives)
    params = trees.flatten(variables['params'])
    split = {name: x.size * 4 for name, x in params.items() if not x.sharding.is_fully_replicated}
    assert set(split) == {
        'conv1/kernel',
        'layer1/0/conv2/kernel',
        'layer1/0/conv3/kernel',
        'layer1/0/downsample/0/kernel',
        'fc/kernel',
    }
    if program in ('embed', 'moments'):
        del split['fc/kernel']
    if program == 'moments':
        del split['layer1/0/downsample/0/kernel']
    gathers = found['fsdp'].pop('all-gather')
    assert gathers == {'count': len(split), 'bytes': sum(split.values())}
    assert found['fsdp'] == found['replicated'] and 'all-gather' not in found['replicated']


@pytest.mark.parametrize(('features', 'groups'), [(32, 4), (16, 16)])
def test_each_device_convolves_its_own_images_in_groups(mesh, features, groups):
    layer = layers.Conv(features, 3, groups=groups, padding=layers.symmetric)
    x = jax.random.normal(jax.random.key(0), (16, 8, 8, 16))
    variables = layer.init(jax.random.key(1), x)

    def loss(variables, x):
        return (layer.apply(variables, x) ** 2).sum()

    placed = {'in_shardings': (sharding.replicated(mesh), sharding.by_example(mesh))}
    compiled = sharding.jit(jax.value_and_grad(loss), mesh, **placed).lower(variables, x).compile()
    alone = jax.jit(jax.value_and_grad(loss)).lower(variables, x).compile()
    found, whole = (footprint.count(one.as_text()) for one in (compiled, alone))
    assert found.flops == whole.flops / 8 and (found.flops > 0 or groups == 16)  # Depthwise needs no product.
    # The loss and the gradient of the kernel.
    numbers = 1 + 9 * 16 // groups * features
    assert found.collectives.keys() == {'all-reduce'} and found.collectives['all-reduce']['bytes'] == 4 * numbers
    split = jax.device_put(variables, sharding.replicated(mesh)), jax.device_put(x, sharding.by_example(mesh))
    for a, b in zip(*map(jax.tree.leaves, (alone(variables, x), compiled(*split))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_parts_of_a_batch_need_less_temporary_memory(outcomes):
    assert outcomes['parts'][3].temp_size_in_bytes < outcomes['plain'][3].temp_size_in_bytes


def test_a_state_moves_between_layouts(mesh):
    shapes = state.abstract(make_model(), TX, '.*', mesh=mesh)
    places = {layout: sharding.place(shapes, mesh, layout) for layout in sharding.LAYOUTS}
    for layout, tree in places.items():
        split = [place for place in jax.tree.leaves(tree) if not place.is_fully_replicated]
        assert bool(split) == (layout == 'fsdp')
    names = trees.flatten(places['fsdp'].params)
    assert names['layer1/0/conv2/kernel'].is_fully_replicated  # 3 * 3 * 16 * 16 scalars are few
    assert names['fc/kernel'].spec == PartitionSpec('data')


def test_an_axis_that_the_devices_do_not_divide_stays_whole(mesh):
    shapes = {name: jax.ShapeDtypeStruct((1001, size), jnp.float32) for name, size in (('odd', 99), ('mixed', 96))}
    places = sharding.place(shapes, mesh, 'fsdp')
    assert places['odd'].is_fully_replicated
    assert places['mixed'].spec == PartitionSpec(None, 'data')


@pytest.mark.parametrize('count', [0, 1, 2, 3, 20])
def test_prefetching_hands_over_the_first_batch_at_once_and_then_keeps_a_lead(mesh, count):
    taken = []
    source = (taken.append(number) or np.full(8, number) for number in range(count))
    leads = []
    for number, (host, device) in enumerate(sharding.prefetch(source, mesh)):
        assert host[0] == number and int(device[0]) == number
        leads.append(len(taken) - number - 1)
    assert len(leads) == count
    if count == 20:
        assert leads[0] == 0 and leads[6:18] == [2] * 12


def test_wrong_options_are_refused(mesh):
    with pytest.raises(UsageError, match="sharding='fdsp' is not one of replicated, fsdp. Did you mean 'fsdp'?"):
        sharding.place({}, mesh, 'fdsp')
    with pytest.raises(UsageError, match='choose a positive multiple of 24'):
        sharding.check_batch_size(32, mesh, 'train.batch_size', 3)
    with pytest.raises(UsageError, match='accumulate_steps=0'):
        sharding.check_batch_size(32, mesh, 'train.batch_size', 0)
    with pytest.raises(UsageError, match="remat='blok'.*Did you mean 'block'?"):
        models.create('resnet50', remat='blok')
