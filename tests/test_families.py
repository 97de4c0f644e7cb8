"""Every network of the table against timm: parameters, names, numbers, steps; and one of each family in the recipe."""

import importlib
import json
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from configs import base
from fixres_jax import convert, models
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.machines import sharding, targets
from fixres_jax.models import EVAL, TRAIN, Mode, layers
from fixres_jax.runs import dry_run, recipe, settings
from fixres_jax.training import state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.step import make_train_step
from fixres_jax.weights import network, torch_weights
from goldens import weights
from goldens.families import FAMILIES

NUM_PARAMETERS = json.loads((Path(__file__).parent / 'goldens' / 'parameters.json').read_text())
LARGE = 20e6  # parameters of networks that take seconds to trace
RATES = ('dropout', 'drop_path')
MEMBERS = [
    pytest.param(family, name, marks=[] if name in family.fast else [pytest.mark.slow], id=name)
    for family in FAMILIES.values()
    for name in getattr(models, family.rows).ROWS
    if family.reference and name not in family.elsewhere
]
each_family = pytest.mark.parametrize(
    'family',
    [pytest.param(f, marks=[] if f.quick else [pytest.mark.slow], id=name) for name, f in FAMILIES.items()],
)


def reference(family):
    """Return the helper beside torch, or skip where there is none or timm cannot be imported."""
    if not family.reference:
        pytest.skip('no network in torch to compare with')
    pytest.importorskip('torchvision_cpu', exc_type=ImportError)
    pytest.importorskip('timm', exc_type=ImportError)
    return importlib.import_module(f'goldens.{family.reference}')


def variables_of(model, weight=weights.weight):
    """Return a model's variables with weights that are a function of torch's names and shapes."""
    shapes = torch_weights.torch_shapes(model)
    return torch_weights.from_torch({key: weight(key, leaf.shape) for key, leaf in shapes.items()}, model)


def normalized(name, images):
    """Return uint8 images as both sides take them: float32, by the mean and std of the row."""
    row = models.find(name)
    mean, std = (np.float32(value).reshape(1, 1, 1, 3) for value in (row.mean, row.std))
    return (np.float32(images) / 255 - mean) / std


@partial(jax.jit, static_argnums=(0, 3))
def apply(model, variables, images, mode):
    return model.apply(variables, images, mode)


def test_every_name_has_a_number_of_parameters():
    assert NUM_PARAMETERS.keys() == models.ARCHITECTURES.keys()


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=[pytest.mark.slow] if count > LARGE else []) for n, count in NUM_PARAMETERS.items()],
)
def test_every_network_has_its_published_number_of_parameters(name):
    assert trees.count(models.create(name).shapes()['params']) == NUM_PARAMETERS[name]


