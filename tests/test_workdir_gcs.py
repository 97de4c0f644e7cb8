"""Workdirs and shards in a bucket: what is written there is read again, and a killed run goes on as on a disk."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from conftest import QUICK_TO_COMPILE
from fixres_jax.data import drawings
from test_main import ROOT, SMALL

pytest.importorskip('gcsfs')
gcs_server = pytest.importorskip('gcs_server', exc_type=ImportError)

FILES = """
import json

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fixres_jax.training.metrics_log import MetricsLog, read_metrics
from fixres_jax.weights import checkpoint

run = epath.Path('gs://bucket/run')
checkpoints = checkpoint.Checkpoints(run, keep=2)
for step in (1, 2, 3):
    items = {'model': {'params': {'w': jnp.arange(6.0) * step}}, 'training': {'step': jnp.int32(step)}}
    checkpoints.save(step, items)
    checkpoints.wait()
assert checkpoints.steps == [2, 3], checkpoints.steps
checkpoints.close()
# The mark that a checkpoint is whole is the last thing that is written: as if killed before it.
(run / 'checkpoints' / '3' / 'commit_success.txt').unlink()
checkpoints = checkpoint.Checkpoints(run, keep=2)
assert checkpoints.steps == [2], checkpoints.steps
restored = checkpoints.restore(items)
np.testing.assert_array_equal(restored['model']['params']['w'], np.arange(6.0) * 2)
checkpoints.save(3, items)
checkpoints.wait()
assert checkpoints.steps == [2, 3]
checkpoints.close()

checkpoint.save_model(run / 'net', items['model'], {'architecture': 'none'})
variables, about = checkpoint.load_model(run / 'net')
np.testing.assert_array_equal(variables['params']['w'], np.arange(6.0) * 3)
assert about == {'architecture': 'none'}

path = run / 'metrics.jsonl'
log = MetricsLog(run, 0)
for step in (1, 2):
    log.write(step, loss=1.0)
    log.save()
log.write(3, loss=1.0)  # and the process is killed
assert [line['step'] for line in read_metrics(path)] == [1, 2]
log = MetricsLog(run, 1)
log.write(2, loss=2.0)
log.close()
assert [(line['step'], line['loss']) for line in read_metrics(path)] == [(1, 1.0), (2, 2.0)]
"""


@pytest.fixture(scope='module')
def environment():
    """Start a bucket of its own; return the environment in which gcsfs, tensorstore and array_record find it."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = [sys.executable, gcs_server.__file__, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout.readline() == 'ready\n'
        url = f'http://localhost:{port}'
        yield os.environ | {
            'STORAGE_EMULATOR_HOST': url,
            'CLOUD_STORAGE_EMULATOR_ENDPOINT': url,
            'TENSORSTORE_GCS_HTTP_URL': url,
            'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'any',  # tensorstore's own, so that it looks for none
            'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
            'PYTHONPATH': str(ROOT),
            'XLA_FLAGS': QUICK_TO_COMPILE,
        }
        server.terminate()


def run(environment, folder, *command, expect=0):
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == expect, done.stderr[-5000:]
    assert not list(Path(folder).glob('gs*')), 'written to a folder of that name'
    return done.stderr


def test_checkpoints_and_metrics_in_a_bucket_are_read_again(environment, tmp_path):
    run(environment, tmp_path, '-c', FILES)


def objects(environment, prefix):
    """Return the names of the objects below a prefix."""
    query = urllib.parse.urlencode({'prefix': prefix})
    url = f'{environment["STORAGE_EMULATOR_HOST"]}/storage/v1/b/{gcs_server.BUCKET}/o?{query}'
    with urllib.request.urlopen(url) as answer:
        return [item['name'] for item in json.load(answer)['items']]


def read(environment, name):
    url = f'{environment["STORAGE_EMULATOR_HOST"]}/{gcs_server.BUCKET}/{name}'
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_ends_like_one_on_a_disk(environment, tmp_path):
    drawings.write(tmp_path / 'drawings', train=96, val=45, seed=0)
    for out in ('gs://bucket/shards', tmp_path / 'shards'):
        run(environment, tmp_path, '-m', 'fixres_jax.prepare', tmp_path / 'drawings', out, '--shards', '3')
    options = [
        *('-m', 'fixres_jax.main', f'--config={ROOT}/configs/quickstart.py', *SMALL),
        *('--config.train.epochs=4', '--config.compilation_cache=', '--config.adapt.max_iterations=3'),
    ]
    on_disk = [*options, f'--config.data.source={tmp_path}/shards', f'--workdir={tmp_path}/run']
    in_bucket = [*options, '--config.data.source=gs://bucket/shards', '--workdir=gs://bucket/run']
    process = subprocess.Popen([sys.executable, *in_bucket], cwd=tmp_path, env=environment)
    end = time.monotonic() + 600
    while 'run/train/checkpoints/6/commit_success.txt' not in objects(environment, 'run/train/checkpoints/6/'):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    printed = run(environment, tmp_path, *in_bucket)
    assert 'train goes on from step' in printed and 'The report is in gs://bucket/run/report.md' in printed
    run(environment, tmp_path, *on_disk)
    ours, theirs = (
        [json.loads(line) for line in text.splitlines()]
        for text in (
            read(environment, 'run/train/metrics.jsonl'),
            (tmp_path / 'run' / 'train' / 'metrics.jsonl').read_text(),
        )
    )
    assert [line['loss'] for line in ours] == [line['loss'] for line in theirs]
    ours, theirs = (
        json.loads(text)['numbers']
        for text in (read(environment, 'run/report.json'), (tmp_path / 'run' / 'report.json').read_text())
    )
    assert ours == theirs
    names = {name.removeprefix('run/').split('/')[0] for name in objects(environment, 'run/')}
    there = {path.name for path in (tmp_path / 'run').iterdir() if path.name != '.lock'}
    assert names == there
