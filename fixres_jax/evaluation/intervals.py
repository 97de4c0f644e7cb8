"""Intervals of accuracies: of one alone, and of the difference of two on the same images."""

import math

import numpy as np

Z95 = 1.959964  # two-sided 95 % quantile of the normal distribution

SAME = {'difference': 0.0, 'low': 0.0, 'high': 0.0}  # of a network from itself: nothing is left to chance


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion, as fractions.

    >>> low, high = wilson(80, 100)
    >>> round(low, 4), round(high, 4)
    (0.7112, 0.8666)
    """
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

    >>> change = paired(30, 10, 1000)
    >>> {name: round(value, 2) for name, value in change.items()}
    {'difference': 2.0, 'low': 0.73, 'high': 3.26}
    """
    n = count + 2
    p, q = (only_first + 1) / n, (only_second + 1) / n
    half = Z95 * math.sqrt((p + q - (p - q) ** 2) / n)
    return {
        'difference': 100 * (only_first - only_second) / count,
        'low': 100 * max(-1.0, p - q - half),
        'high': 100 * min(1.0, p - q + half),
    }


def of_means(differences: np.ndarray) -> dict[str, float]:
    """Compare two predictors on several versions of the same examples.

    Args:
      differences: float[N], an example's mean over its versions of first right minus second right, as -1 to 1.

    Returns:
      What `paired` returns: difference in points, and its 95 % interval by the spread over the examples. The versions
      of one example are no further examples, so they do not narrow it as such would.

    >>> change = of_means(np.array([0.5, -0.5, 0.0, 1.0] * 25))
    >>> {name: round(value, 2) for name, value in change.items()}
    {'difference': 25.0, 'low': 13.99, 'high': 36.01}
    """
    mean, half = float(np.mean(differences)), Z95 * float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    difference = round(100 * mean, 9) + 0.0  # Means of thirds that cancel are no 0 otherwise.
    return {'difference': difference, 'low': 100 * max(-1.0, mean - half), 'high': 100 * min(1.0, mean + half)}
