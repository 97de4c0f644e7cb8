"""What the studies of a run look at: its networks, its images, the reports of other runs."""

import dataclasses
import json
import re
from typing import Any

import numpy as np
from etils import epath

from fixres_jax.core import files
from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.core.resolution import Resolution
from fixres_jax.data import corruptions, given, sources
from fixres_jax.data.crops import TestCrop, TrainCrop
from fixres_jax.runs import one_pass
from fixres_jax.runs.run import AVERAGED, Run
from fixres_jax.runs.tasks import ADAPTATIONS, CONTROL
from fixres_jax.studies import Pair, Subject, Variant
from fixres_jax.weights.network import Network


def subject(run: Run, workdir: epath.Path | None, adapts: bool = False) -> Subject:
    """Return what studies may look at, with the networks of the recipe in a workdir if one is given.

    With `adapts` the workdir may be any network: then there is no adapted one.
    """
    s = run.settings
    train_crop = TrainCrop(run.start.about['crop'], s.train.scale, s.train.ratio)
    test_crop = TestCrop(1.0, 'long')
    if s.test.crop:
        test_crop = TestCrop(run.start.about['resize_ratio'], run.start.about['resize'])
    return Subject(
        networks=_networks(run, workdir, adapts) if workdir is not None else None,
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
        present=run.present,
        corruptions=s.analyze.corruptions or tuple(corruptions.KINDS),
        strengths=s.analyze.strengths,
        variants=dict(_variant(run, spec) for spec in s.analyze.variants),
        prior_images=s.analyze.prior_images,
        directory=run.workdir,
    )


def _networks(run: Run, workdir: epath.Path, adapts: bool) -> Pair:
    """Return the networks of a recipe, or the given one alone where a study adapts it."""
    if not adapts or (workdir / 'adapt').exists() or (workdir / 'finetune').exists():
        return pair_of(run, workdir)
    resolution = run.settings.test.resolution
    if not resolution:
        raise UsageError(
            f'{workdir} holds no adapted network, so the study adapts it: set --config.test.resolution, such as '
            f'{max(run.resolutions)}, or give the workdir of a finished recipe.'
        )
    return Pair(run.start.placed(run.runtime), None, resolution, {})


def _variant(run: Run, spec: str) -> tuple[str, Variant]:
    """Open 'NAME=IMAGES', other test images, with labels that count through the network's classes by their names.

    Folders named by numbers, as those of ImageNet-V2, count through the classes themselves. Classes that the network
    does not have are left out.
    """
    name, _, place = spec.partition('=')
    if not re.fullmatch(r'[\w.-]+', name) or not place:
        raise UsageError(f'analyze.variants={spec!r}: expected NAME=IMAGES, such as sketch=tfds:imagenet_sketch.')
    source, place = given.labelled(place, 'test')
    own = run.images.test.class_names
    names = source.class_names
    if names and all(one.isdigit() for one in names) and max(map(int, names)) < len(own) and not set(names) & set(own):
        names = tuple(own[int(one)] for one in names)
        source = sources.Subset(source, np.arange(len(source), dtype=np.int32), names)
    known = [one for one in names if one in set(own)]
    if not known:
        raise UsageError(
            f'{place} has none of the {len(own)} classes of the network: its classes are {", ".join(names[:3])}, ..., '
            f"the network's {', '.join(own[:3])}, ..."
        )
    if len(known) < len(names):
        log.info("%s: %d of its %d classes are the network's, the others are left out.", place, len(known), len(names))
        source = sources.some_classes(source, known)
    present = tuple(sorted(own.index(one) for one in known)) if len(known) < len(own) else None
    return name, Variant(sources.relabelled(source, own), present)


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
    control = other.network(CONTROL) if (workdir / CONTROL / 'fixres.json').exists() else None
    return Pair(before, after, resolution, adapted_in_sweep(run, workdir, before), control)


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
