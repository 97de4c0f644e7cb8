"""The notice that this process must stop soon: SIGTERM or Ctrl-C here, or SIGTERM on any host of the run.

The main thread asks `requested` at every step, saves, and raises `Preempted`. That takes too long in two places, for
Python's own handlers run in the main thread only, and there between two of its instructions:

- while the main thread is inside a compilation, in C++. So a second thread hears of signals too, by the file descriptor
  that the signals are written to. It ends the process once nothing has been at stake for a few seconds: no step that is
  not saved, no checkpoint that is being written. Everything else begins again at the next start anyway.
- while the loop waits for images, which may never come. There the handler raises an error that `reading` turns into the
  same end as that of a step.

A run that was stopped is not finished, and its exit code says so. After SIGTERM, which schedulers send, it is 75
(`EX_TEMPFAIL`), by which they start the run again. It is not 143, with which they report a program that they killed
themselves, for example since another one failed. After Ctrl-C it is 130, as of any other program.

A second Ctrl-C ends the process at once. With several processes jax.distributed listens for SIGTERM, so that all of
them stop at the same step; Ctrl-C becomes a SIGTERM then.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

GRACE_SECONDS = 3  # that the main thread has for its own end, with what it has to say
CODES = {signal.SIGTERM: os.EX_TEMPFAIL, signal.SIGINT: 130}
GOES_ON = 'The same command goes on from there.'


class Preempted(Exception):
    """Say that the run stopped early because it was told to, with everything saved."""


class Unread(Exception):
    """Say that the notice came while images were awaited."""


_noticed: int | None = None  # the first signal
_reading = _told = False  # the main thread waits for images; has said how it ends
_at_stake: Callable[[], bool] | None = None
_points = _step = 0  # sync points passed in earlier phases, and the last one of this phase


def _notice(signum, frame) -> None:
    global _noticed
    _noticed = _noticed or signum
    if _reading and not _several():
        raise Unread


def watch() -> None:
    """Start to listen for SIGTERM and Ctrl-C; call once, from the main thread, before anything takes long."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for signum in CODES:
        signal.signal(signum, _notice)
    threading.Thread(target=_listen, args=(heard,), daemon=True, name='signals').start()


def _listen(heard: int) -> None:
    """End the process where the main thread does not, or is told to for a second time."""
    first, quiet_since = None, 0.0
    while True:
        if select.select([heard], [], [], None if first is None else 0.1)[0]:
            for signum in (byte for byte in os.read(heard, 64) if byte in CODES):
                if first is not None and signum == signal.SIGINT:
                    _end('interrupted a second time; what was not saved is lost.', CODES[signal.SIGINT])
                if signum == signal.SIGINT and _several():
                    os.kill(os.getpid(), signal.SIGTERM)
                first, quiet_since = first or signum, time.monotonic()
        if first is None or _several():
            continue
        if _at_stake is not None and _at_stake():
            quiet_since = time.monotonic()
        if time.monotonic() - quiet_since > GRACE_SECONDS:
            _end('' if _told else f'told to stop; nothing that was saved is lost. {GOES_ON}', CODES[first])


def _several() -> bool:
    """Say whether this process has joined others, without importing what may be half imported."""
    state = sys.modules.get('jax._src.distributed')
    return getattr(getattr(state, 'global_state', None), 'client', None) is not None


def _end(message: str, code: int) -> None:
    """End the process, from any thread and whatever the others do."""
    if message:
        os.write(2, f'fixres_jax: {message}\n'.encode())
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(code)


def finish(error: Preempted) -> int:
    """Say where the run stopped, and end the process or return its exit code.

    A process alone ends here: threads that still wait for images would hold it up. One of several ends with the others.
    """
    global _told
    _told = True
    print(f'fixres_jax: told to stop; {error}. {GOES_ON}', file=sys.stderr, flush=True)
    code = CODES[_noticed or signal.SIGTERM]
    if not _several():
        sys.stdout.flush()
        _end('', code)
    return code


@contextlib.contextmanager
def stake(unsaved: Callable[[], bool]) -> Iterator[None]:
    """In the block, keep the process while `unsaved`, called from another thread, says that work would be lost."""
    global _at_stake
    _at_stake = unsaved
    try:
        yield
    finally:
        _at_stake = None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """In the block, a notice raises `Unread`, as the images that are awaited may never come."""
    global _reading
    _reading = True
    try:
        if _noticed is not None and not _several():
            raise Unread
        yield
    finally:
        _reading = False


def requested(step: int) -> bool:
    """Say whether to stop now; with several processes, all say the same at the same step.

    `step` grows from call to call in a phase, and may begin again in the next.
    """
    import jax
    from jax.experimental import multihost_utils

    global _points, _step
    if jax.process_count() == 1:
        return _noticed is not None
    if step <= _step:
        _points += _step
    _step = step
    return multihost_utils.reached_preemption_sync_point(_points + step)
