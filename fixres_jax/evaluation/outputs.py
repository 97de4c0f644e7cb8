"""What a network says of every image of a split, as .npy files in data-set order."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fixres_jax.core import files, sections
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.core.sections import Section
from fixres_jax.data.sources import UNKNOWN, Source
from fixres_jax.data.transforms import Transform
from fixres_jax.machines import processes, sharding
from fixres_jax.machines.runtime import Feed, one_pass
from fixres_jax.models import EVAL, Model, Variables
from fixres_jax.weights.network import Network

FILES = ('labels', 'softmax', 'embedding')
Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Extraction(Section):
    """What an extraction takes."""

    PATH = 'extract.'
    RULES = {'split': sections.one_of(('test', 'train', 'held_out'))}

    split: str
    flip: bool


@functools.cache
def make_output_step(model: Model, mesh: Mesh, flip: bool = False) -> Callable[[Variables, jax.Array], Arrays]:
    """Return the jitted function (variables, image uint8[B, R, R, 3]) -> {'softmax': float32[B, K], 'embedding'}.

    With `flip` both are the mean with those of the mirror image.
    """

    def outputs(variables, image):
        logits, ends = model.apply(variables, image, EVAL)
        return {'softmax': jax.nn.softmax(logits), 'embedding': ends['embedding']}

    def averaged(variables, image):
        plain_and_mirrored = outputs(variables, image), outputs(variables, image[:, :, ::-1])
        return jax.tree.map(lambda a, b: (a + b) / 2, *plain_and_mirrored)

    return sharding.jit(averaged if flip else outputs, mesh, out_shardings=sharding.by_example(mesh))


def collect(
    network: Network, source: Source, transform: Transform, feed: Feed, *, flip: bool = False
) -> dict[str, np.ndarray]:
    """Return what a network says of every image of a source, in its order, on every host.

    Args:
      network: on the devices.
      source: images.
      transform: to uint8[R, R, 3].
      feed: how the images pass.
      flip: average softmax and embedding with those of the mirror image.

    Returns:
      {'labels': int32[N], 'softmax': float32[N, K], 'embedding': float32[N, C]}.

    Raises:
      Preempted: after a SIGTERM.
    """
    step = make_output_step(network.model, feed.mesh, flip)
    arrays: dict[str, np.ndarray] = {}
    for _, _, batch in one_pass(source, {0: transform}, feed):
        values = step(network.variables, batch['image'][0]) | {'labels': batch['label'], 'index': batch['index']}
        values = multihost_utils.process_allgather(values, tiled=True)
        index = values.pop('index')
        for name, value in values.items():
            if name not in arrays:
                arrays[name] = np.zeros((len(source), *value.shape[1:]), value.dtype)
            arrays[name][index[index >= 0]] = value[index >= 0]
    return arrays


def extract(
    network: Network,
    source: Source,
    transform: Transform,
    feed: Feed,
    *,
    directory: epath.Path,
    flip: bool = False,
) -> dict[str, Any]:
    """Write labels, softmax, embeddings and file names of a source in its order.

    Args:
      network, source, transform, feed, flip: as `collect` takes them.
      directory: gets labels.npy int32[N], where the images have labels; softmax.npy float32[N, K], embedding.npy
        float32[N, C] and names.txt, one name per line.

    Returns:
      {'count': N, 'directory': where}.

    Raises:
      Preempted: after a SIGTERM.
    """
    arrays = collect(network, source, transform, feed, flip=flip)
    if processes.is_host0():
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if name != 'labels' or arrays[name].min() > UNKNOWN:
                with (directory / f'{name}.npy').open('wb') as file:
                    np.save(file, arrays[name])
        (directory / 'names.txt').write_text(''.join(f'{source.name(i)}\n' for i in range(len(source))))
    return {'count': len(source), 'directory': str(directory)}


def load(directory: epath.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels int[N], softmax float[N, K]) that a folder holds.

    Raises:
      UsageError: when they are not there.
      RunError: when they do not fit together.
    """
    arrays = []
    for name in ('labels', 'softmax'):
        path = files.reachable(directory) / f'{name}.npy'
        if not path.exists():
            if path.with_name('softmax.npy').exists():
                raise UsageError(
                    f'{path} is not there: the images had no labels, or not of the network, to score with.'
                )
            raise UsageError(f'{path} is not there: give a folder that fixres extract has written.')
        with path.open('rb') as file:
            arrays.append(np.load(file))
    labels, softmax = arrays
    if labels.ndim != 1 or softmax.ndim != 2 or len(labels) != len(softmax) or not len(labels):
        raise RunError(
            f'labels.npy and softmax.npy in {directory} have shapes {labels.shape} and {softmax.shape}: expected [N] '
            'and [N, classes], N at least 1.'
        )
    if labels.min() < 0 or labels.max() >= softmax.shape[1]:
        raise RunError(f'labels.npy in {directory} names class {labels.max()} of {softmax.shape[1]}.')
    return labels, softmax
