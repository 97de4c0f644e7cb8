"""Recalibration: afterwards each BatchNorm layer holds the mean and the variance of what it sees in evaluation."""

import re

import jax
import numpy as np
import pytest

from fixres_jax import models, recalibrate
from fixres_jax.adaptation import recalibration, statistics
from fixres_jax.core import trees
from fixres_jax.data import pipeline, sources, transforms
from fixres_jax.library import Classifier, load
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.models import EVAL
from fixres_jax.weights import network, torch_weights
from fixres_jax.weights.network import Network

RESOLUTION = 32
TEST = transforms.make_test(RESOLUTION)


@pytest.fixture(scope='module')
def runtime():
    return Runtime(sharding.make_mesh(jax.devices()[:2]))


@pytest.fixture(scope='module')
def trained(runtime):
    """A network whose statistics are those of no images."""
    model = models.create('resnet18', 4, width=4)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(lambda x: x + np.float32(rng.uniform(0.1, 1, x.shape)), variables['batch_stats'])
    about = {'architecture': 'resnet18', 'width': 4, 'resize_ratio': 256 / 224, 'resize': 'short'}
    about |= {'train_resolution': 32, 'num_classes': 4}
    about |= {'interpolation': 'bilinear', 'class_names': ('ant', 'bee', 'cat', 'dog'), 'trained_on': [None]}
    return Network(model, variables | {'batch_stats': noisy}, about).placed(runtime)


def inputs_of(net, images):
    """Return layer -> (mean, variance) of what each BatchNorm layer is given in evaluation."""
    found = {}

    def spy(call, args, kwargs, context):
        if type(context.module).__name__ == 'BatchNorm':
            x = np.asarray(args[0], np.float64)
            axes = tuple(range(x.ndim - 1))
            found['/'.join(context.module.path)] = x.mean(axes), x.var(axes)
        return call(*args, **kwargs)

    with models.layers.nn.intercept_methods(spy):
        net.apply(images, EVAL)
    return found


@pytest.mark.parametrize(
    ('regex', 'count'), [('(bn1|layer4/1/bn.)', 3), pytest.param('.*', 20, marks=pytest.mark.slow)]
)
def test_each_layer_holds_the_moments_of_its_real_inputs_over_all_images(trained, runtime, tiny_folder, regex, count):
    source = sources.create(tiny_folder, 'train')
    feed = Feed(runtime, 20, 'recalibrate')  # 48 images in batches of 16
    result = recalibration.recalibrate(trained, source, TEST, feed, batch_norm=regex)
    images = np.concatenate([b['image'][0] for b in pipeline.eval_batches(source, {0: TEST}, batch_size=16)])
    stored = trees.flatten(jax.device_get(result.variables['batch_stats']))
    found = {layer: moments for layer, moments in inputs_of(result, images).items() if re.fullmatch(regex, layer)}
    assert len(found) == count
    for layer, (mean, var) in found.items():
        np.testing.assert_allclose(stored[f'{layer}/mean'], mean, rtol=2e-4, atol=2e-5, err_msg=layer)
        np.testing.assert_allclose(stored[f'{layer}/var'], var, rtol=2e-4, atol=2e-5, err_msg=layer)
    old = trees.flatten(jax.device_get(trained.variables['batch_stats']))
    changed = {name for name in old if not np.allclose(old[name], stored[name], rtol=0.05)}
    assert changed == {f'{layer}/{name}' for layer in found for name in ('mean', 'var')}


def test_one_pass_is_exact_for_the_first_layer_and_near_for_the_others(trained, runtime, tiny_folder):
    source = sources.create(tiny_folder, 'train')
    feed = Feed(runtime, 16, 'recalibrate')
    exact, at_once = (
        trees.flatten(jax.device_get(recalibration.recalibrate(trained, source, TEST, feed, **how).variables))
        for how in ({'batch_norm': '(bn1|layer1/0/bn.)'}, {'batch_norm': '(bn1|layer1/0/bn.)', 'at_once': True})
    )
    for name in ('batch_stats/bn1/mean', 'batch_stats/bn1/var'):
        np.testing.assert_allclose(at_once[name], exact[name], rtol=1e-5)
    name = 'batch_stats/layer1/0/bn2/var'
    assert not np.array_equal(at_once[name], exact[name])
    np.testing.assert_allclose(at_once[name], exact[name], rtol=0.2)
    untouched = 'batch_stats/layer4/1/bn2/var'
    np.testing.assert_array_equal(exact[untouched], trees.flatten(trained.variables)[untouched])


