"""Advise on resolutions: which to test at, which to train at, and what each costs.

    python -m fixres_jax.advise --train-resolution 224 --model resnet50
    python -m fixres_jax.advise --train-resolution 224 --images FOLDER --wanted-test-resolution 224
    python -m fixres_jax.advise --train-resolution 224 --images-per-second 900 --max-milliseconds 2

Everything follows from how large objects look in training and in the test, and from the network's counted work; no
network is run and no pixel is decoded. The modules that import jax are imported late: help needs none.
"""

import argparse
import dataclasses
import json
import sys
from typing import Any

import numpy as np

from fixres_jax import command
from fixres_jax.analysis import sizes
from fixres_jax.errors import UsageError

STRIDE = 32  # pixels: sizes that are no multiple of it lose a little at the borders of the last maps
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
      test_resolution: the same to a multiple of `FINE`.
      sweep: pixels, the test resolutions worth trying.
      train_resolution_for: wanted test resolution -> training resolution of equal size, to a multiple of `STRIDE`.
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


def flops(model: Any, resolutions: tuple[int, ...]) -> dict[int, float]:
    """Count the operations of a forward pass of one image, by XLA, without running it.

    Args:
      model: from `models.create`.
      resolutions: pixels.

    Returns:
      Resolution -> floating point operations; a multiplication and an addition are two.
    """
    import jax
    import jax.numpy as jnp

    from fixres_jax.models import EVAL

    def count(resolution: int) -> float:
        image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.uint8)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, EVAL), image)
        lowered = jax.jit(lambda variables, x: model.apply(variables, x, EVAL)[0]).lower(variables, image)
        return float(lowered.cost_analysis()['flops'])

    return {resolution: count(resolution) for resolution in resolutions}


