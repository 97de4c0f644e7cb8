"""Exact statistics of any BatchNorm layers of any network: after averaging, merging, pruning or quantizing weights."""

import dataclasses

import numpy as np

from fixres_jax.adaptation import statistics
from fixres_jax.core.progress import log
from fixres_jax.data import sources
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.machines.runtime import Feed
from fixres_jax.weights.network import Network


def recalibrate(
    network: Network,
    source: Source,
    transform: Transform,
    feed: Feed,
    *,
    batch_norm: str = '.*',
    at_once: bool = False,
    seed: int | None = None,
    prior_images: int = 0,
) -> Network:
    """Return a network whose BatchNorm layers have the mean and the variance of their inputs over a source.

    Args:
      network: on the devices.
      source: images.
      transform: of those to uint8[R, R, 3].
      feed: how they pass; its batches are made a little smaller, where all images fit whole batches so.
      batch_norm: regex of the layers; '' for none.
      at_once: all layers in one pass, see `statistics.measure`; otherwise a pass for each, in the network's order, and
        the statistics are those of what the layers see of the images in evaluation.
      seed: of the augmentation, if the transform is one of training.
      prior_images: images that the old statistics count as, which are blended with those; 0 to replace them.
    """
    size = even_batch(len(source), feed.batch_size, feed.mesh.size)
    left_out = len(source) - len(source) // size * size if len(source) >= size else 0
    if left_out:
        log.info('%s: %d of %d images do not fill a batch and are left out.', feed.title, left_out, len(source))
    if at_once:
        # Folders come class by class, and the statistics of a batch of few classes are not those of the images.
        source = sources.subset(source, np.random.default_rng(0).permutation(len(source)))
    feed = dataclasses.replace(feed, batch_size=size)
    how = {'batch_norm': batch_norm, 'at_once': at_once, 'seed': seed, 'prior_images': prior_images}
    found = statistics.measure(network, source, {'only': transform}, feed, **how)['only']
    placed = feed.runtime.place(found)
    return network.replaced({f'batch_stats/{name}': leaf for name, leaf in placed.items()})


def even_batch(count: int, batch_size: int, devices: int) -> int:
    """Return the batch size of as many batches as needed, all of one size, which leave out as few images as can be.

    >>> even_batch(1000, 256, 1), even_batch(1000, 256, 8), even_batch(5, 256, 8)
    (250, 248, 8)
    """
    batches = -(-count // batch_size)
    return max(devices, count // batches // devices * devices)
