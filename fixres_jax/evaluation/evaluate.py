"""Evaluation of several networks at several resolutions in one pass over the files."""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fixres_jax.core import losses, sections
from fixres_jax.core.resolution import Resolution
from fixres_jax.core.sections import Section
from fixres_jax.data import transforms
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.evaluation import intervals
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import MAX_BATCH, Feed, one_pass
from fixres_jax.models import EVAL, Model, Variables
from fixres_jax.weights.network import Network


@dataclasses.dataclass(frozen=True)
class Evaluation(Section):
    """Test images and the resolutions tested at."""

    PATH = 'test.'
    RULES = {
        'resolution': sections.least(0, 288),
        'resolutions': sections.Rule(lambda v: all(one > 0 for one in v), 'sizes above 0', (224, 256, 288)),
        'resize': sections.one_of(('', 'short', 'height'), 'short'),
        'interpolation': sections.one_of(('', *transforms.INTERPOLATIONS), 'bilinear'),
        'resize_ratio': sections.Rule(lambda v: v == 0 or v >= 1, '0, or 1 or more', 1.14),
        'batch_size': sections.between(0, MAX_BATCH, 256),
    }

    resolution: Resolution
    resolutions: tuple[Resolution, ...]
    resize: str
    interpolation: str
    crop: bool
    resize_ratio: float
    batch_size: int


@functools.cache
def make_eval_step(
    model: Model, mesh: Mesh, present: tuple[int, ...] | None = None
) -> Callable[[Variables, jax.Array, jax.Array], dict[str, jax.Array]]:
    """Return the jitted function (variables, image uint8[B, R, R, 3], label int32[B]) -> outcome of each example.

    The outcome is {'loss': float32[B], 'top1': bool[B], 'top5': bool[B]}; with `present`, also 'top1_among_present' and
    'top5_among_present', where those classes are the only ones that can be answered.
    """

    def outcome(variables, image, label):
        logits, _ = model.apply(variables, image, EVAL)
        scores = {
            'loss': losses.cross_entropy(logits, label),
            'top1': losses.hits(logits, label, 1),
            'top5': losses.hits(logits, label, 5),
        }
        if present is not None:
            among = losses.answering(logits, present)
            scores |= {f'top{k}_among_present': losses.hits(among, label, k) for k in (1, 5)}
        return scores

    by_example = sharding.by_example(mesh)
    # The variables stay where they are: whole on each device, or split.
    return sharding.jit(outcome, mesh, in_shardings=(None, by_example, by_example), out_shardings=by_example)


