"""Runtime and Feed: where and how a run executes, and how the images of a source pass through a network there."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from fixres_jax.core.progress import Progress
from fixres_jax.data import pipeline
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.machines import preemption, sharding

MAX_BATCH = 2**20  # images; more are a slip of the pen
Batch = dict[str, Any]  # {'image', 'label', 'mask', 'index'}, see `data.pipeline`


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Say where a run executes and how it reads: what it computes does not depend on any of this.

    Attributes:
      mesh: the devices.
      layout: how a network lies on them, see `sharding.place`.
      workers: processes that read images; 0 for threads of this process only.
      threads: threads that read images, in each process.
    """

    mesh: Mesh
    layout: str = 'replicated'
    workers: int = 0
    threads: int = 4

    @property
    def readers(self) -> pipeline.Readers:
        """Who reads images in this process."""
        return pipeline.Readers(**sharding.hosts(), workers=self.workers, threads=self.threads)

    def place(self, tree: Any) -> Any:
        """Put a tree of arrays on the devices."""
        return jax.device_put(tree, sharding.place(tree, self.mesh, self.layout))


@dataclasses.dataclass(frozen=True)
class Feed:
    """Say in what batches images pass through a network.

    Attributes:
      runtime: where.
      batch_size: images of a batch, of all hosts together; rounded up to a multiple of the devices, and no larger than
        the source needs.
      title: what the progress bar says.
    """

    runtime: Runtime
    batch_size: int
    title: str = ''

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.runtime.mesh

    def size(self, source: Source) -> int:
        """Return the batch size for a source."""
        return sharding.round_up(min(self.batch_size, len(source)), self.mesh)

    def named(self, title: str) -> 'Feed':
        """Return the same under another title."""
        return dataclasses.replace(self, title=title)


def usual_batch(mesh: Mesh) -> int:
    """Return how many images pass a network at once where nobody says it: 256 a device, 32 where that is a CPU.

    A CPU is no faster with more, and its caches and memory are smaller.
    """
    platform = next(iter(mesh.devices.flat)).platform
    return 32 if platform == 'cpu' else 256 * mesh.size


def one_pass(source: Source, transforms: Mapping[Any, Transform], feed: Feed) -> Iterator[tuple[int, Batch, Batch]]:
    """Iterate once over a source, in order, each file decoded once; show progress, and stop when told to.

    Args:
      source: images.
      transforms: key, such as the resolution, -> transform to uint8[R, R, 3].
      feed: how they pass.

    Yields:
      (number of the batch, the batch on this host, the batch on the devices), as `pipeline.eval_batches` makes them.

    Raises:
      Preempted: after a SIGTERM, between two batches.
    """
    size = feed.size(source)
    batches = pipeline.eval_batches(source, dict(transforms), feed.runtime.readers, batch_size=size)
    return watched(batches, -(-len(source) // size), size, feed)


def watched(
    batches: Iterator[Batch], num_batches: int, batch_size: int, feed: Feed
) -> Iterator[tuple[int, Batch, Batch]]:
    """Iterate over batches as `one_pass` does: on their way to the devices, with progress, until told to stop."""
    with contextlib.closing(Progress(feed.title, 0, num_batches, batch_size)) as progress:
        for number, (host, device) in enumerate(sharding.prefetch(batches, feed.mesh)):
            yield number, host, device
            progress.update(number + 1)
            if preemption.requested(number + 1):
                raise preemption.Preempted(f'stopped in phase {feed.title}, which begins again')


def keep_pace(pending: list[Any], results: Any, last: bool) -> None:
    """Wait for the results of the batch before this one, which the devices work on meanwhile; for the last batch's too.

    Without it a loop that only dispatches comes to its end, and its progress bar with it, long before the devices do.

    Args:
      pending: what is not waited for yet; a list that one loop keeps.
      results: arrays of the batch that was just dispatched.
      last: whether no other follows.
    """
    pending.append(results)
    while len(pending) > (not last):
        jax.block_until_ready(pending.pop(0))
