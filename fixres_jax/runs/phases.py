"""The phases of a run, each a function of the run and of the results of the phases before it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from fixres_jax import studies
from fixres_jax.adaptation import recalibration, statistics
from fixres_jax.core import files, tables
from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.core.resolution import Resolution
from fixres_jax.data import transforms
from fixres_jax.data.crops import TrainCrop
from fixres_jax.data.transforms import Transform
from fixres_jax.evaluation import evaluate, outputs
from fixres_jax.machines import processes
from fixres_jax.report import environment, findings, html, markdown, plots, report
from fixres_jax.runs import one_pass, subjects
from fixres_jax.runs.run import AVERAGED, Run
from fixres_jax.runs.tasks import ADAPTATIONS, CONTROL
from fixres_jax.studies import STUDIES
from fixres_jax.training import train
from fixres_jax.weights import network
from fixres_jax.weights.network import Network

Results = Mapping[str, dict[str, Any]]  # phase -> what it left as <phase>.json


def train_phase(run: Run, results: Results) -> dict[str, Any]:
    """Train at the training resolution; nothing to do for a network that comes trained (epochs=0)."""
    s = run.settings
    if not s.train.epochs:
        network.save(run.workdir / 'train', run.start)
        run.networks['train'] = run.start.placed(run.runtime)
        return {'num_steps': 0, 'images_seen': 0, 'images': 0}
    result, info = train.run(
        run.start,
        run.images.train,
        train_transforms(run),
        s.train,
        runtime=run.runtime,
        writing=run.validated(run.writing('train'), run.start.model, run.train_resolution),
        seed=s.seed,
        title='train',
    )
    if run.averages:
        info |= _keep_average(run, result)
    else:
        run.networks['train'] = result
    return info | {'images': len(run.images.train)}


def _keep_average(run: Run, result: Network) -> dict[str, Any]:
    """Write the averaged network into a folder of its own, with the statistics that its BatchNorm layers would have.

    They are measured on training images as training saw them: the parameters of no step have made the average.
    """
    s = run.settings
    sampled = statistics.sample(run.images.train, s.adapt.statistics_images, s.seed)
    how = {'batch_norm': s.train.batch_norm, 'at_once': True, 'seed': s.seed}
    last = train_transforms(run)[max(s.train.sizes)]  # where the sizes grow, the largest
    result = recalibration.recalibrate(result, sampled, last, run.feed('ema'), **how)
    _save(run, AVERAGED, result)
    return {'averaged': True, 'statistics_images': len(sampled)}


def _save(run: Run, phase: str, result: Network) -> None:
    """Write a network into its folder, in place of what a run that was stopped has left there."""
    directory = run.workdir / phase
    if processes.is_host0() and directory.exists():
        directory.rmtree()
    network.save(directory, result)
    run.networks[phase] = result


def train_transforms(run: Run) -> dict[float, Transform]:
    """Return share of the steps -> the transform of training images from there on."""
    how = run.settings.train
    return {
        share: transforms.make_train(
            size,
            TrainCrop(how.crop, how.scale, how.ratio),
            flip=how.flip,
            jitter=how.jitter,
            interpolation=how.interpolation,
            augment=how.augment,
        )
        for share, size in how.sizes.items()
    }


def sweep_phase(run: Run, results: Results) -> dict[str, Any]:
    """Choose the test resolution on images held out from training, or take the one given."""
    given = run.settings.test.resolution
    if given:
        log.info('Test resolution %s: given by the config.', given)
        return {'test_resolution': given, 'chosen_on': 'given'}
    if run.settings.adaptation == 'one_pass':
        result = _adapted_sweep(run)
    else:
        held_out = run.test_transforms(run.resolutions)
        networks = {'before': run.trained}
        result = evaluate.evaluate(networks, run.images.held_out, held_out, run.feed('sweep'))
    chosen = one_pass.choose_resolution(result, run.train_resolution)
    where = 'held-out training images' if run.adaptation.unseen else 'training images that the trunk may have seen'
    log.info('Test resolution %s: the best on %d %s.', chosen, result['count'], where)
    return result | {'test_resolution': chosen, 'chosen_on': where}


def _adapted_sweep(run: Run) -> dict[str, Any]:
    """Adapt at every resolution; return the held-out scores before and after, and keep what changed for the test."""
    result, adapted = one_pass.sweep(run, run.trained, run.resolutions)
    changed = {}
    for resolution, (new, _) in adapted.items():
        leaves = new.adapted_leaves(run.adaptation.batch_norm)
        changed |= {f'{resolution}/{name}': np.asarray(leaf) for name, leaf in leaves.items()}
    if processes.is_host0():
        files.write_arrays(run.workdir / 'sweep.npz', changed)
    return result


def _test_resolution(run: Run, results: Results) -> int | Resolution:
    return run.settings.test.resolution or Resolution.parse(results['sweep']['test_resolution'])


def _trained(run: Run, results: Results) -> Network:
    """Return the network to adapt: the one that this run has trained, or the given one."""
    return run.trained if 'train' in results else run.start.placed(run.runtime)


def adapt_phase(run: Run, results: Results) -> dict[str, Any]:
    """Adapt to the test resolution in one pass over the training images."""
    return _adapt(run, results, _test_resolution(run, results), 'adapt')


def finetune_phase(run: Run, results: Results) -> dict[str, Any]:
    """Fine-tune the last BatchNorm's statistics and the classifier at the test resolution."""
    return _finetune(run, results, _test_resolution(run, results), 'finetune')


