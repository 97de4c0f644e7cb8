"""A whole run of training: from scratch or from a network, from the beginning or from the last checkpoint."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from etils import epath

from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.core.progress import log
from fixres_jax.data import pipeline
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.machines import processes, sharding
from fixres_jax.machines.runtime import Runtime
from fixres_jax.models import Mode, Model, Variables
from fixres_jax.training import loop, metrics_log, optimizers, state
from fixres_jax.training.optimization import Optimization, describe, make_optimizer
from fixres_jax.training.programs import Programs
from fixres_jax.training.step import Procedure, TrainStep, make_train_step
from fixres_jax.weights.checkpoint import Checkpoints, write_metadata
from fixres_jax.weights.network import Network


@dataclasses.dataclass(frozen=True)
class Writing:
    """Say where a run writes, and how often.

    Attributes:
      directory: gets checkpoints/, metrics.jsonl, tensorboard/ and fixres.json.
      log_every_steps: steps averaged into one line of the log.
      checkpoint_every_steps: steps between two checkpoints; 0 for one per pass over the images.
      keep_checkpoints: newest checkpoints kept.
      restore_step: checkpoint to go on from, instead of the last one; 0 for the last.
      tracker: see `metrics_log.TRACKERS`.
      validate: see `loop.Pace`.
      validate_every_epochs: passes over the images between two of its calls.
    """

    directory: epath.Path
    log_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    restore_step: int
    tracker: str = 'tensorboard'
    validate: Callable[[Variables], dict[str, float] | None] | None = None
    validate_every_epochs: float = 1.0


def regroup(model: Model, how: Optimization, title: str) -> Model:
    """Return the model with the largest BatchNorm groups that divide a batch, for a phase that trains few layers."""
    given = model.module.bn_group_size
    size = how.largest_group(given)
    if size == given:
        return model
    log.info(
        '%s: BatchNorm groups of %d images, not model.bn_group_size=%d, which does not divide the batch of %d.',
        *(title, size, given, how.batch_size // how.accumulate_steps),
    )
    return model.clone(bn_group_size=size)


def few_classes(source: Source, num_classes: int) -> tuple[int, ...]:
    """Return the labels of images that are of some of so many classes, which an adaptation tells from each other alone.

    () where they are of all.
    """
    present = np.unique(source.labels)
    return tuple(present.tolist()) if len(present) < num_classes else ()


def prepare(
    model: Model, how: Optimization, num_images: int, runtime: Runtime, classes: tuple[int, ...] = ()
) -> tuple[int, optax.GradientTransformation, optax.Schedule, TrainStep]:
    """Return (steps of the phase, optimizer, learning rate as a function of the step, train step)."""
    names = model.names() if how.layer_decay < 1 else ()
    params = [name.removeprefix('params/') for name in names if name.startswith('params/')]
    num_steps, tx, schedule = make_optimizer(how, num_images, params)
    objective = dataclasses.replace(how.objective(), classes=classes)
    if classes:
        tx = optax.chain(tx, optimizers.among(model.architecture.classifier, classes))
    _, frozen = trees.split(model.shapes()['params'], how.trainable)
    step_fn = make_train_step(
        model,
        tx,
        how.trainable,
        Mode(how.batch_norm, dropout=True, drop_path=not frozen),
        mesh=runtime.mesh,
        layout=runtime.layout,
        procedure=Procedure(objective, how.mix(model), how.average(num_images), how.accumulate_steps),
    )
    return num_steps, tx, schedule, step_fn


def _stages(
    transform: Transform | Mapping[float, Transform], num_steps: int
) -> tuple[dict[int, Transform], dict[int, int]]:
    """Return first step -> transform, and first step -> pixels; no pixels where they are always the same."""
    shares = transform if isinstance(transform, Mapping) else {0.0: transform}
    stages = {round(share * num_steps): one for share, one in sorted(shares.items())}
    return stages, {step: one.resolution for step, one in stages.items()} if len(stages) > 1 else {}


def _pace(
    title: str,
    num_steps: int,
    schedule: optax.Schedule,
    sizes: Mapping[int, int],
    *,
    how: Optimization,
    num_images: int,
    writing: Writing,
) -> loop.Pace:
    """Return the length and the intervals of a phase in steps."""
    return loop.Pace(
        title=title,
        num_steps=num_steps,
        batch_size=how.batch_size,
        log_every_steps=writing.log_every_steps,
        checkpoint_every_steps=writing.checkpoint_every_steps or max(1, how.steps(1, num_images)),
        schedule=schedule,
        resolutions=sizes,
        tracker=writing.tracker,
        validate=writing.validate,
        validate_every_steps=max(1, how.steps(writing.validate_every_epochs, num_images)),
    )


def run(
    network: Network,
    source: Source,
    transform: Transform | Mapping[float, Transform],
    how: Optimization,
    *,
    runtime: Runtime,
    writing: Writing,
    seed: int,
    title: str,
    classes: tuple[int, ...] = (),
) -> tuple[Network, dict[str, Any]]:
    """Train a network on a source, going on where an earlier run in the same directory stood.

    Args:
      network: where to begin; one without variables begins with random ones, drawn from the seed.
      source: labelled images.
      transform: from `data.transforms`; or several of rising size, each under the share of the steps that it begins at.
      how: length, optimizer and what trains.
      runtime: where.
      writing: where to and how often it writes.
      seed: of the variables, the order of the images, and the augmentation.
      title: what the progress bar says.
      classes: see `few_classes`.

    Returns:
      The trained network on the devices, with the average of its parameters where that is kept (the checkpoints have
      the parameters themselves, too), and {'num_steps', 'images_seen', 'earlier_seconds': of earlier processes}.
    """
    sharding.check_batch_size(how.batch_size, runtime.mesh, f'{title}.batch_size', how.accumulate_steps)
    num_steps, tx, schedule, step_fn = prepare(network.model, how, len(source), runtime, classes)
    kept = {'mesh': runtime.mesh, 'layout': runtime.layout, 'averages': how.average(len(source)) is not None}
    blank = state.abstract(network.model, tx, how.trainable, **kept)
    models.batch_norm_layers(blank.batch_stats, how.batch_norm)
    stages, sizes = _stages(transform, num_steps)
    pace = _pace(title, num_steps, schedule, sizes, how=how, num_images=len(source), writing=writing)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(writing.directory, writing.keep_checkpoints)))
        goes_on = bool(processes.from_host0(checkpoints.steps))
        first = checkpoints.find(writing.restore_step or None) if goes_on else 0
        batches = pipeline.train_batches(
            source,
            stages,
            runtime.readers,
            batch_size=how.batch_size,
            seed=seed,
            start_step=first,
            num_steps=num_steps,
            repeats=how.repeats,
        )
        stack.enter_context(contextlib.closing(batches))  # They are read while the state is restored or drawn.
        if goes_on:
            start = state.from_items(checkpoints.restore(blank.items, first))
            log.info('%s goes on from step %d of %d.', title, first, num_steps)
        else:
            log.info('%s: %s', title, describe(how, len(source)))
            for step, size in sizes.items():
                log.info('%s: images of %d pixels from step %d on.', title, size, step)
            made = {'key': jax.random.key(seed), 'variables': network.variables} | kept
            start = state.create(network.model, tx, how.trainable, **made)
        write_metadata(writing.directory, dict(network.about))
        if sizes and first < num_steps:
            ahead = [pace.resolution(first), *(size for step, size in sizes.items() if step > first)]
            step_fn = stack.enter_context(
                contextlib.closing(Programs(step_fn, blank, how.batch_size, ahead, runtime.mesh))
            )
        end = loop.fit(
            start,
            step_fn,
            batches,
            pace,
            key=jax.random.key(seed),
            mesh=runtime.mesh,
            directory=writing.directory,
            checkpoints=checkpoints,
        )
    return dataclasses.replace(network, variables=end.averaged), {
        'num_steps': num_steps,
        'images_seen': num_steps * how.batch_size,
        'earlier_seconds': metrics_log.seconds_until(writing.directory / 'metrics.jsonl', first),
    }
