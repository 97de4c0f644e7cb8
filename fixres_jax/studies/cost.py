"""What a forward pass costs at each test resolution: operations, counted, and milliseconds, measured where it runs."""

import time

import jax
import numpy as np

from fixres_jax.core import tables
from fixres_jax.core.figures import BEFORE, Figure, new_figure
from fixres_jax.core.resolution import shape, side
from fixres_jax.evaluation import evaluate
from fixres_jax.machines import sharding
from fixres_jax.studies import advice
from fixres_jax.studies.study import Arrays, Numbers, Picture, Study, Subject
from fixres_jax.weights.network import Network

ROUNDS = 5  # of timing; the least time counts, since whatever else the machine does only adds


def compute(subject: Subject) -> tuple[Numbers, Arrays]:
    """Count the operations of an image, and time a batch as the evaluation forms it, without its reading.

    Returns:
      Rows {'resolution', 'gflop', 'milliseconds'} of one image, with the model, the devices and the batch size.
    """
    network, feed = subject.networks.before, subject.feed
    resolutions = tuple(sorted({*subject.resolutions, subject.train_resolution, subject.networks.resolution}))
    counted = advice.flops(network.model, resolutions)
    batch_size = feed.size(subject.test)
    step = evaluate.make_eval_step(network.model, feed.mesh)
    rng, share = np.random.default_rng(subject.seed), batch_size // jax.process_count()
    seconds = {size: [] for size in resolutions}
    for _ in range(ROUNDS + 1):  # All sizes in turn, so that a slow spell of the machine is not of one size alone.
        for size in resolutions:
            images = rng.integers(0, 256, (share, *shape(size), 3), np.uint8)
            batch = sharding.put({'image': images, 'label': np.zeros(share, np.int32)}, feed.mesh)
            jax.block_until_ready(batch)
            began = time.perf_counter()
            jax.block_until_ready(step(network.variables, batch['image'], batch['label']))
            seconds[size].append(time.perf_counter() - began)
    rows = [
        {'resolution': size, 'gflop': counted[size] / 1e9, 'milliseconds': 1e3 * min(times) / batch_size}
        for size, times in seconds.items()
    ]
    return {
        'model': _name(network),
        'devices': f'{feed.mesh.size} x {jax.devices()[0].device_kind}',
        'batch_size': batch_size,
        'train_resolution': subject.train_resolution,
        'rows': rows,
    }, {}


def _name(network: Network) -> str:
    """Return the architecture, and its width where it is not the usual one."""
    name = network.about.get('architecture', 'the network')
    width, usual = network.about.get('width'), network.model.architecture.width
    return f'{name} of width {width}' if width and width != usual else name


def labels(numbers: Numbers) -> dict[str, str]:
    """Return key of a row -> what it is, with the conditions under which it was counted or measured."""
    return {
        'gflop': f'GFLOP an image ({numbers["model"]}, 2 per multiply-add)',
        'milliseconds': f'ms an image (forward pass, batch {numbers["batch_size"]}, {numbers["devices"]})',
    }


def _table(numbers: Numbers) -> tables.Table:
    (base,) = (row for row in numbers['rows'] if row['resolution'] == numbers['train_resolution'])
    rows = [
        (
            str(row['resolution']),
            *(
                f'{tables.digits(row[key])} ({row[key] / base[key]:.2f} of that at {base["resolution"]})'
                for key in labels(numbers)
            ),
        )
        for row in numbers['rows']
    ]
    return ('test resolution', *labels(numbers).values()), rows


def _draw(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw operations and milliseconds of an image against the test resolution."""
    figure = new_figure(4.4)
    sizes = [row['resolution'] for row in numbers['rows']]
    x = [side(size) for size in sizes]
    for axes, (key, label) in zip(figure.subplots(2, 1, sharex=True), labels(numbers).items(), strict=True):
        axes.plot(x, [row[key] for row in numbers['rows']], marker='o', color=BEFORE)
        axes.set_ylim(bottom=0)
        axes.set_title(label, fontsize=9)
        axes.grid(alpha=0.3)
    axes.set_xticks(x, [str(size) for size in sizes])
    axes.set_xlabel('test resolution (pixels)')
    return figure


STUDY = Study(
    compute,
    {
        'cost': Picture(
            _draw, 'What a forward pass costs', 'Operations of one image, and its time where this run was made.'
        )
    },
    table=_table,
)
