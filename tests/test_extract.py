"""Extraction in data-set order, and the score of what was saved."""

import jax
import numpy as np
import pytest
from etils import epath

from fixres_jax import extract
from fixres_jax.data import pipeline, sources, transforms
from fixres_jax.evaluation import outputs, scores
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.models import EVAL
from fixres_jax.weights.network import Network
from toy import make_toy


@pytest.fixture(scope='module')
def extracted(tiny_folder, tmp_path_factory):
    """Two folders, plain and with flips, of 24 images in batches of 10, and what made them."""
    model, mesh = make_toy(4), sharding.make_mesh(jax.devices()[:2])
    variables = jax.jit(lambda: model.init(jax.random.key(0)))()
    variables = jax.device_put(variables, sharding.replicated(mesh))
    source, folders = sources.create(tiny_folder, 'val'), []
    for flip in (False, True):
        folders.append(tmp_path_factory.mktemp('extracted'))
        outputs.extract(
            Network(model, variables), source, transforms.make_test(32), Feed(Runtime(mesh), 10),
            directory=epath.Path(folders[-1]), flip=flip,
        )  # fmt: skip
    batch = next(pipeline.eval_batches(source, {0: transforms.make_test(32)}, batch_size=len(source)))
    found = [model.apply(variables, image, EVAL) for image in (batch['image'][0], batch['image'][0][:, :, ::-1])]
    return folders, source, batch['label'], found


def test_files_are_in_data_set_order(extracted):
    (plain, _), source, label, ((logits, ends), _) = extracted
    np.testing.assert_array_equal(np.load(plain / 'labels.npy'), label)
    np.testing.assert_allclose(np.load(plain / 'softmax.npy'), jax.nn.softmax(logits), atol=1e-6)
    np.testing.assert_allclose(np.load(plain / 'embedding.npy'), ends['embedding'], atol=1e-5)
    names = (plain / 'names.txt').read_text().splitlines()
    assert names == [source[i]['name'] for i in range(len(source))]


def test_flips_are_averaged(extracted):
    (_, flipped), _, _, ((here, ends), (there, mirrored)) = extracted
    mean = (jax.nn.softmax(here) + jax.nn.softmax(there)) / 2
    np.testing.assert_allclose(np.load(flipped / 'softmax.npy'), mean, atol=1e-6)
    mean = (ends['embedding'] + mirrored['embedding']) / 2
    np.testing.assert_allclose(np.load(flipped / 'embedding.npy'), mean, atol=1e-5)


def test_score_from_the_command_line(extracted, capsys):
    (plain, flipped), _, label, ((logits, _), (_, _)) = extracted
    assert extract.main(['score', str(plain), str(flipped)]) == 0
    printed = capsys.readouterr().out
    assert f'top-1 {100 * np.mean(np.argmax(logits, -1) == label):.2f} %' in printed
    assert printed.count('ECE') == 2 and 'first minus second' in printed


def test_score_of_what_can_be_counted_by_hand():
    labels = np.array([0, 1, 2, 0])
    softmax = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    result = scores.score(labels, softmax)
    assert result['top1'] == 50 and result['top5'] == 100 and result['top1_interval'][0] < 50
    assert result['loss'] == pytest.approx(-np.log([0.8, 0.7, 0.1, 0.2]).mean())
    # Bins of 1/15: 0.8 right; 0.7 right once of two; 0.6 wrong.
    assert result['ece'] == pytest.approx(100 * (0.2 + abs(1 - 1.4) + 0.6) / 4)


def test_a_calibrated_predictor_has_no_calibration_error():
    rng = np.random.default_rng(0)
    softmax = rng.dirichlet(np.full(5, 0.5), 100_000)
    labels = (rng.random((len(softmax), 1)) > softmax.cumsum(1)).sum(1).clip(max=4)
    assert scores.calibration_error(labels, softmax) < 0.01
    assert scores.calibration_error(np.roll(labels, 1), softmax) > 0.2


def test_wrong_input_is_one_line(extracted, tmp_path, capsys):
    (plain, _), *_ = extracted
    assert extract.main(['score', str(tmp_path)]) == 2
    assert 'labels.npy is not there' in capsys.readouterr().err
    np.save(tmp_path / 'labels.npy', np.zeros(3, np.int32))
    np.save(tmp_path / 'softmax.npy', np.full((4, 2), 0.5))
    assert extract.main(['score', str(tmp_path)]) == 1
    np.save(tmp_path / 'softmax.npy', np.full((3, 2), 0.5))
    assert extract.main(['score', str(plain), str(tmp_path)]) == 2
    assert 'not of the same images' in capsys.readouterr().err
