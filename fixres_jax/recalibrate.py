"""Give the BatchNorm layers of a network exact statistics of some images, at some resolution.

    fixres recalibrate resnet50=averaged.pth --images DATA/train --resolution 288 --out exact.pth
    fixres recalibrate runs/resnet50 --images DATA --split train --resolution 288 --layers 'layer4/.*' --out exact

For weights that were averaged, merged, pruned or quantized after their training. NETWORK is ARCHITECTURE=FILE for torch
weights, a workdir, a folder of `fixres convert`, a file of `fixres adapt`, or hf:timm/NAME.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fixres_jax import library, models
from fixres_jax.adaptation import recalibration
from fixres_jax.core import command
from fixres_jax.core.errors import UsageError
from fixres_jax.data import sources
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.runs import provenance


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(prog='python -m fixres_jax.recalibrate', describe=__doc__)
    add = parser.add_argument
    add('network', metavar='NETWORK')
    add('--images', required=True, metavar='FOLDER', help='class folders, shards, or splits of these')
    add('--split', default='', help='split in FOLDER, such as train, where it holds splits')
    add('--resolution', required=True, type=command.pixels, metavar='PIXELS', help='of the test: 288, or 352x640')
    add('--layers', default='.*', metavar='REGEX', help="BatchNorm layers, such as 'layer4/.*'; all by default")
    add('--one-pass', action='store_true', help='all layers in one pass instead of a pass for each')
    add('--num-images', type=int, default=0, help='a random part of the images; 0: all')
    add('--prior-images', type=int, default=0, help='that the old statistics count as, to be blended in; default: 0')
    add('--batch-size', type=int, default=256, help='images of a batch')
    add('--threads', type=int, default=4, help='that read images')
    add('--seed', type=int, default=0, help='of that part')
    add('--out', required=True, help='.safetensors, .pth, or a folder')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command.run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    given = _parser().parse_args(argv)
    if Path(given.out).exists():
        raise UsageError(f'{given.out} is there already: give another place with --out.')
    lowest = {'batch_size': 1, 'num_images': 0, 'prior_images': 0, 'threads': 1, 'seed': 0}
    for name, least in lowest.items():
        if getattr(given, name) < least:
            raise UsageError(f'--{name.replace("_", "-")}={getattr(given, name)}: expected {least} or more.')
    loaded = library.named(given.network)
    transform = loaded.transform(given.resolution)
    layers = models.batch_norm_layers(loaded.variables['batch_stats'], given.layers)
    if not layers:
        raise UsageError(f'{given.network} has no BatchNorm layers: there is nothing to recalibrate.')
    source = sources.create(given.images, given.split)
    if given.num_images:
        source = sources.sample(source, given.num_images, given.seed)
    result = recalibration.recalibrate(
        loaded,
        source,
        transform,
        Feed(Runtime(sharding.make_mesh(), threads=given.threads), given.batch_size, 'recalibrate'),
        batch_norm=given.layers,
        at_once=given.one_pass,
        prior_images=given.prior_images,
    )
    # Statistics tell of the images, too: a later run must not take them for unseen.
    selection = {'source': given.images, 'train_split': given.split, 'seed': given.seed}
    record = provenance.training(selection, source, None)
    about = dict(loaded.about)
    about['trained_on'] = provenance.extend(provenance.given_trainings(about), record)
    library.Classifier(result.model, result.variables, about).save(given.out)
    passes = 1 if given.one_pass else len(layers)
    print(f'{given.out}: statistics of {len(layers)} BatchNorm layers at {given.resolution}, in {passes} passes.')


if __name__ == '__main__':
    sys.exit(main())
