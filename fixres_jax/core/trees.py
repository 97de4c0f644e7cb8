"""Trees of arrays addressed by '/' names: flatten, split by regex, merge, compare, count."""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from fixres_jax.core.errors import UsageError

Tree = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
    """Return the leaves of a nested dict by their '/' names.

    >>> flatten({'layer4': {'0': {'scale': 1}}, 'fc': {'bias': 2}})
    {'layer4/0/scale': 1, 'fc/bias': 2}
    """
    return traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict of a flat one: the inverse of `flatten`.

    >>> unflatten({'layer4/0/scale': 1, 'fc/bias': 2})
    {'layer4': {'0': {'scale': 1}}, 'fc': {'bias': 2}}
    """
    return traverse_util.unflatten_dict(dict(flat), sep='/')


def split(tree: Tree, regex: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a tree into the leaves whose whole name matches a regex, and the rest.

    Args:
      tree: nested dict of leaves.
      regex: matched with `re.fullmatch` against names such as 'fc/kernel'.

    Returns:
      (selected, rest), nested dicts; `merge` puts them together again.

    Raises:
      UsageError: when nothing matches, naming leaves that come near.

    >>> split({'layer4': {'scale': 1}, 'fc': {'bias': 2}}, 'fc/.*')
    ({'fc': {'bias': 2}}, {'layer4': {'scale': 1}})
    """
    flat = flatten(tree)
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UsageError(f'{regex!r} is not a regular expression: {error}.') from error
    selected = {name: leaf for name, leaf in flat.items() if pattern.fullmatch(name)}
    if not selected:
        near = difflib.get_close_matches(regex, flat, n=3, cutoff=0.0)
        raise UsageError(f'The regex {regex!r} matches none of the {len(flat)} leaves. Near names: {", ".join(near)}.')
    rest = {name: leaf for name, leaf in flat.items() if name not in selected}
    return unflatten(selected), unflatten(rest)


def merge(first: Tree, second: Tree) -> dict[str, Any]:
    """Return one tree with the leaves of two trees that share none.

    >>> merge({'fc': {'bias': 2}}, {'layer4': {'scale': 1}})
    {'fc': {'bias': 2}, 'layer4': {'scale': 1}}
    """
    flat, other = flatten(first), flatten(second)
    assert not flat.keys() & other.keys(), sorted(flat.keys() & other.keys())
    return unflatten(flat | other)


def count(tree: Tree) -> int:
    """Return the number of scalars in a tree of arrays (or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in flatten(tree).values())


@dataclasses.dataclass(frozen=True)
class Diff:
    """Where two trees differ: names only one has, and names whose shapes differ."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.misshaped)

    def message(self, limit: int = 10) -> str:
        """List at most `limit` names, of every kind of difference as many, with the nearest expected name."""
        kinds = {'missing': self.missing, 'not expected': self.extra, 'of another shape': self.misshaped}
        kinds = {kind: found for kind, found in kinds.items() if found}
        share, lines = limit // max(1, len(kinds)), []
        for kind, found in kinds.items():
            lines += [self._line(kind, one) for one in found[:share]]
            if len(found) > share:
                lines.append(f'... and {len(found) - share} more {kind}')
        return '\n'.join(lines)

    def _line(self, kind: str, found: Any) -> str:
        if kind == 'of another shape':
            name, want, have = found
            return f'shape of {name}: expected {want}, found {have}'
        near = difflib.get_close_matches(found, self.missing, n=1, cutoff=0.6) if kind == 'not expected' else ()
        return f'{kind}: {found}' + (f' (is it {near[0]}?)' if near else '')


def diff(expected: Tree, found: Tree) -> Diff:
    """Compare the names and shapes of two trees; the result is falsy when they agree."""
    want, have = flatten(expected), flatten(found)
    return Diff(
        missing=tuple(name for name in want if name not in have),
        extra=tuple(name for name in have if name not in want),
        misshaped=tuple(
            (name, tuple(want[name].shape), tuple(have[name].shape))
            for name in want
            if name in have and tuple(want[name].shape) != tuple(have[name].shape)
        ),
    )
