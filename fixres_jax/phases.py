"""The phases of a run, each a function of its plan and of the results of the phases before it."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from etils import epath

from fixres_jax import adapt, checkpoint, evaluate, extract, models, processes, sharding, train, trees
from fixres_jax.data import sources, transforms
from fixres_jax.errors import UsageError
from fixres_jax.metrics import read_arrays, write_arrays
from fixres_jax.plan import Plan
from fixres_jax.progress import log

_HEAD = f'params/{models.CLASSIFIER}/'


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
    if plan.adaptation == 'adapt':
        result = _adapted_sweep(plan)
    else:
        result = _evaluate(plan, {'before': _load(plan, 'train')}, plan.held_out, plan.resolutions, 'sweep')
    chosen = choose_resolution(result, plan.train_resolution)
    where = 'held-out training images' if plan.adapting.unseen else 'training images that the trunk may have seen'
    log.info('Test resolution %d: the best on %d %s.', chosen, result['count'], where)
    return result | {'test_resolution': chosen, 'chosen_on': where}


def _adapted_sweep(plan: Plan) -> dict[str, Any]:
    """Adapt at every resolution; return the held-out scores before and after, and keep what changed for the test."""
    source = some(plan, plan.train_source)
    adapted = _adapt(plan, _load(plan, 'train'), source, plan.resolutions, copies=0, title='sweep')
    points, changed = [], {}
    for resolution, (variables, record) in adapted.items():
        for network in ('before', 'after'):
            points.append({'network': network, 'resolution': resolution} | record[network])
        changed |= {f'{resolution}/{name}': leaf for name, leaf in _changed(plan, variables).items()}
    if processes.is_host0():
        write_arrays(plan.workdir / 'sweep.npz', changed)
    records = {str(resolution): record for resolution, (_, record) in adapted.items()}
    return {'count': len(plan.held_out), 'points': points, 'images_used': len(source), 'adaptations': records} | {
        'images_seen': sum(record['images_seen'] for record in records.values())
    }


def some(plan: Plan, source: Any) -> Any:
    """Return as many training images as adaptations that only compare may cost."""
    if len(source) <= plan.sweep_images:
        return source
    picked = np.random.default_rng([plan.seed, len(source)]).choice(len(source), plan.sweep_images, replace=False)
    return sources.subset(source, np.sort(picked))


def _changed(plan: Plan, variables: Any) -> dict[str, Any]:
    """Return the leaves that an adaptation may change, by name."""
    layers = models.batch_norm_layers(variables['batch_stats'], plan.adapting.batch_norm)
    names = [f'batch_stats/{layer}/{value}' for layer in layers for value in ('mean', 'var')]
    flat = trees.flatten(variables)
    return {name: np.asarray(flat[name]) for name in (*names, *(n for n in flat if n.startswith(_HEAD)))}


def _adapted_in_sweep(plan: Plan, workdir: epath.Path, variables: Any) -> dict[int, Any]:
    """Return resolution -> the network that the sweep adapted there; nothing without such a sweep."""
    arrays = read_arrays(workdir / 'sweep.npz')
    changes: dict[int, dict[str, Any]] = {}
    for name, leaf in arrays.items():
        resolution, _, name = name.partition('/')
        changes.setdefault(int(resolution), {})[name] = _place(plan, leaf)
    flat = trees.flatten(variables)
    return {resolution: trees.unflatten(flat | new) for resolution, new in changes.items()}


def choose_resolution(result: dict[str, Any], train_resolution: int) -> int:
    """Return the resolution, at least the training one, of the highest top-1; of equals the one of lowest loss.

    After adaptation, if the sweep has adapted: the resolution that is best then is not the one that is best before.
    """
    last = result['points'][-1]['network']
    points = [p for p in result['points'] if p['resolution'] >= train_resolution and p['network'] == last]
    return max(points, key=lambda point: (point['top1'], -point['loss']))['resolution']


def adapt_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Adapt to the test resolution in one pass over the training images."""
    resolution = plan.test_resolution or results['sweep']['test_resolution']
    before = _load(plan, 'train') if 'train' in results else _place(plan, plan.variables)
    adapted = _adapt(plan, before, plan.train_source, (resolution,), copies=plan.adapting.copies, title='adapt')
    variables, record = adapted[resolution]
    directory = plan.workdir / 'adapt'
    if processes.is_host0() and directory.exists():  # of a run that was stopped before it wrote adapt.json
        directory.rmtree()
    checkpoint.save_model(directory, variables, plan.adapted_metadata | {'test_resolution': resolution})
    return record | {'test_resolution': resolution}


def _adapt(plan: Plan, variables: Any, source: Any, resolutions: tuple[int, ...], *, copies: int, title: str) -> Any:
    return adapt.adapt(
        plan.model,
        variables,
        source,
        plan.held_out,
        test_transforms(plan, resolutions),
        dataclasses.replace(plan.adapting, copies=copies),
        augment=transforms.make_finetune(resolutions[0], augmentation='v2', **plan.resizing),
        batch_size=plan.test_batch_size,
        seed=plan.seed,
        mesh=plan.mesh,
        directory=plan.workdir / 'embeddings',
        reading=plan.reading,
        title=title,
    )


