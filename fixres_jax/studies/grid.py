"""Training resolution against test resolution, of finished runs.

Source: figure 5 of the paper, both panels.
"""

from fixres_jax.core.figures import Figure, legend_below, new_figure, shades, strokes
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
        adapted = 'own' if any('top1_own' in point for point in row['curve']) else 'after'
        for axes, kind in zip(panels, ('before', adapted), strict=True):
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


STUDY = Study(
    compute,
    {
        'grid': Picture(
            _draw,
            'Training resolution against test resolution',
            'A curve for each training resolution; bands: 95 % intervals of each point alone.',
        )
    },
    needs_networks=False,
    in_report=False,
)