def advise(
    train_resolution: int,
    train: sizes.TrainCrop,
    test: sizes.TestCrop,
    *,
    image_sizes: np.ndarray | None = None,
    model: Any = None,
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
    from fixres_jax.models import MIN_RESOLUTION

    for name, value in (('train_resolution', train_resolution), ('wanted_test_resolution', wanted_test_resolution)):
        if value is not None and value < MIN_RESOLUTION:
            raise UsageError(f'{name}={value} is too small: the networks divide it by {MIN_RESOLUTION}.')
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
    pairs = {size: max(MIN_RESOLUTION, _round(size * spread.mean, STRIDE, down=True)) for size in sorted(wanted)}
    sweep = _sweep(train_resolution, equal)
    costs = _costs(model, train_resolution, {*sweep, *pairs, *pairs.values()}) if model is not None else ()
    return Advice(
        train_resolution=train_resolution,
        apparent_size=spread,
        square_images=(mean, std),
        num_images=0 if image_sizes is None else len(image_sizes),
        equal_resolution=equal,
        test_resolution=_round(equal, FINE),
        sweep=sweep,
        train_resolution_for=pairs,
        costs=costs,
        latency=latency,
    )


def _round(value: float, multiple: int, down: bool = False) -> int:
    return multiple * int(value / multiple + (0 if down else 0.5))


def _sweep(train_resolution: int, equal: float) -> tuple[int, ...]:
    """Return the training size and the multiples of the stride from it to well above the size of equal zoom."""
    low, high = (factor * train_resolution for factor in SWEEP)
    high = max(high, equal + STRIDE)
    return tuple(sorted({train_resolution, *range(_round(low + STRIDE, STRIDE, down=True), int(high) + 1, STRIDE)}))


def _costs(model: Any, train_resolution: int, resolutions: set[int]) -> tuple[dict[str, float], ...]:
    lower = {_round(factor * train_resolution, STRIDE) for factor in (0.5, 0.6, 0.75, 0.85)}
    counted = flops(model, tuple(sorted({train_resolution, *resolutions, *lower} - {0})))
    own = counted[train_resolution]
    return tuple({'resolution': r, 'gflops': value / 1e9, 'relative': value / own} for r, value in counted.items())


def _within(train_resolution: int, images_per_second: float, max_milliseconds: float, model: Any) -> dict[str, float]:
    """Return the largest test resolution whose forward pass keeps to a time, from the time at another resolution."""
    from fixres_jax.models import MIN_RESOLUTION

    measured = 1000 / images_per_second
    largest = train_resolution * (max_milliseconds / measured) ** 0.5
    candidates = range(MIN_RESOLUTION, int(largest) + 2 * STRIDE, STRIDE)
    work = {size: size**2 for size in (*candidates, train_resolution)}
    if model is not None:
        near = [size for size in candidates if size > largest - 3 * STRIDE]
        work = flops(model, (*near, train_resolution))
    times = {size: measured * value / work[train_resolution] for size, value in work.items() if size in candidates}
    fitting = [size for size, value in times.items() if value <= max_milliseconds]
    if not fitting:
        raise UsageError(
            f'No resolution of {MIN_RESOLUTION} or more takes {max_milliseconds:g} ms or less at {images_per_second:g} '
            f'images/s: give a smaller network or more time.'
        )
    return {'test_resolution': max(fitting), 'milliseconds': times[max(fitting)]}


def describe(advice: Advice) -> str:
    """Return the advice as lines for people."""
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
        lines.append('Work of a forward pass of one image (a training step takes about three times as much):')
        lines += [
            f'  {row["resolution"]:4d} pixels: {row["gflops"]:8.2f} GFLOP, {row["relative"]:.2f} of that at '
            f'{a.train_resolution}'
            for row in a.costs
        ]
    return '\n'.join([*lines, 'What this cannot know:', *(f'  - {line}' for line in a.unknown)])


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = command.Parser(
        'python -m fixres_jax.advise',
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add('--train-resolution', type=int, default=224, help='pixels')
    add('--crop', default='torchvision', help='sampler of training crops: torchvision, tensorflow or resize')
    add('--scale', type=float, nargs=2, default=(0.08, 1.0), help='range of the area of a crop over the image')
    add('--ratio', type=float, nargs=2, default=(3 / 4, 4 / 3), help='range of width over height of a crop')
    add('--train-resize-ratio', type=float, default=sizes.TEST_RATIO, help='with --crop resize: side over crop')
    add('--resize-ratio', type=float, default=sizes.TEST_RATIO, help='in the test: shorter side over crop')
    add('--resize', default='short', help='in the test: the side resized, short, height or long')
    add('--images', help='folder of images whose sizes count; without it they are taken to be square')
    add('--model', default='resnet50', help='network whose work is counted; none to leave it out')
    add('--width', type=int, default=64, help='channels of its stem')
    add('--wanted-test-resolution', type=int, help='find the training resolution for this')
    add('--images-per-second', type=float, help='measured, forward, at the training resolution')
    add('--max-milliseconds', type=float, help='of an image at the test resolution, wanted')
    add('--json', action='store_true', help='print everything as JSON')
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Print the advice that the arguments ask for."""
    arguments = _arguments(argv)
    from fixres_jax import models

    model = None if arguments.model == 'none' else models.create(arguments.model, width=arguments.width)
    advice = advise(
        arguments.train_resolution,
        sizes.TrainCrop(arguments.crop, tuple(arguments.scale), tuple(arguments.ratio), arguments.train_resize_ratio),
        sizes.TestCrop(arguments.resize_ratio, arguments.resize),
        image_sizes=sizes.read(arguments.images) if arguments.images else None,
        model=model,
        wanted_test_resolution=arguments.wanted_test_resolution,
        images_per_second=arguments.images_per_second,
        max_milliseconds=arguments.max_milliseconds,
    )
    print(json.dumps(dataclasses.asdict(advice), indent=2) if arguments.json else describe(advice))


if __name__ == '__main__':
    sys.exit(command.run(main, sys.argv[1:]))
