"""The phases of a recipe in one process: which images each of them reads, and what the test resolution is chosen on."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from configs import base
from fixres_jax import phases, plan


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


SPLITS = ('train_source', 'held_out', 'test_source')


def names(source):
    return {source.name(index) for index in range(len(source))}


def read_by(run):
    """Return the names of the images that each split gave since the last call."""
    found = {split: getattr(run, split).read.copy() for split in SPLITS}
    for split in SPLITS:
        getattr(run, split).read.clear()
    return found


@pytest.fixture(scope='module')
def recipe(tiny_folder, tmp_path_factory):
    """The plan of a recipe that has trained, and which images the training read."""
    c = base.get_config()
    c.model.update(name='resnet18', width=8, bn_group_size=16)
    c.data.update(source=str(tiny_folder), held_out_fraction=0.25)
    c.train.update(resolution=40, epochs=4.0, batch_size=16, lr=0.1, lr_rule='none', schedule='cosine')
    c.test.update(resolutions=(32, 48, 56), batch_size=16)
    c.adapt.update(weight_decays=(1e-4,), max_iterations=200)
    made = plan.make(c, epath.Path(tmp_path_factory.mktemp('recipe')))
    made = dataclasses.replace(made, **{split: Watched(getattr(made, split)) for split in SPLITS})
    made = dataclasses.replace(made, mesh=plan.sharding.make_mesh(jax.devices()[:1]))
    phases.train_phase(made, {})
    return made, read_by(made)


@pytest.fixture(scope='module')
def sweep(recipe):
    """The result of the sweep, and which images it read."""
    return phases.sweep_phase(recipe[0], {}), read_by(recipe[0])


def test_the_parts_of_the_data_share_no_image(recipe, tiny_folder):
    parts = [names(getattr(recipe[0], split)) for split in SPLITS]
    assert min(map(len, parts)) >= 8  # none is empty
    files = {str(path) for path in tiny_folder.rglob('*.jpg')}
    assert set.union(*parts) == files and sum(map(len, parts)) == len(files)


def test_each_phase_reads_the_images_that_it_may(recipe, sweep):
    """Training does not see what chooses, choosing does not see what tests."""
    run, training = recipe
    assert training == {'train_source': names(run.train_source), 'held_out': set(), 'test_source': set()}
    result, read = sweep
    assert read == {
        'train_source': names(run.train_source), 'held_out': names(run.held_out), 'test_source': set()
    }  # fmt: skip
    results = {'train': {}, 'sweep': result}
    phases.adapt_phase(run, results)
    assert not read_by(run)['test_source']
    phases.evaluate_phase(run, results)
    assert read_by(run) == {'train_source': set(), 'held_out': set(), 'test_source': names(run.test_source)}


def test_the_sweep_chooses_by_what_follows_adaptation(recipe, sweep):
    result, _ = sweep
    run, count = recipe[0], len(recipe[0].train_source)
    assert result['count'] == len(run.held_out) and result['images_used'] == count
    after = {p['resolution']: p for p in result['points'] if p['network'] == 'after'}
    assert after.keys() == {32, 48, 56}
    allowed = {size: point for size, point in after.items() if size >= 40}
    best = max(point['top1'] for point in allowed.values())
    assert allowed[result['test_resolution']]['top1'] == best
    for size, record in result['adaptations'].items():
        assert record['images'] == count
        assert after[int(size)]['top1'] == record['after']['top1'] >= record['before']['top1']


def test_the_sweep_fits_no_classifier_to_the_held_out_images(recipe):
    """Held-out images under wrong labels: a classifier fitted to those would get them right."""
    run, _ = recipe
    relabelled = dataclasses.replace(run.held_out._source, new_labels=np.array([1, 2, 3, 0], np.int32))
    adapting = dataclasses.replace(run.adapting, unseen=False, weight_decays=(0.0,))  # nothing is chosen
    run = dataclasses.replace(run, adapting=adapting)
    honest, misled = (phases._adapted_sweep(part) for part in (run, dataclasses.replace(run, held_out=relabelled)))
    right, wrong = ([p['top1'] for p in found['points'] if p['network'] == 'after'] for found in (honest, misled))
    assert np.mean(right) > 50 and max(wrong) < 40


def points(**curves):
    """Return a sweep's result of networks and their {resolution: (top1, loss)}."""
    return {
        'points': [
            {'network': network, 'resolution': size, 'top1': top1, 'loss': loss}
            for network, curve in curves.items()
            for size, (top1, loss) in curve.items()
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
    assert phases.choose_resolution(points(**curves), 128) == chosen
