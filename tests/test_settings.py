"""The config is checked whole, by types and tables, before anything else is done; what does not fit is named."""

import dataclasses
import logging

import jax
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import base, quickstart
from fixres_jax import models
from fixres_jax.adaptation import embeddings
from fixres_jax.core import sections
from fixres_jax.core.errors import UsageError
from fixres_jax.runs import networks, phases, recipe, settings, tasks
from fixres_jax.runs.run import open_run
from fixres_jax.training import train
from fixres_jax.training.optimization import Training
from fixres_jax.weights import checkpoint


@pytest.fixture
def config():
    return quickstart.get_config()


def kinds(kind=settings.Settings):
    """Yield the sections of the config, the whole one first."""
    yield kind
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from kinds(field.type)


def test_every_field_of_base_has_a_type_and_no_default():
    def names(kind):
        for field in dataclasses.fields(kind):
            assert field.default is field.default_factory is dataclasses.MISSING
            yield from names(field.type) if dataclasses.is_dataclass(field.type) else [f'{kind.PATH}{field.name}']

    def fields(values, prefix=''):
        for name, value in values.items():
            yield from fields(value, f'{prefix}{name}.') if isinstance(value, dict) else [f'{prefix}{name}']

    assert set(names(settings.Settings)) == set(fields(base.get_config().to_dict()))
    for kind in kinds():
        assert kind.RULES.keys() <= {field.name for field in dataclasses.fields(kind)}


def test_the_value_that_a_message_advises_works():
    for kind in kinds():
        for name in kind.RULES:
            rule = kind.rule(name)
            assert rule.holds(rule.works), (kind, name)


def test_names_of_choices_are_those_of_the_code_that_takes_them():
    named = {phase for task in tasks.TASKS.values() for phase in task.phases} - {tasks.ADAPTATION}
    assert named | set(tasks.ADAPTATIONS.values()) == set(phases.PHASES)
    by_path = {kind.PATH: kind.RULES for kind in kinds()}
    assert set(by_path['adapt.']['cache_dtype'].choices) == set(embeddings.DTYPES)
    assert set(by_path['model.']['dtype'].choices) == {'auto', *networks.DTYPES}


def test_values_take_the_type_of_their_field(config):
    config = ConfigDict(config.to_dict(), type_safe=False)
    config.train.epochs, config.test.resolutions = 3, [48, 64]
    read = settings.read(config)
    assert isinstance(read.train.epochs, float) and read.test.resolutions == (48, 64)
    for value, kind in (
        ('3', float),
        (True, float),
        (float('inf'), float),
        (3.0, int),
        (True, int),
        (1, bool),
        (1, str),
    ):
        with pytest.raises(TypeError):
            sections.convert(value, kind)


def test_missing_and_unknown_fields_are_named(config):
    config = ConfigDict(config.to_dict())
    config.train.momentun = 0.9
    with pytest.raises(UsageError, match=r"train.momentun, which is unknown. Did you mean 'momentum'"):
        settings.read(config)
    del config.train.momentun
    del config.train.momentum
    with pytest.raises(UsageError, match=r'no field train.momentum: begin with configs/base.py'):
        settings.read(config)


def test_a_refused_config_leaves_no_trace(config, tmp_path):
    config.train.lr = -0.1
    with pytest.raises(UsageError, match=r'train.lr=-0.1: expected 0 or more, such as 0.1'):
        recipe.run(config, tmp_path / 'workdir')
    assert not (tmp_path / 'workdir').exists()


@pytest.mark.parametrize(
    'batch_size, parts, group, advice',
    [
        (48, 1, 64, r'model.bn_group_size=48, or 0 for the whole batch, or train.batch_size=64\.'),
        (96, 1, 64, r'model.bn_group_size=48, or 0 for the whole batch, or train.batch_size=128\.'),
        (128, 4, 64, r'in 4 parts of 32 .* model.bn_group_size=32, .* train.batch_size=256\.'),
    ],
)
def test_batch_norm_groups_that_do_not_fit_are_refused_with_ones_that_do(config, batch_size, parts, group, advice):
    config.train.update(batch_size=batch_size, accumulate_steps=parts)
    config.model.bn_group_size = group
    with pytest.raises(UsageError, match=advice):
        settings.read(config)
    for fits in (Training.largest_group(config.train, group), 0):
        config.model.bn_group_size = fits
        settings.read(config)


def test_fine_tuning_takes_the_largest_group_that_fits_and_says_so(config, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('fixres_jax'), 'propagate', True)
    config.task, config.init_from, config.test.resolution = 'finetune', 'somewhere', 64
    config.finetune.update(batch_size=96)
    o = settings.read(config).finetune
    model = models.create('resnet18', 4, width=8, bn_group_size=64)
    with caplog.at_level(logging.INFO, 'fixres_jax'):
        assert train.regroup(model, o, 'finetune').module.bn_group_size == 48
    assert 'groups of 48 images, not model.bn_group_size=64, which does not divide the batch of 96' in caplog.text
    assert train.regroup(model.clone(bn_group_size=32), o, 'finetune').module.bn_group_size == 32
    assert train.regroup(model.clone(bn_group_size=None), o, 'finetune').module.bn_group_size is None


def test_fine_tuning_runs_with_a_batch_that_the_groups_do_not_divide(config, tiny_folder, tmp_path):
    model = models.create('resnet18', 4, width=8)
    variables = jax.device_get(jax.jit(lambda: model.init(jax.random.key(0)))())
    about = {'architecture': 'resnet18', 'width': 8, 'train_resolution': 32}
    checkpoint.save_model(epath.Path(tmp_path) / 'given', variables, about)
    config.update(task='finetune', init_from=str(tmp_path / 'given'))
    config.data.source = str(tiny_folder)
    config.model.update(width=8, bn_group_size=16)
    config.finetune.update(batch_size=24, epochs=1.0)
    config.test.update(resolution=32, resolutions=(32,))
    recipe.run(config, tmp_path / 'run')
    assert (tmp_path / 'run' / 'finetune.json').exists()


def test_a_batch_larger_than_the_data_is_warned_of(config, tiny_folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('fixres_jax'), 'propagate', True)
    config.data.update(source=str(tiny_folder), held_out_fraction=0.25)
    config.train.update(batch_size=4096, epochs=1.0)
    open_run(settings.read(config), epath.Path(tmp_path))
    assert 'train.batch_size=4096 is more than the 38 training images' in caplog.text
    assert 'has 1 steps. Give a smaller one, such as 8.' in caplog.text


def test_going_back_to_a_step_that_is_not_there_is_refused(config, tmp_path):
    config.restore_step = 999
    with pytest.raises(UsageError, match='restore_step=999: .* has no such checkpoint, but none'):
        recipe.run(config, tmp_path / 'fresh')
    assert not (tmp_path / 'fresh').exists()
    (tmp_path / 'run' / 'train' / 'checkpoints' / '40').mkdir(parents=True)
    with pytest.raises(UsageError, match='but those of steps 40'):
        recipe.run(config, tmp_path / 'run')
