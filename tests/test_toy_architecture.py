"""An architecture is one record: another network goes through the whole program, and nothing else is told of it."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import base
from fixres_jax import convert, models
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.machines import targets
from fixres_jax.models import EVAL
from fixres_jax.runs import dry_run, recipe, settings
from fixres_jax.studies import advice, sizes
from fixres_jax.weights import network
from toy import EPSILON, TOY

pytestmark = pytest.mark.usefixtures('toy')


@pytest.fixture(scope='module')
def state_dict():
    """What torch would save of such a network of five channels at its stem, with four classes."""
    rng = np.random.default_rng(0)
    shapes = {'begin.weight': (5, 3, 3, 3), 'middle.weight': (10, 5, 3, 3), 'head.weight': (4, 10), 'head.bias': (4,)}
    shapes |= {f'norm.{name}': (10,) for name in ('weight', 'bias', 'running_mean')}
    found = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    found['norm.running_var'] = rng.uniform(0.01, 0.1, 10).astype(np.float32)  # as small as epsilon, which then shows
    return found | {'norm.num_batches_tracked': np.zeros((), np.int64)}


@pytest.fixture
def converted(state_dict, tmp_path):
    save_file(state_dict, tmp_path / 'toy.safetensors')
    assert convert.main(['toy', str(tmp_path / 'toy.safetensors'), str(tmp_path / 'converted')]) == 0
    return tmp_path / 'converted'


@pytest.fixture
def config(tiny_folder):
    c = base.get_config()
    c.validate_every_epochs = 0.0  # a program less to compile
    c.data.source = str(tiny_folder)
    c.data.held_out_fraction = 0.25
    c.train.resolution = 20
    c.train.epochs = c.finetune.epochs = 2.0
    c.train.batch_size = c.test.batch_size = c.finetune.batch_size = c.model.bn_group_size = 16
    c.train.lr_rule = 'none'
    c.log_every_steps = 1
    return c


def logits_by_hand(state_dict, images):
    """Compute the toy in evaluation from torch's arrays."""

    def conv(x, name):
        weight = state_dict[f'{name}.weight']
        return jax.lax.conv_general_dilated(
            x, weight, (2, 2), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'OIHW', 'NHWC')
        )

    x = np.float32((images / 255 - np.array(TOY.mean)) / np.array(TOY.std))
    x = conv(np.maximum(conv(x, 'begin'), 0), 'middle')
    mean, var, scale, bias = (state_dict[f'norm.{n}'] for n in ('running_mean', 'running_var', 'weight', 'bias'))
    x = np.maximum((np.asarray(x) - mean) / np.sqrt(var + np.float32(EPSILON)) * scale + bias, 0).mean((1, 2))
    return x @ state_dict['head.weight'].T + state_dict['head.bias']


def test_weights_come_in_from_torch_and_go_back_bit_by_bit(state_dict, converted, tmp_path):
    loaded = network.load(converted)
    about = {'architecture': 'toy', 'width': 5, 'num_classes': 4, 'mean': list(TOY.mean), 'std': list(TOY.std)}
    about |= {'train_resolution': 28, 'interpolation': 'bicubic', 'resize_ratio': 1.0}
    assert loaded.about.items() >= about.items()
    images = np.random.default_rng(1).integers(0, 256, (3, 18, 18, 3), np.uint8)
    logits, _ = loaded.model.apply(loaded.variables, images, EVAL)
    np.testing.assert_allclose(logits, logits_by_hand(state_dict, images), rtol=1e-4, atol=1e-4)
    assert convert.main(['--to-torch', str(converted), str(tmp_path / 'back.safetensors')]) == 0
    back = load_file(tmp_path / 'back.safetensors')
    assert back.keys() == state_dict.keys()
    assert all(back[name].tobytes() == state_dict[name].tobytes() for name in back)


def test_a_file_of_another_architecture_is_told_which_fits(state_dict, tmp_path, capsys):
    save_file(state_dict, tmp_path / 'toy.safetensors')
    arguments = ['resnet18', str(tmp_path / 'toy.safetensors'), str(tmp_path / 'out'), '--num-classes', '4']
    assert convert.main(arguments) == 2 and 'They fit toy.' in capsys.readouterr().err


