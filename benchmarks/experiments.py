"""Tables of runs: variants of a recipe and seeds, the four numbers of each beside each other.

    python benchmarks/experiments.py EXPERIMENT --data IMAGES --runs DIR --out FILE.json [--config.FIELD=VALUE ...]

EXPERIMENT is a row of EXPERIMENTS. The program makes its runs one after the other, in DIR/EXPERIMENT/VARIANT-SEED: what
was stopped goes on, and what is done is only read. Of each run a record is kept beside FILE.json, in the folder FILE:
which images each network got right. The workdir is not needed after that, so that several machines can share the runs.
A run with a record is not made again, whatever has changed since: another FILE makes them anew.
--variants and --seeds make a part of them; --config.FIELD=VALUE goes to every run, such as an init_from. The table is
printed and its numbers are written to FILE.json.

An accuracy is the mean over the seeds; its interval is over the test images, and the figure of each seed stands beside
it. Differences are of the same images and the same seeds.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fixres_jax
from fixres_jax.core import files, tables
from fixres_jax.evaluation import intervals

Overrides = Mapping[str, Any]  # field of the config -> value


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs that belong into one table.

    Attributes:
      config: that all begin with.
      variants: name -> what it changes; the others are compared with the first.
      seeds: of each variant.
      common: what all of them change.
    """

    config: str
    variants: Mapping[str, Overrides]
    seeds: Sequence[int] = (0, 1, 2)
    common: Overrides = dataclasses.field(default_factory=dict)


EXPERIMENTS = {
    # How far seeds are apart.
    'quickstart': Experiment('quickstart', {'quickstart': {}}),
    'imagenette': Experiment('imagenette:small', {'small': {}}),
    # Pieces of newer recipes: half an hour each on one core of an Intel Xeon, of which training takes about 25 minutes.
    'recipes': Experiment(
        'imagenette:plain',
        {
            'plain': {},
            'progressive': {'train.progressive': ((0.3333, 64), (0.6667, 80)), 'train.epochs': 24.0},
            'cutmix': {'train.mixing.cutmix': 1.0, 'train.mixing.probability': 0.5},
            'ema': {'train.ema.decay': 0.995},
            'trivial': {'train.augment': 'trivial', 'train.jitter': 0.0},
        },
        seeds=(0, 1),
        common={
            'train.epochs': 18.0,
            'validate_every_epochs': 0.0,
            'test.resolution': 128,
            'test.resolutions': (96, 128),
        },
    ),
    # Small images and the adaptation, or training at the size of the test: as many operations of training in all.
    'small_or_large': Experiment(
        'imagenette:plain',
        {
            'trained at 96': {},
            'trained at 128': {'train.resolution': 128, 'train.epochs': 16.875},
            'trained at 160': {'train.resolution': 160, 'train.epochs': 10.8},
        },
        common={'test.resolutions': (96, 128, 160, 192, 224)},
    ),
    # An ImageNet network on a finer task; it needs --config.init_from, which configs/transfer.py tells how to make.
    'grocery': Experiment(
        'transfer:grocery,tf_efficientnet_lite0',
        {'trained at 128': {}, 'trained at 160': {'train.resolution': 160}},
        common={
            'train.resolution': 128,
            'data.train_split': 'train',
            'data.test_split': 'val',
            'test.resolutions': (96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256),
        },
    ),
}
# What a report calls its numbers -> heading, folders in the workdir of which the first that is there has the network:
# an average is what was trained, and a run that is adapted to its training size is its own control.
NUMBERS = {
    'train_resolution': ('tested at the training size', ('ema', 'train')),
    'larger': ('larger, not adapted', ('ema', 'train')),
    'adapted': ('larger and adapted', ('adapt',)),
    'adapted_at_train_resolution': ('control: adapted at the training size', ('control', 'adapt')),
}
ENVIRONMENT = ('date', 'devices', 'host', 'commit')  # of a report: what is kept of it


def main() -> None:
    """Make the runs that are not there, and the table."""
    args, flags = _arguments()
    experiment = EXPERIMENTS[args.experiment]
    rows, first = [], None
    for variant in args.variants or experiment.variants:
        hits = []
        for seed in args.seeds or experiment.seeds:
            name = f'{variant.replace(" ", "_")}-{seed}'
            record = Path(args.out).with_suffix('') / f'{name}.json'
            if not record.exists():
                workdir = Path(args.runs) / args.experiment / name
                if not (workdir / 'report.json').exists():
                    _run(experiment, variant, seed, workdir, args.data, flags)
                _keep(record, workdir, args.data)
            hits.append(_hits(record))
        first = first or hits
        rows.append(_row(variant, hits, first))
        value = {'experiment': args.experiment, 'config': experiment.config, 'rows': rows}
        files.write_json(Path(args.out), value)
    print(tables.markdown(_table(rows)))


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return what is asked for, and the flags of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('experiment', choices=EXPERIMENTS)
    parser.add_argument('--data', default='', help='folder of train/ and val/; none: the images of the config')
    parser.add_argument('--runs', required=True, help='folder of the workdirs')
    parser.add_argument('--out', required=True, help='file of the numbers')
    parser.add_argument('--variants', nargs='*', help='a part of them; the first is compared with')
    parser.add_argument('--seeds', nargs='*', type=int)
    args, flags = parser.parse_known_args()
    for flag in flags:
        if not flag.startswith('--config.') or '=' not in flag:
            parser.error(f'{flag} is no option of this program and not of the form --config.FIELD=VALUE')
    return args, flags


