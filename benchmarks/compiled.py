"""What compilers make of a ResNet-50 training step, beside the same network of others: bytes, cycles, memory.

Nothing runs: the step is compiled for one H100 (in an environment with the CUDA build of jax) or one TPU chip. All
are in bfloat16, with SGD, momentum and weight decay, and take images as uint8. BatchNorm is in groups of 64 images
here and over all of the chip's in Flax's example. That is the file models.py of its examples/imagenet; big_vision's is
models/bit.py. Its BiT computes in float32 as it is (`bit`), and in bfloat16 when its parameters are cast (`bit16`).

    JAX_PLATFORMS=cpu python benchmarks/compiled.py h100 ours --resolution 128
    JAX_PLATFORMS=cpu python benchmarks/compiled.py h100 flax --resolution 128 --file models.py
"""

import argparse
import importlib.util
import json
import sys
import types
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fixres_jax import models
from fixres_jax.machines import hlo, sharding, targets, work
from fixres_jax.models.architecture import IMAGENET_MEAN, IMAGENET_STD
from fixres_jax.training import state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.schedules import make_schedule
from fixres_jax.training.step import make_train_step

WHAT = ('ours', 'flax', 'bit', 'bit16')


def load(file):
    """Import a file of another project, with empty modules in place of what it imports and does not need here."""
    for name in ('big_vision', 'big_vision.utils', 'big_vision.models', 'big_vision.models.common'):
        sys.modules[name] = types.ModuleType(name)
        parent, _, child = name.rpartition('.')
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    spec = importlib.util.spec_from_file_location('peer', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def our_step(mesh, batch):
    """Return the jitted step of this project, and the shapes of its arguments."""
    model = models.create('resnet50', 1000, dtype=jnp.bfloat16, bn_group_size=64)
    tx = make_sgd(make_schedule('constant', 1e-3, num_steps=1), momentum=0.9, weight_decay=1e-4)
    step = make_train_step(model, tx, '.*', models.TRAIN, mesh=mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return step, (state.abstract(model, tx, '.*', mesh=mesh), batch, key)


def peer_step(what, file, mesh, batch):
    """Return the same of another project's network."""
    module = load(file)
    if what == 'flax':
        norm = nn.BatchNorm
        module.nn.BatchNorm = lambda *args, axis_name=None, **options: norm(*args, **options)  # no pmap here
        network = module.ResNet50(num_classes=1000, dtype=jnp.bfloat16)
    else:
        network = module.Model(1000)
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(1e-3, momentum=0.9))
    mean, std = (jnp.asarray(value).reshape(1, 1, 1, 3) for value in (IMAGENET_MEAN, IMAGENET_STD))

    def loss_fn(params, stats, batch):
        image = (batch['image'].astype(jnp.float32) / 255 - mean) / std
        if what == 'flax':
            variables = {'params': params, 'batch_stats': stats}
            logits, new = network.apply(variables, image.astype(jnp.bfloat16), mutable=['batch_stats'])
            stats = new['batch_stats']
        else:
            dtype = jnp.bfloat16 if what == 'bit16' else jnp.float32
            cast = jax.tree.map(lambda x: x.astype(dtype), params)
            logits, _ = network.apply({'params': cast}, image.astype(dtype))
        logits = logits.astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label']).mean()
        return loss, (stats, loss, (logits.argmax(-1) == batch['label']).mean())

    def step(params, stats, opt_state, batch):
        gradients, (stats, *scalars) = jax.grad(loss_fn, has_aux=True)(params, stats, batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, scalars, optax.tree.norm(gradients)

    images = jnp.zeros((1, *batch['image'].shape[1:]), jnp.float32)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), images))
    params, stats = shapes['params'], shapes.get('batch_stats', {})
    whole = sharding.replicated(mesh)
    jitted = jax.jit(step, in_shardings=whole, out_shardings=whole, donate_argnums=(0, 1, 2))
    return jitted, (params, stats, jax.eval_shape(tx.init, params), batch)


def main():
    """Compile and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('topology', help='h100, or of TPUs, of which one chip is taken: v5e:2x2')
    parser.add_argument('what', choices=WHAT)
    parser.add_argument('--resolution', type=int, default=128)
    parser.add_argument('--batch_size', type=int, default=128)
    parser.add_argument('--file', help='of the other project')
    args = parser.parse_args()
    target = targets.find(args.topology, None)
    mesh = sharding.make_mesh(target.devices[:1])
    by_example = partial(jax.ShapeDtypeStruct, sharding=sharding.by_example(mesh))
    side = args.resolution
    batch = {
        'image': by_example((args.batch_size, side, side, 3), jnp.uint8),
        'label': by_example((args.batch_size,), jnp.int32),
    }
    step, arguments = our_step(mesh, batch) if args.what == 'ours' else peer_step(args.what, args.file, mesh, batch)
    compiled = target.compile(step, *arguments)
    computations, entry = hlo.parse(compiled.as_text())
    steps = list(hlo.executed(computations, entry))
    print(json.dumps({
        'topology': args.topology, 'what': args.what, 'resolution': side, 'batch_size': args.batch_size,
        'gigabytes': round(sum(work.memory_bytes(step, computations) for step in steps) / 1e9, 3),
        'megacycles': round(sum(work.cycles(step) for step in steps) / 1e6, 3),
        'temporary_gigabytes': round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 3),
    }))  # fmt: skip


if __name__ == '__main__':
    main()
