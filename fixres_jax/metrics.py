"""Losses, hits, their sums and intervals, and the log of a run's numbers."""

import functools
import io
import json
import math
from collections.abc import Mapping
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from fixres_jax import files

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Return the cross entropy of each example.

    Args:
      logits: float32[B, K].
      labels: int32[B].
      label_smoothing: share of the target spread evenly over all K classes, as torch does it.

    Returns:
      float32[B].
    """
    if not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def hits(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Say for each example whether its label is among the `k` highest logits.

    The label's rank counts the classes with a higher logit, and those of equal logit and lower index, so that a network
    that gives all classes the same logit is right for one class only.

    Args:
      logits: float32[B, K].
      labels: int32[B].
      k: places that count.

    Returns:
      bool[B].
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    earlier = jnp.arange(logits.shape[-1])[None, :] < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & earlier), axis=-1)
    return (rank < k) & jnp.isfinite(own[:, 0])


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion, as fractions."""
    p, z2 = successes / count, Z95**2
    centre = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 * math.sqrt(p * (1 - p) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    # At 0 and 1 the interval ends there; rounding must not put it a hair inside.
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))


def paired(only_first: int, only_second: int, count: int) -> dict[str, float]:
    """Compare two predictors on the same examples.

    Args:
      only_first: examples that only the first got right.
      only_second: examples that only the second got right.
      count: all examples.

    Returns:
      difference: first minus second, in points (hundredths).
      low, high: its 95 % interval, in points. Source: Bonett and Price, "Adjusted Wald confidence interval for a
        difference of binomial proportions based on paired data", 2012.
    """
    n = count + 2
    p, q = (only_first + 1) / n, (only_second + 1) / n
    half = Z95 * math.sqrt((p + q - (p - q) ** 2) / n)
    return {
        'difference': 100 * (only_first - only_second) / count,
        'low': 100 * max(-1.0, p - q - half),
        'high': 100 * min(1.0, p - q + half),
    }


def write_json(path: epath.Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    files.write(path, json.dumps(value, indent=2) + '\n')


def write_arrays(path: epath.Path, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as an .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    files.write(path, buffer.getvalue())


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file; none when it is not there."""
    path = epath.Path(path)
    return dict(np.load(io.BytesIO(path.read_bytes()))) if path.exists() else {}


class MetricsLog:
    """Keep a run's numbers: `metrics.jsonl` for programs and TensorBoard event files for those who watch.

    A run that goes on from step n drops the lines after n first, so each step stands in the file once.
    """

    def __init__(self, directory: epath.Path, start_step: int):
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / 'metrics.jsonl'
        kept = [line for line in read_metrics(self._path) if line['step'] <= start_step]
        files.write(self._path, ''.join(json.dumps(line) + '\n' for line in kept))
        self._file = self._path.open('a')
        # The loop waits neither for TensorBoard's import, which the first line starts, nor for its files.
        self._background = futures.ThreadPoolExecutor(1)
        self._board = functools.cache(lambda: _open_board(directory / 'tensorboard', start_step + 1))

    def write(self, step: int, **values: float) -> None:
        """Add one line; it is in the file when this returns."""
        self._file.write(json.dumps({'step': step, **values}) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._background.submit(lambda *point: self._board().add_scalar(*point), name, value, step)

    def close(self) -> None:
        """Finish both files."""
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
