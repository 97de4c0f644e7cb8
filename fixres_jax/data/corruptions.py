"""Corruptions of test images, of ImageNet-C's kinds at its five strengths: `Corrupted`, a source of corrupted images.

Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR 2019,
whose constants stand in `KINDS`. Of their fifteen kinds frost is left out: it lays photographs of frost over the image.
Their images were saved as JPEG files of quality 85 afterwards; these are not.

An image is corrupted before the test transform, at a fixed size: its shorter side is brought to `SIDE` pixels, the size
at which ImageNet-C resized its images. So an image has the same corruption at every test resolution, as large in
proportion to what it shows. A corruption of what the test transform leaves would be weaker the more pixels there are:
noise of single pixels and blurs of some pixels' width say less of a larger image, and resolution would seem to be worth
what is only a weaker corruption. The price: what a file holds beyond `SIDE` pixels is lost to the corrupted image.
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import fft, ndimage

from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.data import given, pixels
from fixres_jax.data.decoding import EncodedImage
from fixres_jax.data.sources import Record, Source

SIDE = 256  # pixels of the shorter side when an image is corrupted, as when ImageNet-C was made
STRENGTHS = (1, 2, 3, 4, 5)
PLASMA = 256  # pixels of the square of fog, which repeats itself beyond
LUMINANCE = np.float32((0.299, 0.587, 0.114))


def _gaussian_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return image + np.float32(deviation) * rng.standard_normal(image.shape, np.float32)


def _shot_noise(image: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Count the photons of each value, of which white has so many on average."""
    return rng.poisson(image * photons) / np.float32(photons)


def _impulse_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Make a share of the values black or white."""
    draws = rng.random(image.shape, np.float32)
    return np.where(draws < share, np.float32(draws < share / 2), image)


def _defocus_blur(image: np.ndarray, constants: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Spread each pixel over a disk of a radius, whose rim is smoothed by a deviation."""
    radius, smooth = constants
    place = np.arange(-radius - 2, radius + 3)
    disk = np.float32(place[:, None] ** 2 + place[None, :] ** 2 <= radius**2)
    disk = ndimage.gaussian_filter(disk, smooth, radius=1 if radius <= 8 else 2, mode='constant')
    return _convolve(image, disk, 'reflect')


def _glass_blur(image: np.ndarray, constants: tuple[float, int, int], rng: np.random.Generator) -> np.ndarray:
    """Blur, move pixels about by less than a distance some times, and blur again."""
    deviation, distance, times = constants
    image = np.floor(255 * _blur(image, deviation)) / np.float32(255)
    for _ in range(times):
        moves = rng.integers(-distance, distance, (*image.shape[:2], 2), np.int8)
        _shuffle(image, moves, distance)
    return _blur(image, deviation)


def _motion_blur(image: np.ndarray, constants: tuple[int, float], rng: np.random.Generator) -> np.ndarray:
    return _drag(image, *constants, rng.uniform(-45, 45))


