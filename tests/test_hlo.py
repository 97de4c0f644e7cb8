"""Counting in the text of compiled programs: in small pieces of it, and beside what a compiler says of its own."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fixres_jax.machines import footprint, sharding

HLO = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-like (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  ROOT %twice = f32[64]{0} add(%x, %x)
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

%all-reduce-scatter.6 (p: bf16[64,4]) -> (bf16[16,4], bf16[16,2]) {
  %all-reduce.6 = (bf16[64,4]{1,0}, bf16[64,2]{1,0}) all-reduce(%p, %q), channel_id=9, to_apply=%add
  %one = bf16[16,4]{1,0} dynamic-slice(%first, %place, %zero), dynamic_slice_sizes={16,4}
  %two = bf16[16,2]{1,0} dynamic-slice(%second, %place, %zero), dynamic_slice_sizes={16,2}
  ROOT %slices = (bf16[16,4]{1,0:T(8,128)}, bf16[16,2]{1,0:T(8,128)}) tuple(%one, %two)
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
  %both = (bf16[16,4]{1,0}, bf16[16,2]{1,0}) fusion(%g), kind=kCustom, calls=%all-reduce-scatter.6
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
    assert footprint.count(HLO).collectives == {
        'all-reduce': {'count': 2, 'bytes': 256 + 12 + 20},
        'all-gather': {'count': 1, 'bytes': 256},
        'reduce-scatter': {'count': 1, 'bytes': 64},
    }


def test_asynchronous_collectives_are_counted_once():
    assert footprint.count(ASYNCHRONOUS).collectives == {
        'all-gather': {'count': 2, 'bytes': 256 + 32 + 256},
        'collective-permute': {'count': 1, 'bytes': 64},
        'reduce-scatter': {'count': 3, 'bytes': 64 + 128 + 192},
    }


@pytest.mark.parametrize(
    'known, count',
    [('backend_config={"known_trip_count":{"n":"4"}}', 4 * 3 + 1), ('metadata={op_name="while"}', 3 + 1)],
)
def test_collectives_in_loops_count_as_often_as_the_loops_run(known, count):
    assert footprint.count(LOOPS.replace('KNOWN', known)).collectives == {
        'all-reduce': {'count': count, 'bytes': 16 * count}
    }


def test_a_compiled_loop_sums_over_the_devices_in_each_of_its_rounds():
    mesh = sharding.make_mesh()
    split = NamedSharding(mesh, PartitionSpec(None, 'data'))

    def normalized(total, rows):
        total = total + rows.sum(0)
        return total / jnp.linalg.norm(total), None

    rows = jax.ShapeDtypeStruct((6, 64, 128), jnp.float32, sharding=split)
    compiled = jax.jit(lambda rows: jax.lax.scan(normalized, jnp.ones(128), rows)[0]).lower(rows).compile()
    assert footprint.count(compiled.as_text()).collectives == {'all-reduce': {'count': 6, 'bytes': 6 * 512}}


# A TPU program: S(1) is the memory on the chip. `parts` slices one operand and updates another in place; the gather
# passes through `beside` on its way and ends in `end`.
MEMORY = """
%parts (a: f32[64,128], b: f32[64,128], i: s32[]) -> (f32[64,128], f32[8,128]) {
  %a = f32[64,128]{1,0} parameter(0)
  %b = f32[64,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %part = f32[8,128]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={8,128}
  %twice = f32[8,128]{1,0} add(%part, %part), backend_config={"estimated_cycles":"1000"}
  %same = f32[64,128]{1,0} bitcast(%b)
  %new = f32[64,128]{1,0} dynamic-update-slice(%same, %twice, %i, %i)
  ROOT %both = (f32[64,128]{1,0}, f32[8,128]{1,0}) tuple(%new, %twice)
}

%beside (p: f32[16], q: f32[64], r: f32[8]) -> (f32[8], f32[16], f32[64]) {
  %p = f32[16]{0} parameter(0)
  %q = f32[64]{0} parameter(1)
  %r = f32[8]{0} parameter(2)
  %gather = f32[64]{0} all-gather(%p), channel_id=8, dimensions={0}
  %product = f32[8]{0} multiply(%r, %r)
  ROOT %all = (f32[8]{0}, f32[16]{0}, f32[64]{0}) tuple(%product, %p, %gather)
}

%end (p: f32[16], q: f32[64]) -> f32[64] {
  %p = f32[16]{0} parameter(0)
  %q = f32[64]{0} parameter(1)
  %gather = f32[64]{0} all-gather(%p), channel_id=8, dimensions={0}
  ROOT %done = f32[64]{0} custom-call(%p, %q, %gather), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: f32[64,128], g: f32[16]) -> f32[64,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  %g = f32[16]{0:T(128)} parameter(1)
  LINE
}
"""
WHOLE, PART = 64 * 128 * 4, 8 * 128 * 4


@pytest.mark.parametrize(
    'line, moved',
    [
        ('%x = bf16[64,128]{1,0:T(8,128)(2,1)} convert(%p)', WHOLE + WHOLE // 2),
        ('%x = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} convert(%p)', WHOLE),
        ('%x = (f32[64,128]{1,0:T(8,128)S(1)}, f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p)', WHOLE),
        ('%x = (f32[64,128]{1,0}, f32[64,128]{1,0}, u32[]{:S(2)}) copy-start(%p)', 2 * WHOLE),
        ('%x = f32[64,128]{1,0:T(8,128)} copy-done(%p)', 0),
        ('%x = ((f32[64,128]{1,0}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p)', PART),
        ('%x = f32[8,128]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={8,128}', 2 * PART),
        ('%x = f32[64,128]{1,0} bitcast(%p)', 0),
        ('%x = f32[64,128]{1,0} custom-call(%p), custom_call_target="AllocateBuffer"', 0),
        # One slice read; one written in place, which is not read; one written as a result.
        ('%x = (f32[64,128]{1,0}, f32[8,128]{1,0}) fusion(%p, %p, %i), kind=kLoop, calls=%parts', 3 * PART),
        ('%x = (f32[64,128]{1,0}, f32[8,128]{1,0:S(1)}) fusion(%p, %p, %i), kind=kLoop, calls=%parts', 2 * PART),
        # The gather's 16 and 64 numbers once, though two fusions name it; 8 read and 8 written.
        (
            '%x = (f32[8]{0}, f32[16]{0}, f32[64]{0}) fusion(%g, %q, %r), calls=%beside\n'
            '  %q = f32[64]{0} constant(0)\n  %r = f32[8]{0} constant(0)\n'
            '  %y = f32[64]{0} fusion(%g, %q), calls=%end',
            4 * (16 + 64 + 8 + 8),
        ),
    ],
)
def test_bytes_are_those_that_reach_the_large_memory(line, moved):
    assert footprint.count(MEMORY.replace('LINE', line)).bytes_moved == moved


def test_cycles_are_those_of_whole_instructions_in_all_rounds_of_a_loop():
    estimated = ', backend_config={"window_config":{"estimated_cycles":"70"}}'
    line = f'%x = (f32[64,128]{{1,0}}, f32[8,128]{{1,0}}) fusion(%p, %p, %i), kind=kLoop, calls=%parts{estimated}'
    assert footprint.count(MEMORY.replace('LINE', line)).cycles == 70
    loops = LOOPS.replace('channel_id=1, to_apply=%add', f'channel_id=1, to_apply=%add{estimated}')
    assert footprint.count(loops.replace('KNOWN', '"known_trip_count":{"n":"4"}')).cycles == 12 * 70


def gradient(argument, x, w, **options):
    def loss(x, w):
        y = jax.lax.conv_general_dilated(x, w, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options)
        return y.sum() if argument is None else jnp.sum(y * y)

    return loss(x, w) if argument is None else jax.grad(loss, argument)(x, w)


CONVOLUTIONS = {
    'stem': ((4, 33, 33, 3), (7, 7, 3, 16), {'window_strides': (2, 2), 'padding': ((3, 3), (3, 3))}),
    'same': ((4, 9, 7, 16), (3, 3, 16, 24), {'window_strides': (1, 1), 'padding': 'SAME'}),
    'groups': (
        (4, 8, 8, 16),
        (3, 3, 4, 16),
        {'window_strides': (1, 1), 'padding': 'SAME', 'feature_group_count': 4},
    ),
    'dilated': ((4, 16, 16, 8), (3, 3, 8, 8), {'window_strides': (1, 1), 'padding': 'VALID', 'rhs_dilation': (2, 2)}),
}


@pytest.mark.parametrize('argument', [None, 0, 1])
@pytest.mark.parametrize('name', CONVOLUTIONS)
def test_operations_of_a_convolution_and_of_its_gradients_are_the_compilers(name, argument):
    image, kernel, options = CONVOLUTIONS[name]
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (image, kernel))
    lowered = jax.jit(functools.partial(gradient, argument, **options)).lower(*shapes)
    compiled = lowered.compile()
    # The compiler counts additions and the like too, which are few here.
    assert footprint.count(compiled.as_text()).flops == pytest.approx(compiled.cost_analysis()['flops'], rel=0.03)


def test_operations_of_products_are_two_for_each_number_and_contraction():
    def products(a, b):
        return jnp.einsum('gij,gkj->gik', a, b), a[0] @ b[0].T

    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 64, 96), (3, 32, 96)))
    text = jax.jit(products).lower(a, b).compile().as_text()
    assert footprint.count(text).flops == 2 * (3 + 1) * 64 * 32 * 96


# A GPU program: convolutions are calls of cuDNN, products calls of cuBLAS. All three are the work of one convolution.
GPU = """
ENTRY %main (x: bf16[2,8,8,16], w: bf16[32,3,3,16], y: bf16[2,4,4,32]) -> f32[4,6] {
  %x = bf16[2,8,8,16]{3,2,1,0} parameter(0)
  %w = bf16[32,3,3,16]{3,2,1,0} parameter(1)
  %y = bf16[2,4,4,32]{3,2,1,0} parameter(2)
  %a = f32[4,5]{1,0} parameter(3)
  %b = f32[6,5]{1,0} parameter(4)
  LINE
}
"""
WINDOW = 'window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv'
# Along an axis of 8 pixels, 4 outputs of 3 taps each miss one in the padding before it.
CONVOLUTION = 2 * 11 * 11 * 2 * 16 * 32
X, W, Y = 2 * 2 * 8 * 8 * 16, 2 * 32 * 3 * 3 * 16, 2 * 2 * 4 * 4 * 32


@pytest.mark.parametrize(
    'line, flops, moved',
    [
        (f'%r = (bf16[2,4,4,32]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %w), {WINDOW}Forward"', CONVOLUTION, X + W + Y),
        (
            f'%r = (bf16[2,8,8,16]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%y, %w), {WINDOW}BackwardInput"',
            CONVOLUTION,
            X + W + Y,
        ),
        (
            f'%r = (bf16[32,3,3,16]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %y), {WINDOW}BackwardFilter"',
            CONVOLUTION,
            X + W + Y,
        ),
        (
            '%r = (f32[4,6]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", '
            'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
            '"rhs_contracting_dimensions":["1"]}}}',
            2 * 4 * 6 * 5,
            4 * (20 + 30 + 24) + 4096,
        ),
    ],
)
def test_calls_of_cudnn_and_cublas_are_the_work_that_they_do(line, flops, moved):
    found = footprint.count(GPU.replace('LINE', line))
    assert (found.flops, found.bytes_moved, found.cycles) == (flops, moved, 0)
