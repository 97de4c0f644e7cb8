"""Hashes that stand for the names of records, and the order-free hash of a set of them.

A billion names take 25 GB. Their hashes take 8, can be mapped from a file, and are looked at in pieces.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

NUMBERED = 'tfds:'  # begins the names of records that have a number and no file
PIECE = 2**20  # hashes looked at together: 8 MB
SORTED_AT_ONCE = 2**26  # hashes that are sorted in memory: 512 MB


def digest(name: str, class_name: str) -> int:
    """Return the hash of a record's name, below 2**64, the same wherever and however the data set is kept.

    The class and the last two parts of the path count: a folder that is moved, or made into shards, keeps its hashes.
    Of a numbered record of tensorflow-datasets the whole name counts.
    """
    if not name.startswith(NUMBERED):
        name = '/'.join((class_name, *name.rsplit('/', 2)[-2:]))
    return int.from_bytes(hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8).digest(), 'little')


def of_set(pieces: Callable[[], Iterable[np.ndarray]], count: int) -> str:
    """Return a hash of a set of hashes, whatever their order.

    They are sorted by ranges of their values, a pass over all of them for each range, so that memory does not grow with
    their number.

    Args:
      pieces: begins a pass and gives all hashes, as arrays uint64[n].
      count: how many there are.
    """
    passes = max(1, -(-count // SORTED_AT_ONCE))
    edges = [2**64 * part // passes for part in range(passes + 1)]
    total = hashlib.sha256()
    for low, high in zip(edges, edges[1:], strict=False):
        first, last = np.uint64(low), np.uint64(high - 1)
        parts = [piece[(piece >= first) & (piece <= last)] for piece in pieces()]
        values = np.concatenate([np.empty(0, np.uint64), *parts])
        del parts
        values.sort()
        total.update(values.astype('<u8', copy=False).data)
    return total.hexdigest()[:32]


def draws(digests: np.ndarray, purpose: str, seed: int) -> np.ndarray:
    """Return a number for each hash, float64[N] in [0, 1), a function of it, the purpose and the seed alone.

    Args:
      digests: uint64[N].
      purpose: what the numbers decide; those for another are independent of them.
      seed: gives other numbers.
    """
    salt = hashlib.blake2b(f'{purpose} {seed}'.encode(), digest_size=8).digest()
    x = digests ^ np.uint64(int.from_bytes(salt, 'little'))
    # The finalizer of splitmix64: one bit of the salt changes half of the bits of every draw.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
