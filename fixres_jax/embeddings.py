"""Embeddings of whole sources: one pass through the trunk, kept on the devices, or on disk where they do not fit."""

import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fixres_jax import files, preemption, sharding, trees
from fixres_jax.data import pipeline
from fixres_jax.errors import UsageError
from fixres_jax.models import EVAL
from fixres_jax.progress import Progress

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

    def take(self, rows: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Return (float32[R, C], label int32[R]) of places among n * B."""
        at = np.divmod(rows, self.label.shape[1])
        values = _take(self.values, *at) if self.path is None else np.float32(self.values[at])
        return values, _take(self.label, *at)


@functools.partial(jax.jit, static_argnums=4)
def _read(
    values: jax.Array | None, label: jax.Array, index: jax.Array, start: int, length: int
) -> tuple[jax.Array | None, jax.Array, jax.Array]:
    label, index = (jax.lax.dynamic_slice_in_dim(x, start, length) for x in (label, index))
    if values is not None:
        values = jax.lax.dynamic_slice_in_dim(values, start, length).astype(jnp.float32)
    return values, label, index >= 0


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
def make_embed_step(model: Any, mesh: Mesh) -> Callable[..., dict[str, jax.Array]]:
    """Return the jitted function (variables, changes, image) -> {name: embedding float32[B, C]}.

    `changes` holds, by name, the BatchNorm statistics in which each network differs from `variables`. What the networks
    have in common, the whole trunk below the first such layer, is computed once: the compiler merges equal operations.
    """

    def embed(variables, changes, image):
        return {name: model.apply(change(variables, new), image, EVAL)[1]['embedding'] for name, new in changes.items()}

    return jax.jit(embed, out_shardings=sharding.by_example(mesh))


def change(variables: Any, changes: Changes) -> dict[str, Any]:
    """Return the variables with some leaves of batch_stats, given by their '/' names, exchanged."""
    batch_stats = trees.unflatten(trees.flatten(variables['batch_stats']) | dict(changes))
    return {'params': variables['params'], 'batch_stats': batch_stats}


def embed(
    model: Any,
    variables: Any,
    changes: Mapping[Any, Mapping[str, Changes]],
    source: Any,
    transforms: Mapping[Any, Callable[..., np.ndarray]],
    *,
    batch_size: int,
    mesh: Mesh,
    keep: tuple[str, ...] = (),
    dtype: str = 'float32',
    flip: bool = False,
    copies: Iterable[dict[str, Any]] = (),
    num_copies: int = 0,
    device_bytes: float = 8e9,
    directory: epath.Path | None = None,
    reading: Mapping[str, int] = types.MappingProxyType({}),
    title: str = 'embed',
) -> dict[tuple[Any, str], Embeddings]:
    """Embed every image of a source, by several networks and under several transforms, each file decoded once.

    Args:
      model: from `models.create`.
      variables: of the network, on the devices.
      changes: key of `transforms` -> network's name -> its changes to the statistics; {} for the network itself.
      source: random-access source of labelled images.
      transforms: key, such as the resolution, -> transform to uint8[R, R, 3].
      batch_size: global; rounded up to a multiple of the devices.
      mesh: the devices.
      keep: names whose embeddings are wanted; () for all.
      dtype: of the stored embeddings, 'float32' or 'bfloat16'.
      flip: add the mirror image of every image.
      copies, num_copies: batches of augmented images to add, for one transform and of this batch size; how many.
      device_bytes: of each device's memory that the embeddings may take; more goes to disk.
      directory: where they go then; None to refuse.
      reading, title: workers and threads, as in `pipeline.eval_batches`; what the progress bar says.

    Returns:
      (key, name) -> Embeddings, of the images, then of their mirror images, then of the copies.

    Raises:
      UsageError: when they fit neither on the devices nor on this host's disk.
      Preempted: after a SIGTERM.
    """
    batch_size = sharding.round_up(min(batch_size, len(source)), mesh)
    num_batches = -(-len(source) // batch_size)
    total = num_batches * (1 + flip) + num_copies
    part = min(total, max(1, CHUNK_ROWS // batch_size))
    step = make_embed_step(model, mesh)
    batches = pipeline.eval_batches(source, transforms, batch_size=batch_size, **sharding.hosts(), **reading)
    writers: dict[tuple[Any, str], _Writer] = {}
    labels = np.zeros((part * -(-total // part), batch_size // jax.process_count()), np.int32)
    indices = np.full(labels.shape, -1, np.int32)

    def add(number, batch, images):
        labels[number], indices[number] = batch['label'], batch['index']
        for key, image in images.items():
            found = step(variables, changes[key], image)
            for name in keep or found:
                if (key, name) not in writers:
                    shape = (len(labels), *found[name].shape)
                    at = [(key, name) for key, networks in changes.items() for name in keep or networks]
                    files = _places(shape, at, DTYPES[dtype], mesh, device_bytes, directory)
                    writers.update({at: _Writer(shape, dtype, mesh, path) for at, path in files.items()})
                writers[key, name].put(number, found[name])
        if preemption.requested(number):
            raise preemption.Preempted(f'stopped in phase {title}, which begins again')

    progress = Progress(title, 0, total, batch_size)
    for number, (batch, images) in enumerate(sharding.prefetch(batches, mesh)):
        add(number, batch, images['image'])
        if flip:
            add(num_batches + number, batch, {key: image[:, :, ::-1] for key, image in images['image'].items()})
        progress.update((number + 1) * (1 + flip))
    for number, (batch, images) in enumerate(sharding.prefetch(copies, mesh), start=total - num_copies):
        add(number, batch, {key: images['image'] for key in changes})
        progress.update(number + 1)
    progress.close()
    count = len(source) * (1 + flip) + num_copies * batch_size
    return {at: writer.finish(labels, indices, part, count) for at, writer in writers.items()}


def _places(
    shape: tuple[int, ...],
    at: list[tuple[Any, str]],
    dtype: Any,
    mesh: Mesh,
    device_bytes: float,
    directory: epath.Path | None,
) -> dict[tuple[Any, str], epath.Path | None]:
    """Return where each array of embeddings goes: None for the devices, or its file."""
    needed = len(at) * np.prod(shape, dtype=float) * np.dtype(dtype).itemsize
    if needed / mesh.size <= device_bytes:
        return dict.fromkeys(at)
    if directory is None or jax.process_count() > 1:
        raise UsageError(
            f'The embeddings take {needed / 1e9:.1f} GB, which do not fit in {device_bytes / 1e9:g} GB on each of '
            f'{mesh.size} devices, and only a run of one host may keep them on disk: raise adapt.cache_gigabytes, '
            'or use more devices or adapt.cache_dtype=bfloat16.'
        )
    return {(key, name): epath.Path(directory) / f'{key}_{name}.dat' for key, name in at}


def gather(data: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Return (float32[N, C], label int32[N]) of all images in the order of their source, on every host."""
    parts = [multihost_utils.process_allgather(data.read(number)[:2], tiled=True) for number in range(data.num_parts)]
    rows = data.rows()
    values, labels = (np.concatenate(column, axis=0) for column in zip(*parts, strict=True))
    return values.reshape(-1, values.shape[-1])[rows], labels.reshape(-1)[rows]
