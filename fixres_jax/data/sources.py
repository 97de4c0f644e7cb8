"""Random-access sources of encoded images, and views on them: held-out parts, few shots, some classes.

A source has `len(source)`, `source[i] -> {'encoded': bytes, 'label': int, 'name': str}`, `source.name(i)`,
`source.labels` (int32[N]) and `source.class_names` (one name a label). Sources are small and picklable: workers
get a copy.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from fixres_jax import files
from fixres_jax.data import shards
from fixres_jax.data.folders import ImageFolder, folders
from fixres_jax.errors import UsageError, nearest

SPLIT_NAMES = (('train', 'training'), ('val', 'validation', 'valid'), ('test', 'testing'))
TFDS = 'tfds:'

Record = dict[str, Any]


class Source(Protocol):
    """What the pipeline asks of a data set."""

    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str: ...


class WholeSource(Source, Protocol):
    """What `create` opens: it can also say in short what it holds."""

    def fingerprint(self) -> str: ...


def create(spec: str, split: str) -> WholeSource:
    """Open a source by its specification.

    Args:
      spec: a folder (local or gs://) that holds one folder per split: a folder per class, or prepared shards; or
        'tfds:NAME' for a data set of tensorflow-datasets.
      split: the split's name ('train', 'val', 'test' or its usual synonyms); '' when `spec` itself holds the
        class folders or the shards.

    Raises:
      UsageError: when the folder, the split or its images are not there, or the library to reach them is not.
    """
    if str(spec).startswith(TFDS):
        from fixres_jax.data import tfds  # takes a second to import

        name = str(spec).removeprefix(TFDS)
        base, bracket, rest = split.partition('[')
        return tfds.Tfds(name, _find_split(str(spec), tfds.splits(name), base) + bracket + rest)
    root = _root(spec)
    folder = root / _find_split(str(root), folders(root), split) if split else root
    return shards.Shards(folder) if shards.found_in(folder) else ImageFolder(folder)


def splits(spec: str) -> list[str]:
    """Return the names of the splits of a source; [''] for one without."""
    if str(spec).startswith(TFDS):
        from fixres_jax.data import tfds

        return tfds.splits(str(spec).removeprefix(TFDS))
    root = _root(spec)
    known = {name for names in SPLIT_NAMES for name in names}
    return [name for name in folders(root) if name in known] or ['']


def _root(spec: str) -> epath.Path:
    root = files.reachable(spec).expanduser() if str(spec) else None
    if root is None or not root.is_dir():
        raise UsageError(f'There is no folder {str(spec)!r}. Give a folder with one folder per split, or tfds:NAME.')
    return root


def _find_split(place: str, found: Sequence[str], split: str) -> str:
    """Return the name under which a split is found."""
    synonyms = next((names for names in SPLIT_NAMES if split in names), ())
    for name in (split, *synonyms):
        if name in found:
            return name
    listed = ', '.join(list(found)[:8]) or 'none'
    raise UsageError(f'{place} has no split {split!r}; it has {listed}.{nearest(split, found)}')


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Show some records of a source in the given order, and of its classes those that `new_labels` keeps.

    Attributes:
      source: any source.
      indices: int32[M] into it.
      class_names: names of the labels shown.
      new_labels: int32[classes of `source`], the label shown for each; None when they are the same.
    """

    source: Source
    indices: np.ndarray
    class_names: tuple[str, ...]
    new_labels: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        labels = self.source.labels[self.indices]
        return labels if self.new_labels is None else self.new_labels[labels]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def __getitem__(self, index: int) -> Record:
        record = self.source[int(self.indices[index])]
        return record if self.new_labels is None else record | {'label': int(self.new_labels[record['label']])}


def subset(source: Source, indices: Sequence[int] | np.ndarray) -> Subset:
    """Return a view on the records with the given indices, int[M], in that order."""
    indices = np.asarray(indices, dtype=np.int64).reshape(-1)
    if indices.size and not 0 <= indices.min() <= indices.max() < len(source):
        raise UsageError(f'Indices {indices.min()} to {indices.max()} do not fit a source of {len(source)} records.')
    return Subset(source, indices.astype(np.int32), source.class_names)


def hold_out(source: Source, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Split a source in two, each class in proportion.

    Args:
      source: any source.
      fraction: share of the records to hold out, in [0, 1); a class gives its share to within one record.
      seed: which records; the same seed gives the same split.

    Returns:
      (rest, held_out): disjoint, together everything, both in the source's order.
    """
    if not 0 <= fraction < 1:
        raise UsageError(f'The held-out fraction is {fraction}; expected a number from 0 to below 1.')
    order = _shuffled_by_class(source, seed)
    # Class after class, every 1/fraction-th record.
    steps = np.floor(np.arange(len(source) + 1) * fraction + 0.5)
    return _parts(source, order[np.diff(steps) > 0])


def hold_out_listed(source: Source, path: epath.PathLike) -> tuple[Subset, Subset]:
    """Split a source by a file that lists the names to hold out, one a line.

    Args:
      source: any source.
      path: text file; a line is a file's name, or ends in its class folder and name ('n01440764/1.JPEG').

    Returns:
      (rest, held_out), both in the source's order.

    Raises:
      UsageError: for a name that is not in the source, or there more than once.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UsageError(f'There is no file {str(path)!r} that lists images.')
    places: dict[str, list[int]] = {}
    for index in range(len(source)):
        folder, _, name = source.name(index).rpartition('/')
        for key in (name, f'{folder.rpartition("/")[2]}/{name}'):
            places.setdefault(key, []).append(index)
    held = []
    for line in path.read_text().split('\n'):
        if name := line.strip():
            found = places.get('/'.join(name.split('/')[-2:]), [])
            if len(found) != 1:
                hint = 'Give its class folder too.' if found else nearest(name, places).strip()
                raise UsageError(f'{path}: {name} is {len(found)} times in the data set. {hint}'.rstrip())
            held += found
    return _parts(source, np.array(held, np.int64))


def few_shot(source: Source, amount: int | float, seed: int) -> Subset:
    """Keep a few records of each class.

    Args:
      source: any source.
      amount: records a class, or, below 1, the fraction of each class (at least one record).
      seed: which records; a larger amount keeps those of a smaller one.

    Raises:
      UsageError: when a class has fewer records than asked for.
    """
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    wanted = np.maximum(1, np.round(counts * amount)) if amount < 1 else np.full(len(counts), int(amount))
    if amount <= 0 or (wanted > counts).any():
        least = int(counts.argmin())
        raise UsageError(
            f'{amount} images a class were asked for; expected a positive number, and class '
            f'{source.class_names[least]!r} has {counts[least]}.'
        )
    order = _shuffled_by_class(source, seed)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _parts(source, order[rank < np.repeat(wanted, counts)])[1]


def some_classes(source: Source, names: Sequence[str]) -> Subset:
    """Keep some classes, which get the labels 0, 1, ... in the order of `names`.

    Raises:
      UsageError: for a class that is not in the source, or given twice.
    """
    for name in names:
        if name not in source.class_names or list(names).count(name) > 1:
            raise UsageError(
                f'Class {name!r} is given twice or not among the {len(source.class_names)} of the data set.'
                f'{nearest(name, source.class_names) if name not in source.class_names else ""}'
            )
    new_labels = np.full(len(source.class_names), -1, np.int32)
    new_labels[[source.class_names.index(name) for name in names]] = np.arange(len(names))
    indices = np.flatnonzero(new_labels[source.labels] >= 0).astype(np.int32)
    return Subset(source, indices, tuple(names), new_labels)


def _shuffled_by_class(source: Source, seed: int) -> np.ndarray:
    """Return all indices, class after class, in random order inside a class."""
    return np.lexsort((np.random.default_rng(seed).random(len(source)), source.labels))


def _parts(source: Source, selected: np.ndarray) -> tuple[Subset, Subset]:
    """Return (the others, the selected) records in the source's order."""
    chosen = np.zeros(len(source), dtype=bool)
    chosen[selected] = True
    return subset(source, np.flatnonzero(~chosen)), subset(source, np.flatnonzero(chosen))
