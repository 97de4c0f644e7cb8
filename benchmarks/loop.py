"""Whether the devices ever wait for Python between two training steps, and what a checkpoint costs the loop.

    python benchmarks/loop.py --steps 300 --json docs/loop.json

The real loop runs with real images, a log, a state of the size of a ResNet-18's and real checkpoints. The step computes
for some 200 ms on one core and changes nothing but its number, so that Python has the other core, as it has the host
beside an accelerator. A step waits for Python when the one before has ended by the time it is dispatched: that is
looked up at each dispatch.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = '--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1'

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from fixres_jax import models
from fixres_jax.data import drawings, pipeline, sources, transforms
from fixres_jax.machines import sharding
from fixres_jax.training import loop, state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.schedules import make_schedule
from fixres_jax.weights.checkpoint import Checkpoints


def make_step(rounds):
    """Return a jitted step that multiplies matrices, `rounds` times, and counts."""

    def step(now, batch, key):
        start = jnp.full((256, 256), 1e-3, jnp.float32) * batch['label'][0]
        product = jax.lax.fori_loop(0, rounds, lambda _, x: jnp.tanh(x @ x), start)
        number = now.step + 1
        scalars = {'loss': 1.0 / number + 0 * product[0, 0], 'top1': jnp.float32(0), 'gradient_norm': jnp.float32(1)}
        return now.replace(step=number), scalars

    return jax.jit(step, donate_argnums=0)


def make_state(mesh):
    tx = make_sgd(make_schedule('constant', 0.1, num_steps=1), momentum=0.9, weight_decay=0.0)
    return state.create(models.create('resnet18', 1000), tx, '.*', key=jax.random.key(0), mesh=mesh)


def time_step(step_fn, mesh):
    """Return the seconds of a step by itself."""
    now, batch, key = make_state(mesh), sharding.put({'label': np.ones(16, np.int32)}, mesh), jax.random.key(0)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        now, _ = step_fn(now, batch, key)
        jax.block_until_ready(now)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


class Watched:
    """A step that notes the time of each dispatch and whether the previous step has already finished."""

    def __init__(self, step_fn):
        self._step_fn, self._previous = step_fn, None
        self.late, self.times = [], []

    def __call__(self, now, batch, key):
        self.late.append(self._previous is not None and self._previous.is_ready())
        self.times.append(time.perf_counter())
        now, scalars = self._step_fn(now, batch, key)
        self._previous = scalars['loss']
        return now, scalars


def run(step_fn, mesh, args, folder):
    """Run the loop; return the watched step."""
    data = drawings.write(folder / 'data', train=300, val=9, seed=0)
    watched = Watched(step_fn)
    batches = pipeline.train_batches(
        sources.create(str(data), 'train'),
        transforms.make_train(64),
        pipeline.Readers(threads=1),
        batch_size=16,
        seed=0,
        start_step=0,
        num_steps=args.steps,
    )
    with contextlib.closing(Checkpoints(epath.Path(folder), 2)) as checkpoints:
        loop.fit(
            make_state(mesh),
            watched,
            batches,
            loop.Pace(args.steps, 16, 'loop', lambda step: 0.1, 10, args.checkpoint_every_steps),
            key=jax.random.key(0),
            mesh=mesh,
            directory=epath.Path(folder),
            checkpoints=checkpoints,
        )
    return watched


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--seconds', type=float, default=0.2, help='a step, about')
    parser.add_argument('--checkpoint_every_steps', type=int, default=30)
    parser.add_argument('--json')
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    mesh = sharding.make_mesh()
    step_fn = make_step(round(400 * args.seconds / time_step(make_step(400), mesh)))
    seconds = time_step(step_fn, mesh)
    with tempfile.TemporaryDirectory() as folder:
        watched = run(step_fn, mesh, args, epath.Path(folder))
    # A checkpoint of step n is written before the dispatch of step n + 1, which has the number n here.
    numbers = range(5, args.steps)
    saved = [n for n in numbers if n % args.checkpoint_every_steps == 0]
    plain = [n for n in numbers if n % args.checkpoint_every_steps]
    periods = {n: watched.times[n] - watched.times[n - 1] for n in numbers}
    usual = statistics.median(periods[n] for n in plain)
    # The dispatch after a checkpoint comes late by what it cost, and the next one early by a step that was not ahead.
    costs = [periods[n] + periods[n + 1] - 2 * usual for n in saved if n + 1 in periods]
    result = {
        'steps': args.steps,
        'step_alone_ms': 1e3 * seconds,
        'step_in_loop_ms': 1e3 * usual,
        'steps_that_waited_for_python': sum(watched.late[n] for n in plain),
        'of_steps_without_a_checkpoint': len(plain),
        'checkpoint_cost_ms_median': 1e3 * statistics.median(costs),
        'checkpoint_cost_ms_largest': 1e3 * max(costs),
        'checkpoints': len(costs),
        'load_average': os.getloadavg()[0],
        'cpus': os.cpu_count(),
    }
    print(json.dumps(result, indent=2))
    if args.json:
        with open(args.json, 'w') as file:
            file.write(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