def test_the_recipe_trains_adapts_and_reports(config, tmp_path):
    config.model.name = 'toy'
    recipe.run(config, tmp_path / 'run')
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert list(report['numbers']) == ['train_resolution', 'larger', 'adapted', 'adapted_at_train_resolution']
    assert [row['resolution'] for row in report['curve']] == [16, 20, 32]  # a ResNet's would begin at 32
    trained, adapted = (network.load(tmp_path / 'run' / phase) for phase in ('train', 'adapt'))
    assert trained.about['width'] == TOY.width and trained.about['mean'] == list(TOY.mean)
    before, after = (trees.flatten(found.variables) for found in (trained, adapted))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed in (
        set(),
        {'batch_stats/norm/mean', 'batch_stats/norm/var', 'params/head/kernel', 'params/head/bias'},
    )
    for name in ('ablation', 'activations', 'regions'):
        assert (tmp_path / 'run' / 'studies' / f'{name}.json').exists()


@pytest.mark.parametrize('solver', ['lbfgs', 'sgd'])
def test_given_weights_are_adapted(config, converted, tmp_path, solver):
    config.update(task='adapt', init_from=str(converted))
    config.adapt.update(solver=solver, weight_decays=(1e-3,))
    config.test.resolution = 16
    recipe.run(config, tmp_path / 'run')
    before, after = (trees.flatten(network.load(folder).variables) for folder in (converted, tmp_path / 'run'))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {'batch_stats/norm/mean', 'batch_stats/norm/var', 'params/head/kernel', 'params/head/bias'}
    assert json.loads((tmp_path / 'run' / 'adapt.json').read_text())['batch_norm'] == ['norm']


def test_given_weights_are_fine_tuned_through_the_network(config, converted, tmp_path):
    config.update(task='finetune', init_from=str(converted))
    config.test.resolution = 16
    recipe.run(config, tmp_path / 'run')
    before, after = (trees.flatten(network.load(folder).variables) for folder in (converted, tmp_path / 'run'))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {'batch_stats/norm/mean', 'batch_stats/norm/var', 'params/head/kernel', 'params/head/bias'}


def test_given_weights_are_extracted(config, converted, tmp_path):
    config.update(task='extract', init_from=str(converted))
    recipe.run(config, tmp_path / 'run')
    assert json.loads((tmp_path / 'run' / 'extract.json').read_text())['resolution'] == 28
    softmax, embedding = (np.load(tmp_path / 'run' / 'extracted' / f'{name}.npy') for name in ('softmax', 'embedding'))
    assert softmax.shape == (24, 4) and embedding.shape == (24, 10)
    np.testing.assert_allclose(softmax.sum(1), 1, rtol=1e-5)


def test_a_resolution_that_it_cannot_take_is_refused(config, tmp_path):
    config.model.name = 'toy'
    config.train.resolution = 11
    with pytest.raises(UsageError, match='train.resolution=11 is too small for toy: expected 12 or more'):
        recipe.run(config, tmp_path / 'run')


def test_the_dry_run_compiles_all_steps(config):
    config.model.name = 'toy'
    config.train.resolution = 28
    target = targets.Target(jax.devices())
    machine = dry_run.DryRun(settings.read(config), target, train_images=48, test_images=24)
    assert machine.model_name == 'toy' and machine.test_resolution == 36  # 288 / 224 of 28, a multiple of 4
    for step in dry_run.STEPS:
        value = dry_run.report(step, machine.compile(step), target)
        assert value['flops'] > 0 and step in dry_run.describe(value, target)


def test_advice_counts_its_work_and_keeps_to_its_sizes():
    model = models.create('toy')
    found = advice.advise(20, sizes.TrainCrop(), sizes.TestCrop(), model=model, wanted_test_resolution=12)
    assert found.sweep == (20, 24, 28, 32) and found.train_resolution_for == {12: 12}
    assert {row['resolution'] for row in found.costs} >= {12, 20, 24, 28, 32}
    with pytest.raises(UsageError, match='the network takes 12 or more'):
        advice.advise(11, sizes.TrainCrop(), sizes.TestCrop(), model=model)


def test_without_the_record_the_name_is_unknown(config, monkeypatch):
    config.model.name = 'toy'
    settings.read(config)
    monkeypatch.delitem(models.ARCHITECTURES, 'toy')
    with pytest.raises(UsageError, match="model.name='toy': expected one of '', resnet18"):
        settings.read(config)
