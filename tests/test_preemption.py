"""A real process told to stop by SIGTERM or Ctrl-C: it saves, says how to go on in one line, and ends soon."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixres_jax.weights import checkpoint
from test_main import ENVIRONMENT, ROOT, SMALL, main

SECONDS = 30  # that a scheduler leaves between the notice and the end
SOON = 10  # for what has nothing to save
TRAIN = (*SMALL, '--config.task=train', '--config.train.epochs=1000')
SLOW_TO_COMPILE = (
    *('--config.task=train', '--config.model.name=resnet50', '--config.model.width=64', '--config.train.batch_size=16'),
    *('--config.model.bn_group_size=16', '--config.compilation_cache='),
)


STARTED = []


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def start(workdir, *arguments, flags=ENVIRONMENT['XLA_FLAGS']):
    """Start the program as a terminal would, in its own process group; return it and the file of what it prints."""
    log = Path(f'{workdir}.log')
    command = [sys.executable, '-m', 'fixres_jax.main', '--config=configs/quickstart.py', f'--workdir={workdir}']
    environment = ENVIRONMENT | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
    with log.open('w') as file:
        process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    STARTED.append(process)
    return process, log


def wait_for(process, log, word):
    end = time.monotonic() + 300
    while word not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def stop(process, log, word, signum=signal.SIGTERM, seconds=SECONDS):
    """Send a signal to the whole group as soon as a word is printed; return the exit code and what was printed."""
    wait_for(process, log, word)
    os.killpg(process.pid, signum)
    code = process.wait(seconds)
    printed = log.read_text()
    assert 'Traceback' not in printed and printed.count('fixres_jax: ') == 1, printed
    return code, printed


def fifo(path):
    """Put a pipe without a writer in the place of a file: opening it takes forever."""
    os.mkfifo(f'{path}.fifo')
    os.replace(f'{path}.fifo', path)


@pytest.mark.parametrize('signum, expected, workers', [(signal.SIGTERM, 75, 0), (signal.SIGINT, 130, 2)])
def test_training_stops_at_the_next_step_with_a_whole_checkpoint(tmp_path, tiny_folder, signum, expected, workers):
    options = (f'--config.data.source={tiny_folder}', *TRAIN, f'--config.data.workers={workers}')
    code, printed = stop(*start(tmp_path / 'run', *options), 'loss', signum)
    assert code == expected and 'The same command goes on from there.' in printed
    assert len([line for line in printed.splitlines() if ': compiling ' not in line]) < 8, printed
    step = printed.split('stopped at step ')[1].split()[0]
    assert (tmp_path / 'run' / 'train' / 'checkpoints' / step).is_dir()
    assert checkpoint.load_model(tmp_path / 'run')
    code, printed = stop(*start(tmp_path / 'run', *options), 'goes on from step', signum)
    assert code == expected and f'goes on from step {step} of' in printed


@pytest.mark.slow
@pytest.mark.parametrize('phase', ['sweep', 'evaluate'])
def test_other_phases_stop_between_batches_and_begin_again(tmp_path, tiny_folder, phase):
    options = (f'--config.data.source={tiny_folder}', *SMALL, '--config.test.batch_size=2')
    code, printed = stop(*start(tmp_path / 'run', *options), f'Phase {phase} begins')
    assert code == 75 and 'The same command goes on from there.' in printed, printed
    assert not (tmp_path / 'run' / f'{phase}.json').exists()
    printed = main(tmp_path / 'run', *options)
    assert 'The report is in' in printed


@pytest.mark.parametrize('signum, expected', [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_compilation_is_given_up_within_seconds(tmp_path, tiny_folder, signum, expected):
    process, log = start(tmp_path / 'run', f'--config.data.source={tiny_folder}', *SLOW_TO_COMPILE, flags='')
    wait_for(process, log, 'samples of')
    time.sleep(2)
    code, printed = stop(process, log, 'samples of', signum, SOON)
    assert code == expected and 'nothing that was saved is lost' in printed
    assert len(printed.splitlines()) < 5, printed


def test_a_second_interrupt_ends_the_process_at_once(tmp_path, tiny_folder):
    process, log = start(tmp_path / 'run', f'--config.data.source={tiny_folder}', *SLOW_TO_COMPILE, flags='')
    wait_for(process, log, 'samples of')
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    code, printed = stop(process, log, 'samples of', signal.SIGINT, 2)
    assert code == 130 and 'interrupted a second time' in printed


@pytest.mark.slow
def test_images_that_never_come_do_not_hold_up_the_end(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / 'data')
    images = sorted((tmp_path / 'data' / 'train').rglob('*.jpg'))
    options = (f'--config.data.source={tmp_path / "data"}', *TRAIN, '--config.checkpoint_every_steps=100000')
    process, log = start(tmp_path / 'run', *options)
    wait_for(process, log, 'loss')
    for path in images:
        fifo(path)
    time.sleep(3)  # The images read ahead are used up.
    code, printed = stop(process, log, 'loss', signal.SIGINT, SOON)
    step = int(printed.split('stopped at step ')[1].split()[0])
    assert code == 130 and (tmp_path / 'run' / 'train' / 'checkpoints' / str(step)).is_dir()
    # Now not even the first batch comes.
    process, log = start(tmp_path / 'run', *options)
    wait_for(process, log, f'goes on from step {step} of')
    time.sleep(1)
    code, printed = stop(process, log, 'goes on', signal.SIGTERM, SOON)
    assert code == 75 and f'stopped at step {step} of' in printed
    assert [path.name for path in (tmp_path / 'run' / 'train' / 'checkpoints').iterdir()] == [str(step)]
