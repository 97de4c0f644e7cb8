"""The method as functions: what a notebook calls, and the commands that are built on the same."""

import csv
import importlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import fixres_jax
from fixres_jax.core.errors import UsageError
from fixres_jax.data import transforms
from fixres_jax.evaluation.table import TIMM
from fixres_jax.weights import imagenet

CLASSES = ['ant', 'bee', 'cat', 'dog']
pytestmark = pytest.mark.usefixtures('toy')


@pytest.fixture(scope='module')
def nets(toy, tiny_folder):
    """A network, what an adaptation at a resolution of its choice makes of it, and the files of both."""
    net = fixres_jax.random('toy', CLASSES, train_resolution=32)
    return net, fixres_jax.adapt(net, tiny_folder, resolutions=(32, 48), held_out=0.25, unseen=True)


@pytest.fixture(scope='module')
def saved(nets, tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    nets[1].save(folder / 'adapted.safetensors')
    nets[0].save(folder / 'network')
    return folder


@pytest.fixture(scope='module')
def table(nets, tiny_folder):
    return fixres_jax.evaluate({'before': nets[0], 'after': nets[1]}, tiny_folder, resolutions=(48,))


def test_the_package_is_cheap_to_import():
    code = 'import sys, fixres_jax, fixres_jax.__main__; assert not {"jax", "grain"} & sys.modules.keys()'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_a_command_does_not_hide_the_function_of_its_name():
    module = importlib.import_module('fixres_jax.adapt')
    assert callable(module.main) and callable(fixres_jax.adapt) and fixres_jax.adapt is not module


def test_an_adaptation_chooses_on_held_out_images_and_beats_a_random_network(nets, table):
    net, adapted = nets
    record = adapted.record
    assert adapted.resolution == record['test_resolution'] in (32, 48)
    assert record['chosen_on'] == 'held-out training images' and record['after']['top1'] > record['before']['top1']
    before, after = table.rows
    assert after['top1'] - before['top1'] == pytest.approx(after['difference']) and after['difference'] > 20
    assert 'chosen on' in repr(adapted) and 'toy: 4 classes' in repr(net)


def test_only_the_last_statistics_and_the_classifier_change(nets):
    (net, adapted), changed = nets, set()
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(net.variables), jax.tree.leaves(adapted.variables), strict=True
    ):
        if not np.array_equal(old, new):
            changed.add(jax.tree_util.keystr(path, simple=True, separator='/').rpartition('/')[0])
    assert changed == {'params/head', 'batch_stats/norm'}


