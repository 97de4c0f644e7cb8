"""What a person sees while something long goes on: a bar on a terminal, plain lines in a log."""

import logging
import sys
import threading
import time

from tqdm import tqdm

log = logging.getLogger('fixres_jax')
LINE_EVERY_SECONDS = 10


def duration(seconds: float) -> str:
    """Write seconds as '1 h 05 min', '3 min 20 s' or '12 s'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f'{minutes // 60} h {minutes % 60:02d} min'
    return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'


class _Lines(logging.StreamHandler):
    """Write lines above the bars of a terminal, not through them."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def show_log() -> None:
    """Write this program's log to the error stream, and of others' only what is amiss."""
    handler = _Lines()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    logging.getLogger().setLevel(logging.ERROR)  # orbax and jax tell a page for every checkpoint
    # Not that a backend is absent, which it tells wherever libtpu is installed, but that a TPU or GPU is not used.
    logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)


class _Clock(logging.Filter):
    """Know when the log last had a line."""

    last = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        self.last = time.monotonic()
        return True


class _Ticker:
    """Let the innermost activity speak every second, from a thread of its own."""

    def __init__(self):
        self._lock = threading.Lock()
        self._activities: list[Activity] = []
        self._stop = threading.Event()

    def begin(self, activity: 'Activity') -> None:
        with self._lock:
            self._activities.append(activity)
            if len(self._activities) == 1:
                self._stop = threading.Event()
                threading.Thread(target=self._run, args=(self._stop,), daemon=True, name='progress').start()

    def end(self, activity: 'Activity') -> None:
        with self._lock:
            if activity in self._activities:
                self._activities.remove(activity)
                if not self._activities:
                    self._stop.set()

    def innermost(self) -> 'Activity | None':
        with self._lock:
            return self._activities[-1] if self._activities else None

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(1.0):
            if activity := self.innermost():
                activity.tick()


_clock, _ticker = _Clock(), _Ticker()
log.addFilter(_clock)


class Activity:
    """Something that goes on, as a context: the innermost one says so when the log has been silent for ten seconds.

    Args:
      title: what goes on, such as 'phase report'.
    """

    def __init__(self, title: str):
        self.title = title
        self.began = time.monotonic()

    def __enter__(self) -> 'Activity':
        _ticker.begin(self)
        return self

    def __exit__(self, *error: object) -> None:
        _ticker.end(self)

    def line(self) -> str:
        """Return what there is to say now."""
        return f'{self.title}: {duration(time.monotonic() - self.began)}'

    def tick(self) -> None:
        """Say it, if nothing else has been said for a while; called every second from another thread."""
        if time.monotonic() - max(_clock.last, self.began) >= LINE_EVERY_SECONDS:
            log.info('%s', self.line())


def going_on() -> str:
    """Return the title of the innermost activity; '' if nothing goes on."""
    activity = _ticker.innermost()
    return activity.title if activity else ''


class Progress(Activity):
    """Show steps done, images per second and time left.

    Args:
      title: what is going on, such as 'train'.
      first: steps done before this process began.
      total: steps of the whole.
      images_per_step: images that one step processes.
    """

    def __init__(self, title: str, first: int, total: int, images_per_step: int):
        super().__init__(title)
        self._first, self._total, self._images = first, total, images_per_step
        self._step, self._note, self._measured_from = first, '', None
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=first, desc=title, unit='step', dynamic_ncols=True, leave=False)
        self.__enter__()

    def update(self, step: int, note: str = '') -> None:
        """Say that `step` steps are done."""
        self._step, self._note = step, note
        if self._measured_from is None:  # The first step holds the compilation, which says nothing about speed.
            self._measured_from, self._first = time.monotonic(), step
        if self._bar is not None:
            self._bar.set_postfix_str(self._join(self._speed(), note), refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            self.tick()

    def line(self) -> str:
        """Return how far it is."""
        rate = self._rate()
        left = duration((self._total - self._step) * self._images / rate) if rate else ''
        spent = '' if rate else duration(time.monotonic() - self.began)
        return self._join(
            f'{self.title}: {self._step}/{self._total}',
            spent,
            self._speed(),
            f'{left} left' if left else '',
            self._note,
        )

    def tick(self) -> None:
        """Keep the bar's clock going, or write a line where there is no bar."""
        if self._bar is None:
            super().tick()
        else:
            self._bar.refresh()

    def close(self) -> None:
        """Take the bar away; say how long it took, if it came to its end."""
        self.__exit__()
        if self._bar is not None:
            self._bar.close()
        if self._step == self._total:
            took = duration(time.monotonic() - self.began)
            log.info(
                '%s', self._join(f'{self.title}: {self._total}/{self._total} in {took}', self._speed(), self._note)
            )

    def _rate(self) -> float:
        """Return images per second; 0.0 while they are not known."""
        done = self._step - self._first
        return done * self._images / max(time.monotonic() - self._measured_from, 1e-9) if done > 0 else 0.0

    def _speed(self) -> str:
        rate = self._rate()
        return f'{rate:.0f} images/s' if rate else ''

    @staticmethod
    def _join(*parts: str) -> str:
        return ', '.join(part for part in parts if part)
