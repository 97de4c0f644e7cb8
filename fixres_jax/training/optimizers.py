"""Optimizers: the table of them, what of a network decays, and how fast each of its layers learns."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fixres_jax.core import trees

# A block of a family's network, as the beginning of the names of its parameters.
_BLOCK = re.compile(
    r'layer[1-9]/\d+|s\d/b\d+|blocks/\d+(?:/\d+)?|stages/\d+/blocks/\d+|features/denseblock\d/denselayer\d+'
    r'|features/\d+|repeat(?:_\d)?/\d+|Mixed_\w+|mixed_\w+|block\w+|cell_\w+'
)


@dataclasses.dataclass(frozen=True)
class Values:
    """Hold what an optimizer is built of.

    Attributes:
      lr: multiplies by minus the learning rate, that of each parameter.
      momentum: share of the earlier gradients; the first beta of Adam and LAMB.
      nesterov: whether SGD looks ahead, in Nesterov's way.
      beta2: share of the earlier squares of gradients.
      epsilon: added to what is divided by.
      weight_decay: share of the parameters.
      decays: parameters -> tree of bools, those that decay.
    """

    lr: optax.GradientTransformation
    momentum: float
    nesterov: bool
    beta2: float
    epsilon: float
    weight_decay: float
    decays: Callable[[Any], Any]

    @property
    def decay(self) -> optax.GradientTransformation:
        """Adds the weight decay."""
        # Without a mask the state has the shape that it has in checkpoints of networks of which all decays.
        return optax.add_decayed_weights(self.weight_decay, None if self.decays is everything else self.decays)


def sgd(v: Values) -> optax.GradientTransformation:
    """Return SGD as torch does it: the decay joins the gradient, that the momentum, the learning rate comes last."""
    return optax.chain(v.decay, optax.trace(v.momentum, v.nesterov), v.lr)


def sgd_tf(v: Values) -> optax.GradientTransformation:
    """Return SGD as Keras does it: the momentum is of steps, not of gradients, and the decay stays out of it."""
    return _sum(optax.chain(v.lr, optax.trace(v.momentum, v.nesterov)), optax.chain(optax.set_to_zero(), v.decay, v.lr))


def adamw(v: Values) -> optax.GradientTransformation:
    """Return AdamW as torch does it."""
    return optax.chain(optax.scale_by_adam(v.momentum, v.beta2, v.epsilon), v.decay, v.lr)


def lamb(v: Values) -> optax.GradientTransformation:
    """Return LAMB as timm does it (without its clipping): what does not decay does not get a trust ratio either."""
    ratio = optax.masked(optax.scale_by_trust_ratio(), lambda params: _adapts(v, params))
    return optax.chain(optax.scale_by_adam(v.momentum, v.beta2, v.epsilon), v.decay, ratio, v.lr)


def lars(v: Values) -> optax.GradientTransformation:
    """Return LARS as timm does it: a trust ratio of 0.001 |w| / (|g| + decay |w|), before the momentum."""

    def update(updates, params):
        def of_leaf(gradient, weight, adapts):
            if not adapts:
                return gradient
            norm, size = (jnp.sqrt(jnp.sum(jnp.square(x))) for x in (gradient, weight))
            ratio = 1e-3 * size / (norm + size * v.weight_decay + v.epsilon)
            ratio = jnp.where((size > 0) & (norm > 0), ratio, 1.0)
            return (gradient + v.weight_decay * weight) * ratio

        return jax.tree.map(of_leaf, updates, params, _adapts(v, params))

    return optax.chain(optax.stateless(update), optax.trace(v.momentum, v.nesterov), v.lr)


def rmsprop_tf(v: Values) -> optax.GradientTransformation:
    """Return RMSprop as TensorFlow and timm's RMSpropTF do it.

    The epsilon is inside the root, the squares begin at one, and the momentum is of steps.
    """
    squares = optax.scale_by_rms(v.beta2, v.epsilon, initial_scale=1.0)
    return optax.chain(v.decay, squares, v.lr, optax.trace(v.momentum))


@dataclasses.dataclass(frozen=True)
class Row:
    """Describe an optimizer: how it is built, and the values that it has by itself."""

    build: Callable[[Values], optax.GradientTransformation]
    beta2: float = 0.0
    epsilon: float = 0.0


OPTIMIZERS = {
    'sgd': Row(sgd),
    'sgd_tf': Row(sgd_tf),
    'adamw': Row(adamw, beta2=0.999, epsilon=1e-8),
    'lamb': Row(lamb, beta2=0.999, epsilon=1e-6),
    'lars': Row(lars, epsilon=1e-8),
    'rmsprop_tf': Row(rmsprop_tf, beta2=0.9, epsilon=1e-10),
}


def everything(params: Any) -> Any:
    """Say of each parameter that it decays."""
    return jax.tree.map(lambda _: True, params)


def _not_norms(params: Any) -> Any:
    """Say which parameters decay: all but the scales and biases of norms. Source: torchvision's V2 recipe."""
    flat = trees.flatten(params)
    return trees.unflatten({name: f'{_module(name)}scale' not in flat for name in flat})