def _run(experiment: Experiment, variant: str, seed: int, workdir: Path, data: str, more_flags: Sequence[str]) -> None:
    """Make a run, or what is left of it."""
    changes = {**experiment.common, **experiment.variants[variant], 'seed': seed}
    if data:
        changes['data.source'] = data
    flags = [f'--config.{field}={value}' for field, value in changes.items()]
    program = [sys.executable, '-m', 'fixres_jax.main', '--config', experiment.config, '--workdir', str(workdir)]
    subprocess.run([*program, *flags, *more_flags], check=True)


def _keep(record: Path, workdir: Path, data: str) -> None:
    """Write down of a run which images each of its four numbers got right."""
    report = json.loads((workdir / 'report.json').read_text())
    images = Path(data or workdir / 'data') / 'val'
    numbers = {}
    for name, (_, folders) in NUMBERS.items():
        network = fixres_jax.load(next(workdir / one for one in folders if (workdir / one).exists()))
        resolution, top1 = (report['numbers'][name][key] for key in ('resolution', 'top1'))
        said = network.outputs(images, resolution=resolution)
        right = said['softmax'].argmax(-1) == said['labels']
        assert abs(100 * right.mean() - top1) < 0.2, (workdir, name, right.mean(), top1)
        numbers[name] = {'resolution': resolution, 'images': len(right), 'right': np.packbits(right).tobytes().hex()}
    value = {'seed': report['config']['seed'], 'seconds': report['seconds'], 'numbers': numbers}
    value['environment'] = {key: report['environment'][key] for key in ENVIRONMENT}
    files.write_json(record, value)


def _hits(record: Path) -> dict[str, Any]:
    """Return a record, with the images that each number got right as bool[N]."""
    value = json.loads(record.read_text())
    for number in value['numbers'].values():
        bits = np.frombuffer(bytes.fromhex(number['right']), np.uint8)
        number['right'] = np.unpackbits(bits, count=number['images']).astype(bool)
    return value


def _row(variant: str, hits: Sequence[dict[str, Any]], first: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of one variant, from the hits of its seeds and of those that it is compared with."""
    row = {'variant': variant, 'seeds': [one['seed'] for one in hits]}
    row['seconds'] = [round(one['seconds']['train']) for one in hits]
    row['environments'] = [one['environment'] for one in hits]
    for name in NUMBERS:
        numbers = [one['numbers'][name] for one in hits]
        row[name] = _mean(np.mean([number['right'] for number in numbers], axis=0))
        row[name]['each'] = [100 * float(number['right'].mean()) for number in numbers]
        row[name]['resolutions'] = [number['resolution'] for number in numbers]
    row['adapted_minus_control'] = _minus(hits, hits, 'adapted', 'adapted_at_train_resolution')
    row['adapted_minus_train_resolution'] = _minus(hits, hits, 'adapted', 'train_resolution')
    if hits is not first:
        row['minus_first'] = {name: _minus(hits, first, name, name) for name in NUMBERS}
    return row


def _minus(hits, others, name: str, other: str) -> dict[str, float]:
    """Return a difference on the same images, each the mean over its seeds."""
    pairs = [(a['numbers'][name]['right'], b['numbers'][other]['right']) for a, b in zip(hits, others, strict=True)]
    return _mean(np.mean([a.astype(float) - b for a, b in pairs], axis=0))


def _mean(values: np.ndarray) -> dict[str, float]:
    """Return the mean of one value an image, in percent, with the 95 % interval over the images."""
    found = intervals.of_means(values)
    return {'mean': found['difference'], 'low': found['low'], 'high': found['high'], 'images': len(values)}


def _table(rows: Sequence[dict[str, Any]]) -> tables.Table:
    lines = []
    for row in rows:
        for name, (heading, _) in NUMBERS.items():
            number, change = row[name], row.get('minus_first', {}).get(name)
            each = [f'{top1:.2f} at {size}' for top1, size in zip(number['each'], number['resolutions'], strict=True)]
            lines.append((row['variant'], heading, ', '.join(each), _written(number), _written(change, '+')))
    return ('variant', '', 'top-1 (%) of each seed', 'mean (95 % interval)', 'against the first'), lines


def _written(value: Mapping[str, float] | None, sign: str = '') -> str:
    """Write a mean and its interval."""
    if value is None:
        return ''
    mean, low, high = (format(value[name], f'{sign}.2f') for name in ('mean', 'low', 'high'))
    return f'{mean} ({low} to {high})'


if __name__ == '__main__':
    main()