def test_an_adaptation_blends_the_old_statistics_with_the_new(nets, tiny_folder):
    how = {'resolution': 48, 'held_out': 0, 'solver': 'lbfgs', 'weight_decays': (1e-2,), 'max_iterations': 3}
    replaced, blended = (fixres_jax.adapt(nets[0], tiny_folder, **how, prior_images=prior) for prior in (0, 96))
    assert (replaced.record['prior_images'], blended.record['prior_images']) == (0, 96)
    old, new, mixed = (net.variables['batch_stats']['norm'] for net in (nets[0], replaced, blended))
    for name in ('mean', 'var'):  # of 32 images, which fill a batch
        np.testing.assert_allclose(mixed[name], 0.75 * old[name] + 0.25 * new[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(old[name], new[name], rtol=0.01)


def test_a_prediction_is_the_networks_own(nets, tiny_folder):
    _, adapted = nets
    paths = sorted((tiny_folder / 'val').rglob('*.jpg'))[:3]
    transform = transforms.make_test(adapted.resolution, 1.0, interpolation='bicubic')
    assert adapted.transform() == transform
    images = np.stack([transform(transforms.decode(path.read_bytes(), '', 0)) for path in paths])
    wanted = jax.nn.softmax(adapted.apply(images)[0])
    found = adapted.predict(paths, top=4)
    for row, probabilities in zip(found, wanted, strict=True):
        assert dict(row) == pytest.approx(dict(zip(CLASSES, probabilities.tolist(), strict=True)), abs=1e-5)
        assert [p for _, p in row] == sorted((p for _, p in row), reverse=True)
    assert adapted.predict(paths[0], top=4)[0][0] == found[0][0][0]


def test_a_saved_network_says_the_same_when_it_is_loaded(nets, saved, tiny_folder):
    path = next((tiny_folder / 'val').rglob('*.jpg'))
    for name, net in (('adapted.safetensors', nets[1]), ('network', nets[0])):
        loaded = fixres_jax.load(saved / name)
        assert loaded.resolution == net.resolution and loaded.class_names == tuple(CLASSES)
        assert dict(loaded.predict(path)) == pytest.approx(dict(net.predict(path)), abs=1e-5)
    assert 'norm.running_mean' in safetensors.numpy.load_file(saved / 'adapted.safetensors')


def test_a_table_prints_and_is_written_with_timms_columns(table, tmp_path):
    table.to_csv(tmp_path / 'r.csv')
    with open(tmp_path / 'r.csv') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[: len(TIMM)] == list(TIMM)
    assert [row['model'] for row in rows] == ['before', 'after'] and rows[1]['img_size'] == '48'
    assert float(rows[0]['top1']) + float(rows[0]['top1_err']) == pytest.approx(100)
    assert float(rows[0]['crop_pct']) == pytest.approx(1.0)
    assert rows[0]['mean_per_class'] == rows[0]['top1'] and table.rows[0]['classes'] == 4
    assert str(table).count('\n') == 3 and '24 images.' in str(table) and '<td>after</td>' in table._repr_html_()


def test_data_of_some_classes_are_scored_among_those_too(nets, tiny_folder, tmp_path):
    for name in CLASSES[1:3]:
        (tmp_path / name).symlink_to(tiny_folder / 'val' / name)
    some = fixres_jax.evaluate(nets[1], tmp_path, resolutions=(48,))
    assert some.rows[0]['classes'] == 2 and 'mean per class' not in str(some)  # of six images each
    assert some.rows[0]['top1_among_present'] >= some.rows[0]['top1'] and "2 of the network's 4 classes" in str(some)


def test_classes_of_other_sizes_have_their_mean_in_the_table(nets, tiny_folder, tmp_path):
    for name, count in zip(CLASSES, (1, 2, 3, 6), strict=True):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f'{number}.jpg').symlink_to(tiny_folder / 'val' / name / f'val_{number:02}.jpg')
    some = fixres_jax.evaluate(nets[0], tmp_path, resolutions=(48,))
    said = nets[0].outputs(str(tmp_path), resolution=48)
    right = said['softmax'].argmax(1) == said['labels']
    expected = 100 * np.mean([right[said['labels'] == label].mean() for label in range(4)])
    assert some.rows[0]['mean_per_class'] == pytest.approx(expected) != some.rows[0]['top1']
    assert 'mean per class %' in str(some) and f'  {expected:.2f}' in str(some)


def test_outputs_of_imagenet_have_names():
    assert len(imagenet.classes()) == 1000 and imagenet.word('n02123045') == 'tabby'
    assert imagenet.names_for(1000, ['n01440764'])[0] == 'n01440764' and not imagenet.names_for(1000, ['cat'])
    assert not imagenet.names_for(10)


WRONG = [
    (lambda net, data: fixres_jax.load('resnet50'), r"resnet50 is an architecture: give its weights too"),
    (lambda net, data: fixres_jax.load('/nowhere'), r'/nowhere holds no network'),
    (lambda net, data: fixres_jax.load('toy', '/nowhere.pth'), r'There is no weight file /nowhere.pth'),
    (lambda net, data: fixres_jax.load('x.pth', meen=[0.5]), r'load takes no meen. Did you mean .mean.'),
    (lambda net, data: fixres_jax.adapt(net, data, 48, flipp=True), r"adapt takes no flipp. Did you mean 'flip'"),
    (lambda net, data: fixres_jax.adapt(net, data, held_out=0), r'Nothing to choose the resolution on'),
    (lambda net, data: fixres_jax.adapt(net, data, 8), r'test.resolution=8 is too small for toy'),
    (lambda net, data: fixres_jax.adapt(net, (np.zeros((2, 8, 8, 3), np.uint8), [0, 1]), 48),
     r'1 training images are fewer than the 4 classes'),
    (lambda net, data: fixres_jax.evaluate({}, data), r'No network was given'),
    (lambda net, data: fixres_jax.evaluate(net, data, (8,)), r'resolution=8: toy takes 12 or more, such as 12'),
    (lambda net, data: fixres_jax.evaluate(net, data, (48,), crop_fractions=(1.2,)), r'The crop fraction is 1.2'),
    (lambda net, data: fixres_jax.evaluate(net, (np.zeros((2, 8, 8, 3), np.uint8), [0, 7])), r'labels go up to 7'),
    (lambda net, data: fixres_jax.evaluate(net, (np.zeros((2, 8, 8, 3), np.uint8), ['ant', 'elk'])),
     r'they differ: 1 only in the data \(elk\)'),
    (lambda net, data: net.predict('/nowhere.jpg'), r"There is no image and no folder '/nowhere.jpg'"),
    (lambda net, data: net.save(data), r'is not an empty folder'),
]  # fmt: skip


@pytest.mark.parametrize('call, expected', WRONG, ids=[expected for _, expected in WRONG])
def test_wrong_input_is_told_in_one_line(call, expected, nets, tiny_folder):
    with pytest.raises(UsageError, match=expected) as error:
        call(nets[0], tiny_folder)
    assert '\n' not in str(error.value)


BAD = [
    ('adapt {network} {val}/ant --resolution 48 --out {new}', 2, r'holds no class folders'),
    ('adapt {network} {data} --resolution big --out {new}', 2, r"'big' is no size: expected pixels"),
    ('adapt {network} {data} --out {network}', 2, r'is there already: give another place with --out'),
    ('adapt toy=/nowhere.pth {data} --out {new}', 2, r'There is no weight file /nowhere.pth'),
    ('evaluate {network} {data} --resolutions 48 --csv', 2, r'argument --csv: expected one argument'),
    ('evaluate {network} {val}/ant', 2, r'holds no class folders'),
    ('evaluate {new} {data}', 2, r'holds no network'),
    ('predict {network} {text}', 1, r'Image 0, .*text.jpg, cannot be decoded: it is in no image format'),
    ('predict {network} {text} --top 0', 2, r'--top=0: expected 1 or more'),
    ('predict {network} {empty}', 2, r'holds no images'),
    ('extract {network} {val} {val}', 2, r'is not an empty folder: choose another one'),
]  # fmt: skip


@pytest.mark.parametrize('line, code, expected', BAD, ids=[line for line, _, _ in BAD])
def test_a_wrong_command_line_is_one_line(line, code, expected, saved, tiny_folder, tmp_path, capfd):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.jpg').write_text('no picture')
    here = {'empty': tmp_path / 'empty', 'text': tmp_path / 'text.jpg', 'new': tmp_path / 'new'}
    places = here | {'network': saved / 'network', 'data': tiny_folder, 'val': tiny_folder / 'val'}
    name, *arguments = line.format(**places).split()
    assert command(name, *arguments) == code
    lines = [one for one in capfd.readouterr().err.splitlines() if one.startswith('fixres_jax: ')]
    assert len(lines) == 1 and re.search(expected, lines[0]), lines


def command(name, *arguments):
    return importlib.import_module(f'fixres_jax.{name}').main([str(argument) for argument in arguments])


def test_evaluate_from_the_command_line(saved, tiny_folder, tmp_path, capsys):
    networks = [saved / 'network', saved / 'adapted.safetensors']
    assert command('evaluate', *networks, tiny_folder, '--resolutions', 48, '--csv', tmp_path / 'r.csv') == 0
    printed = capsys.readouterr().out
    assert 'adapted.safetensors' in printed and str(saved) not in printed
    with open(tmp_path / 'r.csv') as file:
        assert [row['model'] for row in csv.DictReader(file)] == ['network', 'adapted.safetensors']


def test_predict_from_the_command_line(saved, tiny_folder, tmp_path, capsys):
    images = sorted((tiny_folder / 'val' / 'ant').iterdir())[:2]
    assert command('predict', saved / 'adapted.safetensors', *images, '--top', 2) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(images[0]) and printed[3] == str(images[1]) and len(printed) == 6
    assert command('predict', saved / 'adapted.safetensors', *images, '--top', 9) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 * (1 + len(CLASSES))
    assert command('predict', saved / 'adapted.safetensors', images[0].parent, '--csv', tmp_path / 'p.csv') == 0
    with open(tmp_path / 'p.csv') as file:
        assert len(list(csv.DictReader(file))) == 6 * 4


def test_extract_takes_folders_with_and_without_labels(saved, tiny_folder, tmp_path, capsys):
    adapted = saved / 'adapted.safetensors'
    (tmp_path / 'groups').mkdir()
    (tmp_path / 'groups' / 'trip').symlink_to(tiny_folder / 'val' / 'ant')
    assert command('extract', adapted, tiny_folder, tmp_path / 'known') == 0
    assert 'unknown' not in capsys.readouterr().out
    assert command('extract', adapted, tmp_path / 'groups', tmp_path / 'unknown') == 0
    assert 'labels are unknown' in capsys.readouterr().out
    assert np.load(tmp_path / 'known' / 'labels.npy').tolist() == np.repeat(range(4), 6).tolist()
    assert not (tmp_path / 'unknown' / 'labels.npy').exists()
    np.testing.assert_allclose(
        np.load(tmp_path / 'unknown' / 'softmax.npy'), np.load(tmp_path / 'known' / 'softmax.npy')[:6], atol=1e-5
    )
    assert command('extract', 'score', tmp_path / 'known') == 0
    assert command('extract', 'score', tmp_path / 'unknown') == 2


def test_adapt_from_the_command_line_says_what_it_does_first(saved, tiny_folder, tmp_path, capsys):
    out = tmp_path / 'out.safetensors'
    options = ('--resolution', 48, '--held-out', 0.25, '--batch-size', 8, '--seed', 1, '--out', out)
    assert command('adapt', saved / 'network', tiny_folder, *options) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith('toy at 48 pixels: one pass over ') and '8 at once' in printed[0]
    assert printed[-1] == f'It is in {out}.'
    assert fixres_jax.load(out).resolution == 48
    assert command('adapt', saved / 'network', tiny_folder, *options) == 2  # It is there already.
