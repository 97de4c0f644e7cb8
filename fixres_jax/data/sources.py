"""Random-access sources of encoded images: folders of class folders, and views on any source.

A source has `len(source)`, `source[i] -> {'encoded': bytes, 'label': int, 'name': str}`, `source.labels`
(int32[N]) and `source.class_names` (one name a label). Sources are small and picklable: workers get a copy.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from etils import epath

from fixres_jax.errors import RunError, UsageError, nearest

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.ppm', '.pgm', '.tif', '.tiff', '.webp')
SPLIT_NAMES = (('train', 'training'), ('val', 'validation', 'valid'), ('test', 'testing'))

Record = dict[str, Any]


class Source(Protocol):
    """What the pipeline asks of a data set."""

    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def create(spec: str, split: str) -> Source:
    """Open a source by its specification.

    Args:
      spec: a folder (local or gs://) that holds one folder per split, each with a folder per class.
      split: the split's name ('train', 'val', 'test' or its usual synonyms); '' when `spec` itself holds the
        class folders.

    Raises:
      UsageError: when the folder, the split or its images are not there.
    """
    root = epath.Path(spec).expanduser()
    if not spec or not root.is_dir():
        raise UsageError(
            f'There is no folder {spec!r}. Give a folder with one folder per split, or mount it.'
        )
    return ImageFolder(root / _find_split(root, split) if split else root)


def _find_split(root: epath.Path, split: str) -> str:
    """Return the name under which a folder holds a split."""
    found = _folders(root)
    synonyms = next((names for names in SPLIT_NAMES if split in names), ())
    for name in (split, *synonyms):
        if name in found:
            return name
    raise UsageError(
        f'{root} has no split {split!r}; its folders are {", ".join(found[:8]) or "none"}.'
        f'{nearest(split, found)}'
    )


class ImageFolder:
    """Read a folder of class folders, as torchvision's ImageFolder: sorted class names are the labels.

    The name of a record is the path of its file. Paths are kept packed (about 30 bytes an image, not 150).
    """

    def __init__(self, root: epath.PathLike):
        """List the images below `root`.

        Raises:
          UsageError: when there is no class folder, one is empty, or two differ in case only.
        """
        path = epath.Path(root)
        names = _folders(path)
        if not names:
            raise UsageError(f'{path} holds no class folders. Expected {path}/<class name>/<image>.jpg.')
        _check_case(path, names)
        # Listing waits for the disk or the network, so folders are listed side by side.
        with ThreadPoolExecutor(16) as pool:
            listings = list(pool.map(_list_images, [path / name for name in names]))
        self.root = str(path)
        self.class_names = tuple(names)
        self.labels = np.repeat(np.arange(len(names), dtype=np.int32), [len(listing) for listing in listings])
        self._files = PackedStrings(file for listing in listings for file in listing)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        label = int(self.labels[index])
        name = f'{self.root}/{self.class_names[label]}/{self._files[index]}'
        try:
            encoded = epath.Path(name).read_bytes()
        except OSError as error:
            raise RunError(f'Image {index}, {name}, cannot be read: {error.strerror or error}.') from error
        return {'encoded': encoded, 'label': label, 'name': name}


def _folders(path: epath.Path) -> list[str]:
    """Return the sorted names of the folders in a folder, hidden ones left out."""
    try:
        return sorted(
            entry.name for entry in path.iterdir() if not entry.name.startswith('.') and entry.is_dir()
        )
    except OSError as error:
        raise UsageError(
            f'{path} cannot be listed: {error.strerror or error}. Check its permissions.'
        ) from error


def _check_case(path: epath.Path, names: Sequence[str]) -> None:
    """Refuse classes such as 'Cat' and 'cat': they are one class on many file systems."""
    seen: dict[str, str] = {}
    for name in names:
        if other := seen.setdefault(name.casefold(), name) if name.casefold() in seen else None:
            raise UsageError(
                f'{path} has classes {other!r} and {name!r}, which differ in case only. Rename or merge them.'
            )
        seen[name.casefold()] = name


def _list_images(folder: epath.Path) -> list[str]:
    """Return the sorted paths of the images in a class folder, relative to it."""

    def refuse(error: OSError) -> None:
        raise UsageError(
            f'{error.filename} cannot be listed: {error.strerror}. Check its permissions.'
        ) from error

    files = []
    for place, _, names in folder.walk(on_error=refuse):
        prefix = str(place)[len(str(folder)) :].lstrip('/')
        prefix = f'{prefix}/' if prefix else ''
        files += [prefix + name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != '.']
    if not files:
        raise UsageError(
            f'The class folder {folder} holds no images. Remove it, or add files such as image.jpg.'
        )
    return sorted(files)


class PackedStrings(Sequence[str]):
    """Hold strings in one piece of memory: a million Python strings take five times as much."""

    def __init__(self, strings: Iterable[str]):
        encoded = [string.encode('utf-8', 'surrogateescape') for string in strings]
        self._ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)
        self._text = b''.join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return self._text[start : self._ends[index]].decode('utf-8', 'surrogateescape')


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Show some records of a source, in the given order; labels and class names are the source's."""

    source: Source
    indices: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]


def subset(source: Source, indices: Sequence[int] | np.ndarray) -> Source:
    """Return a view on the records with the given indices, int[M], in that order."""
    indices = np.asarray(indices, dtype=np.int64).reshape(-1)
    if indices.size and not 0 <= indices.min() <= indices.max() < len(source):
        raise UsageError(
            f'Indices {indices.min()} to {indices.max()} do not fit a source of {len(source)} records.'
        )
    return Subset(source, indices.astype(np.int32))


def hold_out(source: Source, fraction: float, seed: int) -> tuple[Source, Source]:
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
    rng = np.random.default_rng(seed)
    # Class after class, shuffled inside each; then every 1/fraction-th record.
    order = np.lexsort((rng.random(len(source)), source.labels))
    steps = np.floor(np.arange(len(source) + 1) * fraction + 0.5)
    held = np.zeros(len(source), dtype=bool)
    held[order] = np.diff(steps) > 0
    return subset(source, np.flatnonzero(~held)), subset(source, np.flatnonzero(held))