@pytest.mark.parametrize(('family', 'name'), MEMBERS)
def test_logits_embeddings_and_names_are_timms(family, name):
    timm_side = reference(family)
    theirs = timm_side.load(name, **family.theirs)
    model = models.create(name, weights.CLASSES)
    start = {key: value.numpy() for key, value in theirs.state_dict().items()}
    variables = torch_weights.from_torch(start, model)
    back = torch_weights.to_torch(variables, model)
    assert list(back) == list(start)  # in torch's order, the counters too
    assert all(back[key].tobytes() == start[key].tobytes() for key in start)
    for height, width in family.sizes:
        images = normalized(name, weights.images(2, max(height, width))[:, :height, :width])
        expected = timm_side.apply(theirs, images)
        logits, endpoints = apply(model, variables, images, EVAL)
        for found, wanted in zip((logits, endpoints['embedding']), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
        assert np.abs(expected[0]).max() > 1e-3


@pytest.mark.slow  # a minute each, of compiling
@each_family
def test_five_steps_of_training_are_torchs(family):
    timm_side = reference(family)
    batch, lr = 8, 1e-3
    options = {rate: 0.0 for rate in RATES if rate in models.find(family.small).options}
    model = models.create(family.small, weights.CLASSES, bn_group_size=batch, **options, **family.narrow)
    theirs = timm_side.load(family.small, weights.smooth_weight, **family.narrow, **family.theirs)
    start = {key: value.numpy().copy() for key, value in theirs.state_dict().items()}  # torch steps in place
    before = torch_weights.from_torch(start, model)
    batches = [
        {'image': normalized(family.small, weights.images(batch, family.steps, i)), 'label': weights.labels(batch, i)}
        for i in range(5)
    ]
    tx = make_sgd(optax.constant_schedule(lr), momentum=0.9, weight_decay=0.01)
    mesh = sharding.make_mesh(jax.devices()[:1])
    now = state.create(model, tx, '.*', key=jax.random.key(0), mesh=mesh, variables=before)
    step = make_train_step(model, tx, '.*', TRAIN, mesh=mesh)
    for one in batches:
        now, _ = step(now, sharding.put(one, mesh), jax.random.key(0))
    found = torch_weights.to_torch(jax.device_get(now.variables), model)
    expected = timm_side.train(theirs, batches, lr=lr, momentum=0.9, weight_decay=0.01)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if not key.endswith(torch_weights.COUNTER):
            moved = np.sqrt(np.mean((value - start[key]) ** 2))
            assert np.sqrt(np.mean((found[key] - value) ** 2)) <= 0.02 * moved + 1e-6, key
            assert moved > 0, key


@each_family
def test_dropout_and_drop_path_by_their_distribution(family):
    rates = {rate: 0.5 for rate in RATES if rate in models.find(family.small).options}
    if not rates:
        pytest.skip('no such options')
    model = models.create(family.small, 5, **dict(family.options), **rates)
    variables = variables_of(model)
    images = np.repeat(weights.images(1, family.recipe[0]), 8, axis=0)
    calm = apply(model.clone(**dict.fromkeys(rates, 0.0)), variables, images, EVAL)[0]

    @jax.jit
    def draw(key):
        return model.apply(variables, images, Mode(dropout=True, drop_path=True), rngs={'dropout': key})[0]

    first, again, other = (draw(jax.random.key(number)) for number in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other) and len(np.unique(np.asarray(first)[:, 0])) > 1  # an image by itself
    np.testing.assert_array_equal(apply(model, variables, images, EVAL)[0], calm)
    if rates.keys() == {'dropout'}:
        mean = np.mean([draw(jax.random.key(number)) for number in range(64)], axis=(0, 1))
        np.testing.assert_allclose(mean, calm[0], atol=0.25 * np.abs(calm).max() + 0.05)


@pytest.mark.parametrize(
    'family',
    [
        pytest.param(f, marks=[] if name.startswith('resnet') else [pytest.mark.slow], id=name)
        for name, f in FAMILIES.items()
        if 'drop_path' in models.find(f.small).options
    ],
)
def test_each_block_has_the_rate_of_drop_path_that_timms_has(family):
    timm_side = reference(family)
    if family.small in timm_side.OTHERS:
        pytest.skip('timm has no such network')
    reference_model = timm_side.create(family.small, drop_path_rate=0.3)
    theirs = {
        name.replace('.', '/'): layer.drop_prob
        for name, layer in reference_model.named_modules()
        if type(layer).__name__ == 'DropPath'
        and layer.drop_prob
        # A block without a shortcut has one too, and leaves it alone.
        and getattr(reference_model.get_submodule(name.rpartition('.')[0]), 'has_skip', True)
    }
    ours = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, layers.DropPath) and context.module.rate:
            ours['/'.join(context.module.path)] = context.module.rate
        return call(*args, **kwargs)

    model = models.create(family.small, drop_path=0.3)
    with nn.intercept_methods(note):
        model.shapes()
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert max(ours.values()) > 0.2


@each_family
def test_members_name_the_classifier_and_layers_that_are_there(family):
    for rule in ('code', 'paper'):
        row = models.find(family.small)
        shapes = models.create(family.small, **family.options).shapes()
        regexes = row.finetune(rule)
        assert row.note
        selected, _ = trees.split(shapes['params'], regexes['trainable'])
        assert {f'{row.classifier}/kernel', f'{row.classifier}/bias'} <= trees.flatten(selected).keys()
        selected = models.batch_norm_layers(shapes['batch_stats'], regexes['batch_norm'])
        assert bool(selected) == bool(regexes['batch_norm'])


@each_family
def test_options_of_other_families_are_refused(family):
    row = models.find(family.small)
    for option, value in {'zero_init_residual': True, 'padding': 'cadene', 'dropout': 0.1, 'width': 40}.items():
        if option not in row.options and not (option == 'width' and row.width):
            with pytest.raises(UsageError, match=f'model.{option}=.*a {family.small} has no such option'):
                models.create(family.small, **{option: value})


