"""What is read from a compiled program, and the dry run with the real TPU compiler."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fixres_jax import chips, footprint, sharding

ROOT = Path(__file__).resolve().parent.parent
HLO = """
  %all-reduce.1 = f32[64]{0:T(256)} all-reduce(f32[64]{0} %x), replica_groups={{0,1,2,3}}, to_apply=%add
  %ar-start = (bf16[2,3]{1,0}, f32[5]{0}) all-reduce-start(%a, %b), channel_id=1
  %ar-done = (bf16[2,3]{1,0}, f32[5]{0}) all-reduce-done(%ar-start)
  %ag = (f32[16]{0}, f32[64]{0}) all-gather-start(f32[16]{0} %p), dimensions={0}
  %rs = f32[16]{0} reduce-scatter(f32[64]{0} %g), dimensions={0}
  ROOT %fusion = f32[64]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-reduce-like
"""


def test_collectives_are_counted_once_with_the_bytes_of_their_results():
    assert footprint.collectives(HLO) == {
        'all-reduce': {'count': 2, 'bytes': 256 + 12 + 20},
        'all-gather': {'count': 1, 'bytes': 256},
        'reduce-scatter': {'count': 1, 'bytes': 64},
    }


def test_a_compiled_product_has_the_work_and_the_memory_that_arithmetic_says():
    mesh = sharding.make_mesh()
    split = NamedSharding(mesh, PartitionSpec('data'))
    rows = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=split)
    weights = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=sharding.replicated(mesh))
    compiled = jax.jit(lambda x, w: (x @ w).sum()).lower(rows, weights).compile()
    found = footprint.measure(compiled, parameters=weights, optimizer=rows)
    assert found.parameters == 512 * 256 * 4 and found.optimizer == 1024 * 512 * 4 // 8
    assert found.flops == pytest.approx(2 * 128 * 512 * 256, rel=0.01)
    assert found.memory >= found.parameters + found.optimizer
    assert found.collectives == {'all-reduce': {'count': 1, 'bytes': 4}}
    assert footprint.measure(compiled, parameters=weights, num_repeats=3).flops == 3 * found.flops


def test_the_step_time_is_the_longer_of_work_and_memory_and_then_the_links():
    chip = chips.Chip(flops=1e3, memory=1e3, memory_bandwidth=1e2, link_bandwidth=10.0, source='')
    found = footprint.Footprint(0, 0, 0, 0, 2e3, 1e2, {'all-reduce': {'count': 1, 'bytes': 40}})
    times = footprint.seconds(found, chip, 4)
    assert times == {'compute': 2.0, 'memory': 1.0, 'links': pytest.approx(6.0), 'step': pytest.approx(8.0)}
    assert footprint.seconds(found, chip, 4, devices_per_chip=2)['compute'] == 4.0


def test_every_chip_says_where_its_figures_stand():
    for name, chip in chips.CHIPS.items():
        assert name.startswith('TPU') and chip.source.startswith('https://')
        assert 1e14 < chip.flops < 1e16 and 1e10 < chip.memory < 1e12
        assert chip.link_bandwidth < chip.memory_bandwidth < 1e13


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
    assert 'fits' in printed and 'Real steps take longer.' in printed
    result = json.loads((tmp_path / 'out.json').read_text())
    (step,) = result['steps']
    assert result['num_devices'] == 4 and step['fits'] and step['hours'] > 0
    # The gradients' few; BatchNorm in groups of whole images has none.
    assert step['collectives'].keys() == {'all-reduce'} and step['collectives']['all-reduce']['count'] <= 3
    assert step['seconds']['step'] >= max(step['seconds']['compute'], step['seconds']['memory'])


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


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'Give either --topology'),
        (['--devices=2', '--steps=trian'], "Did you mean 'train'?"),
        (['--topology=v5e:3x7'], '--topology=v5e:3x7 is not a topology'),
    ],
)
def test_wrong_input_is_one_line(tmp_path, arguments, message):
    if 'topology' in ''.join(arguments) and importlib.util.find_spec('libtpu') is None:
        pytest.skip('needs libtpu')
    printed = dry_run(tmp_path, *arguments, expect=2).stderr
    assert message in printed and 'Traceback' not in printed
