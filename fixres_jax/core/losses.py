"""What a classifier gets wrong: cross entropy, and whether the label is among the highest logits."""

import jax
import jax.numpy as jnp
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
