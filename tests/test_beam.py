"""Shards made by Apache Beam: the same bytes as those made here, also when a worker dies."""

import filecmp
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from conftest import ROOT, pattern
from fixres_jax import prepare
from fixres_jax.core.errors import UsageError
from fixres_jax.data import sources

RUN = [sys.executable, '-m', 'fixres_jax.prepare']
with_beam = pytest.mark.skipif(importlib.util.find_spec('apache_beam') is None, reason='Apache Beam is not installed')


def same_files(first, second):
    """Say whether two folders hold the same files, of the same bytes."""
    names = [sorted(path.relative_to(root) for path in root.rglob('*')) for root in (first, second)]
    files = [name for name in names[0] if (first / name).is_file()]
    return names[0] == names[1] and filecmp.cmpfiles(first, second, files, shallow=False)[0] == files


def test_a_runner_needs_beam_and_says_so(tiny_folder, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'apache_beam' else found(name))
    with pytest.raises(UsageError, match=r'--runner FlinkRunner needs Apache Beam: pip install "fixres-jax\[beam\]"'):
        prepare.main([str(tiny_folder), str(tmp_path / 'out'), '--runner', 'FlinkRunner'])
    assert not (tmp_path / 'out').exists()


@with_beam
@pytest.mark.slow
@pytest.mark.parametrize('flags, expected', [
    (['--direct_num_worker=2'], "DirectRunner has no option --direct_num_worker. Did you mean 'direct_num_workers'?"),
    (['--direct_num_workers=many'], 'DirectRunner: argument --direct_num_workers: invalid int value'),
])  # fmt: skip
def test_wrong_options_of_a_runner_are_one_line(tiny_folder, tmp_path, flags, expected):
    command = [*RUN, str(tiny_folder), str(tmp_path / 'out'), '--runner', 'DirectRunner', '--', *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and expected in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / 'out').exists()


@with_beam
@pytest.mark.slow
def test_a_runner_makes_the_same_bytes_and_names_bad_images(tiny_folder, tmp_path):
    data = tmp_path / 'data'
    subprocess.run(['cp', '-r', str(tiny_folder), str(data)], check=True)
    options = ['--shards', '5', '--short-side', '48']
    bad = data / 'train' / 'bee' / 'train_03.jpg'
    bad.write_bytes(bad.read_bytes()[:300])

    beam = [*RUN, str(data), str(tmp_path / 'beam'), *options, '--runner', 'DirectRunner', '--workers', '2']
    done = subprocess.run(beam, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert 'images-00001-of-00005' in last and 'bee/train_03.jpg, cannot be decoded' in last
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / 'beam').rglob('*.array_record')}
    assert len(kept) == 4  # of the first split all but the one

    for workers, place in (('0', 'skipped'), ('2', 'skipped_by_two')):
        command = [str(data), str(tmp_path / place), *options, '--skip-bad']
        subprocess.run([*RUN, *command, '--runner', 'DirectRunner', '--workers', workers], cwd=ROOT, check=True)
    prepare.main([str(data), str(tmp_path / 'here'), *options, '--skip-bad', '--workers', '0'])
    assert same_files(tmp_path / 'here', tmp_path / 'skipped')
    assert same_files(tmp_path / 'here', tmp_path / 'skipped_by_two')
    assert len(sources.create(str(tmp_path / 'here'), 'train')) == 47


@with_beam
@pytest.mark.slow
@pytest.mark.parametrize('runner', ['FlinkRunner', 'SparkRunner'])
def test_a_job_server_takes_the_pipeline_of_a_runner(tiny_folder, tmp_path, runner):
    """Beam's own job server in Python stands in for those of Flink and Spark: same protocol, and one worker."""
    serve = [sys.executable, '-m', 'apache_beam.runners.portability.local_job_service_main', '-p', '0']
    command = [str(tiny_folder), str(tmp_path / 'beam'), '--shards', '5', '--short-side', '48', '--runner', runner]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = next(line for line in server.stderr if 'Listening for beam jobs on port' in line)
            endpoint = f'--job_endpoint=localhost:{line.rpartition(" ")[2].strip().strip(".")}'
            drain = threading.Thread(target=server.stderr.read)
            drain.start()
            done = subprocess.run([*RUN, *command, '--', endpoint, '--environment_type=LOOPBACK'], cwd=ROOT)
        finally:
            server.terminate()
        drain.join()
    assert done.returncode == 0
    prepare.main([str(tiny_folder), str(tmp_path / 'here'), *command[2:6], '--workers', '0'])
    assert same_files(tmp_path / 'here', tmp_path / 'beam')


def workers_of(pid):
    """Return the processes below a process that run Beam's worker."""
    found = []
    for entry in os.listdir('/proc'):
        try:
            with open(f'/proc/{entry}/stat') as file:
                fields = file.read().rpartition(')')[2].split()
            with open(f'/proc/{entry}/cmdline') as file:
                words = file.read().split('\0')
        except (OSError, NotADirectoryError):
            continue
        if int(fields[2]) == pid and words[1:3] == ['-m', 'apache_beam.runners.worker.sdk_worker_main']:
            found.append(int(entry))
    return found


@with_beam
@pytest.mark.slow
def test_a_killed_worker_costs_its_shard_only(tmp_path):
    folder = tmp_path / 'data' / 'a'
    folder.mkdir(parents=True)
    for index in range(60):
        Image.fromarray(pattern(1200, 1600, seed=index)).save(folder / f'{index:02}.jpg')
    out = tmp_path / 'beam'
    command = [*RUN, str(tmp_path / 'data'), str(out), '--shards', '60', '--short-side', '600', '--workers', '2']
    run = subprocess.Popen([*command, '--runner', 'DirectRunner'], cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(before := list(out.glob('images-*.json'))) < 5:
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.02)
        before = {path: path.with_suffix('.array_record').stat().st_mtime_ns for path in before}
        assert len(before) < 60
        os.kill(workers_of(run.pid)[0], signal.SIGKILL)
        assert run.wait(240) == 0
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert all(path.with_suffix('.array_record').stat().st_mtime_ns == time for path, time in before.items())
    prepare.main([*command[3:4], str(tmp_path / 'here'), *command[5:9], '--workers', '0'])
    assert same_files(tmp_path / 'here', out)
