"""Where crops lie: the random boxes of torchvision and of TensorFlow, and how a run crops."""

import dataclasses
import math

import numpy as np

from fixres_jax.core.errors import UsageError, nearest

TEST_RATIO = 256 / 224  # resize to this multiple of the crop at every test resolution: section 2 of the paper
TENSORFLOW_MIN_COVERED = 0.1  # min_object_covered of the usual TensorFlow ImageNet pipelines

Box = tuple[int, int, int, int]


def random_resized_crop(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draw a training crop as torchvision's RandomResizedCrop does.

    The area is uniform in `scale` times the image's, the aspect ratio log-uniform in `ratio`; after ten crops
    that do not fit, the largest central one with an allowed aspect ratio.

    Returns:
      (left, top, right, bottom) in pixels.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def distorted_bounding_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draw a training crop as TensorFlow's sample_distorted_bounding_box does on a whole image.

    The aspect ratio is uniform in `ratio`, then the height uniform between those of the smallest and the
    largest area: crops are smaller than torchvision's, objects in them 8 % larger. After ten misses the
    largest central square.

    Returns:
      (left, top, right, bottom) in pixels.

    Source: GenerateRandomCrop in tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc.
    """
    area = width * height
    low, high = scale[0] * area, scale[1] * area
    for _ in range(10):
        aspect = ratio[0] + (ratio[1] - ratio[0]) * rng.random()
        smallest, largest = round(math.sqrt(low / aspect)), round(math.sqrt(high / aspect))
        largest = min(largest, int((width + 0.5 - 1e-7) / aspect), height)
        h = largest if smallest >= largest else int(rng.integers(smallest, largest + 1))
        w = round(h * aspect)
        if w * h < low:  # rounding may leave the allowed areas by one row
            h += 1
        elif w * h > high:
            h -= 1
        w = round(h * aspect)
        covered = low <= w * h <= high and w * h >= TENSORFLOW_MIN_COVERED * area
        if covered and 0 < w <= width and 0 < h <= height:
            # The last position is never drawn there.
            top = int(rng.integers(height - h)) if h < height else 0
            left = int(rng.integers(width - w)) if w < width else 0
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


BOXES = {'torchvision': random_resized_crop, 'tensorflow': distorted_bounding_box}
RESIZES = ('short', 'height', 'long')


@dataclasses.dataclass(frozen=True)
class TrainCrop:
    """Say how training crops are drawn.

    Attributes:
      crop: 'torchvision' (area uniform), 'tensorflow' (side uniform) or 'resize' (Resize and RandomCrop).
      scale: range of the region's area as a fraction of the image's.
      ratio: range of width / height.
      resize_ratio: of crop='resize', the shorter side over the crop.
    """

    crop: str = 'torchvision'
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    resize_ratio: float = TEST_RATIO

    def __post_init__(self) -> None:
        if self.crop not in (*BOXES, 'resize'):
            raise UsageError(
                f'The crop is {self.crop!r}; expected {", ".join(BOXES)} or resize.'
                f'{nearest(self.crop, (*BOXES, "resize"))}'
            )
        for name, (low, high), limit in (('scale', self.scale, 1.0), ('ratio', self.ratio, math.inf)):
            if not 0 < low <= high <= limit:
                raise UsageError(f'The {name} is {low} to {high}; expected a range above 0, of areas up to 1.')
        _check_resize(self.resize_ratio)


@dataclasses.dataclass(frozen=True)
class TestCrop:
    """Say how test images are cropped.

    Attributes:
      resize_ratio: side resized to, over the crop.
      resize: which side that is: 'short', 'height' (portrait images are padded), or 'long' (the whole image, padded).
    """

    __test__ = False  # not for pytest to collect

    resize_ratio: float = TEST_RATIO
    resize: str = 'short'

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise UsageError(
                f'The resize is {self.resize!r}; expected {", ".join(RESIZES)}.{nearest(self.resize, RESIZES)}'
            )
        _check_resize(self.resize_ratio)


def _check_resize(ratio: float) -> None:
    if ratio < 1:
        raise UsageError(f'The resize ratio is {ratio}; expected 1 or more, or the crop would not be filled.')
