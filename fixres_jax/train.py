"""Training: one step function for training from scratch and for fine-tuning, and a whole run of it."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fixres_jax import loop, metrics, models, optim, processes, sharding, state, trees
from fixres_jax.checkpoint import Checkpoints, write_metadata
from fixres_jax.data import pipeline
from fixres_jax.models import Mode
from fixres_jax.progress import log
from fixres_jax.sections import Optimization
from fixres_jax.state import TrainState

Batch = dict[str, Any]
TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    model: Any,
    tx: optax.GradientTransformation,
    trainable: str,
    mode: Mode,
    *,
    mesh: Mesh,
    layout: str = 'replicated',
    accumulate_steps: int = 1,
    label_smoothing: float = 0.0,
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
      accumulate_steps: parts of the batch that go through the network one after the other, for want of memory. The step
        is the same as in one part when a part holds whole BatchNorm groups.
      label_smoothing: share of the target spread over all classes.

    Returns:
      step(state, batch, key) -> (state, {'loss', 'top1', 'gradient_norm': float32[]}). The state given is consumed.
      `batch` holds 'image' uint8[B, R, R, 3] and 'label' int32[B]; `key` is the run's, the step's own is folded in from
      `state.step`.
    """

    def loss_fn(selected, frozen, batch_stats, batch, key):
        variables = {'params': trees.merge(selected, frozen), 'batch_stats': batch_stats}
        (logits, _), updates = model.apply(
            variables, batch['image'], mode, mutable=['batch_stats'], rngs={'dropout': key}
        )
        loss = metrics.cross_entropy(logits, batch['label'], label_smoothing).mean()
        scalars = {'loss': loss, 'top1': metrics.hits(logits, batch['label'], 1).mean()}
        return loss, (updates['batch_stats'], scalars)

    def step(now, batch, key):
        selected, frozen = trees.split(now.params, trainable)
        key = jax.random.fold_in(key, now.step)
        gradients, (batch_stats, scalars) = gradient_fn(selected, frozen, now.batch_stats, batch, key)
        updates, opt_state = tx.update(gradients, now.opt_state, selected)
        new = TrainState(
            step=now.step + 1,
            params=trees.merge(optax.apply_updates(selected, updates), frozen),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new, scalars | {'gradient_norm': optax.tree.norm(gradients)}

    gradient_fn = jax.grad(loss_fn, has_aux=True)
    if accumulate_steps > 1:
        gradient_fn = _accumulate(gradient_fn, accumulate_steps, mesh)
    whole, by_example = sharding.replicated(mesh), sharding.by_example(mesh)
    place = whole
    if layout != 'replicated':
        place = jax.tree.map(lambda x: x.sharding, state.abstract(model, tx, trainable, mesh=mesh, layout=layout))
    return jax.jit(step, in_shardings=(place, by_example, whole), out_shardings=(place, whole), donate_argnums=0)


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


def regroup(model: Any, o: Optimization, title: str) -> Any:
    """Return the model with the largest BatchNorm groups that divide a batch, for a phase that trains few layers."""
    size = o.largest_group(model.bn_group_size)
    if size == model.bn_group_size:
        return model
    log.info(
        '%s: BatchNorm groups of %d images, not model.bn_group_size=%d, which does not divide the batch of %d.',
        *(title, size, model.bn_group_size, o.batch_size // o.accumulate_steps),
    )
    return model.clone(bn_group_size=size)


def count_steps(o: Optimization, num_images: int) -> int:
    """Return the steps of a phase, at least one."""
    return max(1, o.steps(o.epochs, num_images))


def make_optimizer(o: Optimization, num_images: int) -> tuple[int, optax.GradientTransformation, optax.Schedule]:
    """Return (steps of the phase, optimizer, learning rate as a function of the step)."""
    num_steps = count_steps(o, num_images)
    schedule = optim.make_schedule(
        o.schedule,
        optim.learning_rate(o.lr, o.batch_size, o.lr_rule),
        num_steps=num_steps,
        decay_every_steps=o.steps(o.decay_every_epochs, num_images),
        warmup_steps=o.steps(o.warmup_epochs, num_images),
    )
    return num_steps, optim.make_sgd(schedule, momentum=o.momentum, weight_decay=o.weight_decay), schedule


def describe(o: Optimization, num_images: int, repeats: int) -> str:
    """Say how long a phase is, in samples seen, and in the paper's epochs where copies of images make those differ."""
    samples = count_steps(o, num_images) * o.batch_size
    text = f'{samples // o.batch_size:,} steps of {o.batch_size} see {samples:,} samples of {num_images:,} images'
    if repeats == 1:
        return f'{text}.'
    epochs = samples / pipeline.epoch_samples(num_images, repeats)
    return f'{text}, {repeats} copies of each in a batch: {epochs:.1f} epochs as the paper counts them.'


def prepare(
    model: Any, o: Optimization, num_images: int, *, mesh: Mesh, layout: str = 'replicated'
) -> tuple[int, optax.GradientTransformation, optax.Schedule, TrainStep]:
    """Return (steps of the phase, optimizer, learning rate as a function of the step, train step)."""
    num_steps, tx, schedule = make_optimizer(o, num_images)
    mode = models.Mode(o.batch_norm, dropout=True)
    step_fn = make_train_step(
        model,
        tx,
        o.trainable,
        mode,
        mesh=mesh,
        layout=layout,
        accumulate_steps=o.accumulate_steps,
        label_smoothing=o.label_smoothing,
    )
    return num_steps, tx, schedule, step_fn


def run(
    model: Any,
    source: Any,
    transform: Callable[..., np.ndarray],
    optimization: Optimization,
    *,
    variables: Any,
    repeats: int,
    seed: int,
    mesh: Mesh,
    layout: str,
    directory: epath.Path,
    metadata: dict[str, Any],
    log_every_steps: int,
    checkpoint_every_steps: int,
    keep_checkpoints: int,
    restore_step: int,
    reading: dict[str, int],
    title: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a network on a source, going on where an earlier run in the same directory stood.

    Args:
      model: from `models.create`.
      source: random-access source of labelled images.
      transform: from `data.transforms`.
      optimization: length, optimizer and what trains.
      variables: where to begin; None for random variables drawn from the seed.
      repeats: copies of an image in a batch, each with its own augmentation.
      seed: of the variables, the order of the images, and the augmentation.
      mesh: the devices.
      layout: how the state lies on them, see `sharding.place`.
      directory, metadata: where checkpoints, metrics and `fixres.json` go, and what the last says.
      log_every_steps, checkpoint_every_steps, keep_checkpoints: how often to write and how much to keep.
      restore_step: checkpoint to go on from, instead of the last one; 0 for the last.
      reading: workers and threads, as in `pipeline.train_batches`.
      title: what the progress bar says.

    Returns:
      The trained variables on the devices, and {'num_steps', 'images_seen', 'earlier_seconds': of earlier processes}.
    """
    o = optimization
    sharding.check_batch_size(o.batch_size, mesh, f'{title}.batch_size', o.accumulate_steps)
    num_steps, tx, schedule, step_fn = prepare(model, o, len(source), mesh=mesh, layout=layout)
    blank = state.abstract(model, tx, o.trainable, mesh=mesh, layout=layout)
    models.batch_norm_layers(blank.batch_stats, o.batch_norm)
    save_every_steps = checkpoint_every_steps or max(1, o.steps(1, len(source)))
    pace = loop.Pace(num_steps, o.batch_size, log_every_steps, save_every_steps)
    with contextlib.closing(Checkpoints(directory, keep_checkpoints)) as checkpoints:
        if processes.from_host0(checkpoints.steps):
            now = checkpoints.restore(blank, restore_step or None)
            log.info('%s goes on from step %d of %d.', title, int(now.step), num_steps)
        else:
            log.info('%s: %s', title, describe(o, len(source), repeats))
            key = jax.random.key(seed)
            now = state.create(model, tx, o.trainable, key=key, mesh=mesh, layout=layout, variables=variables)
        write_metadata(directory, metadata)
        first = int(now.step)
        batches = pipeline.train_batches(
            source,
            transform,
            batch_size=o.batch_size,
            seed=seed,
            start_step=first,
            num_steps=num_steps,
            repeats=repeats,
            **sharding.hosts(),
            **reading,
        )
        now = loop.fit(
            now,
            step_fn,
            batches,
            pace=pace,
            schedule=schedule,
            key=jax.random.key(seed),
            mesh=mesh,
            directory=directory,
            checkpoints=checkpoints,
            title=title,
        )
    return now.variables, {
        'num_steps': num_steps,
        'images_seen': num_steps * o.batch_size,
        'earlier_seconds': metrics.seconds_until(directory / 'metrics.jsonl', first),
    }
