"""Test networks at several resolutions and crops, and compare them on the same images.

    fixres evaluate resnet50=resnet50.pth adapted.safetensors DATA --resolutions 224 288
    fixres evaluate resnet50=resnet50.pth DATA --resolutions 224 --crop-fractions 0.875 0.95 1 --csv results.csv

NETWORK is ARCHITECTURE=FILE for torch weights, a workdir, a folder of `fixres convert`, a file of `fixres adapt`, or
hf:timm/NAME. DATA is a folder of class folders (of one with splits, that of validation, else of testing), prepared
shards, or tfds:NAME. The CSV file has the columns of timm's validate.py, and others behind them.
"""

import argparse
import sys
from collections.abc import Sequence

from fixres_jax.core import command, progress, tables


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser('python -m fixres_jax.evaluate', describe=__doc__)
    add = parser.add_argument
    add('networks', metavar='NETWORK', nargs='+')
    add('data', metavar='DATA')
    add(
        '--resolutions',
        type=command.pixels,
        metavar='PIXELS',
        nargs='+',
        default=(),
        help='to test at',
    )
    add('--crop-fractions', type=float, nargs='+', default=(), help='crop over resized side; default: the own one')
    add('--csv', help='file to write')
    add('--batch-size', type=int, default=0, help='images at once; default: what suits the devices')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command.run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    progress.show_log()
    from fixres_jax import library
    from fixres_jax.machines import compilation

    with progress.Activity('evaluate'), compilation.told():
        table = library.evaluate(
            dict(zip(tables.endings(arguments.networks), map(library.named, arguments.networks), strict=True)),
            arguments.data,
            arguments.resolutions,
            crop_fractions=arguments.crop_fractions,
            batch_size=arguments.batch_size,
        )
    print(table)
    if arguments.csv:
        table.to_csv(arguments.csv)


if __name__ == '__main__':
    sys.exit(main())
