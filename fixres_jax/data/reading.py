"""The section `data` of the config: which images, and how they are read."""

import dataclasses
import os

from fixres_jax.core import sections
from fixres_jax.core.sections import Section
from fixres_jax.data import drawings

MAX_READERS = 1024  # more threads or processes than any machine has cores
MANY_THREADS = 32  # in one process; more wait for Python's lock


@dataclasses.dataclass(frozen=True)
class Drawings(Section):
    """The embedded data set."""

    PATH = 'data.drawings.'
    RULES = {'train': sections.least(len(drawings.CLASSES), 3000), 'val': sections.least(len(drawings.CLASSES), 2000)}

    train: int
    val: int


@dataclasses.dataclass(frozen=True)
class Reading(Section):
    """Which images, and how they are read."""

    PATH = 'data.'
    RULES = {
        'held_out_fraction': sections.share(0.02),
        'few_shot': sections.Rule(
            lambda v: 0 <= v < 1 or v == int(v) > 0, '0, a fraction below 1 or a whole number', 10.0
        ),
        'mean': sections.channels('numbers from 0 to 1', lambda one: 0 <= one <= 1, (0.5, 0.5, 0.5)),
        'std': sections.channels('numbers above 0', lambda one: one > 0, (0.5, 0.5, 0.5)),
        'workers': sections.between(0, MAX_READERS, 0),
        'threads': sections.between(0, MAX_READERS, 4),
    }

    source: str
    train_split: str
    test_split: str
    held_out_fraction: float
    held_out_list: str
    few_shot: float
    few_shot_list: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    workers: int
    threads: int
    drawings: Drawings


def cores() -> int:
    """Return as many threads as this process has cores."""
    return min(MANY_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)