def finetune_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune the last BatchNorm's statistics and the classifier at the test resolution."""
    resolution = plan.test_resolution or results['sweep']['test_resolution']
    transform = transforms.make_finetune(resolution, augmentation=plan.augmentation, **plan.resizing)
    _, info = train.run(
        train.regroup(plan.model, plan.finetuning, 'finetune'),
        plan.train_source,
        transform,
        plan.finetuning,
        variables=plan.variables if 'train' not in results else checkpoint.load_model(plan.workdir / 'train')[0],
        repeats=1,
        seed=plan.seed + 1,  # other batches than training saw
        mesh=plan.mesh,
        layout=plan.layout,
        directory=plan.workdir / 'finetune',
        metadata=plan.adapted_metadata | {'test_resolution': resolution},
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
        networks = {'before': _load(plan, 'train'), 'after': _load(plan, plan.adaptation)}
        chosen = results['sweep']['test_resolution']
        resolutions = tuple(sorted({*plan.resolutions, plan.train_resolution, chosen}))
    own = _adapted_in_sweep(plan, plan.workdir, networks['before']) if 'sweep' in results else {}
    result = _evaluate(plan, networks, plan.test_source, resolutions, 'evaluate', own, plan.present)
    for point in result['points']:
        log.info(
            '%s at %d: top-1 %.2f %% [%.2f, %.2f], top-5 %.2f %%, %d images.',
            *(point[name] for name in ('network', 'resolution', 'top1', 'low', 'high', 'top5', 'count')),
        )
        if plan.present is not None:
            log.info(
                "  among the data's %d classes alone: top-1 %.2f %% [%.2f, %.2f], top-5 %.2f %%.",
                len(plan.present),
                *(point[f'{name}_among_present'] for name in ('top1', 'low', 'high', 'top5')),
            )
    if plan.present is not None:
        result['present'] = [plan.test_source.class_names[label] for label in plan.present]
    return result


@dataclasses.dataclass(frozen=True)
class Networks:
    """Hold the networks of a finished run, on the devices.

    Attributes:
      before: the trained one.
      after: the adapted one.
      resolution: pixels, that it is adapted to.
      own: resolution -> the network adapted there by the sweep; empty without such a sweep.
    """

    before: Any
    after: Any
    resolution: int
    own: dict[int, Any]


def networks_of(plan: Plan, workdir: epath.Path) -> Networks:
    """Load the networks that a recipe has left in a workdir.

    Raises:
      UsageError: when there is no trained or no adapted one.
    """
    folders = [workdir / name for name in ('train', 'adapt', 'finetune') if (workdir / name / 'fixres.json').exists()]
    if len(folders) < 2 or folders[0].name != 'train':
        raise UsageError(f'{workdir} does not hold train/ and adapt/ (or finetune/): give the workdir of a recipe.')
    before, (after, metadata) = checkpoint.load_model(folders[0])[0], checkpoint.load_model(folders[1])
    before = _place(plan, before)
    own = _adapted_in_sweep(plan, workdir, before)
    return Networks(before, _place(plan, after), metadata['test_resolution'], own)


def extract_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Write labels, softmax, embeddings and names of a split in its order."""
    resolution = plan.test_resolution or plan.given_resolution or plan.train_resolution
    images = {'test': plan.test_source, 'train': plan.train_source, 'held_out': plan.held_out}
    if images.get(plan.extract_split) is None:
        there = ', '.join(name for name, source in images.items() if source is not None)
        raise UsageError(f'extract.split={plan.extract_split!r} is not one of {there}.')
    log.info('Extraction of the %s images at %d.', plan.extract_split, resolution)
    result = extract.extract(
        plan.model,
        _place(plan, plan.variables),
        images[plan.extract_split],
        test_transforms(plan, (resolution,))[resolution],
        directory=plan.workdir / 'extracted',
        batch_size=plan.test_batch_size,
        mesh=plan.mesh,
        flip=plan.extract_flip,
        reading=plan.reading,
    )
    return result | {'split': plan.extract_split, 'resolution': resolution, 'flip': plan.extract_flip}


def _place(plan: Plan, variables: Any) -> Any:
    return jax.device_put(variables, sharding.place(variables, plan.mesh, plan.layout))


def _load(plan: Plan, phase: str) -> Any:
    return _place(plan, checkpoint.load_model(plan.workdir / phase)[0])


def _evaluate(
    plan: Plan,
    networks: dict[str, Any],
    source: Any,
    resolutions: tuple[int, ...],
    title: str,
    own: Any = None,
    present: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    return evaluate.evaluate(
        plan.model,
        networks,
        source,
        test_transforms(plan, resolutions),
        batch_size=plan.test_batch_size,
        mesh=plan.mesh,
        own=own or {},
        present=present,
        title=title,
        reading=plan.reading,
    )


def test_transforms(plan: Plan, resolutions: Iterable[int]) -> dict[int, Any]:
    """Return resolution -> the test transform."""
    return {size: transforms.make_test(size, crop=plan.test_crop, **plan.resizing) for size in resolutions}
