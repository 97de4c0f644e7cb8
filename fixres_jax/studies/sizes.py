"""Apparent sizes of objects: which part of an image a crop shows, and how large that makes what is in it.

The region of a crop (the paper's region of classification) is the rectangle of the image that becomes the network's
square input. Its zoom is that square's side over the region's, the region's taken as the root of its area: all zooms
here are for an input of side one, so a resolution multiplies them. Apparent size is the zoom in the test over the
zoom in training, at equal resolutions.

Source: section 3 of the paper.
"""

import dataclasses
import math
import random
from collections.abc import Iterator

import numpy as np
from etils import epath
from PIL import Image

from fixres_jax.core import files
from fixres_jax.core.errors import UsageError
from fixres_jax.data.crops import BOXES, TENSORFLOW_MIN_COVERED, TestCrop, TrainCrop
from fixres_jax.data.folders import IMAGE_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean, standard deviation and the 5, 50 and 95 % points of a distribution."""

    mean: float
    std: float
    low: float
    median: float
    high: float


def read(folder: epath.PathLike, limit: int = 10_000, seed: int = 0) -> np.ndarray:
    """Return the sizes of the images below a folder, at any depth, from their headers.

    Args:
      folder: local or gs://.
      limit: read that many at most, chosen at random.
      seed: of that choice.

    Returns:
      int64[N, 2], width and height in pixels.

    Raises:
      UsageError: when the folder has no image, or one is not to be read.
    """
    root = files.reachable(folder)
    if not root.is_dir():
        raise UsageError(f'There is no folder {root}.')
    paths = sorted(_images(root))
    if not paths:
        raise UsageError(f'{root} holds no images ({", ".join(IMAGE_SUFFIXES)}).')
    return np.array([_read_size(path) for path in random.Random(seed).sample(paths, min(limit, len(paths)))])


def _images(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield path
        elif path.is_dir():
            yield from _images(path)


def _read_size(path: epath.Path) -> tuple[int, int]:
    try:
        with path.open('rb') as file, Image.open(file) as image:
            return image.size
    except OSError as error:
        raise UsageError(f'{path} cannot be read as an image: {error}.') from error


def train_regions(
    sizes: np.ndarray, crop: TrainCrop, *, num_draws: int = 32, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw training crops with the sampler that training uses.

    Args:
      sizes: int[N, 2], width and height.
      crop: how crops are drawn.
      num_draws: crops of each image.
      seed: of the draws.

    Returns:
      (areas as fractions of the image's, zooms), float64[N, num_draws].
    """
    sizes = _check_sizes(sizes)
    if crop.crop == 'resize':  # Every place of the crop shows as much.
        areas, zooms = test_regions(sizes, TestCrop(crop.resize_ratio))
        return np.tile(areas[:, None], num_draws), np.tile(zooms[:, None], num_draws)
    rng, draw = np.random.default_rng(seed), BOXES[crop.crop]
    boxes = [[draw(*size, crop.scale, crop.ratio, rng) for _ in range(num_draws)] for size in sizes.tolist()]
    left, top, right, bottom = np.moveaxis(np.array(boxes, np.float64), -1, 0)
    pixels = (right - left) * (bottom - top)
    return pixels / sizes.prod(axis=1)[:, None], 1 / np.sqrt(pixels)


def test_regions(sizes: np.ndarray, crop: TestCrop) -> tuple[np.ndarray, np.ndarray]:
    """Return (areas as fractions of the image's, zooms) of the test crops, float64[N]; padding is not area."""
    sizes = _check_sizes(sizes)
    side = {'short': sizes.min(axis=1), 'height': sizes[:, 1], 'long': sizes.max(axis=1)}[crop.resize]
    zooms = (1.0 if crop.resize == 'long' else crop.resize_ratio) / side
    shown = np.minimum(sizes, 1 / zooms[:, None])
    return shown.prod(axis=1) / sizes.prod(axis=1), zooms


test_regions.__test__ = False


def apparent_size(
    sizes: np.ndarray, train: TrainCrop, test: TestCrop, *, num_draws: int = 32, seed: int = 0
) -> np.ndarray:
    """Return how large objects look in the test, as a multiple of training, at equal resolutions.

    Args:
      sizes: int[N, 2], width and height of images.
      train: how training crops are drawn.
      test: how test images are cropped.
      num_draws: training crops of each image.
      seed: of the draws.

    Returns:
      float64[N, num_draws]; its mean below one says that training shows objects larger than the test does.
    """
    return test_regions(sizes, test)[1][:, None] / train_regions(sizes, train, num_draws=num_draws, seed=seed)[1]


def summarize(values: np.ndarray) -> Spread:
    """Return mean and spread of any array of numbers."""
    return Spread(float(np.mean(values)), float(np.std(values)), *np.quantile(values, (0.05, 0.5, 0.95)).tolist())


def closed_form(train: TrainCrop, test: TestCrop) -> tuple[float, float]:
    """Return mean and standard deviation of the apparent size for square images in which every crop fits.

    With area sigma^2 * HW, sigma^2 uniform in [a, b], E[sigma] is 2/3 (b^1.5 - a^1.5) / (b - a): 0.708 of the
    usual range, which the test's 256/224 brings to 0.809, the paper's "about 80 %". TensorFlow draws sigma itself
    uniformly, of areas that cover a tenth of the image or more.
    """
    zoom = 1.0 if test.resize == 'long' else test.resize_ratio
    if train.crop == 'resize':
        return zoom / train.resize_ratio, 0.0
    low, high = _area_range(train)
    if low == high:
        return zoom * math.sqrt(low), 0.0
    if train.crop == 'tensorflow':
        a, b = math.sqrt(low), math.sqrt(high)
        mean, square = (a + b) / 2, (a * a + a * b + b * b) / 3
    else:
        mean, square = 2 / 3 * (high**1.5 - low**1.5) / (high - low), (low + high) / 2
    return zoom * mean, zoom * math.sqrt(max(0.0, square - mean**2))


def _area_range(train: TrainCrop) -> tuple[float, float]:
    low, high = train.scale
    return (max(low, min(TENSORFLOW_MIN_COVERED, high)), high) if train.crop == 'tensorflow' else (low, high)


def area_cdf(areas: np.ndarray, train: TrainCrop) -> np.ndarray:
    """Return the share of training regions that are smaller than each area, in closed form.

    Args:
      areas: float[...], fractions of the image.
      train: how training crops are drawn; not 'resize', whose one area depends on the aspect ratio.

    Returns:
      float64[...], for images in which every crop fits.
    """
    if train.crop == 'resize':
        raise UsageError('Resize and RandomCrop shows one area of each image: there is no distribution to give.')
    areas, (low, high) = np.asarray(areas, np.float64), _area_range(train)
    if low == high:
        return (areas >= low).astype(np.float64)
    if train.crop == 'tensorflow':
        areas, low, high = np.sqrt(areas), math.sqrt(low), math.sqrt(high)
    return np.clip((areas - low) / (high - low), 0.0, 1.0)


def _check_sizes(sizes: np.ndarray) -> np.ndarray:
    sizes = np.asarray(sizes)
    if sizes.ndim != 2 or sizes.shape[1] != 2 or not len(sizes) or sizes.min() < 1:
        raise UsageError(f'Sizes have shape {sizes.shape}; expected one or more rows of width and height, above 0.')
    return sizes
