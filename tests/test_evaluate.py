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

MODEL = models.create('resnet18', 4, width=8)


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
