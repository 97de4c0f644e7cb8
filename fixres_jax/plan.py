"""The plan of a run: the config checked, and turned into the plain values that the phases take."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from fixres_jax import adapt, checkpoint, models, sharding, state, train, trees
from fixres_jax.data import drawings, sources, transforms
from fixres_jax.errors import UsageError, nearest
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
      metadata: of `fixres.json`.
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
    writing: dict[str, int]
    reading: dict[str, int]


def make(config: Any, workdir: epath.Path) -> Plan:
    """Turn the config into plain values, checking each: the only place that knows the config's shape."""
    _check_network(config)
    given, given_metadata = checkpoint.load_model(config.init_from) if config.init_from else (None, {})
    config = name_network(config, given_metadata)
    train_source, held_out, test_source = _open_data(config, workdir)
    model, metadata = make_model(config, given_metadata, test_source.class_names)
    resolutions = tuple(config.test.resolutions) or default_resolutions(
        metadata['train_resolution'], given_metadata.get('test_resolution')
    )
    _check_resolutions(config, metadata['train_resolution'], resolutions)
    _check_layers(model, finetuning(config))
    return Plan(
        workdir=workdir,
        seed=config.seed,
        model=model,
        mesh=sharding.make_mesh(),
        layout=config.sharding,
        variables=_fit_variables(model, given, config, test_source.class_names) if given else None,
        train_source=train_source,
        held_out=held_out,
        test_source=test_source,
        train_transform=transforms.make_train(
            metadata['train_resolution'],
            scale=tuple(config.train.scale),
            ratio=tuple(config.train.ratio),
            flip=config.train.flip,
            jitter=config.train.jitter,
            crop=config.train.crop,
            interpolation=config.train.interpolation,
        ),
        augmentation=config.finetune.augmentation,
        training=training(config),
        finetuning=finetuning(config),
        adaptation=_adaptation_phase(config.adaptation),
        adapting=adapting(config, metadata, held_out),
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
        writing={
            'log_every_steps': config.log_every_steps,
            'checkpoint_every_steps': config.checkpoint_every_steps,
            'keep_checkpoints': config.keep_checkpoints,
            'restore_step': config.restore_step,
        },
        reading={'workers': config.data.workers, 'threads': config.data.threads},
    )


