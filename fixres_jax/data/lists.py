"""Data sets as their authors give them out: a folder whose files list the images of each split."""

import csv
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from etils import epath

from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.data.folders import ImageFolder, PackedStrings

Listing = tuple[list[tuple[str, str]], list[str]]  # (file relative to the root, class name) each, and all class names


class Listed(ImageFolder):
    """Read images that a list names; otherwise as `ImageFolder`."""

    def __init__(self, root: epath.PathLike, listing: Listing):
        pairs, class_names = listing
        numbers = {name: number for number, name in enumerate(class_names)}
        self.root, self.class_names = str(root), tuple(class_names)
        self.labels = np.array([numbers[name] for _, name in pairs], np.int32)
        self._files = PackedStrings(file for file, _ in pairs)

    def name(self, index: int) -> str:
        return f'{self.root}/{self._files[index - self._first]}'


class Layout(NamedTuple):
    """Say how a distribution is known, and read.

    Attributes:
      marks: files that all of its folders have, and others do not.
      splits: their names.
      read: (folder, split) -> what it lists.
    """

    marks: tuple[str, ...]
    splits: tuple[str, ...]
    read: Callable[[epath.Path, str], Listing]


def _lines(path: epath.Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.strip() and line[0] != '#']


def _cub(root: epath.Path, split: str) -> Listing:
    """Read CUB-200-2011: '<id> <class>/<file>' in images.txt, '<id> <1 for training>' in train_test_split.txt."""
    files = dict(line.split(maxsplit=1) for line in _lines(root / 'images.txt'))
    trained = dict(line.split() for line in _lines(root / 'train_test_split.txt'))
    wanted = '1' if split == 'train' else '0'
    pairs = [(f'images/{file}', file.split('/')[0]) for key, file in files.items() if trained[key] == wanted]
    return pairs, sorted({file.split('/')[0] for file in files.values()})


def _birdsnap(root: epath.Path, split: str) -> Listing:
    """Read Birdsnap: images are what its script could download; test_images.txt has a header, then '<dir>/<file>'."""
    places = [place for place in ('download/images', 'images') if (root / place).is_dir()]
    if not places:
        raise UsageError(f'{root} has no download/images: run its get_birdsnap.py, which fetches the images.')
    folder = ImageFolder(root / places[0])
    start = len(folder.root) + 1
    listed = set(_lines(root / 'test_images.txt')[1:])
    files = [(folder.name(index)[start:], folder.class_names[label]) for index, label in enumerate(folder.labels)]
    found = [file in listed for file, _ in files]
    if split == 'test' and sum(found) < len(listed):
        log.info('%d of the %d test images of %s were not downloaded.', len(listed) - sum(found), len(listed), root)
    wanted = zip(files, found, strict=True)
    pairs = [(f'{places[0]}/{file}', name) for (file, name), test in wanted if test == (split == 'test')]
    return pairs, list(folder.class_names)


def _pets(root: epath.Path, split: str) -> Listing:
    """Read Oxford-IIIT Pets: '<class>_<number> <class id> ...' in annotations/trainval.txt and test.txt."""
    lists = {'train': 'trainval.txt', 'test': 'test.txt'}
    rows = {name: [line.split() for line in _lines(root / 'annotations' / file)] for name, file in lists.items()}
    numbers = {name.rpartition('_')[0]: int(number) for row in rows.values() for name, number, *_ in row}
    pairs = [(f'images/{name}.jpg', name.rpartition('_')[0]) for name, *_ in rows[split]]
    return pairs, sorted(numbers, key=numbers.get)


def _grocery(root: epath.Path, split: str) -> Listing:
    """Read the Grocery Store Dataset: '<file>, <class id>, <coarse id>' in <split>.txt, the names in classes.csv."""
    names = {int(row[1]): row[0] for row in list(csv.reader(_lines(root / 'classes.csv')))[1:]}
    rows = [line.rsplit(',', 2) for line in _lines(root / f'{split}.txt')]
    return [(file, names[int(number)]) for file, number, _ in rows], [names[number] for number in sorted(names)]


LAYOUTS = (
    Layout(('images.txt', 'train_test_split.txt'), ('train', 'test'), _cub),
    Layout(('species.txt', 'test_images.txt'), ('train', 'test'), _birdsnap),
    Layout(('annotations/trainval.txt', 'annotations/test.txt'), ('train', 'test'), _pets),
    Layout(('classes.csv', 'train.txt', 'test.txt'), ('train', 'val', 'test'), _grocery),
)


def found_in(root: epath.Path) -> Layout | None:
    """Return the layout of a folder that is one of those distributions; None for any other."""
    return next((one for one in LAYOUTS if all((root / mark).is_file() for mark in one.marks)), None)


def create(root: epath.Path, layout: Layout, split: str) -> Listed:
    """Open a split.

    Raises:
      UsageError: for lists that are not as their authors made them, or without images.
    """
    try:
        listing = layout.read(root, split)
    except (KeyError, ValueError, IndexError) as error:
        lists = ' and '.join(layout.marks)
        raise UsageError(f'{root}: {lists} are not as distributed ({error!r}). Download them again.') from error
    if not listing[0]:
        raise UsageError(f'{root} has no images of the split {split!r}: {" and ".join(layout.marks)} list none.')
    return Listed(root, listing)
