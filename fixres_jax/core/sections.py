"""Section: a part of the config as a frozen dataclass, filled from a mapping and checked field by field.

A section lives beside what it is for. Its fields have the names that `configs/base.py` gives them, which says what they
mean and holds all defaults.
"""

import dataclasses
import math
import numbers
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.core.resolution import Resolution

KINDS = {
    bool: 'True or False',
    int: 'a whole number',
    float: 'a finite number',
    str: 'text',
    Resolution: Resolution.EXPECTED,
}


class Rule(NamedTuple):
    """Say which values a field may have.

    Attributes:
      holds: whether a value of the right type is one of them.
      expected: the same in words.
      works: a value that is.
      choices: all of them, where they are names.
    """

    holds: Callable[[Any], bool]
    expected: str
    works: Any
    choices: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the config; refuses a value that its `RULES` do not allow.

    Attributes:
      PATH: of its fields in the config, such as 'train.'.
      RULES: field -> which values it may have, or a function that returns it where a table says so that may grow; a
        field without has the values of its type.
    """

    PATH: ClassVar[str] = ''
    RULES: ClassVar[Mapping[str, Rule | Callable[[], Rule]]] = {}

    def __post_init__(self):
        for name in self.RULES:
            rule, value = self.rule(name), getattr(self, name)
            if not rule.holds(value):
                hint = nearest(value, rule.choices) if rule.choices else ''
                raise UsageError(
                    f'{self.PATH}{name}={value!r}: expected {rule.expected}, such as {rule.works!r}.{hint}'
                )

    @classmethod
    def rule(cls, name: str) -> Rule | None:
        """Return which values a field may have now; None for those of its type."""
        rule = cls.RULES.get(name)
        return rule if rule is None or isinstance(rule, Rule) else rule()


def least(low: float, works: Any) -> Rule:
    return Rule(lambda value: value >= low, f'{low:g} or more', works)


def between(low: int, high: int, works: int) -> Rule:
    return Rule(lambda value: low <= value <= high, f'{low} to {high:,}', works)


def share(works: float) -> Rule:
    return Rule(lambda value: 0 <= value < 1, '0 or more and below 1', works)


def one_of(choices: Sequence[str], works: str = '') -> Rule:
    names = [repr(choice) if choice == '' else choice for choice in choices]
    return Rule(lambda value: value in choices, f'one of {", ".join(names)}', works or choices[0], tuple(choices))


def low_high(low: float, high: float, works: tuple[float, float]) -> Rule:
    limit = '' if high == math.inf else f', at most {high:g}'
    return Rule(
        lambda value: len(value) == 2 and low < value[0] <= value[1] <= high,
        f'(low, high) above {low:g}{limit}',
        works,
    )


def channels(expected: str, holds: Callable[[float], bool], works: tuple[float, ...]) -> Rule:
    return Rule(
        lambda value: not value or (len(value) == 3 and all(map(holds, value))), f'() or three {expected}', works
    )


def is_regex(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return True


def convert(value: Any, kind: Any) -> Any:
    """Return a value as its type; whole numbers do for others, lists for tuples. Raise TypeError for what does not."""
    if kind is Resolution:
        return Resolution.parse(value)
    if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
        return tuple(convert(one, typing.get_args(kind)[0]) for one in value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise TypeError


def words(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return f'a tuple, each element {words(typing.get_args(kind)[0])}'
    return KINDS[kind]


def fill(kind: type[Section], values: Any) -> Any:
    """Fill a section from a mapping by the names and types of its fields.

    Raises:
      UsageError: for a field that is missing, unknown, of another type or out of range. It names the field, what was
        expected and a value that works.
    """
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
            filled[name] = fill(expected, values[name])
            continue
        try:
            filled[name] = convert(values[name], expected)
        except TypeError:
            rule = kind.rule(name)
            works = f', such as {rule.works!r}' if rule else ''
            message = f'{kind.PATH}{name}={values[name]!r}: expected {words(expected)}{works}.'
            raise UsageError(message) from None
    return kind(**filled)
