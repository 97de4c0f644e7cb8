"""A network as a program of jax.export: pixels in, probabilities out, for those who do not have this package."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax import export

from fixres_jax.core import command, files
from fixres_jax.core.errors import UsageError
from fixres_jax.models import EVAL
from fixres_jax.weights.network import Network

PLATFORMS = ('cpu', 'cuda', 'tpu')
PROGRAM, ABOUT = 'network.jax', 'fixres.json'
MAX_BYTES = 2**31 - 2**26  # of the weights: the format keeps offsets of 32 bits


def to_bytes(network: Network, height: int, width: int) -> bytearray:
    """Return the serialized program: uint8[b, height, width, 3], for any b, -> probabilities float32[b, K].

    The weights are inside. It runs on each of PLATFORMS, with the version of jax that wrote it and with newer ones as
    far as jax.export promises.

    Raises:
      UsageError: for weights that do not fit into the format, or without its package.
    """
    if importlib.util.find_spec('flatbuffers') is None:
        raise UsageError('A program of jax.export needs flatbuffers: pip install "fixres-jax[export]".')
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(network.variables))
    if size > MAX_BYTES:
        raise UsageError(f'The weights are {size / 1e9:.1f} GB, and a program of jax.export holds at most 2.1 GB.')

    def probabilities(images: jax.Array) -> jax.Array:
        logits, _ = network.apply(images, EVAL)
        return jax.nn.softmax(logits.astype(jnp.float32))

    (batch,) = export.symbolic_shape('b')
    images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
    return export.export(jax.jit(probabilities), platforms=PLATFORMS)(images).serialize()


def save(directory: epath.PathLike, network: Network, resolution: Any) -> None:
    """Write the program and `fixres.json`, which says how images are resized and what the classes are, into a folder.

    Args:
      directory: an absent or empty folder.
      network: on this host.
      resolution: side of the images, or (height, width).

    Raises:
      UsageError: as `to_bytes`, or for a folder that is not empty.
    """
    directory = command.empty_folder(str(directory))
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    program = to_bytes(network, height, width)
    directory.mkdir(parents=True, exist_ok=True)
    files.write(directory / PROGRAM, bytes(program))
    files.write_json(directory / ABOUT, dict(network.about) | {'test_resolution': resolution})
