"""All pieces of today's recipes at once: on one device as on eight, stopped or not, with one program for each size."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import watched
from configs import base
from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.data import transforms
from fixres_jax.evaluation import evaluate
from fixres_jax.machines import preemption, sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.models import resnet
from fixres_jax.runs import phases, recipe, settings
from fixres_jax.runs.run import open_run
from fixres_jax.weights import network

ROOT = Path(__file__).resolve().parent.parent
ROW = resnet.row('layer2/0/bn2', resnet.BasicBlock, (1, 1), usual={'min_resolution': 16, 'stride': 8})
MIXING = {'mixup': 0.2, 'cutmix': 1.0, 'probability': 0.9, 'erasing': 0.5, 'erasing_fill': 'noise'}
EMA = {'decay': 0.9, 'warmup': True, 'start_epochs': 0.5, 'every_steps': 2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def _the_row_alone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.ARCHITECTURES, 'small', ROW)
        yield


@pytest.fixture(scope='module')
def config(tiny_folder):
    c = base.get_config()
    c.validate_every_epochs, c.log_every_steps, c.checkpoint_every_steps = 0.0, 1, 2
    c.model.update(name='small', width=8, bn_group_size=8, drop_path=0.5, zero_init_residual=True)
    c.data.update(source=str(tiny_folder), held_out_fraction=0.25, threads=2)
    c.train.update(resolution=24, progressive=((0.5, 16),), epochs=4.0, batch_size=16, accumulate_steps=2, repeats=2)
    c.train.update(crop='tensorflow', interpolation='bicubic', augment='rand-m7-mstd0.5-inc1', jitter=0.0)
    # The larger epsilon keeps what LAMB makes of gradients near zero from being a matter of rounding.
    c.train.update(optimizer='lamb', epsilon=0.01, lr=0.02, lr_rule='none', clip_norm=1.0, layer_decay=0.8)
    c.train.update(schedule='cosine', schedule_every='epoch', warmup_epochs=1.0, warmup_lr=1e-3, warmup_prefix=False)
    c.train.update(weight_decay=0.02, weight_decay_on='kernels')
    c.train.update(loss='bce', bce_threshold=0.2, label_smoothing=0.1)
    c.train.mixing.update(MIXING)
    c.train.ema.update(EMA)
    c.test.update(resolutions=(24, '24x32'), batch_size=16)
    c.adapt.update(weight_decays=(1e-4,), solver='sgd')
    c.finetune.update(epochs=1.0, batch_size=16, lr=0.1, lr_rule='none')
    return c


def trained(config, workdir, devices=None):
    """Train; return the networks that are left, the last parameters and the average, and the losses."""
    made = open_run(settings.read(config), epath.Path(workdir))
    runtime = dataclasses.replace(made.runtime, mesh=sharding.make_mesh(devices))
    phases.train_phase(dataclasses.replace(made, runtime=runtime), {})
    lines = [json.loads(line) for line in (Path(workdir) / 'train' / 'metrics.jsonl').read_text().splitlines()]
    return {name: network.load(Path(workdir) / name).variables for name in ('train', 'ema')}, lines


@pytest.fixture(scope='module')
def straight(config, tmp_path_factory):
    """What a run that nothing interrupts leaves, and what it compiled: pixels of each program of the step."""
    with watched.training_programs() as compiled:
        return *trained(config, tmp_path_factory.mktemp('straight')), compiled


def test_there_is_one_program_for_each_size(straight):
    networks, lines, compiled = straight
    assert compiled == [16, 24]
    assert {line['resolution'] for line in lines} == {16, 24} and len(lines) > 6
    last, average = (trees.flatten(networks[name]['params']) for name in ('train', 'ema'))
    assert all(not np.array_equal(average[name], leaf) for name, leaf in last.items())


def test_one_device_takes_the_steps_of_eight(straight, config, tmp_path):
    networks, lines, _ = straight
    found, few = trained(config, tmp_path, jax.devices()[:1])
    np.testing.assert_allclose([one['loss'] for one in few], [one['loss'] for one in lines], rtol=1e-4)
    # The average's statistics are of whole batches of the few images, which eight devices divide into others.
    for name, part in (('train', 'params'), ('train', 'batch_stats'), ('ema', 'params')):
        one, eight = found[name][part], networks[name][part]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, eight)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(straight, config, tmp_path, monkeypatch):
    networks, lines, _ = straight
    for last in (3, 6):  # at either size, between two checkpoints and two changes of the average, and on one
        monkeypatch.setattr(preemption, 'requested', lambda step, last=last: step == last)
        with pytest.raises(preemption.Preempted):
            trained(config, tmp_path)
    monkeypatch.setattr(preemption, 'requested', lambda step: False)
    found, again = trained(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, networks)
    assert [one['loss'] for one in again] == [one['loss'] for one in lines]


def test_the_average_is_evaluated_beside_the_last_parameters(config, tmp_path):
    recipe.run(config, tmp_path)
    numbers = json.loads((tmp_path / 'report.json').read_text())['numbers']
    report = (tmp_path / 'report.md').read_text()
    made = open_run(settings.read(config), epath.Path(tmp_path))
    test = {24: transforms.make_test(24, **made.resizing)}
    networks = {name: network.load(tmp_path / name) for name in ('train', 'ema')}
    feed = Feed(Runtime(sharding.make_mesh()), 24, 'test')
    points = evaluate.evaluate(networks, made.images.test, test, feed)['points']
    found = {point['network']: (point['top1'], point['loss']) for point in points}
    assert found['train'] != found['ema']
    for name, which in (('train_resolution', 'ema'), ('not_averaged', 'train')):
        assert numbers[name]['top1'] == pytest.approx(found[which][0]), name
    assert 'the last parameters, not their average' in report


def test_a_killed_run_ends_with_the_same_networks(tmp_path):
    options = [
        '--config.task=train',
        '--config.train.epochs=2',
        '--config.model.width=4',
        '--config.model.drop_path=0.2',
    ]
    options += ['--config.data.drawings.train=400', '--config.data.drawings.val=64', '--config.train.augment=trivial']
    options += ['--config.checkpoint_every_steps=2']
    for section, changes in (('mixing', MIXING), ('ema', EMA)):
        options += [f'--config.train.{section}.{name}={value}' for name, value in changes.items()]

    def start(workdir):
        command = [sys.executable, '-m', 'fixres_jax.main', '--config', 'configs/quickstart.py', *options]
        return subprocess.Popen([*command, '--workdir', workdir], cwd=ROOT)

    assert start(tmp_path / 'straight').wait() == 0
    process = start(tmp_path / 'killed')
    while process.poll() is None and not (tmp_path / 'killed' / 'train' / 'checkpoints' / '4').exists():
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL, 'it had ended before it could be killed'
    assert start(tmp_path / 'killed').wait() == 0
    for name in ('train', 'ema'):
        straight, resumed = (network.load(tmp_path / run / name).variables for run in ('straight', 'killed'))
        jax.tree.map(np.testing.assert_array_equal, straight, resumed)
