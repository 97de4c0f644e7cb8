"""Two processes of four devices are one process of eight: the same batches, losses, reports and checkpoints."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import QUICK_TO_COMPILE
from fixres_jax.core import trees
from fixres_jax.weights import checkpoint

ROOT = Path(__file__).resolve().parent.parent
SMALL = (
    '--config=configs/quickstart.py',
    '--config.model.width=8',
    '--config.model.bn_group_size=16',
    '--config.data.drawings.train=100',
    '--config.data.drawings.val=45',
    '--config.data.held_out_fraction=0.2',
    '--config.train.resolution=64',
    '--config.train.epochs=2',
    '--config.train.batch_size=16',
    '--config.train.lr=1e-4',  # at larger ones rounding grows to percents in ten steps
    '--config.train.warmup_epochs=0',
    '--config.test.batch_size=16',
    '--config.test.resolutions=(64, 96)',
    '--config.adapt.max_iterations=3',
    '--config.adapt.weight_decays=(0.001,)',
    '--config.log_every_steps=1',
    '--config.checkpoint_every_steps=4',
)
pytestmark = pytest.mark.slow


class Run:
    """Start the program as several processes over loopback, with eight virtual devices in all."""

    def __init__(self, workdir, cache, num_processes, *options):
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        self.errors, self.processes = [], []
        for number in range(num_processes):
            command = [sys.executable, '-m', 'fixres_jax.main', f'--workdir={workdir}', *SMALL, *options]
            command.append(f'--config.compilation_cache={cache}')
            if num_processes > 1:
                command += ['--distributed', f'--coordinator_address=127.0.0.1:{port}']
                command += [f'--num_processes={num_processes}', f'--process_id={number}']
            environment = os.environ | {
                'JAX_PLATFORMS': 'cpu',
                'XLA_FLAGS': f'{QUICK_TO_COMPILE} --xla_force_host_platform_device_count={8 // num_processes}',
            }
            path = Path(f'{workdir}.{number}.log')
            self.errors.append(path)
            with path.open('w') as file:
                self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file))

    def wait(self, seconds=1500):
        """Return the exit codes and what the processes printed."""
        end = time.monotonic() + seconds
        try:
            codes = [process.wait(max(1, end - time.monotonic())) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return codes, [path.read_text() for path in self.errors]


def finish(*arguments):
    codes, printed = Run(*arguments).wait()
    assert not any(codes), printed[0][-3000:]
    return printed


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / 'train' / 'metrics.jsonl').read_text().splitlines()]


def wait_for_step(run, workdir, step):
    """Return when there is a checkpoint of the step or a later one; fail with what was printed if a process ends."""
    end = time.monotonic() + 900
    checkpoints = workdir / 'train' / 'checkpoints'
    while not any(path.name.isdigit() and int(path.name) >= step for path in checkpoints.glob('*')):
        ended = [process.poll() for process in run.processes]
        if any(code is not None for code in ended) or time.monotonic() > end:
            for process in run.processes:
                process.kill()
                process.wait()
            raise AssertionError((ended, [path.read_text()[-3000:] for path in run.errors]))
        time.sleep(0.1)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def whole(tmp_path_factory, cache):
    """The recipe by one process and by two."""
    folder = tmp_path_factory.mktemp('whole')
    return {count: (folder / f'by{count}', finish(folder / f'by{count}', cache, count)) for count in (1, 2)}


def test_two_processes_report_what_one_does(whole):
    one, two = (whole[count][0] for count in (1, 2))
    for a, b in zip(read_lines(one), read_lines(two), strict=True):
        assert a['step'] == b['step']
        np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-5 if a['step'] == 1 else 1e-3)
        np.testing.assert_allclose(a['gradient_norm'], b['gradient_norm'], rtol=1e-5 if a['step'] == 1 else 2e-2)
    reports = [json.loads((folder / 'report.json').read_text()) for folder in (one, two)]
    assert reports[0]['images'] == reports[1]['images']
    for name, first in reports[0]['numbers'].items():
        second = reports[1]['numbers'][name]
        assert first['count'] == second['count'] == 45
        assert abs(first['top1'] - second['top1']) < 7  # three of 45 images
        np.testing.assert_allclose(first['loss'], second['loss'], rtol=0.05)
    variables = [trees.flatten(checkpoint.load_model(folder / 'train')[0]) for folder in (one, two)]
    for name, leaf in variables[0].items():
        assert np.linalg.norm(leaf - variables[1][name]) <= 1e-3 * np.linalg.norm(leaf) + 1e-5, name


def test_only_host_0_reports(whole):
    printed = whole[2][1]
    assert 'The report is in' in printed[0] and 'Phase' not in printed[1]


@pytest.mark.parametrize('first, second', [(2, 1), (1, 2)])
def test_saved_by_some_processes_resumed_by_others(tmp_path, cache, whole, first, second):
    begun = Run(tmp_path / 'run', cache, first, '--config.task=train')
    wait_for_step(begun, tmp_path / 'run', 4)
    for process in begun.processes:
        process.kill()
    begun.wait()
    printed = finish(tmp_path / 'run', cache, second, '--config.task=train')
    assert 'train goes on from step' in printed[0]
    lines = read_lines(tmp_path / 'run')
    assert [line['step'] for line in lines] == list(range(1, 11))
    losses = [line['loss'] for line in read_lines(whole[1][0])]
    np.testing.assert_allclose([line['loss'] for line in lines], losses, rtol=1e-3)


@pytest.mark.parametrize('signum, code', [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_all_processes_at_one_step(tmp_path, cache, signum, code):
    run = Run(tmp_path / 'run', cache, 2, '--config.task=train', '--config.train.epochs=200')
    wait_for_step(run, tmp_path / 'run', 4)
    for process in run.processes:
        process.send_signal(signum)
    codes, printed = run.wait(300)
    assert codes == [code, code], printed
    said = [text.split('stopped at step ')[1].split()[0] for text in printed]
    assert said[0] == said[1] and (tmp_path / 'run' / 'train' / 'checkpoints' / said[0]).is_dir()


@pytest.mark.parametrize('victim', [0, 1])
def test_when_one_process_is_killed_the_other_ends_and_both_go_on(tmp_path, cache, victim):
    run = Run(tmp_path / 'run', cache, 2, '--config.task=train', '--config.train.epochs=200')
    wait_for_step(run, tmp_path / 'run', 4)
    run.processes[victim].kill()
    began = time.monotonic()
    codes, printed = run.wait(300)
    code = codes[1 - victim]
    # In the middle of a step JAX or Gloo aborts the process before Python hears of it.
    assert code in (1, -signal.SIGABRT) and time.monotonic() - began < 150
    assert code != 1 or 'another process of the run' in printed[1 - victim]
    step = max(int(path.name) for path in (tmp_path / 'run' / 'train' / 'checkpoints').glob('[0-9]'))
    again = Run(tmp_path / 'run', cache, 2, '--config.task=train', '--config.train.epochs=200')
    wait_for_step(again, tmp_path / 'run', step + 8)
    for process in again.processes:
        process.kill()
    again.wait()
    assert 'train goes on from step' in again.errors[0].read_text()
