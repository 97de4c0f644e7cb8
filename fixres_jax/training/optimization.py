"""How a phase of training is optimized: its length, its optimizer and its learning rate."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import optax

from fixres_jax.core import losses, sections
from fixres_jax.core.errors import UsageError
from fixres_jax.core.sections import Section
from fixres_jax.data import augment, pipeline, transforms
from fixres_jax.machines.runtime import MAX_BATCH
from fixres_jax.models import Model, architecture
from fixres_jax.training import averaging, mixing, optimizers, schedules

Mix = Callable[[Any, Any], Any]  # (batch, key) -> batch, see `mixing.make`
_REGEX = sections.Rule(sections.is_regex, 'a regular expression', '.*')
_REGEX_OF_SOME = sections.Rule(
    lambda value: value and sections.is_regex(value), 'a regular expression, not empty', '.*'
)


def _are_stages(value: tuple[tuple[float, ...], ...]) -> bool:
    if not all(len(stage) == 2 and stage[1] >= 1 and stage[1] == int(stage[1]) for stage in value):
        return False
    ends = (0.0, *(end for end, _ in value), 1.0)
    return all(one < other for one, other in itertools.pairwise(ends))


_STAGES = sections.Rule(
    _are_stages,
    '() or pairs (share of the steps at which it ends, pixels), shares rising between 0 and 1',
    ((0.5, 160),),
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
      schedule: a name of `schedules.SCHEDULES`.
      schedule_every: 'step' or 'epoch', when the learning rate changes.
      decay_every_epochs, decay_rate: of the 'step' schedule.
      power: of the 'polynomial' schedule.
      final_lr: that the other schedules end with, not scaled by `lr_rule`.
      warmup_epochs: of linear warm-up.
      warmup_lr: that it begins with, not scaled by `lr_rule`.
      warmup_prefix: whether the schedule begins after the warm-up, or is hidden by it.
      optimizer: a name of `optimizers.OPTIMIZERS`.
      momentum: of SGD; the first beta of Adam and LAMB.
      nesterov: of SGD and LARS.
      beta2, epsilon: 0 for the optimizer's own.
      weight_decay: of the parameters that `weight_decay_on` says.
      weight_decay_on: a name of `optimizers.DECAYS`.
      layer_decay: the learning rate of each block is this share of that of the next.
      clip_norm: of the whole gradient; 0 for none.
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
        'schedule_every': sections.one_of(('step', 'epoch')),
        'decay_every_epochs': sections.Rule(lambda v: v > 0, 'a number above 0', 30.0),
        'decay_rate': sections.Rule(lambda v: 0 < v <= 1, 'above 0 and at most 1', 0.1),
        'power': sections.Rule(lambda v: v > 0, 'a number above 0', 1.0),
        'final_lr': sections.least(0, 0.0),
        'warmup_epochs': sections.least(0, 0.0),
        'warmup_lr': sections.least(0, 0.0),
        'optimizer': sections.one_of(tuple(optimizers.OPTIMIZERS)),
        'momentum': sections.share(0.9),
        'beta2': sections.share(0.999),
        'epsilon': sections.least(0, 1e-8),
        'weight_decay': sections.least(0, 1e-4),
        'weight_decay_on': sections.one_of(tuple(optimizers.DECAYS)),
        'layer_decay': sections.Rule(lambda v: 0 < v <= 1, 'above 0 and at most 1', 0.75),
        'clip_norm': sections.least(0, 1.0),
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
    schedule_every: str
    decay_every_epochs: float
    decay_rate: float
    power: float
    final_lr: float
    warmup_epochs: float
    warmup_lr: float
    warmup_prefix: bool
    optimizer: str
    momentum: float
    nesterov: bool
    beta2: float
    epsilon: float
    weight_decay: float
    weight_decay_on: str
    layer_decay: float
    clip_norm: float
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

    def objective(self) -> losses.Objective:
        """Return what is minimized."""
        return losses.Objective(label_smoothing=self.label_smoothing)

    def mix(self, model: Model) -> Mix | None:
        """Return what is done to each batch on the devices."""
        return None

    def average(self, num_images: int) -> averaging.Average | None:
        """Return how the average of the parameters moves; None for none."""
        return None


@dataclasses.dataclass(frozen=True)
class Training(Optimization):
    """Training at the training resolution."""

    PATH = 'train.'
    RULES = Optimization.RULES | {
        'trainable': _REGEX_OF_SOME,
        'resolution': sections.least(1, 224),
        'progressive': _STAGES,
        'crop': sections.one_of((*transforms.BOXES, 'resize')),
        'interpolation': sections.one_of(transforms.INTERPOLATIONS),
        'scale': sections.low_high(0, 1, (0.08, 1.0)),
        'ratio': sections.low_high(0, math.inf, (0.75, 1.33)),
        'jitter': sections.least(0, 0.3),
        'loss': sections.one_of(('cross_entropy', 'bce')),
        'bce_threshold': sections.Rule(lambda v: v < 1, 'below 1', 0.2),
    }

    resolution: int
    progressive: tuple[tuple[float, ...], ...]
    crop: str
    interpolation: str
    scale: tuple[float, ...]
    ratio: tuple[float, ...]
    flip: bool
    augment: str
    jitter: float
    loss: str
    bce_threshold: float
    mixing: mixing.Mixing
    ema: averaging.Averaging

    def __post_init__(self):
        super().__post_init__()
        try:
            augment.make(self.augment, self.interpolation)
        except UsageError as error:
            raise UsageError(f'train.augment: {error}') from None

    @property
    def sizes(self) -> dict[float, int]:
        """Return share of the steps -> pixels of the images from there on; the last are `resolution`."""
        ends, sizes = (0.0, *(end for end, _ in self.progressive)), (*(int(size) for _, size in self.progressive),)
        return dict(zip(ends, (*sizes, self.resolution), strict=True))

    def objective(self) -> losses.Objective:
        """Return what is minimized."""
        return losses.Objective(self.loss, self.label_smoothing, self.bce_threshold)

    def mix(self, model: Model) -> Mix | None:
        """Return what is done to each batch on the devices: mixup, CutMix, random erasing."""
        module = model.module
        return mixing.make(self.mixing, module.mean, module.std, self.largest_group(module.bn_group_size))

    def average(self, num_images: int) -> averaging.Average | None:
        """Return how the average of the parameters moves; None for none."""
        ema = self.ema
        if not ema.decay:
            return None
        return averaging.Average(ema.decay, ema.warmup, self.steps(ema.start_epochs, num_images), ema.every_steps)


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


def make_optimizer(
    o: Optimization, num_images: int, names: Sequence[str] = ()
) -> tuple[int, optax.GradientTransformation, optax.Schedule]:
    """Return (steps of the phase, optimizer, learning rate as a function of the step).

    Args:
      o: how the phase is optimized.
      num_images: of an epoch.
      names: of all parameters of the network in torch's order, which `layer_decay` needs; without, all layers learn
        alike.
    """
    num_steps = count_steps(o, num_images)
    schedule = schedules.make_schedule(
        o.schedule,
        schedules.learning_rate(o.lr, o.batch_size, o.lr_rule),
        num_steps=num_steps,
        decay_every_steps=o.steps(o.decay_every_epochs, num_images),
        decay_rate=o.decay_rate,
        power=o.power,
        final_lr=o.final_lr,
        warmup_steps=o.steps(o.warmup_epochs, num_images),
        warmup_lr=o.warmup_lr,
        warmup_prefix=o.warmup_prefix,
        hold_steps=o.steps(1, num_images) if o.schedule_every == 'epoch' else 1,
    )
    fields = ('momentum', 'nesterov', 'beta2', 'epsilon', 'weight_decay', 'weight_decay_on', 'clip_norm')
    tx = optimizers.make(
        o.optimizer,
        schedule,
        scales=optimizers.layer_scales(names, o.layer_decay) if names and o.layer_decay < 1 else None,
        **{name: getattr(o, name) for name in fields},
    )
    return num_steps, tx, schedule


def describe(o: Optimization, num_images: int) -> str:
    """Say how long a phase is, in samples seen, and in the paper's epochs where copies of images make those differ."""
    samples = count_steps(o, num_images) * o.batch_size
    text = f'{samples // o.batch_size:,} steps of {o.batch_size} see {samples:,} samples of {num_images:,} images'
    if o.repeats == 1:
        return f'{text}.'
    epochs = samples / pipeline.epoch_samples(num_images, o.repeats)
    return f'{text}, {o.repeats} copies of each in a batch: {epochs:.1f} epochs as the paper counts them.'


def make_sgd(schedule: optax.Schedule, *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Return SGD as torch does it, which the reference uses: no dampening, no Nesterov, weight decay on everything."""
    return optimizers.make('sgd', schedule, momentum=momentum, nesterov=False, weight_decay=weight_decay)
