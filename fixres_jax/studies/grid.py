"""Training resolution against test resolution, of finished runs, and which pair to take for the time that there is.

Source: figure 5 of the paper, both panels; the frontier is ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fixres_jax.core import tables
from fixres_jax.core.figures import AFTER, BEFORE, Figure, legend_below, new_figure, shades, strokes
from fixres_jax.core.resolution import side
from fixres_jax.studies.study import Arrays, Numbers, Picture, Study, Subject


def compute(subject: Subject) -> tuple[Numbers, Arrays]:
    """Put the curves of several runs together: accuracy at every test resolution, before and after.

    Returns:
      Rows {'run', 'train_resolution', 'test_resolution', 'curve'}; no arrays.
    """
    names = ('train_resolution', 'test_resolution', 'curve')
    rows = [{'run': run} | {name: report[name] for name in names} for run, report in subject.runs.items()]
    return {'rows': sorted(rows, key=lambda row: row['train_resolution'])}, {}


def _draw(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw accuracy against test resolution for several training resolutions."""
    rows = numbers['rows']
    figure = new_figure(6.6)
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    for row, colour, width in zip(rows, shades(len(rows)), strokes(len(rows)), strict=True):
        for axes, kind in zip(panels, ('before', _adapted(row)), strict=True):
            points = [point for point in row['curve'] if f'top1_{kind}' in point]
            x = [side(point['resolution']) for point in points]
            top1, low, high = ([point[f'{name}_{kind}'] for point in points] for name in ('top1', 'low', 'high'))
            label = f'trained at {row["train_resolution"]}'
            axes.plot(x, top1, marker='o', color=colour, linewidth=width, label=label)
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    for axes, title in zip(panels, ('not adapted', 'adapted at each test resolution'), strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_ylabel('top-1 (%)')
        axes.grid(alpha=0.3)
    axes.set_xlabel('test resolution (pixels)')
    legend_below(figure)
    return figure


def _adapted(row: Mapping[str, Any]) -> str:
    """Return which accuracies of a run are of adapted networks: one for each test size, where there are such."""
    return 'own' if any('top1_own' in point for point in row['curve']) else 'after'


def frontier(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the points that no other of their kind beats in both time and accuracy, of the networks of all runs.

    Args:
      rows: of `compute`; runs whose curves have no 'milliseconds' are left out.

    Returns:
      'not adapted', 'adapted' -> points {'milliseconds', 'top1', 'low', 'high', 'train_resolution', 'resolution'}, of
      one image, the fastest first.
    """
    points: dict[str, list[dict[str, Any]]] = {'not adapted': [], 'adapted': []}
    for row in rows:
        for kind, suffix in (('not adapted', 'before'), ('adapted', _adapted(row))):
            points[kind] += [
                {name: point[f'{name}_{suffix}'] for name in ('top1', 'low', 'high')}
                | {name: point[name] for name in ('milliseconds', 'resolution')}
                | {'train_resolution': row['train_resolution']}
                for point in row['curve']
                if f'top1_{suffix}' in point and 'milliseconds' in point
            ]
    return {kind: _unbeaten(found) for kind, found in points.items()}


def _unbeaten(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    best: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point['milliseconds'], -point['top1'])):
        if not best or point['top1'] > best[-1]['top1']:
            best.append(point)
    return best


def _table(numbers: Numbers) -> tables.Table:
    """Return for each time the best pair of sizes that it is enough for, without the adaptation and with it."""
    found = frontier(numbers['rows'])
    limits = sorted({point['milliseconds'] for points in found.values() for point in points})
    rows = [(tables.digits(limit), *(_best(points, limit) for points in found.values())) for limit in limits]
    return ('ms an image, at most', *(f'{kind}: sizes, top-1 (%)' for kind in found)), rows


def _best(points: Sequence[Mapping[str, Any]], limit: float) -> str:
    """Write the best of the points that take no longer than a limit, in milliseconds."""
    within = [point for point in points if point['milliseconds'] <= limit]
    return f'{_sizes(within[-1])}: {tables.accuracy(within[-1])}' if within else ''


def _sizes(point: Mapping[str, Any]) -> str:
    """Write the training and the test size of a point."""
    return f'{point["train_resolution"]} → {point["resolution"]}'


def _draw_frontier(numbers: Numbers, arrays: Arrays) -> Figure | None:
    """Draw the best accuracy against the time of an image; nothing for runs whose reports have no times."""
    found = frontier(numbers['rows'])
    if not all(found.values()):
        return None
    figure = new_figure(4.0)
    axes = figure.subplots()
    for (kind, points), colour in zip(found.items(), (BEFORE, AFTER), strict=True):
        x = [point['milliseconds'] for point in points]
        axes.plot(x, [point['top1'] for point in points], drawstyle='steps-post', marker='o', color=colour, label=kind)
    axes.set_xlabel('ms an image (forward pass)')
    axes.set_ylabel('top-1 (%)')
    axes.grid(alpha=0.3)
    legend_below(figure)
    return figure


STUDY = Study(
    compute,
    {
        'grid': Picture(
            _draw,
            'Training resolution against test resolution',
            'A curve for each training resolution; bands: 95 % intervals of each point alone.',
        ),
        'frontier': Picture(
            _draw_frontier,
            'Accuracy for the time that there is',
            'The best of all runs within a time of the forward pass; the table tells the sizes.',
        ),
    },
    table=_table,
    needs_networks=False,
    in_report=False,
)
