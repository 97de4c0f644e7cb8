"""Several processes as one run: how they find each other, and how they agree."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fixres_jax.core.errors import RunError, UsageError

# A process that stops answering for so long is given up, and with it the run: all end, and the same command goes on.
HEARTBEAT_SECONDS = 60


def start(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the other processes of the run; call before anything else touches a device.

    Args:
      coordinator_address: 'host:port' of process 0; None on TPU, Slurm, Open MPI and Kubernetes, which say it.
      num_processes: likewise.
      process_id: likewise, 0 to num_processes - 1.

    Raises:
      UsageError: when nothing says who the others are, or what was given cannot be.
      RunError: when the processes cannot meet, which another start may mend.
    """
    try:
        jax.distributed.initialize(
            coordinator_address, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except ValueError as error:
        raise UsageError(
            f'The processes did not find each other: {str(error).splitlines()[0]} Outside of TPU, Slurm (under srun), '
            'Open MPI and Kubernetes give --coordinator_address, --num_processes and --process_id.'
        ) from error
    except RuntimeError as error:
        raise RunError(
            f'The processes could not meet: {" ".join(str(error).split())[:300]} Start all of them again.'
        ) from error


def is_host0() -> bool:
    """Say whether this process is the one that writes reports."""
    return jax.process_index() == 0


def from_host0(value: Any) -> Any:
    """Return host 0's value, made of what JSON knows, on every host: files may not look the same on all of them."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode() if is_host0() else b'', np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    buffer = np.zeros(size, np.uint8)
    if is_host0():
        buffer[:] = text
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8)))
