"""Batches of uint8 images from a source: a pure function of (seed, step), run by grain.

Training samples are numbered through the whole run: step s has the numbers [s * batch_size, (s + 1) * batch_size).
The number alone decides the epoch, the record and the random draws, so that nothing depends on hosts, workers,
threads or resumes.
"""

import contextlib
import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np
from absl import flags

from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data.decoding import EncodedImage
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform

LISTED = 2**24  # records whose order is kept as a list
CHUNK = 64  # images that a worker hands over at once: few enough to keep buffers small with many workers
_ORDER, _AUGMENTATION = 0, 1  # random streams
_PLACE = 'place'  # of a chunk's images in their batch

Batch = dict[str, Any]
PREFETCH = 2  # batches held ready


@dataclasses.dataclass(frozen=True)
class Readers:
    """Say who reads images, and which part of each global batch. What is read does not depend on it.

    Attributes:
      host: this host takes the host-th of the `num_hosts` equal parts of each global batch.
      num_hosts: hosts that share a batch.
      workers: processes that decode; 0 for none, only threads.
      threads: decoding threads in each process.
    """

    host: int = 0
    num_hosts: int = 1
    workers: int = 0
    threads: int = 4


ONE_PROCESS = Readers()


def train_batches(
    source: Source,
    transform: Transform | Mapping[int, Transform],
    readers: Readers = ONE_PROCESS,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    repeats: int = 1,
) -> Generator[Batch, None, None]:
    """Iterate over this host's share of the training batches of steps [start_step, num_steps).

    Reading begins at once, in the background, and waits when `PREFETCH` batches are ready.

    Each record appears `repeats` times per epoch. Its copies share a global batch (but for the one at the border, when
    `repeats` does not divide `batch_size`) and lie as far apart in it as can be: on other hosts, where there are
    several, and in other groups of BatchNorm.

    Args:
      source: records.
      transform: makes uint8[R, R, 3] of an image; or several, each under the first step that it is for, such as 0.
      readers: who reads, and which part of each batch.
      batch_size: images a step, of all hosts together.
      seed: of the order and the augmentation.
      start_step: first step; a resumed run gives the number of steps it has made.
      num_steps: end of the run.
      repeats: copies of an image per epoch, each with its own augmentation.

    Yields:
      {'image': uint8[b, R, R, 3], 'label': int32[b], 'mask': bool[b], 'index': int32[b]}: the mask is all
      True, the index is that of the record in `source`.

    Raises:
      UsageError: for arguments that do not fit together.
      RunError: for an image that cannot be read or decoded, naming it.
    """
    if repeats < 1 or seed < 0 or not 0 <= start_step <= num_steps:
        raise UsageError(
            f'Expected repeats >= 1, seed >= 0 and 0 <= start_step <= num_steps; given repeats={repeats}, '
            f'seed={seed}, start_step={start_step}, num_steps={num_steps}.'
        )
    share = _share(source, batch_size, readers)
    stages = transform if isinstance(transform, Mapping) else {0: transform}
    load = _TrainLoader(source, tuple(sorted(stages.items(), reverse=True)), share, seed, repeats)
    return _run(load, share, start_step, num_steps, readers)


