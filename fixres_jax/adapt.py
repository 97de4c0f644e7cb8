"""Adaptation in one pass: exact statistics of the last BatchNorm, embeddings once, the classifier on those.

Fine-tuning runs a frozen trunk over the same images again and again. Here it runs over each of them once, and the
classifier is fitted to what came out.
"""

import dataclasses
import functools
import re
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from fixres_jax import classifier, embeddings, models, preemption, sharding, train, trees
from fixres_jax.data import pipeline, sources
from fixres_jax.errors import UsageError
from fixres_jax.progress import log

# Of the training images, for the statistics: with a tenth held out the whole stays within 1.2 passes.
STATISTICS_SHARE = 1 / 16
STATISTICS_LEAST = 256  # images


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Say how a network is adapted: the fields of the configs' `adapt`, and `finetune` for SGD.

    Attributes:
      batch_norm: regex of the BatchNorm layers that get new statistics.
      statistics_images: training images to measure them on, at most.
      solver: 'lbfgs', full-batch with a weight decay chosen on held-out images; or 'sgd', with the reference's values.
      weight_decays: what L-BFGS chooses from.
      max_iterations: of L-BFGS.
      optimization: of SGD, the reference's fine-tuning.
      flip: embed the mirror images too.
      copies: augmented copies of each image to embed too (transform 'v2').
      cache_dtype: of the embeddings, 'float32' or 'bfloat16'.
      cache_gigabytes: of each device's memory for them; more goes to disk.
      unseen: whether the trunk's training has seen none of the held-out images, so that they can choose.
    """

    batch_norm: str
    statistics_images: int
    solver: str
    weight_decays: tuple[float, ...]
    max_iterations: int
    optimization: train.Optimization
    flip: bool
    copies: int
    cache_dtype: str
    cache_gigabytes: float
    unseen: bool


def measure_statistics(
    model: Any,
    variables: Any,
    source: Any,
    transforms: Mapping[Any, Callable[..., np.ndarray]],
    *,
    batch_norm: str,
    batch_size: int,
    mesh: Mesh,
    reading: Mapping[str, int] = types.MappingProxyType({}),
) -> dict[Any, dict[str, np.ndarray]]:
    """Measure the exact mean and variance of the inputs of BatchNorm layers over all whole batches of a source.

    Layers are taken in the network's order, one pass each, so that each sees what its predecessors' new statistics make
    of the images.

    Args:
      model: from `models.create`.
      variables: on the devices.
      source: random-access source of images.
      transforms: key, such as the resolution, -> transform; each file is decoded once for all.
      batch_norm: regex of the layers.
      batch_size: global; rounded up to a multiple of the devices, and at most the source.
      mesh: the devices.
      reading: workers and threads, as in `pipeline.eval_batches`.

    Returns:
      key -> {'layer4/2/bn3/mean': float32[C], 'layer4/2/bn3/var': float32[C], ...}: population values, of all positions
      of all images. The batches differ by nothing in size, so their moments average without weights.
    """
    batch_size = max(mesh.size, min(batch_size, len(source)) // mesh.size * mesh.size)
    num_batches = max(1, len(source) // batch_size)
    found: dict[Any, dict[str, np.ndarray]] = {key: {} for key in transforms}
    for layer in sorted(models.batch_norm_layers(variables['batch_stats'], batch_norm), key=_natural):
        step = _make_moments(model, layer, mesh)
        sums = dict.fromkeys(transforms, 0.0)
        batches = pipeline.eval_batches(
            sources.subset(source, np.arange(num_batches * batch_size) % len(source)),
            transforms,
            batch_size=batch_size,
            **sharding.hosts(),
            **reading,
        )
        for number, (_, batch) in enumerate(sharding.prefetch(batches, mesh)):
            for key, image in batch['image'].items():
                mean, var = (np.asarray(x, np.float64) for x in step(variables, found[key], image))
                sums[key] = sums[key] + np.stack([mean, var + mean**2])
            if preemption.requested(number):
                raise preemption.Preempted('stopped while measuring statistics, which begins again')
        for key, (mean, square) in ((key, total / num_batches) for key, total in sums.items()):
            found[key][f'{layer}/mean'] = np.float32(mean)
            found[key][f'{layer}/var'] = np.float32(np.maximum(square - mean**2, 0.0))
    return found


@functools.cache
def _make_moments(model: Any, layer: str, mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return the jitted function (variables, changes, image) -> mean and variance of a layer's input in the batch."""
    mode = models.Mode(re.escape(layer), population=True)
    whole = model.clone(bn_group_size=None)  # The batch is one group: that of training has no say here.

    def moments(variables, changes, image):
        _, new = whole.apply(embeddings.change(variables, changes), image, mode, mutable=['batch_stats'])
        new = trees.flatten(new['batch_stats'])
        return new[f'{layer}/mean'], new[f'{layer}/var']

    return jax.jit(moments, out_shardings=sharding.replicated(mesh))


