"""How long the devices wait for Python between two training steps, with logging, checkpoints and prefetching on.

    python benchmarks/loop.py --steps 100 --json docs/loop.json

The real loop runs with real images, a state of the size of a ResNet-18's and real checkpoints, but the step is a
program that only waits, 200 ms by default, and notes when it began and ended: what lies between two steps is what the
loop costs.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from fixres_jax import loop, models, optim, sharding, state
from fixres_jax.checkpoint import Checkpoints
from fixres_jax.data import drawings, pipeline, sources, transforms


def make_waiting_step(seconds, spans):
    """Return a jitted step that waits and adds (begin, end) to `spans`."""

    def wait(step, label):
        began = time.perf_counter()
        time.sleep(seconds)
        spans.append((began, time.perf_counter()))
        return np.int32(step + 1)

    def step(now, batch, key):
        number = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.int32), now.step, batch['label'])
        scalars = {'loss': 1.0 / number, 'top1': jnp.float32(0), 'gradient_norm': jnp.float32(1)}
        return now.replace(step=number), scalars

    return jax.jit(step, donate_argnums=0)


def measure(args, folder):
    """Run the loop; return the gaps between steps in seconds, those after a save apart."""
    mesh = sharding.make_mesh()
    data = drawings.write(folder / 'data', train=300, val=9, seed=0)
    tx = optim.make_sgd(optim.make_schedule('constant', 0.1, num_steps=1), momentum=0.9, weight_decay=0.0)
    now = state.create(models.create('resnet18', 1000), tx, '.*', key=jax.random.key(0), mesh=mesh)
    batches = pipeline.train_batches(
        sources.create(str(data), 'train'),
        transforms.make_train(args.resolution),
        batch_size=args.batch_size,
        seed=0,
        start_step=0,
        num_steps=args.steps,
        workers=args.workers,
        threads=1,
    )
    spans = []
    with contextlib.closing(Checkpoints(epath.Path(folder), 2)) as checkpoints:
        loop.fit(
            now,
            make_waiting_step(args.seconds, spans),
            batches,
            pace=loop.Pace(args.steps, args.batch_size, 10, args.checkpoint_every_steps),
            schedule=lambda step: 0.1,
            key=jax.random.key(0),
            mesh=mesh,
            directory=epath.Path(folder),
            checkpoints=checkpoints,
            title='loop',
        )
    gaps = [(number, spans[number][0] - spans[number - 1][1]) for number in range(4, len(spans))]
    after_save = [gap for step, gap in gaps if step % args.checkpoint_every_steps == 0]
    return [gap for step, gap in gaps if step % args.checkpoint_every_steps], after_save


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=100)
    parser.add_argument('--seconds', type=float, default=0.2, help='a step')
    parser.add_argument('--checkpoint_every_steps', type=int, default=25)
    parser.add_argument('--batch_size', type=int, default=16)
    parser.add_argument('--resolution', type=int, default=64)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--json')
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    with tempfile.TemporaryDirectory() as folder:
        plain, after_save = measure(args, epath.Path(folder))
    result = vars(args) | {
        'median_gap_ms': 1e3 * statistics.median(plain),
        'mean_gap_ms': 1e3 * statistics.mean(plain),
        'mean_gap_percent': 100 * statistics.mean(plain) / args.seconds,
        'mean_gap_after_save_ms': 1e3 * statistics.mean(after_save),
        'largest_gap_after_save_ms': 1e3 * max(after_save),
        'load_average': os.getloadavg()[0],
        'cpus': os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    if args.json:
        with open(args.json, 'w') as file:
            file.write(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