@functools.cache
def make_reduce(mesh: Mesh, num_classes: int = 0) -> Callable[..., dict[str, jax.Array]]:
    """Return the jitted sum over a batch of the outcomes of n (network, resolution) points.

    'both' is int32[n, n]: examples that both points got right, whose diagonal is each point's own count. It is all that
    paired intervals need, and it adds up over batches and hosts. With `num_classes` and the labels there are also
    'of_class' int32[K], the examples of each class, and 'right_of_class' int32[K, n], those that each point got right.
    """

    def reduce(
        outcomes: Sequence[dict[str, jax.Array]], mask: jax.Array, label: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        def stack(name):
            return jnp.stack([outcome[name] for outcome in outcomes])

        rows = mask[None, :]
        top1 = (stack('top1') & rows).astype(jnp.int32)
        counted = [name for name in outcomes[0] if name not in ('loss', 'top1')]
        sums = {
            'count': mask.sum(),
            'loss': jnp.where(rows, stack('loss'), 0.0).sum(axis=1),
            'both': top1 @ top1.T,
        } | {name: (stack(name) & rows).sum(axis=1) for name in counted}
        if num_classes:
            examples = {'of_class': mask.astype(jnp.int32), 'right_of_class': top1.T}
            sums |= {name: jax.ops.segment_sum(each, label, num_classes) for name, each in examples.items()}
        return sums

    return jax.jit(reduce, out_shardings=sharding.replicated(mesh))


def evaluate(
    networks: Mapping[str, Network],
    source: Source,
    test_transforms: Mapping[int, Transform],
    feed: Feed,
    single: Mapping[tuple[str, int], Network] = types.MappingProxyType({}),
    present: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Count what each network gets right at each resolution; each file is decoded once.

    Args:
      networks: name -> network on the devices.
      source: labelled images.
      test_transforms: resolution -> transform to uint8[R, R, 3].
      feed: how the images pass.
      single: (name, resolution) -> one more network, tested at that resolution alone.
      present: labels that the source has, where they are fewer than the network's classes: scored by themselves too.

    Returns:
      {'count': images, 'points': [point], 'both': [[int]]}. A point is {'network', 'resolution', 'loss', 'top1',
      'top5', 'low', 'high', 'count', 'mean_per_class', 'classes'}: top1, top5 and top-1's 95 % interval in percent;
      mean_per_class is the mean over the classes that have images, which are `classes`, of the percent of each that is
      right. `both[i][j]` counts the images that points i and j both got right. All are among all classes of the model.
      With `present` a point also has top1_among_present, low_among_present, high_among_present and top5_among_present.

    Raises:
      Preempted: after a SIGTERM.
    """
    points = {(name, size): network for size in test_transforms for name, network in networks.items()}
    points |= single
    reduce = make_reduce(feed.mesh, next(iter(points.values())).model.num_classes)
    total, unread = None, []
    last = -(-len(source) // feed.size(source)) - 1
    for number, _, batch in one_pass(source, test_transforms, feed):
        outcomes = [
            make_eval_step(network.model, feed.mesh, present)(network.variables, batch['image'][size], batch['label'])
            for (_, size), network in points.items()
        ]
        unread.append(reduce(outcomes, batch['mask'], batch['label']))
        # The sums of a batch are read after the next one is dispatched, those of the last one before its bar ends.
        while len(unread) > (number < last):
            total = _add(total, unread.pop(0))
    assert total['count'] == len(source), (total['count'], len(source))
    return _summary(list(points), total)


def _add(total: dict[str, np.ndarray] | None, sums: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    sums = {name: np.asarray(value, np.float64 if name == 'loss' else np.int64) for name, value in sums.items()}
    return sums if total is None else {name: total[name] + sums[name] for name in sums}


def _summary(keys: Sequence[tuple[str, int]], total: dict[str, np.ndarray]) -> dict[str, Any]:
    count, of_class = int(total['count']), total['of_class']
    there = of_class > 0
    points = []
    for i, (name, resolution) in enumerate(keys):
        point = {'network': name, 'resolution': resolution, 'loss': float(total['loss'][i] / count), 'count': count}
        point |= _accuracies(total['both'][i, i], total['top5'][i], count)
        shares = total['right_of_class'][there, i] / of_class[there]
        point |= {'mean_per_class': 100 * float(shares.mean()), 'classes': len(shares)}
        if 'top1_among_present' in total:
            alone = _accuracies(*(total[f'top{k}_among_present'][i] for k in (1, 5)), count)
            point |= {f'{name}_among_present': value for name, value in alone.items()}
        points.append(point)
    return {'count': count, 'points': points, 'both': total['both'].tolist()}


def _accuracies(top1: np.integer, top5: np.integer, count: int) -> dict[str, float]:
    """Return counts of hits in percent, with top-1's 95 % interval."""
    low, high = intervals.wilson(int(top1), count)
    return {'top1': 100 * int(top1) / count, 'top5': 100 * int(top5) / count, 'low': 100 * low, 'high': 100 * high}


def find_point(result: dict[str, Any], network: str, resolution: int) -> dict[str, Any]:
    """Return the point of one network at one resolution."""
    return result['points'][_index(result, network, resolution)]


def compare(result: dict[str, Any], first: tuple[str, int], second: tuple[str, int]) -> dict[str, float]:
    """Return the difference in top-1 of two points, first minus second, with its paired 95 % interval, in points."""
    i, j = _index(result, *first), _index(result, *second)
    pairs = result['both']
    return intervals.paired(pairs[i][i] - pairs[i][j], pairs[j][j] - pairs[i][j], result['count'])


def _index(result: dict[str, Any], network: str, resolution: int) -> int:
    return next(
        i
        for i, point in enumerate(result['points'])
        if (point['network'], point['resolution']) == (network, resolution)
    )
