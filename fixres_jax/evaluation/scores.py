"""The score of saved outputs: accuracy with its interval, cross entropy, calibration, and two of them compared."""

from typing import Any

import numpy as np
from etils import epath

from fixres_jax.core import losses
from fixres_jax.core.errors import UsageError
from fixres_jax.evaluation import intervals, outputs

CALIBRATION_BINS = 15  # Guo et al., "On Calibration of Modern Neural Networks", 2017


def _hits(labels: np.ndarray, softmax: np.ndarray, k: int) -> np.ndarray:
    return np.asarray(losses.hits(softmax, labels, k))


def score(labels: np.ndarray, softmax: np.ndarray) -> dict[str, Any]:
    """Score saved softmax.

    Args:
      labels: int[N].
      softmax: float[N, K].

    Returns:
      {'count', 'top1', 'top1_interval', 'top5', 'top5_interval' in percent, 'loss' in nats, 'ece': the expected
      calibration error in percent}.
    """
    result: dict[str, Any] = {'count': len(labels)}
    for k in (1, 5):
        right = int(_hits(labels, softmax, k).sum())
        result[f'top{k}'] = 100 * right / len(labels)
        result[f'top{k}_interval'] = tuple(100 * edge for edge in intervals.wilson(right, len(labels)))
    of_label = np.take_along_axis(softmax, labels[:, None], axis=1)[:, 0].astype(np.float64)
    result['loss'] = float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())
    return result | {'ece': 100 * calibration_error(labels, softmax)}


def calibration_error(labels: np.ndarray, softmax: np.ndarray) -> float:
    """Return the expected calibration error, in [0, 1]: how far confidence is from accuracy, over equal bins."""
    confidence, right = softmax.max(axis=1).astype(np.float64), _hits(labels, softmax, 1)
    place = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(place, right - confidence, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def compare(first: epath.PathLike, second: epath.PathLike) -> dict[str, float]:
    """Return top-1 of the first folder minus that of the second, in points, with its paired 95 % interval."""
    (labels, mine), (others, theirs) = outputs.load(first), outputs.load(second)
    if not np.array_equal(labels, others):
        raise UsageError(f'{first} and {second} are not of the same images: their labels differ.')
    a, b = _hits(labels, mine, 1), _hits(labels, theirs, 1)
    return intervals.paired(int((a & ~b).sum()), int((b & ~a).sum()), len(labels))
