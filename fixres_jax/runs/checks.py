"""Checks of a run that need its network or the number of its images; before anything is compiled or drawn."""

from collections.abc import Mapping

import numpy as np

from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.machines import processes
from fixres_jax.models import Model
from fixres_jax.training.optimization import Finetuning, Optimization, count_steps


def layers(model: Model, optimizations: Mapping[str, Optimization]) -> None:
    """Raise UsageError when the model lacks layers that are to be trained or adapted.

    Args:
      model: from `models.create`.
      optimizations: section of the config -> what it trains.
    """
    shapes = model.shapes()
    for section, how in optimizations.items():
        for field, select in (
            ('batch_norm', lambda regex: models.batch_norm_layers(shapes['batch_stats'], regex)),
            ('trainable', lambda regex: trees.split(shapes['params'], regex)),
        ):
            try:
                select(getattr(how, field))
            except UsageError as error:
                raise UsageError(f'{section}.{field}: {error}') from None


def sgd_on_embeddings(model: Model, finetuning: Finetuning, task: str) -> None:
    """Raise UsageError for a fine-tuning that SGD on embeddings cannot do: it trains the classifier alone, on one
    embedding of each image."""
    instead = 'task=finetune' if task == 'adapt' else 'adaptation=finetune'
    params, whole = model.shapes()['params'], model.architecture.head
    chosen, classifier = (
        trees.flatten(trees.split(params, regex)[0]).keys() for regex in (finetuning.trainable, whole)
    )
    # A classifier of the embedding can express what the affine of a LayerNorm before it can.
    norm = model.architecture.head_norm
    others = sorted(name for name in chosen ^ classifier if not (norm and name.startswith(f'{norm}/')))
    if others:
        raise UsageError(
            f'finetune.trainable={finetuning.trainable!r} and the classifier differ by {", ".join(others[:3])} '
            f'({len(others)} in all), and adapt.solver=sgd trains the classifier alone, on embeddings: set '
            f'finetune.trainable={whole!r}, or {instead} to train through the network.'
        )
    if finetuning.augmentation != 'test':
        raise UsageError(
            f'finetune.augmentation={finetuning.augmentation!r} draws each image anew in each epoch, and '
            'adapt.solver=sgd embeds it once: set finetune.augmentation=test, with adapt.copies for augmented copies, '
            f'or {instead} to train through the network.'
        )


def warn_of_few_classes(labels: np.ndarray, num_classes: int, keeps_classifier: bool) -> None:
    """Say so when the images of an adaptation are of some of the network's classes, which is not the method."""
    few = len(np.unique(labels))
    if few < num_classes and processes.is_host0():
        means = (
            f'The classifier is fitted among these alone and the rows of the other {num_classes - few:,} stay as they '
            'are: reset_head starts a classifier of these classes.'
        )
        if keeps_classifier:
            means = (
                f'The new statistics are those of such images, and can cost accuracy on all {num_classes:,}: compare '
                'the adapted network with the one before.'
            )
        log.warning(
            "Warning: the training images are of %d of the network's %s classes, which is not the published method. %s",
            *(few, f'{num_classes:,}', means),
        )


def warn_of_large_batch(o: Optimization, num_images: int) -> None:
    """Say so when a batch is larger than the images that it is drawn from."""
    if o.batch_size > num_images and processes.is_host0():
        log.warning(
            'Warning: %sbatch_size=%d is more than the %d training images: a batch holds each about %.1f times, and '
            'the phase has %d steps. Give a smaller one, such as %d.',
            *(o.PATH, o.batch_size, num_images, o.batch_size / num_images, count_steps(o, num_images)),
            2 ** max(0, (num_images // 4).bit_length() - 1),
        )
