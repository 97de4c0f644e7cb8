"""timm and Hugging Face: what leaves for timm predicts the same there, and what timm publishes comes in."""

import contextlib
import functools
import hashlib
import http.server
import json
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
from PIL import Image

import fixres_jax
from fixres_jax import convert, models
from fixres_jax.core.errors import UsageError
from fixres_jax.data import transforms
from fixres_jax.models import EVAL
from fixres_jax.weights import hub, imports, network, state_dicts, timm_config, torch_weights

NAMES = ['ant', 'bee', 'cat', 'dog']
ABOUT = {
    'architecture': 'resnet18', 'num_classes': 4, 'width': 64, 'mean': [0.4, 0.5, 0.45], 'std': [0.2, 0.25, 0.3],
    'train_resolution': 48, 'test_resolution': 69, 'resize_ratio': 1 / 0.95, 'resize': 'short',
    'interpolation': 'bicubic', 'class_names': NAMES, 'crop': 'torchvision',
}  # fmt: skip


@functools.cache
def resnet18():
    """A resnet18 of four classes with random weights: (model, variables)."""
    model = models.create('resnet18', 4, mean=tuple(ABOUT['mean']), std=tuple(ABOUT['std']))
    return model, {'batch_stats': {}} | jax.device_get(jax.jit(model.init)(jax.random.key(0)))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """The folder that timm loads."""
    folder = tmp_path_factory.mktemp('timm') / 'adapted'
    model, variables = resnet18()
    state_dicts.save_folder(folder, torch_weights.to_torch(variables, model), ABOUT)
    return folder


def test_timm_predicts_with_its_own_transform_what_is_predicted_here(exported, tiny_folder):
    torch = pytest.importorskip('torch', exc_type=ImportError)
    import torchvision_cpu  # noqa: F401

    timm = pytest.importorskip('timm', exc_type=ImportError)
    pictures = [Image.open(path).convert('RGB') for path in sorted(tiny_folder.glob('val/*/*.jpg'))[::4]]
    test = transforms.make_test(69, 1 / 0.95, interpolation='bicubic')
    model, variables = resnet18()
    logits, _ = model.apply(variables, np.stack([test(picture, None) for picture in pictures]), EVAL)
    ours = np.asarray(jax.nn.softmax(logits))
    assert np.ptp(ours, axis=0).max() > 1e-3  # They differ from picture to picture.

    weights = exported / 'model.safetensors'
    with safetensors.safe_open(weights, 'np') as file:
        cfg = json.loads(file.metadata()['pretrained_cfg'])
    whole = timm.create_model(f'local-dir:{exported}', pretrained=True)
    by_path = timm.create_model('resnet18', num_classes=4, checkpoint_path=str(weights), pretrained_cfg=cfg)
    for net in (whole.eval(), by_path.eval()):
        config = timm.data.resolve_model_data_config(net)
        assert config == timm.data.resolve_data_config(model=net, use_test_size=True)
        transform = timm.data.create_transform(**config, is_training=False)
        with torch.no_grad():
            theirs = net(torch.stack([transform(picture) for picture in pictures])).softmax(-1).numpy()
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert whole.pretrained_cfg['label_names'] == NAMES
    # A new classifier, as timm makes it for other classes: it finds the layers by their names.
    other = timm.create_model(f'local-dir:{exported}', pretrained=True, num_classes=7, in_chans=1)
    assert other.get_classifier().out_features == 7 and other.conv1.in_channels == 1


@pytest.mark.parametrize('ratio', [1.0, 256 / 224, 1 / 0.875, 1 / 0.95, 1 / 0.9, 232 / 224])
def test_timm_resizes_to_as_many_pixels(ratio):
    for resolution in range(32, 700):
        crop_pct = timm_config._crop_pct(resolution, ratio)
        assert int(resolution / crop_pct) == transforms.resize_side(resolution, ratio)
        assert crop_pct == pytest.approx(1 / ratio, abs=1 / resolution)


def test_what_is_written_for_timm_comes_back(exported):
    name, fields = timm_config.from_timm(json.loads((exported / 'config.json').read_text()))
    expected = ABOUT | {'train_resolution': 69}
    assert name == 'resnet18'
    assert fields == {key: expected[key] for key in fields} | {'resize_ratio': pytest.approx(1 / 0.95, abs=0.01)}
    assert {'mean', 'std', 'class_names', 'interpolation', 'test_resolution'} < fields.keys()
    loaded, _ = imports.read(exported / 'model.safetensors')
    assert loaded.about['train_resolution'] == 48  # The header knows more than timm's fields.


def test_networks_of_patches_take_any_size_in_timm_too():
    config = timm_config.to_timm(ABOUT | {'architecture': 'vit_small_patch16_224', 'test_resolution': 160})
    assert config['model_args'] == {'dynamic_img_size': True}
    assert config['pretrained_cfg']['first_conv'] == 'patch_embed.proj'


