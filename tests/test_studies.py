"""Studies: what they count is what the networks do, and their figures need nothing but the saved numbers."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from defaults import optimization
from fixres_jax import models, studies
from fixres_jax.adaptation import adapt
from fixres_jax.core.files import write_arrays, write_json
from fixres_jax.data import sources, transforms
from fixres_jax.data.sources import Splits
from fixres_jax.evaluation import evaluate
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, Runtime
from fixres_jax.studies import ablation, advice, grid, robustness, sizes
from fixres_jax.studies.study import Pair, Subject
from fixres_jax.training.train import Writing
from fixres_jax.weights.network import Network

LAYER = 'layer4/1/bn2'
SGD = optimization(
    epochs=1.0, batch_size=16, accumulate_steps=1, lr=0.05, lr_rule='none', schedule='cosine', decay_every_epochs=1.0,
    warmup_epochs=0.0, momentum=0.9, weight_decay=1e-4, label_smoothing=0.0, trainable='fc/.*', batch_norm=LAYER,
    repeats=1,
)  # fmt: skip
HOW = adapt.Adaptation(
    batch_norm=LAYER, statistics_images=48, prior_images=0, solver='lbfgs', weight_decays=(1e-3,),
    max_iterations=30, optimization=SGD, flip=False, copies=0, cache_dtype='float32', cache_gigabytes=1.0,
    sweep_images=1000, unseen=True,
)  # fmt: skip
AT = {size: transforms.make_test(size) for size in (32, 48)}


@pytest.fixture(scope='module')
def subject(tiny_folder, tmp_path_factory):
    """What studies look at: a network trained at 32 by name, and its adaptation to 48."""
    mesh = sharding.make_mesh(jax.devices()[:2])
    model = models.create('resnet18', 4, width=8)
    variables = jax.jit(lambda: model.init(jax.random.key(0)))()
    before = Network(model, jax.device_put(variables, sharding.replicated(mesh)))
    train, test = (sources.create(tiny_folder, split) for split in ('train', 'val'))
    feed, folder = Feed(Runtime(mesh), 24, 'study'), epath.Path(tmp_path_factory.mktemp('embeddings'))
    after, _ = adapt.adapt(before, Splits(train, test, test), {48: AT[48]}, HOW, feed, seed=0, directory=folder)[48]
    return Subject(
        networks=Pair(before, after, 48, own={32: before}),
        train=train,
        held_out=test,
        test=test,
        train_resolution=32,
        resolutions=(32, 48),
        train_crop=sizes.TrainCrop(),
        test_crop=sizes.TestCrop(),
        test_transforms=lambda resolutions: {size: AT[size] for size in resolutions},
        adaptation=HOW,
        finetuning=SGD,
        feed=feed,
        seed=0,
        images=1000,
        epochs=0.0,
        runs={},
        writing=Writing(folder, 50, 0, 1, 0),
    )


def test_ablation_agrees_with_evaluation(subject):
    numbers, arrays = studies.STUDIES['ablation'].compute(subject)
    networks = {'nothing': subject.networks.before, 'statistics and classifier': subject.networks.after}
    result = evaluate.evaluate(networks, subject.test, {48: AT[48]}, subject.feed)
    rows = {row['part']: row for row in numbers['rows']}
    assert list(rows) == ['nothing', 'equalization', 'statistics', 'classifier', 'statistics and classifier']
    for name in networks:
        point = evaluate.find_point(result, name, 48)
        assert rows[name]['top1'] == pytest.approx(point['top1'])
        assert rows[name]['loss'] == pytest.approx(point['loss'], rel=1e-4)
    expected = evaluate.compare(result, ('statistics and classifier', 48), ('nothing', 48))
    assert rows['statistics and classifier']['minus_nothing'] == pytest.approx(expected)
    changed = numbers['examples']
    gain = changed['num_gained'] - changed['num_lost']
    assert gain == round(expected['difference'] * 24 / 100)
    assert len(arrays['gained']) == len(changed['gained']) == min(8, changed['num_gained'])


def test_examples_name_classes_that_only_the_network_has(subject):
    """A network of more classes than the data may take an image for one that has no name."""
    source = subject.test
    labels = np.asarray(source.labels)
    right = np.float32(np.eye(6)[labels])
    wrong = np.float32(np.eye(6)[np.full(len(labels), 5)])
    numbers, arrays = ablation._examples(source, labels, wrong, right)
    assert numbers['num_gained'] == len(labels) and numbers['num_lost'] == 0
    assert {example['before'] for example in numbers['gained']} == {'class 5'}
    assert all(example['after'] == example['label'] in source.class_names for example in numbers['gained'])
    assert arrays['gained'].shape == (8, 128, 128, 3)


def test_activations_are_those_of_the_embeddings(subject):
    numbers, arrays = studies.STUDIES['activations'].compute(subject)
    assert {(row['resolution'], row['network']) for row in numbers['rows']} == {
        (size, network) for size in (32, 48) for network in ('before', 'after')
    }
    np.testing.assert_allclose(arrays['32_before'], arrays['32_after'], rtol=1e-5)  # nothing was changed there
    assert not np.allclose(arrays['48_before'], arrays['48_after'])
    for name, values in arrays.items():
        assert (np.diff(values) >= 0).all(), name


def test_regions_come_with_their_closed_form(subject):
    numbers, arrays = studies.STUDIES['regions'].compute(dataclasses.replace(subject, networks=None))
    assert numbers['images'] == 48
    assert numbers['closed_form']['mean'] == pytest.approx(0.809, abs=1e-3)
    assert numbers['apparent_size']['mean'] == pytest.approx(0.8, abs=0.06)
    widths = np.diff(arrays['edges'])
    assert (arrays['train'] * widths).sum() == pytest.approx(1)


def test_the_cost_of_a_size_is_that_of_its_pixels(subject):
    numbers, _ = studies.STUDIES['cost'].compute(subject)
    small, large = numbers['rows']
    assert (small['resolution'], large['resolution'], numbers['batch_size']) == (32, 48, 24)
    assert large['gflop'] / small['gflop'] == pytest.approx((48 / 32) ** 2, rel=0.6)  # the borders are padding
    assert small['gflop'] * 1e9 == advice.flops(subject.networks.before.model, (32,))[32] > 1e6
    assert small['milliseconds'] > 0
    header, rows = studies.STUDIES['cost'].table(numbers)
    assert '2 per multiply-add' in header[1] and '(1.00 of that at 32)' in rows[0][1]


def test_figures_need_only_what_is_saved(tmp_path):
    rng = np.random.default_rng(0)
    change = {'difference': 1.0, 'low': 0.5, 'high': 1.5}
    example = {'name': 'a.jpg', 'label': 'ant', 'before': 'bee', 'after': 'ant'}
    point = {f'{name}_{kind}': 50.0 for name in ('top1', 'low', 'high') for kind in ('before', 'after')}
    spread = {'mean': 0.8, 'std': 0.1}
    saved = {
        'regions': (
            {'images': 5, 'train_area': spread, 'test_area': spread, 'apparent_size': spread, 'closed_form': spread},
            {'edges': np.linspace(0, 1, 5), 'train': np.ones(4), 'test': np.array([0, 0, 4, 0])},
        ),
        'activations': (
            {'rows': [{'resolution': 32, 'network': name, 'near_zero': 0.1} for name in ('before', 'after')]},
            {'shares': np.linspace(0, 1, 9), '32_before': np.arange(9.0), '32_after': np.arange(9.0)},
        ),
        'ablation': (
            {
                'count': 9, 'test_resolution': 48,
                'rows': [{'part': part, 'minus_nothing': change} for part in ('nothing', 'classifier')],
                'examples': {'gained': [example] * 5, 'num_gained': 6, 'lost': [], 'num_lost': 0},
            },
            {'gained': rng.integers(0, 256, (5, 8, 8, 3), np.uint8), 'lost': np.zeros((0, 8, 8, 3), np.uint8)},
        ),
        'cost': (
            {
                'model': 'resnet18', 'devices': '1 x cpu', 'batch_size': 2, 'train_resolution': 32,
                'rows': [{'resolution': r, 'gflop': r, 'milliseconds': r} for r in (32, 48)],
            },
            {},
        ),
        'robustness': (
            {
                'train_resolution': 32, 'test_resolution': 48, 'strengths': [1, 3], 'prior_images': 9,
                'rows': [
                    {
                        'data': data, 'count': 9, 'top1': dict.fromkeys(robustness.CELLS, 50.0),
                        'differences': dict.fromkeys(robustness.DIFFERENCES, change),
                    }
                    for data in ('clean', 'gaussian_noise', robustness.MEAN)
                ],
            },
            {},
        ),
        'grid': (
            {
                'rows': [
                    {'train_resolution': 32, 'curve': [point | {'resolution': r, 'milliseconds': r} for r in (32, 48)]}
                ]
            },
            {},
        ),
    }  # fmt: skip
    assert saved.keys() == studies.STUDIES.keys()
    for name, (numbers, arrays) in saved.items():
        write_json(tmp_path / 'studies' / f'{name}.json', json.loads(json.dumps(numbers)))
        write_arrays(tmp_path / 'studies' / f'{name}.npz', arrays)
        studies.draw(epath.Path(tmp_path), name)
    drawn = {path.stem for path in (tmp_path / 'plots').iterdir()}
    assert drawn == {'regions', 'activations', 'ablation', 'examples', 'cost', 'robustness', 'grid', 'frontier'}


def test_the_frontier_holds_what_no_other_run_beats_in_time_and_accuracy():
    def point(resolution, milliseconds, before, own):
        return {
            'resolution': resolution, 'milliseconds': milliseconds,
            'top1_before': before, 'low_before': before - 1, 'high_before': before + 1,
            'top1_own': own, 'low_own': own - 1, 'high_own': own + 1,
        }  # fmt: skip

    rows = [
        {'train_resolution': 96, 'curve': [point(96, 1.0, 80.0, 80.5), point(128, 2.0, 82.0, 83.0)]},
        {
            'train_resolution': 128,
            'curve': [point(96, 1.1, 79.0, 81.0), point(128, 1.9, 82.5, 82.5), point(64, 2.0, 82.5, 82.9)],
        },
    ]
    found = grid.frontier(rows)
    sizes = {
        kind: [(point['train_resolution'], point['resolution']) for point in points] for kind, points in found.items()
    }
    assert sizes == {'not adapted': [(96, 96), (128, 128)], 'adapted': [(96, 96), (128, 96), (128, 128), (96, 128)]}
    _, lines = grid.STUDY.table({'rows': rows})
    assert lines[1] == ('1.10', '96 → 96: 80.00 (79.00 to 81.00)', '128 → 96: 81.00 (80.00 to 82.00)')
    assert lines[-1] == ('2.00', '128 → 128: 82.50 (81.50 to 83.50)', '96 → 128: 83.00 (82.00 to 84.00)')
    del rows[0]['curve'][0]['milliseconds']
    assert grid.frontier(rows)['not adapted'][0]['train_resolution'] == 128
