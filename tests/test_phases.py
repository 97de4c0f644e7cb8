"""The phases of a recipe in one process: which images each of them reads, and what the test resolution is chosen on."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from configs import base
from fixres_jax.core import trees
from fixres_jax.data.sources import Splits
from fixres_jax.evaluation import evaluate
from fixres_jax.machines import sharding
from fixres_jax.runs import one_pass, phases, settings, subjects
from fixres_jax.runs.run import open_run


class Watched:
    """A source that keeps the names of the images that are read from it."""

    def __init__(self, source):
        self._source, self.read = source, set()

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        record = self._source[index]
        self.read.add(record['name'])
        return record


SPLITS = ('train', 'held_out', 'test')


def names(source):
    return {source.name(index) for index in range(len(source))}


def with_settings(run, section='', **fields):
    """Return a run with other values in its config, or in a section of it."""
    s = run.settings
    if section:
        fields = {section: dataclasses.replace(getattr(s, section), **fields)}
    return dataclasses.replace(run, settings=dataclasses.replace(s, **fields))


def read_by(run):
    """Return the names of the images that each split gave since the last call."""
    found = {split: getattr(run.images, split).read.copy() for split in SPLITS}
    for split in SPLITS:
        getattr(run.images, split).read.clear()
    return found


@pytest.fixture(scope='module')
def recipe(tiny_folder, tmp_path_factory):
    """A run of the recipe that has trained, and which images the training read."""
    c = base.get_config()
    c.validate_every_epochs = 0.0  # which looks at held-out images and decides nothing
    c.model.update(name='resnet18', width=8, bn_group_size=16)
    c.data.update(source=str(tiny_folder), held_out_fraction=0.25)
    c.train.update(resolution=40, epochs=4.0, batch_size=16, lr=0.1, lr_rule='none', schedule='cosine')
    c.test.update(resolutions=(32, 48, 56), batch_size=16)
    c.adapt.update(weight_decays=(1e-4,), max_iterations=200)
    made = open_run(settings.read(c), epath.Path(tmp_path_factory.mktemp('recipe')))
    images = Splits(**{split: Watched(getattr(made.images, split)) for split in SPLITS})
    runtime = dataclasses.replace(made.runtime, mesh=sharding.make_mesh(jax.devices()[:1]))
    made = dataclasses.replace(made, images=images, runtime=runtime)
    phases.train_phase(made, {})
    return made, read_by(made)


@pytest.fixture(scope='module')
def sweep(recipe):
    """The result of the sweep, and which images it read."""
    return phases.sweep_phase(recipe[0], {}), read_by(recipe[0])


def test_the_parts_of_the_data_share_no_image(recipe, tiny_folder):
    parts = [names(getattr(recipe[0].images, split)) for split in SPLITS]
    assert min(map(len, parts)) >= 8  # none is empty
    files = {str(path) for path in tiny_folder.rglob('*.jpg')}
    assert set.union(*parts) == files and sum(map(len, parts)) == len(files)


def test_each_phase_reads_the_images_that_it_may(recipe, sweep):
    """Training does not see what chooses, choosing does not see what tests."""
    run, training = recipe
    assert training == {'train': names(run.images.train), 'held_out': set(), 'test': set()}
    result, read = sweep
    assert read == {
        'train': names(run.images.train), 'held_out': names(run.images.held_out), 'test': set()
    }  # fmt: skip
    results = {'train': {}, 'sweep': result}
    read_by(run)
    phases.adapt_phase(run, results)
    assert not read_by(run)['test']
    phases.evaluate_phase(run, results)
    assert read_by(run) == {'train': set(), 'held_out': set(), 'test': names(run.images.test)}


def test_the_sweep_chooses_by_what_follows_adaptation(recipe, sweep):
    result, _ = sweep
    run, count = recipe[0], len(recipe[0].images.train)
    assert result['count'] == len(run.images.held_out) and result['images_used'] == count
    after = {p['resolution']: p for p in result['points'] if p['network'] == 'after'}
    assert after.keys() == {32, 48, 56}
    allowed = {size: point for size, point in after.items() if size >= 40}
    best = max(point['top1'] for point in allowed.values())
    assert allowed[result['test_resolution']]['top1'] == best
    for size, record in result['adaptations'].items():
        assert record['images'] == count
        assert after[int(size)]['top1'] == record['after']['top1'] >= record['before']['top1']


def test_what_the_sweep_keeps_are_the_networks_that_it_scored(recipe, sweep):
    run, (result, _) = recipe[0], sweep
    before = run.network('train')
    own = subjects.adapted_in_sweep(run, run.workdir, before)
    assert own.keys() == {32, 48, 56}
    scores = {(p['network'], p['resolution']): p['top1'] for p in result['points']}
    for size, network in own.items():
        networks = {'before': before, 'after': network}
        found = evaluate.evaluate(networks, run.images.held_out, run.test_transforms((size,)), run.feed('check'))
        for point in found['points']:
            assert point['top1'] == pytest.approx(scores[point['network'], size])
        new, old = trees.flatten(network.variables), trees.flatten(before.variables)
        changed = {name for name in old if not np.array_equal(new[name], old[name])}
        layer = 'batch_stats/layer4/1/bn2'
        assert changed in (set(), {f'{layer}/mean', f'{layer}/var', 'params/fc/kernel', 'params/fc/bias'})
    assert result['images_seen'] == sum(record['images_seen'] for record in result['adaptations'].values())


def test_the_sweep_takes_no_more_images_than_it_may(recipe):
    run = recipe[0]
    count = len(run.images.train)
    assert one_pass.compared(with_settings(run, 'adapt', sweep_images=count)) is run.images.train
    few = with_settings(run, 'adapt', sweep_images=count - 1)
    picked = [one_pass.compared(with_settings(few, seed=seed)).indices for seed in (0, 0, 1)]
    assert [len(indices) for indices in picked] == [count - 1] * 3
    assert all((np.diff(indices) > 0).all() and indices[-1] < count for indices in picked)
    np.testing.assert_array_equal(picked[0], picked[1])
    assert not np.array_equal(picked[0], picked[2])


def test_a_resolution_that_is_given_is_taken_and_reads_nothing(recipe):
    run = with_settings(recipe[0], 'test', resolution=72)
    read_by(run)  # what the tests before this one have read
    assert phases.sweep_phase(run, {}) == {'test_resolution': 72, 'chosen_on': 'given'}
    assert not any(read_by(run).values())


def test_a_recipe_that_fine_tunes_chooses_by_the_network_as_it_is(recipe, sweep):
    run = with_settings(recipe[0], adaptation='finetune')
    read_by(run)
    result = phases.sweep_phase(run, {})
    before = {p['resolution']: p['top1'] for p in sweep[0]['points'] if p['network'] == 'before'}
    assert {p['resolution']: p['top1'] for p in result['points']} == pytest.approx(before)
    assert result['test_resolution'] == max((48, 56), key=lambda size: before[size]) or before[48] == before[56]
    read = read_by(run)
    assert read['held_out'] == names(run.images.held_out) and not read['train'] | read['test']
    unseen = {True: 'held-out training images', False: 'training images that the trunk may have seen'}
    assert result['chosen_on'] == unseen[run.adaptation.unseen] == sweep[0]['chosen_on'] == unseen[True]
    seen = dataclasses.replace(run, adaptation=dataclasses.replace(run.adaptation, unseen=False))
    assert phases.sweep_phase(seen, {})['chosen_on'] == unseen[False]


def test_the_sweep_makes_no_copies_and_the_adaptation_those_of_the_config(recipe, sweep):
    run = dataclasses.replace(recipe[0], adaptation=dataclasses.replace(recipe[0].adaptation, copies=2))
    assert phases._adapted_sweep(run)['images_seen'] == sweep[0]['images_seen']
    record = phases.adapt_phase(run, {'train': {}, 'sweep': {'test_resolution': 48}})
    batches = -(-2 * len(run.images.train) // 16)
    assert record['images_seen'] == sweep[0]['adaptations']['48']['images_seen'] + 16 * batches


def test_the_sweep_fits_no_classifier_to_the_held_out_images(recipe):
    """Held-out images under wrong labels: a classifier fitted to those would get them right."""
    run, _ = recipe
    relabelled = dataclasses.replace(run.images.held_out._source, new_labels=np.array([1, 2, 3, 0], np.int32))
    adaptation = dataclasses.replace(run.adaptation, unseen=False, weight_decays=(0.0,))  # nothing is chosen
    run = dataclasses.replace(run, adaptation=adaptation)
    misled = dataclasses.replace(run, images=dataclasses.replace(run.images, held_out=relabelled))
    honest, misled = (phases._adapted_sweep(part) for part in (run, misled))
    right, wrong = ([p['top1'] for p in found['points'] if p['network'] == 'after'] for found in (honest, misled))
    assert np.mean(right) > 50 and max(wrong) < 40


def points(**curves):
    """Return a sweep's result of networks and their {resolution: (top1, loss)}, in the order of a sweep."""
    return {
        'points': [
            {'network': network, 'resolution': size, 'top1': curve[size][0], 'loss': curve[size][1]}
            for size in curves['before']
            for network, curve in curves.items()
        ]
    }


@pytest.mark.parametrize(
    ('curves', 'chosen'),
    [
        ({'before': {128: (70, 1.0), 160: (75, 0.9), 192: (71, 1.0)}}, 160),
        # The adapted curve decides, where there is one.
        (
            {'before': {128: (70, 1), 160: (75, 1), 192: (71, 1)}, 'after': {128: (70, 1), 160: (76, 1), 192: (79, 1)}},
            192,
        ),
        # No resolution below the training one, however good.
        ({'before': {96: (90, 0.1), 128: (70, 1.0), 160: (69, 0.9)}}, 128),
        ({'before': {96: (90, 0.1), 112: (95, 0.1), 160: (69, 0.9)}}, 160),
        # Of equal counts, the lower cross entropy.
        ({'before': {128: (70, 1.0), 160: (75, 0.9), 192: (75, 0.8), 224: (75, 0.85)}}, 192),
        ({'before': {128: (75, 0.8), 160: (75, 0.9)}}, 128),
    ],
)
def test_the_resolution_is_the_best_of_those_at_least_as_large_as_in_training(curves, chosen):
    assert one_pass.choose_resolution(points(**curves), 128) == chosen
