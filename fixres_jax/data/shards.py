"""ArrayRecord shards with a manifest: one folder a split, written by `fixres_jax.prepare`.

A record is a line of JSON ({"label", "name", "size": [width, height] of the original}) and the image's bytes. Labels,
names and hashes of names also stand in files of their own, one entry a record, which are mapped and not read: opening
a billion records takes the memory of their shards' entries in the manifest.
"""

import contextlib
import copy
import functools
import hashlib
import io
import json
import os
import resource
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from array_record.python import array_record_module
from etils import epath

from fixres_jax.core import files
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import digests as hashes

MANIFEST, LABELS, NAMES, DIGESTS = 'manifest.json', 'labels.bin', 'names.txt', 'digests.bin'
FORMAT = 2
OLD_LABELS = 'labels.npy'  # of format 1, which has no hashes and does not say where the names of a shard begin
REMEDY = 'Run fixres_jax.prepare again: it makes what is lacking.'
# One record a group, and no compression of what JPEG has compressed.
WRITER_OPTIONS, READER_OPTIONS = 'group_size:1,uncompressed', 'readahead_buffer_size:0,max_parallelism:0'
READ_AHEAD = 32_768  # bytes: a record of a resized image
# An open shard takes a file descriptor and 8 bytes a record: not all of a large data set may be open.
OPEN_SHARDS = min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] * 3 // 4)
SIDE_BY_SIDE = 16  # requests to a disk or a bucket
PIECE = 2**22  # labels checked, or bytes searched, at once

Record = dict[str, Any]


class Shards:
    """Read the shards of one split."""

    _first = _first_name = 0  # number of the first record, and of the first byte of its name, that is known here

    def __init__(self, folder: epath.PathLike):
        """Read the manifest and check that its files are there and as long as they should be.

        Raises:
          UsageError: for a missing, cut or foreign file, naming it.
        """
        self.root = epath.Path(folder)
        manifest = _read_manifest(self.root / MANIFEST)
        entries = manifest['shards']
        self._old = manifest['format'] == 1
        self._files = [f'{self.root}/{entry["file"]}' for entry in entries]
        self._ends = np.cumsum([entry['count'] for entry in entries], dtype=np.int64)
        self.class_names = tuple(manifest['class_names'])
        _check_sizes(self.root, {entry['file']: entry['bytes'] for entry in entries})
        if self._old:
            self._name_ends = _ends_of_names(self.root / NAMES, self._ends)
        else:
            self._name_ends = np.cumsum([entry['name_bytes'] for entry in entries], dtype=np.int64)
            names = int(self._name_ends[-1]) if entries else 0
            _check_sizes(self.root, {LABELS: 4 * len(self), DIGESTS: 8 * len(self), NAMES: names})
        facts = [manifest['class_names'], manifest['checksums'], [entry['sha256'] for entry in entries]]
        self._fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        if len(self) <= PIECE or self._old:
            _ = self.labels  # Few are checked at once, many when they are used.

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ('labels', 'digests')}  # mapped anew

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Labels of all records, int32[N], mapped from their file and checked."""
        with _intact(self.root / (OLD_LABELS if self._old else LABELS)) as path:
            labels = _mapped_npy(path) if self._old else _mapped(path, '<i4')
        if labels.shape != (len(self),):
            raise UsageError(f'{path} has {len(labels) if labels.ndim else 0} entries, not {len(self)}. {REMEDY}')
        for first in range(0, len(labels), PIECE):
            piece = labels[first : first + PIECE]
            wrong = np.flatnonzero((piece < 0) | (piece >= len(self.class_names)))
            if len(wrong):
                raise UsageError(
                    f'{path}: image {first + wrong[0]} has label {piece[wrong[0]]}, but there are '
                    f'{len(self.class_names)} classes. Prepare the data again.'
                )
        return labels

    @functools.cached_property
    def digests(self) -> np.ndarray | None:
        """Hashes of all names, uint64[N] (see `digests.digest`), mapped from their file; None in format 1."""
        if self._old:
            return None
        with _intact(self.root / DIGESTS) as path:
            return _mapped(path, '<u8')

    def part(self, first: int, last: int) -> 'Shards':
        """Return a copy that knows only the shards of the records [first, last), under their numbers here."""
        low, high = np.searchsorted(self._ends, first, side='right'), np.searchsorted(self._ends, last) + 1
        part = copy.copy(self)
        part._files, part._ends, part._name_ends = (
            self._files[low:high],
            self._ends[low:high],
            self._name_ends[low:high],
        )
        if low:
            part._first, part._first_name = int(self._ends[low - 1]), int(self._name_ends[low - 1])
        return part

    def fingerprint(self) -> str:
        """Return a hash of the records, labels, names and classes."""
        return self._fingerprint

    def name(self, index: int) -> str:
        shard, place = self._place(index)
        start, stop = self._name_ends[shard - 1] if shard else self._first_name, self._name_ends[shard]
        return _names(str(self.root / NAMES), int(start), int(stop), self._fingerprint)[place]

    def __getitem__(self, index: int) -> Record:
        shard, place = self._place(index)
        path = self._files[shard]
        try:
            return unpack(_reader(path, self._fingerprint).read([place])[0])
        except Exception as error:  # array_record raises bare errors of several kinds
            raise RunError(
                f'Image {index} cannot be read from the shard {path}, which is damaged or gone. '
                'Delete it and run fixres_jax.prepare again.'
            ) from error

    def _place(self, index: int) -> tuple[int, int]:
        """Return (shard, place in it) of a record."""
        index = range(len(self))[index]
        shard = int(self._ends.searchsorted(index, side='right'))
        return shard, index - int(self._ends[shard - 1] if shard else self._first)


# The fingerprint tells shards apart that were made one after the other in the same place. A reader that nobody holds
# any more closes its file.
@functools.lru_cache(maxsize=OPEN_SHARDS)
def _reader(path: str, fingerprint: str) -> Any:
    return array_record_module.ArrayRecordReader(path, READER_OPTIONS, file_reader_buffer_size=READ_AHEAD)


@functools.lru_cache(maxsize=4)
def _names(path: str, start: int, stop: int, fingerprint: str) -> list[str]:
    """Return the names of one shard's records, which lie together in the file."""
    with _intact(epath.Path(path)) as place, place.open('rb') as file:
        file.seek(start)
        return file.read(stop - start).decode('utf-8', 'surrogateescape').split('\n')[:-1]


