"""Give the BatchNorm layers of a network exact statistics of some images, at some resolution.

    fixres recalibrate weights --images DATA/train --resolution 288 --out exact
    fixres convert --to-torch exact exact.safetensors

For weights that were averaged, merged, pruned or quantized after their training.
"""

import argparse
import sys
from collections.abc import Sequence

from fixres_jax import models
from fixres_jax.adaptation import recalibration
from fixres_jax.core import command
from fixres_jax.core.errors import UsageError
from fixres_jax.data import sources, transforms
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.runs import provenance
from fixres_jax.weights import network


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(prog='python -m fixres_jax.recalibrate', describe=__doc__)
    add = parser.add_argument
    add('network', metavar='NETWORK', help='workdir, folder of a phase, or converted weights')
    add('--images', required=True, metavar='FOLDER', help='class folders, shards, or splits of these')
    add('--split', default='', help='split in FOLDER, such as train, where it holds splits')
    add('--resolution', required=True, type=int, help='pixels of the test transform')
    add('--layers', default='.*', metavar='REGEX', help="BatchNorm layers, such as 'layer4/.*'; all by default")
    add('--one-pass', action='store_true', help='all layers in one pass instead of a pass for each')
    add('--num-images', type=int, default=0, help='a random part of the images; 0: all')
    add('--prior-images', type=int, default=0, help='that the old statistics count as, to be blended in; default: 0')
    add('--batch-size', type=int, default=256, help='images of a batch')
    add('--threads', type=int, default=4, help='that read images')
    add('--seed', type=int, default=0, help='of that part')
    add('--out', required=True, help='folder to write, absent or empty')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return command.run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    given = _parser().parse_args(argv)
    out = command.empty_folder(given.out)
    lowest = {'resolution': 1, 'batch_size': 1, 'num_images': 0, 'prior_images': 0, 'threads': 1, 'seed': 0}
    for name, least in lowest.items():
        if getattr(given, name) < least:
            raise UsageError(f'--{name.replace("_", "-")}={getattr(given, name)}: expected {least} or more.')
    loaded = network.load(given.network)
    architecture = loaded.model.architecture
    if given.resolution < architecture.min_resolution or given.resolution % architecture.multiple:
        expected = f'{architecture.min_resolution} or more, a multiple of {architecture.multiple}'
        raise UsageError(f'--resolution={given.resolution}: this network takes {expected}.')
    layers = models.batch_norm_layers(loaded.variables['batch_stats'], given.layers)
    if not layers:
        raise UsageError(f'{given.network} has no BatchNorm layers: there is nothing to recalibrate.')
    source = sources.create(given.images, given.split)
    if given.num_images:
        source = sources.sample(source, given.num_images, given.seed)
    about = loaded.about
    how = {name: about[name] for name in ('resize_ratio', 'resize', 'interpolation')}
    runtime = Runtime(sharding.make_mesh(), threads=given.threads)
    result = recalibration.recalibrate(
        loaded.placed(runtime),
        source,
        transforms.make_test(given.resolution, **how),
        Feed(runtime, given.batch_size, 'recalibrate'),
        batch_norm=given.layers,
        at_once=given.one_pass,
        prior_images=given.prior_images,
    )
    # Statistics tell of the images, too: a later run must not take them for unseen.
    selection = {'source': given.images, 'train_split': given.split, 'seed': given.seed}
    record = provenance.training(selection, source, None)
    about = {**about, 'trained_on': provenance.extend(provenance.given_trainings(dict(about)), record)}
    network.save(out, network.Network(loaded.model, result.variables, about))
    passes = 1 if given.one_pass else len(layers)
    print(f'{given.out}: statistics of {len(layers)} BatchNorm layers at {given.resolution}, in {passes} passes.')


if __name__ == '__main__':
    sys.exit(main())
