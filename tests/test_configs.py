"""Every config loads, names models and regexes that exist, and every field of base is read somewhere."""

import importlib
import re
from pathlib import Path

import jax
import pytest

from configs import base, finetune, resnet50
from fixres_jax import models, optim, state, trees
from fixres_jax.plan import default_resolutions

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = [
    ('quickstart', None),
    ('imagenette', 'small'),
    ('imagenette', 'resnet50'),
    *(('resnet50', variant) for variant in resnet50.RESOLUTIONS),
    *(('finetune', variant) for variant in finetune.TABLE),
]


def load(name, variant):
    get_config = importlib.import_module(f'configs.{name}').get_config
    return get_config(variant) if variant else get_config()


def fields(config, prefix=''):
    for key, value in config.items():
        if hasattr(value, 'items'):
            yield from fields(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}'


@pytest.mark.parametrize('name, variant', CONFIGS)
def test_config_tells_the_defaults_of_base_whatever_it_changes_itself(name, variant):
    config = load(name, variant)
    config.train.lr = 7.0
    assert config.defaults() == config.copy_and_resolve_references().defaults() == base.get_config().to_dict()
    assert config.to_dict() != config.defaults()


@pytest.mark.parametrize('name, variant', CONFIGS)
def test_config_is_one_that_can_run(name, variant):
    config = load(name, variant)
    assert set(fields(config)) == set(fields(base.get_config())), 'a field that base does not have'
    assert config.model.name in models.MODELS
    for section in (config.train, config.finetune):
        lr = optim.learning_rate(section.lr, section.batch_size, section.lr_rule)
        optim.make_schedule(section.schedule, lr, num_steps=10, decay_every_steps=1)
        group = config.model.bn_group_size
        assert not group or section.batch_size % group == 0
    resolutions = config.test.resolutions or default_resolutions(config.train.resolution)
    assert list(resolutions) == sorted(resolutions) and max(resolutions) > config.train.resolution


@pytest.mark.parametrize('name', models.MODELS)
def test_the_table_of_fine_tuning_regexes_matches(name):
    model = models.create(name, 10, width=64)
    shapes = jax.eval_shape(lambda: state.init_variables(model, jax.random.key(0)))
    regexes = models.FINETUNE[name]
    selected, _ = trees.split(shapes['params'], regexes['trainable'])
    assert set(trees.flatten(selected)) == {'fc/kernel', 'fc/bias'}
    assert len(models.batch_norm_layers(shapes['batch_stats'], regexes['batch_norm'])) == 1


def test_every_field_of_base_is_read_and_explained():
    code = ''.join(path.read_text() for path in (ROOT / 'fixres_jax').rglob('*.py'))
    for name in fields(base.get_config()):
        last = name.split('.')[-1]
        assert re.search(rf'\b{last}\b', code), f'{name} is read nowhere'


def test_finetune_covers_every_model():
    assert {name.removesuffix('_cutmix') for name in finetune.TABLE} == set(models.MODELS)


def test_default_resolutions_hold_the_training_size_and_reach_twice_it():
    assert default_resolutions(128) == (96, 128, 144, 160, 176, 192, 224, 256)
    assert 100 in default_resolutions(100)
