"""A data set made into ArrayRecord shards: every image checked once, converted to RGB and, if asked, resized once.

Started again, it makes what is missing or damaged and leaves the rest.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath
from PIL import Image

from fixres_jax.core import files
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.core.progress import Progress
from fixres_jax.data import shards, sources
from fixres_jax.data.decoding import decode
from fixres_jax.data.folders import folders

IMAGES_PER_SHARD, MAX_SHARDS = 2_000, 99_999
log = logging.getLogger('fixres_jax')
_shared: dict[str, Any] = {}  # in a worker: the count of images done, and whether to stop


@dataclasses.dataclass(frozen=True)
class Job:
    """What to make of one split.

    Attributes:
      source: where the images come from.
      fingerprint: of the source: other images, or the same of other sizes, have another.
      out: folder of the split's shards.
      num_shards: how many; a shard holds neighbouring images.
      short_side: pixels that a longer shorter side is resized to; 0 to keep sizes.
      quality: of the JPEG files written for images that had to be changed.
      skip_bad: leave out images that cannot be decoded, instead of stopping.
    """

    source: sources.Source
    fingerprint: str
    out: epath.Path
    num_shards: int
    short_side: int
    quality: int
    skip_bad: bool

    @property
    def identity(self) -> str:
        """Name what the shards hold, so that no other job goes on with them."""
        facts = (self.fingerprint, self.num_shards, self.short_side, self.quality, self.skip_bad)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def path(self, shard: int) -> epath.Path:
        return self.out / f'images-{shard:05d}-of-{self.num_shards:05d}.array_record'

    def order(self, shard: int) -> 'Order':
        """Return what a worker must know to make one shard, and no more."""
        first, last = (len(self.source) * edge // self.num_shards for edge in (shard, shard + 1))
        source = sources.part(self.source, first, last)
        options = (self.short_side, self.quality, self.skip_bad)
        return Order(self.identity, source, self.path(shard), range(first, last), *options)

    def notes(self) -> Iterator[dict[str, Any]]:
        """Iterate over what the workers noted of the shards, in order; a few files are read ahead.

        Raises:
          RunError: for a shard that was not made, or a bad image in one.
        """
        with concurrent.futures.ThreadPoolExecutor(shards.SIDE_BY_SIDE) as pool:
            for first in range(0, self.num_shards, shards.SIDE_BY_SIDE):
                numbers = range(first, min(first + shards.SIDE_BY_SIDE, self.num_shards))
                yield from pool.map(_read_note, [_note_of(self.path(number)) for number in numbers])


@dataclasses.dataclass(frozen=True)
class Order:
    """One shard to make: the same work in whatever process it is done.

    Attributes:
      job: identity of the job.
      source: gives the records of `indices`.
      path: of the shard.
      indices: of its records in the source.
      short_side, quality, skip_bad: as in `Job`.
    """

    job: str
    source: sources.Source
    path: epath.Path
    indices: range
    short_side: int
    quality: int
    skip_bad: bool

    def make(self) -> None:
        """Write the shard and its note, unless they are there and whole."""
        place = _note_of(self.path)
        if place.exists() and self.path.exists():
            if json.loads(place.read_text()).get('sha256') == shards.checksum(self.path):
                _advance(len(self.indices))
                return
        place.unlink(missing_ok=True)
        note = {'job': self.job, 'labels': [], 'names': [], 'left_out': []}
        note |= shards.write(self.path, self._records(note))
        files.write(place, json.dumps(note), mark=uuid.uuid4().hex)

    def fail(self, error: RunError) -> None:
        """Note why the shard cannot be made."""
        note = {'job': self.job, 'error': str(error)}
        files.write(_note_of(self.path), json.dumps(note), mark=uuid.uuid4().hex)

    def _records(self, note: dict[str, Any]) -> Iterator[bytes]:
        for index in self.indices:
            if _shared and _shared['stop'].is_set():
                raise RunError('Stopped.')
            try:
                record = self.source[index]
                if '\n' in record['name']:
                    raise RunError(f'Image {index}, {record["name"]!r}, has a line break in its name: rename the file.')
                encoded, size = convert(record['encoded'], record['name'], index, self.short_side, self.quality)
            except RunError as error:
                if not self.skip_bad:
                    raise
                note['left_out'].append(str(error))
            else:
                name = '/'.join(record['name'].split('/')[-2:])
                note['labels'].append(record['label'])
                note['names'].append(name)
                yield shards.pack(encoded, record['label'], name, size)
            _advance(1)


def convert(encoded: bytes, name: str, index: int, short_side: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """Check an image, and change what training would have to change every time.

    Files in RGB or grey that need no resizing keep their bytes. The others become JPEG files with a restart marker
    a row of blocks, which lets training decode only the rows of a crop.

    Args:
      encoded: the image's file.
      name: for messages.
      index: for messages.
      short_side: pixels that a longer shorter side is resized to (Lanczos); 0 to keep the size.
      quality: of the JPEG file.

    Returns:
      (encoded, (width, height) of the original).

    Raises:
      RunError: when it cannot be decoded.
    """
    image = decode(encoded, name, index)
    size, mode = image.size, Image.open(io.BytesIO(encoded)).mode
    shrink = short_side and min(size) > short_side
    if not shrink and mode in ('RGB', 'L'):
        return encoded, size
    if shrink:
        shorter = min(size)
        target = tuple(short_side * length // shorter for length in size)
        image = image.resize(target, Image.Resampling.LANCZOS)
    if mode == 'L':
        image = image.convert('L')
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=quality, optimize=True, restart_marker_rows=1)
    return buffer.getvalue(), size


def num_shards(images: int) -> int:
    """Return how many shards a split is made into unless told: no more than a manifest can list quickly."""
    return min(-(-images // IMAGES_PER_SHARD), MAX_SHARDS)


def prepare(job: Job, engine: Callable[[Job], None]) -> dict[str, int]:
    """Make all shards of a split and its manifest.

    Args:
      job: what to make.
      engine: makes every shard of a job by its order, somewhere.

    Returns:
      {'written', 'left_out', 'bytes'}.

    Raises:
      UsageError: when the folder holds shards of another job.
      RunError: for an image that cannot be decoded, unless those are left out.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    for note in sorted(job.out.glob('images-*.json')):
        if _job_of(note) != job.identity:
            raise UsageError(
                f'{job.out} holds shards of other images or options: since they were made, an image of the source was '
                'added, removed or changed, or an option is another. Give another folder, or delete this one.'
            )
    (job.out / shards.MANIFEST).unlink(missing_ok=True)
    _sweep(job.out)
    engine(job)
    _sweep(job.out)
    options = {'short_side': job.short_side, 'quality': job.quality}
    manifest = shards.write_manifest(job.out, job.source.class_names, job.notes(), options=options)
    for reason in manifest['left_out']:
        log.warning('Left out: %s', reason)
    written, left_out = manifest['records'], len(manifest['left_out'])
    assert written + left_out == len(job.source)
    return {'written': written, 'left_out': left_out, 'bytes': sum(entry['bytes'] for entry in manifest['shards'])}


