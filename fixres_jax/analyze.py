"""The studies of a run: what each takes from the plan, where its numbers go, and the figures drawn from those."""

import json
from typing import Any

import numpy as np
from etils import epath

from fixres_jax import phases, processes, studies
from fixres_jax.analysis import figures, sizes
from fixres_jax.data import sources
from fixres_jax.errors import UsageError
from fixres_jax.metrics import write_arrays, write_json
from fixres_jax.phases import Networks
from fixres_jax.plan import Plan
from fixres_jax.progress import log


def roc(plan: Plan, networks: Networks | None) -> studies.Study:
    """Regions that training and testing show of the training images."""
    return studies.roc(plan.train_source, *crops(plan), seed=plan.seed)


def crops(plan: Plan) -> tuple[sizes.TrainCrop, sizes.TestCrop]:
    """Return how the network's training images were cropped, and how its test images are."""
    trained = plan.train_transform
    train = sizes.TrainCrop(plan.metadata['crop'], trained.scale, trained.ratio, trained.resize_ratio)
    if not plan.test_crop:
        return train, sizes.TestCrop(1.0, 'long')
    return train, sizes.TestCrop(plan.resizing['resize_ratio'], plan.resizing['resize'])


def activations(plan: Plan, networks: Networks | None) -> studies.Study:
    """Pooled activations of test images, at every resolution."""
    networks = networks or given(plan)
    resolutions = sorted({*plan.resolutions, plan.train_resolution, networks.resolution})
    picked = np.random.default_rng(plan.seed).permutation(len(plan.test_source))[: plan.study.images]
    adapted = {size: networks.own.get(size, networks.after) for size in resolutions}
    return studies.activations(
        plan.model,
        networks.before,
        {size: studies.statistics_of(adapted[size], plan.adapting.batch_norm) for size in resolutions},
        sources.subset(plan.test_source, np.sort(picked)),
        phases.test_transforms(plan, resolutions),
        train_resolution=plan.train_resolution,
        **_embedding(plan),
    )


def ablation(plan: Plan, networks: Networks | None) -> studies.Study:
    """Worth of each part of the adaptation, on the test images; BatchNorm's scale and bias as a study of its own."""
    affine = networks is None and plan.study.epochs
    networks = networks or given(plan)
    split = {'train': phases.some(plan, plan.train_source), 'held_out': plan.held_out, 'test': plan.test_source}
    sizes_of = phases.test_transforms(plan, (plan.train_resolution, networks.resolution))
    numbers, arrays = studies.ablation(
        plan.model,
        networks.before,
        studies.statistics_of(networks.after, plan.adapting.batch_norm),
        split,
        {'train': sizes_of[plan.train_resolution], 'test': sizes_of[networks.resolution]},
        plan.adapting,
        seed=plan.seed,
        **_embedding(plan),
    )
    if affine:
        numbers['rows'] += studies.affine_ablation(
            plan.model,
            networks.before,
            split,
            networks.resolution,
            sizes_of[networks.resolution],
            plan.finetuning,
            epochs=plan.study.epochs,
            seed=plan.seed + 1,
            batch_size=plan.test_batch_size,
            reading=plan.reading,
            mesh=plan.mesh,
            layout=plan.layout,
            directory=plan.workdir / 'ablation',
            metadata=plan.adapted_metadata,
            **plan.writing,
        )
    return numbers | {'train_resolution': plan.train_resolution, 'test_resolution': networks.resolution}, arrays


def grid(plan: Plan, networks: Networks | None) -> studies.Study:
    """Train resolution against test resolution, of finished runs."""
    reports = {}
    for run in plan.study.runs:
        path = epath.Path(run) / 'report.json'
        if not path.exists():
            raise UsageError(f'{path} is not there: analyze.runs names workdirs in which a recipe has finished.')
        reports[str(run)] = json.loads(path.read_text())
    return studies.grid(reports)


STUDIES = {'roc': roc, 'activations': activations, 'ablation': ablation, 'grid': grid}
OF_A_RUN = ('roc', 'activations', 'ablation')  # what every recipe's report shows


def given(plan: Plan) -> Networks:
    """Return the trained and the adapted network of the workdir that `init_from` names."""
    return phases.networks_of(plan, epath.Path(plan.init_from))


def studies_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Make the studies that a recipe's report shows."""
    networks = phases.networks_of(plan, plan.workdir)
    for name in OF_A_RUN:
        _make(plan, name, networks)
    return {'studies': list(OF_A_RUN)}


def analyze_phase(plan: Plan, results: dict[str, Any]) -> dict[str, Any]:
    """Make the study that the config names."""
    _make(plan, plan.study.name, None)
    return {'study': plan.study.name}


def _make(plan: Plan, name: str, networks: Networks | None) -> None:
    log.info('Study %s begins.', name)
    numbers, arrays = STUDIES[name](plan, networks)
    if processes.is_host0():
        write_arrays(plan.workdir / 'studies' / f'{name}.npz', arrays)
        write_json(plan.workdir / 'studies' / f'{name}.json', numbers)
        figures.draw(plan.workdir, name)


def _embedding(plan: Plan) -> dict[str, Any]:
    how = plan.adapting
    return {
        'batch_size': plan.test_batch_size,
        'mesh': plan.mesh,
        'reading': plan.reading,
        'dtype': how.cache_dtype,
        'device_bytes': how.cache_gigabytes * 1e9,
    }
