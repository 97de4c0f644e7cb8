"""The pictures of a run that are not of a study, drawn from its saved numbers only."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from etils import epath

from fixres_jax.core import figures
from fixres_jax.core.figures import AFTER, BEFORE, CHANCE, INK, OWN, Figure, legend_below, new_figure, strokes
from fixres_jax.core.resolution import side
from fixres_jax.report import findings
from fixres_jax.studies import cost
from fixres_jax.training.metrics_log import read_metrics

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Against:
    """Describe what accuracy is drawn against.

    Attributes:
      key: of a row of the curve.
      label: of the axis; '' for what the study of the cost says.
      caption: below the picture.
      ticks: whether every point has its own.
    """

    key: str
    label: str = ''
    caption: str = ''
    ticks: bool = False


# File -> what accuracy is drawn against there.
AGAINST = {
    'accuracy': Against('resolution', 'test resolution (pixels)', ticks=True),
    'accuracy_gflop': Against('gflop', caption='Top-1 against operations; test resolutions above the points.'),
    'accuracy_milliseconds': Against(
        'milliseconds',
        caption='Top-1 against time; test sizes above the points. A curve turns back where a larger size is faster.',
    ),
}


def draw(workdir: epath.Path, report: dict[str, Any]) -> None:
    """Draw the pictures of a report into plots/<name>.svg of its workdir."""
    labels = findings.networks_of_curve(report)
    marks = {name: report[f'{name}_resolution'] for name in ('train', 'test')}
    costs = cost.labels(report['cost']) if report['cost'] else {}
    for name, against in AGAINST.items():
        axis = dataclasses.replace(against, label=against.label or costs.get(against.key, ''))
        figure = accuracy(report['curve'], axis, labels, marks)
        if figure is not None:
            figures.save(figure, workdir / 'plots' / f'{name}.svg')
    lines = {phase: read_metrics(workdir / phase / 'metrics.jsonl') for phase in ('train', 'finetune')}
    if any(lines.values()):
        figures.save(training_curves(lines), workdir / 'plots' / 'training.svg')


def accuracy(curve: Sequence[Row], against: Against, labels: dict[str, str], marks: dict[str, int]) -> Figure | None:
    """Draw top-1 before and after adaptation, with 95 % intervals as bands.

    Args:
      curve: rows with resolution in pixels and top1, low, high in percent, each with _before and _after, with _own
        where a network adapted at that very resolution was tested, and with _control at the training size.
      against: what the accuracy is drawn against.
      labels: network -> what the legend says of it; others are not drawn.
      marks: resolutions that get a line, 'train' and 'test'.

    Returns:
      The figure, or None where the curve does not have what it is drawn against.
    """
    curve = [row for row in curve if against.key in row]
    if not curve:
        return None
    figure = new_figure(4)
    axes = figure.subplots()
    # Where curves coincide, a broad one is seen through the gaps of the one over it, and on both its sides.
    broken = (0, (5, 2))
    looks = {
        'before': (BEFORE, 'o', '-', 9),
        'after': (AFTER, 's', broken, 5),
        'own': (OWN, '^', '-', 5),
        'control': (INK, '*', '', 10),
    }
    widths = dict(zip(looks, strokes(len(looks)), strict=True))
    for name, label in labels.items():
        rows = [row for row in curve if f'top1_{name}' in row]
        if rows:
            colour, marker, line, size = looks[name]
            at = [side(row[against.key]) for row in rows]
            top1, low, high = ([row[f'{part}_{name}'] for row in rows] for part in ('top1', 'low', 'high'))
            style = {'marker': marker, 'markersize': size, 'linestyle': line, 'linewidth': widths[name]}
            axes.plot(at, top1, color=colour, label=label, **style)
            axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    at_resolution = {row['resolution']: side(row[against.key]) for row in curve}
    for name, line, label in (('train', ':', 'trained at'), ('test', '--', 'tested at')):
        if marks[name] in at_resolution:
            at = at_resolution[marks[name]]
            axes.axvline(at, color=CHANCE, linestyle=line, label=f'{label} {marks[name]}')
    axes.set_xlabel(against.label)
    axes.set_ylabel('top-1 (%)')
    if against.ticks:
        x = [row[against.key] for row in curve]
        axes.set_xticks([side(value) for value in x], [str(value) for value in x])
    else:
        for row in curve:
            top = max(value for key, value in row.items() if key.startswith('top1_'))
            where = {'xytext': (0, 7), 'textcoords': 'offset points', 'ha': 'center', 'fontsize': 8}
            axes.annotate(row['resolution'], (side(row[against.key]), top), **where)
        axes.margins(y=0.1)
    axes.grid(alpha=0.3)
    legend_below(figure)
    return figure


def training_curves(phases: dict[str, Sequence[dict[str, float]]]) -> Figure:
    """Draw loss and top-1 of training batches, and of held-out images where they were looked at, for each phase.

    Args:
      phases: phase -> lines of its `metrics.jsonl`.
    """
    phases = {name: lines for name, lines in phases.items() if lines}
    figure = new_figure(4.4 * max(1, len(phases)))
    rows = iter(figure.subplots(2 * max(1, len(phases)), 1, squeeze=False)[:, 0])
    for name, lines in phases.items():
        steps = [line['step'] for line in lines]
        for key, scale, label in (('loss', 1, 'cross entropy (nats)'), ('top1', 100, 'top-1 (%)')):
            axes = next(rows)
            axes.plot(steps, [scale * line[key] for line in lines], color=BEFORE, label='training batches')
            seen = [
                (line['step'], scale * line[held_out]) for line in lines if (held_out := f'validation_{key}') in line
            ]
            if seen:
                axes.plot(*zip(*seen, strict=True), 's--', color=AFTER, markersize=4, label='held-out images')
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
        axes.set_xlabel(f'step of {name}')
    legend_below(figure)
    return figure
