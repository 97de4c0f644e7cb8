"""Images as people hold them, as sources: arrays, lists, data sets of other libraries, folders and single files.

A source made here keeps what it was given and encodes an image when it is read, without loss. One without labels has
-1 for each.
"""

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from fixres_jax.core import files
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import shards, sources
from fixres_jax.data.folders import IMAGE_SUFFIXES, folders
from fixres_jax.data.sources import UNKNOWN, Record, Source

LABELS = ('label', 'labels', 'fine_label', 'target', 'class')  # of a record that is a dict
IMAGES = ('image', 'img', 'pixel_values', 'jpg', 'png')
SPLITS = {'train': ('train',), 'test': ('val', 'test')}  # purpose -> the splits that serve it, the best first
KINDS = (
    'a folder of class folders, prepared shards, tfds:NAME, (images uint8[N, H, W, 3], labels), a data set with len() '
    'and [i], or (image, label) pairs'
)


class Given:
    """A source over any sequence of images.

    Attributes:
      labels: int32[N]; all UNKNOWN where there are none.
      class_names: of the labels; () where nobody says them.
    """

    def __init__(self, items: Sequence[Any], labels: Any = None, class_names: Sequence[str] = (), names: Any = None):
        """Hold images: paths, bytes of files, Pillow images, or uint8[H, W, 3] or [H, W].

        Raises:
          UsageError: for none, or a number of labels that is not that of the images.
        """
        self._items, self._names, self._lock = items, names, threading.Lock()
        self.labels, self.class_names = _labels(labels, tuple(map(str, class_names)), len(items))
        if not len(items):
            raise UsageError('No images were given.')

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != '_lock'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self._items)

    def name(self, index: int) -> str:
        return self._names[index] if self._names is not None else f'image {index}'

    def __getitem__(self, index: int) -> Record:
        with self._lock:  # Data sets of others do not promise that several threads may read them.
            item = self._items[index]
        name = self.name(index)
        return {'encoded': encode(item, name), 'label': int(self.labels[index]), 'name': name}


def _labels(labels: Any, class_names: tuple[str, ...], count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (int32[N], class names) of labels that may be numbers or names."""
    if labels is None:
        return np.full(count, UNKNOWN, np.int32), class_names
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) != count:
        raise UsageError(f'labels of shape {labels.shape} do not fit {count} images: expected one each.')
    if labels.dtype.kind in 'UO' and all(isinstance(label, str) for label in labels.tolist()):
        class_names = class_names or tuple(sorted(set(labels.tolist())))
        places = {name: place for place, name in enumerate(class_names)}
        if unknown := sorted(set(labels.tolist()) - places.keys()):
            raise UsageError(f'The label {unknown[0]!r} is not among the {len(class_names)} class names.')
        labels = np.array([places[name] for name in labels.tolist()])
    if labels.dtype.kind not in 'iu':
        raise UsageError(f'labels are {labels.dtype}: expected whole numbers or names of classes.')
    if count and (labels.min() < 0 or (class_names and labels.max() >= len(class_names))):
        last = len(class_names) - 1 if class_names else 'the last class'
        raise UsageError(f'labels go from {labels.min()} to {labels.max()}: expected 0 to {last}.')
    return labels.astype(np.int32), class_names


def encode(item: Any, name: str = 'image') -> bytes:
    """Return an image as the bytes of an image file, with its pixels as they are.

    Args:
      item: a path, bytes of an image file, {'bytes', 'path'}, a Pillow image, or uint8[H, W, 3] or [H, W].
      name: for messages.

    Raises:
      UsageError: for anything else.
      RunError: for a file that cannot be read.
    """
    if isinstance(item, dict) and {'bytes', 'path'} & item.keys():  # of Hugging Face, not decoded
        item = item.get('bytes') or item.get('path')
    if isinstance(item, bytes):
        return item
    if isinstance(item, (str, os.PathLike)):
        try:
            return epath.Path(item).read_bytes()
        except OSError as error:
            raise RunError(f'Image {item} cannot be read: {error.strerror or error}.') from error
    if isinstance(item, Image.Image):
        if item.mode in ('RGB', 'L'):
            return _portable(np.asarray(item))
        buffer = io.BytesIO()  # What other modes mean is settled where files are decoded.
        item.save(buffer, 'TIFF' if item.mode == 'CMYK' else 'PNG')
        return buffer.getvalue()
    array = np.asarray(item)
    if array.ndim == 3 and array.shape[-1] not in (1, 3) and array.shape[0] == 3:
        raise UsageError(f'{name} has shape {array.shape}: expected [height, width, 3], the colours last.')
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3)):
        raise UsageError(f'{name} is {array.dtype}{list(array.shape)}: expected uint8[height, width, 3].')
    return _portable(array)


def _portable(array: np.ndarray) -> bytes:
    """Return uint8[H, W, 3], [H, W, 1] or [H, W] in Netpbm's format, which is a line and the pixels."""
    kind = 'P6' if array.ndim == 3 and array.shape[-1] == 3 else 'P5'
    return f'{kind} {array.shape[1]} {array.shape[0]} 255\n'.encode() + np.ascontiguousarray(array).tobytes()


def labelled(data: Any, purpose: str) -> tuple[Source, str]:
    """Open labelled images of any kind.

    Args:
      data: see `KINDS`.
      purpose: 'train' or 'test': which split is taken where there are several.

    Returns:
      The source, whose class_names are () where nobody says them, and what to call it.

    Raises:
      UsageError: for anything else, or for images without labels.
    """
    if isinstance(data, (str, os.PathLike)):
        return _folder(str(data), purpose)
    if isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], 'shape'):
        if (shape := np.shape(data[0])) and len(shape) != 4:
            raise UsageError(f'images have shape {shape}: expected uint8[N, height, width, 3].')
        return Given(*data), 'the arrays'
    if all(hasattr(data, name) for name in ('labels', 'class_names', 'name')):
        return data, 'the source'
    if isinstance(data, (dict, bytes)) or not hasattr(data, '__iter__') and not hasattr(data, '__getitem__'):
        named = f' with {", ".join(map(str, data))}: give one of its parts, or' if isinstance(data, dict) else ':'
        raise UsageError(f'data is {type(data).__name__}{named} expected {KINDS}.')
    if hasattr(data, '__getitem__') and hasattr(data, '__len__') and not isinstance(data, (list, tuple)):
        return _dataset(data), f'the {type(data).__name__}'
    pairs = [_pair(item, index) for index, item in enumerate(data)]
    return Given([image for image, _ in pairs], [label for _, label in pairs]), 'the images'


