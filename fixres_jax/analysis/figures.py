"""Figures of the studies, each drawn from the .json and .npz that its study has left in a workdir, and nothing else."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from fixres_jax.analysis.plots import AFTER, BEFORE, CHANCE, Figure, new_figure, save, shades
from fixres_jax.metrics import read_arrays

Numbers = dict[str, Any]
Arrays = dict[str, np.ndarray]


def draw(workdir: epath.Path, name: str) -> None:
    """Draw the figures of a study into plots/<figure>.png."""
    numbers = read(workdir, name)
    if numbers is None:
        return
    for figure_name, function in FIGURES[name].items():
        figure = function(numbers, read_arrays(workdir / 'studies' / f'{name}.npz'))
        if figure is not None:
            save(figure, workdir / 'plots' / f'{figure_name}.png')


def read(workdir: epath.Path, name: str) -> Numbers | None:
    """Return the numbers of a study, or None when it has not been made."""
    path = epath.Path(workdir) / 'studies' / f'{name}.json'
    return json.loads(path.read_text()) if path.exists() else None


def roc(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw the areas of the regions that training and testing show (figure 2 of the paper)."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    edges = 100 * arrays['edges']
    for name, colour, label in (('train', BEFORE, 'training'), ('test', AFTER, 'test')):
        axes.stairs(arrays[name] / 100, edges, color=colour, fill=True, alpha=0.25)
        mean = numbers[f'{name}_area']['mean']
        axes.stairs(arrays[name] / 100, edges, color=colour, label=f'{label}, mean {100 * mean:.0f} %')
    apparent, closed = numbers['apparent_size'], numbers['closed_form']
    axes.set_xlabel("area shown to the network (% of the image's)")
    axes.set_ylabel('density (per %)')
    axes.set_title(
        f'{numbers["images"]:,} images; objects in the test have {apparent["mean"]:.2f} +- {apparent["std"]:.2f} times '
        f'their size in training\n(closed form for square images: {closed["mean"]:.2f} +- {closed["std"]:.2f})',
        fontsize=10,
    )
    axes.legend()
    return figure


def activations(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw the cumulative distributions of the pooled activations, before and after (figures 3 and 4 of the paper)."""
    rows = numbers['rows']
    resolutions = sorted({row['resolution'] for row in rows})
    colours = shades(len(resolutions))
    figure = new_figure(9, 4.2)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    tails = [np.interp(0.99, arrays['shares'], values) for name, values in arrays.items() if name != 'shares']
    for axes, network, title in zip(panels, ('before', 'after'), ('not adapted', 'adapted at each size'), strict=True):
        for resolution, colour in zip(resolutions, colours, strict=True):
            row = next(row for row in rows if (row['resolution'], row['network']) == (resolution, network))
            label = f'{resolution}: {100 * row["near_zero"]:.1f} % near zero'
            axes.plot(arrays[f'{resolution}_{network}'], arrays['shares'], color=colour, label=label)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel('pooled activation')
        axes.set_xlim(0, max(tails))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc='lower right')
    panels[0].set_ylabel('share of values below')
    return figure


def ablation(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw what each part of the adaptation is worth, as paired differences from doing nothing."""
    rows = [row for row in numbers['rows'] if row['part'] != 'nothing']
    figure = new_figure(7, 1.2 + 0.45 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        d = row['minus_nothing']
        axes.plot([d['low'], d['high']], [place, place], color=AFTER)
        axes.plot(d['difference'], place, 'o', color=AFTER)
    axes.set_yticks(range(len(rows)), [row['part'] for row in reversed(rows)])
    axes.axvline(0, color=CHANCE, linestyle='--')
    axes.set_xlabel('top-1, points more than with nothing adapted (95 % intervals, paired)')
    axes.set_title(f'{numbers["count"]:,} test images at {numbers["test_resolution"]}', fontsize=11)
    axes.grid(alpha=0.3, axis='x')
    return figure


def examples(numbers: Numbers, arrays: Arrays) -> Figure | None:
    """Show test images that the adaptation got right and that it lost."""
    found = numbers['examples']
    kinds = [kind for kind in ('gained', 'lost') if found[kind]]
    if not kinds:
        return None
    columns = 4
    heights = [-(-len(found[kind]) // columns) for kind in kinds]
    figure = new_figure(2.2 * columns, sum(2.75 * height + 0.4 for height in heights))
    parts = figure.subfigures(len(kinds), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, kind, height in zip(parts, kinds, heights, strict=True):
        title = {'gained': 'wrong before, right after', 'lost': 'right before, wrong after'}[kind]
        part.suptitle(f'{title}: {len(found[kind])} of {found[f"num_{kind}"]}', fontsize=12)
        for place, axes in enumerate(part.subplots(height, columns, squeeze=False).ravel()):
            axes.axis('off')
            if place < len(found[kind]):
                item = found[kind][place]
                axes.imshow(arrays[kind][place])
                axes.set_title(f'{item["label"]}\n{item["before"]} →\n{item["after"]}', fontsize=8)
    return figure


def grid(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw accuracy against test resolution for several training resolutions (figure 5 of the paper)."""
    rows = numbers['rows']
    colours = shades(len(rows))
    figure = new_figure(10, 4.2)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for row, colour in zip(rows, colours, strict=True):
        adapted = 'own' if any('top1_own' in point for point in row['curve']) else 'after'
        for axes, kind in zip(panels, ('before', adapted), strict=True):
            points = [point for point in row['curve'] if f'top1_{kind}' in point]
            x = [point['resolution'] for point in points]
            top1, low, high = ([point[f'{name}_{kind}'] for point in points] for name in ('top1', 'low', 'high'))
            axes.plot(x, top1, marker='o', color=colour, label=f'trained at {row["train_resolution"]}')
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    for axes, title in zip(panels, ('not adapted', 'adapted at each test resolution'), strict=True):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel('test resolution (pixels)')
        axes.grid(alpha=0.3)
    panels[0].set_ylabel('top-1 accuracy (%)')
    panels[0].legend()
    figure.suptitle('Accuracy by training and test resolution; bands: 95 % intervals of each point alone', fontsize=12)
    return figure


FIGURES: dict[str, dict[str, Callable[[Numbers, Arrays], Figure | None]]] = {
    'roc': {'roc': roc},
    'activations': {'activations': activations},
    'ablation': {'ablation': ablation, 'examples': examples},
    'grid': {'grid': grid},
}
