"""Compile a training step of a small ResNet-50 for a machine that is not here; print what it moves as JSON.

    JAX_PLATFORMS=cpu python tests/goldens/compiled_step.py h100
    JAX_PLATFORMS=cpu python tests/goldens/compiled_step.py v5e:2x2

The figures that the tests expect stand in compiled.json; a change that is meant goes in there by hand.
"""

import json
import math
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp

from fixres_jax import models
from fixres_jax.machines import hlo, sharding, targets, work
from fixres_jax.training import state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.schedules import make_schedule
from fixres_jax.training.step import make_train_step

BATCH, SIZE, GROUP = 128, 64, 64
LARGEST_KERNEL = 9 * 128 * 128  # of this network: what has more numbers is an activation


def compile_step(topology: str) -> str:
    """Return the text of the program for one device of a topology."""
    target = targets.find(topology, None)
    mesh = sharding.make_mesh(target.devices[:1])
    model = models.create('resnet50', 10, width=16, dtype=jnp.bfloat16, bn_group_size=GROUP)
    tx = make_sgd(make_schedule('constant', 1e-3, num_steps=1), momentum=0.9, weight_decay=1e-4)
    step = make_train_step(model, tx, '.*', models.TRAIN, mesh=mesh)
    by_example = partial(jax.ShapeDtypeStruct, sharding=sharding.by_example(mesh))
    batch = {'image': by_example((BATCH, SIZE, SIZE, 3), jnp.uint8), 'label': by_example((BATCH,), jnp.int32)}
    start = state.abstract(model, tx, '.*', mesh=mesh)
    return target.compile(step, start, batch, jax.eval_shape(lambda: jax.random.key(0))).as_text()


def float32_activations(step: hlo.Executed) -> list[str]:
    """Return the shapes of the float32 activations that an instruction writes to the large memory."""
    if step.fused or step.instruction.opcode in ('tuple', 'get-tuple-element', 'bitcast', 'parameter', 'while'):
        return []
    found = re.findall(r'f32\[[\d,]*\](?:\{[^}]*\})?', step.instruction.shape)
    sizes = [math.prod(map(int, re.findall(r'\d+', shape.partition('{')[0].partition('[')[2]))) for shape in found]
    return [s for s, n in zip(found, sizes, strict=True) if n > LARGEST_KERNEL and not re.search(r'S\([1-9]', s)]


if __name__ == '__main__':
    computations, entry = hlo.parse(compile_step(sys.argv[1]))
    steps = list(hlo.executed(computations, entry))
    moved = sum(work.memory_bytes(step, computations) for step in steps)
    print(json.dumps({'bytes': moved, 'float32': [shape for step in steps for shape in float32_activations(step)]}))
