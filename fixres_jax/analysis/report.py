"""What a run was worth: report.json, report.md and its plots."""

from typing import Any

from etils import epath

from fixres_jax.analysis import plots
from fixres_jax.evaluate import compare, find_point
from fixres_jax.metrics import read_metrics, write_json
from fixres_jax.progress import duration

NUMBERS = {
    'train_resolution': 'tested at the training size',
    'larger': 'larger, not adapted',
    'adapted': 'larger and adapted',
}


def build(
    results: dict[str, dict[str, Any]], *, train_resolution: int, config: dict[str, Any], environment: dict[str, Any]
) -> dict[str, Any]:
    """Put the phases' results together.

    Args:
      results: phase -> its result, of the phases train, sweep, finetune and evaluate.
      train_resolution: pixels.
      config: the run's config as a nested dict.
      environment: command, date, devices, host, versions.

    Returns:
      The content of `report.json`: accuracies in percent, differences in points, low and high the 95 % interval.
    """
    test = results['evaluate']
    chosen = results['sweep']['test_resolution']
    at = {'train_resolution': ('before', train_resolution), 'larger': ('before', chosen), 'adapted': ('after', chosen)}
    resolutions = sorted({point['resolution'] for point in test['points']})
    curve = []
    for resolution in resolutions:
        row = {'resolution': resolution}
        for network in ('before', 'after'):
            point = find_point(test, network, resolution)
            row |= {f'{name}_{network}': point[name] for name in ('top1', 'low', 'high')}
        curve.append(row)
    return {
        'train_resolution': train_resolution,
        'test_resolution': chosen,
        'test_resolution_chosen_on': results['sweep']['chosen_on'],
        'numbers': {name: find_point(test, *key) for name, key in at.items()},
        'larger_minus_train_resolution': compare(test, at['larger'], at['train_resolution']),
        'adapted_minus_larger': compare(test, at['adapted'], at['larger']),
        'adapted_minus_train_resolution': compare(test, at['adapted'], at['train_resolution']),
        'curve': curve,
        'held_out_curve': results['sweep'].get('points', []),
        'images': {'train': results['train']['images'], 'test': test['count']},
        'images_seen': {phase: results[phase]['images_seen'] for phase in ('train', 'finetune')},
        'seconds': {phase: result['seconds'] for phase, result in results.items()},
        'environment': environment,
        'config': config,
    }


def verdict(report: dict[str, Any]) -> str:
    """Say in a sentence or two what the run showed, and what it did not."""
    steps = (
        ('The larger test resolution', report['larger_minus_train_resolution']),
        ('The adaptation', report['adapted_minus_larger']),
    )
    sentences = []
    for what, change in steps:
        size = f'{change["difference"]:+.2f} points (95 % interval {change["low"]:+.2f} to {change["high"]:+.2f})'
        if change['low'] <= 0 <= change['high']:
            size += ', which these images cannot tell from no change'
        sentences.append(f'{what} changed top-1 by {size}.')
    if report['test_resolution'] == report['train_resolution']:
        sentences[0] = 'No larger resolution was better on the held-out images, so the training size was kept.'
    return ' '.join(sentences)


def _number_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            NUMBERS[name],
            str(point['resolution']),
            f'{point["top1"]:.2f}',
            f'{point["low"]:.2f} to {point["high"]:.2f}',
            f'{point["top5"]:.2f}',
            f'{point["count"]:,}',
        )
        for name, point in report['numbers'].items()
    ]


NUMBER_HEADER = ('', 'test resolution', 'top-1 (%)', '95 % interval', 'top-5 (%)', 'images')


def summary(report: dict[str, Any]) -> str:
    """Return the three numbers and the verdict as lines for a terminal."""
    rows = [NUMBER_HEADER, *_number_rows(report)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(NUMBER_HEADER))]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return '\n'.join([*lines, verdict(report)])


def markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    return '\n'.join(f'| {" | ".join(row)} |' for row in (header, ('---',) * len(header), *rows))


def markdown(report: dict[str, Any]) -> str:
    """Return the content of `report.md`."""
    differences = [
        (label, f'{d["difference"]:+.2f}', f'{d["low"]:+.2f} to {d["high"]:+.2f}')
        for label, d in (
            ('larger resolution alone', report['larger_minus_train_resolution']),
            ('adaptation, at the same resolution', report['adapted_minus_larger']),
            ('both together', report['adapted_minus_train_resolution']),
        )
    ]
    curve = [
        (
            str(row['resolution']),
            *(f'{row[f"top1_{n}"]:.2f} ({row[f"low_{n}"]:.2f} to {row[f"high_{n}"]:.2f})' for n in ('before', 'after')),
        )
        for row in report['curve']
    ]
    costs = [
        (phase, duration(seconds), f'{report["images_seen"].get(phase, 0):,}' if phase in report['images_seen'] else '')
        for phase, seconds in report['seconds'].items()
    ]
    curve_header = ('test resolution', 'not adapted, top-1 (%)', f'adapted at {report["test_resolution"]}, top-1 (%)')
    environment, model = report['environment'], report['config']['model']
    versions = ', '.join(f'{name} {version}' for name, version in environment['versions'].items())
    return f"""# {model['name']}, trained at {report['train_resolution']}, tested at {report['test_resolution']}

{verdict(report)}

{markdown_table(NUMBER_HEADER, _number_rows(report))}

Paired differences in top-1, in points, on the same {report['images']['test']:,} test images:

{markdown_table(('step', 'difference', '95 % interval'), differences)}

The test resolution was chosen on: {report['test_resolution_chosen_on']}.

## Accuracy against test resolution

![Top-1 accuracy against test resolution](plots/accuracy.png)

{markdown_table(curve_header, curve)}

## Training

![Loss and accuracy of training batches](plots/training.png)

{markdown_table(('phase', 'time', 'images seen'), costs)}

## How to run it again

```
{environment['command']}
```

On {environment['date']}, {environment['devices']}, {environment['host']}; {versions}.
The whole config is in `config.json`.
"""


def write(workdir: epath.Path, report: dict[str, Any]) -> None:
    """Write report.json, report.md and plots/*.png into a workdir."""
    name = report['config']['model']['name']
    figure = plots.accuracy_by_resolution(
        report['curve'],
        train_resolution=report['train_resolution'],
        test_resolution=report['test_resolution'],
        count=report['images']['test'],
        title=f'{name} trained at {report["train_resolution"]}',
    )
    plots.save(figure, workdir / 'plots' / 'accuracy.png')
    lines = {phase: read_metrics(workdir / phase / 'metrics.jsonl') for phase in ('train', 'finetune')}
    plots.save(plots.training_curves(lines), workdir / 'plots' / 'training.png')
    path = workdir / 'report.md'
    temporary = path.parent / '.report.md.tmp'
    temporary.write_text(markdown(report))
    temporary.replace(path)
    write_json(workdir / 'report.json', report)
