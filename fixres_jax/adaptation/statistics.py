"""Exact statistics of BatchNorm layers: population mean and variance of their inputs, over a part of the images."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fixres_jax import models
from fixres_jax.adaptation import embeddings
from fixres_jax.core import trees
from fixres_jax.data import pipeline, sources
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, one_pass, watched
from fixres_jax.models import Model
from fixres_jax.weights.network import Network

# Of the training images, for the statistics: with a tenth held out the whole stays within 1.2 passes.
STATISTICS_SHARE = 1 / 16
STATISTICS_LEAST = 256  # images


def measure(
    network: Network,
    source: Source,
    transforms: Mapping[Any, Transform],
    feed: Feed,
    *,
    batch_norm: str,
    at_once: bool = False,
    seed: int | None = None,
    prior_images: int = 0,
) -> dict[Any, dict[str, np.ndarray]]:
    """Measure the exact mean and variance of the inputs of BatchNorm layers over all whole batches of a source.

    Layers are taken in the network's order, one pass each, so that each sees what its predecessors' new statistics make
    of the images. `at_once` takes all in one pass instead: then each sees what its predecessors make of the images when
    they normalize every batch by the batch's own statistics. Where the layers are independent the two are the same.

    Args:
      network: on the devices.
      source: images.
      transforms: key, such as the resolution, -> transform; each file is decoded once for all.
      feed: how the images pass; a batch is at most the source, and a multiple of the devices.
      batch_norm: regex of the layers.
      at_once: see above.
      seed: of the augmentation, for one transform of training images; None for test transforms, which draw nothing.
      prior_images: images that the network's own statistics count as, see `blend`; 0 to replace them.

    Returns:
      key -> {'layer4/2/bn3/mean': float32[C], 'layer4/2/bn3/var': float32[C], ...}: population values, of all positions
      of all images. The batches differ by nothing in size, so their moments average without weights. With
      `prior_images` they are blended with the network's own, layer by layer: later layers see what that makes.
    """
    devices = feed.mesh.size
    batch_size = max(devices, min(feed.batch_size, len(source)) // devices * devices)
    num_batches = max(1, len(source) // batch_size)
    # Fewer images than devices are repeated, so that every device has one.
    whole = sources.subset(source, np.arange(num_batches * batch_size) % len(source))
    statistics: dict[Any, dict[str, np.ndarray]] = {key: {} for key in transforms}
    layers = _in_order(network.model, models.batch_norm_layers(network.variables['batch_stats'], batch_norm))
    own = trees.flatten(network.variables['batch_stats']) if prior_images else {}
    num_images = min(len(source), num_batches * batch_size)
    for together in [layers] if at_once and layers else [(layer,) for layer in layers]:
        step = _make_moments(network.model, together, feed.mesh)
        # (key, layer) -> float64[2, C], of the batches' means and mean squares
        sums = {(key, layer): 0.0 for key in transforms for layer in together}
        for images in _batches(whole, transforms, dataclasses.replace(feed, batch_size=batch_size), seed):
            for key, image in images.items():
                for layer, moments in step(network.variables, statistics[key], image).items():
                    mean, var = (np.asarray(x, np.float64) for x in moments)
                    sums[key, layer] = sums[key, layer] + np.stack([mean, var + mean**2])
        for (key, layer), total in sums.items():
            mean, square = total / num_batches
            found = {f'{layer}/mean': mean, f'{layer}/var': np.maximum(square - mean**2, 0.0)}
            if prior_images:
                found = {
                    name: blend(np.asarray(own[name]), new, num_images, prior_images) for name, new in found.items()
                }
            statistics[key] |= {name: np.float32(value) for name, value in found.items()}
    return statistics


def blend(old: np.ndarray, new: np.ndarray, num_images: int, prior_images: int) -> np.ndarray:
    """Return old statistics, counted as some images, blended with new ones: means and variances alike.

    Source: equation 2 of Schneider et al., "Improving robustness against common corruptions by covariate shift
    adaptation", NeurIPS 2020, whose N is `prior_images` and n `num_images`. The variance is the blend of the variances,
    not that of the images together, which would add a term of the distance of the means.

    >>> float(blend(np.array(1.0), np.array(5.0), num_images=32, prior_images=96))
    2.0
    """
    share = prior_images / (prior_images + num_images)
    return share * np.float64(old) + (1 - share) * np.float64(new)


def _batches(
    source: Source, transforms: Mapping[Any, Transform], feed: Feed, seed: int | None
) -> Iterator[dict[Any, jax.Array]]:
    """Iterate over a source of whole batches: key -> images on the devices."""
    if seed is None:
        yield from (batch['image'] for _, _, batch in one_pass(source, transforms, feed))
        return
    ((key, transform),) = transforms.items()
    size, count = feed.batch_size, len(source) // feed.batch_size
    share = {'batch_size': size, 'seed': seed, 'start_step': 0, 'num_steps': count}
    batches = pipeline.train_batches(source, transform, feed.runtime.readers, **share)
    yield from ({key: batch['image']} for _, _, batch in watched(batches, count, size, feed))


@functools.cache
def _make_moments(model: Model, layers: tuple[str, ...], mesh: Mesh) -> Callable[..., dict[str, Any]]:
    """Return the jitted function (variables, changes, image) -> layer -> mean and variance of its input."""
    mode = models.Mode('|'.join(map(re.escape, layers)), population=True)
    whole = model.clone(bn_group_size=None)  # The batch is one group: that of training has no say here.

    def moments(variables, changes, image):
        _, new = whole.apply(embeddings.change(variables, changes), image, mode, mutable=['batch_stats'])
        new = trees.flatten(new['batch_stats'])
        return {layer: (new[f'{layer}/mean'], new[f'{layer}/var']) for layer in layers}

    return sharding.jit(moments, mesh, out_shardings=sharding.replicated(mesh))


def _in_order(model: Model, layers: tuple[str, ...]) -> tuple[str, ...]:
    """Return layers in the order in which the network calls them."""
    if len(layers) < 2:
        return layers  # without tracing the network
    names = model.names()
    return tuple(sorted(layers, key=lambda layer: names.index(f'batch_stats/{layer}/mean')))


def sample(source: Source, num_images: int, seed: int) -> Source:
    """Return a random part of the training images, as large as the statistics are measured on."""
    share = max(STATISTICS_LEAST, round(STATISTICS_SHARE * len(source)))
    return sources.sample(source, min(num_images, share), seed)
