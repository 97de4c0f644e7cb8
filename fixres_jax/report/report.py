"""What a run was worth: report.json, report.md and its plots."""

from typing import Any

from etils import epath

from fixres_jax.adaptation import adapt
from fixres_jax.core import figures, files, tables
from fixres_jax.core.progress import duration
from fixres_jax.core.resolution import side
from fixres_jax.core.tables import Table
from fixres_jax.evaluation.evaluate import compare, find_point
from fixres_jax.report import plots
from fixres_jax.training.metrics_log import read_metrics

NUMBERS = {
    'train_resolution': 'tested at the training size',
    'larger': 'larger, not adapted',
    'adapted': 'larger and adapted',
    'adapted_at_train_resolution': 'control: adapted at the training size',
}


def build(
    results: dict[str, dict[str, Any]], *, train_resolution: int, config: dict[str, Any], environment: dict[str, Any]
) -> dict[str, Any]:
    """Put the phases' results together.

    Args:
      results: phase -> its result, of the phases train, sweep, adapt or finetune, control (where the config has it)
        and evaluate.
      train_resolution: pixels.
      config: the run's config as a nested dict.
      environment: command, date, devices, host, versions.

    Returns:
      The content of `report.json`: accuracies in percent, differences in points, low and high the 95 % interval.
    """
    test = results['evaluate']
    chosen = results['sweep']['test_resolution']
    points = {
        'train_resolution': ('before', train_resolution),
        'larger': ('before', chosen),
        'adapted': ('after', chosen),
    }
    if 'control' in results:
        # Where the training size was kept, the adapted network is its own control.
        control = 'control' if chosen != train_resolution else 'after'
        points['adapted_at_train_resolution'] = (control, train_resolution)
    tested = {(point['network'], point['resolution']) for point in test['points']}
    resolutions = sorted({point['resolution'] for point in test['points']}, key=side)
    kind = 'adapt' if 'adapt' in results else 'finetune'
    curve = []
    for resolution in resolutions:
        row = {'resolution': resolution}
        for network in ('before', 'after', 'own', 'control'):
            if (network, resolution) in tested:
                point = find_point(test, network, resolution)
                row |= {f'{name}_{network}': point[name] for name in ('top1', 'low', 'high')}
        curve.append(row)
    return {
        'train_resolution': train_resolution,
        'test_resolution': chosen,
        'test_resolution_chosen_on': results['sweep']['chosen_on'],
        'numbers': {name: find_point(test, *key) for name, key in points.items()},
        'larger_minus_train_resolution': compare(test, points['larger'], points['train_resolution']),
        'adapted_minus_larger': compare(test, points['adapted'], points['larger']),
        'adapted_minus_train_resolution': compare(test, points['adapted'], points['train_resolution']),
        **_controlled(test, points),
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


def _controlled(test: dict[str, Any], points: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """Return what adapting was worth at the training size, and what the larger size was worth between adapted networks.

    The two add up to what adapting and the larger size are worth together.
    """
    control = points.get('adapted_at_train_resolution')
    if control is None:
        return {}
    return {
        'control_minus_train_resolution': compare(test, control, points['train_resolution']),
        'adapted_minus_control': compare(test, points['adapted'], control),
    }


def verdict(report: dict[str, Any]) -> str:
    """Say in a few sentences what the run showed, and what it did not: how much is resolution, how much refitting."""
    train, test = report['train_resolution'], report['test_resolution']
    both = f'Adapted and tested at {test}, the network {_gains(report["adapted_minus_train_resolution"])}'
    if train == test:
        return f'No larger resolution was better on the held-out images, so the training size was kept. {both}.'
    sentences = [
        f'{both} over its training size, {train}.',
        f'The larger size alone, without adaptation, {_gains(report["larger_minus_train_resolution"])}.',
    ]
    if 'adapted_minus_control' in report:
        sentences += [
            f'Refitting alone, adapted at {train}, {_gains(report["control_minus_train_resolution"])}.',
            f'The rest is resolution: between adapted networks, {test} over {train} '
            f'{_gains(report["adapted_minus_control"])}.',
        ]
    else:
        sentences.append('How much of it is refitting was not measured (control=False).')
    return ' '.join(sentences)


def _gains(change: dict[str, float]) -> str:
    """Say what a change was worth, and whether that can be told from nothing."""
    difference = change['difference']
    interval = f'(95 % interval of the change {change["low"]:+.2f} to {change["high"]:+.2f})'
    if change['low'] <= 0 <= change['high']:
        return f'shows no detectable effect on these images: {difference:+.2f} points of top-1 {interval}'
    return f'{"gains" if difference > 0 else "loses"} {abs(difference):.2f} points of top-1 {interval}'


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


def number_table(report: dict[str, Any]) -> Table:
    """Return header and rows of the numbers that are never merged."""
    return ('', 'test resolution', 'top-1 (%)', '95 % interval', 'top-5 (%)', 'images'), _number_rows(report)


def summary(report: dict[str, Any]) -> str:
    """Return the numbers and the verdict as lines for a terminal."""
    return f'{tables.plain(number_table(report))}\n{verdict(report)}'


def difference_table(report: dict[str, Any]) -> Table:
    """Return header and rows of what each step was worth."""
    steps = {
        'larger resolution, not adapted': 'larger_minus_train_resolution',
        'adaptation, at the larger resolution': 'adapted_minus_larger',
        'both together': 'adapted_minus_train_resolution',
        'refitting: adaptation at the training size': 'control_minus_train_resolution',
        'resolution: the larger one, between adapted networks': 'adapted_minus_control',
    }
    rows = [(label, *tables.difference(report[name])) for label, name in steps.items() if name in report]
    return ('step', 'difference', '95 % interval'), rows


def curve_table(report: dict[str, Any]) -> Table:
    """Return header and rows of top-1 against test resolution."""
    kinds = {
        'before': 'not adapted',
        'after': f'adapted at {report["test_resolution"]}',
        'own': 'adapted at each size',
    }
    kinds = {name: label for name, label in kinds.items() if any(f'top1_{name}' in row for row in report['curve'])}
    rows = [
        (str(row['resolution']), *(tables.accuracy(row, f'_{name}') if f'top1_{name}' in row else '' for name in kinds))
        for row in report['curve']
    ]
    return ('test resolution', *(f'{label}, top-1 (%)' for label in kinds.values())), rows


def cost_table(report: dict[str, Any]) -> Table:
    """Return header and rows of the cost of each phase."""
    seen = {phase: f'{count:,}' for phase, count in report['images_seen'].items()}
    rows = [(phase, duration(seconds), seen.get(phase, '')) for phase, seconds in report['seconds'].items()]
    return ('phase', 'time', 'images through the network'), rows


def adaptation_sentence(report: dict[str, Any]) -> str:
    """Say which adaptation was used, how its classifier was found, and on what that was chosen."""
    record = report['adaptation']
    if record['kind'] == 'finetune':
        return f'Adapted by SGD fine-tuning through the network, {record["num_steps"]:,} steps.'
    text = (
        f'Adapted in one pass: statistics of {", ".join(record["batch_norm"])} from {record["statistics_images"]:,} '
        f'training images, then the classifier on the embeddings of all {record["images"]:,}; {record["passes"]:.2f} '
        'passes through the network in all. '
    )
    return f'{text}The classifier: {adapt.describe(record)}.'


def classes_sentence(report: dict[str, Any]) -> str:
    """Say how the network does among the data's classes alone, where it knows others too; '' where it does not."""
    if not report['present']:
        return ''
    numbers = [
        f'{tables.accuracy(point, "_among_present")} {NUMBERS[name]}' for name, point in report['numbers'].items()
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

{tables.markdown(number_table(report))}

{sentence}Paired differences in top-1, in points, on the same {report['images']['test']:,} test images:

{tables.markdown(difference_table(report))}

The test resolution was chosen on: {report['test_resolution_chosen_on']}.

{adaptation_sentence(report)}

## Accuracy against test resolution

![Top-1 accuracy against test resolution](plots/accuracy.png)

{tables.markdown(curve_table(report))}

## Cost

{training}{tables.markdown(cost_table(report))}

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
    figures.save(figure, workdir / 'plots' / 'accuracy.png')
    lines = {phase: read_metrics(workdir / phase / 'metrics.jsonl') for phase in ('train', 'finetune')}
    if any(lines.values()):
        figures.save(plots.training_curves(lines), workdir / 'plots' / 'training.png')
    files.write(workdir / 'report.md', markdown(report))
    files.write_json(workdir / 'report.json', report)
