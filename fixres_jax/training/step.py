"""The training step: one function for training from scratch and for fine-tuning."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fixres_jax.core import losses, trees
from fixres_jax.machines import sharding
from fixres_jax.models import Mode, Model
from fixres_jax.training import state
from fixres_jax.training.averaging import Average
from fixres_jax.training.state import TrainState

Batch = dict[str, Any]
TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class Procedure:
    """Say what a step does with a batch; by default what the paper's does.

    Attributes:
      objective: what is minimized.
      mix: what is done to each batch first, from `mixing.make`.
      average: how the average of the parameters moves, which the state then has.
      accumulate_steps: parts of the batch that go through the network one after the other, for want of memory. The step
        is the same as in one part when a part holds whole BatchNorm groups.
    """

    objective: losses.Objective = losses.CROSS_ENTROPY
    mix: Callable[[Batch, jax.Array], Batch] | None = None
    average: Average | None = None
    accumulate_steps: int = 1


PLAIN = Procedure()


def make_train_step(
    model: Model,
    tx: optax.GradientTransformation,
    trainable: str,
    mode: Mode,
    *,
    mesh: Mesh,
    layout: str = 'replicated',
    procedure: Procedure = PLAIN,
) -> TrainStep:
    """Return the jitted step that trains the parameters `trainable` matches, under `mode`.

    Training from scratch is trainable='.*' with Mode('.*'); the paper's fine-tuning of a ResNet-50 is 'fc/.*' with
    Mode('layer4/2/bn3'). Gradients are asked of the selected parameters alone, so what lies below them has no backward
    pass and stays bit-identical, and only the BatchNorm layers that the mode names move their statistics.

    Args:
      model: from `models.create`.
      tx: the optimizer of the selected parameters.
      trainable: regex matched against whole parameter names such as 'fc/kernel'.
      mode: which BatchNorm layers run on batch statistics; whether dropout is on.
      mesh: the devices; the batch is split over them.
      layout: how the state lies on them, see `sharding.place`.
      procedure: what is minimized, mixed and averaged.

    Returns:
      step(state, batch, key) -> (state, {'loss', 'top1', 'gradient_norm': float32[]}). The state given is consumed.
      `batch` holds 'image' uint8[B, R, R, 3] and 'label' int32[B]; `key` is the run's, the step's own is folded in from
      `state.step`.
    """

    average = procedure.average

    def loss_fn(selected, frozen, batch_stats, batch, key):
        variables = {'params': trees.merge(selected, frozen), 'batch_stats': batch_stats}
        (logits, _), updates = model.apply(
            variables, batch['image'], mode, mutable=['batch_stats'], rngs={'dropout': key}
        )
        loss = procedure.objective(logits, batch).mean()
        scalars = {'loss': loss, 'top1': losses.mixed_hits(logits, batch).mean()}
        return loss, (updates['batch_stats'], scalars)

    def step(old, batch, key):
        selected, frozen = trees.split(old.params, trainable)
        key = jax.random.fold_in(key, old.step)
        if procedure.mix:
            batch = jax.lax.with_sharding_constraint(procedure.mix(batch, key), by_example)
        gradients, (batch_stats, scalars) = gradient_fn(selected, frozen, old.batch_stats, batch, key)
        updates, opt_state = tx.update(gradients, old.opt_state, selected)
        number = old.step + 1
        selected = optax.apply_updates(selected, updates)
        new = TrainState(
            step=number,
            params=trees.merge(selected, frozen),
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=average.move(old.ema, selected, number) if average else None,
        )
        return new, scalars | {'gradient_norm': optax.tree.norm(gradients)}

    gradient_fn = jax.grad(loss_fn, has_aux=True)
    if procedure.accumulate_steps > 1:
        gradient_fn = _accumulate(gradient_fn, procedure.accumulate_steps, mesh)
    whole, by_example = sharding.replicated(mesh), sharding.by_example(mesh)
    place = whole
    if layout != 'replicated':
        blank = state.abstract(model, tx, trainable, mesh=mesh, layout=layout, averages=average is not None)
        place = jax.tree.map(lambda x: x.sharding, blank)
    placed = {'in_shardings': (place, by_example, whole), 'out_shardings': (place, whole)}
    return sharding.jit(step, mesh, donate_argnums=0, **placed)


def _accumulate(gradient_fn: Callable[..., Any], num_parts: int, mesh: Mesh) -> Callable[..., Any]:
    """Return the function that gives the mean of `gradient_fn` over equal parts of the batch, one part at a time.

    Each part starts from the same running statistics, so that their mean is what the whole batch would have made them.
    """

    def mean(selected, frozen, batch_stats, batch, key):
        parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
        parts = jax.lax.with_sharding_constraint(parts, NamedSharding(mesh, PartitionSpec(None, 'data')))

        def of_part(number, part):
            return gradient_fn(selected, frozen, batch_stats, part, jax.random.fold_in(key, number))

        def add(total, numbered):
            return jax.tree.map(jnp.add, total, of_part(*numbered)), None

        numbers = jnp.arange(num_parts)
        shapes = jax.eval_shape(of_part, numbers[0], jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zeros, (numbers, parts))
        return jax.tree.map(lambda x: x / num_parts, total)

    return mean
