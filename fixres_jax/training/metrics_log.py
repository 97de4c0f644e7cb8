"""The log of a run's numbers: a line of JSON per window of steps, and a tracker for those who watch."""

import functools
import hashlib
import importlib.util
import json
from concurrent import futures
from typing import Any

from etils import epath

from fixres_jax.core import files
from fixres_jax.core.errors import UsageError


class MetricsLog:
    """Keep a run's numbers: `metrics.jsonl` for programs and a tracker for those who watch.

    A run that goes on from step n drops the lines after n first, so each step stands in the file once. A file in a
    bucket cannot be added to and is written whole, by `save`.

    Args:
      directory: of the phase.
      start_step: where it begins or goes on.
      tracker: a name of TRACKERS.
    """

    def __init__(self, directory: epath.Path, start_step: int, tracker: str = 'tensorboard'):
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / 'metrics.jsonl'
        kept = [line for line in read_metrics(self._path) if line['step'] <= start_step]
        self._lines = [json.dumps(line) + '\n' for line in kept]
        files.write(self._path, ''.join(self._lines))
        self._file = None if '://' in str(directory) else self._path.open('a')
        # The loop waits neither for a tracker's import, which the first line starts, nor for what it writes or sends.
        self._background = futures.ThreadPoolExecutor(1)
        self._tracker = functools.cache(lambda: TRACKERS[tracker](directory, start_step + 1))
        if tracker == 'wandb':
            self._tracker()  # It may ask for a login, or fail without one.

    def write(self, step: int, **values: float) -> None:
        """Add one line; it is in a file on disk when this returns."""
        line = json.dumps({'step': step, **values}) + '\n'
        if self._file:
            self._file.write(line)
            self._file.flush()
        else:
            self._lines.append(line)
        self._background.submit(lambda: self._tracker().write(step, values))

    def save(self) -> None:
        """Have all lines in the file; call before a checkpoint, as a run that goes on from it needs those before it."""
        if not self._file:
            files.write(self._path, ''.join(self._lines))

    def close(self) -> None:
        """Finish both."""
        self.save()
        if self._file:
            self._file.close()
        self._background.submit(lambda: self._tracker().close()).result()
        self._background.shutdown()


class _TensorBoard:
    """Event files in `tensorboard/`."""

    def __init__(self, directory: epath.Path, first_step: int):
        from tensorboardX import SummaryWriter  # only the process that writes the log needs it

        self._board = SummaryWriter(str(directory / 'tensorboard'), purge_step=first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class _WeightsAndBiases:
    """A run of Weights & Biases for each phase of a workdir, grouped by the workdir; it goes on where the phase does.

    WANDB_PROJECT, WANDB_MODE=offline and its other variables are W&B's own. Its files are in `wandb/`.
    """

    def __init__(self, directory: epath.Path, first_step: int):
        import wandb

        workdir, place = directory.parent, str(directory.resolve())
        config = files.read_json(workdir / 'config.json') or {}
        try:
            self._run = wandb.init(
                dir=None if '://' in place else place,
                name=f'{workdir.name}/{directory.name}',
                group=workdir.name,
                id=hashlib.sha256(place.encode()).hexdigest()[:16],
                resume='allow',
                config=config,
                settings=wandb.Settings(console='off', silent=True),
            )
        except wandb.Error as error:
            raise UsageError(
                f'tracker=wandb did not begin: {" ".join(str(error).split())} Log in with `wandb login`, or set '
                'WANDB_MODE=offline and send the numbers later with `wandb sync`.'
            ) from error
        # Steps as an axis of their own: W&B's counter only grows, and a run may go back to its last checkpoint.
        self._run.define_metric('*', step_metric='training_step')

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log({'training_step': step, **values})

    def close(self) -> None:
        self._run.finish()


class _Nothing:
    """No tracker."""

    def __init__(self, directory: epath.Path, first_step: int):
        pass

    def write(self, step: int, values: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


TRACKERS: dict[str, Any] = {'tensorboard': _TensorBoard, 'wandb': _WeightsAndBiases, 'none': _Nothing}


def check_tracker(name: str) -> None:
    """Raise UsageError for a tracker whose package is not installed."""
    if name == 'wandb' and importlib.util.find_spec('wandb') is None:
        raise UsageError(
            'tracker=wandb needs a package that is not installed: pip install "fixres-jax[wandb]", or give '
            '--config.tracker=tensorboard.'
        )


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
