"""The sections of the config, each with its fields, their types and the values that they may have.

Fields have the names that `configs/base.py` gives them. It says what they mean and holds all defaults.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

from fixres_jax import models, optim, rules
from fixres_jax.data import drawings, transforms
from fixres_jax.errors import UsageError, nearest

SOLVERS = ('lbfgs', 'sgd')
MAX_READERS = 1024  # more threads or processes than any machine has cores
MAX_BATCH = 2**20


SIDE = models.MIN_RESOLUTION
_REGEX = rules.Rule(rules.is_regex, 'a regular expression', '.*')
_REGEX_OF_SOME = rules.Rule(lambda value: value and rules.is_regex(value), 'a regular expression, not empty', '.*')
_INTERPOLATIONS = tuple(transforms.INTERPOLATIONS)


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the config; refuses a value that its `RULES` do not allow.

    Attributes:
      PATH: of its fields in the config, such as 'train.'.
      RULES: field -> which values it may have; a field without has those of its type.
    """

    PATH: ClassVar[str] = ''
    RULES: ClassVar[Mapping[str, rules.Rule]] = {}

    def __post_init__(self):
        for name, rule in self.RULES.items():
            value = getattr(self, name)
            if not rule.holds(value):
                hint = nearest(value, rule.choices) if rule.choices else ''
                raise UsageError(
                    f'{self.PATH}{name}={value!r}: expected {rule.expected}, such as {rule.works!r}.{hint}'
                )


@dataclasses.dataclass(frozen=True)
class Model(Section):
    """The network."""

    PATH = 'model.'
    RULES = {
        'name': rules.one_of(('', *models.MODELS), 'resnet50'),
        'num_classes': rules.least(0, 0),
        'width': rules.least(0, 64),
        'dtype': rules.one_of(('auto', 'float32', 'bfloat16')),
        'bn_group_size': rules.least(0, 64),
        'remat': rules.one_of(models.REMAT, 'block'),
    }

    name: str
    num_classes: int
    width: int
    dtype: str
    bn_group_size: int
    remat: str
    zero_init_residual: bool


@dataclasses.dataclass(frozen=True)
class Drawings(Section):
    """The embedded data set."""

    PATH = 'data.drawings.'
    RULES = {'train': rules.least(len(drawings.CLASSES), 3000), 'val': rules.least(len(drawings.CLASSES), 2000)}

    train: int
    val: int


@dataclasses.dataclass(frozen=True)
class Data(Section):
    """Which images, and how they are read."""

    PATH = 'data.'
    RULES = {
        'held_out_fraction': rules.share(0.02),
        'few_shot': rules.Rule(
            lambda v: 0 <= v < 1 or v == int(v) > 0, '0, a fraction below 1 or a whole number', 10.0
        ),
        'mean': rules.channels('numbers from 0 to 1', lambda one: 0 <= one <= 1, models.IMAGENET_MEAN),
        'std': rules.channels('numbers above 0', lambda one: one > 0, models.IMAGENET_STD),
        'workers': rules.between(0, MAX_READERS, 0),
        'threads': rules.between(1, MAX_READERS, 4),
    }

    source: str
    train_split: str
    test_split: str
    held_out_fraction: float
    held_out_list: str
    few_shot: float
    few_shot_list: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int
    threads: int
    drawings: Drawings


