"""Adaptation in one pass: exact statistics, the convex classifier, and a choice that is never knowingly worse."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from defaults import optimization
from fixres_jax import models
from fixres_jax.adaptation import adapt, classifier, embeddings, statistics
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.data import pipeline, sources, transforms
from fixres_jax.data.sources import Splits
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.models import EVAL
from fixres_jax.weights.network import Network

RESOLUTION = 32
LAYER = 'layer4/1/bn2'
SGD = optimization(
    epochs=3.0, batch_size=16, lr=0.05, lr_rule='none', schedule='cosine', decay_every_epochs=1.0, warmup_epochs=0.0,
    momentum=0.9, weight_decay=1e-4, label_smoothing=0.0, accumulate_steps=1, trainable='fc/.*', batch_norm=LAYER,
    repeats=1,
)  # fmt: skip
HOW = adapt.Adaptation(
    batch_norm=LAYER, statistics_images=48, prior_images=0, solver='lbfgs', weight_decays=(0.0, 1e-3, 1e-1),
    max_iterations=60, optimization=SGD, flip=False, copies=0, cache_dtype='float32', cache_gigabytes=1.0,
    sweep_images=1000, unseen=True,
)  # fmt: skip


@pytest.fixture(scope='module')
def mesh():
    return sharding.make_mesh(jax.devices()[:2])


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model, variables, images, mode=EVAL):
    return model.apply(variables, images, mode, mutable=['batch_stats'])


@pytest.fixture(scope='module')
def network(mesh, source):
    """A network whose statistics are near those of the images, so that it is alive, yet are not those."""
    model = models.create('resnet18', 4, width=8)
    variables = jax.jit(lambda: model.init(jax.random.key(0)))()
    every_layer = models.Mode('.*', population=True)
    _, images = apply(model.clone(bn_group_size=None), variables, pixels(source)[0], every_layer)
    images, rng = trees.flatten(images['batch_stats']), np.random.default_rng(0)
    for name in list(images):
        if name.endswith('/var'):
            mean, spread = name.replace('/var', '/mean'), np.sqrt(images[name])
            images[mean] = np.float32(images[mean] + 0.3 * spread * rng.normal(size=spread.shape))
            images[name] = np.float32(images[name] * np.exp(0.5 * rng.normal(size=spread.shape)))
    variables['batch_stats'] = trees.unflatten(images)
    return model, jax.device_put(variables, sharding.replicated(mesh))


@pytest.fixture(scope='module')
def source(tiny_folder):
    return sources.create(tiny_folder, 'train')


def test_the_network_of_these_tests_is_alive(network, source, held_out):
    """Its embeddings of different images differ, in nearly every channel and in many directions."""
    model, variables = network
    for images in (pixels(source)[0], pixels(held_out)[0]):
        embedding = np.asarray(apply(model, variables, images)[0][1]['embedding'], np.float64)
        assert (embedding.std(0) > 0.1).mean() > 0.9
        values = np.linalg.svd(embedding - embedding.mean(0), compute_uv=False)
        assert (values > 0.01 * values[0]).sum() >= 20


@pytest.fixture(scope='module')
def held_out(tiny_folder):
    return sources.create(tiny_folder, 'val')


def run(network, source, held_out, mesh, tmp_path, how=HOW, **options):
    test_transforms = {RESOLUTION: transforms.make_test(RESOLUTION)}
    images, feed = Splits(source, held_out, None), Feed(Runtime(mesh), options.pop('batch_size', 16), 'adapt')
    arguments = {'seed': 0, 'directory': tmp_path} | options
    result, record = adapt.adapt(Network(*network), images, test_transforms, how, feed, **arguments)[RESOLUTION]
    return result.variables, record


@pytest.fixture(scope='module')
def adapted(network, source, held_out, mesh, tmp_path_factory):
    return run(network, source, held_out, mesh, tmp_path_factory.mktemp('adapted'))


def pixels(source, resolution=RESOLUTION):
    transform = transforms.make_test(resolution)
    batch = next(pipeline.eval_batches(source, {0: transform}, batch_size=len(source)))
    return batch['image'][0], batch['label']


def random_embeddings(mesh, count=90, channels=6, classes=3, seed=1, signal=1.0):
    """Return embeddings that no plane separates, as arrays and as `Embeddings` with padding.

    The classes lie `signal` apart, at the same places for every seed.
    """
    rng, centres = np.random.default_rng(seed), np.random.default_rng(1).normal(size=(classes, channels))
    label = rng.integers(classes, size=count).astype(np.int32)
    values = np.float32(rng.normal(size=(count, channels)) + signal * centres[label])
    shape, index = (4, 24), np.where(np.arange(96) < count, np.arange(96), -1).astype(np.int32)
    padded = [np.zeros((96, *x.shape[1:]), x.dtype) for x in (values, label)]
    padded[0][:count], padded[1][:count] = values, label
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, 'data'))
    arrays = [jax.device_put(x.reshape(*shape, *x.shape[1:]), place) for x in (*padded, index)]
    return values, label, embeddings.Embeddings(*arrays, part=2, count=count)


def test_statistics_are_the_population_values_of_the_layers_input(network, source, mesh):
    """Of three batches of other classes each: their means differ, and the variance holds what is between them."""
    model, variables = network
    found = statistics.measure(
        Network(*network), source, {RESOLUTION: transforms.make_test(RESOLUTION)}, Feed(Runtime(mesh), 16),
        batch_norm=LAYER,
    )[RESOLUTION]  # fmt: skip
    assert found.keys() == {f'{LAYER}/mean', f'{LAYER}/var'}
    images, _ = pixels(source)
    kept = {'mutable': 'intermediates', 'capture_intermediates': lambda module, _: module.name == 'bn2'}
    _, outputs = jax.jit(lambda variables, images: model.apply(variables, images, EVAL, **kept))(variables, images)
    y = np.asarray(outputs['intermediates']['layer4']['1']['bn2']['__call__'][0], np.float64)
    old = {name: np.asarray(trees.flatten(variables)[name], np.float64) for name in trees.flatten(variables)}
    scale, bias = old[f'params/{LAYER}/scale'], old[f'params/{LAYER}/bias']
    mean, var = old[f'batch_stats/{LAYER}/mean'], old[f'batch_stats/{LAYER}/var']
    x = (y - bias) / scale * np.sqrt(var + 1e-5) + mean  # what went in
    between = x.reshape(3, 16, *x.shape[1:]).mean((1, 2, 3)).var(0)
    assert x.var((0, 1, 2)).min() > 1e-3 and np.median(between / x.var((0, 1, 2))) > 0.01
    np.testing.assert_allclose(found[f'{LAYER}/mean'], x.mean((0, 1, 2)), atol=2e-5)
    np.testing.assert_allclose(found[f'{LAYER}/var'], x.var((0, 1, 2)), rtol=2e-4)


@pytest.mark.parametrize(('count', 'seen'), [(48, 40), (1, 1)])
def test_statistics_leave_out_the_ragged_end(network, source, mesh, count, seen):
    """Of 48 images in batches of 20, the first 40; of a single image, that one."""
    model, variables = network
    transform, images = {RESOLUTION: transforms.make_test(RESOLUTION)}, sources.subset(source, range(count))
    found = statistics.measure(Network(*network), images, transform, Feed(Runtime(mesh), 20), batch_norm=LAYER)
    images, one_layer = np.repeat(pixels(source)[0][:seen], 2, axis=0), models.Mode(LAYER, population=True)
    _, expected = apply(model.clone(bn_group_size=None), variables, images, one_layer)
    for name, value in found[RESOLUTION].items():
        np.testing.assert_allclose(value, trees.flatten(expected['batch_stats'])[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('images', 'most', 'size'), [(48, 1000, 48), (3000, 10_000, 256), (4800, 10_000, 300), (4800, 100, 100)]
)
def test_statistics_are_measured_on_a_sixteenth_but_on_256_images_where_there_are_so_many(source, images, most, size):
    whole = sources.subset(source, np.arange(images) % len(source))
    picked = statistics.sample(whole, most, seed=0).indices
    assert len(picked) == size and (np.diff(picked) > 0).all() and picked[-1] < images
    np.testing.assert_array_equal(statistics.sample(whole, most, seed=0).indices, picked)
    assert size == images or not np.array_equal(statistics.sample(whole, most, seed=1).indices, picked)


def test_layers_are_measured_in_the_networks_order(network, source, mesh):
    """With the new statistics of every layer, a forward pass normalizes each to zero mean and unit variance."""
    model, variables = network
    regex = 'layer4/1/bn(1|2)'
    found = statistics.measure(
        Network(*network), source, {0: transforms.make_test(RESOLUTION)}, Feed(Runtime(mesh), 48), batch_norm=regex
    )[0]
    images, _ = pixels(source)
    _, batch = apply(model.clone(bn_group_size=None), variables, images, models.Mode(regex, population=True))
    for name, value in found.items():  # one batch of all images is its own reference
        np.testing.assert_allclose(value, trees.flatten(batch['batch_stats'])[name], rtol=1e-3, atol=1e-5)


def test_blended_statistics_count_the_old_ones_as_images(network, source, mesh):
    """Of two layers, the second one's input is what the first one's blended statistics make of the images."""
    model, variables = network
    regex, transform = 'layer4/1/bn(1|2)', {0: transforms.make_test(RESOLUTION)}
    images = sources.subset(source, range(40))
    old = trees.flatten(variables['batch_stats'])

    def measure(**options):
        given = Network(model, variables), images, transform, Feed(Runtime(mesh), 20)
        return statistics.measure(*given, **options)[0]

    replaced, same = measure(batch_norm=regex), measure(batch_norm=regex, prior_images=0)
    assert all(np.array_equal(replaced[name], same[name]) for name in replaced)
    first = 'layer4/1/bn1'
    blended = measure(batch_norm=regex, prior_images=120)
    for name in (f'{first}/mean', f'{first}/var'):
        expected = (120 * np.float64(old[name]) + 40 * np.float64(replaced[name])) / 160
        np.testing.assert_allclose(blended[name], expected, rtol=1e-6)
        assert blended[name].dtype == np.float32 and not np.allclose(blended[name], replaced[name])
    changed = Network(model, variables).replaced(
        {f'batch_stats/{name}': leaf for name, leaf in blended.items() if name.startswith(first)}
    )
    last = statistics.measure(changed, images, transform, Feed(Runtime(mesh), 20), batch_norm=LAYER)[0]
    for name, new in last.items():
        np.testing.assert_allclose(blended[name], 0.75 * np.float64(old[name]) + 0.25 * np.float64(new), rtol=1e-4)
    kept = measure(batch_norm=regex, prior_images=10**9)
    for name, value in kept.items():
        np.testing.assert_allclose(value, old[name], rtol=1e-5, atol=1e-6)


def test_layers_are_ordered_as_they_are_called():
    """Whatever their names: of a cell the projections come first, and are the last in the alphabet."""
    model = models.create('amoebanet_b_small', 4, width=1)
    layers = ('cell_5/comb_iter_2_left/bn', 'cell_5/conv_1x1/bn', 'cell_5/conv_prev_1x1/bn')
    assert statistics._in_order(model, layers) == layers[::-1]
    layers = ('layer3/1/bn1', 'layer3/0/bn2', 'layer3/0/bn1')
    assert statistics._in_order(models.create('resnet18', 4, width=8), layers) == layers[::-1]


def test_only_the_classifier_and_the_named_statistics_change(network, adapted):
    adapted, record = adapted
    assert not record['kept_old']
    before, after = trees.flatten(network[1]), trees.flatten(adapted)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {
        'params/fc/kernel', 'params/fc/bias', f'batch_stats/{LAYER}/mean', f'batch_stats/{LAYER}/var'
    }  # fmt: skip
    assert record['passes'] == (48 + 48 + 24) / 48 and record['images_seen'] == 48 + 48 + 24
    assert (record['images'], record['statistics_images'], record['cache']) == (48, 48, 'devices')
    assert record['batch_norm'] == [LAYER]
    assert record['after']['top1'] >= record['before']['top1']


def test_mirror_images_and_copies_are_counted_and_so_are_seconds(network, source, held_out, mesh, tmp_path):
    """Two copies of 48 images in batches of 20 are five batches."""
    began = time.monotonic()
    how = dataclasses.replace(HOW, flip=True, copies=2)
    augment = transforms.make_finetune(RESOLUTION, augmentation='v2')
    _, record = run(network, source, held_out, mesh, tmp_path, how, augment=augment, batch_size=20)
    assert record['images_seen'] == 48 + (2 * 48 + 5 * 20) + 24
    assert record['part_seconds'].keys() == {'statistics', 'embeddings', 'classifier'}
    assert min(record['part_seconds'].values()) >= 0
    assert sum(record['part_seconds'].values()) <= time.monotonic() - began


def test_without_held_out_images_one_weight_decay_is_taken_as_it_is(network, source, mesh, tmp_path):
    adapted, record = run(network, source, None, mesh, tmp_path, dataclasses.replace(HOW, weight_decays=(1e-3,)))
    assert (record['chosen'], record['kept_old'], record['chosen_on']) == (1e-3, False, None)
    assert record['passes'] == 2 and 'before' not in record
    assert 'nothing was chosen' in adapt.describe(record)
    assert not np.array_equal(adapted['params']['fc']['kernel'], network[1]['params']['fc']['kernel'])


def test_copies_are_whole_batches_of_all_images(source, mesh):
    augment = transforms.make_finetune(RESOLUTION, augmentation='v2')
    extra = embeddings.Extra(copies=2, augment=augment, seed=0)
    batches = [host for _, host, _ in embeddings._copies(source, extra, 5, Feed(Runtime(mesh), 20))]
    assert len(batches) == 5
    assert np.bincount(np.concatenate([batch['index'] for batch in batches])[:96]).tolist() == [2] * 48


def test_an_image_of_each_class_is_enough_and_so_are_two_classes(network, source, held_out, mesh, tmp_path):
    """Statistics of two layers are two passes."""
    how = dataclasses.replace(HOW, batch_norm='layer4/1/bn(1|2)')
    for images in ([0, 12, 24, 36], [0, 1, 2, 47]):
        _, record = run(network, sources.subset(source, images), held_out, mesh, tmp_path, how)
        assert record['images'] == record['statistics_images'] == 4
        assert record['batch_norm'] == ['layer4/1/bn1', 'layer4/1/bn2']
        assert record['images_seen'] == 4 * 2 + 4 + 24


def test_held_out_scores_are_those_of_the_networks(network, held_out, adapted):
    adapted, record = adapted
    images, label = pixels(held_out)
    for variables, name in ((network[1], 'before'), (adapted, 'after')):
        (logits, _), _ = apply(network[0], variables, images)
        assert record[name]['top1'] == pytest.approx(100 * np.mean(np.argmax(logits, -1) == label))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        assert record[name]['loss'] == pytest.approx(float(losses.mean()), rel=1e-4)


def test_a_perfect_old_network_is_kept(network, source, held_out, mesh, tmp_path):
    how = dataclasses.replace(HOW, weight_decays=(1e6,))  # a classifier that knows nothing
    model, variables = network
    images, label = pixels(source)
    (_, ends), _ = apply(model, variables, images)
    flat = np.linalg.lstsq(np.c_[ends['embedding'], np.ones(len(label))], np.eye(4)[label], rcond=None)[0]
    head = {'kernel': jnp.float32(50 * flat[:-1]), 'bias': jnp.float32(50 * flat[-1])}
    good = {**variables, 'params': {**variables['params'], 'fc': head}}
    good = jax.device_put(good, sharding.replicated(mesh))
    adapted, record = run((model, good), source, source, mesh, tmp_path, how)
    assert record['kept_old'] and record['chosen'] is None
    assert 'kept' in adapt.describe(record)
    for name, value in trees.flatten(good).items():
        np.testing.assert_array_equal(trees.flatten(adapted)[name], value)


@pytest.mark.parametrize(
    ('candidates', 'best'),
    [
        ([(90.0, 0.4), (91.0, 0.5), (89.0, 0.6)], 0),  # the lower cross entropy of those that are not worse
        ([(88.9, 0.1), (91.0, 0.5), (89.0, 0.6)], 1),  # a worse count is out, however low its cross entropy
        ([(88.9, 0.1), (80.0, 0.2), (89.0, 0.6)], 2),
        ([(89.0, 0.7), (89.0, 0.6)], 1),  # equal: the old network
    ],
)
def test_choose(candidates, best):
    assert adapt.choose([{'top1': top1, 'loss': loss} for top1, loss in candidates]) == best


def test_lbfgs_reaches_the_minimum_that_scipy_finds(mesh):
    values, label, data = random_embeddings(mesh)
    weight_decay = 1e-3

    def objective(flat):
        kernel, bias = flat[:18].reshape(6, 3), flat[18:]
        z = values.astype(np.float64) @ kernel + bias
        z -= z.max(1, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        residual = (p - np.eye(3)[label]) / len(label)
        gradient = np.r_[(values.T @ residual).ravel(), residual.sum(0)] + weight_decay * flat
        return -np.mean(np.log(p[np.arange(len(label)), label])) + weight_decay / 2 * flat @ flat, gradient

    expected = scipy.optimize.minimize(objective, np.zeros(21), jac=True, method='BFGS', options={'gtol': 1e-9})
    start = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
    head, info = classifier.fit_lbfgs(data, start, weight_decay, max_iterations=200, tolerance=1e-6)
    assert info['gradient_norm'] < 2e-6
    assert info['objective'] == pytest.approx(expected.fun, abs=1e-6)
    np.testing.assert_allclose(np.r_[np.ravel(head['kernel']), head['bias']], expected.x, atol=2e-3)


@pytest.mark.parametrize('count', [0, 1, 3])
def test_lbfgs_takes_as_many_iterations_as_it_may(mesh, count):
    _, _, data = random_embeddings(mesh)
    start = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
    head, info = classifier.fit_lbfgs(data, start, 1e-3, max_iterations=count, tolerance=0.0)
    assert info['iterations'] == count
    value, gradient = classifier.objective(data, head, 1e-3)
    assert info['objective'] == pytest.approx(float(value), rel=1e-6)
    assert info['gradient_norm'] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-4)
    assert (head is start) == (count == 0)
    assert classifier.fit_lbfgs(data, start, 1e-1, max_iterations=1000)[1]['iterations'] < 100


def test_lbfgs_shortens_steps_that_go_too_far(mesh):
    """Along large embeddings a step of length one rises: every step that is taken falls nevertheless."""
    values, label, data = random_embeddings(mesh)
    data = dataclasses.replace(data, values=30 * data.values)
    head = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
    _, gradient = classifier.objective(data, head)
    scale = 1 / optax.tree.norm(gradient)
    whole = jax.tree.map(lambda x, g: x - scale * g, head, gradient)
    assert classifier.objective(data, whole)[0] > classifier.objective(data, head)[0]
    # The first step is the longest of 1, 1/2, 1/4, ... that falls by a tenth of what the slope promises.
    first = classifier.fit_lbfgs(data, head, 0.0, max_iterations=1)[0]
    direction, slope, _ = classifier._direction(gradient, classifier._LBFGS.init(head), head)
    start = float(classifier.objective(data, head)[0])
    steps = [0.5**halvings for halvings in range(20)]
    moved = [classifier._move(head, direction, step) for step in steps]
    falls = [float(classifier.objective(data, new)[0]) - start for new in moved]
    taken = next(number for number, step in enumerate(steps) if falls[number] <= 0.1 * step * float(slope))
    jax.tree.map(np.testing.assert_array_equal, first, moved[taken])
    fits = [classifier.fit_lbfgs(data, head, 0.0, max_iterations=count)[1] for count in range(9)]
    assert [info['iterations'] for info in fits] == list(range(9))
    assert (np.diff([info['objective'] for info in fits]) < 0).all()


def test_lbfgs_ends_where_no_step_falls(mesh):
    """Along embeddings this large even the shortest step goes far too far."""
    _, _, data = random_embeddings(mesh)
    data = dataclasses.replace(data, values=1e12 * data.values)
    start = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
    head, info = classifier.fit_lbfgs(data, start, 0.0, max_iterations=100)
    assert head is start and info['iterations'] == 0


def test_lbfgs_goes_downhill(mesh):
    _, _, data = random_embeddings(mesh)
    head = {'kernel': jnp.ones((6, 3)), 'bias': jnp.zeros(3)}
    value, gradient = classifier.objective(data, head, 1e-3)
    direction, slope, _ = classifier._direction(gradient, classifier._LBFGS.init(head), head)
    moved, _ = classifier.objective(data, classifier._move(head, direction, 1e-3), 1e-3)
    assert float(slope) == pytest.approx(float(moved - value) / 1e-3, rel=0.02) and slope < 0


@pytest.mark.parametrize(
    ('new_value', 'new_slope', 'accepted'),
    [
        # From 3 along a slope of -4, a step of one half: the fall that is asked for is 0.1 * 0.5 * 4 = 0.2.
        (2.79, 9.0, True),
        (2.81, 9.0, False),
        (2.81, -9.0, True),  # short of that, the slope tells: at most 0.8 * 4 upwards
        (2.81, 3.1, True),
        (2.81, 3.3, False),
        (3 + 2e-6, 0.0, True),  # a rise within the precision of the value, 3e-6
        (3 + 4e-6, 0.0, False),
        (3.5, 0.0, False),
        (2.999, -0.1, True),
    ],
)
def test_a_step_is_taken_when_it_falls_enough_or_ends_on_level_ground(new_value, new_slope, accepted):
    direction = {'kernel': jnp.array([[2.0]]), 'bias': jnp.array([0.0])}  # the step goes against it
    gradient = {'kernel': jnp.array([[-new_slope / 2]]), 'bias': jnp.array([3.0])}
    found, norm = classifier._judge(3.0, jnp.float32(new_value), -4.0, gradient, direction, 0.5)
    assert bool(found) == accepted
    assert float(norm) == pytest.approx(np.hypot(new_slope / 2, 3))


def test_closed_form_gradient_is_autodiffs(mesh):
    values, label, data = random_embeddings(mesh)
    rng = np.random.default_rng(0)
    head = {'kernel': jnp.float32(rng.normal(size=(6, 3))), 'bias': jnp.float32(rng.normal(size=3))}

    def plain(head):
        return optax.softmax_cross_entropy_with_integer_labels(classifier.logits(head, values), label).mean()

    expected, actual = jax.value_and_grad(plain)(head), classifier.objective(data, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, actual)


def test_sgd_sees_every_embedding_once_a_pass(mesh):
    """One pass with a momentum and a decay of zero and the whole set as a batch is one gradient step."""
    _, _, data = random_embeddings(mesh)
    head = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
    moved = classifier.fit_sgd(data, head, optax.sgd(0.5), num_steps=1, batch_size=1000, seed=0)
    _, gradient = classifier.objective(data, head)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, -0.5 * g, atol=1e-6), moved, gradient)


class Recorded(embeddings.Embeddings):
    """Embeddings that keep which rows each step of SGD took."""

    def take(self, rows):
        self.__dict__.setdefault('taken', []).append([int(row) for row in rows])
        return super().take(rows)


def passes_of_sgd(mesh, seed):
    """Return the rows that three passes of SGD took, int[3, 5, 16], and all rows."""
    data = random_embeddings(mesh)[2]
    data = Recorded(**{field.name: getattr(data, field.name) for field in dataclasses.fields(data)})
    head = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
    classifier.fit_sgd(data, head, optax.sgd(0.1), num_steps=15, batch_size=16, seed=seed)
    return np.array(data.taken).reshape(3, 5, 16), data.rows()


def test_sgd_takes_the_embeddings_in_a_new_order_in_every_pass(mesh):
    taken, rows = passes_of_sgd(mesh, seed=0)
    in_order = np.array(rows[:80]).reshape(5, 16)
    for number in range(3):
        assert len(np.unique(taken[number])) == 80 and np.isin(taken[number], rows).all()
        for other in (in_order, taken[number - 1]):
            assert (taken[number] != other).mean() > 0.9
            assert (np.sort(taken[number]) != np.sort(other)).mean() > 0.5  # other batches, not only another order
    np.testing.assert_array_equal(passes_of_sgd(mesh, seed=0)[0], taken)
    assert (passes_of_sgd(mesh, seed=1)[0] != taken).mean() > 0.9


def smoothed_gradient(values, label, share):
    """Return the gradient of the mean cross entropy at a classifier of zeros, written out."""
    classes = label.max() + 1
    target = (1 - share) * np.eye(classes)[label] + share / classes
    residual = (1 / classes - target) / len(label)
    return {'kernel': values.T @ residual, 'bias': residual.sum(0)}


@pytest.mark.parametrize('share', [0.0, 0.1, 0.6])
def test_sgd_smooths_labels_as_the_config_says(mesh, share):
    values, label, data = random_embeddings(mesh)
    sgd = dataclasses.replace(SGD, label_smoothing=share, epochs=1.0, batch_size=90, lr=0.5, weight_decay=0.0)
    how = dataclasses.replace(HOW, solver='sgd', optimization=dataclasses.replace(sgd, schedule='constant'))
    start = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
    head, record = adapt.fit(data, None, None, start, how, seed=0)
    gradient = smoothed_gradient(values, label, share)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, -0.5 * g, atol=1e-6), head, gradient)
    assert record == {
        'solver': 'sgd', 'chosen': 0.0, 'kept_old': False, 'chosen_on': None, 'candidates': [{'weight_decay': 0.0}]
    }  # fmt: skip


def test_images_that_the_trunk_has_seen_choose_nothing(mesh):
    """The new classifier is taken though the old one is better; both are scored."""
    values, label, data = random_embeddings(mesh)
    start = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
    old, _ = classifier.fit_lbfgs(data, start, 0.0, max_iterations=100)
    sgd = dataclasses.replace(SGD, lr=0.1, momentum=0.0, weight_decay=5.0)  # away from the minimum
    how = dataclasses.replace(HOW, solver='sgd', optimization=sgd, unseen=False)
    head, record = adapt.fit(data, data, data, old, how, seed=0)
    assert head is not old and not record['kept_old'] and record['chosen_on'] is None
    assert record['chosen'] == sgd.weight_decay and record['after'] == record['candidates'][0]
    assert record['before'] == record['candidates'][1] == {'weight_decay': None} | classifier.score(data, old)
    assert record['after']['loss'] == pytest.approx(float(classifier.objective(data, head)[0]), rel=1e-5)
    assert record['after']['loss'] > record['before']['loss'] and record['after']['count'] == 90
    right = np.argmax(classifier.logits(old, values), -1) == label
    assert record['before']['top1'] == pytest.approx(100 * right.mean())
    assert adapt.fit(data, data, data, old, dataclasses.replace(how, unseen=True), seed=0)[0] is old
    head, record = adapt.fit(data, None, None, start, HOW, seed=0)  # of several weight decays, the largest
    expected, _ = classifier.fit_lbfgs(data, start, 1e-1, max_iterations=HOW.max_iterations)
    assert record['chosen'] == 1e-1
    jax.tree.map(np.testing.assert_array_equal, head, expected)


def path_of_weight_decays(mesh, signal):
    """Return the weight decays that L-BFGS tried, the held-out losses there, and the record."""
    how = dataclasses.replace(HOW, weight_decays=(0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), max_iterations=200)
    training = random_embeddings(mesh, signal=signal)[2]
    held_out = random_embeddings(mesh, seed=2, signal=signal)[2]
    start = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
    _, record = adapt.fit(training, held_out, held_out, start, how, seed=0)
    tried = record['candidates'][:-1]
    return [c['weight_decay'] for c in tried], [c['loss'] for c in tried], record


def test_the_path_of_weight_decays_goes_on_while_less_may_help(mesh):
    """Down to no decay for classes that can be told apart; after two rises in a row it ends."""
    tried, losses, record = path_of_weight_decays(mesh, signal=2.0)
    assert tried == [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 0.0]
    assert record['chosen'] == tried[int(np.argmin(losses))] < 1.0
    assert record['after']['loss'] == min(losses) and not record['kept_old']
    tried, losses, record = path_of_weight_decays(mesh, signal=0.0)
    assert tried == [1.0, 1e-1, 1e-2] and losses == sorted(losses)


@pytest.mark.parametrize(
    ('losses', 'risen'),
    [
        ([1.0], False),
        ([1.0, 2.0], False),
        ([1.0, 2.0, 3.0], True),
        ([2.0, 1.0, 3.0], False),  # one rise only
        ([1.0, 3.0, 2.0], False),
        ([3.0, 1.0, 2.0, 3.0], True),
        ([1.0, 2.0, 2.0], False),
        ([1.0, 1.0, 2.0], False),
    ],
)
def test_two_rises_in_a_row(losses, risen):
    assert adapt._has_risen(losses) == risen


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_embeddings_on_disk_are_those_on_the_devices(network, source, mesh, tmp_path, dtype):
    test_transforms, changes = {RESOLUTION: transforms.make_test(RESOLUTION)}, {RESOLUTION: {'same': {}}}
    here, there = (
        embeddings.embed(
            Network(*network), changes, source, test_transforms, Feed(Runtime(mesh), 20),
            storage=embeddings.Storage(dtype, size, tmp_path),
        )[RESOLUTION, 'same']
        for size in (1e9, 0)
    )  # fmt: skip
    assert here.path is None and there.path.exists()
    head = network[1]['params']['fc']
    start = {name: np.asarray(value) for name, value in head.items()}
    for fit in (
        lambda data: classifier.fit_lbfgs(data, start, 1e-3, max_iterations=20)[0],
        lambda data: classifier.fit_sgd(data, start, optax.sgd(0.1), num_steps=7, batch_size=16, seed=0),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), fit(here), fit(there))


def test_an_adaptation_from_disk_leaves_no_files(network, source, held_out, mesh, tmp_path, adapted):
    how = dataclasses.replace(HOW, cache_gigabytes=0.0)
    variables, record = run(network, source, held_out, mesh, tmp_path, how)
    assert record['cache'] == 'disk'
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
    np.testing.assert_allclose(variables['params']['fc']['kernel'], adapted[0]['params']['fc']['kernel'], atol=1e-4)


def test_flips_and_copies_are_embedded_too(network, source, mesh, tmp_path):
    model, variables = network
    test_transforms = {RESOLUTION: transforms.make_test(RESOLUTION)}
    augment = transforms.make_finetune(RESOLUTION, augmentation='v2')
    copies = list(pipeline.train_batches(source, augment, batch_size=16, seed=0, start_step=0, num_steps=3))
    data = embeddings.embed(
        Network(*network), {RESOLUTION: {'after': {}}}, source, test_transforms, Feed(Runtime(mesh), 16),
        extra=embeddings.Extra(flip=True, copies=1, augment=augment, seed=0),
    )[RESOLUTION, 'after']  # fmt: skip
    images, label = pixels(source)
    everything = np.concatenate([images, images[:, :, ::-1], *(batch['image'] for batch in copies)])
    labels = np.concatenate([label, label, *(batch['label'] for batch in copies)])
    (_, ends), _ = apply(model, variables, everything)
    assert data.count == len(labels) == int((data.index >= 0).sum())
    np.testing.assert_array_equal(data.label.reshape(-1), labels)
    np.testing.assert_allclose(data.values.reshape(len(labels), -1), ends['embedding'], rtol=1e-4, atol=2e-4)


def test_a_trunk_that_is_shared_is_computed_once(network, mesh):
    model, variables = network
    step = embeddings.make_embed_step(model, mesh)
    image = np.zeros((8, 64, 64, 3), np.uint8)
    new = {f'{LAYER}/mean': np.zeros(64, np.float32)}
    count = [
        step.lower(variables, changes, image).compile().as_text().count(' convolution(')
        for changes in ({'before': {}}, {'before': {}, 'after': new})
    ]
    assert count[0] == count[1] > 10


def test_bad_input_is_one_clear_line(network, source, held_out, mesh, tmp_path):
    cases = [
        (dataclasses.replace(HOW, batch_norm='layer4/2/bn3'), source, held_out, 'layer4/2/bn3.*Near names'),
        (HOW, sources.subset(source, [0, 20, 40]), held_out, '3 training images are fewer than the 4 classes'),
        (HOW, sources.subset(source, range(8)), held_out, 'All training images are of one class'),
        (dataclasses.replace(HOW, unseen=False), source, held_out, 'there are none: use adapt.solver=sgd'),
        (HOW, source, None, 'there are none: use adapt.solver=sgd'),
        (dataclasses.replace(HOW, weight_decays=(0.0, 1e-3)), source, None, 'there are none: use adapt.solver=sgd'),
    ]
    for how, images, checks, message in cases:
        with pytest.raises(UsageError, match=message):
            run(network, images, checks, mesh, tmp_path, how)
