"""Adaptation in one pass: exact statistics of the last BatchNorm, embeddings once, the classifier on those.

Fine-tuning runs a frozen trunk over the same images again and again. Here it runs over each of them once, and the
classifier is fitted to what came out.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from fixres_jax import models
from fixres_jax.adaptation import classifier, embeddings, statistics
from fixres_jax.core import sections
from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.core.sections import Section
from fixres_jax.data.sources import Source, Splits
from fixres_jax.data.transforms import Transform
from fixres_jax.machines.runtime import Feed
from fixres_jax.training.optimization import Optimization, make_optimizer
from fixres_jax.weights.network import Network

SOLVERS = {
    'lbfgs': 'L-BFGS',
    'sgd': "SGD with the reference's values",
    'none': 'the old one, under the new statistics',
}
Record = dict[str, Any]  # what an adaptation chose and on what, for adapt.json


@dataclasses.dataclass(frozen=True)
class AdaptationSection(Section):
    """The adaptation in one pass."""

    PATH = 'adapt.'
    RULES = {
        'solver': sections.one_of(('auto', *SOLVERS)),
        'weight_decays': sections.Rule(
            lambda v: v and min(v) >= 0, 'at least one value, none below 0', (0.0, 1e-4, 1e-3)
        ),
        'max_iterations': sections.least(1, 100),
        'statistics_images': sections.least(1, 10000),
        'prior_images': sections.least(0, 256),
        'copies': sections.least(0, 0),
        'cache_dtype': sections.one_of(('float32', 'bfloat16')),
        'cache_gigabytes': sections.least(0, 8.0),
        'sweep_images': sections.least(1, 50000),
    }

    solver: str
    weight_decays: tuple[float, ...]
    max_iterations: int
    statistics_images: int
    prior_images: int
    flip: bool
    copies: int
    cache_dtype: str
    cache_gigabytes: float
    sweep_images: int

    def solver_for(self, unseen: bool) -> str:
        """Return the solver: 'auto' is L-BFGS where unseen images can choose its weight decay, else SGD."""
        if self.solver != 'auto':
            return self.solver
        return 'lbfgs' if unseen else 'sgd'


@dataclasses.dataclass(frozen=True)
class Adaptation(AdaptationSection):
    """Say how a network is adapted: the section `adapt`, with what follows from the network and its images.

    Attributes:
      solver: 'lbfgs', full-batch with a weight decay chosen on held-out images; 'sgd', with the reference's values; or
        'none', which keeps the classifier.
      weight_decays: what L-BFGS chooses from.
      max_iterations: of L-BFGS.
      statistics_images: training images to measure the statistics on, at most.
      prior_images: that the old statistics count as, which are blended with the measured ones; 0 to replace them.
      flip: embed the mirror images too.
      copies: augmented copies of each image to embed too (transform 'v2').
      cache_dtype: of the embeddings, 'float32' or 'bfloat16'.
      cache_gigabytes: of each device's memory for them; more goes to disk.
      sweep_images: training images for adaptations that only compare, at most.
      batch_norm: regex of the BatchNorm layers that get new statistics.
      optimization: of SGD, the reference's fine-tuning.
      unseen: whether the trunk's training has seen none of the held-out images, so that they can choose.
    """

    batch_norm: str
    optimization: Optimization
    unseen: bool

    def storage(self, directory: epath.Path | None) -> embeddings.Storage:
        """Say how embeddings are kept, with a folder for those that do not fit on the devices."""
        return embeddings.Storage(self.cache_dtype, self.cache_gigabytes * 1e9, directory)


def adapt(
    network: Network,
    images: Splits,
    test_transforms: Mapping[int, Transform],
    how: Adaptation,
    feed: Feed,
    *,
    seed: int,
    directory: epath.Path,
    augment: Transform | None = None,
) -> dict[int, tuple[Network, Record]]:
    """Adapt a network to each of some test resolutions; each file is read once for the embeddings of all.

    The choice between the classifiers is made on the held-out images, if the trunk has not seen those: see `choose`.

    Args:
      network: the trained one, on the devices.
      images: of which the test images are not looked at.
      test_transforms: resolution -> test transform to uint8[R, R, 3].
      how: see `Adaptation`.
      feed: how the images pass.
      seed: of the images for the statistics, of augmentation and SGD.
      directory: for embeddings that do not fit on the devices; emptied in the end.
      augment: transform of `how.copies`, for a single resolution.

    Returns:
      resolution -> (adapted network, record): what was chosen and on what, `candidates` with their held-out scores,
      `passes` of the training images through the trunk, and seconds of each part.

    Raises:
      UsageError: for a model without the layers, too few images for their classes, one class only, or several weight
        decays with nothing to choose on.
    """
    check(network, images, how)

    # 1. The statistics of the last BatchNorm at each test resolution, from a part of the training images.
    began = time.monotonic()
    sampled = statistics.sample(images.train, how.statistics_images, seed)
    by_resolution = statistics.measure(
        network, sampled, test_transforms, feed, batch_norm=how.batch_norm, prior_images=how.prior_images
    )
    seconds = {'statistics': time.monotonic() - began}

    # 2. One pass of the trunk over all training images, and one over the held-out ones under both statistics.
    began = time.monotonic()
    changes = {resolution: {'before': {}, 'after': new} for resolution, new in by_resolution.items()}
    training = embeddings.embed(
        network, changes, images.train, test_transforms, feed.named(f'{feed.title}: embed'),
        keep=('after',), storage=how.storage(directory / 'train'),
        extra=embeddings.Extra(how.flip, how.copies, augment, seed),
    )  # fmt: skip
    checking = {}
    if images.held_out is not None:
        checking = embeddings.embed(
            network, changes, images.held_out, test_transforms, feed.named(f'{feed.title}: held out'),
            storage=how.storage(directory / 'held_out'),
        )  # fmt: skip
    seconds['embeddings'] = time.monotonic() - began

    # 3. The classifier of each resolution, by a convex fit or by SGD on the embeddings.
    cost = _cost(network, sampled, images, next(iter(training.values())), how)
    adapted = {}
    for resolution, new in by_resolution.items():
        began = time.monotonic()
        checks = [checking.get((resolution, name)) for name in ('before', 'after')]
        head, record = fit(training[resolution, 'after'], *checks, network.head, how, seed=seed)
        result = network
        if not record['kept_old']:
            leaves = {f'batch_stats/{name}': leaf for name, leaf in feed.runtime.place(new).items()}
            result = network.replaced(leaves).with_head(head)
        record |= cost | {'part_seconds': seconds | {'classifier': time.monotonic() - began}}
        adapted[resolution] = result, record
        log.info('%s at %s: %s.', feed.title, resolution, describe(record))
    for data in (*training.values(), *checking.values()):
        if data.path:
            data.path.unlink()
    return adapted


def _cost(
    network: Network, sampled: Source, images: Splits, training: embeddings.Embeddings, how: Adaptation
) -> dict[str, Any]:
    """Say which layers were adapted, on how many images, and how often the trunk saw an image."""
    layers = models.batch_norm_layers(network.variables['batch_stats'], how.batch_norm)
    seen = len(sampled) * len(layers) + training.count
    if images.held_out is not None:
        seen += len(images.held_out)
    return {
        'batch_norm': list(layers),
        'statistics_images': len(sampled),
        'prior_images': how.prior_images,
        'images': len(images.train),
        'images_seen': seen,
        'passes': seen / len(images.train),
        'cache': 'disk' if training.path else 'devices',
    }


def fit(
    training: embeddings.Embeddings,
    before: embeddings.Embeddings | None,
    after: embeddings.Embeddings | None,
    old: classifier.Head,
    how: Adaptation,
    *,
    seed: int,
) -> tuple[classifier.Head, dict[str, Any]]:
    """Fit the classifier, and choose among its versions and the old network where there are held-out images.

    Where the training images are of some of the classes, it is fitted and scored among these alone, and the rows of the
    others stay: see `classifier.with_part`.

    Args:
      training: embeddings of the training images under the new statistics.
      before: of the held-out images, under the old statistics; None where there are none.
      after: the same under the new statistics.
      old: the classifier to begin from.
      how: see `Adaptation`.
      seed: of SGD's batches.

    Returns:
      The classifier, `old` itself when the old network is to be kept, and what was chosen.
    """
    num_classes = old['bias'].size
    classes = training.classes(num_classes)
    if len(classes) == num_classes or how.solver == 'none':
        return _fit(training, before, after, old, how, seed=seed)
    few = [data and data.only(classes) for data in (training, before, after)]
    head, record = _fit(*few, classifier.part(old, classes), how, seed=seed)
    new = old if record['kept_old'] else classifier.with_part(old, classes, head)
    return new, record | {'classes': len(classes), 'classes_of_network': num_classes}


def _fit(
    training: embeddings.Embeddings,
    before: embeddings.Embeddings | None,
    after: embeddings.Embeddings | None,
    old: classifier.Head,
    how: Adaptation,
    *,
    seed: int,
) -> tuple[classifier.Head, dict[str, Any]]:
    """Do what `fit` says for images of all classes."""
    # 1. The candidates, each with its score on the held-out images.
    candidates = list(_candidates(training, after, old, how, seed))
    record: Record = {'solver': how.solver}

    # 2. Without held-out images nothing can be chosen.
    if after is None:
        head, values = candidates[0]
        record |= {'chosen': values['weight_decay'], 'kept_old': False, 'chosen_on': None}
        return head, record | {'candidates': [values for _, values in candidates]}

    # 3. The choice, with the old network as the last candidate.
    candidates.append((old, {'weight_decay': None} | classifier.score(before, old)))
    scores = [values for _, values in candidates]
    best = choose(scores) if how.unseen else 0
    head = candidates[best][0]
    return head, record | {
        'chosen': scores[best]['weight_decay'],
        'kept_old': best == len(candidates) - 1,
        'candidates': scores,
        'before': scores[-1],
        'after': scores[best],
        'chosen_on': 'held-out training images' if how.unseen else None,
    }


def _candidates(
    training: embeddings.Embeddings,
    checking: embeddings.Embeddings | None,
    old: classifier.Head,
    how: Adaptation,
    seed: int,
) -> Iterator[tuple[classifier.Head, dict[str, Any]]]:
    """Yield (classifier, what is known of it): the old one, that of SGD, or one of L-BFGS for each weight decay."""

    def scored(head: classifier.Head) -> dict[str, float]:
        return classifier.score(checking, head) if checking is not None else {}

    if how.solver == 'none':
        yield old, {'weight_decay': None} | scored(old)
        return
    if how.solver == 'sgd':
        o = how.optimization
        num_steps, tx, _ = make_optimizer(o, training.count)
        sizes = {'num_steps': num_steps, 'batch_size': o.batch_size}
        head = classifier.fit_sgd(training, old, tx, **sizes, seed=seed, label_smoothing=o.label_smoothing)
        yield head, {'weight_decay': o.weight_decay} | scored(head)
        return
    head, losses = old, []
    # From smooth to sharp, each solution is a short way from the one before.
    for weight_decay in sorted(how.weight_decays, reverse=True):
        head, info = classifier.fit_lbfgs(training, head, weight_decay, max_iterations=how.max_iterations)
        info = {'weight_decay': weight_decay} | info | scored(head)
        yield head, info
        losses.append(info.get('loss', 0.0))
        if _has_risen(losses):
            return


def _has_risen(losses: list[float]) -> bool:
    """Say whether the last two values both rose: less weight decay will not bring the loss down again."""
    return len(losses) > 2 and losses[-3] < losses[-2] < losses[-1]


def choose(candidates: list[dict[str, Any]]) -> int:
    """Return the index of the candidate to take; the last one is the old network.

    Of those that get at least as many held-out images right as the old network, the one of lowest cross entropy. The
    counts alone would choose by chance: neighbouring weight decays differ by a few of some hundred images, where the
    cross entropy of the same images tells them apart.
    """
    old = candidates[-1]
    allowed = [i for i, candidate in enumerate(candidates) if candidate['top1'] >= old['top1']]
    return min(allowed, key=lambda i: candidates[i]['loss'])


def describe(record: dict[str, Any]) -> str:
    """Say in words what an adaptation chose, and on what."""
    solver = SOLVERS[record['solver']]
    if record['chosen'] is not None:
        solver = f'{solver}, weight decay {record["chosen"]:g}'
    if 'classes' in record:
        few, all_of_them = record['classes'], record['classes_of_network']
        solver = f'{solver}, among the {few} of {all_of_them:,} classes that have images'
    if not record['chosen_on']:
        return f'{solver}; nothing was chosen, for want of unseen images'
    before, after = record['before'], record['after']
    if record['kept_old']:
        return f'the old classifier and statistics were kept: none was better on {before["count"]} held-out images'
    return (
        f'{solver}, chosen on {before["count"]} held-out images: '
        f'top-1 from {before["top1"]:.2f} to {after["top1"]:.2f} %, '
        f'cross entropy from {before["loss"]:.4f} to {after["loss"]:.4f}'
    )


def check(network: Network, images: Splits, how: Adaptation) -> None:
    """Raise UsageError for images from which no classifier can be made, or a choice with nothing to choose on."""
    if how.solver == 'none':
        if not how.batch_norm:
            raise UsageError(
                'adapt.solver=none keeps the classifier, and the network has no BatchNorm: nothing is new.'
            )
        return
    source, num_classes = images.train, network.model.num_classes
    present = len(np.unique(source.labels))
    if len(source) < min(num_classes, 2 * present):
        raise UsageError(
            f'{len(source)} training images are fewer than the {num_classes} classes, and too few for the {present} '
            'that they are of: give two images of a class or more. adapt.solver=none adapts the statistics alone.'
        )
    if present < 2:
        raise UsageError('All training images are of one class: a classifier needs images of two or more.')
    if how.solver == 'lbfgs' and not (how.unseen and images.held_out is not None) and len(how.weight_decays) > 1:
        raise UsageError(
            'adapt.solver=lbfgs chooses the weight decay on images held out from the training of the trunk, and there '
            'are none: use adapt.solver=sgd, or give adapt.weight_decays one value.'
        )
