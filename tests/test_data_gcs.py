"""A bucket is a folder: the same images, labels and names from gs:// as from a disk, over the real protocol."""

import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip('gcsfs')
pytest.importorskip('gcp_storage_emulator')

CODE = """
import os, sys
from pathlib import Path

import gcsfs
from gcp_storage_emulator.server import create_server

from fixres_jax.data import sources
from fixres_jax.core.errors import UsageError

folder, port = Path(sys.argv[1]), int(sys.argv[2])
server = create_server('localhost', port, in_memory=True, default_bucket='bucket')
server.start()
try:
    bucket = gcsfs.GCSFileSystem(endpoint_url=os.environ['STORAGE_EMULATOR_HOST'], token='anon')
    for path in folder.rglob('*'):
        if path.is_file():
            with bucket.open(f'bucket/data/{path.relative_to(folder)}', 'wb') as file:
                file.write(path.read_bytes())
    there, here = (sources.create(str(place), 'train') for place in ('gs://bucket/data', folder))
    assert there.class_names == here.class_names and len(there) == len(here) > 0
    for index in range(len(here)):
        assert there[index]['encoded'] == here[index]['encoded'], index
        assert there[index]['label'] == here[index]['label'], index
        assert there.name(index) == here.name(index).replace(str(folder), 'gs://bucket/data'), index
    requests = []
    real = gcsfs.GCSFileSystem._call

    def counted(self, *arguments, **more):
        requests.append(arguments)
        return real(self, *arguments, **more)

    gcsfs.GCSFileSystem._call = counted
    assert there.fingerprint() == here.fingerprint()
    assert not requests, 'the sizes came with the listing'
    assert there[0] and requests
    try:
        sources.create('gs://bucket/nothing', 'train')
    except UsageError as error:
        assert 'gs://bucket/nothing' in str(error)
    print('the same')
finally:
    server.stop()
"""

PREPARE = """
import os, subprocess, sys
from pathlib import Path

import gcsfs
from gcp_storage_emulator.server import create_server

from fixres_jax import prepare
from fixres_jax.core.errors import UsageError
from fixres_jax.data import sources

folder, port, here = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
server = create_server('localhost', port, in_memory=True, default_bucket='bucket')
server.start()
try:
    bucket = gcsfs.GCSFileSystem(endpoint_url=os.environ['STORAGE_EMULATOR_HOST'], token='anon')
    for path in folder.rglob('*'):
        if path.is_file():
            bucket.pipe(f'bucket/data/{path.relative_to(folder)}', path.read_bytes())
    options = ['--shards', '3', '--short-side', '48', '--split', 'train']
    prepare.main([str(folder), str(here), *options, '--workers', '0'])

    def compare():
        bucket.invalidate_cache()
        names = sorted(path.name for path in (here / 'train').iterdir())
        found = sorted(name.rsplit('/', 1)[1] for name in bucket.find('bucket/out/train'))
        assert found == names, (found, names)
        for name in names:
            assert bucket.cat(f'bucket/out/train/{name}') == (here / 'train' / name).read_bytes(), name

    command = ['gs://bucket/data', 'gs://bucket/out', *options]
    prepare.main([*command, '--workers', '2'])
    compare()
    # A damaged shard and a missing one are made again, by another process.
    shards = [name for name in bucket.find('bucket/out/train') if name.endswith('.array_record')]
    bucket.pipe(shards[0], bucket.cat(shards[0])[:-1] + b'x')
    bucket.rm(shards[1])
    subprocess.run([sys.executable, '-m', 'fixres_jax.prepare', *command, '--workers', '2', *sys.argv[4:]], check=True)
    compare()
    there, disk = (sources.create(str(place), 'train') for place in ('gs://bucket/out', here))
    assert there.labels.tolist() == disk.labels.tolist() and there.digests.tolist() == disk.digests.tolist()
    assert [there.name(index) for index in range(48)] == [disk.name(index) for index in range(48)]
    assert all(there[index] == disk[index] for index in (0, 20, 47))
    try:
        prepare.main(['gs://bucket/data', 'gs://bucket/data/train/out', '--workers', '0'])
    except UsageError as error:
        assert 'which is read' in str(error)
    else:
        raise AssertionError('written into what is read')
    print('the same')
finally:
    server.stop()
"""


def run(code, *arguments):
    """Run code beside a server of its own, whose port it gets as its second argument."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        'STORAGE_EMULATOR_HOST': f'http://localhost:{port}',
        'CLOUD_STORAGE_EMULATOR_ENDPOINT': f'http://localhost:{port}',  # array_record's own
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks over gRPC what kind a bucket is, which the emulator lacks
    }
    first, *others = map(str, arguments)
    command = [sys.executable, '-c', code, first, str(port), *others]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert 'the same' in ran.stdout, ran.stderr


def test_a_folder_in_a_bucket_is_read_like_one_on_disk(tiny_folder):
    run(CODE, tiny_folder)


def test_shards_in_a_bucket_are_those_on_a_disk(tiny_folder, tmp_path):
    run(PREPARE, tiny_folder, tmp_path)
