"""What a run was worth: the content of report.json."""

from typing import Any

from fixres_jax.core.resolution import side
from fixres_jax.evaluation import intervals
from fixres_jax.evaluation.evaluate import compare, find_point

# The differences: first minus second of the numbers.
DIFFERENCES = {
    'larger_minus_train_resolution': ('larger', 'train_resolution'),
    'adapted_minus_larger': ('adapted', 'larger'),
    'adapted_minus_train_resolution': ('adapted', 'train_resolution'),
    'control_minus_train_resolution': ('adapted_at_train_resolution', 'train_resolution'),
    'averaged_minus_not_averaged': ('train_resolution', 'not_averaged'),
    'adapted_minus_control': ('adapted', 'adapted_at_train_resolution'),
}


def build(
    results: dict[str, dict[str, Any]],
    *,
    train_resolution: int,
    num_classes: int,
    config: dict[str, Any],
    environment: dict[str, Any],
    cost: dict[str, Any] | None = None,
    published: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Put the phases' results together.

    Args:
      results: phase -> its result, of the phases train, sweep, adapt or finetune, control (where the config has it)
        and evaluate.
      train_resolution: pixels.
      num_classes: of the network.
      config: the run's config as a nested dict.
      environment: command, date, devices, host, versions.
      cost: numbers of the study of that name, if it was made.
      published: figures of others on the same images: the section of the config, if it holds some.

    Returns:
      The content of `report.json`: accuracies in percent, differences in points, low and high the 95 % interval. Of a
      network from itself, as where an adaptation was rejected, both are zero.
    """
    test = results['evaluate']
    chosen = results['sweep']['test_resolution']
    kind = 'adapt' if 'adapt' in results else 'finetune'
    rejected = [name for name, phase in (('after', kind), ('control', 'control')) if _kept_old(results.get(phase))]
    points = {
        'train_resolution': ('before', train_resolution),
        'larger': ('before', chosen),
        'adapted': ('after', chosen),
    }
    if 'control' in results:
        # Where the training size was kept, the adapted network is its own control.
        control = 'control' if chosen != train_resolution else 'after'
        points['adapted_at_train_resolution'] = (control, train_resolution)
    if ('not averaged', train_resolution) in {(point['network'], point['resolution']) for point in test['points']}:
        points['not_averaged'] = ('not averaged', train_resolution)
    differences = {}
    for name, (first, second) in DIFFERENCES.items():
        if first in points and second in points:
            pair = [points[first], points[second]]
            same = len({true_point(point, rejected) for point in pair}) == 1
            differences[name] = intervals.SAME if same else compare(test, *pair)
    return {
        'train_resolution': train_resolution,
        'test_resolution': chosen,
        'test_resolution_chosen_on': results['sweep']['chosen_on'],
        'num_classes': num_classes,
        'rejected': rejected,
        'numbers': {name: find_point(test, *key) for name, key in points.items()},
        **differences,
        'present': test.get('present'),
        'published': published,
        'curve': _curve(test, {row['resolution']: row for row in (cost or {}).get('rows', [])}),
        'cost': cost,
        'held_out_curve': results['sweep'].get('points', []),
        'images': {'train': results['train']['images'], 'test': test['count']},
        'adaptation': {'kind': {'adapt': 'one_pass', 'finetune': 'finetune'}[kind]} | results[kind],
        'images_seen': {phase: _images_seen(result) for phase, result in results.items() if phase != 'studies'},
        'seconds': {phase: result['seconds'] for phase, result in results.items()},
        'environment': environment,
        'config': config,
    }


def _kept_old(result: dict[str, Any] | None) -> bool:
    """Say whether an adaptation ended with the old network, since none of its own was better."""
    return bool(result and result.get('kept_old'))


def true_point(point: tuple[str, int], rejected: list[str]) -> tuple[str, int]:
    """Return the network and the resolution that a point really is: a rejected adaptation is the old network."""
    network, resolution = point
    return 'before' if network in rejected else network, resolution


def _images_seen(result: dict[str, Any]) -> int:
    """Return how many images a phase has passed through a network."""
    return result.get('images_seen', result.get('count', 0) * len(result.get('points', ())))


def _curve(test: dict[str, Any], cost: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """Return a row for each resolution: the accuracies of every network tested there, and what it costs."""
    tested = sorted({point['resolution'] for point in test['points']}, key=side)
    rows = {resolution: {'resolution': resolution} for resolution in tested}
    for point in test['points']:
        row = rows[point['resolution']]
        row |= {f'{name}_{point["network"]}': point[name] for name in ('top1', 'low', 'high')}
        row |= cost.get(point['resolution'], {})
    return list(rows.values())
