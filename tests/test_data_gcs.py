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


def test_a_folder_in_a_bucket_is_read_like_one_on_disk(tiny_folder):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        'STORAGE_EMULATOR_HOST': f'http://localhost:{port}',
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks over gRPC what kind a bucket is, which the emulator lacks
    }
    command = [sys.executable, '-c', CODE, str(tiny_folder), str(port)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert 'the same' in ran.stdout, ran.stderr
