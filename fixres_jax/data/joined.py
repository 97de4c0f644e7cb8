"""Several splits as one source."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fixres_jax.core.errors import UsageError


class Joined:
    """Show the records of several sources of the same classes, one source after the other."""

    def __init__(self, parts: Sequence[Any], names: Sequence[str]):
        """Join sources.

        Args:
          parts: sources, see `sources`.
          names: of the parts, for messages.

        Raises:
          UsageError: when their classes differ.
        """
        self.class_names, self._parts = parts[0].class_names, tuple(parts)
        for part, name in zip(parts, names, strict=True):
            if part.class_names != self.class_names:
                only = sorted(set(part.class_names) ^ set(self.class_names))
                raise UsageError(
                    f'The splits {names[0]} and {name} have different classes and cannot be joined; {len(only)} are in '
                    f'one only: {", ".join(only[:5])}.'
                )
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Labels of all records, int32[N]."""
        return np.concatenate([part.labels for part in self._parts])

    def _place(self, index: int) -> tuple[Any, int]:
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side='right'))
        return self._parts[number], index - (int(self._ends[number - 1]) if number else 0)

    def name(self, index: int) -> str:
        part, place = self._place(index)
        return part.name(place)

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, place = self._place(index)
        return part[place]

    def fingerprint(self) -> str:
        """Return a hash of the parts' own."""
        return hashlib.sha256(' '.join(part.fingerprint() for part in self._parts).encode()).hexdigest()
