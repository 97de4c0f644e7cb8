"""Programs: the train step compiled for each size of images, ahead of its turn."""

from collections.abc import Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fixres_jax.core.resolution import Resolution, shape
from fixres_jax.machines import sharding
from fixres_jax.training.state import TrainState
from fixres_jax.training.step import Batch, TrainStep


def batch_of(batch_size: int, resolution: int | Resolution, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a batch that a step takes."""
    place = sharding.by_example(mesh)
    return {
        'image': jax.ShapeDtypeStruct((batch_size, *shape(resolution), 3), jnp.uint8, sharding=place),
        'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=place),
    }


class Programs:
    """A train step for images of several sizes: while it runs at the first, a thread compiles the others.

    Called as a step is. Only the first call waits for the compiler, and one of a size that is not compiled yet.
    """

    def __init__(self, step_fn: TrainStep, state: TrainState, batch_size: int, resolutions: Sequence[int], mesh: Mesh):
        """Begin to compile.

        Args:
          step_fn: from `make_train_step`.
          state: its shapes with shardings, from `state.abstract`.
          batch_size: global.
          resolutions: pixels of the sides, in their order.
          mesh: the devices.
        """
        key = jax.eval_shape(lambda: jax.random.key(0))

        def compiled(resolution: int) -> Any:
            return step_fn.lower(state, batch_of(batch_size, resolution, mesh), key).compile()

        self._thread = futures.ThreadPoolExecutor(1)
        self._programs = {size: self._thread.submit(compiled, size) for size in dict.fromkeys(resolutions)}

    def __call__(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        return self._programs[batch['image'].shape[1]].result()(state, batch, key)

    def close(self) -> None:
        """Compile nothing more."""
        self._thread.shutdown(cancel_futures=True)
