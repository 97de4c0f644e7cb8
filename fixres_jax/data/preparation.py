"""A data set made into ArrayRecord shards: every image checked once, converted to RGB and, if asked, resized once.

Started again, it makes what is missing or damaged and leaves the rest.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath
from PIL import Image

from fixres_jax.core import files
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.core.progress import Progress
from fixres_jax.data import shards, sources
from fixres_jax.data.decoding import decode
from fixres_jax.data.folders import folders

IMAGES_PER_SHARD = 2_000
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

    def make(self, shard: int) -> dict[str, Any]:
        """Write a shard unless it is there and whole; return its entry, with labels, names and what was left out."""
        path = self.out / f'images-{shard:05d}-of-{self.num_shards:05d}.array_record'
        note = path.with_suffix('.json')
        first, last = (len(self.source) * edge // self.num_shards for edge in (shard, shard + 1))
        if note.exists() and path.exists():
            part = json.loads(note.read_text())
            if part['sha256'] == shards.checksum(path):
                _advance(last - first)
                return part
        note.unlink(missing_ok=True)
        part = {'job': self.identity, 'labels': [], 'names': [], 'left_out': []}
        part |= shards.write(path, self._records(range(first, last), part))
        files.write(note, json.dumps(part))
        return part

    def _records(self, indices: range, part: dict[str, Any]) -> Iterator[bytes]:
        for index in indices:
            if _shared and _shared['stop'].is_set():
                raise RunError('Stopped.')
            try:
                record = self.source[index]
                encoded, size = convert(record['encoded'], record['name'], index, self.short_side, self.quality)
            except RunError as error:
                if not self.skip_bad:
                    raise
                part['left_out'].append(str(error))
            else:
                name = '/'.join(record['name'].split('/')[-2:])
                part['labels'].append(record['label'])
                part['names'].append(name)
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


def prepare(job: Job, workers: int, title: str) -> dict[str, int]:
    """Make all shards of a split and its manifest.

    Args:
      job: what to make.
      workers: processes; 0 to work in this one.
      title: for the progress bar.

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
    for partial in job.out.glob('.*.incomplete'):
        partial.unlink()
    (job.out / shards.MANIFEST).unlink(missing_ok=True)
    progress = Progress(title, 0, len(job.source), 1)
    try:
        parts = _run(job, workers, progress)
    finally:
        progress.close()
    left_out = [reason for part in parts for reason in part['left_out']]
    options = {'short_side': job.short_side, 'quality': job.quality}
    shards.write_manifest(job.out, job.source.class_names, parts, options=options, left_out=left_out)
    for reason in left_out:
        log.warning('Left out: %s', reason)
    written = sum(part['count'] for part in parts)
    assert written + len(left_out) == len(job.source)
    return {'written': written, 'left_out': len(left_out), 'bytes': sum(part['bytes'] for part in parts)}


def _job_of(note: epath.Path) -> str:
    """Return the identity of the job that has written a shard's note."""
    try:
        return json.loads(note.read_text())['job']
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f'{note} is damaged. Delete it: its shard is made again.') from error


def _run(job: Job, workers: int, progress: Progress) -> list[dict[str, Any]]:
    """Make the shards in worker processes; the first error stops them all."""
    if not workers:
        return [job.make(shard) for shard in range(job.num_shards)]
    context = multiprocessing.get_context('spawn')
    done, stop = context.Value('q', 0), context.Event()
    with concurrent.futures.ProcessPoolExecutor(workers, context, _share, (done, stop)) as pool:
        waiting = futures = [pool.submit(job.make, shard) for shard in range(job.num_shards)]
        try:
            while waiting:
                finished, waiting = concurrent.futures.wait(waiting, 0.5, concurrent.futures.FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                if done.value:
                    progress.update(done.value)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


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
    if source.startswith(sources.TFDS) or '://' in source:
        return
    root = epath.Path(source).expanduser()
    read = {os.path.realpath(place) for place in (root, *(root / name for name in folders(root)))}
    target = Path(os.path.realpath(out))
    if read & {str(place) for place in (target, *target.parents)}:
        beside = f'{os.path.realpath(root)}-shards'
        raise UsageError(
            f'{out} lies in {source}, which is read: the shards would become a class of it. Give a folder outside, '
            f'such as {beside}.'
        )
