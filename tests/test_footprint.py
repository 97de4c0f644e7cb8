"""What is read from a compiled program, and the dry run with the real compilers for TPU and GPU."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fixres_jax.machines import chips, footprint, sharding

ROOT = Path(__file__).resolve().parent.parent
CUDA = any('cuda' in plugin.name for plugin in importlib.metadata.entry_points(group='jax_plugins'))


def test_scattering_a_sum_and_gathering_it_moves_what_an_all_reduce_does():
    mesh = sharding.make_mesh()
    chip = chips.Chip(flops=1e3, memory=1e3, memory_bandwidth=1e2, link_bandwidth=1e6, clock=None, source='')
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    links = {}
    for name, function, out in (
        ('reduce-scatter', lambda x: jax.lax.psum_scatter(x, 'data', tiled=True), PartitionSpec('data')),
        ('all-gather', lambda x: jax.lax.all_gather(x[:128], 'data', tiled=True), PartitionSpec('data')),
        ('all-reduce', lambda x: jax.lax.psum(x, 'data'), PartitionSpec()),
    ):
        mapped = jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec(), out_specs=out, check_vma=False)
        found = footprint.count(jax.jit(mapped).lower(x).compile().as_text())
        assert found.collectives.keys() == {name} and found.collectives[name]['count'] == 1
        links[name] = footprint.seconds(found, chip, mesh.size)['links']
    assert links['reduce-scatter'] == pytest.approx(7 * 128 * 4 / 1e6)
    assert links['reduce-scatter'] + links['all-gather'] == pytest.approx(links['all-reduce'])


def test_a_compiled_product_has_the_work_and_the_memory_that_arithmetic_says():
    mesh = sharding.make_mesh()
    split = NamedSharding(mesh, PartitionSpec('data'))
    rows = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=split)
    weights = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=sharding.replicated(mesh))
    compiled = jax.jit(lambda x, w: (x @ w).sum()).lower(rows, weights).compile()
    found = footprint.measure(compiled, parameters=weights, optimizer=rows)
    assert found.parameters == 512 * 256 * 4 and found.optimizer == 1024 * 512 * 4 // 8
    assert found.flops == 2 * 128 * 512 * 256
    assert found.memory >= found.parameters + found.optimizer
    assert found.collectives == {'all-reduce': {'count': 1, 'bytes': 4}}


@pytest.mark.parametrize('flops, moved, cycles, largest', [(2e3, 1e2, 0, 2.0), (1e3, 3e2, 5, 3.0), (1e3, 1e2, 40, 4.0)])
def test_the_estimate_is_the_largest_bound_and_then_the_links(flops, moved, cycles, largest):
    chip = chips.Chip(flops=1e3, memory=1e3, memory_bandwidth=1e2, link_bandwidth=10.0, clock=10.0, source='')
    found = footprint.Work(flops, moved, cycles, {'all-reduce': {'count': 1, 'bytes': 40}})
    times = footprint.seconds(found, chip, 4)
    assert times['arithmetic'] == flops / 1e3 and times['memory'] == moved / 1e2
    assert times.get('cycles', 0) == cycles / 10
    assert times['links'] == pytest.approx(6.0) and times['step'] == pytest.approx(largest + 6.0)
    assert footprint.seconds(found, chip, 4, devices_per_chip=2)['arithmetic'] == 2 * flops / 1e3
    without = dataclasses.replace(chip, clock=None)
    assert 'cycles' not in footprint.seconds(found, without, 4)


def test_every_chip_says_where_its_figures_stand():
    for name, chip in chips.CHIPS.items():
        assert name.startswith(('TPU', 'NVIDIA')) and 'https://' in chip.source
        assert 1e14 < chip.flops < 1e16 and 1e10 < chip.memory < 1e12
        assert chip.link_bandwidth < chip.memory_bandwidth < 1e13
        assert chip.clock is None or 5e8 < chip.clock < 3e9


CONFIG = """
from configs import base

