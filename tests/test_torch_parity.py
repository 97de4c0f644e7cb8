"""The same weights give the same numbers as in torch: forward, training, fine-tuning. Goldens need no torch."""

from functools import cache
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.machines import sharding
from fixres_jax.models import EVAL, TRAIN, Mode
from fixres_jax.training import state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.step import make_train_step
from fixres_jax.weights import state_dicts, torch_weights
from goldens import weights
from goldens.families import TORCHVISION

GOLDEN = np.load(Path(__file__).parent / 'goldens' / 'torch.npz')
# Their blocks are those of smaller ones.
LARGE = ('resnext101_32x8d', 'resnext101_32x16d', 'resnext101_64x4d', 'wide_resnet101_2')
FORWARD = [name for name in models.ARCHITECTURES if f'{name}/forward' in GOLDEN]


def variables_of(model, weight=weights.weight):
    """Return a model's variables with the weights that torch had."""
    shapes = torch_weights.torch_shapes(model)
    return torch_weights.from_torch({key: weight(key, leaf.shape) for key, leaf in shapes.items()}, model)


@pytest.mark.parametrize('name', TORCHVISION)
def test_every_name_and_shape_is_torchvisions(name):
    shapes = {key: leaf.shape for key, leaf in torch_weights.torch_shapes(models.create(name)).items()}
    # Every BatchNorm of torch has a counter too.
    shapes |= {key.replace('running_var', torch_weights.COUNTER): () for key in shapes if key.endswith('running_var')}
    assert weights.signature(shapes) == GOLDEN[f'{name}/signature']


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in FORWARD]
)
def test_logits_and_embeddings_are_torchvisions(name):
    model = models.create(name, weights.CLASSES)
    variables = variables_of(model)
    rows = []
    for resolution, number in weights.BATCHES.items():
        # Not jitted: the networks share their blocks, and so most of the compilation.
        logits, endpoints = model.apply(variables, weights.images(number, resolution), EVAL)
        rows.append(np.concatenate([logits, endpoints['embedding'][:, :: weights.EMBEDDING_STRIDE]], axis=1))
    found, expected = np.concatenate(rows), GOLDEN[f'{name}/forward']
    for part in (np.s_[:, : weights.CLASSES], np.s_[:, weights.CLASSES :]):
        assert np.abs(found[part] - expected[part]).max() <= 1e-4 * np.abs(expected[part]).max()


@cache
def steps(name, weight, *, trainable, mode, **golden):
    """Take the golden's steps and return the first variables and the last."""
    model = models.create(name, weights.CLASSES, bn_group_size=golden['batch'])
    mesh = sharding.make_mesh(jax.devices()[:1])
    lr = optax.constant_schedule(golden['lr'])
    tx = make_sgd(lr, momentum=golden['momentum'], weight_decay=golden['weight_decay'])
    before = variables_of(model, weight)
    now = state.create(model, tx, trainable, key=jax.random.key(0), mesh=mesh, variables=before)
    step = make_train_step(model, tx, trainable, mode, mesh=mesh)
    for i in range(golden['steps']):
        images = weights.images(golden['batch'], golden['resolution'], i)
        batch = {'image': images, 'label': weights.labels(golden['batch'], i)}
        now, _ = step(now, sharding.put(batch, mesh), jax.random.key(0))
    return before, jax.device_get(now.variables)


def differences(variables, model, keys, golden):
    """Return by name how far an array is from torch's, in units of its root mean square."""
    state_dict = torch_weights.to_torch(variables, model)
    found = np.stack([weights.summary(key, state_dict[key]) for key in keys])
    return dict(zip(keys, np.abs(found - golden).max(1) / golden[:, 0], strict=True))


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name == 'resnet18' else [pytest.mark.slow]) for name in weights.TRAINED]
)
def test_training_steps_are_torchs(name):
    before, after = steps(name, weights.smooth_weight, trainable='.*', mode=TRAIN, **weights.TRAIN)
    model = models.create(name, weights.CLASSES)
    keys = sorted(key for key in torch_weights.to_torch(after, model) if not key.endswith(torch_weights.COUNTER))
    golden = GOLDEN[f'{name}/trained']
    assert max(differences(after, model, keys, golden).values()) < 1e-4
    # Every array has moved by far more than the tolerance, so that none is compared in vain.
    assert min(differences(before, model, keys, golden).values()) > 1e-3


def test_fine_tuning_is_torchs():
    name = weights.FINETUNED
    rules = models.ARCHITECTURES[name].finetune()
    rules = {'trainable': rules['trainable'], 'mode': Mode(rules['batch_norm'])}
    before, after = steps(name, weights.weight, **rules, **weights.FINETUNE)
    model = models.create(name, weights.CLASSES)
    keys, golden = weights.FINETUNED_KEYS, GOLDEN[f'{name}/finetuned']
    assert max(differences(after, model, keys, golden).values()) < 1e-4
    assert min(differences(before, model, keys, golden).values()) > 1e-2
    old, new = torch_weights.to_torch(before, model), torch_weights.to_torch(after, model)
    assert {key for key in old if not np.array_equal(old[key], new[key])} == set(keys)
    assert trees.diff(before, after).message() == ''


def test_what_is_trained_here_gives_the_same_logits_in_torch(tmp_path):
    pytest.importorskip('torchvision_cpu', exc_type=ImportError)
    pytest.importorskip('torchvision', exc_type=ImportError)
    from safetensors.torch import load_file

    from goldens import torch_models

    name = 'resnet18'
    _, variables = steps(name, weights.smooth_weight, trainable='.*', mode=TRAIN, **weights.TRAIN)
    state_dicts.save(
        tmp_path / 'trained.safetensors', torch_weights.to_torch(variables, models.create(name, weights.CLASSES)), {}
    )
    network = torch_models.create(name, weights.CLASSES)
    network.load_state_dict(load_file(tmp_path / 'trained.safetensors'), strict=True)
    images = weights.images(2, 97)
    expected, _ = torch_models.apply(network, images)
    logits, _ = models.create(name, weights.CLASSES).apply(variables, images, EVAL)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())
