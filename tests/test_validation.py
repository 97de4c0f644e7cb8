"""Validation while training: it is true, it disturbs nothing, and it lets a run stop. The trackers get its numbers."""

import json
import logging

import numpy as np
import pytest
from etils import epath

from fixres_jax.core import progress
from fixres_jax.core.errors import UsageError
from fixres_jax.data import sources, transforms
from fixres_jax.evaluation import evaluate, validation
from fixres_jax.machines import preemption, sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.training import metrics_log
from fixres_jax.weights.network import Network
from test_metrics import tensorboard_points
from test_train import TOY, changed, run, steps_logged


@pytest.fixture(scope='module')
def held_out(tiny_folder):
    return sources.create(str(tiny_folder), 'val')


@pytest.fixture
def validate(held_out):
    """Of 24 images in batches of 16, so that the second one is padded."""
    feed = Feed(Runtime(sharding.make_mesh()), 16, 'validation')
    return validation.make_validation(TOY, held_out, transforms.make_test(32), feed)


@pytest.fixture(scope='module')
def without(tmp_path_factory, tiny_folder):
    """(folder, variables) of a run without validation."""
    folder = epath.Path(tmp_path_factory.mktemp('without'))
    return folder, run(folder, tiny_folder, log_every_steps=2)[0]


def test_it_is_the_accuracy_of_each_epoch_and_disturbs_nothing(
    tmp_path, tiny_folder, held_out, validate, caplog, without
):
    caplog.set_level(logging.INFO, logger='fixres_jax')
    found = {}

    def kept(variables):
        found[len(found)] = {name: np.asarray(leaf) for name, leaf in variables['params']['head'].items()}
        return validate(variables)

    with_it, _ = run(tmp_path / 'with', tiny_folder, log_every_steps=2, validate=kept)
    assert not changed(without[1], with_it)
    lines = metrics_log.read_metrics(tmp_path / 'with' / 'metrics.jsonl')
    assert steps_logged(tmp_path / 'with') == [2, 3, 4, 6]  # Step 3 ends an epoch.
    validated = {line['step']: line for line in lines if 'validation_top1' in line}
    assert list(validated) == [3, 6]
    plain = {line['step']: line for line in metrics_log.read_metrics(without[0] / 'metrics.jsonl')}
    assert validated[6]['loss'] == pytest.approx(plain[6]['loss'])
    # The last one is that of the network that comes out, by the other way to count.
    network = {'last': Network(TOY, with_it)}
    feed = Feed(Runtime(sharding.make_mesh()), 24)
    point = evaluate.evaluate(network, held_out, {32: transforms.make_test(32)}, feed)['points'][0]
    assert 100 * validated[6]['validation_top1'] == pytest.approx(point['top1'])
    assert validated[6]['validation_loss'] == pytest.approx(point['loss'], rel=1e-5)
    assert changed(found[0], found[1])  # The first one saw the network as it was then.
    said = [record.getMessage() for record in caplog.records]
    assert f'train: step 6 of 6, validation top-1 {point["top1"]:.2f} %, loss {point["loss"]:.3f}.' in said
    assert any(line.startswith('train: 6/6 in ') and f'validation top-1 {point["top1"]:.2f} %' in line for line in said)
    points = {(name, step): value for name, step, value in tensorboard_points(tmp_path / 'with' / 'tensorboard')}
    assert points['validation_top1', 6] == pytest.approx(validated[6]['validation_top1'])
    assert progress.going_on() == ''


@pytest.mark.slow
def test_a_notice_during_a_validation_saves_the_step_and_the_run_goes_on_to_the_same_bits(
    tmp_path, tiny_folder, validate, monkeypatch, without
):
    with monkeypatch.context() as patched:
        patched.setattr(preemption, '_noticed', 15)
        patched.setattr(preemption, 'requested', lambda step: False)
        assert validate(without[1]) is None
    with pytest.raises(preemption.Preempted, match='step 3 of 6'):
        run(tmp_path / 'halting', tiny_folder, validate=lambda variables: None, checkpoint_every_steps=100)
    resumed, _ = run(tmp_path / 'halting', tiny_folder, validate=validate)
    assert not changed(without[1], resumed)
    assert steps_logged(tmp_path / 'halting') == [1, 2, 3, 4, 5, 6]


def test_without_a_tracker_there_is_only_the_file(tmp_path):
    log = metrics_log.MetricsLog(epath.Path(tmp_path), 0, 'none')
    log.write(1, loss=1.0, seconds=1.0)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setattr(metrics_log.importlib.util, 'find_spec', lambda name: None)
    metrics_log.check_tracker('tensorboard')
    with pytest.raises(UsageError, match=r'pip install "fixres-jax\[wandb\]"'):
        metrics_log.check_tracker('wandb')


def records(data, block=2**15, header=7):
    """Yield the records of a file of W&B: a header, then chunks as in LevelDB's logs, none across a block's end."""
    place, parts = header, b''
    while place < len(data):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], 'little'), data[place + 6]
        parts += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # the whole or the last part
            yield parts
            parts = b''


def test_wandb_gets_every_number_offline_also_after_a_restart(tmp_path, monkeypatch):
    pytest.importorskip('wandb')
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv('WANDB_MODE', 'offline')
    directory = epath.Path(tmp_path) / 'workdir' / 'train'
    (tmp_path / 'workdir').mkdir()
    (tmp_path / 'workdir' / 'config.json').write_text('{"seed": 7}')
    for start in (0, 2):  # A run that was killed at step 4 goes on from step 2.
        log = metrics_log.MetricsLog(directory, start, 'wandb')
        for step in range(start + 1, 5):
            log.write(step, loss=step / (1 + start), seconds=float(step))
        log.close()
    points, runs = {}, set()
    for path in sorted(tmp_path.glob('workdir/train/wandb/offline-run-*/*.wandb')):
        for record in map(wandb_internal_pb2.Record.FromString, records(path.read_bytes())):
            if record.HasField('run'):
                runs.add((record.run.run_id, record.run.display_name, record.run.run_group))
                assert 'seed' in str(record.run.config)
            if record.HasField('history'):
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                points[items['training_step']] = items['loss']
    assert points == {1: 1.0, 2: 2.0, 3: 1.0, 4: pytest.approx(4 / 3)}
    assert len(runs) == 1 and next(iter(runs))[1:] == ('workdir/train', 'workdir')