def _mapped(path: epath.Path, dtype: str) -> np.ndarray:
    """Return a file's numbers without reading them; those in a bucket cannot be mapped, and are read."""
    if '://' in str(path):
        return np.frombuffer(path.read_bytes(), dtype)
    return np.asarray(np.memmap(path, dtype, 'r')) if os.path.getsize(path) else np.empty(0, dtype)


def _mapped_npy(path: epath.Path) -> np.ndarray:
    if '://' in str(path):
        return np.load(io.BytesIO(path.read_bytes()))
    return np.asarray(np.load(path, mmap_mode='r'))


def _check_sizes(root: epath.Path, sizes: dict[str, int]) -> None:
    """Refuse files of other sizes than expected, {name: bytes}, or that are not there."""
    if '://' in str(root):
        list(root.iterdir())  # One listing has the sizes of all, and the library keeps it.
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        found = pool.map(_size, (str(root / name) for name in sizes), chunksize=256)
        for (name, expected), size in zip(sizes.items(), found, strict=True):
            if size != expected:
                state = 'is missing' if size is None else f'has {size} bytes, not {expected}'
                raise UsageError(f'{root / name} {state}. {REMEDY}')


def _size(name: str) -> int | None:
    try:
        return epath.Path(name).stat().length if '://' in name else os.stat(name).st_size
    except OSError:
        return None


def _ends_of_names(path: epath.Path, ends: np.ndarray) -> np.ndarray:
    """Return where the names of each shard end in a file of names, int64[shards].

    Args:
      path: the file, a name a line.
      ends: how many names there are up to the end of each shard, int64[shards].
    """
    found, lines, position = [np.zeros((ends == 0).sum(), np.int64)], 0, 0
    with _intact(path), path.open('rb') as file:
        while piece := file.read(PIECE):
            breaks = position + 1 + np.flatnonzero(np.frombuffer(piece, np.uint8) == ord('\n'))
            here = ends[(ends > lines) & (ends <= lines + len(breaks))]
            found.append(breaks[here - lines - 1])
            lines, position = lines + len(breaks), position + len(piece)
    if lines != (ends[-1] if len(ends) else 0):
        raise UsageError(f'{path} has {lines} entries, not {ends[-1] if len(ends) else 0}. {REMEDY}')
    return np.concatenate(found)


def found_in(folder: epath.Path) -> bool:
    """Say whether a folder is one of shards, complete or not."""
    return (folder / MANIFEST).exists() or any(folder.glob('images-*.array_record'))


