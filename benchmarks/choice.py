"""What the rule is worth that chooses between the classifiers of an adaptation and the old network.

    python benchmarks/choice.py --runs WORKDIR ... --out DIR --resolutions 96 128 160

Each run's trained network (its folder train/) is adapted at each resolution as `adapt` does it: new statistics, and
classifiers of several weight decays, fitted to all training images or to some hundred of them, where most are worse
than the old one. Then images are drawn at random, many times, from those that no training has seen, the held-out and
the test images. Each rule of RULES chooses on what was drawn, and its choice is compared with the old network on the
rest.

DIR keeps the embeddings of each run, and DIR/choice.json the rows: where it is there, only the table is printed.
"""

import argparse
import collections
import dataclasses
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from fixres_jax import models
from fixres_jax.adaptation import classifier, embeddings, statistics
from fixres_jax.core import files, tables
from fixres_jax.core.progress import log
from fixres_jax.data import sources, transforms
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.weights import network

WEIGHT_DECAYS = (0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
TRAINING = (200, 600, None)  # images that the classifiers are fitted to; None: all
DRAWN = (100, 300, 1000, 2000)  # images that choose
DRAWS = 200
TEMPERATURES = np.geomspace(0.2, 5, 41)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Take the candidate of the lowest value, of those that are allowed.

    Attributes:
      value: 'loss', the cross entropy; 'cooled', the same at the temperature where it is lowest; or 'wrong' answers.
      slack: how many wrong answers more than the old network's are allowed, in standard errors of the difference.
      old: whether the old network, the last candidate, may be taken.
    """

    value: str
    slack: float = np.inf
    old: bool = True

    def choose(self, scores: Mapping[str, np.ndarray]) -> int:
        """Return the index of the candidate, from {value or 'error': float[candidates]}."""
        excess = scores['wrong'] - scores['wrong'][-1]
        allowed = (excess <= self.slack * scores['error']) if np.isfinite(self.slack) else np.full(len(excess), True)
        allowed[-1] = self.old
        return int(np.where(allowed, scores[self.value], np.inf).argmin())


RULES = {
    'lowest cross entropy of those with as many right': Rule('loss', slack=0),
    'lowest cross entropy of those within a standard error': Rule('loss', slack=1),
    'lowest cross entropy': Rule('loss'),
    'at the best temperature, of those within a standard error': Rule('cooled', slack=1),
    'at the best temperature': Rule('cooled'),
    'most right': Rule('wrong'),
    'lowest cross entropy, never the old one': Rule('loss', old=False),
}


def main() -> None:
    """Embed what DIR does not hold yet, and print the table."""
    args = _arguments()
    out = epath.Path(args.out)
    path = out / 'choice.json'
    if not path.exists():
        rows = []
        for number, workdir in enumerate(map(epath.Path, args.runs)):
            kept = out / f'embeddings{number}.npz'
            if not kept.exists():
                files.write_arrays(kept, embed(workdir, args.resolutions))
            rows += [{'run': number} | row for row in measure(files.read_arrays(kept), args.resolutions)]
        files.write_json(path, {'date': str(date.today()), 'draws': DRAWS, 'rows': rows})
    rows = files.read_json(path)['rows']
    for number in range(len(args.runs)):
        print(tables.markdown(table(rows, number)), end='\n\n')


def embed(workdir: epath.Path, resolutions: list[int]) -> dict[str, np.ndarray]:
    """Return embeddings and labels of a run's images, under the old and the new statistics, and the old classifier."""
    config = files.read_json(workdir / 'config.json')
    train, test = (
        sources.create(config['data']['source'], config['data'][f'{part}_split']) for part in ('train', 'test')
    )
    runtime = Runtime(sharding.make_mesh())
    trained = network.load(workdir / 'train').placed(runtime)
    training, held_out = sources.hold_out(train, config['data']['held_out_fraction'], config['seed'])
    by_size = {size: transforms.make_test(size, resize_ratio=trained.about['resize_ratio']) for size in resolutions}
    layer = models.find(trained.about['architecture']).finetune()['batch_norm']
    new = statistics.measure(trained, training, by_size, Feed(runtime, 64, 'statistics'), batch_norm=layer)
    changes = {size: {'before': {}, 'after': new[size]} for size in resolutions}
    found = {f'head {name}': np.asarray(leaf) for name, leaf in trained.head.items()}
    for part, source in (('train', training), ('held out', held_out), ('test', test)):
        kept = embeddings.embed(
            trained, changes, source, by_size, Feed(runtime, 64, part),
            keep=('after',) if part == 'train' else ('before', 'after'),
            storage=embeddings.Storage('float32', 8e9, None),
        )  # fmt: skip
        for (size, name), value in kept.items():
            found[f'{part} {size} {name}'], found[f'{part} label'] = embeddings.gather(value)
    return found


def measure(found: Mapping[str, np.ndarray], resolutions: list[int]) -> Iterator[dict[str, Any]]:
    """Yield a row for each resolution, number of training images and number of images that choose."""
    old = {name: jnp.asarray(found[f'head {name}']) for name in ('kernel', 'bias')}
    label = np.concatenate([found['held out label'], found['test label']])
    order = np.random.default_rng(1).permutation(len(found['train label']))
    for size in resolutions:
        before, after = (
            np.concatenate([found[f'{part} {size} {name}'] for part in ('held out', 'test')])
            for name in ('before', 'after')
        )
        for count in TRAINING:
            fitted = _fit(found[f'train {size} after'], found['train label'], order[:count], old)
            outputs = [np.asarray(classifier.logits(head, jnp.asarray(after))) for head in fitted]
            outputs.append(np.asarray(classifier.logits(old, jnp.asarray(before))))
            row = {'resolution': size, 'training': len(order[:count])}
            yield from ({**row, **drawn} for drawn in _draw(np.stack(outputs), label))
            log.info('%s of %s done.', row, len(order))


def _fit(embedding: np.ndarray, label: np.ndarray, chosen: np.ndarray, head: classifier.Head) -> list[classifier.Head]:
    """Return the classifiers of all weight decays, from large to small, each from the one before."""
    count = len(chosen)
    data = embeddings.Embeddings(
        jnp.asarray(embedding[chosen])[None], jnp.asarray(label[chosen])[None], jnp.arange(count)[None], 1, count
    )
    heads = []
    for weight_decay in WEIGHT_DECAYS:
        head, _ = classifier.fit_lbfgs(data, head, weight_decay, max_iterations=100)
        heads.append(head)
    return heads


def _draw(outputs: np.ndarray, label: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield for each number of images that choose: the mean gain of each rule's choice over the old network, points.

    Args:
      outputs: logits float[candidates, N, K], those of the old network last.
      label: int[N].
    """
    right = (outputs.argmax(-1) == label[None, :]).astype(float)
    loss = _losses(outputs, label)
    cooled = np.stack([_losses(outputs / temperature, label) for temperature in TEMPERATURES], axis=1)
    rng = np.random.default_rng(0)
    for count in DRAWN:
        gains = collections.defaultdict(list)
        for _ in range(DRAWS):
            places = rng.permutation(len(label))
            here, rest = places[:count], places[count:]
            scores = {
                'wrong': 1 - right[:, here].mean(1),
                'error': np.sqrt(np.square(right[:, here] - right[-1, here]).sum(1)) / count,
                'loss': loss[:, here].mean(1),
                'cooled': cooled[:, :, here].mean(2).min(1),
            }
            gain = 100 * (right[:, rest].mean(1) - right[-1, rest].mean())
            for name, rule in RULES.items():
                gains[name].append(gain[rule.choose(scores)])
        yield {'drawn': count, 'gains': {name: float(np.mean(values)) for name, values in gains.items()}}


def _losses(outputs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the cross entropy of each image, float[candidates, N]."""
    shifted = outputs - outputs.max(-1, keepdims=True)
    of_label = np.take_along_axis(shifted, label[None, :, None], axis=-1)[..., 0]
    return np.log(np.exp(shifted).sum(-1)) - of_label


def table(rows: list[dict[str, Any]], run: int) -> tables.Table:
    """Return the gain of each rule in a run, the mean over resolutions, by training set and number of images."""
    groups = collections.defaultdict(list)
    for row in rows:
        if row['run'] == run:
            groups[row['training'], row['drawn']].append(row['gains'])
    lines = [('images that choose', *(f'{drawn:,}' for _, drawn in groups))]
    for rule in RULES:
        means = [np.mean([gains[rule] for gains in group]) for group in groups.values()]
        lines.append((rule, *(f'{mean:+.2f}' for mean in means)))
    return (f'run {run}: points over the old network', *(f'{training:,} trained' for training, _ in groups)), lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--runs', nargs='+', required=True, help='workdirs of recipes, with their images where they were'
    )
    parser.add_argument('--out', required=True)
    parser.add_argument('--resolutions', nargs='+', type=int, required=True)
    return parser.parse_args()


if __name__ == '__main__':
    main()
