"""Embeddings of whole sources: one pass through the trunk, kept on the devices, or on disk where they do not fit."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fixres_jax.core import files, trees
from fixres_jax.core.errors import UsageError
from fixres_jax.data import pipeline
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Batch, Feed, keep_pace, one_pass, watched
from fixres_jax.models import EVAL, Model, Variables
from fixres_jax.weights.network import Network

DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}
CHUNK_ROWS = 16384  # rows whose logits are in memory at once: 65 MB for ImageNet's classes
Changes = Mapping[str, Any]  # leaves of batch_stats by name, instead of those of the network


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Hold the embeddings of n batches of B images, read by parts of a few batches.

    Attributes:
      values: dtype[n, B, C], split over the devices along B; or a memory-mapped file, on one host only.
      label: int32[n, B], on the devices.
      index: int32[n, B], on the devices; of the image in its source, -1 for padding.
      part: batches in a part; n is a multiple of it.
      count: images, without the padding.
      path: of the file.
    """

    values: jax.Array | np.memmap
    label: jax.Array
    index: jax.Array
    part: int
    count: int
    path: epath.Path | None = None

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return len(self.label) // self.part

    def read(self, number: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return (float32[part, B, C], label, mask) of a part."""
        start = number * self.part
        if self.path is None:
            return _read(self.values, self.label, self.index, start, self.part)
        part = jax.device_put(np.float32(self.values[start : start + self.part]), self.label.sharding)
        return part, *_read(None, self.label, self.index, start, self.part)[1:]

    def rows(self) -> np.ndarray:
        """Return int32[count]: the places among n * B that hold images, in the order of the source."""
        index = multihost_utils.process_allgather(self.index, tiled=True).reshape(-1)
        return np.argsort(index, stable=True)[len(index) - self.count :].astype(np.int32)

    def classes(self, num_classes: int) -> tuple[int, ...]:
        """Return the labels that have images, ascending, of so many classes."""
        counts = _count(self.label, self.index, num_classes)
        return tuple(np.flatnonzero(np.asarray(counts)).tolist())

    def only(self, classes: Sequence[int]) -> 'Embeddings | None':
        """Return those of some classes, labelled 0, 1, ... in their order, which ascends; None where there are none."""
        label, index, count = _select(self.label, self.index, np.array(classes, np.int32))
        return dataclasses.replace(self, label=label, index=index, count=int(count)) if int(count) else None

    def take(self, rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Return (float32[R, C], label int32[R]) of places among n * B."""
        place = np.divmod(rows, self.label.shape[1])
        values = _take(self.values, *place) if self.path is None else np.float32(self.values[place])
        return values, _take(self.label, *place)


@functools.partial(jax.jit, static_argnums=4)
def _read(
    values: jax.Array | None, label: jax.Array, index: jax.Array, start: int, length: int
) -> tuple[jax.Array | None, jax.Array, jax.Array]:
    label, index = (jax.lax.dynamic_slice_in_dim(x, start, length) for x in (label, index))
    if values is not None:
        values = jax.lax.dynamic_slice_in_dim(values, start, length).astype(jnp.float32)
    return values, label, index >= 0


@functools.partial(jax.jit, static_argnums=2)
def _count(label: jax.Array, index: jax.Array, num_classes: int) -> jax.Array:
    return jax.ops.segment_sum((index >= 0).astype(jnp.int32).reshape(-1), label.reshape(-1), num_classes)


@jax.jit
def _select(label: jax.Array, index: jax.Array, classes: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return labels among ascending classes, and indices in which images of other classes are padding."""
    place = jnp.minimum(jnp.searchsorted(classes, label).astype(jnp.int32), len(classes) - 1)
    index = jnp.where(classes[place] == label, index, -1)
    return place, index, (index >= 0).sum()


@jax.jit
def _take(x: jax.Array, batch: np.ndarray, place: np.ndarray) -> jax.Array:
    picked = x[batch, place]
    return picked.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else picked


@functools.partial(jax.jit, donate_argnums=0)
def _set(values: jax.Array, number: int, batch: jax.Array) -> jax.Array:
    return values.at[number].set(batch.astype(values.dtype))


class _Writer:
    """Take the embeddings of one batch after the other."""

    def __init__(self, shape: tuple[int, int, int], dtype: str, mesh: Mesh, path: epath.Path | None):
        self._place, self._path = NamedSharding(mesh, PartitionSpec(None, 'data')), path
        if path is None:
            self._values = jax.jit(lambda: jnp.zeros(shape, DTYPES[dtype]), out_shardings=self._place)()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.private(path)
            self._values = np.memmap(path, DTYPES[dtype], 'w+', shape=shape)

    def put(self, number: int, batch: jax.Array) -> None:
        if self._path is None:
            self._values = _set(self._values, number, batch)
        else:
            self._values[number] = np.asarray(batch)

    def finish(self, label: np.ndarray, index: np.ndarray, part: int, count: int) -> Embeddings:
        label, index = (jax.make_array_from_process_local_data(self._place, x) for x in (label, index))
        if self._path is None:
            return Embeddings(self._values, label, index, part, count)
        return Embeddings(self._values, label, index, part, count, self._path)


@functools.cache
def make_embed_step(model: Model, mesh: Mesh) -> Callable[..., dict[str, jax.Array]]:
    """Return the jitted function (variables, changes, image) -> {name: embedding float32[B, C]}.

    `changes` holds, by name, the BatchNorm statistics in which each network differs from `variables`. What the networks
    have in common, the whole trunk below the first such layer, is computed once: the compiler merges equal operations.
    """

    def embed(variables, changes, image):
        return {name: model.apply(change(variables, new), image, EVAL)[1]['embedding'] for name, new in changes.items()}

    return sharding.jit(embed, mesh, out_shardings=sharding.by_example(mesh))


def change(variables: Variables, changes: Changes) -> Variables:
    """Return the variables with some leaves of batch_stats, given by their '/' names, exchanged."""
    batch_stats = trees.unflatten(trees.flatten(variables['batch_stats']) | dict(changes))
    return {'params': variables['params'], 'batch_stats': batch_stats}


@dataclasses.dataclass(frozen=True)
class Storage:
    """Say how embeddings are kept.

    Attributes:
      dtype: 'float32' or 'bfloat16'.
      device_bytes: of each device's memory that they may take; more goes to disk.
      directory: where they go then; None to refuse.
    """

    dtype: str = 'float32'
    device_bytes: float = 8e9
    directory: epath.Path | None = None


@dataclasses.dataclass(frozen=True)
class Extra:
    """Say what is embedded besides the images themselves.

    Attributes:
      flip: the mirror image of every image.
      copies: augmented copies of every image.
      augment: their transform; it makes images of the size of the only test transform.
      seed: of the augmentation.
    """

    flip: bool = False
    copies: int = 0
    augment: Transform | None = None
    seed: int = 0


def embed(
    network: Network,
    changes: Mapping[Any, Mapping[str, Changes]],
    source: Source,
    transforms: Mapping[Any, Transform],
    feed: Feed,
    *,
    keep: tuple[str, ...] = (),
    storage: Storage = Storage(),
    extra: Extra = Extra(),
) -> dict[tuple[Any, str], Embeddings]:
    """Embed every image of a source, by several networks and under several transforms, each file decoded once.

    Args:
      network: on the devices.
      changes: key of `transforms` -> name -> changes to the network's statistics; {} for the network itself.
      source: labelled images.
      transforms: key, such as the resolution, -> transform to uint8[R, R, 3].
      feed: how the images pass.
      keep: names whose embeddings are wanted; () for all.
      storage: how they are kept.
      extra: what is embedded besides the images.

    Returns:
      (key, name) -> Embeddings, of the images, then of their mirror images, then of the copies.

    Raises:
      UsageError: when they fit neither on the devices nor on this host's disk.
      Preempted: after a SIGTERM.
    """
    # Batches of the images, of their mirror images, and of the copies stand one after the other in arrays [n, B, C].
    size = feed.size(source)
    num_batches = -(-len(source) // size)
    num_copies = -(-extra.copies * len(source) // size)
    total = num_batches * (1 + extra.flip) + num_copies
    part = min(total, max(1, CHUNK_ROWS // size))
    step = make_embed_step(network.model, feed.mesh)
    writers: dict[tuple[Any, str], _Writer] = {}
    # Every host keeps the labels of its own images; the last part is filled up with padding.
    labels = np.zeros((part * -(-total // part), size // jax.process_count()), np.int32)
    indices = np.full(labels.shape, -1, np.int32)

    def open_writers(width: int) -> None:
        """Make room for every array as soon as the first embedding tells its number of channels."""
        shape = (len(labels), size, width)
        points = [(key, name) for key, names in changes.items() for name in keep or names]
        for point, path in _places(shape, points, feed.mesh, storage).items():
            writers[point] = _Writer(shape, storage.dtype, feed.mesh, path)

    pending: list[Any] = []

    def add(number: int, batch: dict[str, Any], images: Mapping[Any, jax.Array]) -> list[dict[str, jax.Array]]:
        labels[number], indices[number], embeddings = batch['label'], batch['index'], []
        for key, image in images.items():
            embedding = step(network.variables, changes[key], image)
            if not writers:
                open_writers(next(iter(embedding.values())).shape[-1])
            for name in keep or embedding:
                writers[key, name].put(number, embedding[name])
            embeddings.append(embedding)
        return embeddings

    # 1. The images, and behind all of them their mirror images, which cost no second reading.
    for number, host, device in one_pass(source, transforms, feed):
        added = add(number, host, device['image'])
        if extra.flip:
            mirrored = {key: image[:, :, ::-1] for key, image in device['image'].items()}
            added = added + add(num_batches + number, host, mirrored)
        keep_pace(pending, added, last=number + 1 == num_batches)
    # 2. The augmented copies, which are read again.
    if num_copies:
        for number, host, device in _copies(source, extra, num_copies, feed):
            added = add(total - num_copies + number, host, {key: device['image'] for key in changes})
            keep_pace(pending, added, last=number + 1 == num_copies)
    count = len(source) * (1 + extra.flip) + num_copies * size
    return {point: writer.finish(labels, indices, part, count) for point, writer in writers.items()}


def _copies(source: Source, extra: Extra, num_batches: int, feed: Feed) -> Iterator[tuple[int, Batch, Batch]]:
    """Iterate over batches of augmented copies, as `one_pass` does over the images."""
    size = feed.size(source)
    batches = pipeline.train_batches(
        source,
        extra.augment,
        feed.runtime.readers,
        batch_size=size,
        seed=extra.seed,
        start_step=0,
        num_steps=num_batches,
    )
    return watched(batches, num_batches, size, feed.named(f'{feed.title}, copies'))


def _places(
    shape: tuple[int, ...], points: list[tuple[Any, str]], mesh: Mesh, storage: Storage
) -> dict[tuple[Any, str], epath.Path | None]:
    """Return where each array of embeddings goes: None for the devices, or its file."""
    needed = len(points) * np.prod(shape, dtype=float) * np.dtype(DTYPES[storage.dtype]).itemsize
    if needed / mesh.size <= storage.device_bytes:
        return dict.fromkeys(points)
    if storage.directory is None or jax.process_count() > 1:
        raise UsageError(
            f'The embeddings take {needed / 1e9:.1f} GB, which do not fit in {storage.device_bytes / 1e9:g} GB on each '
            f'of {mesh.size} devices, and only a run of one host may keep them on disk: raise adapt.cache_gigabytes, '
            'or use more devices or adapt.cache_dtype=bfloat16.'
        )
    return {(key, name): epath.Path(storage.directory) / f'{key}_{name}.dat' for key, name in points}


def gather(data: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Return (float32[N, C], label int32[N]) of all images in the order of their source, on every host."""
    parts = [multihost_utils.process_allgather(data.read(number)[:2], tiled=True) for number in range(data.num_parts)]
    rows = data.rows()
    values, labels = (np.concatenate(column, axis=0) for column in zip(*parts, strict=True))
    return values.reshape(-1, values.shape[-1])[rows], labels.reshape(-1)[rows]
