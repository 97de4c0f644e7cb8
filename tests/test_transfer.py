"""The whole transfer: a given network with a fresh classifier, trained, adapted, reported beside published figures."""

import json

import numpy as np
import pytest

import fixres_jax
from configs import transfer
from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.runs import recipe
from fixres_jax.weights import network
from test_data_lists import write
from test_toy_architecture import TOY

CLASSES = ('Royal-Gala', 'Kiwi', 'Leek', 'Soy-Milk')
COUNTS = {'train': (14, 10, 12, 12), 'val': (4, 0, 4, 4), 'test': (9, 3, 0, 5)}  # no leek to be tested on


@pytest.fixture
def groceries(tmp_path):
    """A small Grocery Store Dataset, as it is given out."""
    lines = {
        split: [f'{split}/{name}/{name}_{n:03}.jpg, {c}, 0' for c, name in enumerate(CLASSES) for n in range(counts[c])]
        for split, counts in COUNTS.items()
    }
    names = ''.join(f'{name},{number},Coarse,0\n' for number, name in enumerate(CLASSES))
    lists = {f'{split}.txt': '\n'.join(rows) for split, rows in lines.items()} | {
        'classes.csv': f'Name,ID,C,D\n{names}'
    }
    return write(tmp_path / 'data', lists, [row.split(',')[0] for rows in lines.values() for row in rows])


@pytest.mark.slow
def test_a_transfer_from_beginning_to_end(groceries, tmp_path, monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, 'toy', TOY)
    given = fixres_jax.random('toy', ['n01440764', 'n01443537'], train_resolution=32)
    given.save(tmp_path / 'given.safetensors')  # without a record of its training, as the weights of others
    weights = fixres_jax.load('toy', tmp_path / 'given.safetensors')
    weights.save(tmp_path / 'given')
    c = transfer.get_config('grocery')
    c.update(init_from=str(tmp_path / 'given'), validate_every_epochs=0.0)
    c.model.update(name='toy', num_classes=4, bn_group_size=8)
    c.data.update(source=str(groceries), held_out_fraction=0.25)
    c.train.update(resolution=20, epochs=2.0, batch_size=16)
    c.test.update(resolutions=(20, 28), batch_size=16)
    c.adapt.update(weight_decays=(1e-3, 1e-1), max_iterations=20)
    recipe.run(c, tmp_path / 'run')
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert list(report['numbers']) == ['train_resolution', 'larger', 'adapted', 'adapted_at_train_resolution']
    assert report['published']['baseline'] == 86.04 and report['images']['test'] == 17
    for point in report['numbers'].values():
        assert point['classes'] == 3 and 0 <= point['mean_per_class'] <= 100
    assert report['adaptation']['chosen_on'] == 'held-out training images'
    trained = network.load(tmp_path / 'run' / 'train')
    assert trained.about['class_names'] == list(CLASSES) and trained.about['trained_on'][0] is None
    before, after = (trees.flatten(one.variables) for one in (weights, trained))
    moved = {
        name
        for name in before
        if before[name].shape == after[name].shape and not np.array_equal(before[name], after[name])
    }
    assert 'params/begin/kernel' in moved and 'params/middle/kernel' in moved  # the whole network
    for page in ('report.md', 'report.html'):
        text = (tmp_path / 'run' / page).read_text()
        assert 'Published figures' in text and '86.04' in text and 'Antioquia' in text and 'not published' in text
