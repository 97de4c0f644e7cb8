"""The plan of a run: the config checked, and turned into the plain values that the phases take."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from fixres_jax import (
    __version__,
    adapt,
    checkpoint,
    checks,
    models,
    provenance,
    settings,
    sharding,
    state,
    train,
    trees,
)
from fixres_jax.data import drawings, sources, transforms
from fixres_jax.errors import UsageError
from fixres_jax.progress import log

DEFAULT_NAME, DEFAULT_WIDTH = 'resnet50', 64  # where neither the config nor a given network says
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Study:
    """Say which study to make: `study` and the fields of the configs' `analyze`."""

    name: str
    images: int
    epochs: float
    runs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Hold what the phases need, with the config already unpacked.

    Attributes:
      workdir: folder of the run.
      seed: of everything random.
      model: from `models.create`.
      mesh: the devices.
      layout: how a network lies on them, see `sharding.place`.
      variables: where training begins, numpy arrays; None for random ones.
      train_source, held_out, test_source: images to train on, to choose the resolution on, and to report on.
      present: labels that the data have, where they are fewer than the network's classes; else None.
      images: training, held-out and test -> count and hash of the names, see `provenance.images`.
      train_transform: of training.
      augmentation: of fine-tuning, 'test' or 'v2'.
      training, finetuning: how each is optimized.
      adaptation: phase of the recipe that adapts, 'adapt' or 'finetune'.
      adapting: how the one-pass adaptation works.
      sweep_images: training images that the sweep adapts on, at most.
      init_from: where the given network was.
      given_resolution: pixels that it was adapted to; None if it was not.
      extract_split, extract_flip: what an extraction takes, and whether it averages with the mirror image.
      study: which study, and what it takes.
      repeats: copies of an image in a training batch.
      train_resolution: pixels.
      test_resolution: pixels; 0 to choose it on the held-out images.
      resolutions: test resolutions of the sweep and the curve, pixels.
      resizing: resize_ratio, resize and interpolation of the test transform.
      test_crop: False to test on whole images.
      test_batch_size: global batch of evaluations.
      metadata: `fixres.json` of the network that is trained, or given.
      adapted_metadata: that of one adapted or fine-tuned from it.
      writing: log_every_steps, checkpoint_every_steps, keep_checkpoints, restore_step.
      reading: workers, threads.
    """

    workdir: epath.Path
    seed: int
    model: Any
    mesh: Mesh
    layout: str
    variables: Any
    train_source: Any
    held_out: Any
    test_source: Any
    present: tuple[int, ...] | None
    images: dict[str, Any]
    train_transform: Any
    augmentation: str
    training: train.Optimization
    finetuning: train.Optimization
    adaptation: str
    adapting: adapt.Adaptation
    sweep_images: int
    init_from: str
    given_resolution: int | None
    extract_split: str
    extract_flip: bool
    study: Study
    repeats: int
    train_resolution: int
    test_resolution: int
    resolutions: tuple[int, ...]
    resizing: dict[str, Any]
    test_crop: bool
    test_batch_size: int
    metadata: dict[str, Any]
    adapted_metadata: dict[str, Any]
    writing: dict[str, int]
    reading: dict[str, int]


def make(config: Any, workdir: epath.Path) -> Plan:
    """Turn a config that `settings.read` and `settings.check_task` have passed into what the phases take."""
    mesh = sharding.make_mesh()
    optimized = settings.read(config).optimized
    for o in optimized:
        sharding.check_batch_size(o.batch_size, mesh, f'{o.PATH}batch_size', o.accumulate_steps)
    given, given_metadata = checkpoint.load_model(config.init_from) if config.init_from else (None, {})
    config = name_network(config, given_metadata)
    checks.layers(
        models.create(config.model.name, width=config.model.width),
        {'train': training(config), 'finetune': finetuning(config)},
    )
    parts = _open_data(config, workdir)
    data_classes = parts[-1].class_names
    own = () if config.reset_head else given_metadata.get('class_names', ())
    class_names, present = provenance.network_classes(own, data_classes, config.init_from, config.data.source)
    train_source, held_out, test_source = (sources.relabelled(part, class_names) for part in parts)
    model, metadata = make_model(config, given_metadata, class_names)
    trainings = provenance.given_trainings(given_metadata)
    after = provenance.extend(trainings, provenance.training(_selection(config), train_source, held_out))
    metadata['trained_on'] = after if _trains(config) else trainings
    resolutions = tuple(config.test.resolutions) or default_resolutions(
        metadata['train_resolution'], given_metadata.get('test_resolution')
    )
    _check_resolutions(config, metadata['train_resolution'], resolutions)
    how = adapting(config, metadata, held_out)
    one_pass = config.task == 'adapt' or (config.task == 'recipe' and config.adaptation == 'one_pass')
    if one_pass and how.solver == 'sgd':
        checks.classifier_alone(model, how.optimization.trainable, config.task)
    for o in optimized:
        checks.warn_of_large_batch(o, len(train_source))
    return Plan(
        workdir=workdir,
        seed=config.seed,
        model=model,
        mesh=mesh,
        layout=config.sharding,
        variables=_fit_variables(model, given, config, data_classes) if given else None,
        train_source=train_source,
        held_out=held_out,
        test_source=test_source,
        present=present,
        images=provenance.parts(train_source, held_out, test_source),
        train_transform=transforms.make_train(
            metadata['train_resolution'],
            scale=tuple(config.train.scale),
            ratio=tuple(config.train.ratio),
            flip=config.train.flip,
            jitter=config.train.jitter,
            crop=config.train.crop,
            interpolation=config.train.interpolation,
            fast_decode=config.train.fast_decode,
        ),
        augmentation=config.finetune.augmentation,
        training=training(config),
        finetuning=finetuning(config),
        adaptation=settings.ADAPTATIONS[config.adaptation],
        adapting=how,
        sweep_images=config.adapt.sweep_images,
        init_from=config.init_from,
        given_resolution=given_metadata.get('test_resolution'),
        extract_split=config.extract.split,
        extract_flip=config.extract.flip,
        study=Study(config.study, config.analyze.images, config.analyze.epochs, tuple(config.analyze.runs)),
        repeats=config.train.repeats,
        train_resolution=metadata['train_resolution'],
        test_resolution=config.test.resolution,
        resolutions=resolutions,
        resizing={name: metadata[name] for name in ('resize_ratio', 'resize', 'interpolation')},
        test_crop=config.test.crop,
        test_batch_size=config.test.batch_size,
        metadata=metadata,
        adapted_metadata=metadata | {'trained_on': after},
        writing={
            'log_every_steps': config.log_every_steps,
            'checkpoint_every_steps': config.checkpoint_every_steps,
            'keep_checkpoints': config.keep_checkpoints,
            'restore_step': config.restore_step,
        },
        reading={'workers': config.data.workers, 'threads': config.data.threads},
    )


def name_network(config: Any, given: dict[str, Any]) -> Any:
    """Return the config with its architecture and width, which it may leave to the given network.

    Raises:
      UsageError: when it names another network than the one given.
    """
    config = config.copy_and_resolve_references()
    have = {
        'name': given.get('architecture', config.model.name or DEFAULT_NAME),
        'width': given.get('width', config.model.width or DEFAULT_WIDTH),
    }
    with config.unlocked():
        config.model.update({field: config.model[field] or have[field] for field in have})
    want = {field: config.model[field] for field in have}
    if want != have:
        raise UsageError(
            f'{config.init_from} is a {have["name"]} of width {have["width"]}, and the config says {want["name"]} of '
            f'width {want["width"]}: leave model.name empty and model.width 0 to take the network as it is.'
        )
    return config


def make_model(config: Any, given: dict[str, Any], class_names: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
    """Return the model and the `fixres.json` of the run; what the config leaves open comes from the given network."""
    named = bool(given.get('class_names')) and not config.reset_head
    num_classes = config.model.num_classes or (named and given.get('num_classes')) or len(class_names)
    if num_classes < len(class_names):
        raise UsageError(
            f'model.num_classes={num_classes} is fewer than the {len(class_names)} classes of '
            f'{config.init_from if named else config.data.source}: give at least as many, or 0 to take their number.'
        )
    train_resolution = config.train.resolution
    trains = _trains(config)
    if not trains:  # The network comes trained.
        train_resolution = given.get('train_resolution') or train_resolution
    metadata = {
        'version': __version__,
        'architecture': config.model.name,
        'width': config.model.width,
        'num_classes': num_classes,
        'class_names': list(class_names),
        'mean': list(config.data.mean or given.get('mean') or models.IMAGENET_MEAN),
        'std': list(config.data.std or given.get('std') or models.IMAGENET_STD),
        'train_resolution': train_resolution,
        'test_resolution': config.test.resolution or None,
        'resize_ratio': config.test.resize_ratio or given.get('resize_ratio') or transforms.TEST_RATIO,
        'resize': config.test.resize or given.get('resize') or 'short',
        'interpolation': config.test.interpolation or given.get('interpolation') or 'bilinear',
        'crop': config.train.crop if trains else given.get('crop') or config.train.crop,
    }
    model = models.create(
        config.model.name,
        num_classes,
        dtype=_dtype(config.model.dtype),
        bn_group_size=config.model.bn_group_size or None,
        zero_init_residual=config.model.zero_init_residual,
        width=config.model.width,
        remat=config.model.remat,
        mean=tuple(metadata['mean']),
        std=tuple(metadata['std']),
    )
    return model, metadata


def _trains(config: Any) -> bool:
    return bool(config.train.epochs) and config.task in ('recipe', 'train')


def _check_resolutions(config: Any, train_resolution: int, resolutions: tuple[int, ...]) -> None:
    """Raise UsageError for a sweep with nothing to choose."""
    if config.task == 'recipe' and not config.test.resolution and max(resolutions) < train_resolution:
        raise UsageError(
            f'test.resolutions={resolutions} has none of at least {train_resolution}, which {config.init_from} was '
            'trained at: add one.'
        )


def default_resolutions(train_resolution: int, adapted_at: int | None = None) -> tuple[int, ...]:
    """Return multiples of 16 from 0.75 to 2 times the training resolution, that itself and that of an adaptation."""
    ratios = (0.75, 1.0, 1.125, 1.25, 1.375, 1.5, 1.75, 2.0)
    sizes = {max(models.MIN_RESOLUTION, 16 * round(ratio * train_resolution / 16)) for ratio in ratios}
    return tuple(sorted(sizes | {train_resolution, adapted_at or train_resolution}))


def _open_data(config: Any, workdir: epath.Path) -> tuple[Any, Any, Any]:
    """Return the sources (training, held out, test)."""
    data, spec = config.data, config.data.source
    if spec == 'drawings':
        spec = workdir / 'data'
        drawings.write(spec, train=data.drawings.train, val=data.drawings.val, seed=config.seed)
    if not spec:
        raise UsageError('data.source is empty: set --config.data.source to a folder with one folder per split.')
    test_source = sources.create(spec, data.test_split)
    if config.task == 'evaluate':
        if data.classes:
            test_source = sources.some_classes(test_source, data.classes)
        return None, None, test_source
    train_source = sources.create(spec, data.train_split)
    if train_source.class_names != test_source.class_names:
        only = sorted(set(train_source.class_names) ^ set(test_source.class_names))
        raise UsageError(
            f'The splits {data.train_split} and {data.test_split} of {spec} have different classes; '
            f'{len(only)} are in one only: {", ".join(only[:5])}.'
        )
    if data.classes:
        train_source, test_source = (sources.some_classes(s, data.classes) for s in (train_source, test_source))
    train_source, held_out = sources.training_parts(train_source, _selection(config))
    if held_out is None and config.task == 'recipe' and not config.test.resolution:
        raise UsageError(
            'Nothing to choose the test resolution on: set data.held_out_fraction above 0, or give test.resolution.'
        )
    return train_source, held_out, test_source


def _fit_variables(model: Any, given: Any, config: Any, class_names: tuple[str, ...]) -> Any:
    """Return loaded variables that fit the model, with a fresh classifier where `reset_head` asks for one."""
    fresh = jax.eval_shape(lambda: state.init_variables(model, jax.random.key(config.seed)))
    if config.reset_head:
        head = jax.jit(lambda: state.init_variables(model, jax.random.key(config.seed)))()['params']
        head, _ = trees.split(jax.device_get(head), 'fc/.*')
        _, trunk = trees.split(given['params'], 'fc/.*')
        given = {**given, 'params': trees.merge(head, trunk)}
        log.info('The classifier starts afresh with %d classes.', model.num_classes)
    difference = trees.diff(fresh, given)
    if difference:
        have = trees.flatten(given)['params/fc/bias'].shape[0] if 'params/fc/bias' in trees.flatten(given) else None
        if have is not None and have != model.num_classes:
            raise UsageError(
                f'{config.init_from} has {have} classes and the data {len(class_names)} (model.num_classes='
                f'{model.num_classes}). Set model.num_classes={have} if the first labels mean the same classes, or '
                'reset_head=True to start a fresh classifier.'
            )
        raise UsageError(
            f'{config.init_from} does not fit {config.model.name} of width {config.model.width}:\n'
            f'{difference.message()}'
        )
    return given


def training(config: Any) -> train.Optimization:
    """Return how the config trains."""
    return _optimization(config.train)


def finetuning(config: Any) -> train.Optimization:
    """Return how the config fine-tunes; the regexes that it leaves open are the model's own."""
    regexes = models.FINETUNE[config.model.name]
    return _optimization(config.finetune, **{name: config.finetune[name] or regexes[name] for name in regexes})


