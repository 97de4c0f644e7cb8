"""How a phase of training is optimized: its length, its optimizer and its learning rate."""

import dataclasses
import math

import optax

from fixres_jax.core import sections
from fixres_jax.core.errors import UsageError
from fixres_jax.core.sections import Section
from fixres_jax.data import augment, pipeline, transforms
from fixres_jax.machines.runtime import MAX_BATCH
from fixres_jax.models import architecture
from fixres_jax.training import schedules

_REGEX = sections.Rule(sections.is_regex, 'a regular expression', '.*')
_REGEX_OF_SOME = sections.Rule(
    lambda value: value and sections.is_regex(value), 'a regular expression, not empty', '.*'
)


@dataclasses.dataclass(frozen=True)
class Optimization(Section):
    """How a phase of training is optimized: what the sections `train` and `finetune` share.

    Attributes:
      epochs: passes over the source, in samples seen: epochs * len(source) / batch_size steps.
      batch_size: global batch; 0, in `finetune`, for one that is fitted to the number of images.
      accumulate_steps: parts of the batch that are computed one after the other.
      lr: base learning rate, scaled by `lr_rule` (see `schedules.LR_RULES`).
      lr_rule: 'fixres', 'batch/256' or 'none'.
      schedule: 'step', 'cosine' or 'constant'.
      decay_every_epochs: of the 'step' schedule.
      warmup_epochs: of linear warm-up.
      momentum: of SGD.
      weight_decay: on every trained parameter.
      label_smoothing: share of the target spread over all classes.
      trainable: regex of the parameters that train.
      batch_norm: regex of the BatchNorm layers on batch statistics.
      repeats: copies of an image in a batch, each with its own augmentation.
    """

    RULES = {
        'epochs': sections.least(0, 30.0),
        'batch_size': sections.between(1, MAX_BATCH, 64),
        'accumulate_steps': sections.least(1, 1),
        'lr': sections.least(0, 0.1),
        'lr_rule': sections.one_of(tuple(schedules.LR_RULES)),
        'schedule': sections.one_of(tuple(schedules.SCHEDULES)),
        'decay_every_epochs': sections.Rule(lambda v: v > 0, 'a number above 0', 30.0),
        'warmup_epochs': sections.least(0, 0.0),
        'momentum': sections.share(0.9),
        'weight_decay': sections.least(0, 1e-4),
        'label_smoothing': sections.share(0.1),
        'trainable': _REGEX,
        'batch_norm': _REGEX,
        'repeats': sections.least(1, 1),
    }

    epochs: float
    batch_size: int
    accumulate_steps: int
    lr: float
    lr_rule: str
    schedule: str
    decay_every_epochs: float
    warmup_epochs: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    trainable: str
    batch_norm: str
    repeats: int

    def steps(self, epochs: float, num_images: int) -> int:
        """Return the steps that see `epochs` times `num_images` samples."""
        return round(epochs * num_images / self.batch_size)

    def largest_group(self, bn_group_size: int | None) -> int | None:
        """Return the largest BatchNorm group, of at most `bn_group_size` images, that divides each part of a batch."""
        part = self.batch_size // self.accumulate_steps
        if not bn_group_size:
            return bn_group_size
        return max(size for size in range(1, min(bn_group_size, part) + 1) if part % size == 0)


@dataclasses.dataclass(frozen=True)
class Training(Optimization):
    """Training at the training resolution."""

    PATH = 'train.'
    RULES = Optimization.RULES | {
        'trainable': _REGEX_OF_SOME,
        'resolution': sections.least(1, 224),
        'crop': sections.one_of((*transforms.BOXES, 'resize')),
        'interpolation': sections.one_of(transforms.INTERPOLATIONS),
        'scale': sections.low_high(0, 1, (0.08, 1.0)),
        'ratio': sections.low_high(0, math.inf, (0.75, 1.33)),
        'jitter': sections.least(0, 0.3),
    }

    resolution: int
    crop: str
    interpolation: str
    scale: tuple[float, ...]
    ratio: tuple[float, ...]
    flip: bool
    augment: str
    jitter: float

    def __post_init__(self):
        super().__post_init__()
        try:
            augment.make(self.augment, self.interpolation)
        except UsageError as error:
            raise UsageError(f'train.augment: {error}') from None


@dataclasses.dataclass(frozen=True)
class Finetuning(Optimization):
    """Fine-tuning through the network, and the values of SGD on embeddings."""

    PATH = 'finetune.'
    RULES = Optimization.RULES | {
        'batch_size': sections.between(0, MAX_BATCH, 64),
        'augmentation': sections.one_of(('test', 'v2')),
        'follows': sections.one_of(architecture.RULES),
    }

    augmentation: str
    follows: str


def fitted_batch(num_images: int, multiple: int = 1) -> int:
    """Return a batch size for fine-tuning on few images: a power of two, 512 at most, of which eight make a pass.

    Args:
      num_images: to fine-tune on.
      multiple: what it must be divisible by; it is more than the images where that is.
    """
    size = 2 ** max(3, (min(512, num_images // 8)).bit_length() - 1)
    return -(-size // multiple) * multiple


def count_steps(o: Optimization, num_images: int) -> int:
    """Return the steps of a phase, at least one."""
    return max(1, o.steps(o.epochs, num_images))


def make_optimizer(o: Optimization, num_images: int) -> tuple[int, optax.GradientTransformation, optax.Schedule]:
    """Return (steps of the phase, optimizer, learning rate as a function of the step)."""
    num_steps = count_steps(o, num_images)
    schedule = schedules.make_schedule(
        o.schedule,
        schedules.learning_rate(o.lr, o.batch_size, o.lr_rule),
        num_steps=num_steps,
        decay_every_steps=o.steps(o.decay_every_epochs, num_images),
        warmup_steps=o.steps(o.warmup_epochs, num_images),
    )
    return num_steps, make_sgd(schedule, momentum=o.momentum, weight_decay=o.weight_decay), schedule


def describe(o: Optimization, num_images: int) -> str:
    """Say how long a phase is, in samples seen, and in the paper's epochs where copies of images make those differ."""
    samples = count_steps(o, num_images) * o.batch_size
    text = f'{samples // o.batch_size:,} steps of {o.batch_size} see {samples:,} samples of {num_images:,} images'
    if o.repeats == 1:
        return f'{text}.'
    epochs = samples / pipeline.epoch_samples(num_images, o.repeats)
    return f'{text}, {o.repeats} copies of each in a batch: {epochs:.1f} epochs as the paper counts them.'


def make_sgd(schedule: optax.Schedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Return SGD as torch does it: weight decay inside the gradient, on every parameter, before the momentum.

    Source: torch.optim.SGD without dampening or Nesterov, which the reference uses.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_learning_rate(schedule),
    )
