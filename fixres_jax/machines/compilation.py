"""What is said of programs that take long to compile."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from fixres_jax.core.progress import Activity, duration, going_on, log

EVENT = '/jax/core/compile/backend_compile_duration'  # jax tells its begin as a scalar, its end as a duration
BEGIN_SAID_AFTER_SECONDS, END_SAID_AFTER_SECONDS = 3.0, 1.0


class _Compilation(Activity):
    """A program that is being compiled; says so once it has taken some seconds."""

    def __init__(self, program: str):
        outer = going_on()
        super().__init__(f'{outer}: compiling {program}' if outer else f'compiling {program}')
        self._said = False

    def tick(self) -> None:
        if self._said:
            super().tick()
        elif time.monotonic() - self.began >= BEGIN_SAID_AFTER_SECONDS:
            self._said = True
            log.info('%s ...', self.title)

    def done(self, seconds: float) -> None:
        self.__exit__()
        if seconds >= END_SAID_AFTER_SECONDS:
            log.info('%s took %s.', self.title, duration(seconds))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """In the block, say of each program that takes longer than a second that it compiles, and then how long it took."""
    current: dict[int, _Compilation] = {}  # by thread

    def begin(event: str, value: Any, fun_name: str = '', **_: Any) -> None:
        if event == EVENT:
            program = _Compilation(fun_name.removeprefix('jit(').removesuffix(')'))
            current[threading.get_ident()] = program
            program.__enter__()

    def end(event: str, seconds: float, **_: Any) -> None:
        if event == EVENT and (program := current.pop(threading.get_ident(), None)):
            program.done(seconds)

    jax.monitoring.register_scalar_listener(begin)
    jax.monitoring.register_event_duration_secs_listener(end)
    try:
        yield
    finally:
        jax.monitoring.unregister_scalar_listener(begin)
        jax.monitoring.unregister_event_duration_listener(end)