def eval_batches(
    source: Source,
    transforms: Mapping[Any, Transform],
    readers: Readers = ONE_PROCESS,
    *,
    batch_size: int,
    start: int = 0,
) -> Generator[Batch, None, None]:
    """Iterate over this host's share of a source, in order, each file decoded once for all transforms.

    Reading begins at once, in the background. The last batch is padded, so that all hosts get the same number of full
    batches: padding has mask False and index -1.

    Args:
      source: records.
      transforms: key -> transform, for instance test resolution -> `make_test(resolution)`.
      readers: as in `train_batches`.
      batch_size: images a batch, of all hosts together.
      start: first record; the ones before it are left out.

    Yields:
      {'image': {key: uint8[b, R, R, 3]}, 'label': int32[b], 'mask': bool[b], 'index': int32[b]}.

    Raises:
      UsageError, RunError: as `train_batches`.
    """
    share = _share(source, batch_size, readers)
    load = _EvalLoader(source, dict(transforms), share, start)
    return _run(load, share, 0, -(-(len(source) - start) // batch_size), readers)


def epoch_samples(num_records: int, repeats: int = 1) -> int:
    """Return how many samples the paper counts as one epoch.

    Without repeats that is each record once. With them the reference counts 5005 * 512 samples at ImageNet's
    size, twice the records (not `repeats` times): its "120 epochs" see 240 times the number of images.

    Source: Section 5 of the paper's method; imnet_resnet50_scratch/samplers.py of the reference.
    """
    return num_records if repeats == 1 else -(-num_records // 256) * 512


def sample_record(sample: int, num_records: int, seed: int, repeats: int = 1) -> tuple[int, int]:
    """Return (epoch, record index) of a training sample's number."""
    epoch, position = divmod(sample // repeats, num_records)
    return epoch, int(_order(num_records, seed, epoch)[position])


def sample_rng(sample: int, seed: int) -> np.random.Generator:
    """Return the random generator of a training sample's number, independent of all others'."""
    return _rng(seed, sample, _AUGMENTATION)


def _rng(seed: int, number: int, stream: int) -> np.random.Generator:
    # Philox is keyed, not seeded: different (seed, number, stream) are different streams by construction.
    key, counter = np.array([seed, number], np.uint64), np.array([0, 0, 0, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@functools.lru_cache(maxsize=2)
def _order(num_records: int, seed: int, epoch: int) -> Sequence[int]:
    """Return the records of an epoch in their random order."""
    rng = _rng(seed, epoch, _ORDER)
    if num_records <= LISTED:
        return rng.permutation(num_records).astype(np.int32)
    # A list of all would take 12 bytes a record in every process; this one is computed a place at a time.
    return grain.MapDataset.range(num_records).shuffle(seed=int(rng.integers(2**32)))


@dataclasses.dataclass(frozen=True)
class _Share:
    """A host's part of each global batch, cut into chunks of about `CHUNK` images."""

    batch_size: int
    host: int
    num_hosts: int

    @property
    def size(self) -> int:
        return self.batch_size // self.num_hosts

    @property
    def num_chunks(self) -> int:
        return -(-self.size // CHUNK)

    def samples(self, chunk: int, repeats: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return the sample numbers of a chunk and their places in the host's batch.

        Chunk numbers run on through the batches. A batch begins with the first copies of its images; a chunk has
        the copies of an image together, so that one worker decodes it once.
        """
        step, part = divmod(chunk, self.num_chunks)
        batch = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        batch = batch[np.argsort(batch % repeats, kind='stable')]
        # In one piece, so that the global array is the global batch in order, whatever the number of hosts.
        own = batch[self.host * self.size : (self.host + 1) * self.size]
        first, last = (self.size * edge // self.num_chunks for edge in (part, part + 1))
        places = np.argsort(own, kind='stable')[first:last]
        return own[places], places


def _share(source: Source, batch_size: int, readers: Readers) -> _Share:
    host, num_hosts = readers.host, readers.num_hosts
    if not len(source):
        raise UsageError('The source is empty: there is nothing to make batches of.')
    if batch_size < 1 or batch_size % num_hosts or not 0 <= host < num_hosts:
        raise UsageError(
            f'A global batch of {batch_size} cannot be shared by {num_hosts} hosts (this is host {host}); '
            f'expected a multiple of {num_hosts}.'
        )
    return _Share(batch_size, host, num_hosts)


@dataclasses.dataclass(frozen=True)
class _TrainLoader:
    """Make the chunk of a chunk number: the one object that travels to worker processes."""

    source: Source
    stages: tuple[tuple[int, Transform], ...]  # (first step, transform), the last stage first
    share: _Share
    seed: int
    repeats: int

    def __call__(self, chunk: int) -> Batch:
        samples, places = self.share.samples(int(chunk), self.repeats)
        step = int(chunk) // self.share.num_chunks
        transform = next(transform for first, transform in self.stages if first <= step)
        records = [sample_record(int(sample), len(self.source), self.seed, self.repeats)[1] for sample in samples]
        images, labels, previous = [], [], None
        for sample, index in zip(samples, records, strict=True):
            if index != previous:
                image, label = _read(self.source, index)
                if records.count(index) > 1:
                    image.load()  # once for all copies
                previous = index
            images.append(transform(image, sample_rng(int(sample), self.seed)))
            labels.append(label)
        return {
            'image': np.stack(images),
            'label': np.array(labels, np.int32),
            'mask': np.ones(len(samples), bool),
            'index': np.array(records, np.int32),
            _PLACE: places,
        }


@dataclasses.dataclass(frozen=True)
class _EvalLoader:
    """Make the chunk of a chunk number, once through the source."""

    source: Source
    transforms: dict[Any, Transform]
    share: _Share
    start: int

    def __call__(self, chunk: int) -> Batch:
        samples, places = self.share.samples(int(chunk))
        records = samples + self.start
        mask = records < len(self.source)
        images, labels = {key: [] for key in self.transforms}, np.zeros(len(records), np.int32)
        for place, index in enumerate(records):
            # Padding repeats the last record: its pixels are of the right shape, and masked.
            if mask[place] or not place:
                image, label = _read(self.source, min(int(index), len(self.source) - 1))
                image.load()  # once for all transforms
                pixels = {key: transform(image, None) for key, transform in self.transforms.items()}
            labels[place] = label if mask[place] else 0
            for key in images:
                images[key].append(pixels[key])
        return {
            'image': {key: np.stack(stack) for key, stack in images.items()},
            'label': labels,
            'mask': mask,
            'index': np.where(mask, records, -1).astype(np.int32),
            _PLACE: places,
        }


def _read(source: Source, index: int) -> tuple[EncodedImage, int]:
    record = source[index]
    return EncodedImage(record['encoded'], record['name'], index), record['label']


def _run(
    load: Callable[[int], Batch], share: _Share, start: int, stop: int, readers: Readers
) -> Generator[Batch, None, None]:
    """Compute chunks ahead with grain, in order, and join them to batches."""
    num_chunks = share.num_chunks
    workers, threads = readers.workers, readers.threads
    ready = PREFETCH * num_chunks
    data = grain.MapDataset.range(start * num_chunks, stop * num_chunks).map(load)
    # A read buffer holds what is under way, too: in a worker that is all it should hold.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads if workers else max(threads, ready))
    data = data.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its debug flags when it starts a worker
        # When a run stops early, Python's tracker removes the batches left in shared memory, and would report each.
        os.environ.setdefault('PYTHONWARNINGS', 'ignore:resource_tracker:UserWarning')
        options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=-(-ready // workers))
        data = data.mp_prefetch(options, worker_init_fn=_leave_interrupts)
    batches = _join(data, num_chunks, stop - start, _born_deaf if workers else contextlib.nullcontext)
    next(batches)
    return batches


def _leave_interrupts(worker: int, num_workers: int) -> None:
    """Let Ctrl-C, which a terminal sends to reader processes too, be the concern of the process that they read for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _born_deaf() -> Iterator[None]:
    """Start processes in the block with Ctrl-C blocked: a process cannot ignore it while Python itself starts."""
    resource_tracker.ensure_running()  # The first process starts it, and its start unblocks Ctrl-C.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _join(
    data: grain.IterDataset,
    num_chunks: int,
    num_batches: int,
    starting: Callable[[], contextlib.AbstractContextManager[None]],
) -> Generator[Batch, None, None]:
    """Yield once when reading has begun, then the batches; closed at any time from then on, it ends the reading."""
    with starting():
        chunks = iter(data)
        chunks.get_state()  # without a state, `start_prefetch` would start no processes, nor the threads that do
        chunks.start_prefetch()
    try:
        yield {}
        for _ in range(num_batches):
            yield _place([next(chunks) for _ in range(num_chunks)])
    except RunError as error:
        raise RunError(str(error)) from None  # without the notes and frames of grain and of the worker
    except RuntimeError as error:
        if 'process was terminated' not in str(error):
            raise
        raise RunError(
            f'A process that reads images died: {str(error).splitlines()[0]} Often memory or /dev/shm is short: give '
            'fewer data.workers. The same command goes on from the last checkpoint.'
        ) from None
    finally:
        chunks.close()


def _place(chunks: list[Batch]) -> Batch:
    """Put what the chunks hold in its places in one batch."""
    places = [chunk.pop(_PLACE) for chunk in chunks]
    return _scatter(chunks, places)


def _scatter(parts: Sequence[Any], places: Sequence[np.ndarray]) -> Any:
    # No nested function: a closure that calls itself would keep the shared memory of `places` until a collection.
    if isinstance(parts[0], dict):
        return {key: _scatter([part[key] for part in parts], places) for key in parts[0]}
    joined = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for part, place in zip(parts, places, strict=True):
        joined[place] = part
    return joined
