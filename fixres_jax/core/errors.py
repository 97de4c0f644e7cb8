"""The two kinds of error a user meets, and the hint that goes with a misspelt name."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Say that the input is wrong: what was given, what was expected, what to do. Ends a program with code 2."""


class RunError(RuntimeError):
    """Say that a run cannot go on: what happened, where, what to do. Ends a program with code 1."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the choice most like `word`, or '' when none is near."""
    matches = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ''