@dataclasses.dataclass(frozen=True)
class Optimization(Section):
    """How a phase of training is optimized: what the sections `train` and `finetune` share.

    Attributes:
      epochs: passes over the source, in samples seen: epochs * len(source) / batch_size steps.
      batch_size: global batch.
      accumulate_steps: parts of the batch that are computed one after the other.
      lr: base learning rate, scaled by `lr_rule` (see `optim.LR_RULES`).
      lr_rule: 'fixres', 'batch/256' or 'none'.
      schedule: 'step', 'cosine' or 'constant'.
      decay_every_epochs: of the 'step' schedule.
      warmup_epochs: of linear warm-up.
      momentum: of SGD.
      weight_decay: on every trained parameter.
      label_smoothing: share of the target spread over all classes.
      trainable: regex of the parameters that train.
      batch_norm: regex of the BatchNorm layers on batch statistics.
    """

    RULES = {
        'epochs': rules.least(0, 30.0),
        'batch_size': rules.between(1, MAX_BATCH, 64),
        'accumulate_steps': rules.least(1, 1),
        'lr': rules.least(0, 0.1),
        'lr_rule': rules.one_of(tuple(optim.LR_RULES)),
        'schedule': rules.one_of(tuple(optim.SCHEDULES)),
        'decay_every_epochs': rules.Rule(lambda v: v > 0, 'a number above 0', 30.0),
        'warmup_epochs': rules.least(0, 0.0),
        'momentum': rules.share(0.9),
        'weight_decay': rules.least(0, 1e-4),
        'label_smoothing': rules.share(0.1),
        'trainable': _REGEX,
        'batch_norm': _REGEX,
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
class Train(Optimization):
    """Training at the training resolution."""

    PATH = 'train.'
    RULES = Optimization.RULES | {
        'trainable': _REGEX_OF_SOME,
        'resolution': rules.least(SIDE, 224),
        'repeats': rules.least(1, 1),
        'crop': rules.one_of((*transforms.BOXES, 'resize')),
        'interpolation': rules.one_of(_INTERPOLATIONS),
        'scale': rules.low_high(0, 1, (0.08, 1.0)),
        'ratio': rules.low_high(0, math.inf, (0.75, 1.33)),
        'jitter': rules.least(0, 0.3),
    }

    resolution: int
    repeats: int
    crop: str
    interpolation: str
    fast_decode: bool
    scale: tuple[float, ...]
    ratio: tuple[float, ...]
    flip: bool
    jitter: float


@dataclasses.dataclass(frozen=True)
class Finetune(Optimization):
    """Fine-tuning through the network, and the values of SGD on embeddings."""

    PATH = 'finetune.'
    RULES = Optimization.RULES | {'augmentation': rules.one_of(('test', 'v2'))}

    augmentation: str


@dataclasses.dataclass(frozen=True)
class Test(Section):
    """Test images and the resolutions tested at."""

    PATH = 'test.'
    RULES = {
        'resolution': rules.Rule(lambda v: v == 0 or v >= SIDE, f'0, or {SIDE} or more', 288),
        'resolutions': rules.Rule(lambda v: all(one >= SIDE for one in v), f'sizes of {SIDE} or more', (224, 256, 288)),
        'resize': rules.one_of(('', 'short', 'height'), 'short'),
        'interpolation': rules.one_of(('', *_INTERPOLATIONS), 'bilinear'),
        'resize_ratio': rules.Rule(lambda v: v == 0 or v >= 1, '0, or 1 or more', 1.14),
        'batch_size': rules.between(1, MAX_BATCH, 256),
    }

    resolution: int
    resolutions: tuple[int, ...]
    resize: str
    interpolation: str
    crop: bool
    resize_ratio: float
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Adapt(Section):
    """The adaptation in one pass."""

    PATH = 'adapt.'
    RULES = {
        'solver': rules.one_of(('auto', *SOLVERS)),
        'weight_decays': rules.Rule(lambda v: v and min(v) >= 0, 'at least one value, none below 0', (0.0, 1e-4, 1e-3)),
        'max_iterations': rules.least(1, 100),
        'statistics_images': rules.least(1, 10000),
        'copies': rules.least(0, 0),
        'cache_dtype': rules.one_of(('float32', 'bfloat16')),
        'cache_gigabytes': rules.least(0, 8.0),
        'sweep_images': rules.least(1, 50000),
    }

    solver: str
    weight_decays: tuple[float, ...]
    max_iterations: int
    statistics_images: int
    flip: bool
    copies: int
    cache_dtype: str
    cache_gigabytes: float
    sweep_images: int


@dataclasses.dataclass(frozen=True)
class Extract(Section):
    """What an extraction takes."""

    PATH = 'extract.'
    RULES = {'split': rules.one_of(('test', 'train', 'held_out'))}

    split: str
    flip: bool


@dataclasses.dataclass(frozen=True)
class Analyze(Section):
    """What a study takes."""

    PATH = 'analyze.'
    RULES = {'images': rules.least(1, 2000), 'epochs': rules.least(0, 1.0)}

    images: int
    epochs: float
    runs: tuple[str, ...]
