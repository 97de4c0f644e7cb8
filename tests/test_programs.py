"""Training at sizes that grow: a program each, compiled once and ahead; whatever interrupts it, the same bits."""

import json

import jax
import numpy as np
import pytest

import watched
from fixres_jax import models
from fixres_jax.data import pipeline, sources, transforms
from fixres_jax.machines import preemption, sharding
from fixres_jax.machines.runtime import Runtime
from fixres_jax.training import train
from fixres_jax.weights.network import Network
from test_train import FROM_SCRATCH

GROWING = {share: transforms.make_train(size) for share, size in ((0.0, 32), (0.5, 48))}


@pytest.fixture(scope='module')
def model(toy):
    return models.create('toy', 4, bn_group_size=8)


def run(model, directory, folder, devices=None):
    options = {'log_every_steps': 1, 'checkpoint_every_steps': 2, 'keep_checkpoints': 2, 'restore_step': 0}
    network, _ = train.run(
        Network(model, None, {'architecture': 'toy'}),
        sources.create(str(folder), 'train'),
        GROWING,
        FROM_SCRATCH,
        runtime=Runtime(sharding.make_mesh(devices), 'replicated', workers=0, threads=2),
        writing=train.Writing(directory, **options),
        seed=0,
        title='train',
    )
    return jax.device_get(network.variables)


@pytest.fixture(scope='module')
def straight(model, tmp_path_factory, tiny_folder):
    """The folder and the variables of a run that nothing interrupts, and what it compiled: pixels -> times."""
    directory = tmp_path_factory.mktemp('straight')
    with watched.training_programs() as compiled:
        return directory, run(model, directory, tiny_folder), compiled


def test_each_size_is_compiled_once_and_logged(straight):
    directory, _, compiled = straight
    lines = [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]
    assert [line['resolution'] for line in lines] == [32, 32, 32, 48, 48, 48]
    assert compiled == [32, 48]


def test_a_run_stopped_on_either_side_of_a_change_goes_on_to_the_same_bits(
    model, straight, tmp_path, tiny_folder, monkeypatch
):
    for stop_at in (2, 4):
        monkeypatch.setattr(preemption, 'requested', lambda step, last=stop_at: step == last)
        with pytest.raises(preemption.Preempted, match=f'step {stop_at} of 6'):
            run(model, tmp_path, tiny_folder)
    monkeypatch.setattr(preemption, 'requested', lambda step: False)
    jax.tree.map(np.testing.assert_array_equal, run(model, tmp_path, tiny_folder), straight[1])


@pytest.mark.slow
def test_one_device_takes_the_same_steps(model, straight, tmp_path, tiny_folder):
    one = run(model, tmp_path, tiny_folder, devices=jax.devices()[:1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), one, straight[1])


def test_the_size_is_a_function_of_the_step(tiny_folder):
    source = sources.create(str(tiny_folder), 'train')
    stages = {0: transforms.make_train(32), 2: transforms.make_train(40), 3: transforms.make_train(48)}
    how = {'batch_size': 16, 'seed': 0, 'num_steps': 5}
    for readers in (pipeline.ONE_PROCESS, pipeline.Readers(workers=1, threads=1)):
        batches = list(pipeline.train_batches(source, stages, readers, start_step=1, **how))
        assert [batch['image'].shape[1:] for batch in batches] == [(s, s, 3) for s in (32, 40, 48, 48)]
        alone = list(pipeline.train_batches(source, stages[3], start_step=3, **how))
        for found, expected in zip(batches[2:], alone, strict=True):
            for name in expected:
                assert np.array_equal(found[name], expected[name])
