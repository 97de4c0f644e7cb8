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

from fixres_jax.machines import chips, footprint, sharding

ROOT = Path(__file__).resolve().parent.parent
HLO = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main (p: f32[16]) -> f32[64] {
  %all-reduce.1 = f32[64]{0:T(256)} all-reduce(f32[64]{0} %x), replica_groups={{0,1,2,3}}, to_apply=%add
  %ar-start = (bf16[2,3]{1,0}, f32[5]{0}) all-reduce-start(%a, %b), channel_id=1, to_apply=%add
  %ar-done = (bf16[2,3]{1,0}, f32[5]{0}) all-reduce-done(%ar-start)
  %ag = (f32[16]{0}, f32[64]{0}) all-gather-start(f32[16]{0} %p), dimensions={0}
  %rs = f32[16]{0} reduce-scatter(f32[64]{0} %g), dimensions={0}, to_apply=%add
  ROOT %fusion = f32[64]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-reduce-like
}
"""
# What is asynchronous, in the forms that compilers write: several operands; wrapped; with room for the TPU's own use;
# cut into fusions; and a reduce-scatter as a TPU program has it.
ASYNCHRONOUS = """
%wrapped (p: f32[64]) -> f32[16] {
  %p = f32[64]{0} parameter(0)
  ROOT %scatter = f32[16]{0} reduce-scatter(%p), channel_id=7, dimensions={0}, to_apply=%add
}

