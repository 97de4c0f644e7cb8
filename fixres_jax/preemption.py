"""The notice that this process must stop soon: SIGTERM here, or on any host of the run."""

import signal

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """Say that the run stopped early because it was told to, with everything saved."""


_noticed = False
_points = _step = 0  # sync points passed in earlier phases, and the last one of this phase


def _notice(signum, frame) -> None:
    global _noticed
    _noticed = True


def watch() -> None:
    """Start to listen for SIGTERM; call once, from the main thread."""
    if jax.process_count() == 1:  # With more, jax.distributed listens.
        signal.signal(signal.SIGTERM, _notice)


def requested(step: int) -> bool:
    """Say whether to stop now; with several processes, all say the same at the same step.

    `step` grows from call to call in a phase, and may begin again in the next.
    """
    global _points, _step
    if jax.process_count() == 1:
        return _noticed
    if step <= _step:
        _points += _step
    _step = step
    return multihost_utils.reached_preemption_sync_point(_points + step)
