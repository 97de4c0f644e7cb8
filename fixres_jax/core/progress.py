"""What a person sees while something long goes on: a bar on a terminal, plain lines in a log."""

import logging
import sys
import time

from absl import logging as absl_logging
from tqdm import tqdm

log = logging.getLogger('fixres_jax')
LINE_EVERY_SECONDS = 10


def duration(seconds: float) -> str:
    """Write seconds as '1 h 05 min', '3 min 20 s' or '12 s'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f'{minutes // 60} h {minutes % 60:02d} min'
    return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'


def show_log(everything: bool = True) -> None:
    """Print the log on the error stream, with the time; of all but the first host's process the warnings alone."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO if everything else logging.WARNING)
    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax and jax tell a page for every checkpoint


class Progress:
    """Show steps done, images per second and time left.

    Args:
      title: what is going on, such as 'train'.
      first: steps done before this process began.
      total: steps of the whole.
      images_per_step: images that one step processes.
    """

    def __init__(self, title: str, first: int, total: int, images_per_step: int):
        self._title, self._first, self._total, self._images = title, first, total, images_per_step
        self._begin = self._last_line = None
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=first, desc=title, unit='step', dynamic_ncols=True, leave=False)

    def update(self, step: int, note: str = '') -> None:
        """Say that `step` steps are done."""
        now = time.monotonic()
        if self._begin is None:  # The first step holds the compilation, which says nothing about speed.
            self._begin = self._last_line = now
            self._first = step
            if step < self._total:
                if self._bar is not None:
                    self._bar.update(step - self._bar.n)
                else:
                    log.info('%s: %d/%d %s', self._title, step, self._total, note)
            return
        rate = (step - self._first) * self._images / max(now - self._begin, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(f'{rate:.0f} images/s {note}', refresh=False)
            self._bar.update(step - self._bar.n)
        elif now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            left = (self._total - step) * self._images / max(rate, 1e-9)
            text = f'{self._title}: {step}/{self._total}, {rate:.0f} images/s, {duration(left)} left'
            log.info('%s%s', text, f', {note}' if note else '')

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