%begin (p: f32[16]) -> (f32[16], f32[64]) {
  %gather.1 = f32[64]{0} all-gather(%p), channel_id=8, dimensions={0}
  ROOT %custom-call.1 = (f32[16]{0}, f32[64]{0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (p: f32[16], q: f32[8]) -> f32[8] {
  %gather.2 = f32[64]{0} all-gather(%p), channel_id=8, dimensions={0}
  ROOT %product = f32[8]{0} multiply(%q, %q)
}

%end (p: f32[16]) -> f32[64] {
  %gather.3 = f32[64]{0} all-gather(%p), channel_id=8, dimensions={0}
  ROOT %custom-call.2 = f32[64]{0} custom-call(%gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.5 (p: bf16[64,4]) -> bf16[16,4] {
  %all-reduce.5 = bf16[64,4]{1,0} all-reduce(%p), channel_id=9, to_apply=%add
  ROOT %slice = bf16[16,4]{1,0:T(8,128)S(1)} dynamic-slice(%all-reduce.5, %place, %zero), dynamic_slice_sizes={16,4}
}

ENTRY %main (p: f32[16]) -> f32[64] {
  %ag = ((f32[16]{0}, f32[2]{0}), (f32[64]{0}, f32[8]{0})) all-gather-start(%p, %q), dimensions={0}
  %ag-done = (f32[64]{0}, f32[8]{0}) all-gather-done(%ag)
  %cp = (f32[16]{0}, f32[16]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), channel_id=6
  %cp-done = f32[16]{0} collective-permute-done(%cp)
  %rs = ((f32[64]{0}), f32[16]{0}) async-start(%g), calls=%wrapped
  %rs-update = ((f32[64]{0}), f32[16]{0}) async-update(%rs), calls=%wrapped
  %rs-done = f32[16]{0} async-done(%rs-update), calls=%wrapped
  %first = (f32[16]{0}, f32[64]{0}) fusion(%p), kind=kCustom, calls=%begin
  %second = f32[8]{0} fusion(%p, %q), kind=kCustom, calls=%async_collective_fusion.1
  %third = f32[64]{0} fusion(%p), kind=kCustom, calls=%end
  ROOT %scattered = bf16[16,4]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.5
}
"""
# A loop over 3, 5 and 7 within a loop that the compiler counts; no compiler says how often the inner one runs.
LOOPS = """
%inner_body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %two = s32[] constant(2)
  %next = s32[]{:T(128)} add(%i, %two), metadata={op_name="while/body/add"}
  %v = f32[4]{0} get-tuple-element(%t), index=1
  %r = f32[4]{0} all-reduce(%v), channel_id=1, to_apply=%add
  ROOT %out = (s32[], f32[4]{0}) tuple(%next, /*index=1*/%r)
}

%inner_condition (t: (s32[], f32[4])) -> pred[] {
  %t = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %limit = s32[] constant(8)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%outer_body (u: (s32[], f32[4])) -> (s32[], f32[4]) {
  %three = s32[] constant(3)
  %start = s32[] copy(%three)
  %tuple = (s32[], f32[4]{0}) tuple(%start, %w)
  ROOT %inner = (s32[], f32[4]{0}) while(%tuple), condition=%inner_condition, body=%inner_body
}

%outer_condition (u: (s32[], f32[4])) -> pred[] {
  ROOT %some = pred[] custom-call(%u), custom_call_target="some"
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %outer = (s32[], f32[4]{0}) while(%p), condition=%outer_condition, body=%outer_body, KNOWN
  ROOT %r = f32[4]{0} all-reduce(%p), channel_id=2, to_apply=%add
}
"""


def test_collectives_are_counted_once_with_the_bytes_of_their_results():
    assert footprint.collectives(HLO) == {
        'all-reduce': {'count': 2, 'bytes': 256 + 12 + 20},
        'all-gather': {'count': 1, 'bytes': 256},
        'reduce-scatter': {'count': 1, 'bytes': 64},
    }


def test_asynchronous_collectives_are_counted_once():
    assert footprint.collectives(ASYNCHRONOUS) == {
        'all-gather': {'count': 2, 'bytes': 256 + 32 + 256},
        'collective-permute': {'count': 1, 'bytes': 64},
        'reduce-scatter': {'count': 2, 'bytes': 64 + 128},
    }


@pytest.mark.parametrize(
    'known, count',
    [('backend_config={"known_trip_count":{"n":"4"}}', 4 * 3 + 1), ('metadata={op_name="while"}', 3 + 1)],
)
def test_collectives_in_loops_count_as_often_as_the_loops_run(known, count):
    assert footprint.collectives(LOOPS.replace('KNOWN', known)) == {'all-reduce': {'count': count, 'bytes': 16 * count}}


def test_a_compiled_loop_sums_over_the_devices_in_each_of_its_rounds():
    mesh = sharding.make_mesh()
    split = NamedSharding(mesh, PartitionSpec(None, 'data'))

    def normalized(total, rows):
        total = total + rows.sum(0)
        return total / jnp.linalg.norm(total), None

    rows = jax.ShapeDtypeStruct((6, 64, 128), jnp.float32, sharding=split)
    compiled = jax.jit(lambda rows: jax.lax.scan(normalized, jnp.ones(128), rows)[0]).lower(rows).compile()
    assert footprint.collectives(compiled.as_text()) == {'all-reduce': {'count': 6, 'bytes': 6 * 512}}


def test_scattering_a_sum_and_gathering_it_moves_what_an_all_reduce_does():
    mesh = sharding.make_mesh()
    chip = chips.Chip(flops=1e3, memory=1e3, memory_bandwidth=1e2, link_bandwidth=1e6, source='')
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    links = {}
    for name, function, out in (
        ('reduce-scatter', lambda x: jax.lax.psum_scatter(x, 'data', tiled=True), PartitionSpec('data')),
        ('all-gather', lambda x: jax.lax.all_gather(x[:128], 'data', tiled=True), PartitionSpec('data')),
        ('all-reduce', lambda x: jax.lax.psum(x, 'data'), PartitionSpec()),
    ):
        mapped = jax.shard_map(function, mesh=mesh, in_specs=PartitionSpec(), out_specs=out, check_vma=False)
        found = footprint.collectives(jax.jit(mapped).lower(x).compile().as_text())
        assert found.keys() == {name} and found[name]['count'] == 1
        links[name] = footprint.seconds(footprint.Footprint(0, 0, 0, 0, 0.0, 0.0, found), chip, mesh.size)['links']
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


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
def test_on_a_tpu_the_gradients_of_all_parts_cross_the_links_once(tmp_path):
    options = ['--topology=v5e:2x2', '--steps=train', '--config.train.accumulate_steps=2']
    dry_run(tmp_path, *options, f'--json={tmp_path}/out.json')
    (step,) = json.loads((tmp_path / 'out.json').read_text())['steps']
    found = step['collectives']['all-reduce']
    # After the loop the gradients; in it, in each of two rounds, the few numbers of the running statistics.
    assert found['count'] == 3 and found['bytes'] == pytest.approx(step['parameters'], rel=0.05)


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