def control_phase(run: Run, results: Results) -> dict[str, Any]:
    """Adapt to the training size in the same way; nothing to do where that is the test resolution."""
    if _test_resolution(run, results) == run.train_resolution:
        return {'test_resolution': run.train_resolution}
    return WAYS[run.settings.adaptation](run, results, run.train_resolution, CONTROL)


def _adapt(run: Run, results: Results, resolution: int | Resolution, phase: str) -> dict[str, Any]:
    result, record = one_pass.at(run, _trained(run, results), resolution, phase)[resolution]
    result = dataclasses.replace(result, about=run.adapted_about | {'test_resolution': resolution})
    _save(run, phase, result)
    return record | {'test_resolution': resolution}


def _finetune(run: Run, results: Results, resolution: int | Resolution, phase: str) -> dict[str, Any]:
    start = _trained(run, results)
    model = train.regroup(start.model, run.finetuning, 'finetune')
    augmentation = run.finetuning.augmentation
    result, info = train.run(
        dataclasses.replace(start, model=model, about=run.adapted_about | {'test_resolution': resolution}),
        run.images.train,
        transforms.make_finetune(resolution, augmentation=augmentation, **run.resizing),
        run.finetuning,
        runtime=run.runtime,
        writing=run.validated(run.writing(phase), model, resolution),
        seed=run.settings.seed + 1,  # other batches than training saw
        title=phase,
        classes=train.few_classes(run.images.train, model.num_classes),
    )
    run.networks[phase] = dataclasses.replace(result, model=run.start.model)
    return info | {'test_resolution': resolution}


WAYS = {'one_pass': _adapt, 'finetune': _finetune}  # by the config's `adaptation`


def evaluate_phase(run: Run, results: Results) -> dict[str, Any]:
    """Evaluate on the test split: the recipe's networks, or the one that was given."""
    single, resolutions = {}, run.resolutions
    if 'train' in results:
        networks = {'before': run.trained, 'after': run.network(ADAPTATIONS[run.settings.adaptation])}
        chosen = _test_resolution(run, results)
        swept = subjects.adapted_in_sweep(run, run.workdir, networks['before'])
        single = {('own', resolution): adapted for resolution, adapted in swept.items()}
        if CONTROL in results and chosen != run.train_resolution:
            single[CONTROL, run.train_resolution] = run.network(CONTROL)
        if run.averages:
            single['not averaged', run.train_resolution] = run.network('train')
        resolutions = tuple(sorted({*resolutions, run.train_resolution, chosen}))
    else:
        networks = {'given': run.start.placed(run.runtime)}
    result = evaluate.evaluate(
        networks, run.images.test, run.test_transforms(resolutions), run.feed('evaluate'), single, run.present
    )
    for point in result['points']:
        network = f'adapted to {point["resolution"]}' if point['network'] == 'own' else point['network']
        log.info(
            '%s at %s: top-1 %.2f %% [%.2f, %.2f], top-5 %.2f %%, %d images.',
            *(network, *(point[name] for name in ('resolution', 'top1', 'low', 'high', 'top5', 'count'))),
        )
        if run.present is not None:
            log.info(
                "  among the data's %d classes alone: top-1 %.2f %% [%.2f, %.2f], top-5 %.2f %%.",
                len(run.present),
                *(point[f'{name}_among_present'] for name in ('top1', 'low', 'high', 'top5')),
            )
    if run.present is not None:
        result['present'] = [run.images.test.class_names[label] for label in run.present]
    return result


