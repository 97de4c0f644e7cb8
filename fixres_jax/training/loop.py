"""The training loop: dispatch a step, read the numbers of the one before, log, save, stop when told to."""

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from fixres_jax.core.errors import RunError
from fixres_jax.core.progress import Progress
from fixres_jax.machines import preemption, processes, sharding
from fixres_jax.training import metrics_log
from fixres_jax.training.state import TrainState
from fixres_jax.training.step import TrainStep
from fixres_jax.weights.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Pace:
    """Say how long a run is and how often it writes.

    Attributes:
      num_steps: steps of the whole run.
      batch_size: global batch, for images per second.
      title: what the progress bar says.
      schedule: the learning rate, for the log.
      log_every_steps: steps averaged into one line of the log.
      checkpoint_every_steps: steps between two checkpoints; the last step always has one.
    """

    num_steps: int
    batch_size: int
    title: str
    schedule: optax.Schedule
    log_every_steps: int
    checkpoint_every_steps: int


def _saves(step: int, pace: Pace) -> bool:
    return step % pace.checkpoint_every_steps == 0 or step == pace.num_steps


class _Reader:
    """Bring the numbers of past steps to the host, refuse one that is not finite, write a line per window."""

    def __init__(self, pace: Pace, writer: metrics_log.MetricsLog | None, progress: Progress, began: float):
        self._pace, self._writer, self._progress, self._began = pace, writer, progress, began
        self._unread: list[tuple[int, dict[str, jax.Array]]] = []
        self._window: list[dict[str, Any]] = []

    def add(self, step: int, scalars: dict[str, jax.Array]) -> None:
        """Take the numbers of a step that was just dispatched."""
        self._unread.append((step, scalars))

    def read(self, leave: int) -> int | None:
        """Read all but the last `leave` steps; return the first whose loss or gradient is not finite, if any."""
        while len(self._unread) > leave:
            step, scalars = self._unread.pop(0)
            self._window.append(jax.device_get(scalars))
            if not all(math.isfinite(value) for value in self._window[-1].values()):
                return step
            self._progress.update(step, f'loss {self._window[-1]["loss"]:.3f}')
            if step % self._pace.log_every_steps == 0 or _saves(step, self._pace):
                self.flush(step)
        return None

    def flush(self, step: int) -> None:
        """Write the means of the steps since the last line."""
        if self._writer and self._window:
            means = {name: float(np.mean([values[name] for values in self._window])) for name in self._window[0]}
            seconds = time.monotonic() - self._began
            self._writer.write(step, **means, lr=float(self._pace.schedule(step - 1)), seconds=seconds)
        self._window.clear()


def fit(
    state: TrainState,
    step_fn: TrainStep,
    batches: Iterator[dict[str, Any]],
    pace: Pace,
    *,
    key: jax.Array,
    mesh: Mesh,
    directory: epath.Path,
    checkpoints: Checkpoints,
) -> TrainState:
    """Train to the last step, logging and saving on the way.

    The numbers of a step are read after the next one is dispatched, so the devices never wait for Python.

    Args:
      state: where to begin; `batches` must begin at the same step.
      step_fn: from `make_train_step`.
      batches: this host's batches, up to the last step.
      pace: length and intervals.
      key: the run's random key.
      mesh: the devices.
      directory: where `metrics.jsonl` goes.
      checkpoints: where states go.

    Returns:
      The last state.

    Raises:
      RunError: when the loss or its gradient is not finite, naming the step and the last good checkpoint.
      Preempted: after a SIGTERM or Ctrl-C, with the state saved.
    """
    first = int(state.step)
    writer = metrics_log.MetricsLog(directory, first) if processes.is_host0() else None
    progress = Progress(pace.title, first, pace.num_steps, pace.batch_size)
    began = time.monotonic() - metrics_log.seconds_until(directory / 'metrics.jsonl', first)
    reader = _Reader(pace, writer, progress, began)
    on_device = sharding.prefetch(batches, mesh)
    step = saved = first
    try:
        with preemption.stake(lambda: step > saved or checkpoints.saving):
            while step < pace.num_steps:
                batch = _read(on_device)
                if batch is not None:
                    state, scalars = step_fn(state, {'image': batch['image'], 'label': batch['label']}, key)
                    step += 1
                    reader.add(step, scalars)
                stop = batch is None or (preemption.requested(step) and step < pace.num_steps)
                save = step > saved and (stop or _saves(step, pace))
                # Nothing is saved before its loss and its gradient are known to be finite.
                bad_step = reader.read(leave=0 if save else 1)
                if bad_step:
                    raise RunError(
                        f'The loss or its gradient is not finite at step {bad_step} of {pace.num_steps} of phase '
                        f'{pace.title}. The last good checkpoint is {_last(checkpoints)}. Lower the learning rate or '
                        'lengthen the warm-up, in another workdir.'
                    )
                if save:
                    reader.flush(step)
                    if writer:
                        writer.save()
                    checkpoints.save(step, state.items)
                    saved = step
                if stop:
                    checkpoints.wait()
                    raise preemption.Preempted(f'stopped at step {step} of {pace.num_steps} of phase {pace.title}')
            checkpoints.wait()
        return state
    finally:
        progress.close()
        if writer:
            writer.close()


def _read(batches: Iterator[tuple[Any, Any]]) -> dict[str, jax.Array] | None:
    """Return the next batch on the devices; None after the notice to stop, as it may never come."""
    try:
        with preemption.reading():
            return next(batches)[1]
    except preemption.Unread:
        return None


def _last(checkpoints: Checkpoints) -> str:
    checkpoints.wait()
    steps = checkpoints.steps
    return f'step {steps[-1]} in {checkpoints.directory}' if steps else 'none: no step had been saved'
