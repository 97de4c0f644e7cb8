"""The config as plain values, checked before anything is read, drawn or compiled.

`read` makes a `Settings` of a ConfigDict: the sections of `sections.py`, and what must fit together across them.
"""

import dataclasses
import typing
from typing import Any

from fixres_jax import rules, sections, sharding
from fixres_jax.errors import UsageError, nearest

TASKS = ('recipe', 'train', 'adapt', 'finetune', 'evaluate', 'extract', 'analyze')
ADAPTATIONS = {'one_pass': 'adapt', 'finetune': 'finetune'}  # by name, the phase that it is
STUDIES = ('roc', 'activations', 'ablation', 'grid')
MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Settings(sections.Section):
    """The whole config."""

    RULES = {
        'task': rules.one_of(TASKS),
        'adaptation': rules.one_of(tuple(ADAPTATIONS)),
        'seed': rules.between(0, MAX_SEED, 0),
        'log_every_steps': rules.least(1, 50),
        'checkpoint_every_steps': rules.least(0, 0),
        'keep_checkpoints': rules.least(1, 2),
        'restore_step': rules.least(0, 0),
        'sharding': rules.one_of(sharding.LAYOUTS),
        'study': rules.one_of(('', *STUDIES), 'roc'),
    }

    task: str
    adaptation: str
    seed: int
    init_from: str
    reset_head: bool
    log_every_steps: int
    checkpoint_every_steps: int
    keep_checkpoints: int
    compilation_cache: str
    restore_step: int
    sharding: str
    study: str
    model: sections.Model
    data: sections.Data
    train: sections.Train
    test: sections.Test
    adapt: sections.Adapt
    extract: sections.Extract
    analyze: sections.Analyze
    finetune: sections.Finetune

    def __post_init__(self):
        super().__post_init__()
        for section in self.optimized:
            if section.batch_size % section.accumulate_steps:
                parts, name = section.accumulate_steps, section.PATH
                raise UsageError(
                    f'{name}batch_size={section.batch_size} cannot be split into {name}accumulate_steps={parts} parts: '
                    f'give a multiple, such as {parts * -(-section.batch_size // parts)}.'
                )
        if self.train in self.optimized:
            _check_groups(self.train, self.model.bn_group_size)
            self._check_sweep()

    @property
    def optimized(self) -> tuple[sections.Optimization, ...]:
        """The sections by which the task trains through the network."""
        trains = self.train.epochs and self.task in ('recipe', 'train')
        finetunes = (
            self.task == 'finetune'
            or (self.task == 'recipe' and self.adaptation == 'finetune')
            or (self.task == 'analyze' and self.study == 'ablation' and self.analyze.epochs)
        )
        return (*((self.train,) if trains else ()), *((self.finetune,) if finetunes else ()))

    def _check_sweep(self) -> None:
        test, low = self.test, self.train.resolution
        if self.task == 'recipe' and not test.resolution and test.resolutions and max(test.resolutions) < low:
            raise UsageError(
                f'test.resolutions={test.resolutions} has none of at least train.resolution={low}: add one, such as '
                f'{2 * low}.'
            )


def _check_groups(o: sections.Optimization, size: int) -> None:
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
    if o.batch_norm and o.resolution == sections.SIDE and (size or part) == 1:
        raise UsageError(
            f'model.bn_group_size={size} makes groups of one image, which train.resolution={sections.SIDE} makes '
            'one value, which has no variance. Give larger groups, such as model.bn_group_size=16, or a larger batch.'
        )


def check_task(s: Settings) -> None:
    """Raise UsageError when the config does not give what its task needs.

    This is apart from `read` because the dry run compiles for networks and data that are not there.
    """
    study = s.study if s.task == 'analyze' else ''
    given = s.task in ('adapt', 'finetune', 'evaluate', 'extract') or study in ('activations', 'ablation')
    chosen_on = s.data.held_out_fraction or s.data.held_out_list or s.test.resolution
    for wrong, message in (
        (not s.data.source, 'data.source is empty: set --config.data.source to a folder with one folder per split.'),
        (s.task == 'analyze' and not study, f'study is empty: set --config.study to one of {", ".join(STUDIES)}.'),
        (
            given and not s.init_from,
            f'task={s.task} needs a network: set --config.init_from to a workdir or to converted weights.',
        ),
        (
            s.task in ('recipe', 'train') and not (s.train.epochs or s.init_from),
            'train.epochs=0 needs a trained network: set --config.init_from, or train for some epochs.',
        ),
        (
            s.reset_head and not s.init_from,
            'reset_head=True gives a fresh classifier to a given network: set --config.init_from, or reset_head=False.',
        ),
        (
            s.task in ('adapt', 'finetune') and not s.test.resolution,
            f'task={s.task} needs the resolution to adapt to: set --config.test.resolution, such as 288.',
        ),
        (
            s.task == 'recipe' and not chosen_on,
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
    return _section(Settings, config)


def _section(kind: type[sections.Section], values: Any) -> Any:
    """Fill a section from a mapping by the names and types of its fields."""
    types = {field.name: typing.get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)}
    if not hasattr(values, 'keys'):
        raise UsageError(f'{kind.PATH.rstrip(".") or "The config"}={values!r}: expected a section with fields.')
    for name in values:
        if name not in types:
            raise UsageError(f'The config has a field {kind.PATH}{name}, which is unknown.{nearest(name, types)}')
    for name in types:
        if name not in values:
            raise UsageError(f'The config has no field {kind.PATH}{name}: begin with configs/base.py, which has all.')
    filled = {}
    for name, expected in types.items():
        if dataclasses.is_dataclass(expected):
            filled[name] = _section(expected, values[name])
            continue
        try:
            filled[name] = rules.convert(values[name], expected)
        except TypeError:
            rule = kind.RULES.get(name)
            works = f', such as {rule.works!r}' if rule else ''
            message = f'{kind.PATH}{name}={values[name]!r}: expected {rules.words(expected)}{works}.'
            raise UsageError(message) from None
    return kind(**filled)
