"""Torch weights in and out: every format and wrapper, everything accounted for, nothing unsafe loaded."""

import argparse
import json
import os
import pickle
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import fixres_jax
from configs import finetune
from fixres_jax import convert, models
from fixres_jax.core.errors import UsageError
from fixres_jax.models import resnet
from fixres_jax.models.architecture import IMAGENET_STD
from fixres_jax.weights import checkpoint, lineages, network, releases, state_dicts, torch_weights
from goldens import weights

WIDTH = 8  # of the small resnet18 that most tests convert


def state_dict_of(name='resnet18', num_classes=weights.CLASSES, width=WIDTH):
    shapes = torch_weights.torch_shapes(models.create(name, num_classes, width=width))
    state_dict = {key: weights.weight(key, leaf.shape) for key, leaf in shapes.items()}
    counters = [key for key in shapes if key.endswith('running_var')]
    return state_dict | {key.replace('running_var', torch_weights.COUNTER): np.zeros((), np.int64) for key in counters}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, strict=True, err_msg=name)


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


@pytest.fixture
def safetensors_file(tmp_path):
    path = tmp_path / 'weights.safetensors'
    state_dicts.save(path, state_dict_of(), {})
    return path


@pytest.fixture
def few_architectures(monkeypatch):
    """Fewer to compare weights with, where they fit none."""
    few = ('tf_efficientnet_lite0', 'tf_efficientnet_lite1', 'efficientnet_lite0', 'resnet18', 'resnet34')
    monkeypatch.setattr(models, 'ARCHITECTURES', {name: models.ARCHITECTURES[name] for name in few})


