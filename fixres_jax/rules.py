"""Which values a field of the config may have, in code and in words, and how a value becomes one of its type."""

import math
import numbers
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

KINDS = {bool: 'True or False', int: 'a whole number', float: 'a finite number', str: 'text'}


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
