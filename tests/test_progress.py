"""What is said while something goes on: a line every ten seconds, when it compiles, and how it ended."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fixres_jax.core import progress
from fixres_jax.core.progress import Activity, Progress
from fixres_jax.machines import compilation, libtpu, runtime


@pytest.fixture
def lines(caplog):
    """A function that returns what has been said."""
    caplog.set_level(logging.INFO, logger='fixres_jax')
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told, and no thread beside it."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(progress, '_ticker', progress._Ticker())
    monkeypatch.setattr(progress.threading.Thread, 'start', lambda self: None)
    monkeypatch.setattr(progress._clock, 'last', 0.0)
    return now


def test_what_goes_on_is_said_every_ten_seconds_and_at_the_end(lines, clock):
    bar = Progress('train', 0, 82, 64)
    for second in range(1, 26):
        clock[0] += 1
        if second == 4:
            bar.update(1, 'loss 2.000')
        if second == 24:
            bar.update(41, 'loss 1.500')
        progress._ticker.innermost().tick()
    assert lines() == ['train: 1/82, 10 s, loss 2.000', 'train: 1/82, 20 s, loss 2.000']
    clock[0] += 5
    bar.update(82, 'loss 1.000')
    assert lines()[2:] == ['train: 82/82, 199 images/s, 0 s left, loss 1.000']
    bar.close()
    assert lines()[3:] == ['train: 82/82 in 30 s, 199 images/s, loss 1.000']
    assert progress.going_on() == ''


def test_a_run_that_ends_within_seconds_says_how_it_ended(lines, clock):
    bar = Progress('train', 0, 82, 64)
    for step in range(1, 83):
        clock[0] += 0.05
        bar.update(step, f'loss {1 / step:.3f}')
    assert lines() == []
    bar.close()
    assert lines() == ['train: 82/82 in 4 s, 1280 images/s, loss 0.012']


def test_one_that_was_stopped_does_not_say_that_it_ended(lines, clock):
    bar = Progress('train', 0, 82, 64)
    bar.update(81)
    bar.close()
    assert lines() == [] and progress.going_on() == ''


def test_the_innermost_speaks_and_only_into_silence(lines, clock):
    with Activity('phase sweep'), Activity('sweep: embed'):
        clock[0] += 9
        progress._ticker.innermost().tick()
        progress.log.info('something else')
        clock[0] += 9
        progress._ticker.innermost().tick()
        assert lines() == ['something else']
        clock[0] += 1
        progress._ticker.innermost().tick()
        assert lines()[1:] == ['sweep: embed: 19 s']


def test_a_thread_of_its_own_keeps_time(lines, monkeypatch):
    monkeypatch.setattr(progress, 'LINE_EVERY_SECONDS', 0.5)
    with Activity('phase report'):
        deadline = time.monotonic() + 10
        while not lines() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert lines()[0].startswith('phase report: ')


def test_programs_that_compile_for_long_are_named_with_the_time_it_took(lines, monkeypatch):
    monkeypatch.setattr(compilation, 'END_SAID_AFTER_SECONDS', 0.0)

    @jax.jit
    def a_name_of_its_own(x):
        return jnp.sin(x) + 1

    with Activity('train'), compilation.told():
        a_name_of_its_own(3.0)
    assert [line for line in lines() if 'a_name_of_its_own' in line] == ['train: compiling a_name_of_its_own took 0 s.']
    said = len(lines())
    jax.jit(lambda x: x * 2)(3.0)
    assert len(lines()) == said  # Nothing is said outside of the block.


def test_a_compilation_is_said_when_it_has_taken_three_seconds(lines, clock):
    with Activity('train'):
        program = compilation._Compilation('step')
        with program:
            for _ in range(4):
                clock[0] += 1
                program.tick()
            assert lines() == ['train: compiling step ...']
            clock[0] += 10
            program.tick()
        program.done(15.0)
    assert lines()[1:] == ['train: compiling step: 14 s', 'train: compiling step took 15 s.']


def test_a_loop_that_only_dispatches_stays_one_batch_ahead_of_the_devices(monkeypatch):
    waited, pending = [], []
    monkeypatch.setattr(runtime.jax, 'block_until_ready', waited.append)
    for number in range(3):
        runtime.keep_pace(pending, number, last=number == 2)
        assert waited == [[], [0], [0, 1, 2]][number]


@pytest.mark.parametrize(
    ('files', 'variables', 'left_out'),
    [
        ({}, {}, True),
        ({'sys/bus/pci/devices/0000:00:04.0/vendor': '0x8086\n'}, {}, True),
        ({'sys/bus/pci/devices/0000:00:04.0/vendor': '0x1ae0\n'}, {}, False),
        ({'dev/accel0': ''}, {}, False),
        ({'dev/vfio/0': ''}, {}, False),
        ({'dev/nvidia0': ''}, {}, False),
        ({}, {'TPU_NAME': 'pod'}, False),
        ({}, {'TPU_SKIP_MDS_QUERY': '1', 'TPU_LIBRARY_PATH': 'libtpu.so'}, True),
    ],
)
def test_libtpu_is_left_out_where_nothing_speaks_of_a_tpu_or_a_gpu(tmp_path, monkeypatch, files, variables, left_out):
    for name in [name for name in libtpu.os.environ if name.startswith(libtpu.SETTINGS)]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.setattr(libtpu.importlib.util, 'find_spec', lambda name: object())
    assert libtpu.leave_out(tmp_path) is left_out
    monkeypatch.setattr(libtpu.importlib.util, 'find_spec', lambda name: None)
    assert not libtpu.leave_out(tmp_path)


def test_the_start_says_nothing_of_tpus_that_are_not_there():
    pytest.importorskip('libtpu')
    if any(path for name in libtpu.DEVICES for path in Path('/').glob(name)):
        pytest.skip('there is an accelerator')
    environment = {name: value for name, value in os.environ.items() if not name.startswith(libtpu.SETTINGS)}
    code = 'from fixres_jax import machines; import jax; assert jax.default_backend() == "cpu"'
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ''


def test_the_log_names_only_what_is_amiss_in_other_packages():
    code = (
        'import logging, jax; from fixres_jax.core import progress; progress.show_log(); '
        'backends = logging.getLogger("jax._src.xla_bridge"); backends.info("a"); backends.warning("b"); '
        'logging.getLogger("absl").warning("c"); progress.log.info("d")'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in done.stderr.splitlines()] == ['b', 'd']
