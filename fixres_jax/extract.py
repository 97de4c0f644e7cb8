"""What a network says of every image of a split, as .npy files in data-set order; and their score.

`python -m fixres_jax.extract score DIR [DIR]` scores the softmax of one folder, or compares two of the same images.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fixres_jax import command, files, metrics, preemption, processes, sharding
from fixres_jax.data import pipeline
from fixres_jax.errors import RunError, UsageError
from fixres_jax.models import EVAL
from fixres_jax.progress import Progress

FILES = ('labels', 'softmax', 'embedding')
CALIBRATION_BINS = 15  # Guo et al., "On Calibration of Modern Neural Networks", 2017


def extract(
    model: Any,
    variables: Any,
    source: Any,
    transform: Callable[..., np.ndarray],
    *,
    directory: epath.Path,
    batch_size: int,
    mesh: Mesh,
    flip: bool = False,
    reading: Mapping[str, int],
) -> dict[str, Any]:
    """Write labels, softmax, embeddings and file names of a source in its order.

    Args:
      model: from `models.create`.
      variables: on the devices.
      source: random-access source of labelled images.
      transform: to uint8[R, R, 3].
      directory: gets labels.npy int32[N], softmax.npy float32[N, K], embedding.npy float32[N, C] and names.txt, one
        name a line.
      batch_size: global; rounded up to a multiple of the devices.
      mesh: the devices.
      flip: average softmax and embedding with those of the mirror image.
      reading: workers and threads, as in `pipeline.eval_batches`.

    Returns:
      {'count': N, 'directory': where}.

    Raises:
      Preempted: after a SIGTERM.
    """

    def outputs(variables, image):
        logits, ends = model.apply(variables, image, EVAL)
        return {'softmax': jax.nn.softmax(logits), 'embedding': ends['embedding']}

    def averaged(variables, image):
        both = outputs(variables, image), outputs(variables, image[:, :, ::-1])
        return jax.tree.map(lambda a, b: (a + b) / 2, *both)

    step = jax.jit(averaged if flip else outputs, out_shardings=sharding.by_example(mesh))
    batch_size = sharding.round_up(min(batch_size, len(source)), mesh)
    batches = pipeline.eval_batches(source, {0: transform}, batch_size=batch_size, **sharding.hosts(), **reading)
    progress, found = Progress('extract', 0, -(-len(source) // batch_size), batch_size), {}
    for number, (_, batch) in enumerate(sharding.prefetch(batches, mesh), start=1):
        here = step(variables, batch['image'][0]) | {'labels': batch['label'], 'index': batch['index']}
        here = multihost_utils.process_allgather(here, tiled=True)
        index = here.pop('index')
        for name, value in here.items():
            if name not in found:
                found[name] = np.zeros((len(source), *value.shape[1:]), value.dtype)
            found[name][index[index >= 0]] = value[index >= 0]
        progress.update(number)
        if preemption.requested(number):
            raise preemption.Preempted('stopped in phase extract, which begins again')
    progress.close()
    if processes.is_host0():
        directory.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            with (directory / f'{name}.npy').open('wb') as file:
                np.save(file, found[name])
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
            raise UsageError(f'{path} is not there: give a folder that --config.task=extract has written.')
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


def hits(labels: np.ndarray, softmax: np.ndarray, k: int) -> np.ndarray:
    """Say for each example whether its label is among the `k` highest; equals count in the order of the classes."""
    own = np.take_along_axis(softmax, labels[:, None], axis=1)
    earlier = np.arange(softmax.shape[1])[None, :] < labels[:, None]
    return ((softmax > own) | ((softmax == own) & earlier)).sum(axis=1) < k


def score(labels: np.ndarray, softmax: np.ndarray) -> dict[str, Any]:
    """Score saved softmax.

    Args:
      labels: int[N].
      softmax: float[N, K].

    Returns:
      {'count', 'top1', 'top1_interval', 'top5', 'top5_interval' in percent, 'loss' in nats, 'ece': the expected
      calibration error in percent}.
    """
    result: dict[str, Any] = {'count': len(labels)}
    for k in (1, 5):
        right = int(hits(labels, softmax, k).sum())
        result[f'top{k}'] = 100 * right / len(labels)
        result[f'top{k}_interval'] = tuple(100 * edge for edge in metrics.wilson(right, len(labels)))
    own = np.take_along_axis(softmax, labels[:, None], axis=1)[:, 0].astype(np.float64)
    result['loss'] = float(-np.log(np.maximum(own, np.finfo(np.float32).tiny)).mean())
    return result | {'ece': 100 * calibration_error(labels, softmax)}


def calibration_error(labels: np.ndarray, softmax: np.ndarray) -> float:
    """Return the expected calibration error, in [0, 1]: how far confidence is from accuracy, over equal bins."""
    confidence, right = softmax.max(axis=1).astype(np.float64), hits(labels, softmax, 1)
    place = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(place, right - confidence, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def compare(first: epath.PathLike, second: epath.PathLike) -> dict[str, float]:
    """Return top-1 of the first folder minus that of the second, in points, with its paired 95 % interval."""
    (labels, mine), (others, theirs) = load(first), load(second)
    if not np.array_equal(labels, others):
        raise UsageError(f'{first} and {second} are not of the same images: their labels differ.')
    a, b = hits(labels, mine, 1), hits(labels, theirs, 1)
    return metrics.paired(int((a & ~b).sum()), int((b & ~a).sum()), len(labels))


def _describe(directory: str) -> str:
    result = score(*load(directory))
    top = ', '.join(
        f'top-{k} {result[f"top{k}"]:.2f} % [{low:.2f}, {high:.2f}]'
        for k in (1, 5)
        for low, high in [result[f'top{k}_interval']]
    )
    return (
        f'{directory}: {result["count"]} images, {top}, cross entropy {result["loss"]:.4f} nats, '
        f'calibration error (ECE) {result["ece"]:.2f} %'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 for wrong input and 1 for damaged files."""
    parser = command.Parser(prog='python -m fixres_jax.extract', description=__doc__.splitlines()[0])
    parser.add_argument('command', choices=['score'])
    parser.add_argument('directories', nargs='+', metavar='DIR', help='written by --config.task=extract; one or two')
    return command.run(lambda: _score(parser.parse_args(argv).directories))


def _score(directories: Sequence[str]) -> None:
    if len(directories) > 2:
        raise UsageError(f'{len(directories)} folders were given; expected one or two.')
    for directory in directories:
        print(_describe(directory))
    if len(directories) == 2:
        d = compare(*directories)
        print(f'first minus second: {d["difference"]:+.2f} points [{d["low"]:+.2f}, {d["high"]:+.2f}], paired')


if __name__ == '__main__':
    sys.exit(main())
