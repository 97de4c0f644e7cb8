"""What a classifier gets wrong: cross entropies, and whether the label is among the highest logits."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Return the cross entropy of each example.

    Args:
      logits: float32[B, K].
      labels: int32[B].
      label_smoothing: share of the target spread evenly over all K classes, as torch does it.

    Returns:
      float32[B].
    """
    if not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def mixed_targets(labels: jax.Array, others: jax.Array, share: jax.Array, num_classes: int) -> jax.Array:
    """Return float32[B, K] of int32[B] labels, int32[B] other labels and the float32[B] share of the first."""
    first, second = (jax.nn.one_hot(one, num_classes) for one in (labels, others))
    return share[:, None] * first + (1 - share[:, None]) * second


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return float32[B], the mean over classes of the cross entropy of each being there, as torch and timm take it.

    Args:
      logits: float32[B, K].
      targets: float32[B, K], in [0, 1].
    """
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What training minimizes.

    Attributes:
      loss: 'cross_entropy', or 'bce': each class by itself is there or not.
      label_smoothing: share of the target spread over all classes.
      threshold: of 'bce': a target above it becomes 1, any other 0; below 0 they stay as they are.
      classes: that are told from each other, ascending, the labels among them; () for all.
    """

    loss: str = 'cross_entropy'
    label_smoothing: float = 0.0
    threshold: float = -1.0
    classes: tuple[int, ...] = ()

    def __call__(self, logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Return float32[B] for float32[B, K] and the labels of a batch, which may be mixed (see `training.mixing`)."""
        if self.classes:
            classes = np.array(self.classes)
            logits = logits[:, classes]
            places = {name: jnp.searchsorted(classes, batch[name]) for name in ('label', 'other') if name in batch}
            batch = {**batch, **places}
        labels, others, share = batch['label'], batch.get('other'), batch.get('share')
        if self.loss == 'cross_entropy':
            # Linear in the targets: two labels of each image stand for a row of them.
            loss = cross_entropy(logits, labels, self.label_smoothing)
            if others is None:
                return loss
            return share * loss + (1 - share) * cross_entropy(logits, others, self.label_smoothing)
        num_classes = logits.shape[-1]
        if others is None:
            targets = jax.nn.one_hot(labels, num_classes)
        else:
            targets = mixed_targets(labels, others, share, num_classes)
        targets = optax.smooth_labels(targets, self.label_smoothing)
        if self.threshold >= 0:
            targets = (targets > self.threshold).astype(jnp.float32)
        return binary_cross_entropy(logits, targets)


CROSS_ENTROPY = Objective()


def mixed_hits(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Return float32[B], the share of each image's labels that have the highest logit."""
    own = hits(logits, batch['label'], 1)
    if 'other' not in batch:
        return own
    return batch['share'] * own + (1 - batch['share']) * hits(logits, batch['other'], 1)


def answering(logits: jax.Array, classes: tuple[int, ...]) -> jax.Array:
    """Return logits with which those classes alone can be answered."""
    allowed = np.isin(np.arange(logits.shape[-1]), classes)
    return jnp.where(allowed, logits, -jnp.inf)


def hits(logits: jax.Array, labels: jax.Array, k: int) -> jax.Array:
    """Say for each example whether its label is among the `k` highest logits.

    The label's rank counts the classes with a higher logit, and those of equal logit and lower index, so that a network
    that gives all classes the same logit is right for one class only.

    Args:
      logits: float32[B, K].
      labels: int32[B].
      k: places that count.

    Returns:
      bool[B].
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    earlier = jnp.arange(logits.shape[-1])[None, :] < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & earlier), axis=-1)
    return (rank < k) & jnp.isfinite(own[:, 0])
