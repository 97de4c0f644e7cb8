"""The loop compiles nothing after the first of each shape, whatever it logs and saves."""

import contextlib

import jax
import numpy as np
import pytest
from etils import epath

from fixres_jax import models
from fixres_jax.data import pipeline, sources, transforms
from fixres_jax.evaluation import evaluate
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.training import loop, state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.schedules import make_schedule
from fixres_jax.training.step import make_train_step
from fixres_jax.weights.checkpoint import Checkpoints
from fixres_jax.weights.network import Network
from toy import make_toy

MODEL = make_toy(4, bn_group_size=8, width=8)  # of channels that eight devices could share
COMPILED = '/jax/core/compile/backend_compile_duration'


@pytest.fixture
def compilations():
    """A list that grows by one with each compilation."""
    seen = []

    def listen(event, seconds, **_):
        if event == COMPILED:
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def watched(batches, compilations, counts):
    """Note how much had been compiled each time a batch is asked for."""
    for batch in batches:
        counts.append(len(compilations))
        yield batch
    counts.append(len(compilations))


def test_a_save_compiles_nothing(tmp_path, compilations):
    """Not even the first: it holds the step up, and a process that is told to stop has seconds for it."""
    mesh = sharding.make_mesh()
    tx = make_sgd(make_schedule('constant', 0.01, num_steps=9), momentum=0.9, weight_decay=0.0)
    now = state.create(MODEL, tx, '.*', key=jax.random.key(0), mesh=mesh)
    compilations.clear()
    with contextlib.closing(Checkpoints(epath.Path(tmp_path))) as checkpoints:
        checkpoints.save(1, now.items)
    assert mesh.size == 8
    assert not compilations


def test_training_compiles_nothing_after_the_first_steps(tmp_path, compilations):
    mesh, key = sharding.make_mesh(), jax.random.key(0)
    tx = make_sgd(make_schedule('constant', 0.01, num_steps=9), momentum=0.9, weight_decay=0.0)
    now = state.create(MODEL, tx, '.*', key=key, mesh=mesh)
    image, label = np.zeros((16, 32, 32, 3), np.uint8), np.zeros(16, np.int32)
    counts = []
    with contextlib.closing(Checkpoints(epath.Path(tmp_path))) as checkpoints:
        loop.fit(
            now,
            make_train_step(MODEL, tx, '.*', models.TRAIN, mesh=mesh),
            watched([{'image': image, 'label': label}] * 12, compilations, counts),
            loop.Pace(12, 16, 'train', lambda step: 0.01, log_every_steps=2, checkpoint_every_steps=3),
            key=key,
            mesh=mesh,
            directory=epath.Path(tmp_path),
            checkpoints=checkpoints,
        )
    assert counts[0] < counts[6]  # The listener hears compilations.
    # The seventh batch is asked for after the first checkpoint; prefetching asks two batches ahead.
    assert counts[6:] == [counts[6]] * len(counts[6:])
    assert len(compilations) == counts[-1]


def test_evaluation_compiles_nothing_after_the_first_batch(tiny_folder, compilations, monkeypatch):
    mesh, counts = sharding.make_mesh(), []
    original = pipeline.eval_batches
    monkeypatch.setattr(pipeline, 'eval_batches', lambda *a, **o: watched(original(*a, **o), compilations, counts))
    runtime = Runtime(mesh)
    networks = {'one': Network(MODEL, jax.jit(MODEL.init)(jax.random.key(0))).placed(runtime)}
    test_transforms = {size: transforms.make_test(size) for size in (32, 40)}
    evaluate.evaluate(networks, sources.create(str(tiny_folder), 'train'), test_transforms, Feed(runtime, 8))
    assert counts[0] < counts[5] and counts[5:] == [counts[5]] * len(counts[5:])