@pytest.mark.parametrize('name', resnet.ROWS)
def test_round_trip_is_bit_exact(name):
    # The narrowest that has channels in its groups, and in both halves of a deep stem.
    width = max(2, -(-64 // models.create(name).module.base_width))
    model, start = models.create(name, weights.CLASSES, width=width), state_dict_of(name, width=width)
    assert_same(torch_weights.to_torch(torch_weights.from_torch(start, model), model), start)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        half = {key: array.astype(dtype) if array.ndim else array for key, array in start.items()}
        found = torch_weights.to_torch(torch_weights.from_torch(half, model), model)
        assert_same(found, {key: a.astype(np.float32) if a.ndim else a for key, a in half.items()})


def test_axes_and_names_move():
    start = state_dict_of()
    variables = torch_weights.from_torch(start, models.create('resnet18', weights.CLASSES, width=WIDTH))
    params, stats = variables['params'], variables['batch_stats']
    assert params['conv1']['kernel'][1, 2, 0, 3] == start['conv1.weight'][3, 0, 1, 2]
    assert params['fc']['kernel'][5, 1] == start['fc.weight'][1, 5]
    np.testing.assert_array_equal(params['layer2']['0']['bn1']['scale'], start['layer2.0.bn1.weight'])
    np.testing.assert_array_equal(stats['layer2']['0']['bn1']['var'], start['layer2.0.bn1.running_var'])


def test_every_difference_is_listed_with_the_nearest_name(few_architectures):
    model, start = models.create('resnet18', weights.CLASSES, width=WIDTH), state_dict_of()
    start['layer4.1.bn_2.weight'] = start.pop('layer4.1.bn2.weight')
    start['conv1.weight'] = start['conv1.weight'][:, :1]
    with pytest.raises(UsageError) as caught:
        torch_weights.from_torch(start, model)
    message = str(caught.value)
    assert 'missing: layer4.1.bn2.weight' in message
    assert 'layer4.1.bn_2.weight (is it layer4.1.bn2.weight?)' in message
    assert 'conv1.weight: expected (8, 3, 7, 7), found (8, 1, 7, 7)' in message


def test_the_architecture_that_fits_is_named():
    with pytest.raises(UsageError, match='They fit resnet34') as caught:
        torch_weights.from_torch(state_dict_of('resnet34'), models.create('resnet18', weights.CLASSES, width=WIDTH))
    extra = [
        key for key in state_dict_of('resnet34') if torch_weights.COUNTER not in key and key not in state_dict_of()
    ]
    lines = str(caught.value).splitlines()
    assert lines[0] == 'The weights do not fit the model:' and lines[-1] == 'They fit resnet34.'
    assert lines[1:-1] == [
        *(f'not expected: {key}' for key in extra[:10]),
        f'... and {len(extra) - 10} more not expected',
    ]


def test_a_list_of_differences_stays_short_and_says_that_nothing_fits():
    other = {f'blocks.{index}.attention.weight': np.zeros((8, 8)) for index in range(90)}
    with pytest.raises(UsageError) as caught:
        torch_weights.from_torch(other, models.create('resnet18', weights.CLASSES, width=WIDTH))
    lines = str(caught.value).splitlines()
    names = [line for line in lines if line.startswith(('missing', 'not expected', 'shape of'))]
    assert len(names) == 10 and len(lines) <= 15
    assert lines[-1].startswith('They fit none of resnet18, ')


def test_a_state_dict_that_is_no_network_is_refused():
    model = models.create('resnet18', weights.CLASSES, width=WIDTH)
    with pytest.raises(UsageError, match='empty'):
        torch_weights.from_torch({}, model)
    quantized = state_dict_of() | {'conv1.weight': np.zeros((8, 3, 7, 7), np.int8)}
    with pytest.raises(UsageError, match='conv1.weight is int8'):
        torch_weights.from_torch(quantized, model)


def test_another_number_of_classes_needs_a_fresh_classifier():
    start, model = state_dict_of(), models.create('resnet18', 4, width=WIDTH)
    with pytest.raises(UsageError, match=r'fc.bias: expected \(4,\), found \(10,\)'):
        torch_weights.from_torch(start, model)
    found = torch_weights.to_torch(torch_weights.from_torch(start, model, reset_head=True), model)
    assert found['fc.weight'].shape == (4, 64) and 0 < np.abs(found['fc.weight']).max() <= 64**-0.5
    assert_same({k: v for k, v in found.items() if k[:2] != 'fc'}, {k: v for k, v in start.items() if k[:2] != 'fc'})


def test_command_line_in_and_out_again(safetensors_file, tmp_path, capsys):
    options = ('--width', WIDTH, '--resize', 'height', '--test-resolution', 320, '--mean', 0.5, 0.4, 0.3)
    assert run('resnet18', safetensors_file, tmp_path / 'in', *options) == 0
    variables, metadata = checkpoint.load_model(tmp_path / 'in')
    start = state_dict_of()
    assert_same(torch_weights.to_torch(variables, models.create('resnet18', weights.CLASSES, width=WIDTH)), start)
    digest = metadata.pop('source_sha256')
    assert len(digest) == 64
    assert metadata == {
        'version': fixres_jax.__version__,
        'architecture': 'resnet18',
        'width': WIDTH,
        'num_classes': weights.CLASSES,
        'mean': [0.5, 0.4, 0.3],
        'std': list(IMAGENET_STD),
        'train_resolution': 224,
        'test_resolution': 320,
        'resize_ratio': 256 / 224,
        'resize': 'height',
        'interpolation': 'bilinear',
        'crop': 'torchvision',
        'source_file': 'weights.safetensors',
    }
    assert run('--to-torch', tmp_path / 'in', tmp_path / 'out.safetensors') == 0
    assert_same(safetensors.numpy.load_file(tmp_path / 'out.safetensors'), start)
    # What was known of the network comes back with the file.
    assert run('resnet18', tmp_path / 'out.safetensors', tmp_path / 'again', '--width', WIDTH) == 0
    again = checkpoint.load_metadata(tmp_path / 'again')
    assert (again['resize'], again['test_resolution'], again['mean']) == ('height', 320, [0.5, 0.4, 0.3])
    capsys.readouterr()
    assert run('resnet18', safetensors_file, tmp_path / 'in', '--width', WIDTH) == 2
    assert 'not an empty folder' in capsys.readouterr().err


def test_a_torch_file_is_not_written_to_a_bucket(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run('--to-torch', 'run', 'gs://bucket/x.safetensors') == 2
    assert 'local or mounted folder' in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_classes_come_back_with_a_file_and_what_it_was_trained_on_does_not(safetensors_file, tmp_path):
    state_dict, _ = state_dicts.load(safetensors_file)
    about = {'class_names': [f'class {n}' for n in range(weights.CLASSES)], 'trained_on': [{'trained': {'count': 7}}]}
    state_dicts.save(tmp_path / 'ours.safetensors', state_dict, about)
    for out, option, back in (('a', (), about['class_names']), ('b', ('--reset-head',), None)):
        assert run('resnet18', tmp_path / 'ours.safetensors', tmp_path / out, '--width', WIDTH, *option) == 0
        metadata = checkpoint.load_metadata(tmp_path / out)
        assert metadata.get('class_names') == back and 'trained_on' not in metadata


def test_command_line_starts_a_fresh_classifier_and_says_so(safetensors_file, tmp_path, capsys):
    for out, option in (('a', ('--num-classes', 4)), ('b', ('--reset-head',))):
        assert run('resnet18', safetensors_file, tmp_path / out, '--width', WIDTH, *option) == 0
        assert 'The classifier starts afresh' in capsys.readouterr().out
    variables, metadata = checkpoint.load_model(tmp_path / 'a')
    assert metadata['num_classes'] == len(variables['params']['fc']['bias']) == 4
    fresh = checkpoint.load_model(tmp_path / 'b')[0]['params']['fc']['bias']
    assert len(fresh) == weights.CLASSES and not np.array_equal(fresh, state_dict_of()['fc.bias'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('resnet34', 'FILE'), 'They fit resnet18'),
        (('resnet81', 'FILE'), "Did you mean 'resnet18'"),
        (('resnet18', 'absent.pth'), 'There is no weight file absent.pth'),
        (('resnet18', 'FILE', '--ema'), 'no moving average'),
        (('resnet18', 'FILE', '--release', 'timm/resnet50'), "Did you mean 'timm/resnet50.a"),
        (('resnet18', 'FILE', '--release', 'timm/resnet50.a1_in1k'), 'is a resnet50, not a resnet18'),
        (
            ('resnetblur18', 'FILE'),
            'resnetblur18 is a resnetblur18: its arrays are named and shaped like those of resnet18',
        ),
        (('resnet18', 'FILE', '--release', 'timm/resnetaa50.a1h_in1k'), 'timm/resnetaa50.a1h_in1k is a resnetaa50'),
    ],
)
def test_command_line_refuses_and_writes_nothing(arguments, message, safetensors_file, tmp_path, capsys):
    model, path, *options = (safetensors_file if argument == 'FILE' else argument for argument in arguments)
    assert run(model, path, tmp_path / 'out', '--width', WIDTH, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_safetensors_of_every_dtype_need_no_torch(tmp_path, monkeypatch):
    path = tmp_path / 'x.safetensors'
    arrays = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.float16([1.5]), 'c': np.zeros((), np.int64)}
    safetensors.numpy.save_file(arrays, path)
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert_same(state_dicts.load(path)[0], arrays)
    header = json.dumps({'x': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}}).encode()
    values = np.array([1.5, -2], ml_dtypes.bfloat16)
    path.write_bytes(len(header).to_bytes(8, 'little') + header + values.tobytes())
    assert_same(state_dicts.load(path)[0], {'x': values})
    (tmp_path / 'x.pth').write_bytes(b'')
    with pytest.raises(UsageError, match=r'fixres-jax\[torch\]'):
        state_dicts.load(tmp_path / 'x.pth')


@pytest.mark.parametrize('length', [0, 5, 100, -1])
def test_damaged_safetensors_are_refused(length, safetensors_file):
    safetensors_file.write_bytes(safetensors_file.read_bytes()[:length])
    with pytest.raises(UsageError, match='damaged'):
        state_dicts.load(safetensors_file)


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.bin', '.tar'])
@pytest.mark.parametrize('zipped', [True, False])
def test_pickles_of_both_formats(suffix, zipped, tmp_path):
    torch = pytest.importorskip('torch')
    start, path = state_dict_of(), tmp_path / f'weights{suffix}'
    tensors = {key: torch.from_numpy(array) for key, array in start.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    assert_same(state_dicts.load(path)[0], start)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UsageError, match='damaged'):
        state_dicts.load(path)


@pytest.mark.parametrize(
    ('wrap', 'ema'),
    [
        (lambda x: {'model': {f'module.{key}': value for key, value in x.items()}, 'epoch': 3}, False),
        (lambda x: {'state_dict': {f'_orig_mod.module.{key}': value for key, value in x.items()}}, False),
        (lambda x: {'state_dict': {f'model.{key}': value for key, value in x.items()}}, False),
        (lambda x: {'state_dict': {f'net.{key}': value for key, value in x.items()}}, False),
        (lambda x: {'state_dict': {f'_orig_mod.trainer.1.{key}': value for key, value in x.items()}}, False),
        (lambda x: {'model_state_dict': x, 'optimizer': {'lr': 0.1}}, False),
        (lambda x: {'state_dict': {}, 'state_dict_ema': x}, True),
        (lambda x: {'model': {}, 'model_ema': {f'module.{k}': v for k, v in x.items()} | {'n_averaged': 1}}, True),
        (lambda x: {'model': x, 'args': argparse.Namespace(lr=0.1), 'best': np.float64(76.1)}, False),
    ],
)
def test_wrappers_and_prefixes(wrap, ema, tmp_path):
    torch = pytest.importorskip('torch')
    start = {'conv1.weight': np.ones((2, 3), np.float32), 'fc.bias': np.arange(3, dtype=np.float32)}
    torch.save(wrap({key: torch.from_numpy(array) for key, array in start.items()}), tmp_path / 'x.pth')
    assert_same(state_dicts.load(tmp_path / 'x.pth', ema=ema)[0], start)


def test_a_moving_average_beside_the_weights_is_mentioned(tmp_path, caplog):
    torch = pytest.importorskip('torch')
    weights = {'fc.bias': torch.zeros(3)}
    torch.save({'state_dict': weights, 'state_dict_ema': weights}, tmp_path / 'x.pth')
    state_dicts.load(tmp_path / 'x.pth', ema=True)
    assert not caplog.messages
    state_dicts.load(tmp_path / 'x.pth')
    assert 'state_dict_ema' in caplog.messages[0] and '--ema' in caplog.messages[0]


def test_half_precision_tensors(tmp_path):
    torch = pytest.importorskip('torch')
    torch.save({'a': torch.tensor([1.5]).bfloat16(), 'b': torch.tensor([2.5]).half()}, tmp_path / 'x.pth')
    assert_same(state_dicts.load(tmp_path / 'x.pth')[0], {'a': np.float32([1.5]), 'b': np.float32([2.5])})


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({}, 'nothing'),
        ([1, 2], 'list'),
        ({'epoch': 3}, "'epoch' is int"),
        ({'model_ema': {}}, 'add --ema'),
    ],
)
def test_pickles_without_weights_are_refused(content, message, tmp_path):
    torch = pytest.importorskip('torch')
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(UsageError, match=message):
        state_dicts.load(tmp_path / 'x.pth')


