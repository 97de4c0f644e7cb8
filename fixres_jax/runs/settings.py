"""Settings: the whole config as plain values, checked before anything is read, drawn or compiled."""

import dataclasses
from typing import Any

from fixres_jax.adaptation.adapt import AdaptationSection
from fixres_jax.core import sections
from fixres_jax.core.errors import UsageError
from fixres_jax.core.resolution import Resolution, shape
from fixres_jax.core.sections import Section
from fixres_jax.data.reading import Reading
from fixres_jax.evaluation.evaluate import Evaluation
from fixres_jax.evaluation.outputs import Extraction
from fixres_jax.machines import sharding
from fixres_jax.models import Architecture
from fixres_jax.models.options import Options
from fixres_jax.report.published import Published
from fixres_jax.runs.tasks import ADAPTATION, ADAPTATIONS, CONTROL, TASKS
from fixres_jax.studies import STUDIES, Analysis
from fixres_jax.training import metrics_log
from fixres_jax.training.optimization import Finetuning, Optimization, Training

MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Settings(Section):
    """Hold the whole config: the fields of `configs/base.py`, which says what they mean."""

    RULES = {
        'task': sections.one_of(tuple(TASKS)),
        'adaptation': sections.one_of(tuple(ADAPTATIONS)),
        'seed': sections.between(0, MAX_SEED, 0),
        'log_every_steps': sections.least(1, 50),
        'checkpoint_every_steps': sections.least(0, 0),
        'keep_checkpoints': sections.least(1, 2),
        'restore_step': sections.least(0, 0),
        'validate_every_epochs': sections.least(0, 1.0),
        'validation_images': sections.least(0, 2000),
        'tracker': sections.one_of(tuple(metrics_log.TRACKERS)),
        'sharding': sections.one_of(sharding.LAYOUTS),
        'study': sections.one_of(('', *STUDIES), 'regions'),
    }

    task: str
    adaptation: str
    control: bool
    seed: int
    init_from: str
    reset_head: bool
    log_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    compilation_cache: str
    restore_step: int
    validate_every_epochs: float
    validation_images: int
    tracker: str
    sharding: str
    study: str
    model: Options
    data: Reading
    train: Training
    test: Evaluation
    adapt: AdaptationSection
    extract: Extraction
    published: Published
    analyze: Analysis
    finetune: Finetuning

    def __post_init__(self):
        super().__post_init__()
        for section in self.optimized:
            if section.batch_size % section.accumulate_steps:
                parts, name = section.accumulate_steps, section.PATH
                raise UsageError(
                    f'{name}batch_size={section.batch_size} cannot be split into {name}accumulate_steps={parts} parts: '
                    f'give a multiple, such as {parts * -(-section.batch_size // parts)}.'
                )
        if self.trains:
            _check_groups(self.train, self.model.bn_group_size)
            self._check_sweep()

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases of the task, in order."""
        chosen = ADAPTATIONS[self.adaptation]
        phases = tuple(chosen if phase == ADAPTATION else phase for phase in TASKS[self.task].phases)
        return phases if self.control else tuple(phase for phase in phases if phase != CONTROL)

    @property
    def reads_training(self) -> bool:
        """Whether the task looks at training images at all."""
        return TASKS[self.task].reads_training and not (self.task == 'extract' and self.extract.split == 'test')

    @property
    def trains(self) -> bool:
        """Whether the task trains at the training resolution, rather than begin with a network that comes trained."""
        return bool(self.train.epochs) and TASKS[self.task].trains

    @property
    def optimized(self) -> tuple[Optimization, ...]:
        """The sections by which the task trains through the network."""
        ablates = self.task == 'analyze' and self.study == 'ablation' and self.analyze.epochs
        finetunes = 'finetune' in self.phases or ablates
        return (*((self.train,) if self.trains else ()), *((self.finetune,) if finetunes else ()))

    def _check_sweep(self) -> None:
        test, low, chooses = self.test, self.train.resolution, TASKS[self.task].chooses
        if chooses and not test.resolution and test.resolutions and max(test.resolutions) < low:
            raise UsageError(
                f'test.resolutions={test.resolutions} has none of at least train.resolution={low}: add one, such as '
                f'{2 * low}.'
            )


def _check_groups(o: Training, size: int) -> None:
    """Raise UsageError when training would need BatchNorm groups that its batch does not divide into."""
    part, fits = o.batch_size // o.accumulate_steps, o.largest_group(size)
    if size and o.batch_norm and fits != size:
        parts = f' in {o.accumulate_steps} parts of {part} (train.accumulate_steps)' if o.accumulate_steps > 1 else ''
        whole = size * o.accumulate_steps
        raise UsageError(
            f'train.batch_size={o.batch_size}{parts} is not a multiple of model.bn_group_size={size}: set '
            f'model.bn_group_size={fits}, or 0 for the whole batch, or '
            f'train.batch_size={whole * max(1, round(o.batch_size / whole))}.'
        )


def check_architecture(s: Settings, name: str, architecture: Architecture) -> None:
    """Raise UsageError for resolutions that an architecture cannot take."""
    least, multiple = architecture.min_resolution, architecture.multiple
    sizes = [('train.resolution', s.train.resolution), ('test.resolution', s.test.resolution)]
    sizes += [('train.progressive', int(size)) for _, size in s.train.progressive]
    for field, size in (*sizes, *(('test.resolutions', size) for size in s.test.resolutions)):
        if size and min(shape(size)) < least:
            raise UsageError(f'{field}={size} is too small for {name}: expected {least} or more, such as {2 * least}.')
        if any(one % multiple for one in shape(size)):
            near = Resolution.parse([max(least, multiple * round(one / multiple)) for one in shape(size)])
            raise UsageError(f'{field}={size}: {name} takes multiples of {multiple}, such as {near}.')
    images = s.model.bn_group_size or s.train.batch_size // s.train.accumulate_steps
    smallest = min(s.train.sizes.values())
    if s.trains and s.train.batch_norm and images == 1 and smallest <= architecture.stride:
        field = 'train.resolution' if smallest == s.train.resolution else 'train.progressive'
        raise UsageError(
            f'model.bn_group_size={s.model.bn_group_size} makes groups of one image, which '
            f'{field}={smallest} makes one value, which has no variance. Give larger groups, such '
            'as model.bn_group_size=16, or a larger batch.'
        )


def check_task(s: Settings) -> None:
    """Raise UsageError when the config does not give what its task needs.

    This is apart from `read` because the dry run compiles for networks and data that are not there.
    """
    task, study = TASKS[s.task], s.study if s.task in ('analyze', 'recipe') else ''
    needs_network = task.needs_network or (s.task == 'analyze' and study and STUDIES[study].needs_networks)
    chosen_on = s.data.held_out_fraction or s.data.held_out_list or s.test.resolution
    for wrong, message in (
        (not s.data.source, 'data.source is empty: set --config.data.source to a folder with one folder per split.'),
        (s.task == 'analyze' and not study, f'study is empty: set --config.study to one of {", ".join(STUDIES)}.'),
        (
            needs_network and not s.init_from,
            f'task={s.task} needs a network: set --config.init_from to a workdir or to converted weights.',
        ),
        (
            task.trains and not (s.train.epochs or s.init_from),
            'train.epochs=0 needs a trained network: set --config.init_from, or train for some epochs.',
        ),
        (
            s.reset_head and not s.init_from,
            'reset_head=True gives a fresh classifier to a given network: set --config.init_from, or reset_head=False.',
        ),
        (
            task.needs_resolution and not s.test.resolution,
            f'task={s.task} needs the resolution to adapt to: set --config.test.resolution, such as 288.',
        ),
        (
            task.chooses and not chosen_on,
            'Nothing to choose the test resolution on: set data.held_out_fraction above 0, such as 0.02, or give '
            'test.resolution.',
        ),
        (
            study == 'grid' and not s.analyze.runs,
            "study=grid needs finished runs: set --config.analyze.runs to their workdirs, such as ('run128',).",
        ),
    ):
        if wrong:
            raise UsageError(message)


def read(config: Any) -> Settings:
    """Return a ConfigDict with the fields of `configs/base.py` as checked plain values.

    Raises:
      UsageError: for a field that is missing, unknown, of another type or out of range, or for fields that do not fit
        together. It names the field, what was expected and a value that works.
    """
    return sections.fill(Settings, config)
