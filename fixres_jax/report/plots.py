"""The pictures of a run that are not of a study, drawn from its saved numbers only."""

from collections.abc import Sequence
from typing import Any

from fixres_jax.core.figures import AFTER, BEFORE, CHANCE, OWN, Figure, new_figure
from fixres_jax.core.resolution import side


def accuracy_by_resolution(
    curve: Sequence[dict[str, Any]], *, train_resolution: int, test_resolution: int, count: int, title: str
) -> Figure:
    """Draw top-1 against test resolution before and after adaptation, with 95 % intervals as bands.

    Args:
      curve: rows with resolution in pixels and top1, low, high in percent, each with _before and _after, with _own
        where a network adapted at that very resolution was tested, and with _control at the training size.
      train_resolution: pixels, marked.
      test_resolution: pixels, where the network was adapted; marked.
      count: test images.
      title: of the picture.
    """
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for suffix, colour, marker, label in (
        ('before', BEFORE, 'o', 'not adapted'),
        ('after', AFTER, 's', f'adapted at {test_resolution}'),
        ('own', OWN, '^', 'adapted at each size'),
        ('control', 'black', '*', f'control: adapted at {train_resolution}'),
    ):
        rows = [row for row in curve if f'top1_{suffix}' in row]
        if rows:
            at = [side(row['resolution']) for row in rows]
            top1, low, high = ([row[f'{name}_{suffix}'] for row in rows] for name in ('top1', 'low', 'high'))
            axes.plot(at, top1, marker=marker, markersize=12 if marker == '*' else 6, color=colour, label=label)
            axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.axvline(train_resolution, color=CHANCE, linestyle=':', label=f'trained at {train_resolution}')
    axes.axvline(side(test_resolution), color=CHANCE, linestyle='--', label=f'chosen: {test_resolution}')
    axes.set_xlabel('test resolution (pixels)')
    axes.set_ylabel('top-1 accuracy (%)')
    axes.set_title(f'{title}\n{count:,} test images; bands: 95 % intervals of each point alone', fontsize=11)
    tested = [row['resolution'] for row in curve]
    axes.set_xticks([side(one) for one in tested], [str(one) for one in tested])
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def training_curves(phases: dict[str, Sequence[dict[str, float]]]) -> Figure:
    """Draw loss and top-1 of training batches against the step, a row for each phase.

    Args:
      phases: phase -> lines of its `metrics.jsonl`.
    """
    phases = {name: lines for name, lines in phases.items() if lines}
    figure = new_figure(9, 3.2 * max(1, len(phases)))
    rows = figure.subplots(max(1, len(phases)), 2, squeeze=False)
    for (name, lines), (left, right) in zip(phases.items(), rows, strict=True):
        steps = [line['step'] for line in lines]
        left.plot(steps, [line['loss'] for line in lines], color=BEFORE)
        left.set_ylabel('cross entropy (nats)')
        right.plot(steps, [100 * line['top1'] for line in lines], color=BEFORE)
        right.set_ylabel('top-1 of training batches (%)')
        for axes in (left, right):
            axes.set_xlabel('step')
            axes.set_title(name)
            axes.grid(alpha=0.3)
    return figure
