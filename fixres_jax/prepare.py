"""Write a data set as ArrayRecord shards: every image checked once, converted to RGB and, if asked, resized once.

    python -m fixres_jax.prepare SOURCE OUT [--short-side 256] [--quality 95] [--shards N] [--workers N]

Started again, it makes what is missing or damaged and leaves the rest.
"""

import argparse
import logging
import os
import sys

from etils import epath

from fixres_jax.core import command
from fixres_jax.core.errors import UsageError
from fixres_jax.data import preparation, sources


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = command.Parser('python -m fixres_jax.prepare', description=__doc__.splitlines()[0])
    parser.add_argument('source', help='folder with one folder per split, or tfds:NAME')
    parser.add_argument('out', help='folder to write to: one folder per split')
    parser.add_argument('--split', action='append', help='split to prepare, may be given several times; default: all')
    parser.add_argument('--short-side', type=int, default=0, help='resize longer shorter sides to this; default: no')
    parser.add_argument('--quality', type=int, default=95, help='of JPEG files written anew; default: 95')
    parser.add_argument('--shards', type=int, default=0, help='shards a split; default: one per 2,000 images')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes; default: one per core')
    parser.add_argument('--skip-bad', action='store_true', help='leave out bad images instead of stopping')
    arguments = parser.parse_args(argv)
    for name, low, high in (('short_side', 0, 10_000), ('quality', 1, 100), ('shards', 0, 99_999), ('workers', 0, 512)):
        if not low <= getattr(arguments, name) <= high:
            raise UsageError(f'--{name.replace("_", "-")}={getattr(arguments, name)}: expected {low} to {high}.')
    if '://' in arguments.out:
        raise UsageError(f'Shards are written to a local or mounted folder, not to {arguments.out}: copy them after.')
    return arguments


def main(argv: list[str]) -> None:
    """Prepare all splits asked for, and say what was written and what was left out."""
    arguments = _arguments(argv)
    found = sources.splits(arguments.source)
    splits = arguments.split or found
    out = epath.Path(arguments.out).expanduser()
    for split in splits:
        preparation.check_apart(arguments.source, out / split)
    for split in splits:
        source = sources.create(arguments.source, split)
        job = preparation.Job(
            source,
            source.fingerprint(),
            out / split,
            arguments.shards or -(-len(source) // preparation.IMAGES_PER_SHARD),
            arguments.short_side,
            arguments.quality,
            arguments.skip_bad,
        )
        summary = preparation.prepare(job, arguments.workers, f'prepare {split}'.strip())
        print(
            f'{job.out}: {summary["written"]} images of {len(source.class_names)} classes in {job.num_shards} shards, '
            f'{summary["bytes"] / 1e6:.1f} MB; {summary["left_out"]} left out.'
        )


if __name__ == '__main__':
    logging.basicConfig(format='%(message)s', level=logging.INFO)
    sys.exit(command.run(main, sys.argv[1:], interrupted='interrupted; the same command goes on from there.'))
