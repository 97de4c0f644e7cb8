"""From images to uint8 squares: random training crops, test crops, fine-tuning crops.

A transform is called as `transform(image, rng) -> uint8[R, R, 3]` with an RGB Pillow image, an `EncodedImage` or
uint8[H, W, 3]. Pillow is the reference for every pixel, as in torchvision: antialiased filters, uint8 after each
step; `pixels.py` computes them. No transform normalizes.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.core.resolution import Resolution, shape
from fixres_jax.data import augment as policies
from fixres_jax.data import pixels
from fixres_jax.data.augment import Augment
from fixres_jax.data.crops import BOXES, TEST_RATIO, TrainCrop
from fixres_jax.data.decoding import EncodedImage
from fixres_jax.data.decoding import decode as decode

INTERPOLATIONS = tuple(pixels.RADII)

PAPERS_CROP = TrainCrop()

AnyImage = Image.Image | EncodedImage | np.ndarray
Transform = Callable[[AnyImage, np.random.Generator], np.ndarray]


def color_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation by factors in [1 - strength, 1 + strength], in any order."""
    low, high = max(0.0, 1 - strength), 1 + strength
    return pixels.adjust_colors(image, low + (high - low) * rng.random(3), rng.permutation(3))


def _flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, ::-1] if rng.random() < 0.5 else image


def resize_side(resolution: int, resize_ratio: float) -> int:
    """Return the side in pixels to resize to before a crop: `resize_ratio` times the crop, rounded down."""
    return math.floor(resize_ratio * resolution + 1e-9)