def _kernels(params: Any) -> Any:
    """Say which parameters decay: kernels alone, as timm does it."""
    return trees.unflatten({name: name.endswith('kernel') for name in trees.flatten(params)})


DECAYS = {'all': everything, 'not_norms': _not_norms, 'kernels': _kernels}


def _module(name: str) -> str:
    return name[: name.rfind('/') + 1]


def make(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay_on: str = 'all',
    clip_norm: float = 0.0,
    scales: Mapping[str, float] | None = None,
    **values: Any,
) -> optax.GradientTransformation:
    """Return an optimizer.

    Args:
      name: of `OPTIMIZERS`.
      schedule: learning rate of the step.
      weight_decay_on: of `DECAYS`.
      clip_norm: norm that the gradients of all parameters together are clipped to; 0 for none.
      scales: '/' name of a parameter -> its share of the learning rate, see `layer_scales`; None for 1 of each.
      **values: momentum, nesterov, weight_decay and, 0 for the optimizer's own, beta2 and epsilon.
    """
    row = OPTIMIZERS[name]
    for own in ('beta2', 'epsilon'):
        values[own] = values.get(own) or getattr(row, own)
    lr = optax.scale_by_learning_rate(schedule)
    if scales is not None:
        lr = optax.chain(_scale(scales), lr)
    tx = row.build(Values(lr, decays=DECAYS[weight_decay_on], **values))
    return optax.chain(optax.clip_by_global_norm(clip_norm), tx) if clip_norm else tx


def layer_scales(names: Sequence[str], decay: float) -> dict[str, float]:
    """Return each parameter's share of the learning rate: `decay` to the power of the blocks that come after its own.

    What comes before the first block counts as a block, and so does the classifier, with the module that holds it. What
    lies between two blocks belongs to the second; what lies between the last one and the classifier, to the last.

    Args:
      names: of all parameters, in torch's order, which ends with the classifier.
      decay: of a block to the next.

    Source: timm's param_groups_layer_decay.

    >>> layer_scales(['conv1/kernel', 'layer1/0/conv1/kernel', 'layer1/1/conv1/kernel', 'fc/kernel'], 0.5)
    {'conv1/kernel': 0.125, 'layer1/0/conv1/kernel': 0.25, 'layer1/1/conv1/kernel': 0.5, 'fc/kernel': 1.0}
    """
    head = names[-1].split('/')[0]
    trunk = [name for name in names if name.split('/')[0] != head]
    found = [_BLOCK.match(name) for name in trunk]
    order = {block: depth for depth, block in enumerate(dict.fromkeys(m.group() for m in found if m), start=1)}
    depths, depth, first = {}, len(order), next((i for i, m in enumerate(found) if m), math.inf)
    for place in reversed(range(len(trunk))):
        if found[place]:
            depth = order[found[place].group()]
        depths[trunk[place]] = depth if place >= first else 0
    return {name: decay ** (len(order) + 1 - depths.get(name, len(order) + 1)) for name in names}


def _scale(scales: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates, params):
        del params
        return trees.unflatten({name: leaf * scales[name] for name, leaf in trees.flatten(updates).items()})

    return optax.stateless(update)


def _adapts(v: Values, params: Any) -> Any:
    """Say which parameters LAMB and LARS give a trust ratio: those that decay."""
    return jax.tree.map(lambda decays: bool(decays and v.weight_decay), v.decays(params))


def _sum(first: optax.GradientTransformation, second: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return what adds up what two optimizers say of the same gradients."""

    def init(params):
        return first.init(params), second.init(params)

    def update(updates, states, params=None):
        one, first_state = first.update(updates, states[0], params)
        two, second_state = second.update(updates, states[1], params)
        return jax.tree.map(jnp.add, one, two), (first_state, second_state)

    return optax.GradientTransformation(init, update)


def among(classifier: str, classes: Sequence[int]) -> optax.GradientTransformation:
    """Return what lets a classifier learn some classes alone, for the reasons of `adaptation.classifier.with_part`.

    Args:
      classifier: its '/' name.
      classes: whose rows move, each against the others: their mean stays, and so do the rows of all other classes.
    """
    places = np.array(classes)

    def centred(update: jax.Array) -> jax.Array:
        rows = update[..., places]
        return jnp.zeros_like(update).at[..., places].set(rows - rows.mean(-1, keepdims=True))

    def change(updates: Any, params: Any = None) -> Any:
        flat = trees.flatten(updates)
        return trees.unflatten(
            {name: centred(leaf) if name.startswith(f'{classifier}/') else leaf for name, leaf in flat.items()}
        )

    return optax.stateless(change)
