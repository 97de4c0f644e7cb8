"""The section `published` of the config: figures of others on the same images, beside those of a run."""

import dataclasses
from typing import Any

from fixres_jax.core import sections
from fixres_jax.core.sections import Section
from fixres_jax.core.tables import Table


@dataclasses.dataclass(frozen=True)
class Published(Section):
    """What others have published of a data set; the fields are those of `configs/base.py`."""

    PATH = 'published.'
    RULES = {'baseline': sections.between(0, 100, 94), 'adapted': sections.between(0, 100, 94)}

    source: str
    network: str
    conditions: str
    baseline: float
    adapted: float


def table(report: dict[str, Any]) -> Table:
    """Return header and rows of the published figures and those of the run, each with its conditions."""
    theirs, numbers = report['published'], report['numbers']
    train, test = report['train_resolution'], report['test_resolution']
    cells = [f'{theirs[name]:g}' if theirs[name] else 'not published' for name in ('baseline', 'adapted')]
    ours = [f'{numbers[name]["top1"]:.2f}' for name in ('train_resolution', 'adapted')]
    how = f'trained at {train}, tested there and, adapted, at {test}; one crop; {report["images"]["train"]:,} images'
    return ('whose', 'network', 'baseline, top-1 (%)', 'with the method, top-1 (%)', 'conditions'), [
        ('published', theirs['network'], *cells, theirs['conditions']),
        ('this run', report['config']['model']['name'], *ours, how),
    ]


def sentence(report: dict[str, Any]) -> str:
    """Say whose the figures are."""
    return (
        f"The published figures are of other people's runs, under their own conditions, and were not repeated here: "
        f'{report["published"]["source"]}.'
    )
