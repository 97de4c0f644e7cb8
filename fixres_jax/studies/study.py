"""Study: what a study is; Subject: what it may look at."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from fixres_jax.adaptation.adapt import Adaptation
from fixres_jax.core import sections
from fixres_jax.core.figures import Figure
from fixres_jax.core.sections import Section
from fixres_jax.core.tables import Table
from fixres_jax.data import corruptions
from fixres_jax.data.crops import TestCrop, TrainCrop
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.machines.runtime import Feed
from fixres_jax.training.optimization import Optimization
from fixres_jax.training.train import Writing
from fixres_jax.weights.network import Network

Numbers = dict[str, Any]  # what goes into a .json file
Arrays = dict[str, np.ndarray]  # what goes into an .npz file


@dataclasses.dataclass(frozen=True)
class Analysis(Section):
    """What a study takes."""

    PATH = 'analyze.'
    RULES = {
        'images': sections.least(1, 2000),
        'epochs': sections.least(0, 1.0),
        'corruptions': sections.Rule(
            lambda v: set(v) <= corruptions.KINDS.keys(), f'names of {", ".join(corruptions.KINDS)}', ('fog', 'snow')
        ),
        'strengths': sections.Rule(
            lambda v: v and set(v) <= set(corruptions.STRENGTHS), 'at least one of 1 to 5', (1, 3, 5)
        ),
        'prior_images': sections.least(1, 256),
    }

    images: int
    epochs: float
    runs: tuple[str, ...]
    corruptions: tuple[str, ...]
    strengths: tuple[int, ...]
    variants: tuple[str, ...]
    prior_images: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """Hold the networks of a finished run, on the devices.

    Attributes:
      before: the trained one.
      after: the adapted one; None for a study that adapts, of a network that no recipe has adapted.
      resolution: pixels that it is adapted to.
      own: resolution -> the network adapted there by the sweep; empty without such a sweep.
      control: the one adapted at the training size; None where the run has none.
    """

    before: Network
    after: Network | None
    resolution: int
    own: Mapping[int, Network]
    control: Network | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """Hold other test images for the same network.

    Attributes:
      source: whose labels count through the network's classes.
      present: those that it has, where they are fewer; else None.
    """

    source: Source
    present: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Subject:
    """Hold everything that a study may look at.

    Attributes:
      networks: of the run; None for a study that needs none.
      train, held_out, test: images; the first are as many as an adaptation that only compares may cost.
      train_resolution: pixels.
      resolutions: pixels, of the curves.
      train_crop, test_crop: how training and test images are cropped.
      test_transforms: function resolutions -> {resolution: test transform}.
      adaptation: how the run adapts in one pass.
      finetuning: how it would fine-tune through the network.
      feed: how images pass.
      seed: of everything random.
      images: test images for distributions and corruptions, at most.
      epochs: passes over the training images for what is fine-tuned; 0 to leave that out.
      runs: workdir -> report.json of finished runs.
      writing: where and how often what is fine-tuned is saved.
      present: labels that the test images have, where they are fewer than the network's classes; else None.
      corruptions: kinds of `data.corruptions`.
      strengths: of those.
      variants: name -> other test images.
      prior_images: that old statistics count as, for a network with blended ones.
      directory: of the run, for what a study keeps while it is made; None to keep nothing.
    """

    networks: Pair | None
    train: Source
    held_out: Source | None
    test: Source
    train_resolution: int
    resolutions: tuple[int, ...]
    train_crop: TrainCrop
    test_crop: TestCrop
    test_transforms: Callable[[Iterable[int]], dict[int, Transform]]
    adaptation: Adaptation
    finetuning: Optimization
    feed: Feed
    seed: int
    images: int
    epochs: float
    runs: Mapping[str, Mapping[str, Any]]
    writing: Writing
    present: tuple[int, ...] | None = None
    corruptions: tuple[str, ...] = ()
    strengths: tuple[int, ...] = ()
    variants: Mapping[str, Variant] = dataclasses.field(default_factory=dict)
    prior_images: int = 0
    directory: epath.Path | None = None


@dataclasses.dataclass(frozen=True)
class Picture:
    """Describe a figure of a study.

    Attributes:
      draw: function (numbers, arrays) -> figure, or None when there is nothing to show.
      title: heading of its section in a report.
      caption: sentence below it, or function of the numbers -> that.
      wide: whether it is wider than a phone, which must scroll it.
    """

    draw: Callable[[Numbers, Arrays], Figure | None]
    title: str
    caption: str | Callable[[Numbers], str]
    wide: bool = False

    def says(self, numbers: Numbers) -> str:
        """Return the caption of these numbers."""
        return self.caption if isinstance(self.caption, str) else self.caption(numbers)


@dataclasses.dataclass(frozen=True)
class Study:
    """Describe a study.

    Attributes:
      compute: function of the subject -> (numbers, arrays), from which alone the figures are drawn.
      pictures: file name -> figure.
      needs_networks: whether it looks at the networks of a run.
      in_report: whether every recipe makes it, for its report.
      adapts: whether it adapts by itself, and so takes a network that no recipe has adapted.
      table: function of the numbers -> the table below the first figure.
    """

    compute: Callable[[Subject], tuple[Numbers, Arrays]]
    pictures: Mapping[str, Picture]
    needs_networks: bool = True
    in_report: bool = True
    adapts: bool = False
    table: Callable[[Numbers], Table] | None = None
