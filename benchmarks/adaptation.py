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

from fixres_jax import adapt, checkpoint, evaluate, models, provenance, sharding, train
from fixres_jax.data import sources, transforms
from fixres_jax.metrics import write_json
from fixres_jax.progress import log


def main() -> None:
    """Measure every resolution that DIR/adaptation.json does not have yet."""
    args = _arguments()
    mesh = sharding.make_mesh()
    variables, metadata = checkpoint.load_model(epath.Path(args.run) / 'train')
    config = json.loads((epath.Path(args.run) / 'config.json').read_text())
    model = models.create(
        metadata['architecture'], metadata['num_classes'], width=metadata['width'],
        bn_group_size=config['model']['bn_group_size'] or None, mean=metadata['mean'], std=metadata['std'],
    )  # fmt: skip
    images, held_out = sources.hold_out(
        sources.create(args.data, 'train'), config['data']['held_out_fraction'], config['seed']
    )
    if reason := provenance.why_seen(provenance.given_trainings(metadata), held_out):
        raise SystemExit(f'The network in {args.run} may have seen the images held out from {args.data}: {reason}.')
    test = sources.create(args.data, 'val')
    path = epath.Path(args.out) / 'adaptation.json'
    rows = json.loads(path.read_text())['rows'] if path.exists() else []
    for resolution in args.resolutions:
        if resolution in [row['resolution'] for row in rows]:
            continue
        row = measure(model, variables, images, held_out, test, resolution, metadata, args, mesh)
        rows.append(row)
        log.info('%s', row)
        machine = f'{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}'
        write_json(path, {'train_resolution': metadata['train_resolution'], 'machine': machine, 'rows': rows})
    print(_table(rows))


def measure(model, variables, images, held_out, test, resolution, metadata, args, mesh):
    """Adapt and fine-tune at one resolution; return accuracies, their paired difference, seconds and passes."""
    test_transform = transforms.make_test(resolution, resize_ratio=metadata['resize_ratio'])
    optimization = _optimization(metadata['architecture'], args)
    directory = epath.Path(args.out) / str(resolution)
    if directory.exists():  # of a run that was stopped: times count only when they are whole
        directory.rmtree()
    began, work_began = time.monotonic(), time.process_time()
    placed = jax.device_put(variables, sharding.replicated(mesh))
    adapted, record = adapt.adapt(
        model, placed, images, held_out, {resolution: test_transform}, _adaptation(optimization),
        batch_size=args.batch_size, seed=0, mesh=mesh, directory=directory / 'embeddings',
    )[resolution]  # fmt: skip
    jax.block_until_ready(adapted)
    adapt_seconds, adapt_work = time.monotonic() - began, time.process_time() - work_began
    began, work_began = time.monotonic(), time.process_time()
    tuned, info = train.run(
        model, images, test_transform, optimization, variables=variables, repeats=1, seed=1, mesh=mesh,
        layout='replicated', directory=directory / 'sgd', metadata=metadata, log_every_steps=50,
        checkpoint_every_steps=0, keep_checkpoints=1, restore_step=0,
        reading={'workers': 0, 'threads': 4}, title=f'sgd {resolution}',
    )  # fmt: skip
    sgd_seconds, sgd_work = time.monotonic() - began, time.process_time() - work_began
    networks = {'before': placed, 'sgd': tuned, 'adapted': adapted}
    result = evaluate.evaluate(
        model, networks, test, {resolution: test_transform}, batch_size=256, mesh=mesh, title=f'test {resolution}'
    )
    directory.rmtree()
    return {
        'resolution': resolution,
        **{name: evaluate.find_point(result, name, resolution) for name in networks},
        'adapted_minus_sgd': evaluate.compare(result, ('adapted', resolution), ('sgd', resolution)),
        'adapted_minus_before': evaluate.compare(result, ('adapted', resolution), ('before', resolution)),
        'seconds': {'adapted': adapt_seconds, 'sgd': sgd_seconds},
        'times_less': sgd_seconds / adapt_seconds,
        'processor_seconds': {'adapted': adapt_work, 'sgd': sgd_work},
        'passes': {'adapted': record['passes'], 'sgd': info['images_seen'] / len(images)},
        'adaptation': record,
    }


def _optimization(architecture, args):
    """Return the reference's fine-tuning at this batch size."""
    return train.Optimization(
        epochs=args.epochs, batch_size=args.batch_size, accumulate_steps=1, lr=1e-3, lr_rule='fixres', schedule='step',
        decay_every_epochs=30.0, warmup_epochs=0.0, momentum=0.9, weight_decay=1e-4, label_smoothing=0.0,
        **models.FINETUNE[architecture],
    )  # fmt: skip


def _adaptation(optimization):
    """Return the defaults of `configs/base.py`."""
    return adapt.Adaptation(
        batch_norm=optimization.batch_norm, statistics_images=10000, solver='lbfgs',
        weight_decays=(0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2), max_iterations=100, optimization=optimization,
        flip=False, copies=0, cache_dtype='float32', cache_gigabytes=8.0, unseen=True,
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
