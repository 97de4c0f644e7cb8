"""ArrayRecord shards with a manifest: one folder a split, written by `fixres_jax.prepare`.

A record is a line of JSON ({"label", "name", "size": [width, height] of the original}) and the image's bytes.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source, array_record_module
from etils import epath

from fixres_jax.core import files
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data.folders import PackedStrings

MANIFEST, LABELS, NAMES = 'manifest.json', 'labels.npy', 'names.txt'
FORMAT = 1
REMEDY = 'Run fixres_jax.prepare again: it makes what is lacking.'
# One record a group, and no compression of what JPEG has compressed.
WRITER_OPTIONS, READER_OPTIONS = 'group_size:1,uncompressed', {'max_parallelism': '0'}

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Shard:
    """What array_record asks of a shard, so that it need not open all of them to count."""

    filename: str
    take: int
    examples_in_shard: int
    skip: int = 0


class Shards:
    """Read the shards of one split."""

    def __init__(self, folder: epath.PathLike):
        """Read the manifest and check that its files are there.

        Raises:
          UsageError: for a missing, cut or foreign file, naming it.
        """
        self.root = epath.Path(folder)
        manifest = _read_manifest(self.root / MANIFEST)
        for shard in manifest['shards']:
            path = self.root / shard['file']
            size = path.stat().length if path.exists() else None
            if size != shard['bytes']:
                state = 'is missing' if size is None else f'has {size} bytes, not {shard["bytes"]}'
                raise UsageError(f'The shard {path} {state}. {REMEDY}')
        self.class_names = tuple(manifest['class_names'])
        with _intact(self.root / LABELS) as path, path.open('rb') as file:
            self.labels = np.load(file)
        with _intact(self.root / NAMES) as path:
            self._names = PackedStrings(path.read_text().splitlines())
        count = sum(shard['count'] for shard in manifest['shards'])
        for name, found in ((LABELS, self.labels.shape), (NAMES, (len(self._names),))):
            if found != (count,):
                raise UsageError(f'{self.root / name} has {found[0] if found else 0} entries, not {count}. {REMEDY}')
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            wrong = int(np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))[0])
            raise UsageError(
                f'{self.root / LABELS}: image {wrong} has label {self.labels[wrong]}, but there are '
                f'{len(self.class_names)} classes. Prepare the data again.'
            )
        shards = [_Shard(str(self.root / one['file']), one['count'], one['count']) for one in manifest['shards']]
        facts = [manifest['class_names'], manifest['checksums'], [shard['sha256'] for shard in manifest['shards']]]
        self._fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self._ends = list(itertools.accumulate(shard.take for shard in shards))
        self._files = [shard.filename for shard in shards]
        self._records = array_record_data_source.ArrayRecordDataSource(shards, reader_options=READER_OPTIONS)

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Return a hash of the records, labels, names and classes."""
        return self._fingerprint

    def name(self, index: int) -> str:
        return self._names[index]

    def __getitem__(self, index: int) -> Record:
        try:
            return unpack(self._records[index])
        except Exception as error:  # array_record raises bare errors of several kinds
            shard = self._files[int(np.searchsorted(self._ends, index, side='right'))]
            raise RunError(
                f'Image {index} cannot be read from the shard {shard}, which is damaged or gone. '
                'Delete it and run fixres_jax.prepare again.'
            ) from error


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
        if version == FORMAT:
            kinds = {'file': str, 'bytes': int, 'count': int, 'sha256': str}
            for shard in manifest['shards']:
                wrong = [name for name, kind in kinds.items() if not isinstance(shard[name], kind)]
                if wrong:
                    raise TypeError(f'{wrong[0]} is {shard[wrong[0]]!r}')
            if not all(isinstance(name, str) for name in manifest['class_names']):
                raise TypeError('a class name is no text')
            manifest['checksums'].items()
    if version != FORMAT:
        raise UsageError(f'{path} has format {version}; expected {FORMAT}.')
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


def write(path: epath.Path, records: Sequence[bytes]) -> dict[str, Any]:
    """Write a shard; it gets its final name when it is whole.

    Returns:
      {'file', 'bytes', 'count', 'sha256'}, its entry in the manifest.
    """
    with files.whole(path) as partial:
        writer = array_record_module.ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        count = 0
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
        return {'file': path.name, 'bytes': partial.stat().length, 'count': count, 'sha256': checksum(partial)}


def checksum(path: epath.PathLike) -> str:
    """Return the SHA-256 of a file."""
    with open(os.fspath(path), 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def write_manifest(folder: epath.Path, class_names: Sequence[str], parts: Sequence[dict[str, Any]], **more) -> None:
    """Write what `Shards` reads besides the shards, the manifest last.

    Args:
      folder: where the shards are.
      class_names: names of the labels.
      parts: for each shard its entry, 'labels' and 'names'.
      **more: further facts to keep in the manifest.
    """
    labels = np.array([label for part in parts for label in part['labels']], np.int32)
    with (folder / LABELS).open('wb') as file:
        np.save(file, labels)
    (folder / NAMES).write_text(''.join(f'{name}\n' for part in parts for name in part['names']))
    manifest = {
        'format': FORMAT,
        'records': len(labels),
        'class_names': list(class_names),
        'shards': [{key: part[key] for key in ('file', 'bytes', 'count', 'sha256')} for part in parts],
        'checksums': {name: checksum(folder / name) for name in (LABELS, NAMES)},
        **more,
    }
    files.write(folder / MANIFEST, json.dumps(manifest, indent=1))
