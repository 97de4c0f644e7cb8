"""What a report says: its sentences and its tables, the same on every page."""

from typing import Any

from fixres_jax.adaptation import adapt
from fixres_jax.core import tables
from fixres_jax.core.progress import duration
from fixres_jax.core.tables import Table
from fixres_jax.report.report import DIFFERENCES, true_point

NUMBERS = {
    'train_resolution': 'tested at the training size',
    'larger': 'larger, not adapted',
    'adapted': 'larger and adapted',
    'adapted_at_train_resolution': 'control: adapted at the training size',
    'not_averaged': 'the last parameters, not their average, at the training size',
}
STEPS = {
    'larger_minus_train_resolution': 'larger resolution, not adapted',
    'adapted_minus_larger': 'adaptation, at the test resolution',
    'adapted_minus_train_resolution': 'both together',
    'control_minus_train_resolution': 'adaptation, at the training size',
    'averaged_minus_not_averaged': 'averaging the parameters, at the training size',
    'adapted_minus_control': 'resolution: the larger one, between adapted networks',
}
TOP5_CLASSES = 10  # with more than these, top-5 says something


def title(report: dict[str, Any]) -> str:
    """Say what was run."""
    name = report['config']['model']['name']
    return f'{name}, trained at {report["train_resolution"]}, tested at {report["test_resolution"]}'


def verdict(report: dict[str, Any]) -> str:
    """Say in a few sentences what the run showed, and what it did not: how much is resolution, how much refitting."""
    train, test, rejected = report['train_resolution'], report['test_resolution'], report['rejected']
    larger = f'The larger size alone, without adaptation, {_gains(report.get("larger_minus_train_resolution"))}.'
    kept = f'No larger resolution was better on the held-out images, so the training size, {train}, was kept.'
    if report['test_resolution_chosen_on'] == 'given':
        kept = f'The test resolution was given: the training size, {train}.'
    if 'after' in rejected:
        reason = 'The adaptation was rejected: no classifier that it found was better on the held-out images.'
        same = f'What is called adapted is the old network, tested at {test}.'
        return ' '.join([reason, same, kept if train == test else larger])
    both = f'Adapted and tested at {test}, the network {_gains(report["adapted_minus_train_resolution"])}'
    if train == test:
        return f'{kept} {both}.'
    sentences = [f'{both} over its training size, {train}.', larger]
    fitted = 'New statistics' if _keeps_the_classifier(report) else 'Refitting'
    if 'control' in rejected:
        sentences.append(f'{fitted} alone, at {train}, was rejected on the held-out images: all of it is resolution.')
    elif 'adapted_minus_control' in report:
        sentences += [
            f'{fitted} alone, adapted at {train}, {_gains(report["control_minus_train_resolution"])}.',
            f'The rest is resolution: between adapted networks, {test} over {train} '
            f'{_gains(report["adapted_minus_control"])}.',
        ]
    else:
        sentences.append(f'How much of it is {fitted.lower()} was not measured (control=False).')
    return ' '.join(sentences)


def _keeps_the_classifier(report: dict[str, Any]) -> bool:
    """Whether the adaptation was new statistics of BatchNorm and nothing else."""
    config = report['config']
    return config['adaptation'] == 'one_pass' and config['adapt']['solver'] == 'none'


def _gains(change: dict[str, float]) -> str:
    """Say what a change was worth, and whether that can be told from nothing."""
    difference = change['difference']
    interval = f'(95 % interval of the change {change["low"]:+.2f} to {change["high"]:+.2f})'
    if change['low'] <= 0 <= change['high']:
        return f'shows no detectable effect on these images: {difference:+.2f} points of top-1 {interval}'
    return f'{"gains" if difference > 0 else "loses"} {abs(difference):.2f} points of top-1 {interval}'


