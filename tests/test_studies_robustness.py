"""Resolution and adaptation on other images: counted as an evaluation counts, and kept apart."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from conftest import pattern
from defaults import optimization
from fixres_jax.adaptation import adapt
from fixres_jax.core import files, tables
from fixres_jax.core.errors import UsageError
from fixres_jax.data import given, sources, transforms
from fixres_jax.data.corruptions import Corrupted
from fixres_jax.data.crops import TestCrop, TrainCrop
from fixres_jax.evaluation import evaluate, hits
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.runs import recipe, subjects
from fixres_jax.studies import STUDIES, robustness
from fixres_jax.studies.study import Pair, Subject, Variant
from fixres_jax.training.train import Writing
from fixres_jax.weights import network
from fixres_jax.weights.network import Network
from test_toy_architecture import TOY
from toy import make_toy

AT = {size: transforms.make_test(size) for size in (32, 48)}
SGD = optimization(epochs=1.0, batch_size=16, trainable='head/.*', batch_norm='norm')
HOW = adapt.Adaptation(
    batch_norm='norm', statistics_images=48, prior_images=0, solver='lbfgs', weight_decays=(1e-3,), max_iterations=20,
    optimization=SGD, flip=False, copies=0, cache_dtype='float32', cache_gigabytes=1.0, sweep_images=1000,
    unseen=False,
)  # fmt: skip


@pytest.fixture(scope='module')
def subject(tiny_folder, tmp_path_factory):
    """A network at 32, adapted to 48 and, by the study itself, at 32; two corruptions at two strengths, one variant."""
    mesh = sharding.make_mesh(jax.devices()[:2])
    model = make_toy()
    before = Network(model, jax.device_put(jax.jit(model.init)(jax.random.key(0)), sharding.replicated(mesh)))
    train, test = (sources.create(tiny_folder, split) for split in ('train', 'val'))
    feed, folder = Feed(Runtime(mesh), 16, 'study'), epath.Path(tmp_path_factory.mktemp('run'))
    images = sources.Splits(train, None, test)
    after, _ = adapt.adapt(before, images, {48: AT[48]}, HOW, feed, seed=0, directory=folder / 'embeddings')[48]
    some = sources.relabelled(sources.some_classes(test, test.class_names[1:3]), test.class_names)
    return Subject(
        networks=Pair(before, after, 48, {}),
        train=train,
        held_out=None,
        test=test,
        train_resolution=32,
        resolutions=(32, 48),
        train_crop=TrainCrop(),
        test_crop=TestCrop(),
        test_transforms=lambda resolutions: {size: AT[size] for size in resolutions},
        adaptation=HOW,
        finetuning=SGD,
        feed=feed,
        seed=0,
        images=1000,
        epochs=0.0,
        runs={},
        writing=Writing(folder, 50, 0, 1, 0),
        corruptions=('contrast', 'gaussian_noise'),
        strengths=(1, 5),
        variants={'some': Variant(some, (1, 2))},
        prior_images=144,
        directory=folder,
    )


@pytest.fixture(scope='module')
def made(subject):
    numbers, arrays = STUDIES['robustness'].compute(subject)
    return json.loads(json.dumps(numbers)), arrays


def row(numbers, name):
    return next(row for row in numbers['rows'] if row['data'] == name)


def test_the_cells_are_what_an_evaluation_finds(subject, made):
    numbers, _ = made
    given_networks = {'before': subject.networks.before, 'after': subject.networks.after}
    names = {('before', 32): 'before_train', ('before', 48): 'before_test', ('after', 48): 'after_test'}
    noisy = [Corrupted(subject.test, 'gaussian_noise', strength) for strength in (1, 5)]
    for found, images in (
        (row(numbers, 'clean')['top1'], subject.test),
        *zip((row(numbers, 'gaussian_noise')['by_strength'][key] for key in '15'), noisy, strict=True),
    ):
        result = evaluate.evaluate(given_networks, images, AT, subject.feed)
        for (name, size), cell in names.items():
            assert found[cell] == pytest.approx(evaluate.find_point(result, name, size)['top1'])
    changes = row(numbers, 'clean')['differences']
    result = evaluate.evaluate(given_networks, subject.test, AT, subject.feed)
    assert changes['resolution'] == pytest.approx(evaluate.compare(result, ('before', 48), ('before', 32)))
    assert changes['adaptation'] == pytest.approx(evaluate.compare(result, ('after', 48), ('before', 48)))
    assert len(set(row(numbers, 'clean')['top1'].values())) > 2  # the networks are not all alike


def test_means_are_over_strengths_and_kinds_and_differences_add_up(made):
    numbers, arrays = made
    assert [one['data'] for one in numbers['rows']] == [
        'clean', 'contrast', 'gaussian_noise', 'mean of the corruptions', 'some'
    ]  # fmt: skip
    kinds = [row(numbers, kind) for kind in ('contrast', 'gaussian_noise')]
    mean = row(numbers, robustness.MEAN)
    for cell in robustness.CELLS:
        for kind in kinds:
            assert kind['top1'][cell] == pytest.approx(np.mean([one[cell] for one in kind['by_strength'].values()]))
        assert mean['top1'][cell] == pytest.approx(np.mean([kind['top1'][cell] for kind in kinds]))
    for one in numbers['rows']:
        change = {name: value['difference'] for name, value in one['differences'].items()}
        assert change['resolution'] + change['adaptation'] == pytest.approx(
            change['refitting'] + change['resolution_adapted']
        )
        for name, (first, second, _) in robustness.DIFFERENCES.items():
            assert change[name] == pytest.approx(one['top1'][first] - one['top1'][second])
            assert one['differences'][name]['low'] <= change[name] <= one['differences'][name]['high']
    bits = np.unpackbits(arrays['clean'], axis=1, count=row(numbers, 'clean')['count'])
    np.testing.assert_allclose(100 * bits.mean(1), list(row(numbers, 'clean')['top1'].values()))


def test_a_variant_is_scored_among_its_own_classes(subject, made):
    numbers, _ = made
    found = row(numbers, 'some')
    assert (found['count'], found['classes'], row(numbers, 'clean')['classes']) == (12, 2, 4)
    images = subject.variants['some'].source
    result = evaluate.evaluate({'before': subject.networks.before}, images, AT, subject.feed, present=(1, 2))
    point = evaluate.find_point(result, 'before', 32)
    assert found['top1']['before_train'] == pytest.approx(point['top1_among_present']) != point['top1']


def test_the_table_and_the_sentence_tell_resolution_from_adaptation(made):
    numbers, _ = made
    study = STUDIES['robustness']
    header, rows = study.table(numbers)
    assert header[1:5] == ('32, not adapted (%)', '48, not adapted (%)', '48, adapted (%)', '32, adapted (%)')
    assert rows[2][0] == 'gaussian noise' and all(len(one) == len(header) == 11 for one in rows)
    assert tables.markdown((header, rows))
    caption = study.pictures['robustness'].says(numbers)
    assert 'Trained at 32, larger is 48. 24 test images' in caption and 'the strengths 1, 5' in caption
    without = numbers | {'rows': [row(numbers, 'clean')]}
    assert 'orruption' not in study.pictures['robustness'].says(without)


def test_a_study_that_was_stopped_goes_on_from_its_parts(subject, made, tmp_path):
    numbers, _ = made
    assert not (subject.directory / robustness.PARTS).exists()
    count = len(subject.test)
    kept = {cell: np.full(count, cell == 'control') for cell in robustness.CELLS}
    files.write_arrays(tmp_path / robustness.PARTS / 'contrast-1.npz', kept)
    again, _ = STUDIES['robustness'].compute(dataclasses.replace(subject, directory=epath.Path(tmp_path)))
    again = json.loads(json.dumps(again))
    assert row(again, 'contrast')['by_strength']['1'] == {cell: 100.0 * (cell == 'control') for cell in kept}
    assert row(again, 'clean') == row(numbers, 'clean') and row(again, 'some') == row(numbers, 'some')


def test_a_network_that_was_kept_is_the_same_network(subject):
    kept = dataclasses.replace(subject.networks, after=subject.networks.before, control=subject.networks.before)
    small = dataclasses.replace(subject, networks=kept, corruptions=(), variants={})
    numbers, _ = STUDIES['robustness'].compute(small)
    change = numbers['rows'][0]['differences']
    assert change['adaptation'] == change['refitting'] == {'difference': 0.0, 'low': 0.0, 'high': 0.0}
    assert change['resolution']['low'] < change['resolution']['high']
    alike = [(np.ones(9, bool), np.ones(9, bool))] * 2  # of two networks that get the same images right
    assert robustness._difference(alike)['low'] < 0 < robustness._difference(alike)['high']


def test_hits_share_the_trunk_and_keep_the_order(subject):
    pair = subject.networks
    points = {('before', 32): pair.before, ('after', 32): pair.after, ('before', 48): pair.before}
    source = sources.subset(subject.test, np.arange(23)[::-1])  # not whole batches
    found = hits.hits(points, source, AT, subject.feed)
    assert found.keys() == points.keys()
    for (name, size), net in points.items():
        alone = hits.hits({(name, size): net}, source, AT, subject.feed)[name, size]
        np.testing.assert_array_equal(found[name, size], alone)
        logits, _ = net.apply(np.stack([AT[size](transforms.decode(source[i]['encoded'], '', i)) for i in range(23)]))
        np.testing.assert_array_equal(alone, np.argmax(logits, 1) == source.labels)
    assert hits.same(pair.before, pair.before) and not hits.same(pair.before, pair.after)


def folder_of(tmp_path, names):
    for number, name in enumerate(names):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(pattern(24, 24, number)).save(tmp_path / name / 'a.png')
    return str(tmp_path)


@pytest.mark.parametrize(
    ('names', 'labels', 'present'),
    [
        (['bee', 'ant'], [0, 1], (0, 1)),  # in the order of the folders, by the network's labels
        (['dog', 'yak'], [3], (3,)),  # a class that the network does not know is left out
        (['ant', 'bee', 'cat', 'dog'], [0, 1, 2, 3], None),
        (['3', '0', '2'], [0, 2, 3], (0, 2, 3)),  # numbers, as ImageNet-V2 has them
    ],
)
def test_labels_of_a_variant_are_the_networks(tmp_path, names, labels, present):
    classes = given.Given([pattern(8, 8)], [0], ('ant', 'bee', 'cat', 'dog'))
    run = types.SimpleNamespace(images=sources.Splits(None, None, classes))
    name, variant = subjects._variant(run, f'r={folder_of(tmp_path, names)}')
    assert name == 'r' and variant.present == present
    assert [variant.source[i]['label'] for i in range(len(variant.source))] == labels == variant.source.labels.tolist()


@pytest.mark.parametrize(
    ('spec', 'message'),
    [
        ('sketch', "analyze.variants='sketch': expected NAME=IMAGES"),
        ('a/b=x', 'expected NAME'),
        ('r={}', 'none of the 1 classes'),
    ],
)
def test_a_variant_that_cannot_be_scored_is_one_clear_line(tmp_path, spec, message):
    classes = given.Given([pattern(8, 8)], [0], ('gnu',))
    run = types.SimpleNamespace(images=sources.Splits(None, None, classes))
    with pytest.raises(UsageError, match=message):
        subjects._variant(run, spec.format(folder_of(tmp_path / 'images', ['ant', 'bee'])))


@pytest.fixture
def config(tiny_folder, toy):
    from configs import robustness as module

    c = module.get_config()
    c.data.source = str(tiny_folder)
    c.data.held_out_fraction = 0.25
    c.test.batch_size = c.finetune.batch_size = c.model.bn_group_size = 16
    c.finetune.epochs = 1.0
    c.analyze.update(corruptions=('contrast',), strengths=(1, 5))
    return c


def test_the_config_studies_a_network_that_no_recipe_has_adapted(config, tmp_path, tiny_folder):
    model = make_toy()
    about = {'architecture': 'toy', 'width': TOY.width, 'class_names': ('ant', 'bee', 'cat', 'dog'), 'trained_on': []}
    about |= {'train_resolution': 20, 'resize_ratio': 1.0, 'resize': 'short', 'interpolation': 'bilinear'}
    about |= {'mean': list(TOY.mean), 'std': list(TOY.std), 'crop': 'torchvision', 'num_classes': 4}
    names = sources.create(tiny_folder, 'val').class_names
    network.save(
        tmp_path / 'net', Network(model, jax.jit(model.init)(jax.random.key(0)), about | {'class_names': names})
    )
    config.init_from = str(tmp_path / 'net')
    with pytest.raises(UsageError, match='no adapted network, so the study adapts it: set --config.test.resolution'):
        recipe.run(config, tmp_path / 'run')
    config.test.resolution = 32
    config.analyze.variants = (f'same={tiny_folder}',)
    recipe.run(config, tmp_path / 'given')
    numbers = files.read_json(tmp_path / 'given' / 'studies' / 'robustness.json')
    assert [one['data'] for one in numbers['rows']] == ['clean', 'contrast', 'mean of the corruptions', 'same']
    assert row(numbers, 'same')['top1'] == row(numbers, 'clean')['top1']
    assert (numbers['train_resolution'], numbers['test_resolution'], numbers['prior_images']) == (20, 32, 256)
    assert (tmp_path / 'given' / 'plots' / 'robustness.svg').exists()


@pytest.mark.slow
def test_a_recipe_makes_it_for_its_report_and_its_workdir_can_be_studied(config, tmp_path):
    config.update(task='recipe')
    config.model.name = 'toy'
    config.train.update(resolution=20, epochs=2.0, batch_size=16, lr_rule='none')
    recipe.run(config, tmp_path / 'run')
    assert 'On corrupted and other images' in (tmp_path / 'run' / 'report.html').read_text()
    made = files.read_json(tmp_path / 'run' / 'studies' / 'robustness.json')
    config.update(task='analyze', init_from=str(tmp_path / 'run'))
    recipe.run(config, tmp_path / 'study')
    assert files.read_json(tmp_path / 'study' / 'studies' / 'robustness.json') == made
    report = files.read_json(tmp_path / 'run' / 'report.json')['numbers']
    cells = {'before_train': 'train_resolution', 'before_test': 'larger', 'after_test': 'adapted'}
    cells['control'] = 'adapted_at_train_resolution'
    for cell, name in cells.items():
        assert row(made, 'clean')['top1'][cell] == pytest.approx(report[name]['top1'])
