"""The classifier alone, on embeddings that are there: its loss, two ways to fit it, and its score."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils

from fixres_jax.adaptation.embeddings import Embeddings
from fixres_jax.core import losses
from fixres_jax.machines.runtime import keep_pace

Head = dict[str, jax.Array]  # 'kernel' float32[C, K], 'bias' float32[K]


def part(head: Head, classes: Sequence[int]) -> Head:
    """Return the classifier of some classes alone, less the mean of their rows, which a softmax of these cannot see."""
    return jax.tree.map(lambda leaf: _centred(leaf[..., np.array(classes)]), head)


def with_part(head: Head, classes: Sequence[int], new: Head) -> Head:
    """Return a classifier in which some classes have new rows, about the mean of their old ones.

    A softmax over all classes would have images of some raise these above all others, which nothing in the images
    speaks against; so `new` is to be fitted by a softmax of these classes alone, where only the differences of their
    rows count. Their mean stays, so that on any embedding they stand as a whole to the others as before, and the rows
    of the others stay to the bit.

    Args:
      head: the old classifier.
      classes: whose rows are new.
      new: their classifier, 'kernel' float32[C, P] and 'bias' float32[P].
    """
    places = np.array(classes)

    def exchanged(old: jax.Array, rows: jax.Array) -> jax.Array:
        mean = jnp.asarray(old)[..., places].mean(-1, keepdims=True)
        return jnp.asarray(old).at[..., places].set(mean + _centred(rows))

    return jax.tree.map(exchanged, head, new)


def _centred(rows: jax.Array) -> jax.Array:
    return rows - rows.mean(-1, keepdims=True)


def logits(head: Head, embedding: jax.Array) -> jax.Array:
    """Return float32[..., K] of embeddings float32[..., C]."""
    product = jnp.matmul(embedding, head['kernel'], precision='highest')
    return product + head['bias'].reshape((1,) * (product.ndim - 1) + (-1,))


@jax.jit
def _part(head: Head, embedding: jax.Array, label: jax.Array, mask: jax.Array) -> tuple[jax.Array, Head]:
    """Return the cross entropy, summed over a part, and its gradient in closed form."""
    z = logits(head, embedding)
    residual = jnp.where(mask[..., None], jax.nn.softmax(z) - jax.nn.one_hot(label, z.shape[-1]), 0.0)
    value = jnp.where(mask, losses.cross_entropy(z, label), 0.0).sum()
    kernel = jnp.einsum('nbc,nbk->ck', embedding, residual, precision='highest')
    return value, {'kernel': kernel, 'bias': residual.sum((0, 1))}


@jax.jit
def _add_decay(total: tuple[jax.Array, Head], head: Head, count: int, weight_decay: float) -> tuple[jax.Array, Head]:
    value, gradient = jax.tree.map(lambda x: x / count, total)
    gradient = jax.tree.map(lambda g, w: g + weight_decay * w, gradient, head)
    return value + weight_decay / 2 * optax.tree.norm(head, squared=True), gradient


def objective(data: Embeddings, head: Head, weight_decay: float = 0.0) -> tuple[jax.Array, Head]:
    """Return mean cross entropy + weight_decay / 2 * |head|^2, and its gradient, in one pass over the embeddings.

    The weight decay acts on kernel and bias, as torch's SGD has it.
    """
    total = None
    for number in range(data.num_parts):
        part = _part(head, *data.read(number))
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    return _add_decay(total, head, data.count, weight_decay)


def fit_lbfgs(
    data: Embeddings, head: Head, weight_decay: float, *, max_iterations: int, tolerance: float = 1e-5
) -> tuple[Head, dict[str, float]]:
    """Minimize `objective` by L-BFGS over all embeddings at once.

    Args:
      data: embeddings and labels.
      head: where to begin.
      weight_decay: at least 0.
      max_iterations: at which to stop.
      tolerance: norm of the gradient at which to stop.

    Returns:
      The classifier, and {'iterations', 'gradient_norm', 'objective'}.
    """
    state = _LBFGS.init(head)
    value, gradient = objective(data, head, weight_decay)
    iterations, norm = 0, float(optax.tree.norm(gradient))
    while iterations < max_iterations and norm > tolerance:
        # 1. The direction, from the last gradients. Nothing of the size of the data is computed.
        direction, slope, state = _direction(gradient, state, head)
        # 2. The step along it, halved until the objective falls. Each try is one pass over the embeddings.
        for halvings in range(20):
            new = _move(head, direction, 0.5**halvings)
            new_value, new_gradient = objective(data, new, weight_decay)
            accepted, new_norm = _judge(value, new_value, slope, new_gradient, direction, 0.5**halvings)
            if accepted:
                break
        else:  # float32 knows no lower point
            break
        # 3. The pass of the accepted try is that of the next direction too.
        head, value, gradient, norm = new, new_value, new_gradient, float(new_norm)
        iterations += 1
    return head, {'iterations': iterations, 'gradient_norm': norm, 'objective': float(value)}


_LBFGS = optax.scale_by_lbfgs(memory_size=20)


@jax.jit
def _direction(gradient: Head, state: Any, head: Head) -> tuple[Head, jax.Array, Any]:
    """Return the direction to go against, the slope along it, and the new state."""
    direction, state = _LBFGS.update(gradient, state, head)
    return direction, -optax.tree.vdot(gradient, direction), state


@jax.jit
def _move(head: Head, direction: Head, step: float) -> Head:
    return jax.tree.map(lambda x, d: x - step * d, head, direction)


@jax.jit
def _judge(
    value: jax.Array, new_value: jax.Array, slope: jax.Array, new_gradient: Head, direction: Head, step: float
) -> tuple[jax.Array, jax.Array]:
    """Say whether a step along the convex objective falls enough, and return the norm of its gradient.

    Near the minimum the fall is below float32's precision of the value, where the slope still tells.
    Source: Hager and Zhang, "A new conjugate gradient method with guaranteed descent", 2005, the approximate Wolfe
    conditions (T1, T2) with delta = 0.1.
    """
    new_slope = -optax.tree.vdot(new_gradient, direction)
    falls = new_value <= value + 0.1 * step * slope
    levels = (new_slope <= -0.8 * slope) & (new_value <= value + 1e-6 * jnp.abs(value))
    return falls | levels, optax.tree.norm(new_gradient)


def fit_sgd(
    data: Embeddings,
    head: Head,
    tx: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    label_smoothing: float = 0.0,
) -> Head:
    """Minimize the cross entropy by SGD over shuffled batches of embeddings.

    Args:
      data: embeddings and labels.
      head: where to begin.
      tx: the optimizer, weight decay included.
      num_steps: steps.
      batch_size: embeddings in a step; every pass has its own order and leaves out its ragged end.
      seed: of the orders.
      label_smoothing: share of the target spread over all classes.

    Returns:
      The classifier.
    """

    def loss(head, embedding, label):
        return losses.cross_entropy(logits(head, embedding), label, label_smoothing).mean()

    def step(head, opt_state, embedding, label):
        updates, opt_state = tx.update(jax.grad(loss)(head, embedding, label), opt_state, head)
        return optax.apply_updates(head, updates), opt_state

    step, opt_state, rows = jax.jit(step), tx.init(head), data.rows()
    batch_size, pending = min(batch_size, len(rows)), []
    for number in range(num_steps):
        epoch, place = divmod(number, len(rows) // batch_size)
        if not place:
            order = np.random.default_rng([seed, epoch]).permutation(rows)
        head, opt_state = step(head, opt_state, *data.take(order[place * batch_size : (place + 1) * batch_size]))
        keep_pace(pending, head, last=number + 1 == num_steps)
    return head


_outcomes = jax.jit(lambda head, embedding, label, mask: {
    'loss': jnp.where(mask, losses.cross_entropy(logits(head, embedding), label), 0.0),
    'top1': losses.hits(logits(head, embedding), label, 1) & mask,
})  # fmt: skip


def outcomes(data: Embeddings, head: Head) -> dict[str, np.ndarray]:
    """Return the outcome of each embedding in order, {'loss': float32[N], 'top1': bool[N]}."""
    parts = []
    for number in range(data.num_parts):
        embedding, label, mask = (x.reshape(-1, *x.shape[2:]) for x in data.read(number))
        parts.append(multihost_utils.process_allgather(_outcomes(head, embedding, label, mask), tiled=True))
    rows = data.rows()
    return {name: np.concatenate([part[name] for part in parts])[rows] for name in parts[0]}


def score(data: Embeddings, head: Head) -> dict[str, float]:
    """Return {'top1': percent, 'loss': nats, 'count'} of a classifier on embeddings."""
    found = outcomes(data, head)
    assert len(found['top1']) == data.count
    return {'top1': 100 * float(found['top1'].mean()), 'loss': float(found['loss'].mean()), 'count': data.count}