@each_family
def test_the_whole_recipe(family, tiny_folder, tmp_path, capsys):
    name = family.small
    model = models.create(name, 4, **family.options)
    start = {key: weights.weight(key, leaf.shape) for key, leaf in torch_weights.torch_shapes(model).items()}
    save_file(start, tmp_path / 'given.safetensors')
    train, test = family.recipe
    sizes = ['--train-resolution', str(train)]
    assert convert.main([name, str(tmp_path / 'given.safetensors'), str(tmp_path / 'given'), *sizes]) == 0

    config = base.get_config()
    config.validate_every_epochs = 0.0  # a program less to compile
    config.init_from = str(tmp_path / 'given')
    config.data.source = str(tiny_folder)
    config.train.epochs = 0.0
    config.test.resolutions = (train, test)
    config.test.resolution = test
    config.test.batch_size = config.finetune.batch_size = config.model.bn_group_size = 16
    config.finetune.epochs, config.analyze.epochs = 1.0, 0.0
    recipe.run(config, tmp_path / 'run')
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert list(report['numbers']) == ['train_resolution', 'larger', 'adapted', 'adapted_at_train_resolution']
    _assert_only_changed(tmp_path / 'given', tmp_path / 'run', models.find(name).finetune('paper'))

    config.task = 'extract'
    config.init_from = str(tmp_path / 'run')
    recipe.run(config, tmp_path / 'extracted')
    assert np.load(tmp_path / 'extracted' / 'extracted' / 'softmax.npy').shape == (24, 4)
    assert convert.main(['--to-torch', str(tmp_path / 'run'), str(tmp_path / 'back.safetensors')]) == 0
    back = load_file(tmp_path / 'back.safetensors')
    assert {key for key in back if not key.endswith(torch_weights.COUNTER)} == start.keys()
    assert all(back[key].shape == start[key].shape for key in start)


@each_family
def test_fine_tuning_changes_what_the_row_names(family, tiny_folder, tmp_path):
    model = models.create(family.small, 4, **family.options)
    weights_in = network.Network(model, variables_of(model), {
        'architecture': family.small, 'num_classes': 4, 'train_resolution': family.recipe[0], **family.options,
    })  # fmt: skip
    network.save(tmp_path / 'given', weights_in)
    config = base.get_config()
    config.validate_every_epochs = 0.0  # a program less to compile
    config.task = 'finetune'
    config.init_from = str(tmp_path / 'given')
    config.data.source = str(tiny_folder)
    config.test.resolution = family.recipe[1]
    config.finetune.epochs = 1.0
    config.test.batch_size = config.finetune.batch_size = config.model.bn_group_size = 16
    recipe.run(config, tmp_path / 'run')
    _assert_only_changed(tmp_path / 'given', tmp_path / 'run', models.find(family.small).finetune(), all_of_it=True)


@each_family
def test_the_dry_run_compiles_a_step_for_devices(family):
    config = base.get_config()
    config.validate_every_epochs = 0.0  # a program less to compile
    config.model.name, config.train.resolution = family.small, family.recipe[0]
    config.model.width = family.options.get('width', 0)
    config.train.batch_size = config.finetune.batch_size = config.model.bn_group_size = 16
    config.test.resolution, config.test.batch_size = family.recipe[1], 16
    machine = dry_run.DryRun(settings.read(config), targets.Target(jax.devices()), train_images=48, test_images=24)
    assert machine.compile('evaluate')['batch_size'] == 16


def _assert_only_changed(before, after, regexes, *, all_of_it=False):
    """Assert that of a network only the parameters and statistics changed that the two regexes name."""
    before, after = (network.load(folder).variables for folder in (before, after))
    flat, new = trees.flatten(before), trees.flatten(after)
    changed = {name for name in flat if not np.array_equal(flat[name], new[name])}
    selected, _ = trees.split(before['params'], regexes['trainable'])
    may = {f'params/{name}' for name in trees.flatten(selected)}
    moved = models.batch_norm_layers(before['batch_stats'], regexes['batch_norm'])
    may |= {f'batch_stats/{layer}/{name}' for layer in moved for name in ('mean', 'var')}
    assert changed == may if all_of_it else changed <= may
