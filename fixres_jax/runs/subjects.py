"""What the studies of a run look at: its networks, its images, the reports of other runs."""

import dataclasses
import json
from typing import Any

from etils import epath

from fixres_jax.core import files
from fixres_jax.core.errors import UsageError
from fixres_jax.core.resolution import Resolution
from fixres_jax.data.crops import TestCrop, TrainCrop
from fixres_jax.runs import one_pass
from fixres_jax.runs.run import AVERAGED, Run
from fixres_jax.runs.tasks import ADAPTATIONS
from fixres_jax.studies import Pair, Subject
from fixres_jax.weights.network import Network


def subject(run: Run, workdir: epath.Path | None) -> Subject:
    """Return what studies may look at, with the networks of the recipe in a workdir if one is given."""
    s = run.settings
    train_crop = TrainCrop(run.start.about['crop'], s.train.scale, s.train.ratio)
    test_crop = TestCrop(1.0, 'long')
    if s.test.crop:
        test_crop = TestCrop(run.start.about['resize_ratio'], run.start.about['resize'])
    return Subject(
        networks=pair_of(run, workdir) if workdir is not None else None,
        train=one_pass.compared(run),
        held_out=run.images.held_out,
        test=run.images.test,
        train_resolution=run.train_resolution,
        resolutions=run.resolutions,
        train_crop=train_crop,
        test_crop=test_crop,
        test_transforms=run.test_transforms,
        adaptation=run.adaptation,
        finetuning=run.finetuning,
        feed=run.feed('study'),
        seed=s.seed,
        images=s.analyze.images,
        epochs=s.analyze.epochs,
        runs=_reports(s.analyze.runs),
        writing=run.writing('ablation'),
    )


def pair_of(run: Run, workdir: epath.Path) -> Pair:
    """Return the networks that a recipe has left in a workdir, its own or another.

    Raises:
      UsageError: when there is no trained or no adapted one.
    """
    found = [name for name in ('train', *ADAPTATIONS.values()) if (workdir / name / 'fixres.json').exists()]
    if len(found) < 2 or found[0] != 'train':
        raise UsageError(f'{workdir} does not hold train/ and adapt/ (or finetune/): give the workdir of a recipe.')
    other = run if workdir == run.workdir else dataclasses.replace(run, workdir=workdir, networks={})
    averaged = (workdir / AVERAGED / 'fixres.json').exists()
    before, after = other.network(AVERAGED if averaged else 'train'), other.network(found[1])
    resolution = Resolution.parse(after.about['test_resolution'])
    return Pair(before, after, resolution, adapted_in_sweep(run, workdir, before))


def _reports(runs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return workdir -> its report.json."""
    reports = {}
    for run in runs:
        path = files.reachable(run) / 'report.json'
        if not path.exists():
            raise UsageError(f'{path} is not there: analyze.runs names workdirs in which a recipe has finished.')
        reports[run] = json.loads(path.read_text())
    return reports


def adapted_in_sweep(run: Run, workdir: epath.Path, before: Network) -> dict[int | Resolution, Network]:
    """Return resolution -> the network that the sweep adapted there; nothing without such a sweep."""
    leaves: dict[int | Resolution, dict[str, Any]] = {}
    for name, leaf in files.read_arrays(workdir / 'sweep.npz').items():
        resolution, _, name = name.partition('/')
        leaves.setdefault(Resolution.parse(resolution), {})[name] = run.runtime.place(leaf)
    return {resolution: before.replaced(new) for resolution, new in leaves.items()}
