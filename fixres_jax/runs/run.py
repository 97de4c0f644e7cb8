"""Run: what the phases of a run share, made of the config, the given network and the data."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from fixres_jax import models
from fixres_jax.adaptation.adapt import Adaptation
from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.core.resolution import Resolution
from fixres_jax.data import sources, transforms
from fixres_jax.data.reading import cores
from fixres_jax.data.sources import Source, Splits
from fixres_jax.data.transforms import Transform
from fixres_jax.evaluation.validation import make_validation
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime, usual_batch
from fixres_jax.models import Model
from fixres_jax.runs import checks, networks, provenance, settings
from fixres_jax.runs.images import open_images, selection
from fixres_jax.runs.settings import Settings
from fixres_jax.runs.tasks import TASKS
from fixres_jax.training.optimization import Finetuning, fitted_batch
from fixres_jax.training.train import Writing
from fixres_jax.weights import imagenet, network
from fixres_jax.weights.network import Network

AVERAGED = 'ema'  # folder of the averaged network


@dataclasses.dataclass(frozen=True)
class Run:
    """Hold what the phases need.

    Attributes:
      settings: the config.
      workdir: folder of the run.
      runtime: where it executes.
      images: what it trains on, chooses on and reports on.
      present: labels that the data have, where they are fewer than the network's classes; else None.
      start: the network that it begins with, on this host; without variables for random ones.
      given: `fixres.json` of the network that `init_from` names; {} without one.
      adaptation: how it adapts in one pass.
      finetuning: how it fine-tunes, with the regexes of its architecture.
      adapted_about: `fixres.json` of a network that it adapts or fine-tunes.
      networks: phase -> the network that it has left, on the devices: it is read from disk only after a restart.
    """

    settings: Settings
    workdir: epath.Path
    runtime: Runtime
    images: Splits
    present: tuple[int, ...] | None
    start: Network
    given: Mapping[str, Any]
    adaptation: Adaptation
    finetuning: Finetuning
    adapted_about: dict[str, Any]
    networks: dict[str, Network] = dataclasses.field(default_factory=dict)

    @property
    def train_resolution(self) -> int:
        """Pixels that the network was or will be trained at."""
        return self.start.about['train_resolution']

    @property
    def resolutions(self) -> tuple[int | Resolution, ...]:
        """Test resolutions of the sweep and the curve, pixels."""
        least = self.start.model.architecture.min_resolution
        adapted_at = self.given.get('test_resolution')
        return self.settings.test.resolutions or default_resolutions(
            self.train_resolution, Resolution.parse(adapted_at) if adapted_at else None, least
        )

    @property
    def resizing(self) -> dict[str, Any]:
        """How test images are resized: arguments of `transforms.make_test`."""
        return {name: self.start.about[name] for name in ('resize_ratio', 'resize', 'interpolation')}

    @property
    def averages(self) -> bool:
        """Whether training keeps an average of the parameters."""
        return self.settings.trains and self.settings.train.ema.decay > 0

    @property
    def trained(self) -> Network:
        """The network that training has left: the averaged one, where there is one."""
        return self.network(AVERAGED if self.averages else 'train')

    def feed(self, title: str) -> Feed:
        """Say how images pass in evaluations and adaptations."""
        return Feed(self.runtime, self.settings.test.batch_size or usual_batch(self.runtime.mesh), title)

    def test_transforms(self, resolutions: Iterable[int | Resolution]) -> dict[int | Resolution, Transform]:
        """Return resolution -> the test transform."""
        return {size: transforms.make_test(size, crop=self.settings.test.crop, **self.resizing) for size in resolutions}

    def writing(self, folder: str) -> Writing:
        """Say where and how often a phase that trains writes."""
        s = self.settings
        return Writing(
            self.workdir / folder,
            s.log_every_steps,
            s.checkpoint_every_steps,
            s.keep_checkpoints,
            s.restore_step,
            s.tracker,
        )

    def validated(self, writing: Writing, model: Model, resolution: int) -> Writing:
        """Return how a phase writes that also looks at some held-out images now and then, where there are any."""
        s = self.settings
        if self.images.held_out is None or not (s.validate_every_epochs and s.validation_images):
            return writing
        some = sources.sample(self.images.held_out, s.validation_images, s.seed)
        validate = make_validation(
            model, some, self.test_transforms((resolution,))[resolution], self.feed('validation')
        )
        return dataclasses.replace(writing, validate=validate, validate_every_epochs=s.validate_every_epochs)

    def network(self, phase: str) -> Network:
        """Return the network that a phase has left."""
        if phase not in self.networks:
            # The options of this run, such as the dtype of its activations, are not kept with the weights.
            loaded = dataclasses.replace(network.load(self.workdir / phase), model=self.start.model)
            self.networks[phase] = loaded.placed(self.runtime)
        return self.networks[phase]


def open_run(s: Settings, workdir: epath.Path) -> Run:
    """Open the network and the images of a config that `settings.read` and `settings.check_task` have passed.

    Raises:
      UsageError: for anything that does not fit together.
    """
    given = network.load(s.init_from) if s.init_from else None
    check_network(s, given)  # all that is wrong with it before an image is looked for
    return make(s, given, open_images(s, workdir), workdir)


def check_network(s: Settings, given: Network | None) -> None:
    """Raise UsageError for a network or devices that a config does not fit."""
    mesh = sharding.make_mesh()
    for section in s.optimized:
        if section.batch_size:
            sharding.check_batch_size(section.batch_size, mesh, f'{section.PATH}batch_size', section.accumulate_steps)
    name, width = networks.identify(s, given.about if given else {})
    architecture = models.find(name)
    settings.check_architecture(s, name, architecture)
    of_name = networks.finetuning(s, name)
    checks.layers(models.create(name, width=width, **s.model.of_family), {'train': s.train, 'finetune': of_name})


def make(s: Settings, given: Network | None, images: Splits, workdir: epath.Path, *, unseen: bool | None = None) -> Run:
    """Make a run of a config, a network that fits it and images.

    Args:
      s: the config.
      given: the network that it begins with; None for a blank one.
      images: of the run.
      workdir: its folder.
      unseen: whether the network has seen none of the held-out images; None for what its record of trainings says.

    Raises:
      UsageError: for anything that does not fit together.
    """
    # 1. Labels follow the classes of the given network.
    about = given.about if given else {}
    data_classes = images.test.class_names
    own = () if s.reset_head else about.get('class_names') or ()
    if given is not None and not own and not s.reset_head:
        own = imagenet.names_for(given.model.num_classes, data_classes)
    if s.task == 'extract' and own and not set(data_classes) <= set(own):
        log.info("The classes of %s are not the network's: labels are unknown.", s.data.source)
        class_names, present, relabelled = tuple(own), None, sources.unlabelled
    else:
        class_names, present = provenance.network_classes(own, data_classes, s.init_from, s.data.source)
        relabelled = sources.relabelled
    parts = (images.train, images.held_out, images.test)
    images = Splits(*(part and relabelled(part, class_names) for part in parts))

    # 2. The network with the classes of the run, and what it has seen.
    start = networks.make(s, given, class_names, len(data_classes))
    trainings = provenance.given_trainings(about)
    after = trainings
    if images.train is not None:
        after = provenance.extend(trainings, provenance.training(selection(s), images.train, images.held_out))
    start.about['trained_on'] = after if s.trains else trainings
    others = provenance.on_other_images(about, data_classes) if s.reset_head else []
    looked_at = [record for record in start.about['trained_on'] if record not in others]
    mesh = sharding.make_mesh()
    finetuning = networks.finetuning(s, start.about['architecture'])
    if not finetuning.batch_size and images.train is not None:
        parts = mesh.size * finetuning.accumulate_steps
        finetuning = dataclasses.replace(finetuning, batch_size=fitted_batch(len(images.train), parts))
    run = Run(
        settings=s,
        workdir=workdir,
        runtime=Runtime(mesh, s.sharding, s.data.workers, s.data.threads or cores()),
        images=images,
        present=present,
        start=start,
        given=about,
        adaptation=_adaptation(s, finetuning, _unseen(looked_at, images.held_out, unseen)),
        finetuning=finetuning,
        adapted_about=start.about | {'trained_on': after},
    )
    _check_adaptation(run)
    if given is not None and not s.reset_head and {'adapt', 'finetune'} & set(s.phases):
        keeps = 'adapt' in s.phases and run.adaptation.solver == 'none'
        checks.warn_of_few_classes(images.train.labels, start.model.num_classes, keeps)
    for section in s.optimized:
        used = finetuning if section is s.finetune else section
        checks.warn_of_large_batch(used, len(images.train))
    return run


def _unseen(trainings: list[Any], held_out: Source | None, unseen: bool | None) -> bool:
    """Say whether there are held-out images that the network has not seen, which alone may choose."""
    if held_out is None or unseen is not None:
        return held_out is not None and bool(unseen)
    reason = provenance.why_seen(trainings, held_out)
    if reason:
        log.info('The network may have seen some of the %d held-out images: %s.', len(held_out), reason)
    return not reason


def _adaptation(s: Settings, finetuning: Finetuning, unseen: bool) -> Adaptation:
    """Return how the config adapts in one pass; whether held-out images may choose depends on what was trained on."""
    fields = vars(s.adapt) | {'solver': s.adapt.solver_for(unseen)}
    return Adaptation(**fields, batch_norm=finetuning.batch_norm, optimization=finetuning, unseen=unseen)


def _check_adaptation(run: Run) -> None:
    """Raise UsageError for an adaptation that cannot train what it should, or a sweep with nothing to choose."""
    s, sizes = run.settings, run.resolutions
    if 'adapt' in s.phases and run.adaptation.solver == 'sgd':
        checks.sgd_on_embeddings(run.start.model, run.finetuning, s.task)
    if TASKS[s.task].chooses and not s.test.resolution and max(sizes) < run.train_resolution:
        raise UsageError(
            f'test.resolutions={sizes} has none of at least {run.train_resolution}, which {s.init_from} was '
            'trained at: add one.'
        )


def default_resolutions(
    train_resolution: int, adapted_at: int | Resolution | None, least: int
) -> tuple[int | Resolution, ...]:
    """Return multiples of 16 from 0.75 to 2 times the training resolution, that itself and that of an adaptation."""
    ratios = (0.75, 1.0, 1.125, 1.25, 1.375, 1.5, 1.75, 2.0)
    sizes = {max(least, 16 * round(ratio * train_resolution / 16)) for ratio in ratios}
    return tuple(sorted(sizes | {train_resolution, adapted_at or train_resolution}))
