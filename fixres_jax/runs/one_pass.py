"""The adaptation in one pass of a run's network: to one resolution, or to several, of which one is chosen."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from fixres_jax.adaptation import adapt
from fixres_jax.core.resolution import Resolution
from fixres_jax.data import sources, transforms
from fixres_jax.data.sources import Source
from fixres_jax.runs.run import Run
from fixres_jax.weights.network import Network

Adapted = dict[int | Resolution, tuple[Network, adapt.Record]]  # as `adapt.adapt` returns it


def at(run: Run, start: Network, resolution: int | Resolution, title: str) -> Adapted:
    """Adapt a network to one resolution on all training images of a run, as `adapt.adapt` returns it."""
    return adapt.adapt(
        start,
        run.images,
        run.test_transforms((resolution,)),
        run.adaptation,
        run.feed(title),
        seed=run.settings.seed,
        directory=run.workdir / 'embeddings',
        augment=transforms.make_finetune(resolution, augmentation='v2', **run.resizing),
    )


def sweep(run: Run, start: Network, resolutions: Iterable[int | Resolution]) -> tuple[dict[str, Any], Adapted]:
    """Adapt a network to every resolution, on as many images as that may cost.

    Returns:
      The held-out scores before and after, as `evaluate.evaluate` has its points; and what `adapt.adapt` returned.
    """
    source = compared(run)
    adapted = adapt.adapt(
        start,
        dataclasses.replace(run.images, train=source),
        run.test_transforms(resolutions),
        dataclasses.replace(run.adaptation, copies=0),
        run.feed('sweep'),
        seed=run.settings.seed,
        directory=run.workdir / 'embeddings',
    )
    records = {str(resolution): record for resolution, (_, record) in adapted.items()}
    points = [
        {'network': name, 'resolution': resolution} | record[name]
        for resolution, (_, record) in adapted.items()
        for name in ('before', 'after')
    ]
    found = {'count': len(run.images.held_out), 'points': points, 'images_used': len(source), 'adaptations': records}
    return found | {'images_seen': sum(record['images_seen'] for record in records.values())}, adapted


def compared(run: Run) -> Source:
    """Return as many training images as adaptations that only compare may cost."""
    return sources.sample(run.images.train, run.settings.adapt.sweep_images, run.settings.seed)


def choose_resolution(result: dict[str, Any], train_resolution: int) -> int | Resolution:
    """Return the resolution, at least the training one, of the highest top-1; of equals the one of lowest loss.

    After adaptation, if the sweep has adapted: the resolution that is best then is not the one that is best before.
    """
    last = result['points'][-1]['network']
    points = [p for p in result['points'] if p['resolution'] >= train_resolution and p['network'] == last]
    return max(points, key=lambda point: (point['top1'], -point['loss']))['resolution']
