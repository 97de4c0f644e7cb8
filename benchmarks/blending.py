"""Statistics replaced or blended with the old ones, by the number of images that they are measured on.

python benchmarks/blending.py --run WORKDIR --data IMAGENETTE --out DIR [--resolution 160] [--draws 3]

WORKDIR is that of a recipe's run, whose trained network (its folder train/) gets new statistics of the last BatchNorm
at the resolution, by default that of the run; its classifier stays. Images are drawn at random from those that it was
trained on; those of a smaller number are the first ones of a larger. The statistics of a draw are kept in DIR, and
DIR/blending.json gets the rows of all; where it is there, only the table is printed.
"""

import argparse
import json
import platform
from datetime import date

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fixres_jax import models
from fixres_jax.adaptation import embeddings, statistics
from fixres_jax.core import files
from fixres_jax.core.progress import log
from fixres_jax.data import sources, transforms
from fixres_jax.evaluation import intervals
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime, one_pass
from fixres_jax.models import EVAL
from fixres_jax.weights import network

IMAGES = (32, 96, 320, 960, 3200, 9984)  # multiples of a batch; the last may be all that there are
PRIORS = (0, 16, 64, 256, 1024)
BATCH = 32


def main() -> None:
    """Measure what DIR does not hold yet, and print the table."""
    args = _arguments()
    workdir, out = epath.Path(args.run), epath.Path(args.out)
    path = out / 'blending.json'
    if not path.exists():
        config = json.loads((workdir / 'config.json').read_text())
        trained = network.load(workdir / 'train')
        resolution = args.resolution or files.read_json(workdir / 'sweep.json')['test_resolution']
        training, _ = sources.hold_out(
            sources.create(args.data, 'train'), config['data']['held_out_fraction'], config['seed']
        )
        test, runtime = sources.create(args.data, 'val'), Runtime(sharding.make_mesh())
        rows = measure(trained.placed(runtime), training, test, resolution, args.draws, out, runtime)
        about = {'train_resolution': trained.about['train_resolution'], 'resolution': resolution, 'count': len(test)}
        about |= {'machine': f'{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}'}
        files.write_json(path, about | {'date': str(date.today()), 'rows': rows})
    print(table(files.read_json(path)['rows']))


def measure(placed, training, test, resolution, draws, out, runtime):
    """Return a row for each draw, number of images and prior, with its paired difference from the old statistics."""
    layer = models.find(placed.about['architecture']).finetune()['batch_norm']
    transform = {resolution: transforms.make_test(resolution, resize_ratio=placed.about['resize_ratio'])}
    old = {name: np.asarray(leaf) for name, leaf in placed.statistics(layer).items()}
    assert len(old) == 2, f'{layer} is several layers, whose blended statistics depend on each other'
    changes = {(0, 0, 0): old}  # (draw, images, prior) -> statistics
    for draw in range(draws):
        path = out / f'statistics{draw}.npz'
        found = files.read_arrays(path)
        if not found:
            found = _nested(placed, training, transform, draw, Feed(runtime, BATCH, f'draw {draw}'), layer)
            if draw and len(training) < IMAGES[-1]:
                # All images, but for the rest of a batch, are the same in any order.
                found = files.read_arrays(out / 'statistics0.npz') | found
            files.write_arrays(path, found)
        for count in sorted({int(name.partition(' ')[0]) for name in found}):
            for prior in PRIORS:
                changes[draw, count, prior] = {
                    name: np.float32(statistics.blend(leaf, found[f'{count} {name}'], count, prior))
                    for name, leaf in old.items()
                }
    right = dict(zip(changes, _hits(placed, list(changes.values()), test, transform, runtime), strict=True))
    base, rows = right[0, 0, 0], []
    for (draw, count, prior), hits in right.items():
        change = intervals.paired(int((hits & ~base).sum()), int((base & ~hits).sum()), len(base))
        top1 = {'top1': 100 * float(hits.mean())}
        rows.append({'draw': draw, 'images': count, 'prior': prior} | top1 | {'minus_old': change})
        log.info('%s', rows[-1])
    return rows


def _nested(placed, training, transform, draw, feed, layer):
    """Return '<images> <name>' -> exact statistics of the first images of a draw; each image is looked at once."""
    ((resolution, _),) = transform.items()
    order = np.random.default_rng(draw).permutation(len(training))
    edges = [0, *sorted({min(count, len(training) // BATCH * BATCH) for count in IMAGES})]
    edges = edges[:-1] if draw and len(training) < IMAGES[-1] else edges
    sums, found = {}, {}
    for first, last in zip(edges, edges[1:], strict=False):
        part = sources.subset(training, order[first:last])
        new = statistics.measure(placed, part, transform, feed, batch_norm=layer)[resolution]
        mean, var = (np.float64(new[f'{layer}/{name}']) for name in ('mean', 'var'))
        for name, value in (('mean', mean), ('square', var + mean**2)):
            sums[name] = sums.get(name, 0) + (last - first) * value
        mean = sums['mean'] / last
        found |= {f'{last} {layer}/mean': mean, f'{last} {layer}/var': sums['square'] / last - mean**2}
    return found


def _hits(placed, changes, test, transform, runtime):
    """Return bool[networks, N]: which test images each choice of statistics gets right."""
    ((resolution, _),) = transform.items()
    stacked = {name: jnp.stack([new[name] for new in changes]) for name in changes[0]}

    @jax.jit
    def step(variables, stacked, image, label):
        # Only what depends on the statistics is done for each: the trunk runs once.
        logits = jax.vmap(lambda new: placed.model.apply(embeddings.change(variables, new), image, EVAL)[0])(stacked)
        return logits.argmax(-1) == label[None, :]

    found = []
    for _, _, batch in one_pass(test, transform, Feed(runtime, BATCH, 'test')):
        found.append(np.asarray(step(placed.variables, stacked, batch['image'][resolution], batch['label'])))
    return np.concatenate(found, axis=1)[:, : len(test)]


def table(rows):
    """Return the table in Markdown: means over the draws, with the standard deviation where there are several."""
    draws = sorted({row['draw'] for row in rows})

    most = max(row['images'] for row in rows)  # all of them, or nearly: the draws are alike

    def cell(images, prior):
        values = [row['top1'] for row in rows if (row['images'], row['prior']) == (images, prior)]
        spread = f' ± {np.std(values, ddof=1):.2f}' if len(draws) > 1 and images < most else ''
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
