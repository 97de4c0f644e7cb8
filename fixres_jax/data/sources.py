"""Random-access sources of encoded images, and views on them: held-out parts, few shots, some classes.

A source has `len(source)`, `source[i] -> {'encoded': bytes, 'label': int, 'name': str}`, `source.name(i)`,
`source.labels` (int32[N]) and `source.class_names` (one name a label). Sources are small and picklable: workers
get a copy. A source that has its names' hashes ready gives them as `source.digests` (uint64[N]).
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath

from fixres_jax.core import files
from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.data import digests as hashes
from fixres_jax.data import lists, shards
from fixres_jax.data.folders import ImageFolder, folders
from fixres_jax.data.joined import Joined
from fixres_jax.data.others import Others

SPLIT_NAMES = (('train', 'training'), ('val', 'validation', 'valid'), ('test', 'testing'))
TFDS = hashes.NUMBERED
UNKNOWN = -1  # the label of an image without one
HINTED = 100_000  # names looked at for one that was meant

Record = dict[str, Any]


class Source(Protocol):
    """What the pipeline asks of a data set."""

    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def name(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class Splits:
    """Hold the images of a run.

    Attributes:
      train: to train and adapt on.
      held_out: kept from training, to choose on; None where nothing is.
      test: the numbers come from these.
    """

    train: Source
    held_out: Source | None
    test: Source


class WholeSource(Source, Protocol):
    """What `create` opens: it can also say in short what it holds."""

    def fingerprint(self) -> str: ...


def create(spec: str, split: str) -> WholeSource:
    """Open a source by its specification.

    Args:
      spec: a folder (local or gs://) that holds one folder per split: a folder per class, or prepared shards; one that
        `lists` knows; or 'tfds:NAME' for a data set of tensorflow-datasets.
      split: the split's name ('train', 'val', 'test' or its usual synonyms); 'train+val' for both; '' when `spec`
        itself holds the class folders or the shards.

    Raises:
      UsageError: when the folder, the split or its images are not there, or the library to reach them is not.
    """
    if '+' in split:
        names = split.split('+')
        return Joined([create(spec, name) for name in names], names)
    if str(spec).startswith(TFDS):
        from fixres_jax.data import tfds  # takes a second to import

        name = str(spec).removeprefix(TFDS)
        base, bracket, rest = split.partition('[')
        return tfds.Tfds(name, _find_split(str(spec), tfds.splits(name), base) + bracket + rest)
    root = _root(spec)
    if split and (layout := lists.found_in(root)):
        return lists.create(root, layout, _find_split(str(root), layout.splits, split))
    folder = root / _find_split(str(root), folders(root), split) if split else root
    return shards.Shards(folder) if shards.found_in(folder) else ImageFolder(folder)


def part(source: Source, first: int, last: int) -> Source:
    """Return a source for the records [first, last) alone, under their numbers: small, to be sent to a worker."""
    return source.part(first, last) if hasattr(source, 'part') else source


def splits(spec: str) -> list[str]:
    """Return the names of the splits of a source; [''] for one without."""
    if str(spec).startswith(TFDS):
        from fixres_jax.data import tfds

        return tfds.splits(str(spec).removeprefix(TFDS))
    root = _root(spec)
    if layout := lists.found_in(root):
        return list(layout.splits)
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
      indices: int32[M] into it, or what is indexed like it.
      class_names: names of the labels shown.
      new_labels: int32[classes of `source`], the label shown for each; None when they are the same.
    """

    source: Source
    indices: np.ndarray | Others
    class_names: tuple[str, ...]
    new_labels: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        labels = self.source.labels[np.asarray(self.indices)]
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


def sample(source: Source, num_records: int, seed: int) -> Source:
    """Return that many records at random, in the source's order; the source itself when it has no more."""
    if num_records >= len(source):
        return source
    picked = np.random.default_rng([seed, len(source)]).choice(len(source), num_records, replace=False)
    return subset(source, np.sort(picked))


def hold_out(source: Source, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Split a source in two by a rule that looks at one record at a time.

    A record is held out when a hash of the seed and of its name (see `digests`), read as a number from 0 to 1, is below
    the fraction. So a file that comes or goes moves no other from one part to the other, and nothing that was trained
    on with the same seed and fraction is held out later. The price: each class gives its share on average only,
    n * fraction with a standard deviation of sqrt(n * fraction * (1 - fraction)) records. Exact shares would move
    records whenever a class grows. A source of which no record is below the fraction gives its lowest one.

    Args:
      source: any source.
      fraction: share of the records to hold out, in [0, 1).
      seed: which records; the same seed gives the same split, wherever the files lie.

    Returns:
      (rest, held_out): disjoint, together everything, both in the source's order.
    """
    if not 0 <= fraction < 1:
        raise UsageError(f'The held-out fraction is {fraction}; expected a number from 0 to below 1.')
    held, lowest, first = [np.empty(0, np.int64)], (1.0, 0), 0
    for piece in _pieces(source):
        draws = hashes.draws(piece, 'hold_out', seed)
        held.append(first + np.flatnonzero(draws < fraction))
        lowest = min(lowest, (float(draws.min()), first + int(draws.argmin())))
        first += len(piece)
    held = np.concatenate(held)
    if fraction and len(source) and not len(held):
        held = np.array([lowest[1]])
    return _parts(source, held)


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
    path = files.reachable(path)
    if not path.exists():
        raise UsageError(f'There is no file {str(path)!r} that lists images.')
    listed = [name for line in path.read_text().split('\n') if (name := line.strip())]
    places: dict[str, list[int]] = {'/'.join(name.split('/')[-2:]): [] for name in listed}
    for index in range(len(source)):
        for key in _keys(source.name(index)):
            if key in places:
                places[key].append(index)
    held = []
    for name in listed:
        found = places['/'.join(name.split('/')[-2:])]
        if len(found) != 1:
            known = itertools.chain.from_iterable(_keys(source.name(index)) for index in range(len(source)))
            hint = 'Give its class folder too.' if found else nearest(name, itertools.islice(known, HINTED)).strip()
            raise UsageError(f'{path}: {name} is {len(found)} times in the data set. {hint}'.rstrip())
        held += found
    return _parts(source, np.array(held, np.int64))


def _keys(name: str) -> tuple[str, str]:
    """Return what a list may call a record: its file's name, with its class folder or without."""
    folder, _, file = name.rpartition('/')
    return file, f'{folder.rpartition("/")[2]}/{file}'


def few_shot(source: Source, amount: int | float, seed: int) -> Subset:
    """Keep a few records of each class.

    Args:
      source: any source.
      amount: records a class, or, below 1, the fraction of each class (at least one record).
      seed: which records: those of a class whose hash with the seed is lowest. A larger amount keeps those of a smaller
        one, and a file that is added takes the place of one other at most.

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
    order = np.lexsort((_draws(source, 'few_shot', seed), source.labels))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _parts(source, order[rank < np.repeat(wanted, counts)])[1]


def training_parts(source: Source, how: Mapping[str, Any]) -> tuple[Source, Source | None]:
    """Return (images to train on, images held out or None) of a training split.

    Args:
      source: any source.
      how: `held_out_list` or `held_out_fraction`, `few_shot_list` or `few_shot`, as in the configs' `data`, and `seed`.
    """
    held_out = None
    if how['held_out_list']:
        source, held_out = hold_out_listed(source, how['held_out_list'])
    elif how['held_out_fraction']:
        source, held_out = hold_out(source, how['held_out_fraction'], how['seed'])
    amount = how['few_shot']
    if how['few_shot_list']:
        _, source = hold_out_listed(source, how['few_shot_list'])
    elif amount:
        source = few_shot(source, amount if amount < 1 else int(amount), how['seed'])
    return source, held_out


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


def relabelled(source: Source | None, names: Sequence[str]) -> Source | None:
    """Return a view whose labels are the places of the classes in `names`, which holds at least those of the source."""
    if source is None or tuple(source.class_names) == tuple(names):
        return source
    places = {name: place for place, name in enumerate(names)}
    new_labels = np.array([places[name] for name in source.class_names], np.int32)
    return Subset(source, np.arange(len(source), dtype=np.int32), tuple(names), new_labels)


def unlabelled(source: Source, names: Sequence[str]) -> Source:
    """Return a view whose labels are all UNKNOWN, of classes that are those of `names`."""
    unknown = np.full(max(len(source.class_names), int(source.labels.max()) + 1, 1), UNKNOWN, np.int32)
    return Subset(source, np.arange(len(source), dtype=np.int32), tuple(names), unknown)


def digests(source: Source) -> np.ndarray:
    """Return a hash of each record's name, uint64[N], the same wherever and however the data set is kept.

    See `digests.digest`; records of tensorflow-datasets have no file names: their number in the split stands in.
    """
    if isinstance(source, Subset):
        return np.concatenate([np.empty(0, np.uint64), *_pieces(source)])
    return _whole(source)


def _whole(source: Source) -> np.ndarray:
    ready = getattr(source, 'digests', None)
    return _digests(source) if ready is None else ready


def _pieces(source: Source) -> Iterator[np.ndarray]:
    """Iterate over the hashes of the names, a piece at a time, in the source's order."""
    for first in range(0, len(source), hashes.PIECE):
        yield _look_up(source, slice(first, first + hashes.PIECE))


def _look_up(source: Source, places: slice | np.ndarray) -> np.ndarray:
    if isinstance(source, Subset):
        if isinstance(places, slice) and isinstance(source.indices, Others):
            return source.indices.pick(lambda first, stop: _look_up(source.source, slice(first, stop)), places)
        return _look_up(source.source, source.indices[places])
    return _whole(source)[places]


@functools.lru_cache(maxsize=4)  # A million names take seconds; the parts of a source ask again and again.
def _digests(source: Source) -> np.ndarray:
    # Labels of tensorflow-datasets stand in the records: none are read for a name.
    numbered = len(source) > 0 and source.name(0).startswith(hashes.NUMBERED)
    labels = None if numbered else source.labels.tolist()
    found = np.empty(len(source), np.uint64)
    for index in range(len(source)):
        found[index] = hashes.digest(source.name(index), '' if numbered else source.class_names[labels[index]])
    found.setflags(write=False)
    return found


@functools.lru_cache(maxsize=8)  # Every phase asks.
def fingerprint(source: Source) -> str:
    """Return a hash of the names of all records, whatever their order: two sources of the same images have the same."""
    return hashes.of_set(lambda: _pieces(source), len(source))


def _draws(source: Source, purpose: str, seed: int) -> np.ndarray:
    """Return a number for each record, float64[N] in [0, 1), a function of its name, the purpose and the seed alone."""
    return hashes.draws(digests(source), purpose, seed)


def _parts(source: Source, selected: np.ndarray) -> tuple[Subset, Subset]:
    """Return (the others, the selected) records in the source's order."""
    selected = np.unique(selected).astype(np.int32)
    return Subset(source, Others(len(source), selected), source.class_names), subset(source, selected)
