"""Adaptation in one pass against SGD fine-tuning: accuracy, wall time and passes through the trunk, in one run.

python benchmarks/adaptation.py --run WORKDIR --data IMAGENETTE --out DIR [--resolutions 96 128 160] [--epochs 20]

WORKDIR is that of a recipe's run, whose trained network (its folder train/) is adapted; what was held out from its
training is held out here. DIR/adaptation.json gets a row for each resolution; one that is there is not measured again.
"""

import argparse
import json
import platform
import time

import jax
from etils import epath

from configs import base
from fixres_jax import models
from fixres_jax.adaptation import adapt
from fixres_jax.core import sections
from fixres_jax.core.files import write_json
from fixres_jax.core.progress import log
from fixres_jax.data import sources, transforms
from fixres_jax.data.sources import Splits
from fixres_jax.evaluation import evaluate
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.runs import provenance
from fixres_jax.training import train
from fixres_jax.training.optimization import Finetuning
from fixres_jax.training.train import Writing
from fixres_jax.weights import network


def main() -> None:
    """Measure every resolution that DIR/adaptation.json does not have yet."""
    args = _arguments()
    runtime = Runtime(sharding.make_mesh())
    config = json.loads((epath.Path(args.run) / 'config.json').read_text())
    trained = network.load(epath.Path(args.run) / 'train', bn_group_size=config['model']['bn_group_size'] or None)
    train_images, held_out = sources.hold_out(
        sources.create(args.data, 'train'), config['data']['held_out_fraction'], config['seed']
    )
    if reason := provenance.why_seen(provenance.given_trainings(trained.about), held_out):
        raise SystemExit(f'The network in {args.run} may have seen the images held out from {args.data}: {reason}.')
    images = Splits(train_images, held_out, sources.create(args.data, 'val'))
    path = epath.Path(args.out) / 'adaptation.json'
    rows = json.loads(path.read_text())['rows'] if path.exists() else []
    for resolution in args.resolutions:
        if resolution in [row['resolution'] for row in rows]:
            continue
        row = measure(trained, images, resolution, args, runtime)
        rows.append(row)
        log.info('%s', row)
        machine = f'{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}'
        write_json(path, {'train_resolution': trained.about['train_resolution'], 'machine': machine, 'rows': rows})
    print(_table(rows))


def measure(trained, images, resolution, args, runtime):
    """Adapt and fine-tune at one resolution; return accuracies, their paired difference, seconds and passes."""
    test_transforms = {resolution: transforms.make_test(resolution, resize_ratio=trained.about['resize_ratio'])}
    optimization = _optimization(trained.about['architecture'], args)
    directory = epath.Path(args.out) / str(resolution)
    if directory.exists():  # of a run that was stopped: times count only when they are whole
        directory.rmtree()
    began, work_began = time.monotonic(), time.process_time()
    placed = trained.placed(runtime)
    adapted, record = adapt.adapt(
        placed, images, test_transforms, _adaptation(optimization), Feed(runtime, args.batch_size, 'adapt'),
        seed=0, directory=directory / 'embeddings',
    )[resolution]  # fmt: skip
    jax.block_until_ready(adapted.variables)
    adapt_seconds, adapt_work = time.monotonic() - began, time.process_time() - work_began
    began, work_began = time.monotonic(), time.process_time()
    tuned, info = train.run(
        trained, images.train, test_transforms[resolution], optimization,
        runtime=runtime, writing=Writing(directory / 'sgd', 50, 0, 1, 0), seed=1, title=f'sgd {resolution}',
    )  # fmt: skip
    sgd_seconds, sgd_work = time.monotonic() - began, time.process_time() - work_began
    networks = {'before': placed, 'sgd': tuned, 'adapted': adapted}
    result = evaluate.evaluate(networks, images.test, test_transforms, Feed(runtime, 256, f'test {resolution}'))
    directory.rmtree()
    return {
        'resolution': resolution,
        **{name: evaluate.find_point(result, name, resolution) for name in networks},
        'adapted_minus_sgd': evaluate.compare(result, ('adapted', resolution), ('sgd', resolution)),
        'adapted_minus_before': evaluate.compare(result, ('adapted', resolution), ('before', resolution)),
        'seconds': {'adapted': adapt_seconds, 'sgd': sgd_seconds},
        'times_less': sgd_seconds / adapt_seconds,
        'processor_seconds': {'adapted': adapt_work, 'sgd': sgd_work},
        'passes': {'adapted': record['passes'], 'sgd': info['images_seen'] / len(images.train)},
        'adaptation': record,
    }


def _optimization(architecture, args):
    """Return the reference's fine-tuning at this batch size."""
    given = {'epochs': float(args.epochs), 'batch_size': args.batch_size} | models.find(architecture).finetune()
    return sections.fill(Finetuning, base.get_config().finetune.to_dict() | given)


def _adaptation(optimization):
    """Return the defaults of `configs/base.py`."""
    return adapt.Adaptation(
        batch_norm=optimization.batch_norm, statistics_images=10000, prior_images=0, solver='lbfgs',
        weight_decays=(0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2), max_iterations=100, optimization=optimization,
        flip=False, copies=0, cache_dtype='float32', cache_gigabytes=8.0, sweep_images=50000, unseen=True,
    )  # fmt: skip


def _table(rows):
    lines = [
        '| test resolution | not adapted | SGD | one pass | one pass - SGD (95 % interval) | seconds, SGD '
        '| seconds, one pass | times less | passes, SGD | passes, one pass |',
        '|' + ' --- |' * 10,
    ]
    for row in sorted(rows, key=lambda row: row['resolution']):
        d = row['adapted_minus_sgd']
        top1 = ' | '.join(f'{row[name]["top1"]:.2f}' for name in ('before', 'sgd', 'adapted'))
        lines.append(
            f'| {row["resolution"]} | {top1} | {d["difference"]:+.2f} ({d["low"]:+.2f} to {d["high"]:+.2f}) '
            f'| {row["seconds"]["sgd"]:.0f} '
            f'| {row["seconds"]["adapted"]:.0f} | {row["times_less"]:.1f} | {row["passes"]["sgd"]:.2f} '
            f'| {row["passes"]["adapted"]:.2f} |'
        )
    return '\n'.join(lines)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--resolutions', type=int, nargs='+', default=[96, 128, 160])
    parser.add_argument('--epochs', type=float, default=20.0)
    parser.add_argument('--batch_size', type=int, default=128)
    return parser.parse_args()


if __name__ == '__main__':
    import logging

    logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S')
    log.setLevel(logging.INFO)
    main()
