"""The whole method: train -> sweep the test resolution -> fine-tune there -> evaluate -> report.

Each phase leaves its result as `<phase>.json` in the workdir; a phase whose result is there is not run again.
"""

import datetime
import importlib.metadata
import json
import platform
import sys
import time
from typing import Any

import jax
from etils import epath

from fixres_jax import checkpoint, evaluate, processes, sharding, train
from fixres_jax.analysis import report
from fixres_jax.data import transforms
from fixres_jax.errors import UsageError, nearest
from fixres_jax.metrics import write_json
from fixres_jax.plan import Plan, make
from fixres_jax.progress import duration, log
from fixres_jax.workdir import claim, hold, read_json


def train_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Train at the training resolution; nothing to do for a network that comes trained (epochs=0)."""
    if not plan.training.epochs:
        checkpoint.save_model(plan.workdir / 'train', plan.variables, plan.metadata)
        return {'num_steps': 0, 'images_seen': 0, 'images': 0}
    _, info = train.run(
        plan.model,
        plan.train_source,
        plan.train_transform,
        plan.training,
        variables=plan.variables,
        repeats=plan.repeats,
        seed=plan.seed,
        mesh=plan.mesh,
        layout=plan.layout,
        directory=plan.workdir / 'train',
        metadata=plan.metadata,
        title='train',
        reading=plan.reading,
        **plan.writing,
    )
    return info | {'images': len(plan.train_source)}


def sweep_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Choose the test resolution on images held out from training, or take the one given."""
    if plan.test_resolution:
        log.info('Test resolution %d: given by the config.', plan.test_resolution)
        return {'test_resolution': plan.test_resolution, 'chosen_on': 'given'}
    result = _evaluate(plan, {'before': _load(plan, 'train')}, plan.held_out, plan.resolutions, 'sweep')
    chosen = choose_resolution(result, plan.train_resolution)
    log.info('Test resolution %d: the best on %d held-out training images.', chosen, result['count'])
    return result | {'test_resolution': chosen, 'chosen_on': 'held-out training images'}


def choose_resolution(result: dict[str, Any], train_resolution: int) -> int:
    """Return the resolution, at least the training one, of the highest top-1; of equals the one of lowest loss."""
    points = [point for point in result['points'] if point['resolution'] >= train_resolution]
    return max(points, key=lambda point: (point['top1'], -point['loss']))['resolution']


def finetune_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune the last BatchNorm's statistics and the classifier at the test resolution."""
    resolution = plan.test_resolution or results['sweep']['test_resolution']
    transform = transforms.make_finetune(resolution, resize_ratio=plan.resize_ratio, augmentation=plan.augmentation)
    _, info = train.run(
        plan.model,
        plan.train_source,
        transform,
        plan.finetuning,
        variables=plan.variables if 'train' not in results else checkpoint.load_model(plan.workdir / 'train')[0],
        repeats=1,
        seed=plan.seed + 1,  # other batches than training saw
        mesh=plan.mesh,
        layout=plan.layout,
        directory=plan.workdir / 'finetune',
        metadata=plan.metadata | {'test_resolution': resolution},
        title='finetune',
        reading=plan.reading,
        **plan.writing,
    )
    return info | {'test_resolution': resolution}


def evaluate_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Evaluate on the test split: the recipe's two networks, or the one that was given."""
    if 'train' not in results:
        networks = {'given': _place(plan, plan.variables)}
        resolutions = plan.resolutions
    else:
        networks = {'before': _load(plan, 'train'), 'after': _load(plan, 'finetune')}
        chosen = results['sweep']['test_resolution']
        resolutions = tuple(sorted({*plan.resolutions, plan.train_resolution, chosen}))
    result = _evaluate(plan, networks, plan.test_source, resolutions, 'evaluate')
    for point in result['points']:
        log.info(
            '%s at %d: top-1 %.2f %% [%.2f, %.2f], top-5 %.2f %%, %d images.',
            *(point[name] for name in ('network', 'resolution', 'top1', 'low', 'high', 'top5', 'count')),
        )
    return result


def report_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Write report.json, report.md and the plots, on host 0."""
    if not processes.is_host0():
        return {}
    value = report.build(
        results,
        train_resolution=plan.train_resolution,
        config=json.loads((plan.workdir / 'config.json').read_text()),
        environment=_environment(),
    )
    report.write(plan.workdir, value)
    log.info('\n%s', report.summary(value))
    log.info('The report is in %s.', plan.workdir / 'report.md')
    return {}


PHASES = {
    'train': train_phase,
    'sweep': sweep_phase,
    'finetune': finetune_phase,
    'evaluate': evaluate_phase,
    'report': report_phase,
}
TASKS = {
    'recipe': tuple(PHASES),
    'train': ('train',),
    'finetune': ('finetune',),
    'evaluate': ('evaluate',),
}


def run(config: Any, workdir: str | epath.Path) -> None:
    """Run the phases of `config.task` in a workdir, leaving out those whose results are there.

    Args:
      config: a ConfigDict with the fields of `configs/base.py`.
      workdir: folder of the run; made if absent.

    Raises:
      UsageError: for anything in the config that cannot work.
      RunError: when the run cannot go on.
      Preempted: after a SIGTERM.
    """
    workdir = epath.Path(workdir)
    if config.task not in TASKS:
        raise UsageError(f'task={config.task!r} is not one of {", ".join(TASKS)}.{nearest(config.task, TASKS)}')
    with hold(workdir):
        _run_phases(make(config, workdir), TASKS[config.task], config.to_dict())


def _run_phases(plan: Plan, phases: tuple[str, ...], config: dict[str, Any]) -> None:
    claim(plan.workdir, config)
    results: dict[str, Any] = {}
    for phase in phases:
        path = plan.workdir / f'{phase}.json'
        done = processes.from_host0(read_json(path)) if phase != 'report' else None
        if done is not None:
            log.info('Phase %s is done: %s is there.', phase, path)
            results[phase] = done
            continue
        log.info('Phase %s begins.', phase)
        began = time.monotonic()
        results[phase] = PHASES[phase](plan, results)
        seconds = time.monotonic() - began + results[phase].pop('earlier_seconds', 0.0)
        results[phase]['seconds'] = seconds
        if processes.is_host0() and phase != 'report':
            write_json(path, results[phase])
        log.info('Phase %s took %s.', phase, duration(seconds))


def _place(plan: Plan, variables: Any) -> Any:
    return jax.device_put(variables, sharding.place(variables, plan.mesh, plan.layout))


def _load(plan: Plan, phase: str) -> Any:
    return _place(plan, checkpoint.load_model(plan.workdir / phase)[0])


def _evaluate(
    plan: Plan, networks: dict[str, Any], source: Any, resolutions: tuple[int, ...], title: str
) -> dict[str, Any]:
    test_transforms = {size: transforms.make_test(size, resize_ratio=plan.resize_ratio) for size in resolutions}
    return evaluate.evaluate(
        plan.model,
        networks,
        source,
        test_transforms,
        batch_size=plan.test_batch_size,
        mesh=plan.mesh,
        title=title,
        reading=plan.reading,
    )


def _environment() -> dict[str, Any]:
    """Say what the run ran on and how to run it again."""
    device = jax.devices()[0]
    packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'Pillow')
    return {
        'command': f'python -m fixres_jax.main {" ".join(sys.argv[1:])}',
        'date': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d'),
        'devices': f'{jax.device_count()} x {device.device_kind} ({device.platform})',
        'host': f'{platform.machine()}, {platform.system()}',
        'versions': {'python': platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }
