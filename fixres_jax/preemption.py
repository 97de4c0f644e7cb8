"""The notice that this process must stop soon: SIGTERM here, or on any host of the run."""

import signal

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """Say that the run stopped early because it was told to, with everything saved."""


_noticed = False


def _notice(signum, frame) -> None:
    global _noticed
    _noticed = True


def watch() -> None:
    """Start to listen for SIGTERM; call once, from the main thread."""
    signal.signal(signal.SIGTERM, _notice)


def requested(step: int) -> bool:
    """Say whether to stop now; with several processes, all say the same at the same step."""
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point(step)
    return _noticed
