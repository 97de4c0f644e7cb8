"""A real process told to stop by SIGTERM: it saves, says how to go on, and exits with 0 soon."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fixres_jax import checkpoint
from test_main import ENVIRONMENT, ROOT, SMALL, main

SECONDS = 30  # that a scheduler leaves between the notice and the end


def start(workdir, *arguments):
    """Start the program; return the process and the file of what it prints."""
    log = Path(f'{workdir}.log')
    command = [sys.executable, '-m', 'fixres_jax.main', '--config=configs/quickstart.py', f'--workdir={workdir}']
    with log.open('w') as file:
        return subprocess.Popen([*command, *arguments], cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=file), log


def stop(process, log, word):
    """Send SIGTERM as soon as a word is printed; return the exit code and what was printed."""
    end = time.monotonic() + 300
    while word not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    return process.wait(SECONDS), log.read_text()


def test_training_stops_at_the_next_step_with_a_whole_checkpoint(tmp_path, tiny_folder):
    options = (f'--config.data.source={tiny_folder}', *SMALL, '--config.task=train', '--config.train.epochs=1000')
    code, printed = stop(*start(tmp_path / 'run', *options), 'loss')
    assert code == 0 and 'The same command goes on from there.' in printed
    step = printed.split('stopped at step ')[1].split()[0]
    assert (tmp_path / 'run' / 'train' / 'checkpoints' / step).is_dir()
    assert checkpoint.load_model(tmp_path / 'run')
    code, printed = stop(*start(tmp_path / 'run', *options), 'goes on from step')
    assert code == 0 and f'goes on from step {step} of' in printed


@pytest.mark.parametrize('phase', ['sweep', 'evaluate'])
def test_other_phases_stop_between_batches_and_begin_again(tmp_path, tiny_folder, phase):
    options = (f'--config.data.source={tiny_folder}', *SMALL, '--config.test.batch_size=2')
    code, printed = stop(*start(tmp_path / 'run', *options), f'Phase {phase} begins')
    assert code == 0 and 'which begins again. The same command' in printed, printed
    assert not (tmp_path / 'run' / f'{phase}.json').exists()
    printed = main(tmp_path / 'run', *options)
    assert 'The report is in' in printed
