"""Advice on resolutions: which to test at, which to train at, and what each costs.

Everything follows from how large objects look in training and in the test, and from the network's counted work; no
network is run and no pixel is decoded.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from fixres_jax.core.errors import UsageError
from fixres_jax.core.resolution import Resolution, shape
from fixres_jax.data.crops import TestCrop, TrainCrop
from fixres_jax.models import EVAL, Architecture, Model
from fixres_jax.studies import sizes

FINE = 8  # pixels: to this the resolution of equal apparent size is rounded
# Best test size over training size, ResNet-50 of 224: 288 without adaptation, 384 with it (section 5 of the paper).
SWEEP = (1.0, 384 / 224)
UNKNOWN = (
    'How accurate your network is at any resolution: sweep the test resolution on held-out images.',
    'How much adaptation shifts the best resolution: the sweep reaches to 1.71 times the training size, where the '
    "paper's ResNet-50 has its best after adaptation (384 for 224).",
    'Where the objects are and how large: their sizes in the images are taken to be alike in training and test.',
    'Augmentation other than the crop, such as zooming or mosaics, which changes apparent sizes too.',
    'Accuracy on other kinds of images: adaptation to one distribution can cost accuracy on others.',
)


@dataclasses.dataclass(frozen=True)
class Advice:
    """What follows from the crops and the network.

    Attributes:
      apparent_size: of objects in the test as a multiple of training, at equal resolutions.
      square_images: mean and standard deviation of the same in closed form, for square images.
      equal_resolution: pixels at which objects look as large in the test as in training, on average.
      test_resolution: the same to a multiple of `FINE`, and of what the network takes.
      sweep: pixels, the test resolutions worth trying.
      train_resolution_for: wanted test resolution -> training resolution of equal size, to a multiple of the stride.
      costs: a row for each resolution: its work, and that as a multiple of the training resolution's.
      latency: with a measured throughput and a limit: the largest test resolution within it, and its training one.
    """

    train_resolution: int
    apparent_size: sizes.Spread
    square_images: tuple[float, float]
    num_images: int
    equal_resolution: float
    test_resolution: int
    sweep: tuple[int, ...]
    train_resolution_for: dict[int, int]
    costs: tuple[dict[str, float], ...]
    latency: dict[str, float] | None
    unknown: tuple[str, ...] = UNKNOWN


def flops(model: Model, resolutions: tuple[int | Resolution, ...]) -> dict[int | Resolution, float]:
    """Count the operations of a forward pass of one image, by XLA, without running it.

    Args:
      model: from `models.create`.
      resolutions: pixels.

    Returns:
      Resolution -> floating point operations; a multiplication and an addition are two.
    """
    variables = model.shapes()

    def count(resolution: int | Resolution) -> float:
        image = jax.ShapeDtypeStruct((1, *shape(resolution), 3), jnp.uint8)
        lowered = jax.jit(lambda variables, x: model.apply(variables, x, EVAL)[0]).lower(variables, image)
        return float(lowered.cost_analysis()['flops'])

    return {resolution: count(resolution) for resolution in resolutions}


def advise(
    train_resolution: int,
    train: TrainCrop,
    test: TestCrop,
    *,
    image_sizes: np.ndarray | None = None,
    model: Model | None = None,
    wanted_test_resolution: int | None = None,
    images_per_second: float | None = None,
    max_milliseconds: float | None = None,
) -> Advice:
    """Say which resolutions suit a network and what they cost.

    Args:
      train_resolution: pixels.
      train: how its training crops were drawn.
      test: how test images are cropped.
      image_sizes: int[N, 2], width and height of one's images; None for the closed form, of square images.
      model: from `models.create`, whose work is counted; None to leave costs out (latency then goes by pixels).
      wanted_test_resolution: pixels, to find a training resolution for.
      images_per_second: measured, of a forward pass at the training resolution.
      max_milliseconds: wanted for an image at the test resolution, at the batch size of that measurement.

    Raises:
      UsageError: for values from which nothing follows.
    """
    kind = _kind(model)
    for name, value in (('train_resolution', train_resolution), ('wanted_test_resolution', wanted_test_resolution)):
        if value is not None and value < kind.min_resolution:
            raise UsageError(f'{name}={value} is too small: the network takes {kind.min_resolution} or more.')
        if value is not None and value % kind.multiple:
            near = kind.multiple * max(1, round(value / kind.multiple))
            raise UsageError(f'{name}={value}: the network takes multiples of {kind.multiple}, such as {near}.')
    for name, value in (('images_per_second', images_per_second), ('max_milliseconds', max_milliseconds)):
        if value is not None and value <= 0:
            raise UsageError(f'{name}={value} is not above 0.')
    if (images_per_second is None) != (max_milliseconds is None):
        raise UsageError('--images-per-second and --max-milliseconds go together: give both or neither.')
    mean, std = sizes.closed_form(train, test)
    spread = sizes.Spread(mean, std, *[float('nan')] * 3)
    if image_sizes is not None:
        spread = sizes.summarize(sizes.apparent_size(image_sizes, train, test))
    equal = train_resolution / spread.mean
    wanted = {wanted_test_resolution} if wanted_test_resolution else set()
    latency = None
    if max_milliseconds is not None:
        latency = _within(train_resolution, images_per_second, max_milliseconds, model)
        wanted |= {latency['test_resolution']}
    pairs = {
        size: max(kind.min_resolution, _round(size * spread.mean, kind.stride, down=True)) for size in sorted(wanted)
    }
    sweep = _sweep(train_resolution, equal, kind.stride)
    costs = _costs(model, train_resolution, {*sweep, *pairs, *pairs.values()}) if model is not None else ()
    return Advice(
        train_resolution=train_resolution,
        apparent_size=spread,
        square_images=(mean, std),
        num_images=0 if image_sizes is None else len(image_sizes),
        equal_resolution=equal,
        test_resolution=_round(equal, math.lcm(FINE, kind.multiple)),
        sweep=sweep,
        train_resolution_for=pairs,
        costs=costs,
        latency=latency,
    )


def _kind(model: Model | None) -> Architecture | type[Architecture]:
    """Return what is known of the network's sizes; without a network, what is usual."""
    return model.architecture if model is not None else Architecture