def _check_network(config: Any) -> None:
    """Raise UsageError when the task needs a network or a resolution that the config does not give."""
    if config.model.name and config.model.name not in models.MODELS:
        models.create(config.model.name)  # raises, naming the nearest
    needs_network = config.task == 'analyze' and config.study in ('activations', 'ablation')
    needs_network |= config.task in ('adapt', 'finetune', 'evaluate', 'extract')
    if needs_network and not config.init_from:
        raise UsageError(
            f'task={config.task} needs a network: set --config.init_from to a workdir or to converted weights.'
        )
    if config.task == 'recipe' and not (config.train.epochs or config.init_from):
        raise UsageError('train.epochs=0 needs a trained network: set --config.init_from, or train for some epochs.')
    if config.task in ('adapt', 'finetune') and not config.test.resolution:
        raise UsageError(f'task={config.task} needs the resolution to adapt to: set --config.test.resolution.')


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
    num_classes = config.model.num_classes or len(class_names)
    if num_classes < len(class_names):
        raise UsageError(
            f'model.num_classes={num_classes} is fewer than the {len(class_names)} classes of {config.data.source}: '
            'give at least as many, or 0 to take the number from the data.'
        )
    train_resolution = config.train.resolution
    trains = config.train.epochs and config.task in ('recipe', 'train')
    if not trains:  # The network comes trained.
        train_resolution = given.get('train_resolution') or train_resolution
    metadata = {
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
        'held_out': _held_out(config) if trains else given.get('held_out'),
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


def _check_resolutions(config: Any, train_resolution: int, resolutions: tuple[int, ...]) -> None:
    """Raise UsageError for a resolution that the network cannot take, or a sweep with nothing to choose."""
    named = [('train.resolution', train_resolution), *(('test.resolutions', value) for value in resolutions)]
    named += [('test.resolution', config.test.resolution)] if config.test.resolution else []
    for name, value in named:
        if value < models.MIN_RESOLUTION:
            raise UsageError(
                f'{name}={value} is too small for {config.model.name}, which divides its input by '
                f'{models.MIN_RESOLUTION}: give at least {models.MIN_RESOLUTION}.'
            )
    if config.task == 'recipe' and not config.test.resolution and max(resolutions) < train_resolution:
        raise UsageError(f'test.resolutions={resolutions} has none of at least train.resolution={train_resolution}.')


def _check_layers(model: Any, how: train.Optimization) -> None:
    """Raise UsageError, before anything is trained, when the model lacks the layers that are to be adapted."""
    shapes = jax.eval_shape(lambda: state.init_variables(model, jax.random.key(0)))
    models.batch_norm_layers(shapes['batch_stats'], how.batch_norm)
    trees.split(shapes['params'], how.trainable)


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
    train_source, held_out = sources.create(spec, data.train_split), None
    if train_source.class_names != test_source.class_names:
        only = sorted(set(train_source.class_names) ^ set(test_source.class_names))
        raise UsageError(
            f'The splits {data.train_split} and {data.test_split} of {spec} have different classes; '
            f'{len(only)} are in one only: {", ".join(only[:5])}.'
        )
    if data.classes:
        train_source, test_source = (sources.some_classes(s, data.classes) for s in (train_source, test_source))
    if data.held_out_list:
        train_source, held_out = sources.hold_out_listed(train_source, data.held_out_list)
    elif data.held_out_fraction:
        train_source, held_out = sources.hold_out(train_source, data.held_out_fraction, config.seed)
    elif config.task == 'recipe' and not config.test.resolution:
        raise UsageError(
            'Nothing to choose the test resolution on: set data.held_out_fraction above 0, or give test.resolution.'
        )
    if data.few_shot_list:
        _, train_source = sources.hold_out_listed(train_source, data.few_shot_list)
    elif data.few_shot:
        amount = data.few_shot if data.few_shot < 1 else int(data.few_shot)
        train_source = sources.few_shot(train_source, amount, config.seed)
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
    unseen = held_out is not None and metadata['held_out'] == _held_out(config)
    names = {field.name for field in dataclasses.fields(adapt.Adaptation)} & set(config.adapt.keys())
    fields = {name: config.adapt[name] for name in names} | {'weight_decays': tuple(config.adapt.weight_decays)}
    if config.adapt.solver == 'auto':
        fields['solver'] = 'lbfgs' if unseen else 'sgd'
    how = finetuning(config)
    return adapt.Adaptation(batch_norm=how.batch_norm, optimization=how, unseen=unseen, **fields)


def _held_out(config: Any) -> dict[str, Any]:
    """Say which images are held out: those of two runs are the same when this is."""
    data = config.data
    return {
        'source': data.source,
        'split': data.train_split,
        'fraction': data.held_out_fraction,
        'list': data.held_out_list,
        'classes': list(data.classes),
        'seed': config.seed,
    }


def _adaptation_phase(name: str) -> str:
    phases = {'one_pass': 'adapt', 'finetune': 'finetune'}
    if name not in phases:
        raise UsageError(f'adaptation={name!r} is not one of {", ".join(phases)}.{nearest(name, phases)}')
    return phases[name]


def _optimization(section: Any, **regexes: str) -> train.Optimization:
    names = [field.name for field in dataclasses.fields(train.Optimization)]
    return train.Optimization(**({name: section[name] for name in names} | regexes))


def _dtype(name: str) -> Any:
    if name == 'auto':
        name = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    if name not in DTYPES:
        raise UsageError(f'model.dtype={name!r} is not one of auto, {", ".join(DTYPES)}.{nearest(name, DTYPES)}')
    return DTYPES[name]
