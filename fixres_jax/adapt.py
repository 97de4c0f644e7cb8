"""Adapt a trained network to a test resolution, in one pass over training images.

    fixres adapt resnet50=resnet50.pth DATA --resolution 288
    fixres adapt runs/resnet50 DATA --out adapted.pth             # the resolution is chosen on held-out images
    fixres adapt resnet50=resnet50.pth PICTURES --reset-head      # other classes than the network's: a fresh classifier

NETWORK is ARCHITECTURE=FILE for torch weights, a workdir, a folder of `fixres convert`, a file of `fixres adapt`, or
hf:timm/NAME. DATA is a folder of class folders (of one with splits, that of training), prepared shards, or tfds:NAME.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fixres_jax.core import command, progress
from fixres_jax.core.errors import UsageError


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser('python -m fixres_jax.adapt', describe=__doc__)
    add = parser.add_argument
    add('network', metavar='NETWORK')
    add('data', metavar='DATA')
    add(
        '--resolution',
        type=command.pixels,
        metavar='PIXELS',
        help='to test at; else chosen on held-out images',
    )
    add(
        '--resolutions',
        type=command.pixels,
        metavar='PIXELS',
        nargs='+',
        default=(),
        help='to choose from',
    )
    add('--held-out', type=float, default=0.1, help='share of the images kept apart to choose on; default: 0.1')
    add('--unseen', action='store_true', default=None, help='the network was never trained on these images: choose')
    add(
        '--solver',
        default='auto',
        choices=('auto', 'lbfgs', 'sgd', 'none'),
        help='of the classifier; none: keep it, adapt the statistics alone',
    )
    add('--reset-head', action='store_true', help='start a fresh classifier, for other classes')
    add('--out', default='adapted.safetensors', help='.safetensors, .pth or a folder; default: adapted.safetensors')
    add('--flip', action='store_true', help='use the mirror images too')
    add('--copies', type=int, default=0, help='augmented copies of each image to use too')
    add('--prior-images', type=int, default=0, help='that the old statistics count as, to be blended in; default: 0')
    add('--batch-size', type=int, default=0, help='images at once; default: what suits the devices')
    add('--seed', type=int, default=0)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command.run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    if Path(arguments.out).exists():
        raise UsageError(f'{arguments.out} is there already: give another place with --out.')
    progress.show_log()
    import tempfile  # with the modules that import jax: help needs none

    from etils import epath

    from fixres_jax import library
    from fixres_jax.machines import compilation
    from fixres_jax.runs import alone

    names = ('flip', 'copies', 'prior_images', 'batch_size', 'seed', 'reset_head', 'solver')
    options = {name: getattr(arguments, name) for name in names}
    net = library.named(arguments.network)
    with (
        progress.Activity('adapt'),
        compilation.told(),
        tempfile.TemporaryDirectory(prefix='fixres_jax_') as directory,
    ):
        opened = alone.open_run(
            net,
            arguments.data,
            arguments.resolution,
            arguments.resolutions,
            held_out=arguments.held_out,
            unseen=arguments.unseen,
            workdir=epath.Path(directory),
            **options,
        )
        print(alone.plan(opened), flush=True)
        if seconds := alone.estimate(opened):
            print(f'That takes about {progress.duration(seconds)}, from a first batch.', flush=True)
        adapted = alone.adapt(opened)
    adapted.save(arguments.out)
    print(f'{adapted}\nIt is in {arguments.out}.')


if __name__ == '__main__':
    sys.exit(main())