def _natural(name: str) -> list[Any]:
    """Sort 'layer3/10' after 'layer3/2'."""
    return [[int(part) if part.isdigit() else part for part in re.split(r'(\d+)', piece)] for piece in name.split('/')]


def adapt(
    model: Any,
    variables: Any,
    source: Any,
    held_out: Any,
    test_transforms: Mapping[int, Callable[..., np.ndarray]],
    how: Adaptation,
    *,
    augment: Callable[..., np.ndarray] | None = None,
    batch_size: int,
    seed: int,
    mesh: Mesh,
    directory: epath.Path,
    reading: Mapping[str, int] = types.MappingProxyType({}),
    title: str = 'adapt',
) -> dict[int, tuple[dict[str, Any], dict[str, Any]]]:
    """Adapt a network to each of some test resolutions; each file is read once for the embeddings of all.

    The choice between the classifiers is made on the held-out images, if the trunk has not seen those: see `choose`.

    Args:
      model: from `models.create`.
      variables: of the trained network, on the devices.
      source: labelled training images.
      held_out: images that the classifier has not seen; None where there are none.
      test_transforms: resolution -> test transform to uint8[R, R, 3].
      how: see `Adaptation`.
      augment: transform of `how.copies`, for a single resolution.
      batch_size: global, of the passes through the trunk.
      seed: of the images for the statistics, of augmentation and SGD.
      mesh: the devices.
      directory: for embeddings that do not fit on the devices; emptied in the end.
      reading, title: as `embeddings.embed` takes them.

    Returns:
      resolution -> (variables, record): what was chosen and on what, `candidates` with their held-out scores, `passes`
      of the training images through the trunk, and seconds of each part.

    Raises:
      UsageError: for a model without the layers, fewer images than classes, one class only, or several weight decays
        with nothing to choose on.
    """
    _check(model, source, held_out, how)
    began = time.monotonic()
    sampled = sample(source, how.statistics_images, seed)
    common = {'batch_size': batch_size, 'mesh': mesh, 'reading': reading}
    statistics = measure_statistics(model, variables, sampled, test_transforms, batch_norm=how.batch_norm, **common)
    measured = time.monotonic()
    networks = {resolution: {'before': {}, 'after': new} for resolution, new in statistics.items()}
    cache = {'dtype': how.cache_dtype, 'device_bytes': how.cache_gigabytes * 1e9}
    training = embeddings.embed(
        model, variables, networks, source, test_transforms,
        keep=('after',), flip=how.flip, **_copies(source, augment, how.copies, seed, **common),
        directory=directory / 'train', title=f'{title}: embed', **cache, **common,
    )  # fmt: skip
    checking = embeddings.embed(
        model, variables, networks, held_out, test_transforms,
        directory=directory / 'held_out', title=f'{title}: held out', **cache, **common,
    ) if held_out is not None else {}  # fmt: skip
    seconds = {'statistics': measured - began, 'embeddings': time.monotonic() - measured}
    shared = _cost(variables, sampled, source, held_out, next(iter(training.values())), how)
    result = {}
    for resolution, new in statistics.items():
        began = time.monotonic()
        old = variables['params'][models.CLASSIFIER]
        checks = [checking.get((resolution, name)) for name in ('before', 'after')]
        head, record = fit(training[resolution, 'after'], *checks, old, how, seed=seed)
        adapted = variables
        if head is not old:
            adapted = embeddings.change(variables, jax.device_put(new, sharding.replicated(mesh)))
            adapted['params'] = {**variables['params'], models.CLASSIFIER: head}
        record |= shared | {'part_seconds': seconds | {'classifier': time.monotonic() - began}}
        result[resolution] = adapted, record
        log.info('%s at %d: %s.', title, resolution, describe(record))
    for data in (*training.values(), *checking.values()):
        if data.path:
            data.path.unlink()
    return result


