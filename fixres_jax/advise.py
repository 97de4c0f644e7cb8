"""Advise on resolutions: which to test at, which to train at, and what each costs.

    fixres advise --train-resolution 224 --model resnet50
    fixres advise --train-resolution 224 --images FOLDER --wanted-test-resolution 224
    fixres advise --train-resolution 224 --images-per-second 900 --max-milliseconds 2

Nothing is run: it is arithmetic on the sizes of crops.
"""

import argparse
import dataclasses
import json
import sys

from fixres_jax.core import command
from fixres_jax.data.crops import TEST_RATIO, TestCrop, TrainCrop


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = command.Parser(
        'python -m fixres_jax.advise', describe=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add('--train-resolution', type=int, default=224, help='pixels')
    add('--crop', default='torchvision', help='sampler of training crops: torchvision, tensorflow or resize')
    add('--scale', type=float, nargs=2, default=(0.08, 1.0), help='range of the area of a crop over the image')
    add('--ratio', type=float, nargs=2, default=(3 / 4, 4 / 3), help='range of width over height of a crop')
    add('--train-resize-ratio', type=float, default=TEST_RATIO, help='with --crop resize: side over crop')
    add('--resize-ratio', type=float, default=TEST_RATIO, help='in the test: shorter side over crop')
    add('--resize', default='short', help='in the test: the side resized, short, height or long')
    add('--images', help='folder of images whose sizes count; without it they are taken to be square')
    add('--model', default='resnet50', help='network whose work is counted; none to leave it out')
    add('--width', type=int, default=0, help='channels of its stem; 0: those of the published network')
    add('--wanted-test-resolution', type=int, help='find the training resolution for this')
    add('--images-per-second', type=float, help='measured, forward, at the training resolution')
    add('--max-milliseconds', type=float, help='of an image at the test resolution, wanted')
    add('--json', action='store_true', help='print everything as JSON')
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Print the advice that the arguments ask for."""
    arguments = _arguments(argv)
    from fixres_jax import models  # late, with jax: help needs none
    from fixres_jax.studies import advice, sizes

    model = None
    if (name := arguments.model) != 'none':
        model = models.create(name, width=arguments.width)
    result = advice.advise(
        arguments.train_resolution,
        TrainCrop(arguments.crop, tuple(arguments.scale), tuple(arguments.ratio), arguments.train_resize_ratio),
        TestCrop(arguments.resize_ratio, arguments.resize),
        image_sizes=sizes.read(arguments.images) if arguments.images else None,
        model=model,
        wanted_test_resolution=arguments.wanted_test_resolution,
        images_per_second=arguments.images_per_second,
        max_milliseconds=arguments.max_milliseconds,
    )
    print(json.dumps(dataclasses.asdict(result), indent=2) if arguments.json else advice.describe(result, name))


if __name__ == '__main__':
    sys.exit(command.run(main, sys.argv[1:]))
