"""What a run was worth: report.json, report.md and its plots."""

from typing import Any

from etils import epath

from fixres_jax import files
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
      results: phase -> its result, of the phases train, sweep, adapt or finetune, and evaluate.
      train_resolution: pixels.
      config: the run's config as a nested dict.
      environment: command, date, devices, host, versions.

    Returns:
      The content of `report.json`: accuracies in percent, differences in points, low and high the 95 % interval.
    """
    test = results['evaluate']
    chosen = results['sweep']['test_resolution']
    at = {'train_resolution': ('before', train_resolution), 'larger': ('before', chosen), 'adapted': ('after', chosen)}
    tested = {(point['network'], point['resolution']) for point in test['points']}
    resolutions = sorted({point['resolution'] for point in test['points']})
    kind = 'adapt' if 'adapt' in results else 'finetune'
    curve = []
    for resolution in resolutions:
        row = {'resolution': resolution}
        for network in ('before', 'after', 'own'):
            if (network, resolution) in tested:
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
        'present': test.get('present'),
        'curve': curve,
        'held_out_curve': results['sweep'].get('points', []),
        'images': {'train': results['train']['images'], 'test': test['count']},
        'adaptation': {'kind': {'adapt': 'one_pass', 'finetune': 'finetune'}[kind]} | results[kind],
        'images_seen': {phase: result['images_seen'] for phase, result in results.items() if 'images_seen' in result},
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


Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def difference_table(report: dict[str, Any]) -> Table:
    """Return header and rows of what each step was worth."""
    steps = {
        'larger resolution alone': 'larger_minus_train_resolution',
        'adaptation, at the same resolution': 'adapted_minus_larger',
        'both together': 'adapted_minus_train_resolution',
    }
    rows = [(label, *_difference(report[name])) for label, name in steps.items()]
    return ('step', 'difference', '95 % interval'), rows


def _difference(d: dict[str, float]) -> tuple[str, str]:
    return f'{d["difference"]:+.2f}', f'{d["low"]:+.2f} to {d["high"]:+.2f}'


def curve_table(report: dict[str, Any]) -> Table:
    """Return header and rows of top-1 against test resolution."""
    kinds = {
        'before': 'not adapted',
        'after': f'adapted at {report["test_resolution"]}',
        'own': 'adapted at each size',
    }
    kinds = {name: label for name, label in kinds.items() if any(f'top1_{name}' in row for row in report['curve'])}
    rows = [
        (str(row['resolution']), *(_with_interval(row, f'_{name}') if f'top1_{name}' in row else '' for name in kinds))
        for row in report['curve']
    ]
    return ('test resolution', *(f'{label}, top-1 (%)' for label in kinds.values())), rows


def _with_interval(row: dict[str, Any], suffix: str = '') -> str:
    return '{:.2f} ({:.2f} to {:.2f})'.format(*(row[f'{name}{suffix}'] for name in ('top1', 'low', 'high')))


def cost_table(report: dict[str, Any]) -> Table:
    """Return header and rows of the cost of each phase."""
    seen = {phase: f'{count:,}' for phase, count in report['images_seen'].items()}
    rows = [(phase, duration(seconds), seen.get(phase, '')) for phase, seconds in report['seconds'].items()]
    return ('phase', 'time', 'images through the network'), rows


def ablation_table(numbers: dict[str, Any]) -> Table:
    """Return header and rows of what each part of the adaptation was worth, from that study's numbers."""
    rows = [
        (row['part'], _with_interval(row), *(_difference(row['minus_nothing']) if number else ('', '')))
        for number, row in enumerate(numbers['rows'])  # the first is nothing itself
    ]
    return ('adapted', 'top-1 (%)', 'minus nothing', '95 % interval'), rows


def adaptation_sentence(report: dict[str, Any]) -> str:
    """Say which adaptation was used, how its classifier was found, and on what that was chosen."""
    found = report['adaptation']
    if found['kind'] == 'finetune':
        return f'Adapted by SGD fine-tuning through the network, {found["num_steps"]:,} steps.'
    solver = {'lbfgs': 'L-BFGS', 'sgd': "SGD with the reference's values"}[found['solver']]
    text = (
        f'Adapted in one pass: statistics of {", ".join(found["batch_norm"])} from {found["statistics_images"]:,} '
        f'training images, then the classifier on the embeddings of all {found["images"]:,}; {found["passes"]:.2f} '
        'passes through the network in all. '
    )
    if found['chosen_on'] is None:
        unseen = 'No images are known to be unseen by the network, so nothing was chosen'
        return f'{text}{unseen}: {solver}, weight decay {found["chosen"]:g}.'
    where = f'on {found["before"]["count"]:,} held-out training images'
    if found['kept_old']:
        return f'{text}The old classifier and statistics were kept: nothing was better {where}.'
    changes = f'top-1 {found["before"]["top1"]:.2f} to {found["after"]["top1"]:.2f} %'
    return f'{text}Classifier by {solver}; weight decay {found["chosen"]:g} chosen {where} ({changes} there).'


def classes_sentence(report: dict[str, Any]) -> str:
    """Say how the network does among the data's classes alone, where it knows others too; '' where it does not."""
    if not report['present']:
        return ''
    numbers = [
        f'{_with_interval(point, "_among_present")} {NUMBERS[name]}' for name, point in report['numbers'].items()
    ]
    return (
        f'The network knows more classes than the {len(report["present"])} of the data and may answer with any. '
        f'Among the classes of the data alone its top-1 in percent is {", ".join(numbers)}.'
    )


def markdown(report: dict[str, Any]) -> str:
    """Return the content of `report.md`."""
    environment, model = report['environment'], report['config']['model']
    trained = report['images_seen'].get('train')
    training = '![Loss and accuracy of training batches](plots/training.png)\n\n' if trained else ''
    versions = ', '.join(f'{name} {version}' for name, version in environment['versions'].items())
    sentence = f'{classes_sentence(report)}\n\n' if report['present'] else ''
    return f"""# {model['name']}, trained at {report['train_resolution']}, tested at {report['test_resolution']}

{verdict(report)}

{markdown_table(NUMBER_HEADER, _number_rows(report))}

{sentence}Paired differences in top-1, in points, on the same {report['images']['test']:,} test images:

{markdown_table(*difference_table(report))}

The test resolution was chosen on: {report['test_resolution_chosen_on']}.

{adaptation_sentence(report)}

## Accuracy against test resolution

![Top-1 accuracy against test resolution](plots/accuracy.png)

{markdown_table(*curve_table(report))}

## Cost

{training}{markdown_table(*cost_table(report))}

`report.html` holds the training curves, what each part of the adaptation was worth, and examples.

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
    if any(lines.values()):
        plots.save(plots.training_curves(lines), workdir / 'plots' / 'training.png')
    files.write(workdir / 'report.md', markdown(report))
    write_json(workdir / 'report.json', report)
