"""Ways to test one trained network: size and crop told apart, and other uses of the same operations.

    python benchmarks/testing.py crops --run WORKDIR --data IMAGES --out FILE.json
    python benchmarks/testing.py operations --run WORKDIR --data IMAGES --out FILE.json

WORKDIR is of a recipe, whose network of phase train is tested; IMAGES holds train/ and val/. What each row got right is
kept in FILE.npz: a row that is there is not measured again. The table is printed, its numbers are written to FILE.json.

crops: test size by crop fraction, the share of the resized side that is looked at, before and after the adaptation to
both. operations: what else a test can do with the operations that a larger size takes: average over mirror images, or
over zooms, or fine-tune the whole network at that size.
"""

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fixres_jax
from fixres_jax.core import files, tables
from fixres_jax.evaluation import intervals
from fixres_jax.runs.classifier import Classifier

Row = dict[str, Any]  # columns of the table that say what was tested
Outputs = dict[str, np.ndarray]  # 'softmax' float32[N, K], 'labels' int32[N]
Measured = Iterator[tuple[Row, Callable[[], Outputs]]]

CROP_FRACTIONS = (0.75, 0.875, 0.95, 1.0)
RATIOS = (1.0, 4 / 3, 5 / 3, 2.0)  # test size over training size
ZOOMS = (0.75, 0.875, 1.0)  # crop fractions that are averaged over
EPOCHS = 5  # of fine-tuning the whole network


def main() -> None:
    """Measure the rows that FILE.npz does not have, and print the table."""
    args = _arguments()
    kept = Path(args.out).with_suffix('.npz')
    found = dict(np.load(kept)) if kept.exists() else {}
    rows, first = [], None
    for row, measure in WAYS[args.way](Path(args.run), Path(args.data)):
        key = json.dumps(row)
        if key not in found:
            outputs = measure()
            found[key] = outputs['softmax'].argmax(-1) == outputs['labels']
            np.savez(kept, **found)
        first = found[key] if first is None else first
        rows.append(row | _numbers(found[key], first))
        files.write_json(Path(args.out), {'way': args.way, 'images': len(first), 'rows': rows})
    print(tables.markdown(_table(rows)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('way', choices=WAYS)
    parser.add_argument('--run', required=True, help='workdir of a recipe')
    parser.add_argument('--data', required=True, help='folder with train/ and val/')
    parser.add_argument('--out', required=True, help='file of the numbers')
    return parser.parse_args()


def crops(run: Path, data: Path) -> Measured:
    """Yield size by crop fraction, before and after."""
    trained = fixres_jax.load(run / 'train')
    for fraction in CROP_FRACTIONS:
        net = fixres_jax.load(run / 'train', resize_ratio=1 / fraction)
        for size in _sizes(trained):
            adapted = functools.cache(functools.partial(_adapted, net, run, data, size))
            row = {'test size': size, 'crop fraction': fraction}
            yield row | {'adapted': False}, lambda net=net, size=size: net.outputs(data / 'val', resolution=size)
            yield row | {'adapted': True}, lambda adapted=adapted: adapted().outputs(data / 'val')


def operations(run: Path, data: Path) -> Measured:
    """Yield ways to test, with their operations over those of one image of the training size."""
    net = fixres_jax.load(run / 'train')
    small, *_, large = _sizes(net)[:3]

    def row(how, size, passes=1):
        return {'test': how, 'test size': size, 'operations': round(passes * (size / small) ** 2, 2)}

    for size in _sizes(net)[:3]:
        adapted = functools.cache(functools.partial(_adapted, net, run, data, size))
        yield row('not adapted', size), lambda size=size: net.outputs(data / 'val', resolution=size)
        yield row('adapted', size), lambda adapted=adapted: adapted().outputs(data / 'val')
        yield (
            row('not adapted, mirror images too', size, 2),
            lambda size=size: net.outputs(data / 'val', resolution=size, flip=True),
        )
        yield (
            row('adapted, mirror images too', size, 2),
            lambda adapted=adapted: adapted().outputs(data / 'val', flip=True),
        )
    yield row(f'not adapted, {len(ZOOMS)} zooms', small, len(ZOOMS)), lambda: _zoomed(run, data, small)
    yield (
        row(f'whole network fine-tuned for {EPOCHS} passes', large),
        lambda: _fine_tuned(run, data, large).outputs(data / 'val', resolution=large),
    )


WAYS = {'crops': crops, 'operations': operations}


def _sizes(net: Classifier) -> tuple[int, ...]:
    return tuple(round(ratio * net.about['train_resolution']) for ratio in RATIOS)


def _config(run: Path) -> dict[str, Any]:
    return json.loads((run / 'config.json').read_text())


def _adapted(net: Classifier, run: Path, data: Path, size: int) -> Classifier:
    """Adapt to a size, with the images held out that the run has held out."""
    config = _config(run)
    held_out = config['data']['held_out_fraction']
    return fixres_jax.adapt(net, data / 'train', size, held_out=held_out, seed=config['seed'])


def _zoomed(run: Path, data: Path, size: int) -> Outputs:
    """Average over crop fractions."""
    nets = [fixres_jax.load(run / 'train', resize_ratio=1 / fraction) for fraction in ZOOMS]
    said = [net.outputs(data / 'val', resolution=size) for net in nets]
    return said[0] | {'softmax': np.mean([one['softmax'] for one in said], axis=0)}


def _fine_tuned(run: Path, data: Path, size: int) -> Classifier:
    """Train the whole network on for some passes at a size, as DeiT III and ConvNeXt do."""
    config, workdir = _config(run), run / f'whole_{size}'
    changes = {
        'task': 'train', 'init_from': run / 'train', 'data.source': data, 'seed': config['seed'],
        'data.held_out_fraction': config['data']['held_out_fraction'], 'model.bn_group_size': 64,
        'train.resolution': size, 'train.epochs': EPOCHS, 'train.batch_size': 128, 'train.lr': 0.01,
        'train.lr_rule': 'batch/256', 'train.schedule': 'cosine', 'train.weight_decay': 5e-4,
    }  # fmt: skip
    flags = [f'--config.{field}={value}' for field, value in changes.items()]
    command = [sys.executable, '-m', 'fixres_jax.main', '--config', 'base', '--workdir', str(workdir), *flags]
    subprocess.run(command, check=True)
    return fixres_jax.load(workdir / 'train')


def _numbers(hits: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """Return top-1 with its interval, and the paired difference from the first row."""
    low, high = intervals.wilson(int(hits.sum()), len(hits))
    change = intervals.paired(int((hits & ~first).sum()), int((first & ~hits).sum()), len(hits))
    return {'top1': 100 * float(hits.mean()), 'low': 100 * low, 'high': 100 * high, 'minus_first': change}


def _table(rows: Sequence[Row]) -> tables.Table:
    columns = [name for name in rows[0] if name not in ('top1', 'low', 'high', 'minus_first')]
    lines = []
    for row in rows:
        change = '{difference:+.2f} ({low:+.2f} to {high:+.2f})'.format(**row['minus_first'])
        lines.append(
            (*(str(row[name]) for name in columns), tables.accuracy(row), change if row is not rows[0] else '')
        )
    return (*columns, 'top-1 (95 % interval)', 'against the first'), lines


if __name__ == '__main__':
    main()
