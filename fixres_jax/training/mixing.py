"""Mixup, CutMix and random erasing, on the devices: what a training step does to its images and labels."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fixres_jax.core import sections
from fixres_jax.core.sections import Section
from fixres_jax.models.layers import gather, normalize
from fixres_jax.training import erasing

STREAM = 2**31 - 1  # of the key of a step; parts of a batch have small numbers

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Mixing(Section):
    """Random changes of whole batches, as timm and torchvision make them: images are normalized, erased, then mixed.

    The images of a BatchNorm group, those of a GPU of the references, are mixed with each other, the first with the
    last, by one draw.
    """

    PATH = 'train.mixing.'
    RULES = {
        'mixup': sections.least(0, 0.2),
        'cutmix': sections.least(0, 1.0),
        'probability': sections.Rule(lambda v: 0 <= v <= 1, '0 to 1', 1.0),
        'switch': sections.Rule(lambda v: 0 <= v <= 1, '0 to 1', 0.5),
        'erasing': sections.Rule(lambda v: 0 <= v <= 1, '0 to 1', 0.25),
        'erasing_fill': sections.one_of(erasing.FILLS),
    }

    mixup: float
    cutmix: float
    probability: float
    switch: float
    erasing: float
    erasing_fill: str


def make(
    how: Mixing, mean: Sequence[float], std: Sequence[float], group_size: int | None
) -> Callable[[Batch, jax.Array], Batch] | None:
    """Return the function (batch, key of the step) -> batch; None where nothing is to be done.

    Args:
      how: what.
      mean, std: that the model normalizes by. Images come out normalized, float32: half of one and half of another, or
        noise, have no uint8.
      group_size: images that are mixed with each other; None for the whole batch.

    Returns:
      A function of batches of 'image' uint8[B, H, W, 3] and 'label' int32[B]. Where images are mixed the batch gets
      'other' int32[B], the second label, and 'share' float32[B], of the first.
    """
    mixes = how.probability > 0 and (how.mixup > 0 or how.cutmix > 0)
    if not mixes and not how.erasing:
        return None

    def change(batch: Batch, key: jax.Array) -> Batch:
        erasing_key, mixing_key = jax.random.split(jax.random.fold_in(key, STREAM))
        images = normalize(batch['image'], mean, std, jnp.float32)
        if how.erasing:
            images = erasing.erase_some(images, erasing_key, how.erasing, how.erasing_fill)
        if not mixes:
            return batch | {'image': images}
        size = group_size or len(images)
        weight, box = draw(mixing_key, len(images) // size, images.shape[1:3], how)
        return batch | mix(images, batch['label'], weight, box)

    return change


def mix(images: jax.Array, labels: jax.Array, weight: jax.Array, box: jax.Array) -> Batch:
    """Mix each image with its partner in the group: the first with the last, the second with the last but one.

    Args:
      images: float32[B, H, W, C].
      labels: int32[B].
      weight: float32[G], of the image in mixup; the partner has the rest.
      box: int32[G, 4], (top, bottom, left, right) of what CutMix takes of the partner; empty where it does nothing.

    Returns:
      {'image', 'label', 'other', 'share'}; the share is of `label` in pixels.
    """
    num_groups, (height, width) = len(weight), images.shape[1:3]
    grouped = images.reshape(num_groups, -1, *images.shape[1:])
    partner = grouped[:, ::-1]
    top, bottom, left, right = box.T
    inside = _between(height, top, bottom)[:, :, None] & _between(width, left, right)[:, None, :]
    w = weight.reshape(-1, 1, 1, 1, 1)
    mixed = jnp.where(inside[:, None, :, :, None], partner, w * grouped + (1 - w) * partner)
    share = weight * (1 - (bottom - top) * (right - left) / (height * width))
    pairs = labels.reshape(num_groups, -1)
    return {
        'image': mixed.reshape(images.shape),
        'label': labels,
        'other': pairs[:, ::-1].reshape(-1),
        'share': jnp.repeat(share, pairs.shape[1]),
    }


def _between(length: int, low: jax.Array, high: jax.Array) -> jax.Array:
    """Return bool[G, length]: which places of an axis are in [low, high)."""
    places = jnp.arange(length)[None, :]
    return (places >= low[:, None]) & (places < high[:, None])


def draw(key: jax.Array, num_groups: int, size: tuple[int, int], how: Mixing) -> tuple[jax.Array, jax.Array]:
    """Draw what is mixed in each group: the weight of mixup and the box of CutMix, of which one does nothing."""
    keys = jax.random.split(key, 5)
    shape = (num_groups,)
    cuts = jnp.full(shape, how.cutmix > 0)
    if how.mixup and how.cutmix:
        cuts = gather(jax.random.uniform(keys[0], shape)) < how.switch
    alpha = gather(jnp.where(cuts, how.cutmix, how.mixup))
    # Whole on every device: it is drawn until all values are accepted, for which devices with parts of them would ask
    # each other at every turn.
    share = gather(jax.random.beta(keys[1], alpha, alpha))
    share = jnp.where(jax.random.uniform(keys[2], shape) < how.probability, share, 1.0)
    height, width = size
    row, column = jax.random.randint(keys[3], shape, 0, height), jax.random.randint(keys[4], shape, 0, width)
    box = cutmix_box(jnp.where(cuts, share, 1.0), row, column, size)
    return jnp.where(cuts, 1.0, share), box


def cutmix_box(share: jax.Array, row: jax.Array, column: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Return int32[G, 4], (top, bottom, left, right): a box of 1 - share of the image, cut at its borders.

    Args:
      share: float32[G], of the image that stays.
      row, column: int32[G], the centre.
      size: (height, width) of the image.

    Source: Yun et al. 2019, as in torchvision.
    """
    edges = []
    for centre, length in ((row, size[0]), (column, size[1])):
        half = (0.5 * jnp.sqrt(1 - share) * length).astype(jnp.int32)
        edges += [jnp.clip(centre - half, 0, length), jnp.clip(centre + half, 0, length)]
    return jnp.stack(edges, axis=-1)