def _zoom_blur(image: np.ndarray, constants: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Average the image and zooms into its middle, from 1 to below a factor in steps."""
    factors = np.arange(1, *constants)
    return (image + sum(_zoom(image, factor) for factor in factors)) / np.float32(1 + len(factors))


def _snow(image: np.ndarray, constants: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Whiten the image and let flakes fall over it in two directions.

    Flakes are the peaks of noise with a mean and a deviation, zoomed by a factor, above a level; they are dragged by a
    radius and a deviation. The last constant is the share of the image that is not whitened.
    """
    mean, deviation, factor, level, radius, length, share = constants
    flakes = mean + deviation * rng.standard_normal((*image.shape[:2], 1), np.float32)
    flakes = _zoom(flakes, factor)
    flakes = np.clip(np.where(flakes < level, 0, flakes), 0, 1)
    flakes = _drag(np.float32(flakes), radius, length, rng.uniform(-135, -45))
    white = np.maximum(image, (image @ LUMINANCE)[..., None] * 1.5 + 0.5)
    return share * image + (1 - share) * white + flakes + flakes[::-1, ::-1]


def _fog(image: np.ndarray, constants: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Add a plasma of some thickness, whose roughness falls by a factor with each halving of its grain."""
    thickness, decay = constants
    rows, columns = (np.arange(length) % PLASMA for length in image.shape[:2])
    plasma = _plasma(decay, rng)[rows][:, columns, None]
    most = image.max()
    return (image + thickness * plasma) * (most / (most + thickness))


def _brightness(image: np.ndarray, more: float, rng: np.random.Generator) -> np.ndarray:
    """Raise the value of HSV, which is the brightest channel; hue and saturation stay."""
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + np.float32(more), 1)
    return np.where(value > 0, image * (raised / np.maximum(value, 1e-6)), raised)


def _contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * np.float32(factor) + mean


def _elastic_transform(
    image: np.ndarray, constants: tuple[float, float, float], rng: np.random.Generator
) -> np.ndarray:
    """Shear the image by corners that move, then shift its pixels by a smoothed random field.

    Constants: the size of the field before it is smoothed, its smoothness, and the movement of the corners, in pixels.
    """
    size, smoothness, movement = constants
    height, width = image.shape[:2]
    third, middle = min(height, width) // 3, np.array((height // 2, width // 2), np.float64)
    corners = middle + third * np.array(((1, 1), (1, -1), (-1, -1)))
    moved = corners + rng.uniform(-movement, movement, corners.shape)
    back = np.linalg.solve(np.c_[moved, np.ones(3)], corners)  # from the sheared image's places to the image's
    down, across = (np.float64(x) for x in np.mgrid[:height, :width])
    places = np.stack((down, across, np.ones_like(down)), -1) @ back
    image = _sample(image, places[..., 0].copy(), places[..., 1].copy())
    shifts = [size * _smooth(rng.uniform(-1, 1, (height, width)), smoothness) for _ in range(2)]
    return _sample(image, down + shifts[0], across + shifts[1])


def _pixelate(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    picture = Image.fromarray(_levels(image))
    small = [max(1, int(length * factor)) for length in picture.size]
    picture = picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)
    return np.float32(picture) / 255


def _jpeg_compression(image: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(_levels(image)).save(buffer, 'JPEG', quality=quality)
    return np.float32(Image.open(buffer)) / 255


class Kind(NamedTuple):
    """A kind of corruption.

    Attributes:
      group: noise, blur, weather or digital.
      apply: function (float32[H, W, 3] of 0 to 1, constants, rng) -> the same, which may leave that range.
      constants: of the five strengths.
    """

    group: str
    apply: Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]
    constants: tuple[Any, ...]


KINDS = {
    'gaussian_noise': Kind('noise', _gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    'shot_noise': Kind('noise', _shot_noise, (60, 25, 12, 5, 3)),
    'impulse_noise': Kind('noise', _impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    'defocus_blur': Kind('blur', _defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    'glass_blur': Kind('blur', _glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    'motion_blur': Kind('blur', _motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    'zoom_blur': Kind('blur', _zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    'snow': Kind(
        'weather',
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    'fog': Kind('weather', _fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    'brightness': Kind('weather', _brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    'contrast': Kind('digital', _contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    # Published as multiples of 244, which is meant to be the 224 of the crop.
    'elastic_transform': Kind(
        'digital',
        _elastic_transform,
        (
            (244 * 2, 244 * 0.7, 244 * 0.1),
            (244 * 2, 244 * 0.08, 244 * 0.2),
            (244 * 0.05, 244 * 0.01, 244 * 0.02),
            (244 * 0.07, 244 * 0.01, 244 * 0.02),
            (244 * 0.12, 244 * 0.01, 244 * 0.02),
        ),
    ),
    'pixelate': Kind('digital', _pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    'jpeg_compression': Kind('digital', _jpeg_compression, (25, 18, 15, 10, 7)),
}


def corrupt(image: np.ndarray, kind: str, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Corrupt an image.

    Args:
      image: uint8[H, W, 3]; the constants are meant for a shorter side of `SIDE` pixels.
      kind: a name of `KINDS`.
      strength: 1 to 5.
      rng: of what is random in it.

    Returns:
      uint8[H, W, 3].

    Raises:
      UsageError: for another kind or strength.
    """
    check(kind, strength)
    _, apply, constants = KINDS[kind]
    return _levels(apply(np.float32(image) / 255, constants[strength - 1], rng))


def check(kind: str, strength: int) -> None:
    """Raise UsageError for a kind or a strength that there is not."""
    if kind not in KINDS:
        raise UsageError(f'There is no corruption {kind!r}; expected one of {", ".join(KINDS)}.{nearest(kind, KINDS)}')
    if strength not in STRENGTHS:
        raise UsageError(f'The strength of a corruption is {strength!r}; expected 1 to {STRENGTHS[-1]}, such as 3.')


@dataclasses.dataclass(frozen=True, eq=False)
class Corrupted:
    """Show the images of a source corrupted, each with random numbers of its own that its number in the source seeds.

    The random numbers of a kind are the same at all strengths.

    Attributes:
      source: any source.
      kind, strength: see `corrupt`.
      seed: of the random numbers.
    """

    source: Source
    kind: str
    strength: int
    seed: int = 0

    def __post_init__(self):
        check(self.kind, self.strength)

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        image = at_side(EncodedImage(record['encoded'], record['name'], index))
        rng = np.random.default_rng((self.seed, index, list(KINDS).index(self.kind)))
        return record | {'encoded': given.encode(corrupt(image, self.kind, self.strength, rng))}


def at_side(image: EncodedImage) -> np.ndarray:
    """Return uint8[H, W, 3] of an image whose shorter side becomes `SIDE` pixels."""
    whole = image.crop((0, 0, *image.size))
    size = tuple(SIDE * length // min(image.size) for length in image.size)
    return pixels.to_rgb(pixels.resize(whole, size, 'bilinear'))


def _levels(image: np.ndarray) -> np.ndarray:
    """Return uint8 of values of 0 to 1."""
    return np.uint8(np.rint(255 * np.clip(image, 0, 1)))


def _blur(image: np.ndarray, deviation: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, (deviation, deviation, 0), mode='nearest')


def _convolve(image: np.ndarray, kernel: np.ndarray, border: str) -> np.ndarray:
    """Return what an odd, square kernel, made to sum to one, makes of float32[H, W, C]; `border` is of np.pad."""
    radius = len(kernel) // 2
    padded = np.pad(image, ((radius, radius), (radius, radius), (0, 0)), border)
    size = [fft.next_fast_len(length, real=True) for length in padded.shape[:2]]
    waves = fft.rfft2(padded, size, axes=(0, 1)) * fft.rfft2(kernel / kernel.sum(), size)[..., None]
    result = fft.irfft2(waves, size, axes=(0, 1))
    return np.float32(result[2 * radius : 2 * radius + image.shape[0], 2 * radius : 2 * radius + image.shape[1]])


def _drag(image: np.ndarray, radius: int, deviation: float, degrees: float) -> np.ndarray:
    """Blur along a line to one side, twice as long as the radius: ImageMagick's motion blur."""
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    angle = np.radians(degrees)
    kernel = np.zeros((4 * radius + 1,) * 2, np.float32)
    down, across = (2 * radius + np.ceil(steps * part - 0.5).astype(int) for part in (np.sin(angle), np.cos(angle)))
    np.add.at(kernel, (down, across), weights)
    return _convolve(image, kernel, 'edge')


def _zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """Return float32[H, W, C] zoomed into its middle, in its own size: the first and the last pixel stay at the rim."""
    places = []
    for length in image.shape[:2]:
        inside = int(np.ceil(length / factor))
        zoomed = round(inside * factor)
        first = (zoomed - length) // 2 + np.arange(length)
        places.append((length - inside) // 2 + np.minimum(first * ((inside - 1) / max(zoomed - 1, 1)), inside - 1))
    down, across = np.meshgrid(*places, indexing='ij')
    return _sample(image, down, across)


def _smooth(field: np.ndarray, deviation: float) -> np.ndarray:
    """Return float64[H, W] blurred by any deviation, mirrored at the borders, at the same cost."""
    damping = [np.exp(-0.5 * (deviation * np.pi * np.arange(length) / length) ** 2) for length in field.shape]
    return fft.idctn(fft.dctn(field) * np.outer(*damping))


def _plasma(decay: float, rng: np.random.Generator) -> np.ndarray:
    """Return heights of 0 to 1, float64[PLASMA, PLASMA], by the diamond-square method; opposite rims fit together."""
    heights, step, roughness = np.zeros((PLASMA, PLASMA)), PLASMA, 1.0

    def between(*neighbours: np.ndarray) -> np.ndarray:
        return sum(neighbours) / 4 + roughness * rng.uniform(-1, 1, neighbours[0].shape)

    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]
        right, below = np.roll(corners, -1, 1), np.roll(corners, -1, 0)
        centres = between(corners, right, below, np.roll(below, -1, 1))
        heights[half::step, half::step] = centres
        heights[::step, half::step] = between(corners, right, centres, np.roll(centres, 1, 0))
        heights[half::step, ::step] = between(corners, below, centres, np.roll(centres, 1, 1))
        step, roughness = half, roughness / decay**2
    heights -= heights.min()
    return heights / heights.max()


@pixels.compiled
def _shuffle(image, moves, distance):
    """Give every pixel of float32[H, W, C], from the last to the first, the values of one nearby.

    ImageNet-C meant to swap the two, and its images were made by this: a swap of views of an array is a copy.
    """
    height, width, channels = image.shape
    for y in range(height - distance, distance, -1):
        for x in range(width - distance, distance, -1):
            for channel in range(channels):
                image[y, x, channel] = image[y + moves[y, x, 1], x + moves[y, x, 0], channel]


@pixels.compiled
def _sample(image, down, across):
    """Return the values of float32[H, W, C] at places float64[h, w], bilinear; beyond the border it is mirrored."""
    height, width, channels = image.shape
    result = np.empty((*down.shape, channels), np.float32)
    for row in range(down.shape[0]):
        for column in range(down.shape[1]):
            y, x = down[row, column], across[row, column]
            top, left = int(np.floor(y)), int(np.floor(x))
            below, right = np.float32(y - top), np.float32(x - left)
            first, second = _mirrored(top, height), _mirrored(top + 1, height)
            third, fourth = _mirrored(left, width), _mirrored(left + 1, width)
            for channel in range(channels):
                high = image[first, third, channel] * (1 - right) + image[first, fourth, channel] * right
                low = image[second, third, channel] * (1 - right) + image[second, fourth, channel] * right
                result[row, column, channel] = high * (1 - below) + low * below
    return result


@pixels.compiled
def _mirrored(place, length):
    place = place % (2 * length)
    return place if place < length else 2 * length - 1 - place