def _folder(spec: str, purpose: str) -> tuple[Source, str]:
    found = sources.splits(spec)
    if found == ['']:
        return sources.create(spec, ''), spec
    wanted = [name for known in SPLITS[purpose] for name in next(s for s in sources.SPLIT_NAMES if known in s)]
    split = next((name for name in wanted if name in found), None)
    if split is None:
        listed = ', '.join(found)
        raise UsageError(f'{spec} has the splits {listed} and none of {", ".join(wanted)}: give {spec}/{found[0]}.')
    return sources.create(spec, split), f'{spec}, split {split}' if ':' in spec else f'{spec}/{split}'


def _pair(item: Any, index: int) -> tuple[Any, Any]:
    """Return (image, label) of a record of any data set."""
    if isinstance(item, dict):
        image, label = (next((key for key in keys if key in item), None) for keys in (IMAGES, LABELS))
        if image and label:
            return item[image], item[label]
    elif isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    what = f'a dict with {", ".join(map(str, item))}' if isinstance(item, dict) else type(item).__name__
    raise UsageError(f'Record {index} of the data is {what}: expected (image, label), or a dict with image and label.')


class _Images(Sequence[Any]):
    """The images of a data set of another library."""

    def __init__(self, data: Any):
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index):
        return _pair(self._data[index], index)[0]


def _dataset(data: Any) -> Source:
    """Wrap a data set of Hugging Face, torch or another library that has len() and [i]."""
    features = getattr(data, 'features', None)
    column = next((name for name in LABELS if name in features), None) if isinstance(features, dict) else None
    if column:
        names = getattr(features[column], 'names', None) or ()
        return Given(_Images(data), list(data[column]), names)
    labels = getattr(data, 'targets', None)  # of torchvision
    if labels is None:
        labels = [_pair(data[index], index)[1] for index in range(len(data))]
    labels = [getattr(label, 'item', lambda label=label: label)() for label in labels]
    return Given(_Images(data), labels, getattr(data, 'classes', None) or ())


def images(data: Any) -> tuple[Source, str]:
    """Open images of any kind for what needs no labels; those that have some keep them.

    Args:
      data: an image as `encode` takes it, several, a folder of images or of class folders, or what `labelled` takes.

    Returns:
      The source, and what to call it.

    Raises:
      UsageError: when there are no images.
    """
    if isinstance(data, (str, os.PathLike)) and not str(data).startswith(sources.TFDS):
        path = files.reachable(data).expanduser()
        if path.is_dir():
            whole = shards.found_in(path) or (folders(path) and not _in(path))
            return _folder(str(path), 'test') if whole else (_flat(path), str(path))
        if not path.exists():
            raise UsageError(f'There is no image and no folder {str(data)!r}.')
        return Given([str(path)], names=[str(path)]), str(path)
    if isinstance(data, (bytes, Image.Image)):
        return Given([data]), 'the image'
    if hasattr(data, 'shape') and hasattr(data, 'dtype'):
        array = np.asarray(data)
        return Given(array if array.ndim == 4 else [array]), 'the arrays'
    if isinstance(data, (list, tuple)) and data and all(_is_image(item) for item in data):
        names = [str(item) if isinstance(item, (str, os.PathLike)) else f'image {i}' for i, item in enumerate(data)]
        return Given(list(data), names=names), 'the images'
    return labelled(data, 'test')


def _is_image(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike, bytes, Image.Image)) or hasattr(item, 'shape') and len(item.shape) > 1


def _in(folder: epath.Path) -> list[epath.Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != '.')


def _flat(folder: epath.Path) -> Source:
    """Return the images in a folder, without labels."""
    paths = _in(folder)
    if not paths:
        raise UsageError(f'{folder} holds no images ({", ".join(IMAGE_SUFFIXES)}) and no folders of them.')
    names = [str(path) for path in paths]
    return Given(names, names=names)


def is_single(data: Any) -> bool:
    """Say whether data is one image and not several."""
    if isinstance(data, (str, os.PathLike)):
        return not str(data).startswith(sources.TFDS) and not Path(data).expanduser().is_dir()
    return isinstance(data, (bytes, Image.Image)) or getattr(data, 'ndim', 4) < 4


def named(source: Source, class_names: Sequence[str]) -> Source:
    """Return a source with names for its classes, where it has none: its labels count through them.

    Raises:
      UsageError: for a label that is beyond them.
    """
    if source.class_names or not isinstance(source, Given):
        return source
    if source.labels.max() >= len(class_names):
        raise UsageError(f'The labels go up to {source.labels.max()}, and the network has {len(class_names)} classes.')
    return Given(source._items, source.labels if source.labels.max() >= 0 else None, class_names, source._names)