def _sweep(folder: epath.Path) -> None:
    """Remove what workers have left that were killed."""
    for partial in folder.glob('.*.incomplete'):
        partial.unlink(missing_ok=True)


def _note_of(path: epath.Path) -> epath.Path:
    """Return the file beside a shard: its entry in the manifest, its labels and names, and what was left out."""
    return path.with_suffix('.json')


def _read_note(path: epath.Path) -> dict[str, Any]:
    note = (
        json.loads(path.read_text()) if path.exists() else {'error': 'it was not made: start the same command again.'}
    )
    if 'error' in note:
        raise RunError(f'{path.with_suffix(".array_record")}: {note["error"]}')
    return note


def _job_of(note: epath.Path) -> str:
    """Return the identity of the job that has written a shard's note."""
    try:
        return json.loads(note.read_text())['job']
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{note} is damaged. Delete it: its shard is made again.') from error


def run_here(job: Job, workers: int) -> None:
    """Make the shards in worker processes of this machine; the first error stops them all.

    Args:
      job: what to make.
      workers: processes; 0 to work in this one.
    """
    orders = map(job.order, range(job.num_shards))
    if not workers:
        for order in orders:
            order.make()
        return
    context = multiprocessing.get_context('spawn')
    done, stop = context.Value('q', 0), context.Event()
    progress = Progress(f'prepare {job.out.name}', 0, len(job.source), 1)
    with concurrent.futures.ProcessPoolExecutor(workers, context, _share, (done, stop)) as pool:
        waiting = {pool.submit(order.make) for order in itertools.islice(orders, 2 * workers)}
        try:
            while waiting:
                finished, waiting = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_COMPLETED)
                for future in finished:
                    future.result()
                waiting |= {pool.submit(order.make) for order in itertools.islice(orders, len(finished))}
                if done.value:
                    progress.update(done.value)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            progress.close()


def _share(done: Any, stop: Any) -> None:
    _shared.update(done=done, stop=stop)


def _advance(count: int) -> None:
    if _shared:
        with _shared['done'].get_lock():
            _shared['done'].value += count


def check_apart(source: str, out: epath.Path) -> None:
    """Refuse to write into the folders that are read: what is written would become a class of the next run.

    Args:
      source: as given; folders in it may be links to elsewhere.
      out: of one split.
    """
    if source.startswith(sources.TFDS):
        return
    real = str if '://' in source or '://' in str(out) else os.path.realpath
    root = epath.Path(source).expanduser()
    read = {real(place) for place in (root, *(root / name for name in folders(root)))}
    target = epath.Path(real(out))
    if read & {str(place) for place in (target, *target.parents)}:
        raise UsageError(
            f'{out} lies in {source}, which is read: the shards would become a class of it. Give a folder outside, '
            f'such as {real(root)}-shards.'
        )
