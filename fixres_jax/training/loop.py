"""The training loop: dispatch a step, read the numbers of the one before, log, save, stop when told to."""

import dataclasses
import math
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from fixres_jax.core.errors import RunError
from fixres_jax.core.progress import Progress, log
from fixres_jax.machines import preemption, processes, sharding
from fixres_jax.models import Variables
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
      resolutions: first step -> pixels of the images from there on, for the log; {} where all are of one size.
      tracker: where the numbers go besides `metrics.jsonl`, see `metrics_log.TRACKERS`.
      validate: (variables) -> numbers of held-out images for the log, {'validation_top1', 'validation_loss'}, or None
        when it was told to stop.
      validate_every_steps: steps between two of its calls; the last step always has one.
    """

    num_steps: int
    batch_size: int
    title: str
    schedule: optax.Schedule
    log_every_steps: int
    checkpoint_every_steps: int
    resolutions: Mapping[int, int] = dataclasses.field(default_factory=dict)
    tracker: str = 'tensorboard'
    validate: Callable[[Variables], dict[str, float] | None] | None = None
    validate_every_steps: int = 1

    def resolution(self, step: int) -> int | None:
        """Return the pixels of a step's images, where they change on the way."""
        return max(((first, size) for first, size in self.resolutions.items() if first <= step), default=(0, None))[1]


def _saves(step: int, pace: Pace) -> bool:
    return step % pace.checkpoint_every_steps == 0 or step == pace.num_steps


def _validates(step: int, pace: Pace) -> bool:
    return pace.validate is not None and (step % pace.validate_every_steps == 0 or step == pace.num_steps)


class _Reader:
    """Bring the numbers of past steps to the host, refuse one that is not finite, write a line per window."""

    def __init__(self, pace: Pace, writer: metrics_log.MetricsLog | None, progress: Progress, began: float):
        self._pace, self._writer, self._progress, self._began = pace, writer, progress, began
        self._unread: list[tuple[int, dict[str, jax.Array]]] = []
        self._window: list[dict[str, Any]] = []
        self._validation = ''

    def add(self, step: int, scalars: dict[str, jax.Array]) -> None:
        """Take the numbers of a step that was just dispatched."""
        self._unread.append((step, scalars))

    def read(self, leave: int) -> int | None:
        """Read all but the last `leave` steps; return the first whose loss or gradient is not finite, if any.

        Read with leave=0, the last step waits for its line until `flush`.
        """
        while len(self._unread) > leave:
            step, scalars = self._unread.pop(0)
            self._window.append(jax.device_get(scalars))
            if not all(math.isfinite(value) for value in self._window[-1].values()):
                return step
            size = self._pace.resolution(step - 1)
            at = f' at {size}' if size else ''
            self._progress.update(step, f'loss {self._window[-1]["loss"]:.3f}{at}{self._validation}')
            if step % self._pace.log_every_steps == 0 and (leave or self._unread):
                self.flush(step)
        return None

    def validated(self, step: int, found: dict[str, float]) -> None:
        """Say what a validation has found; it joins the line of its step."""
        percent = 100 * found['validation_top1']
        self._validation = f', validation top-1 {percent:.2f} %'
        log.info(
            '%s: step %d of %d, validation top-1 %.2f %%, loss %.3f.',
            *(self._pace.title, step, self._pace.num_steps, percent, found['validation_loss']),
        )
        self._progress.update(step, f'loss {self._window[-1]["loss"]:.3f}{self._validation}')
        self.flush(step, found)

    def flush(self, step: int, found: Mapping[str, float] = types.MappingProxyType({})) -> None:
        """Write the means of the steps since the last line, and what else was found."""
        if self._writer and self._window:
            means = {name: float(np.mean([values[name] for values in self._window])) for name in self._window[0]}
            if size := self._pace.resolution(step - 1):
                means['resolution'] = size
            seconds = time.monotonic() - self._began
            self._writer.write(step, **means, **found, lr=float(self._pace.schedule(step - 1)), seconds=seconds)
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
    writer = metrics_log.MetricsLog(directory, first, pace.tracker) if processes.is_host0() else None
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
                validate = not stop and _validates(step, pace)
                # Nothing is saved before its loss and its gradient are known to be finite.
                bad_step = reader.read(leave=0 if stop or validate or _saves(step, pace) else 1)
                if bad_step:
                    raise RunError(
                        f'The loss or its gradient is not finite at step {bad_step} of {pace.num_steps} of phase '
                        f'{pace.title}. The last good checkpoint is {_last(checkpoints)}. Lower the learning rate or '
                        'lengthen the warm-up, in another workdir.'
                    )
                if validate:
                    found = pace.validate(state.variables)
                    if found is not None:
                        reader.validated(step, found)
                    stop = found is None and step < pace.num_steps
                if step > saved and (stop or _saves(step, pace)):
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
