"""Augmentation policies of training images: TrivialAugment, RandAugment (torchvision's and timm's), AugMix, 3-Augment.

A policy draws operations and their arguments; `OPERATIONS` does them, with Pillow's pixels bit for bit. A policy is
named by a text, as in timm: 'trivial', 'randaugment-m9-n2', 'rand-m7-mstd0.5-inc1', 'augmix', '3augment'.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.data import pixels

TIMM_FILL = (124, 116, 104)  # the mean of ImageNet, which timm fills with; torchvision fills with black
RESAMPLING = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


class Warp(NamedTuple):
    """Say how warps resample, and the colour of what lies outside of the image."""

    interpolation: str
    fill: tuple[int, int, int]


Step = tuple[str, float]  # an operation of `OPERATIONS` and its argument
Chain = tuple[float, list[Step]]  # steps one after the other, and their share in the result
Operation = Callable[[np.ndarray, float, Warp], np.ndarray]


def _affine(image: np.ndarray, matrix: tuple[float, ...], warp: Warp) -> np.ndarray:
    if warp.interpolation == 'bilinear':
        return pixels.warp(image, matrix, warp.fill)
    picture = pixels.to_image(image)
    resampling = RESAMPLING[warp.interpolation]
    picture = picture.transform(picture.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=warp.fill)
    return pixels.of_image(picture)


def _rotate(image: np.ndarray, degrees: float, warp: Warp) -> np.ndarray:
    """Rotate around the centre, by the matrix that Pillow makes of the angle."""
    height, width = image.shape
    if degrees % 360 == 0:
        return image
    angle = -math.radians(degrees % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return _affine(image, (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y), warp)


def _blur(image: np.ndarray, radius: float, warp: Warp) -> np.ndarray:
    return pixels.of_image(pixels.to_image(image).filter(ImageFilter.GaussianBlur(radius)))


def _color(number: int) -> Operation:
    """Return the change of a colour property of `pixels.adjust_colors` by a factor."""
    return lambda image, factor, warp: pixels.adjust_colors(image, (factor,) * 3, (number,))


def _table(make: Callable[[np.ndarray, float], np.ndarray]) -> Operation:
    """Return the operation that replaces each level 0 to 255 by `make(levels, argument)`."""
    return lambda image, argument, warp: pixels.look_up(image, np.tile(make(np.arange(256), argument), (3, 1)))


def _autocontrast(counts: np.ndarray) -> np.ndarray:
    """Return what a channel's levels become when its range is stretched to 0 to 255."""
    levels, there = np.arange(256), np.flatnonzero(counts)
    low, high = int(there[0]), int(there[-1])
    if high <= low:
        return levels
    scale = 255.0 / (high - low)
    return np.clip((levels * scale - low * scale).astype(np.int64), 0, 255)


