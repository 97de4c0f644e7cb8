"""The numbers that a list leaves out, without a list of their own."""

from collections.abc import Callable, Sequence

import numpy as np


class Others(Sequence[int]):
    """The numbers below `count` that are not in a list, in order: as small as the list, however many they are."""

    def __init__(self, count: int, left_out: np.ndarray):
        """Keep what is needed to find a number.

        Args:
          count: one more than the largest number.
          left_out: int32[M], ascending, each number once.
        """
        # How many numbers come before each one left out: the k-th is k plus as many left out as have at most k before.
        self._before = left_out - np.arange(len(left_out), dtype=np.int32)
        self._length = count - len(left_out)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index):
        if isinstance(index, slice):
            assert index.step in (None, 1)
            return self.pick(lambda first, stop: np.arange(first, stop, dtype=np.int32), index)
        if np.ndim(index) == 0:
            index = range(self._length)[index]
        index = np.int32(index)  # of the dtype of the list, which would be converted otherwise, at each look
        return index + np.searchsorted(self._before, index, side='right').astype(np.int32)

    def pick(self, read: Callable[[int, int], np.ndarray], places: slice) -> np.ndarray:
        """Return what stands at the numbers in some places; `read` gives what stands at the numbers [first, stop)."""
        first, stop, _ = places.indices(self._length)
        if first >= stop:
            return read(0, 0)
        low, high = np.searchsorted(self._before, np.array([first, stop - 1], np.int32), side='right')
        left_out = self._before[low:high] - np.int32(first) + np.arange(high - low, dtype=np.int32)
        return np.delete(read(first + int(low), stop + int(high)), left_out)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or np.int32, copy=False)
