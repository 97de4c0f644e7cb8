"""Evaluation counts every image once, whatever the batch, and its pairs are the images' own."""

import jax
import numpy as np
import pytest

from fixres_jax import models
from fixres_jax.data import sources, transforms
from fixres_jax.evaluation import evaluate
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.weights.network import Network
from toy import make_toy

MODEL = make_toy(4)


@pytest.fixture(scope='module')
def networks():
    mesh = sharding.make_mesh()
    return {
        name: jax.jit(lambda seed: MODEL.init(jax.random.key(seed)), out_shardings=sharding.replicated(mesh))(seed)
        for seed, name in enumerate(('before', 'after'))
    }


@pytest.fixture(scope='module')
def by_hand(networks, tiny_folder):
    """Logits of every image one by one, without pipeline, padding or mask: {(name, resolution): hits, losses}."""
    source = sources.create(str(tiny_folder), 'val')
    forward = jax.jit(lambda variables, image: MODEL.apply(variables, image, models.EVAL)[0])
    outcome = {}
    for resolution in (32, 48):
        transform = transforms.make_test(resolution)
        images = np.stack(
            [transform(transforms.decode(source[i]['encoded'], 'x', i), None) for i in range(len(source))]
        )
        for name, variables in networks.items():
            logits = np.asarray(forward(jax.device_get(variables), images), np.float64)
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            losses = -log_p[np.arange(len(source)), source.labels]
            outcome[name, resolution] = (logits.argmax(axis=1) == source.labels, losses)
    return outcome


@pytest.mark.parametrize('batch_size', [8, 10, 24, 500])
def test_every_image_counts_once_for_any_batch_size(networks, by_hand, tiny_folder, batch_size):
    source = sources.create(str(tiny_folder), 'val')
    assert len(source) == 24
    result = evaluate.evaluate(
        {name: Network(MODEL, variables) for name, variables in networks.items()},
        source,
        {size: transforms.make_test(size) for size in (32, 48)},
        Feed(Runtime(sharding.make_mesh()), batch_size),
    )
    assert result['count'] == 24
    for (name, resolution), (hit, losses) in by_hand.items():
        point = evaluate.find_point(result, name, resolution)
        assert point['top1'] == pytest.approx(100 * hit.mean()) and point['count'] == 24
        assert point['top5'] == 100.0  # of four classes
        assert point['loss'] == pytest.approx(losses.mean(), rel=1e-4)
        assert point['low'] <= point['top1'] <= point['high']
        by_class = [hit[source.labels == label].mean() for label in range(4)]
        assert point['mean_per_class'] == pytest.approx(100 * np.mean(by_class)) and point['classes'] == 4
    first, second = ('after', 48), ('before', 32)
    change = evaluate.compare(result, first, second)
    assert change['difference'] == pytest.approx(100 * (by_hand[first][0].mean() - by_hand[second][0].mean()))
    both = (by_hand[first][0] & by_hand[second][0]).sum()
    keys = [(point['network'], point['resolution']) for point in result['points']]
    assert result['both'][keys.index(first)][keys.index(second)] == both


def test_a_network_compared_with_itself_does_not_differ(networks, tiny_folder):
    source = sources.create(str(tiny_folder), 'val')
    result = evaluate.evaluate(
        {'a': Network(MODEL, networks['before']), 'b': Network(MODEL, networks['before'])},
        source,
        {32: transforms.make_test(32)},
        Feed(Runtime(sharding.make_mesh()), 24),
    )
    change = evaluate.compare(result, ('a', 32), ('b', 32))
    assert change['difference'] == 0 and change['low'] < 0 < change['high']


def counted(labels, right, num_classes):
    """Return the points of outcomes bool[points, N] that are given, summed over three batches of padded images."""
    mesh, sums, size = sharding.make_mesh(), None, 8
    reduce = evaluate.make_reduce(mesh, num_classes)
    for start in range(0, len(labels), size):
        part = np.arange(start, start + size)
        there = part < len(labels)
        part = np.where(there, part, 0)
        outcomes = [{'loss': np.zeros(size), 'top1': one[part], 'top5': one[part]} for one in right]
        sums = evaluate._add(sums, reduce(outcomes, there, labels[part]))
    return evaluate._summary([(str(number), 32) for number in range(len(right))], sums)['points']


def test_the_mean_per_class_counts_each_class_that_has_images_once():
    """By hand: of four classes with 6, 3, 0 and 1 images, 3, 3 and 0 are right: 60 % of all, 50 % of the mean class."""
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 3], np.int32)
    right = np.array([[1, 1, 1, 0, 0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0, 1, 0, 0, 1]], bool)
    first, second = counted(labels, right, 4)
    assert first['top1'] == 60.0 and first['mean_per_class'] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)
    assert second['mean_per_class'] == pytest.approx(100 * (1 / 6 + 1 / 3 + 1) / 3) and second['classes'] == 3


def test_the_mean_per_class_is_numpys_on_many_images_of_uneven_classes():
    rng = np.random.default_rng(0)
    labels = np.minimum(rng.geometric(0.1, 500) - 1, 49).astype(np.int32)
    right = rng.random((3, 500)) < np.linspace(0.2, 0.9, 50)[labels]
    present = np.unique(labels)
    assert 20 < len(present) < 50
    for point, one in zip(counted(labels, right, 50), right, strict=True):
        expected = np.mean([one[labels == label].mean() for label in present])
        assert point['mean_per_class'] == pytest.approx(100 * expected) and point['classes'] == len(present)
        assert abs(point['mean_per_class'] - point['top1']) > 5


def test_where_all_classes_are_as_large_the_mean_per_class_is_top1():
    labels = np.tile(np.arange(5, dtype=np.int32), 4)
    (point,) = counted(labels, np.arange(20)[None] % 3 == 0, 5)
    assert point['mean_per_class'] == pytest.approx(point['top1'], abs=1e-12)