def numbers(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what each number is called -> its point, of those that are not one more name of the same network."""
    labels = NUMBERS
    if report['train_resolution'] == report['test_resolution']:
        labels = NUMBERS | {'adapted': 'adapted at the training size'}
    by_network: dict[tuple[str, int], str] = {}
    for name, point in report['numbers'].items():
        by_network.setdefault(true_point((point['network'], point['resolution']), report['rejected']), name)
    return {labels[name]: report['numbers'][name] for name in by_network.values()}


def says_top5(report: dict[str, Any]) -> bool:
    """Say whether top-5 is worth a column: of few classes, five guesses hit nearly always."""
    return report['num_classes'] > TOP5_CLASSES


def classes_of_mean(report: dict[str, Any]) -> int:
    """Return over how many classes the mean per class is; 0 where it says nothing, since it is top-1."""
    points = list(report['numbers'].values())
    return points[0]['classes'] if tables.uneven(points) else 0


def number_table(report: dict[str, Any]) -> Table:
    """Return header and rows of the numbers that are never merged."""
    top5, classes = says_top5(report), classes_of_mean(report)
    means = [f'mean per class (%), {classes:,} classes'] if classes else []
    header = ('', 'test resolution', 'top-1 (%)', '95 % interval', *means, *(['top-5 (%)'] if top5 else []), 'images')
    rows = [
        (
            label,
            str(point['resolution']),
            f'{point["top1"]:.2f}',
            f'{point["low"]:.2f} to {point["high"]:.2f}',
            *([f'{point["mean_per_class"]:.2f}'] if classes else []),
            *([f'{point["top5"]:.2f}'] if top5 else []),
            f'{point["count"]:,}',
        )
        for label, point in numbers(report).items()
    ]
    return header, rows


def summary(report: dict[str, Any]) -> str:
    """Return the numbers and the verdict as lines for a terminal."""
    return f'{tables.plain(number_table(report))}\n{verdict(report)}'


def difference_table(report: dict[str, Any]) -> Table:
    """Return header and rows of what each step was worth, of those steps that were taken."""
    networks = {
        name: true_point((point['network'], point['resolution']), report['rejected'])
        for name, point in report['numbers'].items()
    }
    rows, done = [], set()
    for name, label in STEPS.items():
        pair = tuple(networks.get(number) for number in DIFFERENCES[name])
        between_adapted = name == 'adapted_minus_control' and 'after' in report['rejected']
        if name in report and pair[0] != pair[1] and pair not in done and not between_adapted:
            rows.append((label, *tables.difference(report[name])))
            done.add(pair)
    return ('step', 'difference', '95 % interval'), rows


def networks_of_curve(report: dict[str, Any]) -> dict[str, str]:
    """Return network -> what a curve of it is called, of those that have one."""
    test = report['test_resolution']
    kinds = {
        'before': 'not adapted',
        'after': f'rejected at {test}: the same' if 'after' in report['rejected'] else f'adapted at {test}',
        'own': 'adapted at each size',
        'control': f'control: adapted at {report["train_resolution"]}',
    }
    if 'control' in report['rejected']:
        del kinds['control']
    return {name: label for name, label in kinds.items() if any(f'top1_{name}' in row for row in report['curve'])}


def curve_table(report: dict[str, Any]) -> Table:
    """Return header and rows of top-1 against test resolution."""
    kinds = {name: label for name, label in networks_of_curve(report).items() if name != 'control'}
    if 'after' in report['rejected']:
        del kinds['after']
    rows = [
        (
            str(row['resolution']),
            *(tables.accuracy(row, f'_{name}') if f'top1_{name}' in row else 'not tested' for name in kinds),
        )
        for row in report['curve']
    ]
    return ('test resolution', *(f'{label}, top-1 (%)' for label in kinds.values())), rows


def cost_table(report: dict[str, Any]) -> Table:
    """Return header and rows of the cost of each phase."""
    seen = {phase: f'{count:,}' if count else 'none' for phase, count in report['images_seen'].items()}
    rows = [(phase, duration(seconds), seen.get(phase, 'not counted')) for phase, seconds in report['seconds'].items()]
    return ('phase', 'time', 'images through the network'), rows


def adaptation_sentence(report: dict[str, Any]) -> str:
    """Say which adaptation was used, how its classifier was found, and on what that was chosen."""
    record = report['adaptation']
    if record['kind'] == 'finetune':
        return f'Adapted by SGD fine-tuning through the network, {record["num_steps"]:,} steps.'
    prior = record.get('prior_images', 0)  # which an older run does not have
    blended = f' blended with the old ones, which count as {prior:,},' if prior else ','
    fitted = f'{blended} then the classifier on the embeddings of all {record["images"]:,}'
    text = (
        f'Adapted in one pass: statistics of {", ".join(record["batch_norm"])} from {record["statistics_images"]:,} '
        f'training images{fitted if record["solver"] != "none" else blended.rstrip(",")}; '
        f'{record["passes"]:.2f} passes through the network in all. '
    )
    return f'{text}The classifier: {adapt.describe(record)}.'


def classes_sentence(report: dict[str, Any]) -> str:
    """Say how the network does among the data's classes alone, where it knows others too; '' where it does not."""
    if not report['present']:
        return ''
    among = [f'{tables.accuracy(point, "_among_present")} {label}' for label, point in numbers(report).items()]
    return (
        f'The network knows more classes than the {len(report["present"])} of the data and may answer with any. '
        f'Among the classes of the data alone its top-1 in percent is {", ".join(among)}.'
    )


def curve_sentence(report: dict[str, Any]) -> str:
    """Say what the pictures of accuracy show."""
    own = ' What was adapted at each size is one network a size.' if 'own' in networks_of_curve(report) else ''
    return f'Top-1 on {report["images"]["test"]:,} test images; bands: 95 % intervals of each point alone.{own}'


def environment_sentence(report: dict[str, Any]) -> str:
    """Say what the run ran on."""
    environment = report['environment']
    commit = f'commit {environment["commit"]}; ' if environment.get('commit') else ''
    versions = ', '.join(f'{package} {version}' for package, version in environment['versions'].items())
    return f'{commit}{environment["date"]}; {environment["devices"]}, {environment["host"]}; {versions}.'