def test_a_prefix_is_removed_only_from_whole_networks(tmp_path):
    for names in (['fc.weight', 'fc.bias'], ['net.conv1.weight', 'loss.scale']):
        safetensors.numpy.save_file({name: np.ones(2, np.float32) for name in names}, tmp_path / 'x.safetensors')
        assert list(state_dicts.load(tmp_path / 'x.safetensors')[0]) == sorted(names)


def test_a_network_beside_other_arrays_is_named_by_its_prefix(tmp_path, capsys):
    arrays = {f'net.{name}': array for name, array in state_dict_of().items()} | {'loss.scale': np.ones(1, np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / 'x.safetensors')
    assert run('resnet18', tmp_path / 'x.safetensors', tmp_path / 'out') == 2
    assert "under the prefix 'net.' and 1 other arrays, such as loss.scale" in capsys.readouterr().err


@pytest.mark.parametrize(
    'name', ['resnetblur50-84f4748f.pth', 'resnetaa50_a1h-4cf422b3.pth', 'my-ResNetBlur18.bin',
             'models--timm--resnetaa50.a1h_in1k/snapshots/1/model.safetensors', 'timm/resnetblur50.bt_in1k',
             'timm/resnetaa50d.sw_in12k_ft_in1k']
)  # fmt: skip
def test_names_of_look_alikes_are_refused(name):
    with pytest.raises(
        UsageError, match=r'like those of resnet(18|50|50d), but it averages where resnet\1 strides'
    ) as caught:
        releases.refuse_look_alike(name)
    assert '\n' not in str(caught.value)


def test_other_names_are_no_look_alikes():
    for name in (
        *(text for r in releases.RELEASES for text in (r.name, r.file)),
        *models.ARCHITECTURES,
        '',
        'blur/resnet50.pth',
    ):
        releases.refuse_look_alike(name)
    releases.refuse_look_alike('resnetblur50/resnet50-0676ba61.pth')  # the folder says nothing of this file


def test_a_look_alike_that_only_its_content_names_is_refused(tmp_path, capsys):
    torch = pytest.importorskip('torch')
    tensors = {name: torch.from_numpy(array) for name, array in state_dict_of().items()}
    torch.save({'arch': 'resnetblur18', 'state_dict': tensors}, tmp_path / 'model_best.pth.tar')
    assert run('resnet18', tmp_path / 'model_best.pth.tar', tmp_path / 'out') == 2
    assert 'resnetblur18 is a resnetblur18' in capsys.readouterr().err


def test_timm_has_no_other_look_alikes():
    pytest.importorskip('torchvision_cpu', exc_type=ImportError)
    timm, torch = (pytest.importorskip(name, exc_type=ImportError) for name in ('timm', 'torch'))

    def build(name):
        with torch.device('meta'):
            return timm.create_model(name)

    def shapes(network):
        return frozenset((key, tuple(value.shape)) for key, value in network.state_dict().items())

    ours = {shapes(network): repr(network) for network in map(build, filter(timm.is_model, resnet.ROWS))}
    others = {name: build(name) for name in timm.list_models(module='resnet') if name not in resnet.ROWS}
    found = {name for name, network in others.items() if ours.get(shapes(network), repr(network)) != repr(network)}
    blurred = {f'resnetblur{name}' for name in ('18', '50', '50d', '101d')}
    assert found == blurred | {f'resnetaa{name}' for name in ('34d', '50', '50d', '101d')}


@pytest.mark.parametrize('kind', ['F8_E4M3', 'F8_E5M2', 'U16'])
def test_arrays_of_few_bits_in_safetensors_are_named(kind, tmp_path):
    header = json.dumps({'fc.weight': {'dtype': kind, 'shape': [4], 'data_offsets': [0, 4]}}).encode()
    (tmp_path / 'x.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(4))
    with pytest.raises(UsageError, match=f"'fc.weight' is {kind}; expected a dense array of float32"):
        state_dicts.load(tmp_path / 'x.safetensors')


@pytest.mark.parametrize(
    ('make', 'kind'),
    [
        (lambda torch: torch.ones(3).to(torch.float8_e4m3fn), 'float8_e4m3fn'),
        (lambda torch: torch.ones(3).to(torch.float8_e5m2), 'float8_e5m2'),
        (lambda torch: torch.eye(3).to_sparse(), 'sparse_coo float32'),
        (lambda torch: torch.ones(3, device='meta'), 'meta float32'),
    ],
)
def test_tensors_that_are_no_plain_arrays_are_named(make, kind, tmp_path):
    torch = pytest.importorskip('torch')
    torch.save({'conv1.weight': torch.ones(2), 'fc.weight': make(torch)}, tmp_path / 'x.pth')
    with pytest.raises(UsageError, match=f"'fc.weight' is {kind}; expected a dense array of float32"):
        state_dicts.load(tmp_path / 'x.pth')


@pytest.mark.filterwarnings('ignore:.*torch.jit:DeprecationWarning')
def test_torchscript_is_named(tmp_path):
    torch = pytest.importorskip('torch')
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / 'x.pt')
    with pytest.raises(UsageError, match='is TorchScript, a program with its weights: expected weights alone'):
        state_dicts.load(tmp_path / 'x.pt')


@pytest.mark.parametrize('protocol', range(6))
def test_a_pickle_that_torch_did_not_write_is_named(protocol, tmp_path):
    pytest.importorskip('torch')
    (tmp_path / 'x.pth').write_bytes(pickle.dumps({'fc.bias': np.ones(3)}, protocol))
    with pytest.raises(UsageError, match='is a pickle that torch.save did not write'):
        state_dicts.load(tmp_path / 'x.pth')


class Malice:
    """Would run a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(zipped, tmp_path):
    torch = pytest.importorskip('torch')
    content = {'conv1.weight': torch.ones(1), 'x': Malice(tmp_path / 'executed')}
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(UsageError, match='refused: it holds more than weights'):
        state_dicts.load(tmp_path / 'x.pth')
    assert not (tmp_path / 'executed').exists()


def test_releases_are_of_our_architectures_and_found_by_file_name():
    names, files = ([getattr(r, field) for r in releases.RELEASES] for field in ('name', 'file'))
    assert len(set(names)) == len(names)
    assert len({*files} - {''}) == len([file for file in files if file])
    assert {release.architecture for release in releases.RELEASES} <= models.ARCHITECTURES.keys()
    assert all(release.train_resolution <= release.test_resolution for release in releases.RELEASES)
    release = releases.find('', '/somewhere/resnet50-11ad3fa6.pth')
    assert release.metadata() == {
        'release': 'torchvision/resnet50.v2',
        'train_resolution': 176,
        'test_resolution': 224,
        'resize_ratio': 232 / 224,
        'resize': 'short',
        'interpolation': 'bilinear',
        'mean': [0.485, 0.456, 0.406],
        'std': [0.229, 0.224, 0.225],
    }
    assert all(releases.find('', path) is None for path in ('', 'mine.pth', 'model.safetensors', '.'))
    assert all(release.file in releases.table() for release in releases.RELEASES)


# Architectures that torchvision has under another name.
OF_TORCHVISION = {
    'regnetx_032': 'regnet_x_3_2gf', 'regnety_016': 'regnet_y_1_6gf', 'regnety_032': 'regnet_y_3_2gf',
    'regnety_160': 'regnet_y_16gf', 'mobilenetv2_100': 'mobilenet_v2', 'tf_mobilenetv3_large_100': 'mobilenet_v3_large',
    'tf_efficientnet_b5': 'efficientnet_b5', 'tf_efficientnet_b6': 'efficientnet_b6',
    'tf_efficientnet_b7': 'efficientnet_b7', 'tf_efficientnetv2_s': 'efficientnet_v2_s',
    'tf_efficientnetv2_m': 'efficientnet_v2_m', 'vit_base_patch16_224': 'vit_b_16',
}  # fmt: skip


def test_releases_agree_with_torchvision():
    pytest.importorskip('torchvision_cpu', exc_type=ImportError)
    torchvision = pytest.importorskip('torchvision', exc_type=ImportError)
    ours = {release.file: release for release in releases.RELEASES if release.name.startswith('torchvision/')}
    for name in {release.architecture for release in ours.values()}:
        for entry in torchvision.models.get_model_weights(OF_TORCHVISION.get(name, name)):
            release, transform = ours.pop(entry.url.rpartition('/')[2]), entry.transforms()
            assert release.architecture == name
            assert release.top1 == entry.meta['_metrics']['ImageNet-1K']['acc@1']
            assert [release.test_resolution] == transform.crop_size
            assert [round(release.resize_ratio * release.test_resolution)] == transform.resize_size
            assert release.interpolation == transform.interpolation.value
            if name != 'inception_v3':  # which brings ImageNet's mean and std to its own by itself
                assert (list(release.mean), list(release.std)) == (transform.mean, transform.std)
    assert not ours


def test_releases_agree_with_timm():
    pytest.importorskip('torchvision_cpu', exc_type=ImportError)
    timm = pytest.importorskip('timm', exc_type=ImportError)
    for release in releases.RELEASES:
        if release.name.startswith('timm/'):
            known = timm.get_pretrained_cfg(release.name.removeprefix('timm/'))
            assert not known.url or known.url.endswith(f'/{release.file}')  # some are on Hugging Face alone
            tested = (known.test_input_size or known.input_size)[1]
            assert tested == release.test_resolution
            if release.architecture not in ('tf_efficientnet_lite3', 'tf_efficientnet_lite4'):  # TensorFlow's sizes
                assert known.input_size[1] == release.train_resolution
            assert (known.test_crop_pct or known.crop_pct) == pytest.approx(1 / release.resize_ratio)
            mean = release.mean or models.find(release.architecture).mean
            assert (known.interpolation, tuple(known.mean)) == (release.interpolation, mean)


def test_list_prints_the_table(capsys):
    assert run('--list') == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines.keys() == {'release', *(release.name for release in releases.RELEASES)}
    assert 'FixRes_Pretrained_Models/ResNet50_CutMix_v2.pth' in lines['fixres/resnet50_cutmix_v2']
    assert lines['fixres/resnet50_cutmix_v2'].endswith('CC BY-NC 4.0')
    assert '380 -> 472 (height 539, bilinear) 85.90 ' in ' '.join(lines['fixres/efficientnet_b4_ns'].split())
    assert 'efficientnet-lite2-9656183e.pth' in lines['pypi/efficientnet_lite2']


def test_releases_of_fixres_have_the_sizes_of_its_configs():
    for release in releases.RELEASES:
        variant = release.name.removeprefix('fixres/').removesuffix('_v2').replace('efficientnet', 'tf_efficientnet')
        if release.name.startswith('fixres/') and not variant.endswith('no_adaptation'):
            row = finetune.TABLE.get(variant) or finetune.TABLE[variant.removesuffix('_ns')]
            assert (release.train_resolution, release.test_resolution) == (row['train'], row['test'])


@pytest.mark.parametrize(
    'name, padding',
    [
        ('regnety_016', None),
        pytest.param('efficientnet_b0', 'symmetric', marks=pytest.mark.slow),
        pytest.param('tf_efficientnet_b5', 'symmetric', marks=pytest.mark.slow),
        pytest.param('tf_efficientnetv2_s', 'symmetric', marks=pytest.mark.slow),
        pytest.param('mobilenetv2_100', 'symmetric', marks=pytest.mark.slow),
        ('tf_mobilenetv3_large_100', 'symmetric'),
        pytest.param('convnext_tiny', None, marks=pytest.mark.slow),
        pytest.param('vit_base_patch16_224', None, marks=pytest.mark.slow),
    ],
)
def test_networks_of_torchvision_come_in_under_their_own_names(name, padding):
    pytest.importorskip('torchvision_cpu', exc_type=ImportError)
    torchvision = pytest.importorskip('torchvision', exc_type=ImportError)
    import torch

    from goldens import weights

    theirs = torchvision.models.get_model(OF_TORCHVISION.get(name, name), num_classes=10).eval()
    model = models.create(name, 10, **({'padding': padding} if padding else {}))
    state_dict = {key: weights.weight(key, tuple(value.shape)) for key, value in theirs.state_dict().items()}
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in state_dict.items()})
    shuffled = {key: state_dict[key] for key in sorted(state_dict)}  # as files of safetensors may be
    variables = torch_weights.from_torch(lineages.to_timm(shuffled, name), model)
    size = 224 if 'vit' in name else 65
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    logits, _ = jax.jit(lambda images: model.apply(variables, images, models.EVAL))(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.ptp(expected) > 1e-3


def test_a_file_of_torchvision_brings_its_padding_and_mean_whatever_it_is_called(tmp_path, capsys):
    pytest.importorskip('torchvision_cpu', exc_type=ImportError)
    torchvision = pytest.importorskip('torchvision', exc_type=ImportError)
    theirs = torchvision.models.mobilenet_v3_large(num_classes=3).state_dict()
    state_dicts.save(tmp_path / 'x.safetensors', {key: value.numpy() for key, value in theirs.items()}, {})
    assert run('tf_mobilenetv3_large_100', tmp_path / 'x.safetensors', tmp_path / 'out') == 0
    about = network.load(tmp_path / 'out').about
    assert about['padding'] == 'symmetric' and about['mean'] == [0.485, 0.456, 0.406]
    assert run('mobilenetv3_large_100', tmp_path / 'x.safetensors', tmp_path / 'no') == 2
    told = "none of its networks is a mobilenetv3_large_100. Did you mean 'tf_mobilenetv3_large_100'?"
    assert told in capsys.readouterr().err


def test_a_stem_of_a_width_that_no_network_can_have_fits_none(few_architectures):
    few = {'conv_stem.weight': np.ones((1, 3, 3, 3)), 'classifier.bias': np.ones(3)}
    assert torch_weights.fitting(few) == []


def test_a_network_of_torchvision_under_another_name_is_refused():
    given = {'features.0.0.weight': np.ones((16, 3, 3, 3)), 'features.0.1.weight': np.ones(16)}
    with pytest.raises(UsageError, match='The weights have 2 arrays, and a mobilenetv2_100 has 262: name another'):
        lineages.to_timm(given, 'mobilenetv2_100')


# A block of each kind in efficientnet-lite-pytorch, and where it is in timm, checked against both packages.
ELSEWHERE = {
    '_conv_stem.weight': 'conv_stem.weight',
    '_bn0.running_var': 'bn1.running_var',
    '_blocks.0._depthwise_conv.weight': 'blocks.0.0.conv_dw.weight',
    '_blocks.0._bn2.bias': 'blocks.0.0.bn2.bias',
    '_blocks.0._se_reduce.bias': 'blocks.0.0.se.conv_reduce.bias',
    '_blocks.2._expand_conv.weight': 'blocks.1.1.conv_pw.weight',
    '_blocks.11._bn0.weight': 'blocks.5.0.bn1.weight',
    '_blocks.15._project_conv.weight': 'blocks.6.0.conv_pwl.weight',
    '_blocks.15._bn2.num_batches_tracked': 'blocks.6.0.bn3.num_batches_tracked',
    '_conv_head.weight': 'conv_head.weight',
    '_bn1.weight': 'bn2.weight',
    '_fc.bias': 'classifier.bias',
}


def test_names_of_the_packages_on_pypi_are_brought_to_timms():
    assert list(lineages.to_timm(dict.fromkeys(ELSEWHERE), 'tf_efficientnet_b0')) == list(ELSEWHERE.values())
    ours = dict.fromkeys(ELSEWHERE.values())
    assert lineages.to_timm(ours, 'tf_efficientnet_b0') == ours
    deeper = {'_conv_stem.weight': None, '_blocks.16._bn0.bias': None}
    with pytest.raises(UsageError, match='a tf_efficientnet_lite0 has 16 blocks'):
        lineages.to_timm(deeper, 'tf_efficientnet_lite0')


def test_names_of_torchvision_and_pretrainedmodels_are_brought_to_timms():
    def renamed(name, **arrays):
        return lineages.to_timm({key.replace('__', '.'): array for key, array in arrays.items()}, name)

    assert list(renamed('inception_resnet_v2', last_linear__weight=0, last_linear__bias=0, block8__conv2d__bias=0)) == [
        'classif.weight', 'classif.bias', 'block8.conv2d.bias',
    ]  # fmt: skip
    dense = renamed(
        'densenet121',
        features__denseblock1__denselayer1__norm__1__weight=0,
        features__denseblock4__denselayer16__conv__2__weight=0,
        features__transition1__norm__weight=0,
    )
    assert list(dense) == [
        'features.denseblock1.denselayer1.norm1.weight', 'features.denseblock4.denselayer16.conv2.weight',
        'features.transition1.norm.weight',
    ]  # fmt: skip
    matrix = np.arange(2 * 512 * 49.0).reshape(2, -1)
    linear = {'classifier__0__weight': matrix, 'classifier__3__weight': np.ones((3, 2)), 'classifier__6__weight': 0}
    vgg = renamed('vgg16_bn', features__0__weight=0, **linear)
    assert list(vgg) == ['features.0.weight', 'pre_logits.fc1.weight', 'pre_logits.fc2.weight', 'head.fc.weight']
    np.testing.assert_array_equal(vgg['pre_logits.fc1.weight'], matrix.reshape(2, 512, 7, 7))
    assert vgg['pre_logits.fc2.weight'].shape == (3, 2, 1, 1)


def test_the_auxiliary_classifier_of_inception_is_left_out_with_a_word(tmp_path, capsys):
    model = models.create('inception_v3', 3, width=2)
    start = {key: weights.weight(key, leaf.shape) for key, leaf in torch_weights.torch_shapes(model).items()}
    auxiliary = {'AuxLogits.fc.weight': np.ones((3, 5)), 'AuxLogits.fc.bias': np.ones(3)}
    state_dicts.save(tmp_path / 'x.safetensors', start | auxiliary, {})
    assert run('inception_v3', tmp_path / 'x.safetensors', tmp_path / 'out') == 0
    assert '2 arrays of AuxLogits.* are left out: they serve training alone.' in capsys.readouterr().out
    assert network.load(tmp_path / 'out').about['mean'] == [0.5, 0.5, 0.5]


def test_the_padding_travels_with_the_weights(tmp_path, capsys, few_architectures):
    model = models.create('tf_efficientnet_lite0', 3, width=8)
    start = {key: weights.weight(key, leaf.shape) for key, leaf in torch_weights.torch_shapes(model).items()}
    state_dicts.save(tmp_path / 'x.safetensors', start, {})
    for padding, options in (('same', ()), ('symmetric', ('--padding', 'symmetric'))):
        assert run('tf_efficientnet_lite0', tmp_path / 'x.safetensors', tmp_path / padding, *options) == 0
        loaded = network.load(tmp_path / padding)
        assert loaded.about['padding'] == loaded.model.module.padding == padding
    assert run('tf_efficientnet_lite0', tmp_path / 'x.safetensors', tmp_path / 'no', '--padding', 'none') == 2
    assert "padding='none' is none of ('same', 'symmetric')" in capsys.readouterr().err
    assert run('resnet18', tmp_path / 'x.safetensors', tmp_path / 'no', '--padding', 'same', '--num-classes', 3) == 2
    assert "model.padding='same': a resnet18 has no such option" in capsys.readouterr().err
    assert run('tf_efficientnet_lite1', tmp_path / 'x.safetensors', tmp_path / 'no') == 2
    assert 'They fit tf_efficientnet_lite0 and efficientnet_lite0' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('release', 'classes', 'kept', 'padding'),
    [
        ('fixres/pnasnet5large', 1000, 1000, 'cadene'),
        ('pretrainedmodels/pnasnet5large', 1001, 1000, 'cadene'),
        ('', 1001, 1001, 'same'),
    ],
)
def test_releases_tell_the_padding_and_the_class_of_the_background(release, classes, kept, padding, tmp_path):
    start = state_dict_of('pnasnet5large', classes)
    state_dicts.save(tmp_path / 'weights.safetensors', start, {})
    named = ('--release', release) if release else ()
    assert run('pnasnet5large', tmp_path / 'weights.safetensors', tmp_path / 'out', *named) == 0
    found = network.load(tmp_path / 'out')
    assert found.about['padding'] == padding and found.about['train_resolution'] == 331
    bias = found.variables['params']['last_linear']['bias']
    np.testing.assert_array_equal(bias, start['last_linear.bias'][-kept:])