def _resized(image: AnyImage, sides: tuple[int, int], resize: str, interpolation: str) -> np.ndarray:
    """Resize so that the image covers (height, width) ('short'), fits into it ('long') or has its height ('height').

    One side becomes that of `sides`; the other is rounded down.
    """
    image = image.crop((0, 0, *image.size)) if isinstance(image, EncodedImage) else pixels.of_image(_as_image(image))
    (height, width), (new_height, new_width) = image.shape, sides
    wider = new_width * height >= new_height * width  # what is wanted, than the image
    by_width = {'short': wider, 'long': not wider, 'height': False}[resize]
    # An extreme aspect ratio would leave the other side without a pixel.
    if by_width:
        size = new_width, max(1, new_width * height // width)
    else:
        size = max(1, new_height * width // height), new_height
    return pixels.resize(image, size, interpolation)


def _center_crop(image: np.ndarray, resolution: int | Resolution, left: int | None = None) -> np.ndarray:
    """Return the crop in the middle as uint8[H, W, 3], or the one that begins at `left`."""
    height, width = shape(resolution)
    left = _center(image.shape[1], width) if left is None else left
    return pixels.to_rgb(pixels.crop(image, left, _center(image.shape[0], height), (width, height)))


def _as_image(image: Image.Image | np.ndarray) -> Image.Image:
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _center(length: int, resolution: int) -> int:
    """Return where a centred crop begins; negative for a smaller image, which is padded with zeros."""
    if length < resolution:
        return -((resolution - length) // 2)
    return round((length - resolution) / 2)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Crop at random, resize, flip, augment and jitter; made by `make_train`."""

    resolution: int
    crop: TrainCrop
    flip: bool
    jitter: float
    interpolation: str
    augment: Augment | None = None

    def __call__(self, image: AnyImage, rng: np.random.Generator) -> np.ndarray:
        if self.crop.crop == 'resize':
            side = resize_side(self.resolution, self.crop.resize_ratio)
            image = _resized(image, (side, side), 'short', self.interpolation)
            left, top = (int(rng.integers(length - self.resolution + 1)) for length in reversed(image.shape))
            image = pixels.crop(image, left, top, (self.resolution, self.resolution))
        else:
            image = pixels.resize(self._crop(image, rng), (self.resolution, self.resolution), self.interpolation)
        if self.flip:
            image = _flip(image, rng)
        if self.augment:
            image = self.augment(image, rng)
        if self.jitter:
            image = color_jitter(image, self.jitter, rng)
        return pixels.to_rgb(image)

    def _crop(self, image: AnyImage, rng: np.random.Generator) -> np.ndarray:
        image = image if isinstance(image, EncodedImage) else _as_image(image)
        box = BOXES[self.crop.crop](*image.size, self.crop.scale, self.crop.ratio, rng)
        # A crop of its own, then resized: `resize(box=)` would look at pixels outside the crop.
        cropped = image.crop(box)
        return cropped if isinstance(image, EncodedImage) else pixels.of_image(cropped)


@dataclasses.dataclass(frozen=True)
class TestTransform:
    """Resize and crop the centre, the same for every call; made by `make_test`."""

    __test__ = False  # not for pytest to collect

    resolution: int | Resolution
    sides: tuple[int, int]
    resize: str
    interpolation: str

    def __call__(self, image: AnyImage, rng: np.random.Generator | None = None) -> np.ndarray:
        return _center_crop(_resized(image, self.sides, self.resize, self.interpolation), self.resolution)


@dataclasses.dataclass(frozen=True)
class ShiftedTransform:
    """Resize, flip, jitter, and crop the centre shifted sideways at random; made by `make_finetune`."""

    resolution: int | Resolution
    sides: tuple[int, int]
    jitter: float
    resize: str
    interpolation: str

    def __call__(self, image: AnyImage, rng: np.random.Generator) -> np.ndarray:
        image = _resized(image, self.sides, self.resize, self.interpolation)
        image = color_jitter(_flip(image, rng), self.jitter, rng)
        excess = image.shape[1] - shape(self.resolution)[1]
        # Every place inside the image is as likely.
        return _center_crop(image, self.resolution, int(rng.integers(excess + 1)) if excess > 0 else None)


def _check(resolution: int | Resolution, interpolation: str, resize_ratio: float = 1.0) -> None:
    """Refuse impossible arguments."""
    if min(shape(resolution)) < 1:
        raise UsageError(f'The resolution is {resolution}; expected a positive number of pixels.')
    if resize_ratio < 1:
        raise UsageError(f'The resize ratio is {resize_ratio}; expected 1 or more, or the crop would not be filled.')
    if interpolation not in INTERPOLATIONS:
        raise UsageError(
            f'The interpolation is {interpolation!r}; expected {" or ".join(INTERPOLATIONS)}.'
            f'{nearest(interpolation, INTERPOLATIONS)}'
        )


def make_train(
    resolution: int,
    crop: TrainCrop = PAPERS_CROP,
    flip: bool = True,
    jitter: float = 0.3,
    interpolation: str = 'bilinear',
    augment: str = '',
) -> TrainTransform:
    """Make the training transform.

    Args:
      resolution: side of the result in pixels.
      crop: how the random crop is drawn: torchvision's RandomResizedCrop, TensorFlow's boxes, or Resize and RandomCrop.
      flip: mirror half of the images.
      jitter: strength of the changes in brightness, contrast and saturation; 0 for none.
      interpolation: 'bilinear' or 'bicubic', antialiased; warps of `augment` use it too.
      augment: a policy of `data.augment` such as 'trivial'; '' for none.
    """
    if jitter < 0:
        raise UsageError(f'The jitter is {jitter}; expected 0 (none) or more.')
    _check(resolution, interpolation)
    return TrainTransform(resolution, crop, flip, jitter, interpolation, policies.make(augment, interpolation))


def make_test(
    resolution: int | str | tuple[int, int],
    resize_ratio: float = TEST_RATIO,
    resize: str = 'short',
    crop: bool = True,
    interpolation: str = 'bilinear',
) -> TestTransform:
    """Make the test transform: torchvision's Resize and CenterCrop.

    Args:
      resolution: side of the result in pixels; or height and width, such as '352x640' or (352, 640).
      resize_ratio: the side resized to, as a multiple of the resolution.
      resize: which side that is: 'short' (torchvision), or 'height' (the reference's, which pads portrait
        images with zeros; released FixRes weights were scored so).
      crop: False for the whole image: the longer side becomes the resolution, the rest is padded with zeros.
      interpolation: 'bilinear' or 'bicubic', antialiased.
    """
    resolution = Resolution.parse(resolution)
    _check(resolution, interpolation, resize_ratio)
    if not crop:
        return TestTransform(resolution, shape(resolution), 'long', interpolation)
    if resize not in ('short', 'height'):
        raise UsageError(f'The resize is {resize!r}; expected short or height.{nearest(resize, ("short", "height"))}')
    sides = tuple(resize_side(one, resize_ratio) for one in shape(resolution))
    return TestTransform(resolution, sides, resize, interpolation)


def make_finetune(
    resolution: int | str | tuple[int, int],
    resize_ratio: float = TEST_RATIO,
    augmentation: str = 'test',
    resize: str = 'short',
    interpolation: str = 'bilinear',
) -> Transform:
    """Make the transform of training images for the adaptation at the test resolution.

    Args:
      resolution: as in `make_test`.
      resize_ratio: as in `make_test`.
      augmentation: 'test' (the test transform), or 'v2' (flip, jitter of 0.05, centre crop shifted sideways).
      resize: as in `make_test`.
      interpolation: 'bilinear' or 'bicubic', antialiased.

    Source: imnet_finetune/transforms.py and transforms_v2.py of the reference.
    """
    if augmentation == 'test':
        return make_test(resolution, resize_ratio, resize, interpolation=interpolation)
    if augmentation != 'v2':
        raise UsageError(
            f'The augmentation is {augmentation!r}; expected test or v2.{nearest(augmentation, ("test", "v2"))}'
        )
    test = make_test(resolution, resize_ratio, resize, interpolation=interpolation)
    return ShiftedTransform(test.resolution, test.sides, 0.05, resize, interpolation)
