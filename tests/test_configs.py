"""Every config loads, names models and regexes that exist, and every field of base is read somewhere."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import base, finetune, resnet50, resnet50_ffcv, transfer
from fixres_jax import models
from fixres_jax.runs import settings
from fixres_jax.runs.run import default_resolutions
from fixres_jax.training.optimization import make_optimizer
from goldens import make_configs

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = [
    ('quickstart', None),
    ('robustness', None),
    ('imagenette', 'small'),
    ('imagenette', 'plain'),
    ('imagenette', 'resnet50'),
    *(('resnet50', variant) for variant in resnet50.RESOLUTIONS),
    *(('resnet50_ffcv', variant) for variant in resnet50_ffcv.LARGER_FROM),
    *((name, None) for name in make_configs.RECIPES),
    *(('transfer', name) for name in transfer.DATASETS),
    *(('transfer', f'grocery,{model}') for model in ('tf_efficientnet_lite0', 'senet154', 'resnet50_cutmix')),
    *(('finetune', f'{variant}{how}') for variant in finetune.TABLE for how in ('', ',paper')),
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
    settings.read(config)
    assert config.finetune.batch_size % config.model.bn_group_size == 0
    resolutions = config.test.resolutions or default_resolutions(config.train.resolution, None, 32)
    assert list(resolutions) == sorted(resolutions) and max(resolutions) > config.train.resolution


@pytest.mark.slow
@pytest.mark.parametrize('name', make_configs.RECIPES)
def test_the_training_step_of_a_recipe_fits_a_tpu(name, tmp_path):
    pytest.importorskip('libtpu')
    command = ['-m', 'fixres_jax.dryrun', '--config', f'configs/{name}.py', '--topology', 'v5e:4x4', '--steps', 'train']
    environment = os.environ | {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
    subprocess.run([sys.executable, *command, '--json', tmp_path / 'out.json'], cwd=ROOT, env=environment, check=True)
    (step,) = json.loads((tmp_path / 'out.json').read_text())['steps']
    assert step['fits'] and step['batch_size'] >= 256 and step['parameters'] > 1e7


def test_every_field_of_base_is_read_and_explained():
    checks = ('sections.py', 'settings.py')
    files = [path for path in (ROOT / 'fixres_jax').rglob('*.py') if path.name not in checks]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    listed = [one for node in nodes if isinstance(node, ast.Tuple) for one in node.elts]  # for getattr
    read |= {one.value for one in listed if isinstance(one, ast.Constant)}
    for name in fields(base.get_config()):
        assert name.split('.')[-1] in read, f'{name} is read nowhere'


def ffcv_resolution(epoch, ramp):
    """Return the size of an epoch as FFCV's trainer has it: a ramp from 160 to 192, rounded to multiples of 32."""
    size = np.interp(epoch, ramp, (160, 192))
    return int(np.round(size / 32)) * 32


@pytest.mark.parametrize(
    'epochs, ramp', [(16, (11, 13)), (24, (17, 20)), (32, (23, 27)), (40, (29, 34)), (56, (41, 48)), (88, (65, 76))]
)
def test_ffcv_trains_every_epoch_at_ffcvs_size_and_rate(epochs, ramp):
    train = settings.read(resnet50_ffcv.get_config(str(epochs))).train
    num_steps, _, schedule = make_optimizer(train, 312 * 4096)  # as many steps an epoch as FFCV's
    assert num_steps == 312 * epochs
    starts = {round(share * num_steps): size for share, size in train.sizes.items()}
    for epoch in range(epochs):
        found = next(size for start, size in sorted(starts.items(), reverse=True) if start <= 312 * epoch)
        assert found == ffcv_resolution(epoch, ramp), epoch
        for step in (312 * epoch, 312 * epoch + 100):
            expected = np.interp(step / 312, (0, 2, epochs), (1.7e-4, 1.7, 0))
            assert float(schedule(step)) == pytest.approx(expected, rel=1e-4)


def test_finetune_covers_every_model():
    assert {row.get('name', variant) for variant, row in finetune.TABLE.items()} == set(models.ARCHITECTURES)


@pytest.mark.parametrize('name', transfer.DATASETS)
def test_transfer_trains_a_whole_imagenet_network_with_a_fresh_classifier(name):
    s = settings.read(transfer.get_config(f'{name},inception_resnet_v2'))
    assert s.reset_head and s.train.trainable == s.train.batch_norm == '.*' and s.train.epochs == 50
    assert s.train.resolution == 299 and s.control and s.adaptation == 'one_pass' and s.data.held_out_fraction > 0
    assert bool(s.published.source) == (name != 'folder')
    if s.published.adapted:
        _, _, _, _, images, (network, baseline, adapted) = transfer.DATASETS[name]
        assert (s.published.network, s.published.baseline, s.published.adapted) == (network, baseline, adapted)
        assert f'{images[1]:,} test images' in s.published.conditions and 'table 3' in s.published.source


@pytest.mark.parametrize('variant', ['', 'dogs', 'cars,resnet51', ',resnet50'])
def test_an_unknown_transfer_is_told_the_known_ones(variant):
    with pytest.raises(ValueError, match='has no variant .*cars, cub, flowers, pets, birdsnap, grocery, folder'):
        transfer.get_config(variant)


def test_transfer_takes_the_data_sets_of_tensorflow_datasets_that_there_are():
    tfds = pytest.importorskip('tensorflow_datasets')
    known = tfds.list_builders(with_community_datasets=False)
    for name, (source, *_) in transfer.DATASETS.items():
        assert not source or source.removeprefix('tfds:') in known, name


def test_default_resolutions_hold_the_training_size_and_reach_twice_it():
    assert default_resolutions(128, None, 32) == (96, 128, 144, 160, 176, 192, 224, 256)
    assert 100 in default_resolutions(100, None, 32)


def test_configs_are_as_they_were_reviewed():
    renew = 'Renew the dumps with `python tests/goldens/make_configs.py` and review their difference.'
    dumps = make_configs.texts()
    assert dumps.keys() == {path.stem for path in make_configs.FOLDER.glob('*.txt')}, renew
    for path in (ROOT / 'configs').glob('[!_]*.py'):
        assert any(name.startswith(path.stem) for name in dumps), f'{path.stem} is not in make_configs.named_configs'
    for name, text in dumps.items():
        assert text == (make_configs.FOLDER / f'{name}.txt').read_text(), f'{name} is another: {renew}'