def extract_phase(run: Run, results: Results) -> dict[str, Any]:
    """Write labels, softmax, embeddings and names of a split in its order."""
    how, resolution = run.settings.extract, run.settings.test.resolution
    resolution = Resolution.parse(resolution or run.given.get('test_resolution') or run.train_resolution)
    splits = {name: source for name, source in vars(run.images).items() if source is not None}
    if how.split not in splits:
        raise UsageError(f'extract.split={how.split!r} is not one of {", ".join(splits)}.')
    log.info('Extraction of the %s images at %s.', how.split, resolution)
    result = outputs.extract(
        run.start.placed(run.runtime),
        splits[how.split],
        run.test_transforms((resolution,))[resolution],
        run.feed('extract'),
        directory=run.workdir / 'extracted',
        flip=how.flip,
    )
    return result | {'split': how.split, 'resolution': resolution, 'flip': how.flip}


def studies_phase(run: Run, results: Results) -> dict[str, Any]:
    """Make the studies that a recipe's report shows, and the one that the config names."""
    subject = subjects.subject(run, run.workdir)
    names = [name for name, study in STUDIES.items() if study.in_report or name == run.settings.study]
    for name in names:
        log.info('Study %s begins.', name)
        studies.make(run.workdir, name, dataclasses.replace(subject, epochs=0.0))
    return {'studies': names}


def analyze_phase(run: Run, results: Results) -> dict[str, Any]:
    """Make the study that the config names."""
    name = run.settings.study
    log.info('Study %s begins.', name)
    study = STUDIES[name]
    workdir = epath.Path(run.settings.init_from) if study.needs_networks else None
    studies.make(run.workdir, name, subjects.subject(run, workdir, study.adapts))
    if study.table and processes.is_host0():
        log.info('\n%s', tables.markdown(study.table(studies.read(run.workdir, name))))
    return {'study': name}


def report_phase(run: Run, results: Results) -> dict[str, Any]:
    """Write report.json, report.md, report.html and the plots, on host 0."""
    if processes.is_host0():
        value = report.build(
            results,
            train_resolution=run.train_resolution,
            num_classes=run.start.model.num_classes,
            config=files.read_json(run.workdir / 'config.json'),
            environment=environment.describe(),
            cost=studies.read(run.workdir, 'cost'),
            published=vars(run.settings.published) if run.settings.published.source else None,
        )
        plots.draw(run.workdir, value)
        files.write(run.workdir / 'report.md', markdown.page(run.workdir, value))
        files.write(run.workdir / 'report.html', html.page(run.workdir, value))
        files.write_json(run.workdir / 'report.json', value)
        log.info('\n%s', findings.summary(value))
        log.info('The report is in %s.', run.workdir / 'report.md')
    return {}


PHASES: dict[str, Callable[[Run, Results], dict[str, Any]]] = {
    'train': train_phase,
    'sweep': sweep_phase,
    'adapt': adapt_phase,
    'finetune': finetune_phase,
    CONTROL: control_phase,
    'evaluate': evaluate_phase,
    'studies': studies_phase,
    'report': report_phase,
    'extract': extract_phase,
    'analyze': analyze_phase,
}
