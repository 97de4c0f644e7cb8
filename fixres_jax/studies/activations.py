"""Pooled activations at each test resolution, before and after adaptation.

Source: figures 3 and 4 of the paper.
"""

import numpy as np

from fixres_jax.adaptation import embeddings
from fixres_jax.core.figures import Figure, new_figure, shades, strokes
from fixres_jax.core.resolution import side
from fixres_jax.data import sources
from fixres_jax.studies.study import Arrays, Numbers, Picture, Study, Subject

NUM_QUANTILES = 401
NEAR_ZERO = 0.01  # of the mean activation at the training resolution


def compute(subject: Subject) -> tuple[Numbers, Arrays]:
    """Find the distribution of the pooled activations of test images.

    Returns:
      A row for each resolution and network with mean, std and the share of near-zero values; quantiles at 'shares' as
      '<resolution>_<network>'.
    """
    networks, train_resolution = subject.networks, subject.train_resolution
    resolutions = sorted({*subject.resolutions, train_resolution, networks.resolution})
    picked = np.random.default_rng(subject.seed).permutation(len(subject.test))[: subject.images]
    # The network adapted at each resolution, where there is one.
    adapted = {size: networks.own.get(size, networks.after) for size in resolutions}
    layers = subject.adaptation.batch_norm
    changes = {size: {'before': {}, 'after': network.statistics(layers)} for size, network in adapted.items()}
    by_point = embeddings.embed(
        networks.before,
        changes,
        sources.subset(subject.test, np.sort(picked)),
        subject.test_transforms(resolutions),
        subject.feed.named('activations'),
        storage=subject.adaptation.storage(None),
    )
    values = {point: embeddings.gather(data)[0] for point, data in by_point.items()}
    return summarize(values, train_resolution, len(picked))


def summarize(
    values: dict[tuple[int, str], np.ndarray], train_resolution: int, num_images: int
) -> tuple[Numbers, Arrays]:
    """Summarize (resolution, network) -> activations float32[N, C]; see `compute`."""
    nearest_size = min({size for size, _ in values}, key=lambda size: abs(side(size) - train_resolution))
    threshold = NEAR_ZERO * float(values[nearest_size, 'before'].mean())
    shares = np.linspace(0, 1, NUM_QUANTILES)
    rows, arrays = [], {'shares': shares}
    for (size, network), array in values.items():
        near_zero = float((array < threshold).mean())
        moments = {'mean': float(array.mean()), 'std': float(array.std()), 'near_zero': near_zero}
        rows.append({'resolution': size, 'network': network} | moments)
        arrays[f'{size}_{network}'] = np.quantile(array, shares).astype(np.float32)
    return {'images': num_images, 'threshold': threshold, 'rows': rows}, arrays


def _draw(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw the cumulative distributions of the pooled activations, before and after."""
    rows = numbers['rows']
    resolutions = sorted({row['resolution'] for row in rows}, key=side)
    figure = new_figure(6.8)
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    looks = list(zip(resolutions, shades(len(resolutions)), strokes(len(resolutions)), strict=True))
    tails = [np.interp(0.99, arrays['shares'], values) for name, values in arrays.items() if name != 'shares']
    for axes, network, title in zip(panels, ('before', 'after'), ('not adapted', 'adapted at each size'), strict=True):
        for resolution, colour, width in looks:
            row = next(row for row in rows if (row['resolution'], row['network']) == (resolution, network))
            label = f'{resolution}: {100 * row["near_zero"]:.1f} % near zero'
            values = arrays[f'{resolution}_{network}']
            axes.plot(values, arrays['shares'], color=colour, linewidth=width, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_ylabel('share of values below')
        axes.set_xlim(0, max(tails))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc='lower right')
    axes.set_xlabel('pooled activation')
    return figure


STUDY = Study(
    compute,
    {
        'activations': Picture(
            _draw, 'Activations at the average pool', 'Share of values below, for each test resolution.'
        )
    },
)
