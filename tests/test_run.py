"""Every field of a config reaches what it is for, and what the config leaves open comes from the given network."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from configs import base, resnet50
from fixres_jax import models
from fixres_jax.core.errors import UsageError
from fixres_jax.data import decoding, folders
from fixres_jax.runs import networks, phases, settings, subjects
from fixres_jax.runs.run import open_run
from fixres_jax.studies import STUDIES, sizes
from fixres_jax.training import optimization
from fixres_jax.weights import checkpoint


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
    model = models.create('resnet18', 4, width=8)
    variables = jax.device_get(model.init(jax.random.key(0)))
    about = {'architecture': 'resnet18', 'width': 8, 'train_resolution': 40, 'resize': 'height', 'resize_ratio': 1.0}
    about |= {'interpolation': 'bicubic', 'crop': 'tensorflow', 'mean': [0.5] * 3, 'std': [0.25] * 3}
    checkpoint.save_model(epath.Path(tmp_path) / 'given', variables, about)
    return str(tmp_path / 'given')


def make(config, tmp_path):
    return open_run(settings.read(config), epath.Path(tmp_path) / 'workdir')


def test_the_training_transform_is_the_configs(config, tmp_path):
    config.train.update(crop='tensorflow', interpolation='bicubic', flip=False, jitter=0.0)
    made = make(config, tmp_path)
    transform = phases.train_transforms(made)[0.0]
    assert (transform.crop.crop, transform.flip, transform.jitter) == ('tensorflow', False, 0.0)
    record = made.images.train[0]
    image = decoding.EncodedImage(record['encoded'], record['name'], 0)
    config.train.interpolation = 'bilinear'
    other = phases.train_transforms(make(config, tmp_path))[0.0]
    a, b = (t(image, np.random.default_rng(0)) for t in (transform, other))
    assert a.shape == b.shape == (32, 32, 3) and (a != b).any()


def test_the_test_transform_is_the_configs(config, tmp_path):
    config.test.update(resize='height', interpolation='bicubic', resize_ratio=1.0, crop=False)
    made = make(config, tmp_path)
    assert made.resizing == {'resize_ratio': 1.0, 'resize': 'height', 'interpolation': 'bicubic'}
    assert made.test_transforms((32,))[32].resize == 'long'


@pytest.mark.parametrize('crop', ['torchvision', 'tensorflow', 'resize'])
def test_the_study_of_regions_looks_at_the_crops_of_the_run(config, tmp_path, crop):
    config.train.update(crop=crop, scale=(0.2, 0.9))
    config.test.update(resize='height', resize_ratio=1.25)
    made = make(config, tmp_path)
    subject = subjects.subject(made, None)
    train_crop, test_crop = subject.train_crop, subject.test_crop
    assert (train_crop.crop, train_crop.scale) == (crop, (0.2, 0.9))
    assert test_crop == sizes.TestCrop(1.25, 'height')
    numbers, _ = STUDIES['regions'].compute(subject)
    assert numbers['crop'] == crop and 0 < numbers['apparent_size']['mean'] < 3
    config.test.crop = False
    assert subjects.subject(make(config, tmp_path), None).test_crop == sizes.TestCrop(1.0, 'long')


def test_parts_of_the_data_are_the_configs(config, tmp_path, tiny_folder):
    whole = make(config, tmp_path)
    names = [whole.images.train.name(index) for index in range(3)]
    (tmp_path / 'list').write_text('\n'.join(names))
    classes = sorted(whole.images.test.class_names)[:2]
    config.data.held_out_list = str(tmp_path / 'list')
    assert [make(config, tmp_path).images.held_out.name(index) for index in range(3)] == names
    config.data.update(held_out_list='', held_out_fraction=0.25, few_shot=2.0, classes=tuple(classes))
    made = make(config, tmp_path)
    assert list(made.images.train.class_names) == list(made.images.test.class_names) == classes
    assert np.bincount([made.images.train[i]['label'] for i in range(len(made.images.train))]).tolist() == [2, 2]
    assert made.start.about['trained_on'][0]['selection']['classes'] == classes
    config.data.update(classes=(), few_shot=0.0, few_shot_list=str(tmp_path / 'list'), held_out_fraction=0.0)
    config.test.resolution = 32
    made = make(config, tmp_path)
    assert [made.images.train.name(index) for index in range(len(made.images.train))] == names


@pytest.mark.parametrize('task', ['evaluate', 'extract', 'recipe'])
def test_a_given_network_says_all_that_the_config_leaves_open(config, given, tmp_path, task):
    config.model.name, config.model.width = '', 0
    config.update(task=task, init_from=given)
    config.train.epochs = 0.0
    made = make(config, tmp_path)
    about = json.loads((epath.Path(given) / 'fixres.json').read_text())
    for name in ('architecture', 'width', 'train_resolution', 'mean', 'std', 'crop', 'resize', 'resize_ratio'):
        assert made.start.about[name] == about[name], name
    assert made.resizing == {name: about[name] for name in ('resize_ratio', 'resize', 'interpolation')}
    assert made.start.model.module.width == 8 and made.start.model.module.mean == (0.5,) * 3


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
    assert networks.identify(settings.read(config), {}) == ('resnet50', 64)
    assert config.model.name == ''  # the caller's is as it was


def test_a_phase_says_its_length_in_samples_and_in_the_papers_epochs():
    paper = settings.read(resnet50.get_config()).train
    assert paper.repeats == 3
    text = optimization.describe(paper, 1_281_167)
    assert text.startswith('600,547 steps of 512 see 307,480,064 samples of 1,281,167 images, 3 copies')
    assert '120.0 epochs as the paper counts' in text
    assert 'epochs' not in optimization.describe(dataclasses.replace(paper, repeats=1), 1_281_167)


WIDER = 'layer4/1/(conv|bn)2/.*|fc/.*'


@pytest.mark.parametrize(
    ('task', 'adaptation', 'solver', 'trainable', 'message'),
    [
        ('adapt', 'one_pass', 'sgd', WIDER, 'finetune.trainable=.*layer4/1/bn2/bias.*3 in all.*or task=finetune'),
        ('recipe', 'one_pass', 'sgd', '.*', "finetune.trainable='fc/\\.\\*', or adaptation=finetune"),
        ('recipe', 'one_pass', 'auto', WIDER, 'adapt.solver=sgd'),  # no held-out images: auto is sgd
        ('adapt', 'one_pass', 'sgd', 'fc/bias', 'differ by fc/kernel'),
        ('adapt', 'one_pass', 'sgd', 'fc/(kernel|bias)', None),
        ('adapt', 'one_pass', 'lbfgs', WIDER, None),
        ('recipe', 'finetune', 'sgd', WIDER, None),
        ('finetune', 'one_pass', 'sgd', WIDER, None),
        ('evaluate', 'one_pass', 'sgd', WIDER, None),
    ],
)
def test_sgd_on_embeddings_trains_the_classifier_or_is_refused(
    config, given, tmp_path, monkeypatch, caplog, task, adaptation, solver, trainable, message
):
    config.update(task=task, adaptation=adaptation, init_from=given)
    config.adapt.solver, config.finetune.trainable, config.test.resolution = solver, trainable, 48
    if solver == 'auto':
        config.data.held_out_fraction = 0.0
    if not message:
        assert make(config, tmp_path).finetuning.trainable == trainable
        return
    monkeypatch.delattr(folders.ImageFolder, '__getitem__')  # no image is read before the refusal
    with pytest.raises(UsageError, match=message), jax.log_compiles():
        make(config, tmp_path)
    assert 'ompil' not in caplog.text


@pytest.mark.parametrize(('solver', 'refused'), [('sgd', True), ('auto', True), ('lbfgs', False)])
def test_sgd_on_embeddings_takes_no_augmentation_that_it_would_not_draw(config, given, tmp_path, solver, refused):
    config.update(task='adapt', init_from=given)
    config.adapt.solver, config.finetune.augmentation, config.test.resolution = solver, 'v2', 48
    if solver == 'auto':
        config.data.held_out_fraction = 0.0
    if refused:
        with pytest.raises(UsageError, match="finetune.augmentation='v2' .*adapt.copies.*or task=finetune"):
            make(config, tmp_path)
        config.finetune.augmentation = 'test'
    make(config, tmp_path)