def _round(value: float, multiple: int, down: bool = False) -> int:
    return multiple * int(value / multiple + (0 if down else 0.5))


def _sweep(train_resolution: int, equal: float, stride: int) -> tuple[int, ...]:
    """Return the training size and the multiples of the stride from it to well above the size of equal zoom."""
    low, high = (factor * train_resolution for factor in SWEEP)
    high = max(high, equal + stride)
    return tuple(sorted({train_resolution, *range(_round(low + stride, stride, down=True), int(high) + 1, stride)}))


def _costs(model: Model, train_resolution: int, resolutions: set[int]) -> tuple[dict[str, float], ...]:
    stride = model.architecture.stride
    lower = {_round(factor * train_resolution, stride) for factor in (0.5, 0.6, 0.75, 0.85)}
    counted = flops(model, tuple(sorted({train_resolution, *resolutions, *lower} - {0})))
    at_training = counted[train_resolution]
    return tuple(
        {'resolution': r, 'gflops': value / 1e9, 'relative': value / at_training} for r, value in counted.items()
    )


def _within(
    train_resolution: int, images_per_second: float, max_milliseconds: float, model: Model | None
) -> dict[str, float]:
    """Return the largest test resolution whose forward pass keeps to a time, from the time at another resolution."""
    stride, least = _kind(model).stride, _kind(model).min_resolution
    measured = 1000 / images_per_second
    largest = train_resolution * (max_milliseconds / measured) ** 0.5
    candidates = range(least, int(largest) + 2 * stride, stride)
    work = {size: size**2 for size in (*candidates, train_resolution)}
    if model is not None:
        near = [size for size in candidates if size > largest - 3 * stride]
        work = flops(model, (*near, train_resolution))
    times = {size: measured * value / work[train_resolution] for size, value in work.items() if size in candidates}
    fitting = [size for size, value in times.items() if value <= max_milliseconds]
    if not fitting:
        raise UsageError(
            f'No resolution of {least} or more takes {max_milliseconds:g} ms or less at {images_per_second:g} '
            f'images/s: give a smaller network or more time.'
        )
    return {'test_resolution': max(fitting), 'milliseconds': times[max(fitting)]}


def describe(advice: Advice, model: str = 'the network') -> str:
    """Return the advice as lines for people; `model` is what the network is called in them."""
    a, spread = advice, advice.apparent_size
    where = f'your {a.num_images} images' if a.num_images else 'square images'
    lines = [
        f'At equal resolutions objects look {spread.mean:.2f} times as large in the test as in training '
        f'({where}; standard deviation {spread.std:.2f}).',
        f'They look alike on average at {a.equal_resolution:.0f} pixels, for training at {a.train_resolution}: '
        f'test at {a.test_resolution}.',
        f'Sweep on held-out images: {", ".join(map(str, a.sweep))}.',
    ]
    if a.latency:
        lines.append(
            f'Within your time: test at {a.latency["test_resolution"]}, {a.latency["milliseconds"]:.2f} ms an image.'
        )
    for test_size, train_size in a.train_resolution_for.items():
        lines.append(f'For testing at {test_size}: train at {train_size}, and adapt at {test_size}.')
    if a.costs:
        lines.append(
            f'Work of a forward pass of {model} on one image, at 2 operations per multiply-add (a training step takes '
            'about three times as much):'
        )
        lines += [
            f'  {row["resolution"]:4d} pixels: {row["gflops"]:8.2f} GFLOP, {row["relative"]:.2f} of that at '
            f'{a.train_resolution}'
            for row in a.costs
        ]
    return '\n'.join([*lines, 'What this cannot know:', *(f'  - {line}' for line in a.unknown)])
