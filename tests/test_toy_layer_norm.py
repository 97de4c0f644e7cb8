"""A network without BatchNorm goes through the whole program: its classifier adapts to what its LayerNorm gives out."""

import json
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from fixres_jax import convert, models
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.models import Architecture, layers
from fixres_jax.runs import recipe
from fixres_jax.weights import network, state_dicts, torch_weights


class Toy(nn.Module):
    """Patches, a position embedding that has one name on both sides, a LayerNorm after the pool."""

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Any = jnp.float32
    bn_group_size: int | None = None
    remat: str = ''

    @nn.compact
    def __call__(self, images, mode):
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = layers.Conv(12, 8, 8, padding=layers.valid, bias=True, name='patches')(x)
        shift = self.param('shift', nn.initializers.normal(0.1), (1, 1, 12), jnp.float32)
        x = nn.gelu(x + shift[None].astype(x.dtype), approximate=False)
        pooled = x.astype(jnp.float32).mean((1, 2))
        embedding = layers.LayerNorm(1e-6, name='norm')(pooled)
        return layers.Classifier(self.num_classes, name='head')(embedding), {'features': x, 'embedding': embedding}


TOY = Architecture(
    Toy, 'head', 'patches', '', width=0, min_resolution=8, stride=8, multiple=8, head_norm='norm',
    convolution_head=True, train_resolution=24,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _the_record_alone(monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, 'toy_norm', TOY)


@pytest.fixture
def converted(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {'shift': (1, 1, 12), 'patches.weight': (12, 3, 8, 8), 'patches.bias': (12,), 'norm.weight': (12,)}
    shapes |= {'norm.bias': (12,), 'head.weight': (4, 12, 1, 1), 'head.bias': (4,)}
    state_dict = {name: rng.normal(0.3, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    state_dicts.save(tmp_path / 'toy.safetensors', state_dict, {})
    assert convert.main(['toy_norm', str(tmp_path / 'toy.safetensors'), str(tmp_path / 'converted')]) == 0
    loaded = network.load(tmp_path / 'converted')
    back = torch_weights.to_torch(loaded.variables, loaded.model)
    assert list(back) == list(state_dict)  # what a layer itself has stands before what the layers inside it have
    assert all(np.array_equal(back[name], state_dict[name]) for name in back)
    return tmp_path / 'converted'


@pytest.fixture
def config(tiny_folder, converted):
    c = base.get_config()
    c.init_from = str(converted)
    c.data.source = str(tiny_folder)
    c.train.epochs, c.finetune.epochs = 0.0, 2.0
    c.finetune.batch_size = c.test.batch_size = c.model.bn_group_size = 16
    c.test.resolution = 32
    c.test.resolutions = (24, 32)
    return c


def changed(before, after):
    """Return the names of the leaves in which two networks differ."""
    before, after = (trees.flatten(network.load(folder).variables) for folder in (before, after))
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.parametrize('solver', ['lbfgs', 'sgd'])
def test_the_classifier_is_fitted_to_what_the_layer_norm_gives_out(config, converted, tmp_path, solver):
    config.update(task='adapt')
    config.adapt.update(solver=solver, weight_decays=(1e-3,))
    recipe.run(config, tmp_path / 'run')
    assert changed(converted, tmp_path / 'run') == {'params/head/kernel', 'params/head/bias'}
    assert json.loads((tmp_path / 'run' / 'adapt.json').read_text())['batch_norm'] == []


def test_fine_tuning_trains_the_layer_norm_too(config, converted, tmp_path):
    config.update(task='finetune')
    recipe.run(config, tmp_path / 'run')
    names = {'params/head/kernel', 'params/head/bias', 'params/norm/scale', 'params/norm/bias'}
    assert changed(converted, tmp_path / 'run') == names


def test_the_recipe_reports(config, tmp_path):
    recipe.run(config, tmp_path / 'run')
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert list(report['numbers']) == ['train_resolution', 'larger', 'adapted', 'adapted_at_train_resolution']


def test_a_scale_and_bias_before_a_classifier_add_nothing_to_it():
    rng = np.random.default_rng(1)
    z, scale, bias = rng.normal(size=(20, 6)), rng.normal(size=(1, 6)), rng.normal(size=(1, 6))
    kernel, offset = rng.normal(size=(6, 3)), rng.normal(size=(1, 3))
    wanted = z @ kernel + offset  # any linear classifier of the LayerNorm's values before its scale and bias
    found = (z * scale + bias) @ (kernel / scale.T) + offset - bias @ (kernel / scale.T)
    np.testing.assert_allclose(found, wanted)


def test_sizes_that_it_cannot_take_are_refused(config, tmp_path):
    config.test.resolution = 33
    with pytest.raises(UsageError, match='test.resolution=33: toy_norm takes multiples of 8, such as 32'):
        recipe.run(config, tmp_path / 'run')
    config.test.resolution = 32
    config.model.width = 16
    with pytest.raises(UsageError, match='model.width=16: a toy_norm has no such option'):
        recipe.run(config, tmp_path / 'run')