def _copies(
    source: Any, augment: Any, num_copies: int, seed: int, batch_size: int, mesh: Mesh, reading: Mapping[str, int]
) -> dict[str, Any]:
    """Return the batches of augmented copies, and their number, as `embeddings.embed` takes them."""
    if not num_copies:
        return {}
    size = sharding.round_up(min(batch_size, len(source)), mesh)
    count = -(-num_copies * len(source) // size)
    batches = pipeline.train_batches(
        source, augment, batch_size=size, seed=seed, start_step=0, num_steps=count, **sharding.hosts(), **reading
    )
    return {'copies': batches, 'num_copies': count}


def _cost(
    variables: Any, sampled: Any, source: Any, held_out: Any, training: embeddings.Embeddings, how: Adaptation
) -> dict[str, Any]:
    """Say which layers were adapted, on how many images, and how often the trunk saw an image."""
    layers = models.batch_norm_layers(variables['batch_stats'], how.batch_norm)
    seen = len(sampled) * len(layers) + training.count + (len(held_out) if held_out is not None else 0)
    return {
        'batch_norm': list(layers),
        'statistics_images': len(sampled),
        'images': len(source),
        'images_seen': seen,
        'passes': seen / len(source),
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

    Args:
      training: embeddings of the training images under the new statistics.
      before, after: of the held-out images, under the old and the new statistics; None where there are none.
      old: the classifier to begin from.
      how: see `Adaptation`.
      seed: of SGD's batches.

    Returns:
      The classifier, `old` itself when the old network is to be kept, and what was chosen.
    """
    candidates, heads, head = [], [], old
    if how.solver == 'sgd':
        o = how.optimization
        num_steps, tx, _ = train.make_optimizer(o, training.count)
        sizes = {'num_steps': num_steps, 'batch_size': o.batch_size}
        heads = [classifier.fit_sgd(training, old, tx, **sizes, seed=seed, label_smoothing=o.label_smoothing)]
        candidates = [{'weight_decay': o.weight_decay} | (classifier.score(after, heads[0]) if after else {})]
    else:
        for weight_decay in sorted(how.weight_decays, reverse=True):  # the path from smooth to sharp is the short one
            head, info = classifier.fit_lbfgs(training, head, weight_decay, max_iterations=how.max_iterations)
            heads.append(head)
            candidates.append({'weight_decay': weight_decay} | info | (classifier.score(after, head) if after else {}))
            if after and _has_risen([candidate['loss'] for candidate in candidates]):
                break
    record: dict[str, Any] = {'solver': how.solver}
    if after is None:
        record |= {'chosen': candidates[0]['weight_decay'], 'kept_old': False, 'chosen_on': None}
        return heads[0], record | {'candidates': candidates}
    heads.append(old)
    candidates.append({'weight_decay': None} | classifier.score(before, old))
    best = choose(candidates) if how.unseen else 0
    return heads[best], record | {
        'chosen': candidates[best]['weight_decay'],
        'kept_old': heads[best] is old,
        'candidates': candidates,
        'before': candidates[-1],
        'after': candidates[best],
        'chosen_on': 'held-out training images' if how.unseen else None,
    }


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
    solver = {'lbfgs': 'L-BFGS', 'sgd': "SGD with the reference's values"}[record['solver']]
    if not record['chosen_on']:
        return f'{solver}, weight decay {record["chosen"]:g}; nothing was chosen, for want of unseen images'
    before, after = record['before'], record['after']
    if record['kept_old']:
        return f'the old classifier and statistics were kept: none was better on {before["count"]} held-out images'
    return (
        f'{solver}, weight decay {record["chosen"]:g}, chosen on {before["count"]} held-out images: '
        f'top-1 {before["top1"]:.2f} -> {after["top1"]:.2f} %, '
        f'cross entropy {before["loss"]:.4f} -> {after["loss"]:.4f}'
    )


def sample(source: Any, num_images: int, seed: int) -> Any:
    """Return a random part of the training images, as large as the statistics are measured on."""
    share = max(STATISTICS_LEAST, round(STATISTICS_SHARE * len(source)))
    size = min(num_images, share, len(source))
    picked = np.random.default_rng([seed, len(source)]).choice(len(source), size, replace=False)
    return sources.subset(source, np.sort(picked))


def _check(model: Any, source: Any, held_out: Any, how: Adaptation) -> None:
    """Raise UsageError for images from which no classifier can be made, or a choice with nothing to choose on."""
    if len(source) < model.num_classes:
        raise UsageError(
            f'{len(source)} training images are fewer than the {model.num_classes} classes: give more images.'
        )
    if len(np.unique(source.labels)) < 2:
        raise UsageError('All training images are of one class: a classifier needs images of two or more.')
    if how.solver == 'lbfgs' and not (how.unseen and held_out is not None) and len(how.weight_decays) > 1:
        raise UsageError(
            'adapt.solver=lbfgs chooses the weight decay on images held out from the training of the trunk, and there '
            'are none: use adapt.solver=sgd, or give adapt.weight_decays one value.'
        )
