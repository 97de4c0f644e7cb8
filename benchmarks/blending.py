"""Statistics replaced or blended with the old ones, by the number of images that they are measured on.

python benchmarks/blending.py --run WORKDIR --data IMAGENETTE --out DIR [--resolution 160] [--draws 3]

WORKDIR is that of a recipe's run, whose trained network (its folder train/) gets new statistics of its last BatchNorm
at the resolution, by default that of the run; its classifier stays. Images are drawn at random from those that it was
trained on; those of a smaller number are the first ones of a larger. DIR/blending.json gets the rows of each draw; a
draw that is there is not measured again.
"""

import argparse
import json
import platform

import jax
import numpy as np
from etils import epath

from fixres_jax import models
from fixres_jax.adaptation import embeddings, recalibration, statistics
from fixres_jax.core import files
from fixres_jax.core.progress import log
from fixres_jax.data import sources, transforms
from fixres_jax.evaluation import intervals
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.weights import network

IMAGES = (32, 100, 320, 1000, 3200, 10000)
PRIORS = (0, 16, 64, 256, 1024)
BATCH = 64


def main() -> None:
    """Measure every draw that DIR/blending.json does not have yet, and print the table."""
    args = _arguments()
    workdir, path = epath.Path(args.run), epath.Path(args.out) / 'blending.json'
    config = json.loads((workdir / 'config.json').read_text())
    trained = network.load(workdir / 'train', bn_group_size=config['model']['bn_group_size'] or None)
    resolution = args.resolution or files.read_json(workdir / 'sweep.json')['test_resolution']
    training, _ = sources.hold_out(
        sources.create(args.data, 'train'), config['data']['held_out_fraction'], config['seed']
    )
    test = sources.create(args.data, 'val')
    runtime = Runtime(sharding.make_mesh())
    placed = trained.placed(runtime)
    rows = (files.read_json(path) or {'rows': []})['rows']
    for draw in range(args.draws):
        if draw in [row['draw'] for row in rows]:
            continue
        rows += measure(placed, training, test, resolution, draw, runtime)
        machine = f'{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}'
        about = {'train_resolution': trained.about['train_resolution'], 'resolution': resolution, 'count': len(test)}
        files.write_json(path, about | {'machine': machine, 'rows': rows})
    print(table(rows))


def measure(placed, training, test, resolution, draw, runtime):
    """Return a row for each number of images and prior, with its paired difference from the old statistics."""
    layer = models.find(placed.about['architecture']).finetune()['batch_norm']
    transform = {resolution: transforms.make_test(resolution, resize_ratio=placed.about['resize_ratio'])}
    order = np.random.default_rng(draw).permutation(len(training))
    old = {name: np.asarray(leaf) for name, leaf in placed.statistics(layer).items()}
    changes = {'old': {}}
    for count in sorted({min(count, len(training)) for count in IMAGES}):
        part = sources.subset(training, order[:count])
        feed = Feed(runtime, recalibration.even_batch(count, BATCH, runtime.mesh.size), f'{count} images')
        new = statistics.measure(placed, part, transform, feed, batch_norm=layer)[resolution]
        for prior in PRIORS:  # of one layer, so that it need not be measured again
            blended = {name: statistics.blend(old[name], new[name], count, prior) for name in new}
            changes[f'{count} {prior}'] = {name: np.float32(leaf) for name, leaf in blended.items()}
    found = embeddings.embed(placed, {resolution: changes}, test, transform, Feed(runtime, BATCH, f'test, draw {draw}'))
    head = {name: np.asarray(leaf) for name, leaf in placed.head.items()}
    right = {}
    for (_, name), data in found.items():
        values, labels = embeddings.gather(data)
        right[name] = (values @ head['kernel'] + head['bias']).argmax(1) == labels
    rows = []
    for name, hits in right.items():
        images, prior = (0, 0) if name == 'old' else map(int, name.split())
        base = right['old']
        change = intervals.paired(int((hits & ~base).sum()), int((base & ~hits).sum()), len(base))
        top1 = {'top1': 100 * float(hits.mean())}
        rows.append({'draw': draw, 'images': images, 'prior': prior} | top1 | {'minus_old': change})
        log.info('%s', rows[-1])
    return rows


def table(rows):
    """Return the table in Markdown: means over the draws, with the standard deviation where there are several."""
    draws = sorted({row['draw'] for row in rows})

    def cell(images, prior):
        values = [row['top1'] for row in rows if (row['images'], row['prior']) == (images, prior)]
        spread = f' ± {np.std(values, ddof=1):.2f}' if len(draws) > 1 else ''
        return f'{np.mean(values):.2f}{spread}'

    counts = sorted({row['images'] for row in rows} - {0})
    lines = [f'| images | {" | ".join(f"N = {prior}" for prior in PRIORS)} |', '|' + ' --- |' * (1 + len(PRIORS))]
    lines += [f'| {count:,} | {" | ".join(cell(count, prior) for prior in PRIORS)} |' for count in counts]
    old = next(row['top1'] for row in rows if not row['images'])
    return '\n'.join([*lines, '', f'Old statistics: {old:.2f}. Draws of images: {len(draws)}.'])


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--out', required=True)
    parser.add_argument('--resolution', type=int, default=0)
    parser.add_argument('--draws', type=int, default=3)
    return parser.parse_args()


if __name__ == '__main__':
    import logging

    logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S')
    log.setLevel(logging.INFO)
    main()
