"""A network as a program of jax.export: it says the same where this package is not, for any number of images."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fixres_jax import convert, models
from fixres_jax.models import EVAL
from fixres_jax.weights import network, portable

DOCS = Path(__file__).resolve().parent.parent / 'docs' / 'convert.md'
ABOUT = {
    'architecture': 'resnet18', 'width': 8, 'num_classes': 4, 'train_resolution': 32, 'test_resolution': 48,
    'class_names': ['ant', 'bee', 'cat', 'dog'],
}  # fmt: skip


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """(folder of a run, its network)."""
    folder = tmp_path_factory.mktemp('portable') / 'run'
    model = models.create('resnet18', 4, width=8)
    variables = {'batch_stats': {}} | jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    network.save(folder, network.Network(model, variables, ABOUT))
    return folder, network.Network(model, variables, ABOUT)


def test_it_is_loaded_by_the_lines_of_the_docs_in_a_process_without_this_package(saved, tmp_path, capsys):
    pytest.importorskip('flatbuffers')
    folder, net = saved
    assert convert.main(['--to-jax', str(folder), str(tmp_path / 'exported')]) == 0
    assert 'for images of 48 pixels, on cpu, cuda, tpu' in capsys.readouterr().out
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    np.save(tmp_path / 'images.npy', images)
    (example,) = re.findall(r'```python\n(import json, .*?)```', DOCS.read_text(), re.S)
    assert len(example.split('\n\n')) == 2 and len(example.strip().splitlines()) <= 7  # imports, and five lines at most
    code = (
        f'import sys; sys.modules["fixres_jax"] = None\n{example}\nnumpy.save("found.npy", probabilities); print(best)'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = np.asarray(jax.nn.softmax(net.apply(images, EVAL)[0]))
    np.testing.assert_allclose(np.load(tmp_path / 'found.npy'), expected, atol=1e-5)
    assert done.stdout.split() == [ABOUT['class_names'][row.argmax()] for row in expected]
    assert json.loads((tmp_path / 'exported' / 'fixres.json').read_text()) == ABOUT


def test_one_program_serves_all_batches_and_platforms(saved):
    pytest.importorskip('flatbuffers')
    from jax import export

    program = export.deserialize(portable.to_bytes(saved[1], 32, 40))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    assert str(program.in_avals[0].shape) == '(b, 32, 40, 3)'
    for number in (1, 5):
        found = np.asarray(program.call(np.zeros((number, 32, 40, 3), np.uint8)))
        assert found.shape == (number, 4)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_what_cannot_be_written_is_told(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(portable.importlib.util, 'find_spec', lambda name: None)
    assert convert.main(['--to-jax', str(saved[0]), str(tmp_path / 'out')]) == 2
    assert 'pip install "fixres-jax[export]"' in capsys.readouterr().err
    monkeypatch.setattr(portable.importlib.util, 'find_spec', lambda name: object())
    monkeypatch.setattr(portable, 'MAX_BYTES', 1000)
    assert convert.main(['--to-jax', str(saved[0]), str(tmp_path / 'out')]) == 2
    assert 'a program of jax.export holds at most' in capsys.readouterr().err
    (tmp_path / 'file').touch()
    assert convert.main(['--to-jax', str(saved[0]), str(tmp_path)]) == 2
    assert 'is not an empty folder' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