def test_convert_writes_a_folder_for_timm_and_says_how_it_is_loaded(tmp_path, capsys):
    model, variables = resnet18()
    network.save(tmp_path / 'run', network.Network(model, variables, ABOUT | {'resize': 'height'}))
    assert convert.main(['--to-torch', str(tmp_path / 'run'), str(tmp_path / 'out')]) == 0
    said = capsys.readouterr().out
    assert f"timm.create_model('local-dir:{tmp_path / 'out'}', pretrained=True)" in said
    assert 'height resized, which timm cannot do' in said
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'model.safetensors', 'config.json'}
    assert convert.main(['--to-torch', str(tmp_path / 'run'), str(tmp_path / 'out')]) == 2
    assert 'not an empty folder' in capsys.readouterr().err


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a server to fetch a file: its head, then the file."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        repository, _, rest = self.path.lstrip('/').partition('/resolve/')
        path = self.server.folder / repository / rest.partition('/')[2]
        known = (self.server.folder / repository).is_dir()
        self.send_response(200 if path.is_file() else 404)
        content = path.read_bytes() if path.is_file() else b''
        if not path.is_file():
            self.send_header('X-Error-Code', 'EntryNotFound' if known else 'RepoNotFound')
        self.send_header('X-Repo-Commit', '1' * 40)
        self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(folder of repositories, function that ends the server) of a hub on this machine, and an empty cache."""
    constants = pytest.importorskip('huggingface_hub.constants')
    running = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    running.folder = tmp_path / 'repositories'
    threading.Thread(target=running.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{running.server_port}'
    monkeypatch.setattr(constants, 'ENDPOINT', address)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', address + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_HUB_DISABLE_PROGRESS_BARS', True)

    def end():
        with contextlib.suppress(OSError):
            running.shutdown()
            running.server_close()

    yield running.folder, end
    end()


def publish(folder: Path, name: str, **changes) -> dict[str, np.ndarray]:
    """Put a resnet18 into a repository as timm does; return its arrays."""
    model, variables = resnet18()
    state_dict = torch_weights.to_torch(variables, model)
    (folder / name).mkdir(parents=True)
    state_dicts.save(folder / name / 'model.safetensors', state_dict, {})
    cfg = {
        'tag': 'a1_in1k', 'input_size': [3, 160, 160], 'test_input_size': [3, 288, 288], 'crop_pct': 0.9,
        'test_crop_pct': 0.95, 'interpolation': 'bicubic', 'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6],
    }  # fmt: skip
    config = {'architecture': 'resnet18', 'num_classes': 4, 'label_names': NAMES, 'pretrained_cfg': cfg} | changes
    (folder / name / 'config.json').write_text(json.dumps(config))
    return state_dict


def test_a_repository_comes_in_with_what_it_says_of_itself_and_again_without_a_network(
    server, tmp_path, capsys, monkeypatch
):
    folder, end = server
    state_dict = publish(folder, 'timm/resnet18.mine')
    assert convert.main(['hf:timm/resnet18.mine', str(tmp_path / 'out')]) == 0
    assert 'holds hf:timm/resnet18.mine as resnet18' in capsys.readouterr().out
    loaded = network.load(tmp_path / 'out')
    expected = {
        'architecture': 'resnet18', 'train_resolution': 160, 'test_resolution': 288, 'interpolation': 'bicubic',
        'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6], 'class_names': NAMES, 'resize': 'short', 'num_classes': 4,
        'resize_ratio': pytest.approx(1 / 0.95), 'source_file': 'model.safetensors',
    }  # fmt: skip
    assert {field: loaded.about[field] for field in expected} == expected
    back = torch_weights.to_torch(loaded.variables, loaded.model)
    assert all(np.array_equal(back[key], state_dict[key]) for key in state_dict)
    end()
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)  # It does not try five times.
    architecture, path, fields = hub.fetch('timm/resnet18.mine')
    assert (architecture, fields['test_resolution']) == ('resnet18', 288) and Path(path).is_file()
    net = fixres_jax.load('hf:timm/resnet18.mine')
    assert (net.resolution, net.class_names) == (288, tuple(NAMES))
    with pytest.raises(UsageError, match=r'not in the local cache, and Hugging Face cannot be reached.*hf download'):
        hub.fetch('timm/resnet18.other')


def test_a_known_release_keeps_what_its_row_knows(server):
    folder, _ = server
    publish(folder, 'timm/resnet18.a1_in1k', num_classes=4)
    _, _, fields = hub.fetch('hf:timm/resnet18.a1_in1k')
    assert fields['release'] == 'timm/resnet18.a1_in1k'
    assert (fields['train_resolution'], fields['test_resolution']) == (224, 288)


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('timm/resnet17.mine', {'architecture': 'resnet17'}, r"is a resnet17, which is no network.*'resnet1"),
        ('timm/bert', {'architecture': ['Bert']}, 'names no architecture of timm'),
        ('timm/nothing', None, 'is not on Hugging Face, or not for you'),
        ('not a name', None, 'is not on Hugging Face, or not for you'),
        ('timm/empty', {}, 'does not hold config.json and model.safetensors or pytorch_model.bin'),
        ('timm/resnetaa50.a1h_in1k', None, 'resnetaa50'),
    ],
)
def test_what_cannot_come_in_is_named(server, name, changes, message):
    folder, _ = server
    if changes is not None:
        publish(folder, name, **changes)
    if name == 'timm/empty':
        (folder / name / 'model.safetensors').unlink()
    with pytest.raises(UsageError, match=message):
        hub.fetch(name)


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'huggingface_hub', None)
    with pytest.raises(UsageError, match=r'pip install "fixres-jax\[hub\]"'):
        hub.fetch('timm/resnet18.a1_in1k')
