"""TrainState: what changes while a network trains, as arrays only; where it comes from."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fixres_jax.core import trees
from fixres_jax.machines import sharding
from fixres_jax.models import Model, Variables


@flax.struct.dataclass
class TrainState:
    """Hold everything that a training step changes.

    Attributes:
      step: int32[], steps done.
      params: nested dict, float32.
      batch_stats: nested dict of running means and variances, float32.
      opt_state: the optimizer's state of the trainable parameters only.
      ema: the average of the trainable parameters; None where none is kept.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None

    @property
    def variables(self) -> Variables:
        """What `model.apply` takes."""
        return {'params': self.params, 'batch_stats': self.batch_stats}

    @property
    def items(self) -> dict[str, Any]:
        """What a checkpoint keeps: the network, and what only going on with its training needs."""
        average = {} if self.ema is None else {'ema': self.ema}
        return {'model': self.variables, 'training': {'step': self.step, 'opt_state': self.opt_state} | average}

    @property
    def averaged(self) -> Variables:
        """The variables with the average in place of the parameters; those themselves where there is none."""
        if self.ema is None:
            return self.variables
        averages = trees.flatten(self.params) | trees.flatten(self.ema)
        return {'params': trees.unflatten(averages), 'batch_stats': self.batch_stats}


def from_items(items: Mapping[str, Any]) -> TrainState:
    """Return the state of the items of a checkpoint: the inverse of `TrainState.items`."""
    return TrainState(**items['model'], **items['training'])


def from_variables(
    variables: Variables, tx: optax.GradientTransformation, trainable: str, averages: bool = False
) -> TrainState:
    """Return the state at step 0 of training the parameters that `trainable` matches, with their average or without."""
    selected, _ = trees.split(variables['params'], trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables['params'],
        batch_stats=variables['batch_stats'],
        opt_state=tx.init(selected),
        ema=jax.tree.map(jnp.copy, selected) if averages else None,
    )


def create(
    model: Model,
    tx: optax.GradientTransformation,
    trainable: str,
    *,
    key: jax.Array,
    mesh: Mesh,
    layout: str = 'replicated',
    variables: Variables | None = None,
    averages: bool = False,
) -> TrainState:
    """Make the state where it will live, from given variables or from random ones.

    Where a run's variables come from, in this order: 1. its own last checkpoint (see `train.run`), 2. `variables`,
    loaded from another run or from converted weights, 3. `model.init`. `layout` is that of `sharding.place`; `averages`
    says whether an average of the parameters is kept.
    """

    def initial_state(given):
        return from_variables(model.init(key) if given is None else given, tx, trainable, averages)

    shardings = sharding.place(jax.eval_shape(initial_state, variables), mesh, layout)
    return jax.jit(initial_state, out_shardings=shardings)(variables)


def abstract(
    model: Model,
    tx: optax.GradientTransformation,
    trainable: str,
    *,
    mesh: Mesh,
    layout: str = 'replicated',
    averages: bool = False,
) -> TrainState:
    """Return the state's shapes, dtypes and shardings without computing it."""
    shapes = jax.eval_shape(lambda key: from_variables(model.init(key), tx, trainable, averages), jax.random.key(0))
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        sharding.place(shapes, mesh, layout),
    )