def adapting(config: Any, metadata: dict[str, Any], held_out: Any) -> adapt.Adaptation:
    """Return how the config adapts in one pass; whether held-out images may choose depends on the trunk's training."""
    reason = provenance.why_seen(metadata['trained_on'], held_out) if held_out is not None else ''
    if reason:
        log.info('The network may have seen some of the %d held-out images: %s.', len(held_out), reason)
    unseen = held_out is not None and not reason
    names = {field.name for field in dataclasses.fields(adapt.Adaptation)} & set(config.adapt.keys())
    fields = {name: config.adapt[name] for name in names} | {'weight_decays': tuple(config.adapt.weight_decays)}
    if config.adapt.solver == 'auto':
        fields['solver'] = 'lbfgs' if unseen else 'sgd'
    how = finetuning(config)
    return adapt.Adaptation(batch_norm=how.batch_norm, optimization=how, unseen=unseen, **fields)


def _selection(config: Any) -> dict[str, Any]:
    """Return what says which images are trained on, and which are held out."""
    names = ('source', 'train_split', 'held_out_fraction', 'held_out_list', 'few_shot', 'few_shot_list')
    return {name: config.data[name] for name in names} | {'classes': list(config.data.classes), 'seed': config.seed}


def _optimization(section: Any, **regexes: str) -> train.Optimization:
    names = [field.name for field in dataclasses.fields(train.Optimization)]
    return train.Optimization(**({name: section[name] for name in names} | regexes))


def _dtype(name: str) -> Any:
    if name == 'auto':
        name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    return DTYPES[name]