@pytest.mark.parametrize('at_once', [True, False])
def test_one_pass_takes_the_images_of_a_folder_in_random_order(trained, runtime, tiny_folder, monkeypatch, at_once):
    measure, given = statistics.measure, []

    def watched(network, source, *args, **options):
        given.extend(source.name(number) for number in range(len(source)))
        return measure(network, source, *args, **options)

    monkeypatch.setattr(recalibration.statistics, 'measure', watched)
    source = sources.create(tiny_folder, 'train')
    names = [source.name(number) for number in range(len(source))]
    recalibration.recalibrate(trained, source, TEST, Feed(runtime, 16, ''), batch_norm='bn1', at_once=at_once)
    assert (given != names) == at_once and sorted(given) == sorted(names)


def test_statistics_of_training_images_are_of_their_augmentation(trained, runtime, tiny_folder):
    source = sources.create(tiny_folder, 'train')
    train = transforms.make_train(RESOLUTION)
    feed, how = Feed(runtime, 16, 'ema'), {'batch_norm': 'bn1', 'at_once': True}
    first, again, other = (
        trees.flatten(recalibration.recalibrate(trained, source, train, feed, seed=seed, **how).variables)
        for seed in (0, 0, 1)
    )
    name = 'batch_stats/bn1/mean'
    np.testing.assert_array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


def test_the_command_writes_a_network_that_goes_back_to_torch(trained, tmp_path, tiny_folder, capsys):
    network.save(tmp_path / 'given', trained)
    options = ['--images', str(tiny_folder), '--split', 'train', '--resolution', '32', '--layers', 'layer4/1/bn2']
    assert recalibrate.main([str(tmp_path / 'given'), *options, '--out', str(tmp_path / 'out')]) == 0
    assert 'statistics of 1 BatchNorm layers at 32' in capsys.readouterr().out
    result = network.load(tmp_path / 'out')
    old = torch_weights.to_torch(jax.device_get(trained.variables), trained.model)
    new = torch_weights.to_torch(result.variables, result.model)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {'layer4.1.bn2.running_mean', 'layer4.1.bn2.running_var'}
    assert result.about['trained_on'][-1]['trained']['count'] == 48
    options += ['--prior-images', '48', '--out', str(tmp_path / 'blended')]
    assert recalibrate.main([str(tmp_path / 'given'), *options]) == 0
    blended, name = network.load(tmp_path / 'blended'), 'batch_stats/layer4/1/bn2/var'
    halves = (np.asarray(trees.flatten(net.variables)[name]) for net in (trained, result))
    np.testing.assert_allclose(trees.flatten(blended.variables)[name], sum(halves) / 2, rtol=1e-5)


def test_it_takes_and_writes_torch_files_and_oblong_sizes(trained, tmp_path, tiny_folder, capsys):
    given, out = tmp_path / 'given.safetensors', tmp_path / 'out.safetensors'
    Classifier(trained.model, trained.variables, trained.about).save(given)
    command = [f'resnet18={given}', '--images', str(tiny_folder), '--split', 'train', '--layers', 'bn1']
    assert recalibrate.main([*command, '--resolution', '32x48', '--out', str(out)]) == 0
    assert 'statistics of 1 BatchNorm layers at 32x48' in capsys.readouterr().out
    old, new = (trees.flatten(load(path).variables) for path in (given, out))
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == {'batch_stats/bn1/mean', 'batch_stats/bn1/var'}
    assert recalibrate.main([*command, '--resolution', '32', '--out', str(out)]) == 2
    assert 'is there already' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--resolution', '16'], 'resolution=16: resnet18 takes 32 or more'),
        (['--resolution', '32', '--layers', 'layer9/.*'], 'matches none of the 20 BatchNorm layers'),
        (['--resolution', '32', '--batch-size', '0'], '--batch-size=0: expected 1 or more'),
        (['--resolution', '32', '--prior-images', '-1'], '--prior-images=-1: expected 0 or more'),
    ],
)
def test_wrong_input_is_one_line(trained, tmp_path, tiny_folder, capsys, options, message):
    network.save(tmp_path / 'given', trained)
    images = ['--images', str(tiny_folder), '--split', 'train', '--out', str(tmp_path / 'out')]
    assert recalibrate.main([str(tmp_path / 'given'), *images, *options]) == 2
    assert message in capsys.readouterr().err
