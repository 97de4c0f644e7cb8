"""The order of devices: every host feeds the rows of the global batch that the pipeline gives it."""

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fixres_jax.data import pipeline
from fixres_jax.machines import sharding

ROOT = Path(__file__).resolve().parent.parent
BATCH = 64

# Prints, for each topology, the processes along the mesh's axis and the rows that the devices of each process hold.
OF_TOPOLOGIES = """
import json, sys
from fixres_jax.machines import sharding, targets
batch, found = int(sys.argv[1]), {}
for topology in sys.argv[2:]:
    mesh = sharding.make_mesh(targets.find(topology, None).devices)
    rows = {}
    for device, (rows_of_device,) in sharding.by_example(mesh).devices_indices_map((batch,)).items():
        rows.setdefault(device.process_index, []).extend(range(batch)[rows_of_device])
    found[topology] = [device.process_index for device in mesh.devices.flat], rows
print(json.dumps(found))
"""

# One of two processes: makes a mesh of devices that alternate between the processes, puts this process's share of a
# batch there, and prints the global array.
OF_A_PROCESS = """
import json, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from fixres_jax.machines import processes, sharding
from fixres_jax.data import pipeline
address, number, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jax.config.update('jax_num_cpu_devices', 4)
processes.start(address, 2, number)
half = len(jax.devices()) // 2
mesh = sharding.make_mesh([device for pair in zip(jax.devices()[half:], jax.devices()[:half]) for device in pair])
hosts = sharding.hosts()
own = np.arange(batch).reshape(hosts['num_hosts'], -1)[hosts['host']]
array = sharding.put(own, mesh)
here = sorted(row for shard in array.addressable_shards for row in range(batch)[shard.index[0]])
print(json.dumps([here, np.asarray(multihost_utils.process_allgather(array, tiled=True)).tolist()]))
"""


def test_devices_in_any_order_make_the_same_mesh():
    shuffled = [jax.devices()[number] for number in (3, 0, 7, 1, 6, 2, 5, 4)]
    assert sharding.make_mesh(shuffled) == sharding.make_mesh()
    assert [device.id for device in sharding.make_mesh(shuffled).devices] == sorted(d.id for d in shuffled)


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
def test_every_host_of_a_tpu_slice_holds_the_rows_that_the_pipeline_gives_it():
    command = [sys.executable, '-c', OF_TOPOLOGIES, str(BATCH), 'v5e:4x4', 'v5p:2x2x4']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for processes, rows in json.loads(done.stdout).values():
        assert processes == sorted(processes) and len(set(processes)) == 4
        for process, held in rows.items():
            share = pipeline._share(range(BATCH), BATCH, pipeline.Readers(int(process), len(rows)))
            given = np.concatenate([share.samples(chunk)[0] for chunk in range(share.num_chunks)])
            assert held == given.tolist()


def test_processes_whose_devices_alternate_make_the_global_batch_in_order():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    commands = [[sys.executable, '-c', OF_A_PROCESS, address, str(number), str(BATCH)] for number in range(2)]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    try:
        done = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    for number, (printed, errors) in enumerate(done):
        assert running[number].returncode == 0, errors
        here, array = json.loads(printed.splitlines()[-1])
        assert array == list(range(BATCH))
        assert here == np.arange(BATCH).reshape(2, -1)[number].tolist()