def _equalized(counts: np.ndarray) -> np.ndarray:
    """Return what a channel's levels become when all are made equally frequent."""
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if not step:
        return np.arange(256)
    return np.minimum((step // 2 + np.cumsum(counts) - counts) // step, 255)


def _by_histogram(make: Callable[[np.ndarray], np.ndarray]) -> Operation:
    """Return the operation that replaces the levels of each channel by what `make` makes of their counts."""
    return lambda image, argument, warp: pixels.look_up(image, np.stack([*map(make, pixels.histogram(image))]))


# What each does to uint32[H, W] (see `pixels`) by its argument.
OPERATIONS: dict[str, Operation] = {
    'Identity': lambda image, argument, warp: image,
    'ShearX': lambda image, slope, warp: _affine(image, (1, slope, 0, 0, 1, 0), warp),  # pixels a row
    'ShearY': lambda image, slope, warp: _affine(image, (1, 0, 0, slope, 1, 0), warp),  # pixels a column
    'TranslateX': lambda image, shift, warp: _affine(image, (1, 0, shift, 0, 1, 0), warp),  # pixels, to the left
    'TranslateY': lambda image, shift, warp: _affine(image, (1, 0, 0, 0, 1, shift), warp),  # pixels, up
    'Rotate': _rotate,  # degrees, counterclockwise
    'Brightness': _color(0),  # factor
    'Contrast': _color(1),  # factor
    'Color': _color(2),  # factor of the saturation
    'Sharpness': lambda image, factor, warp: pixels.sharpen(image, np.float32(factor)),  # 1: as it is, 0: smoothed
    'Posterize': _table(lambda levels, bits: levels & ~(2 ** (8 - int(bits)) - 1)),  # bits that are kept
    'Solarize': _table(lambda levels, low: np.where(levels < low, levels, 255 - levels)),  # lowest level inverted
    'SolarizeAdd': _table(lambda levels, more: np.where(levels < 128, np.minimum(levels + int(more), 255), levels)),
    'AutoContrast': _by_histogram(_autocontrast),
    'Equalize': _by_histogram(_equalized),
    'Invert': _table(lambda levels, argument: 255 - levels),
    'GaussianBlur': _blur,  # radius in pixels
}


class Bins(NamedTuple):
    """A range of magnitudes of torchvision's, cut into equal bins."""

    low: float
    high: float
    signed: bool = True
    argument: Callable[[float], float] = float  # of a magnitude


def _factor(magnitude: float) -> float:
    return 1.0 + magnitude


def _shift(magnitude: float) -> float:
    return float(-int(magnitude))


def _space(
    shear: float, across: float, down: float, degrees: float, color: float, bits: tuple[int, int]
) -> dict[str, Bins | None]:
    """Return operation -> its bins in torchvision's order; None for one without a magnitude."""
    return {
        'Identity': None,
        'ShearX': Bins(0, shear),
        'ShearY': Bins(0, shear),
        'TranslateX': Bins(0, across, argument=_shift),
        'TranslateY': Bins(0, down, argument=_shift),
        'Rotate': Bins(0, degrees),
        'Brightness': Bins(0, color, argument=_factor),
        'Color': Bins(0, color, argument=_factor),
        'Contrast': Bins(0, color, argument=_factor),
        'Sharpness': Bins(0, color, argument=_factor),
        'Posterize': Bins(*bits, signed=False, argument=round),
        'Solarize': Bins(255, 0, signed=False),
        'AutoContrast': None,
        'Equalize': None,
    }


def argument_of(bins: Bins | None, number: int, count: int, negative: bool) -> float:
    """Return the argument of the `number`-th of `count` bins.

    In torch the last digit of a magnitude follows from the width of the processor's registers.
    """
    if bins is None:
        return 0.0
    magnitude = bins.low + (bins.high - bins.low) * number / (count - 1)
    return bins.argument(-magnitude if bins.signed and negative else magnitude)


def _drawn(space: Mapping[str, Bins | None], rng: np.random.Generator, number: int, count: int) -> Step:
    name = tuple(space)[rng.integers(len(space))]
    return name, argument_of(space[name], number, count, negative=bool(rng.integers(2)))


def trivial_space() -> dict[str, Bins | None]:
    """Return the operations of torchvision's TrivialAugmentWide."""
    return _space(0.99, 32.0, 32.0, 135.0, 0.99, (8, 2))


def randaugment_space(size: tuple[int, int]) -> dict[str, Bins | None]:
    """Return the operations of torchvision's RandAugment on an image of a (height, width)."""
    return _space(0.3, 150 / 331 * size[1], 150 / 331 * size[0], 30.0, 0.9, (8, 4))


def augmix_space(size: tuple[int, int]) -> dict[str, Bins | None]:
    """Return the operations of torchvision's AugMix on an image of a (height, width)."""
    space = _space(0.3, size[1] / 3, size[0] / 3, 30.0, 0.9, (4, 0))
    del space['Identity']
    return space


def _trivial(options: Any, size: tuple[int, int], rng: np.random.Generator) -> list[Chain]:
    """One operation of any strength. Source: torchvision's TrivialAugmentWide."""
    return [(1.0, [_drawn(trivial_space(), rng, int(rng.integers(31)), 31)])]


def _randaugment(options: Mapping[str, float], size: tuple[int, int], rng: np.random.Generator) -> list[Chain]:
    """`n` operations of strength `m` of 30. Source: torchvision's RandAugment."""
    space = randaugment_space(size)
    return [(1.0, [_drawn(space, rng, int(options['m']), 31) for _ in range(int(options['n']))])]


def _augmix(options: Mapping[str, float], size: tuple[int, int], rng: np.random.Generator) -> list[Chain]:
    """The image and `w` chains of one to three operations of strength up to `m` of 10, mixed.

    Source: torchvision's AugMix, whose operations act on tensors: its pixels are not quite Pillow's.
    """
    space = augmix_space(size)
    own, mixed = rng.dirichlet((options['a'], options['a']))
    shares = mixed * rng.dirichlet((options['a'],) * int(options['w']))
    chains = []
    for share in shares:
        depth = int(options['d']) or int(rng.integers(1, 4))
        chains.append((share, [_drawn(space, rng, int(rng.integers(options['m'])), 10) for _ in range(depth)]))
    return [(own, []), *chains]


def _either(rng: np.random.Generator, value: float) -> float:
    return -value if rng.random() > 0.5 else value


# timm's: the argument of a level of 0 to 1. With inc1 all get stronger with it.
TIMM = {
    'AutoContrast': lambda level, rng, size: 0.0,
    'Equalize': lambda level, rng, size: 0.0,
    'Invert': lambda level, rng, size: 0.0,
    'Rotate': lambda level, rng, size: _either(rng, level * 30.0),
    'Posterize': lambda level, rng, size: int(level * 4),
    'Solarize': lambda level, rng, size: min(256, int(level * 256)),
    'SolarizeAdd': lambda level, rng, size: min(128, int(level * 110)),
    'Color': lambda level, rng, size: level * 1.8 + 0.1,
    'Contrast': lambda level, rng, size: level * 1.8 + 0.1,
    'Brightness': lambda level, rng, size: level * 1.8 + 0.1,
    'Sharpness': lambda level, rng, size: level * 1.8 + 0.1,
    'ShearX': lambda level, rng, size: _either(rng, level * 0.3),
    'ShearY': lambda level, rng, size: _either(rng, level * 0.3),
    'TranslateX': lambda level, rng, size: _either(rng, level * 0.45) * size[1],
    'TranslateY': lambda level, rng, size: _either(rng, level * 0.45) * size[0],
}
TIMM_INCREASING = TIMM | {
    'Posterize': lambda level, rng, size: 4 - int(level * 4),
    'Solarize': lambda level, rng, size: 256 - min(256, int(level * 256)),
    **{
        name: lambda level, rng, size: max(0.1, 1.0 + _either(rng, level * 0.9))
        for name in ('Color', 'Contrast', 'Brightness', 'Sharpness')
    },
}


def _rand(options: Mapping[str, float], size: tuple[int, int], rng: np.random.Generator) -> list[Chain]:
    """`n` operations, each done with probability `p`, of strength `m` of 10, normal with deviation `mstd`.

    Source: timm's rand_augment_transform.
    """
    table, steps = TIMM_INCREASING if options['inc'] else TIMM, []
    for name in rng.choice(tuple(table), int(options['n'])):
        if rng.random() > options['p']:
            continue
        level = options['m']
        if options['mstd'] > 100:  # as timm says uniform
            level *= rng.random()
        elif options['mstd']:
            level += options['mstd'] * rng.standard_normal()
        steps.append((str(name), table[name](max(0.0, min(level, options['mmax'])) / 10, rng, size)))
    return [(1.0, steps)]


def _three(options: Any, size: tuple[int, int], rng: np.random.Generator) -> list[Chain]:
    """Grey, solarized or blurred. Source: 3-Augment of DeiT III."""
    choices = (('Color', 0.0), ('Solarize', 128), ('GaussianBlur', float(rng.uniform(0.1, 2.0))))
    return [(1.0, [choices[rng.integers(3)]])]


class Policy(NamedTuple):
    """A policy: what it draws, its options with their defaults and highest values, and whose colour it fills with."""

    draw: Callable[[Mapping[str, float], tuple[int, int], np.random.Generator], list[Chain]]
    options: Mapping[str, tuple[float, float, float]]  # default, lowest, highest
    fill: tuple[int, int, int] = (0, 0, 0)


POLICIES = {
    'trivial': Policy(_trivial, {}),
    'randaugment': Policy(_randaugment, {'m': (9, 0, 30), 'n': (2, 1, 16)}),
    'rand': Policy(
        _rand,
        {
            **{'m': (10, 0, 100), 'n': (2, 1, 16), 'p': (0.5, 0, 1)},
            **{'mstd': (0, 0, math.inf), 'mmax': (10, 0, 100), 'inc': (0, 0, 1)},
        },
        TIMM_FILL,
    ),
    'augmix': Policy(_augmix, {'m': (3, 1, 10), 'w': (3, 1, 16), 'd': (0, 0, 16), 'a': (1, 0.01, 100)}),
    '3augment': Policy(_three, {}),
}


@dataclasses.dataclass(frozen=True)
class Augment:
    """Augment an image by a policy; made by `make`.

    Attributes:
      policy: its name in `POLICIES`.
      options: (name, value) of each.
      interpolation: of warps.
    """

    policy: str
    options: tuple[tuple[str, float], ...]
    interpolation: str

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> list[Chain]:
        """Draw what happens to an image of a (height, width)."""
        return POLICIES[self.policy].draw(dict(self.options), size, rng)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment uint32[H, W]."""
        warp = Warp(self.interpolation, POLICIES[self.policy].fill)
        chains = self.draw(image.shape, rng)
        return mix(image, chains, warp) if len(chains) > 1 else apply(image, chains[0][1], warp)


def apply(image: np.ndarray, steps: list[Step], warp: Warp) -> np.ndarray:
    """Apply operations to uint32[H, W], one after the other."""
    for name, argument in steps:
        image = OPERATIONS[name](image, argument, warp)
    return image


def mix(image: np.ndarray, chains: list[Chain], warp: Warp) -> np.ndarray:
    """Return the sum of chains of operations by their shares, rounded down as torchvision does."""
    total = np.float32(0)
    for share, steps in chains:
        result = np.ascontiguousarray(apply(image, steps, warp)).view(np.uint8)
        total = total + np.float32(share) * result.astype(np.float32)
    return np.clip(total, 0, 255).astype(np.uint8).view(np.uint32)


def make(text: str, interpolation: str) -> Augment | None:
    """Make the augmentation that a text names, such as 'rand-m7-mstd0.5-inc1'; None of ''.

    Raises:
      UsageError: for a text that names none.
    """
    if not text:
        return None
    name, *parts = text.split('-')
    if name not in POLICIES:
        raise UsageError(
            f"The augmentation is {text!r}; expected '' or one of {', '.join(POLICIES)}, with options such as "
            f'rand-m7-mstd0.5-inc1.{nearest(name, POLICIES)}'
        )
    known = POLICIES[name].options
    options = {option: default for option, (default, _, _) in known.items()}
    for part in parts:
        match = re.fullmatch(r'([a-z]+)(\d+(?:\.\d+)?)', part)
        option, value = match.groups() if match else (part, 'nan')
        low, high = known[option][1:] if option in known else (0, 0)
        if not low <= float(value) <= high:
            ranges = ', '.join(f'{one} ({low:g} to {high:g})' for one, (_, low, high) in known.items())
            raise UsageError(f'The augmentation {text!r} has {part!r}; {name} takes {ranges or "no options"}.')
        options[option] = float(value)
    return Augment(name, tuple(options.items()), interpolation)
