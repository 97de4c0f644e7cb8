"""Every field of a config reaches what it is for, and what the config leaves open comes from the given network."""

import json

import numpy as np
import pytest
from etils import epath

from configs import base, resnet50
from fixres_jax import analyze, checkpoint, models, plan, state, train
from fixres_jax.analysis import sizes
from fixres_jax.data import decoding
from fixres_jax.errors import UsageError


@pytest.fixture
def config(tiny_folder):
    c = base.get_config()
    c.model.width = 8
    c.model.name = 'resnet18'
    c.data.source = str(tiny_folder)
    c.train.resolution = 32
    c.train.batch_size = c.test.batch_size = c.model.bn_group_size = 16
    return c


@pytest.fixture
def given(tmp_path, config):
    """A network on disk, trained at 40 pixels with other transforms than the defaults."""
    import jax

    model = models.create('resnet18', 4, width=8)
    variables = jax.device_get(state.init_variables(model, jax.random.key(0)))
    about = {'architecture': 'resnet18', 'width': 8, 'train_resolution': 40, 'resize': 'height', 'resize_ratio': 1.0}
    about |= {'interpolation': 'bicubic', 'crop': 'tensorflow', 'mean': [0.5] * 3, 'std': [0.25] * 3}
    checkpoint.save_model(epath.Path(tmp_path) / 'given', variables, about)
    return str(tmp_path / 'given')


def make(config, tmp_path):
    return plan.make(config, epath.Path(tmp_path) / 'workdir')


def test_the_training_transform_is_the_configs(config, tmp_path):
    config.train.update(crop='tensorflow', interpolation='bicubic', flip=False, jitter=0.0)
    made = make(config, tmp_path)
    transform = made.train_transform
    assert (transform.crop, transform.flip, transform.jitter) == ('tensorflow', False, 0.0)
    record = made.train_source[0]
    image = decoding.EncodedImage(record['encoded'], record['name'], 0)
    config.train.interpolation = 'bilinear'
    other = make(config, tmp_path).train_transform
    a, b = (t(image, np.random.default_rng(0)) for t in (transform, other))
    assert a.shape == b.shape == (32, 32, 3) and (a != b).any()


def test_the_test_transform_is_the_configs(config, tmp_path):
    config.test.update(resize='height', interpolation='bicubic', resize_ratio=1.0, crop=False)
    made = make(config, tmp_path)
    assert made.resizing == {'resize_ratio': 1.0, 'resize': 'height', 'interpolation': 'bicubic'}
    assert not made.test_crop


@pytest.mark.parametrize('crop', ['torchvision', 'tensorflow', 'resize'])
def test_the_study_of_regions_looks_at_the_crops_of_the_run(config, tmp_path, crop):
    config.train.update(crop=crop, scale=(0.2, 0.9))
    config.test.update(resize='height', resize_ratio=1.25)
    made = make(config, tmp_path)
    train_crop, test_crop = analyze.crops(made)
    assert (train_crop.crop, train_crop.scale) == (crop, (0.2, 0.9))
    assert test_crop == sizes.TestCrop(1.25, 'height')
    numbers, _ = analyze.roc(made, None)
    assert numbers['crop'] == crop and 0 < numbers['apparent_size']['mean'] < 3
    config.test.crop = False
    assert analyze.crops(make(config, tmp_path))[1] == sizes.TestCrop(1.0, 'long')


def test_parts_of_the_data_are_the_configs(config, tmp_path, tiny_folder):
    whole = make(config, tmp_path)
    names = [whole.train_source.name(index) for index in range(3)]
    (tmp_path / 'list').write_text('\n'.join(names))
    classes = sorted(whole.test_source.class_names)[:2]
    config.data.held_out_list = str(tmp_path / 'list')
    assert [make(config, tmp_path).held_out.name(index) for index in range(3)] == names
    config.data.update(held_out_list='', held_out_fraction=0.25, few_shot=2.0, classes=tuple(classes))
    made = make(config, tmp_path)
    assert list(made.train_source.class_names) == list(made.test_source.class_names) == classes
    assert np.bincount([made.train_source[i]['label'] for i in range(len(made.train_source))]).tolist() == [2, 2]
    assert made.metadata['held_out']['classes'] == classes
    config.data.update(classes=(), few_shot=0.0, few_shot_list=str(tmp_path / 'list'), held_out_fraction=0.0)
    config.test.resolution = 32
    made = make(config, tmp_path)
    assert [made.train_source.name(index) for index in range(len(made.train_source))] == names


@pytest.mark.parametrize('task', ['evaluate', 'extract', 'recipe'])
def test_a_given_network_says_all_that_the_config_leaves_open(config, given, tmp_path, task):
    config.model.name, config.model.width = '', 0
    config.update(task=task, init_from=given)
    config.train.epochs = 0.0
    made = make(config, tmp_path)
    about = json.loads((epath.Path(given) / 'fixres.json').read_text())
    for name in ('architecture', 'width', 'train_resolution', 'mean', 'std', 'crop', 'resize', 'resize_ratio'):
        assert made.metadata[name] == about[name], name
    assert made.resizing == {name: about[name] for name in ('resize_ratio', 'resize', 'interpolation')}
    assert made.model.width == 8 and made.model.mean == (0.5,) * 3


def test_a_network_is_tested_where_it_was_adapted_unless_the_config_says_where(config, given, tmp_path):
    about = epath.Path(given) / 'fixres.json'
    about.write_text(json.dumps(json.loads(about.read_text()) | {'test_resolution': 57}))
    config.update(task='evaluate', init_from=given)
    assert {40, 57} <= set(make(config, tmp_path).resolutions)
    config.test.resolutions = (64,)
    assert make(config, tmp_path).resolutions == (64,)


def test_another_network_than_the_given_one_is_refused(config, given, tmp_path):
    config.update(task='evaluate', init_from=given)
    config.model.name = 'resnet34'
    with pytest.raises(UsageError, match='is a resnet18 of width 8, and the config says resnet34 of width 8: leave'):
        make(config, tmp_path)


def test_without_a_network_it_is_the_published_resnet50(config):
    config.model.name, config.model.width = '', 0
    named = plan.name_network(config, {})
    assert (named.model.name, named.model.width) == ('resnet50', 64)
    assert config.model.name == ''  # the caller's is as it was


def test_a_phase_says_its_length_in_samples_and_in_the_papers_epochs():
    paper = plan.training(resnet50.get_config())
    text = train.describe(paper, 1_281_167, repeats=3)
    assert text.startswith('600,547 steps of 512 see 307,480,064 samples of 1,281,167 images, 3 copies')
    assert '120.0 epochs as the paper counts' in text
    assert 'epochs' not in train.describe(paper, 1_281_167, repeats=1)