def _read_manifest(path: epath.Path) -> dict[str, Any]:
    """Return a manifest that has all that is read from it."""
    if not path.exists():
        raise UsageError(
            f'{path.parent} holds shards but no {MANIFEST}: they are not all there, or it was lost. {REMEDY}'
        )
    with _intact(path):
        manifest = json.loads(path.read_text())
        version = manifest.get('format')
        if version in (1, FORMAT):
            kinds = {'file': str, 'bytes': int, 'count': int, 'sha256': str}
            kinds |= {'name_bytes': int} if version > 1 else {}
            for shard in manifest['shards']:
                wrong = [name for name, kind in kinds.items() if not isinstance(shard[name], kind)]
                if wrong:
                    raise TypeError(f'{wrong[0]} is {shard[wrong[0]]!r}')
            if not all(isinstance(name, str) for name in manifest['class_names']):
                raise TypeError('a class name is no text')
            manifest['checksums'].items()
    if version not in (1, FORMAT):
        raise UsageError(f'{path} has format {version}; expected 1 or {FORMAT}.')
    return manifest


@contextlib.contextmanager
def _intact(path: epath.Path) -> Iterator[epath.Path]:
    """Turn what goes wrong in reading a file into one line."""
    try:
        yield path
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:160]
        raise UsageError(f'{path} is missing or damaged ({reason}). {REMEDY}') from error


def pack(encoded: bytes, label: int, name: str, size: tuple[int, int]) -> bytes:
    """Return the bytes of a record."""
    return json.dumps({'label': label, 'name': name, 'size': size}).encode() + b'\n' + encoded


def unpack(data: bytes) -> Record:
    """Return the record of its bytes."""
    head, _, encoded = data.partition(b'\n')
    return json.loads(head) | {'encoded': encoded}


def write(path: epath.Path, records: Iterable[bytes]) -> dict[str, Any]:
    """Write a shard; it gets its final name when it is whole.

    Several workers may write the same one, as a runner does that doubts the first: each has a file of its own until
    the end, and the shards are the same.

    Returns:
      {'file', 'bytes', 'count', 'sha256'}, its entry in the manifest.
    """
    with _place_for(path) as place:
        writer = array_record_module.ArrayRecordWriter(str(place), WRITER_OPTIONS)
        count = 0
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
        return {'file': path.name, 'bytes': os.path.getsize(place), 'count': count, 'sha256': checksum(place)}


@contextlib.contextmanager
def _place_for(path: epath.Path) -> Iterator[epath.Path]:
    """Give a file of this machine that becomes the one at `path`."""
    if '://' not in str(path):
        with files.whole(path, mark=uuid.uuid4().hex) as partial:
            yield partial
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = epath.Path(scratch) / path.name
        yield place
        with place.open('rb') as source, path.open('wb') as target:
            shutil.copyfileobj(source, target, PIECE)


def checksum(path: epath.PathLike) -> str:
    """Return the SHA-256 of a file."""
    with epath.Path(path).open('rb') as file:
        total = hashlib.sha256()
        while piece := file.read(PIECE):
            total.update(piece)
        return total.hexdigest()


def write_manifest(
    folder: epath.Path, class_names: Sequence[str], notes: Iterable[dict[str, Any]], **more
) -> dict[str, Any]:
    """Write what `Shards` reads besides the shards, the manifest last.

    Args:
      folder: where the shards are.
      class_names: names of the labels.
      notes: for each shard its entry, 'labels', 'names' and 'left_out'; one is looked at after the other.
      **more: further facts to keep in the manifest.

    Returns:
      The manifest.
    """
    entries, left_out, sums = [], [], {name: hashlib.sha256() for name in (LABELS, NAMES, DIGESTS)}
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context((folder / name).open('wb')) for name in sums}
        for note in notes:
            digests = map(hashes.digest, note['names'], (class_names[label] for label in note['labels']))
            parts = {
                LABELS: np.array(note['labels'], '<i4').tobytes(),
                NAMES: ''.join(f'{name}\n' for name in note['names']).encode('utf-8', 'surrogateescape'),
                DIGESTS: np.fromiter(digests, '<u8').tobytes(),
            }
            for name, part in parts.items():
                opened[name].write(part)
                sums[name].update(part)
            entry = {key: note[key] for key in ('file', 'bytes', 'count', 'sha256')}
            entries.append(entry | {'name_bytes': len(parts[NAMES])})
            left_out += note['left_out']
    manifest = {
        'format': FORMAT,
        'records': sum(entry['count'] for entry in entries),
        'class_names': list(class_names),
        'shards': entries,
        'checksums': {name: total.hexdigest() for name, total in sums.items()},
        **more,
        'left_out': left_out,
    }
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
    (folder / OLD_LABELS).unlink(missing_ok=True)
    return manifest
