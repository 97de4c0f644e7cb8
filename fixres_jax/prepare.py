"""Write a data set as ArrayRecord shards: every image checked once, converted to RGB and, if asked, resized once.

    fixres prepare SOURCE OUT [--short-side 256] [--quality 95] [--shards N] [--workers N]
    fixres prepare SOURCE OUT ... --runner DataflowRunner -- --project=P --region=R  # Beam's options

Started again, it makes what is missing or damaged and leaves the rest.
"""

import argparse
import functools
import importlib.util
import logging
import os
import sys
from collections.abc import Callable

from fixres_jax.core import command, files
from fixres_jax.core.errors import UsageError
from fixres_jax.data import preparation, sources

RUNNERS = ('DirectRunner', 'FlinkRunner', 'SparkRunner', 'DataflowRunner')


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = command.Parser('python -m fixres_jax.prepare', describe=__doc__)
    parser.add_argument('source', help='folder with one folder per split, or tfds:NAME')
    parser.add_argument('out', help='folder to write to: one folder per split')
    parser.add_argument('--split', action='append', help='split to prepare, may be given several times; default: all')
    parser.add_argument('--short-side', type=int, default=0, help='resize longer shorter sides to this; default: no')
    parser.add_argument('--quality', type=int, default=95, help='of JPEG files written anew; default: 95')
    parser.add_argument('--shards', type=int, default=0, help='shards a split; default: one per 2,000 images')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes here; default: one per core')
    parser.add_argument('--skip-bad', action='store_true', help='leave out bad images instead of stopping')
    parser.add_argument('--runner', choices=RUNNERS, help="Apache Beam's, instead of processes started here")
    parser.add_argument(
        'beam', nargs='*', default=[], help="after '--': options of the runner, as Beam's documentation has them"
    )
    cut = argv.index('--') if '--' in argv else len(argv)
    arguments = parser.parse_args(argv[:cut])
    if arguments.beam:
        parser.error(f'unrecognized arguments: {" ".join(arguments.beam)}')
    arguments.beam = argv[cut + 1 :]
    if arguments.beam and not arguments.runner:
        raise UsageError(f'{" ".join(arguments.beam)} are options of a runner: give it too, as --runner {RUNNERS[0]}.')
    for name, low, high in (
        ('short_side', 0, 10_000),
        ('quality', 1, 100),
        ('shards', 0, preparation.MAX_SHARDS),
        ('workers', 0, 512),
    ):
        if not low <= getattr(arguments, name) <= high:
            raise UsageError(f'--{name.replace("_", "-")}={getattr(arguments, name)}: expected {low} to {high}.')
    return arguments


def _engine(arguments: argparse.Namespace) -> Callable[[preparation.Job], None]:
    """Return what makes the shards of a job."""
    if not arguments.runner:
        return functools.partial(preparation.run_here, workers=arguments.workers)
    if importlib.util.find_spec('apache_beam') is None:
        raise UsageError(f'--runner {arguments.runner} needs Apache Beam: pip install "fixres-jax[beam]".')
    from fixres_jax.data import beam  # takes seconds to import

    options = beam.read_options(arguments.runner, arguments.beam, arguments.workers)
    return functools.partial(beam.run, options=options)


def main(argv: list[str]) -> None:
    """Prepare all splits asked for, and say what was written and what was left out."""
    arguments = _arguments(argv)
    engine = _engine(arguments)
    found = sources.splits(arguments.source)
    splits = arguments.split or found
    out = files.reachable(arguments.out).expanduser()
    for split in splits:
        preparation.check_apart(arguments.source, out / split)
    for split in splits:
        source = sources.create(arguments.source, split)
        job = preparation.Job(
            source,
            source.fingerprint(),
            out / split,
            arguments.shards or preparation.num_shards(len(source)),
            arguments.short_side,
            arguments.quality,
            arguments.skip_bad,
        )
        summary = preparation.prepare(job, engine)
        print(
            f'{job.out}: {summary["written"]} images of {len(source.class_names)} classes in {job.num_shards} shards, '
            f'{summary["bytes"] / 1e6:.1f} MB; {summary["left_out"]} left out.'
        )


if __name__ == '__main__':
    logging.basicConfig(format='%(message)s', level=logging.INFO)
    sys.exit(command.run(main, sys.argv[1:], interrupted='interrupted; the same command goes on from there.'))
