"""Images in a folder of class folders, local or on gs://."""

import array
import copy
import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from fixres_jax.core.errors import RunError, UsageError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.ppm', '.pgm', '.tif', '.tiff', '.webp')


class ImageFolder:
    """Read a folder of class folders, as torchvision's ImageFolder: sorted class names are the labels.

    The name of a record is the path of its file. Paths are kept packed (about 30 bytes an image, not 150).
    """

    _first = 0  # number of the first image that is known here

    def __init__(self, root: epath.PathLike):
        """List the images below `root`.

        Raises:
          UsageError: when there is no class folder, one is empty, or two differ in case only.
        """
        path = epath.Path(root)
        names = folders(path)
        if not names:
            raise UsageError(f'{path} holds no class folders. Expected {path}/<class name>/<image>.jpg.')
        _check_case(path, names)
        # Listing waits for the disk or the network, so folders are listed side by side.
        with ThreadPoolExecutor(16) as pool:
            listings = list(pool.map(_list_images, [path / name for name in names]))
        self.root = str(path)
        self.class_names = tuple(names)
        counts = [len(listing) for listing in listings]
        self.labels = np.repeat(np.arange(len(names), dtype=np.int32), counts)
        self._files = PackedStrings(file for listing in listings for file in listing)

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, first: int, last: int) -> 'ImageFolder':
        """Return a copy that knows only the images [first, last), under the numbers that they have here."""
        part = copy.copy(self)
        part._first, part.labels = self._first + first, self.labels[first:last]
        part._files = PackedStrings(map(self._files.__getitem__, range(first, last)))
        return part

    def name(self, index: int) -> str:
        place = index - self._first
        return f'{self.root}/{self.class_names[self.labels[place]]}/{self._files[place]}'

    def fingerprint(self) -> str:
        """Return a hash of the names, labels and sizes of all files; where the folder lies does not count."""
        digest = hashlib.sha256()
        # In a bucket the sizes came with the listing, which gcsfs keeps.
        with ThreadPoolExecutor(16) as pool:
            sizes = pool.map(_size, map(self.name, range(len(self))), chunksize=256)
            for index, size in enumerate(sizes):
                fact = self.class_names[self.labels[index]], self._files[index], size
                digest.update(repr(fact).encode('utf-8', 'surrogateescape'))
        return digest.hexdigest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.name(index)
        try:
            if '://' in name:
                encoded = epath.Path(name).read_bytes()
            else:
                with open(name, 'rb') as file:  # a third of epath's time
                    encoded = file.read()
        except OSError as error:
            raise RunError(f'Image {index}, {name}, cannot be read: {error.strerror or error}.') from error
        return {'encoded': encoded, 'label': int(self.labels[index - self._first]), 'name': name}


def _size(name: str) -> int:
    """Return the bytes of a file; 0 for one that is gone or not to be read, which reading it will tell."""
    try:
        return epath.Path(name).stat().length if '://' in name else os.stat(name).st_size
    except OSError:
        return 0


def folders(path: epath.Path) -> list[str]:
    """Return the sorted names of the folders in a folder, hidden ones left out."""
    try:
        return sorted(entry.name for entry in path.iterdir() if entry.name[0] != '.' and entry.is_dir())
    except OSError as error:
        raise UsageError(f'{path} cannot be listed: {error.strerror or error}. Check its permissions.') from error


def _check_case(path: epath.Path, names: Sequence[str]) -> None:
    """Refuse classes such as 'Cat' and 'cat': they are one class on many file systems."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise UsageError(
                f'{path} has classes {other!r} and {name!r}, which differ in case only. Rename or merge them.'
            )


def _list_images(folder: epath.Path) -> list[str]:
    """Return the sorted paths of the images in a class folder, relative to it."""

    def refuse(error: OSError) -> None:
        raise UsageError(f'{error.filename} cannot be listed: {error.strerror}. Check its permissions.') from error

    files = []
    for place, _, names in folder.walk(on_error=refuse):
        inside = str(place)[len(str(folder)) :].lstrip('/')
        prefix = f'{inside}/' if inside else ''
        files += [prefix + name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != '.']
    if not files:
        raise UsageError(f'The class folder {folder} holds no images. Remove it, or add files such as image.jpg.')
    return sorted(files)


class PackedStrings(Sequence[str]):
    """Hold strings in one piece of memory: a million Python strings take five times as much."""

    def __init__(self, strings: Iterable[str]):
        text, ends = bytearray(), array.array('q')
        for string in strings:
            text += string.encode('utf-8', 'surrogateescape')
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].decode('utf-8', 'surrogateescape')