def get_config():
    c = base.get_config()
    c.model.name = 'resnet18'
    c.model.width = 8
    c.model.bn_group_size = 8
    c.train.resolution = 32
    c.train.batch_size = c.test.batch_size = 64
    return c
"""


def dry_run(tmp_path, *arguments, expect=0):
    (tmp_path / 'tiny.py').write_text(CONFIG)
    command = [sys.executable, '-m', 'fixres_jax.dryrun', f'--config={tmp_path}/tiny.py', *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == expect, done.stderr
    return done


def test_virtual_devices(tmp_path):
    printed = dry_run(tmp_path, '--devices=4', '--steps=evaluate', f'--json={tmp_path}/out.json').stdout
    assert 'evaluate: 32 pixels, global batch 64' in printed and 'between devices: nothing' in printed
    (step,) = json.loads((tmp_path / 'out.json').read_text())['steps']
    assert step['parameters'] > 0 and 'seconds' not in step


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
def test_a_small_slice_with_the_tpu_compiler(tmp_path):
    printed = dry_run(tmp_path, '--topology=v5e:2x2', '--steps=train', f'--json={tmp_path}/out.json').stdout
    assert 'fits' in printed and 'estimate: ' in printed and 'it sees no memory' in printed
    result = json.loads((tmp_path / 'out.json').read_text())
    (step,) = result['steps']
    assert result['num_devices'] == 4 and step['fits'] and step['hours'] > 0
    # The gradients' few; BatchNorm in groups of whole images has none.
    assert step['collectives'].keys() == {'all-reduce'} and step['collectives']['all-reduce']['count'] <= 3
    times = step['seconds']
    assert times['step'] == pytest.approx(
        max(times[name] for name in ('arithmetic', 'memory', 'cycles')) + times['links']
    )
    assert min(times.values()) > 0


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
@pytest.mark.slow
def test_on_a_tpu_the_gradients_of_all_parts_cross_the_links_once(tmp_path):
    options = ['--topology=v5e:2x2', '--steps=train', '--config.train.accumulate_steps=2']
    dry_run(tmp_path, *options, f'--json={tmp_path}/out.json')
    (step,) = json.loads((tmp_path / 'out.json').read_text())['steps']
    found = step['collectives']['all-reduce']
    # After the loop the gradients; in it, in each of two rounds, the few numbers of the running statistics.
    assert found['count'] == 3 and found['bytes'] == pytest.approx(step['parameters'], rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
def test_on_a_tpu_fsdp_gathers_kernels_and_scatters_gradients(tmp_path):
    options = ['--topology=v5e:2x2', '--steps=train,evaluate', '--config.model.width=64', '--config.sharding=fsdp']
    dry_run(tmp_path, *options, f'--json={tmp_path}/out.json')
    train, evaluate = json.loads((tmp_path / 'out.json').read_text())['steps']
    # No loops that pass parts of kernels around: all large kernels once, most of them in bfloat16.
    assert train['collectives'].keys() == {'all-gather', 'all-reduce', 'reduce-scatter'}
    assert evaluate['collectives'].keys() == {'all-gather'}
    for step in (train, evaluate):
        assert 0.5 < step['collectives']['all-gather']['bytes'] / (4 * step['parameters']) < 0.6
    # Each device gets its fourth of the gradients' sums.
    assert train['collectives']['reduce-scatter']['bytes'] > 0.7 * train['collectives']['all-gather']['bytes'] / 4


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
def test_recomputation_saves_memory_and_costs_work_on_a_tpu(tmp_path):
    size = ['--topology=v5e:2x2', '--steps=train', '--config.model.width=64', '--config.train.resolution=128']
    found = {}
    for remat in ('', 'block', 'stage'):
        dry_run(tmp_path, *size, f'--config.model.remat={remat}', f'--json={tmp_path}/out.json')
        (found[remat],) = json.loads((tmp_path / 'out.json').read_text())['steps']
    for remat in ('block', 'stage'):
        assert found[remat]['temporary'] < found['']['temporary'], found
        assert 1.2 < found[remat]['flops'] / found['']['flops'] < 1.5


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
def test_of_sizes_that_grow_the_largest_is_compiled(tmp_path):
    command = [sys.executable, '-m', 'fixres_jax.dryrun', '--config', 'configs/resnet50_ffcv.py:88', '--steps=train']
    run = subprocess.run(
        [*command, '--topology=v5p:2x2x2', f'--json={tmp_path}/out.json'],
        capture_output=True, text=True, cwd=ROOT, timeout=1800,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (train,) = json.loads((tmp_path / 'out.json').read_text())['steps']
    assert train['resolution'] == 192 and train['batch_size'] == 4096 and train['fits']
    steps, share = 88 * 0.98 * 1_281_167 / 4096, 71 / 88
    assert train['num_steps'] == pytest.approx(steps * (share * (160 / 192) ** 2 + 1 - share), rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not CUDA, reason='needs the CUDA build of jax, such as jax[cuda12]')
def test_two_gpus_with_the_gpu_compiler(tmp_path):
    steps = {}
    for name, devices in (('gpu', '--topology=h100:2'), ('cpu', '--devices=2')):
        printed = dry_run(tmp_path, devices, '--steps=train', f'--json={tmp_path}/out.json').stdout
        (steps[name],) = json.loads((tmp_path / 'out.json').read_text())['steps']
        assert ('fits' in printed) == (name == 'gpu')
    gpu, cpu = steps['gpu'], steps['cpu']
    assert gpu['fits'] and gpu['cycles'] == 0 and gpu['temporary'] > 0
    assert gpu['parameters'] == cpu['parameters'] and gpu['optimizer'] == cpu['optimizer']
    # The calls of cuDNN and cuBLAS are what the program for CPU writes out; cuDNN pads three colours to four.
    assert 1.0 < gpu['flops'] / cpu['flops'] < 1.1
    assert gpu['collectives'].keys() == {'all-reduce'}
    # The gradients, of which those of the convolutions are bfloat16.
    assert 0.5 < gpu['collectives']['all-reduce']['bytes'] / gpu['parameters'] < 1.0
    times = gpu['seconds']
    assert times['step'] == pytest.approx(max(times['arithmetic'], times['memory']) + times['links'])


TOO_LARGE = """
import jax
from fixres_jax.core.errors import RunError
from fixres_jax.machines import sharding, targets
target = targets.find('v5e:2x2', None)
mesh = sharding.make_mesh(target.devices)
rows = jax.ShapeDtypeStruct((4, 2**33), 'float32', sharding=sharding.by_example(mesh))
try:
    target.compile(jax.jit(lambda x: x * 2), rows)
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
def test_a_program_that_does_not_fit_is_one_line():
    done = subprocess.run([sys.executable, '-c', TOO_LARGE], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith('The program does not fit: ') and done.stdout.count('\n') == 1, done
    assert 'exceeds available HBM' in done.stdout and 'accumulate_steps' in done.stdout


@pytest.mark.skipif(CUDA, reason='the CUDA build of jax is here')
def test_without_the_gpu_compiler_one_line_says_what_to_install(tmp_path):
    printed = dry_run(tmp_path, '--topology=h100', expect=1).stderr
    assert 'pip install "jax[cuda' in printed and 'Traceback' not in printed


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'Give either --topology'),
        (['--topology=h100:16'], '--topology=h100:16 does not name the GPUs of one machine'),
        (['--devices=2', '--steps=trian'], "Did you mean 'train'?"),
        (['--topology=v5e:3x7'], '--topology=v5e:3x7 is not a topology'),
    ],
)
def test_wrong_input_is_one_line(tmp_path, arguments, message):
    if 'v5e' in ''.join(arguments) and importlib.util.find_spec('libtpu') is None:
        pytest.skip('needs libtpu')
    printed = dry_run(tmp_path, *arguments, expect=2).stderr
    assert message in printed and 'Traceback' not in printed
