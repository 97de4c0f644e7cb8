"""Equalization: bring pooled activations at the test resolution to their distribution at the training resolution.

A parametric map after the average pool, from two fits of a Frechet distribution; no labels and no training. The
distribution is the generalized extreme value one, F(x) = exp(-(1 + shape (x - location) / scale)^(-1/shape)), whose
tail is Frechet's for a positive shape. Fitted by L-moments, in closed form: Hosking, "L-moments", J. R. Stat. Soc. B,
1990.

Source: section 4.1 of the paper, which gives no code; its authors say that the gain is limited.
"""

import dataclasses
import math

import numpy as np

from fixres_jax.core.errors import UsageError

SHAPE = 0.3  # A common shape for both resolutions makes the map affine. This value is ours, not the paper's.
SHAPES = (-0.9, 0.9)  # where `fit` looks for a free shape; from 1 on there is no mean
_GUMBEL = 1e-8  # shapes nearer to zero than this are taken as this: the formulas divide by it


@dataclasses.dataclass(frozen=True)
class Frechet:
    """A generalized extreme value distribution."""

    location: float
    scale: float
    shape: float

    def cdf(self, values: np.ndarray) -> np.ndarray:
        """Return the share of the distribution below each value, float64[...]."""
        return np.exp(-self._exponent(values))

    def quantile(self, shares: np.ndarray) -> np.ndarray:
        """Return the values that the given shares, float in (0, 1), lie below."""
        return self._value(-np.log(np.asarray(shares, np.float64)))

    def _exponent(self, values: np.ndarray) -> np.ndarray:
        base = 1 + self.shape * (np.asarray(values, np.float64) - self.location) / self.scale
        with np.errstate(divide='ignore'):  # Outside the support the exponent is infinite, or zero.
            return np.exp(-np.log(np.maximum(base, 0)) / self.shape)

    def _value(self, exponent: np.ndarray) -> np.ndarray:
        return self.location + self.scale * np.expm1(-self.shape * np.log(exponent)) / self.shape


def fit(values: np.ndarray, shape: float | None = SHAPE) -> Frechet:
    """Fit the distribution to a sample by its L-moments.

    Args:
      values: float[...], at least 10; pooled activations of any shape.
      shape: kept at this value, or None to fit it too.

    Returns:
      The distribution with the sample's first two L-moments (three with a free shape).

    Raises:
      UsageError: when values are too few, constant or not finite, or the shape is 1 or more.
    """
    values = np.sort(np.asarray(values, np.float64), axis=None)
    if len(values) < 10:
        raise UsageError(f'{len(values)} activations are too few to fit a distribution: give at least 10.')
    if not np.isfinite(values[[0, -1]]).all():
        raise UsageError('Some activations are not finite: the network that made them has diverged.')
    if values[0] == values[-1]:
        raise UsageError(f'All {len(values)} activations are {values[0]:g}: a constant has no distribution to fit.')
    if shape is not None and not -1 < shape < 1:
        raise UsageError(f'The shape is {shape}; expected -1 to 1, where the mean exists.')
    mean, width, skew = _l_moments(values)
    if shape is None:
        from scipy import optimize  # takes a fifth of a second to import, which the start of a run need not wait for

        low, high = (_skew(bound) for bound in SHAPES)
        shape = optimize.brentq(lambda x: _skew(x) - np.clip(skew, low, high), *SHAPES)
    shape = math.copysign(max(abs(shape), _GUMBEL), shape)
    # With gamma the mean of exponent^-shape: E = location + scale (gamma - 1) / shape.
    gamma = math.gamma(1 - shape)
    scale = width * shape / (gamma * math.expm1(shape * math.log(2)))
    return Frechet(mean - scale * (gamma - 1) / shape, scale, shape)


def _l_moments(values: np.ndarray) -> tuple[float, float, float]:
    """Return the first two L-moments of a sorted sample, and the third over the second."""
    count = len(values)
    rank = np.arange(count)
    b0, b1 = values.mean(), (values * rank).mean() / (count - 1)
    b2 = (values * rank * (rank - 1)).mean() / ((count - 1) * (count - 2))
    second = 2 * b1 - b0
    return float(b0), float(second), float((6 * b2 - 6 * b1 + b0) / second)


def _skew(shape: float) -> float:
    """Return the third L-moment over the second of a shape; it rises with the shape."""
    shape = math.copysign(max(abs(shape), _GUMBEL), shape)
    return 2 * math.expm1(shape * math.log(3)) / math.expm1(shape * math.log(2)) - 3


def equalize(values: np.ndarray, source: Frechet, target: Frechet) -> np.ndarray:
    """Map values so that a sample of `source` becomes one of `target`.

    Args:
      values: float[...], activations.
      source: their distribution, at the test resolution.
      target: the distribution that the classifier knows, at the training resolution.

    Returns:
      values mapped by a rising function, of their own dtype: affine when the two shapes are equal.
    """
    values = np.asarray(values)
    if source.shape == target.shape:
        gain = target.scale / source.scale
        mapped = target.location + gain * (values.astype(np.float64) - source.location)
    else:
        # Values beyond the source's support map to the end of the target's, held within what float64 can tell.
        mapped = target._value(np.clip(source._exponent(values), 1e-300, 700.0))
    return mapped.astype(values.dtype)


def distance(values: np.ndarray, distribution: Frechet) -> float:
    """Return the largest difference between the sample's and the distribution's cumulative shares, in [0, 1]."""
    values = np.sort(np.asarray(values, np.float64), axis=None)
    share = np.arange(len(values) + 1) / len(values)
    cdf = distribution.cdf(values)
    return float(max((share[1:] - cdf).max(), (cdf - share[:-1]).max()))
