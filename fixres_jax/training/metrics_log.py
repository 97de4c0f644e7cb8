"""The log of a run's numbers: a line of JSON per window of steps, and TensorBoard event files."""

import functools
import json
from concurrent import futures
from typing import Any

from etils import epath

from fixres_jax.core import files


class MetricsLog:
    """Keep a run's numbers: `metrics.jsonl` for programs and TensorBoard event files for those who watch.

    A run that goes on from step n drops the lines after n first, so each step stands in the file once. A file in a
    bucket cannot be added to and is written whole, by `save`.
    """

    def __init__(self, directory: epath.Path, start_step: int):
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / 'metrics.jsonl'
        kept = [line for line in read_metrics(self._path) if line['step'] <= start_step]
        self._lines = [json.dumps(line) + '\n' for line in kept]
        files.write(self._path, ''.join(self._lines))
        self._file = None if '://' in str(directory) else self._path.open('a')
        # The loop waits neither for TensorBoard's import, which the first line starts, nor for its files.
        self._background = futures.ThreadPoolExecutor(1)
        self._board = functools.cache(lambda: _open_board(directory / 'tensorboard', start_step + 1))

    def write(self, step: int, **values: float) -> None:
        """Add one line; it is in a file on disk when this returns."""
        line = json.dumps({'step': step, **values}) + '\n'
        if self._file:
            self._file.write(line)
            self._file.flush()
        else:
            self._lines.append(line)
        for name, value in values.items():
            self._background.submit(lambda *point: self._board().add_scalar(*point), name, value, step)

    def save(self) -> None:
        """Have all lines in the file; call before a checkpoint, as a run that goes on from it needs those before it."""
        if not self._file:
            files.write(self._path, ''.join(self._lines))

    def close(self) -> None:
        """Finish both files."""
        self.save()
        if self._file:
            self._file.close()
        self._background.submit(lambda: self._board().close()).result()
        self._background.shutdown()


def _open_board(directory: epath.Path, purge_step: int) -> Any:
    from tensorboardX import SummaryWriter  # only the process that writes the log needs it

    return SummaryWriter(str(directory), purge_step=purge_step)


def read_metrics(path: epath.Path) -> list[dict[str, float]]:
    """Return the lines of a `metrics.jsonl`; a last line cut short by a kill is left out, as is a missing file."""
    path = epath.Path(path)
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def seconds_until(path: epath.Path, step: int) -> float:
    """Return the seconds that a `metrics.jsonl` says a run had taken when it stood at a step; 0.0 at its start."""
    return max((line['seconds'] for line in read_metrics(path) if line['step'] <= step), default=0.0)
