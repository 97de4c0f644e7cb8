"""An adaptation on images of some of a network's classes: it warns, and the rows of the other classes stay."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import fixres_jax
from configs import base
from fixres_jax.adaptation import adapt, classifier
from fixres_jax.core import losses, trees
from fixres_jax.core.errors import UsageError
from fixres_jax.machines import sharding
from fixres_jax.runs import recipe
from fixres_jax.training import optimizers
from fixres_jax.weights import network
from test_adapt import HOW, SGD, random_embeddings
from test_library import command

CLASSES = ['ant', 'bee', 'cat', 'dog']
pytestmark = pytest.mark.usefixtures('toy')
PRESENT, ABSENT = [1, 3], [0, 2]
WIDE = [1, 3, 4]  # the classes of `random_embeddings` among the seven of a wider network


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    monkeypatch.setattr(logging.getLogger('fixres_jax'), 'propagate', True)


@pytest.fixture(scope='module')
def few(tiny_folder, tmp_path_factory):
    """The tiny data set with two of its four classes."""
    root = tmp_path_factory.mktemp('few')
    for split in ('train', 'val'):
        (root / split).mkdir()
        for label in PRESENT:
            (root / split / CLASSES[label]).symlink_to(tiny_folder / split / CLASSES[label])
    return root


@pytest.fixture(scope='module')
def net(toy):
    return fixres_jax.random('toy', CLASSES, train_resolution=32)


@pytest.fixture(scope='module')
def saved(net, tmp_path_factory):
    net.save(tmp_path_factory.mktemp('saved') / 'network')
    return tmp_path_factory.getbasetemp() / 'saved0' / 'network'


def wide(seed=7, count=90):
    """Return the classifier of seven classes, and embeddings of three of them, as arrays and as `Embeddings`."""
    rng = np.random.default_rng(0)
    head = {'kernel': np.float32(rng.normal(size=(6, 7))), 'bias': np.float32(rng.normal(size=7))}
    values, label, data = random_embeddings(sharding.make_mesh(jax.devices()[:2]), seed=seed, count=count)
    data = dataclasses.replace(data, label=jnp.array(WIDE, jnp.int32)[data.label])
    return head, values, np.array(WIDE)[label], data


def rows_stay(before, after, absent):
    """Say whether the rows of some classes are the same to the bit, and those of the others are not."""
    kept = [
        np.array_equal(np.asarray(before[name])[..., absent], np.asarray(after[name])[..., absent]) for name in after
    ]
    present = [c for c in range(before['bias'].size) if c not in absent]
    return all(kept) and not np.isclose(np.asarray(before['bias'])[present], np.asarray(after['bias'])[present]).any()


@pytest.mark.parametrize('solver', ['lbfgs', 'sgd'])
def test_only_the_differences_between_the_classes_that_have_images_change(solver):
    """Absent rows stay to the bit; on any embedding the mean logit of the present ones stays."""
    head, values, label, data = wide()
    how = dataclasses.replace(HOW, solver=solver, weight_decays=(1e-2,), optimization=dataclasses.replace(SGD, lr=0.5))
    new, record = adapt.fit(data, None, None, head, how, seed=0)
    assert rows_stay(head, new, [0, 2, 5, 6])
    assert record['classes'] == 3 and record['classes_of_network'] == 7
    assert 'among the 3 of 7 classes that have images' in adapt.describe(record)
    anything = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    before, after = (np.asarray(classifier.logits(one, anything)) for one in (head, new))
    np.testing.assert_allclose(after[:, WIDE].mean(1), before[:, WIDE].mean(1), atol=1e-5)
    assert np.abs(after[:, WIDE] - before[:, WIDE]).max() > 0.5
    right = [
        np.array(WIDE)[np.asarray(classifier.logits(one, values))[:, WIDE].argmax(1)] == label for one in (head, new)
    ]
    assert right[1].mean() > right[0].mean() + 0.1


def test_the_fit_is_the_minimum_of_a_softmax_of_the_classes_that_have_images():
    head, values, label, data = wide()
    decay = 1e-2
    new, _ = adapt.fit(data, None, None, head, dataclasses.replace(HOW, weight_decays=(decay,)), seed=0)

    def objective(flat):
        kernel, bias = flat[:18].reshape(6, 3), flat[18:]
        z = values.astype(np.float64) @ kernel + bias
        own = z[np.arange(90), np.searchsorted(WIDE, label)]
        loss = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - own
        return loss.mean() + decay / 2 * (flat**2).sum()

    found = scipy.optimize.minimize(objective, np.zeros(21), method='BFGS').x
    own = {name: leaf[..., WIDE] - leaf[..., WIDE].mean(-1, keepdims=True) for name, leaf in new.items()}
    np.testing.assert_allclose(own['kernel'], found[:18].reshape(6, 3), atol=2e-3)
    np.testing.assert_allclose(own['bias'], found[18:], atol=2e-3)


def test_held_out_images_of_other_classes_choose_nothing():
    head, _, _, data = wide()
    _, held_values, held_label, held = wide(seed=8)
    others = dataclasses.replace(held, label=jnp.where(held.label == 4, 6, held.label))  # of 6 none is trained on
    _, record = adapt.fit(data, others, others, head, HOW, seed=0)
    kept = held_label != 4
    assert record['before']['count'] == kept.sum() < 90
    z = np.asarray(classifier.logits(head, held_values))[kept][:, WIDE]
    expected = 100 * (np.array(WIDE)[z.argmax(1)] == held_label[kept]).mean()
    assert record['before']['top1'] == pytest.approx(expected)
    nothing = dataclasses.replace(held, label=jnp.full_like(held.label, 6))
    assert adapt.fit(data, nothing, nothing, head, HOW, seed=0)[1]['chosen_on'] is None


def test_where_the_old_network_is_kept_so_are_all_of_its_rows():
    head, _, _, data = wide()
    best, _ = adapt.fit(data, None, None, head, dataclasses.replace(HOW, weight_decays=(0.0,)), seed=0)
    how = dataclasses.replace(HOW, weight_decays=(10.0,))
    assert adapt.fit(data, data, data, best, how, seed=0)[0] is best


@pytest.mark.parametrize('loss', ['cross_entropy', 'bce'])
def test_an_objective_of_some_classes_is_that_of_a_network_of_these_alone(loss):
    rng = np.random.default_rng(0)
    logits, label, other = np.float32(rng.normal(size=(8, 7))), rng.choice(WIDE, 8), rng.choice(WIDE, 8)
    batch = {'label': label, 'other': other, 'share': np.float32(rng.random(8))}
    narrow = batch | {name: np.searchsorted(WIDE, batch[name]) for name in ('label', 'other')}
    one = losses.Objective(loss, 0.1, classes=tuple(WIDE))
    np.testing.assert_allclose(one(logits, batch), losses.Objective(loss, 0.1)(logits[:, WIDE], narrow), rtol=1e-6)


def test_steps_of_some_classes_move_their_rows_against_each_other():
    rng = np.random.default_rng(0)
    kernel, bias = np.float32(rng.normal(size=(6, 7))), np.float32(rng.normal(size=7))
    updates = {'fc': {'kernel': kernel, 'bias': bias}, 'body': {'kernel': np.ones(3, np.float32)}}
    moved, _ = optimizers.among('fc', WIDE).update(updates, None)
    assert (
        not np.asarray(moved['fc']['bias'])[[0, 2, 5, 6]].any() and moved['body']['kernel'] is updates['body']['kernel']
    )
    for name, leaf in moved['fc'].items():
        rows = updates['fc'][name][..., WIDE]
        np.testing.assert_allclose(leaf[..., WIDE], rows - rows.mean(-1, keepdims=True), atol=1e-6)


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if 'published method' in r.getMessage()]


def test_the_library_warns_once_and_keeps_the_rows(net, few, caplog):
    adapted = fixres_jax.adapt(net, few, 48, held_out=0.25, unseen=True, weight_decays=(1e-2,))
    (said,) = warnings_of(caplog)
    assert "are of 2 of the network's 4 classes" in said and 'the rows of the other 2 stay' in said and '\n' not in said
    assert rows_stay(net.head, adapted.head, ABSENT)
    assert 'among the 2 of 4 classes that have images' in repr(adapted)
    table = fixres_jax.evaluate({'before': net, 'after': adapted}, few, resolutions=(48,))
    assert table.rows[1]['top1_among_present'] > table.rows[0]['top1_among_present']


def test_images_of_all_classes_or_a_fresh_classifier_warn_of_nothing(net, few, tiny_folder, caplog):
    how = {'held_out': 0, 'solver': 'lbfgs', 'weight_decays': (1e-2,)}
    whole, fresh = fixres_jax.adapt(net, tiny_folder, 48, **how), fixres_jax.adapt(net, few, 48, **how, reset_head=True)
    assert not warnings_of(caplog) and fresh.model.num_classes == 2
    assert 'classes' not in whole.record and not rows_stay(net.head, whole.head, ABSENT)


def test_statistics_alone_can_be_adapted_from_images_of_any_classes(net, few, caplog):
    """Even of one, and of fewer images than there are classes."""
    for data in (few, (np.zeros((3, 40, 40, 3), np.uint8), [1, 1, 1])):
        adapted = fixres_jax.adapt(net, data, 48, held_out=0, solver='none')
        before, after = (trees.flatten(one.variables) for one in (net, adapted))
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        assert changed == {'batch_stats/norm/mean', 'batch_stats/norm/var'}
        assert 'the old one, under the new statistics' in repr(adapted)
    for classes, said in zip((2, 1), warnings_of(caplog), strict=True):
        assert f"are of {classes} of the network's 4 classes" in said and 'can cost accuracy on all 4' in said
        assert 'rows' not in said and 'reset_head' not in said


def test_statistics_alone_are_chosen_or_not_on_held_out_images(net, tiny_folder):
    adapted = fixres_jax.adapt(net, tiny_folder, 48, held_out=0.25, unseen=True, solver='none')
    record = adapted.record
    assert record['chosen'] is None and len(record['candidates']) == 2
    assert record['kept_old'] == (record['after'] == record['before'])


def test_too_few_images_for_their_classes_are_refused(net):
    with pytest.raises(UsageError, match='3 training images are fewer than the 4 .* for the 2 that they are of'):
        fixres_jax.adapt(net, (np.zeros((3, 40, 40, 3), np.uint8), [1, 1, 3]), 48, held_out=0)


def test_the_command_warns_and_keeps_the_rows(net, saved, few, tmp_path, capfd):
    out = tmp_path / 'out.safetensors'
    options = ('--resolution', 48, '--held-out', 0.25, '--unseen', '--out', out)
    assert command('adapt', saved, few, *options) == 0
    captured = capfd.readouterr()
    assert "are of 2 of the network's 4 classes" in captured.out + captured.err
    assert rows_stay(net.head, fixres_jax.load(out).head, ABSENT)
    out = tmp_path / 'statistics.safetensors'
    assert command('adapt', saved, few, *options[:-1], out, '--solver', 'none') == 0
    captured = capfd.readouterr()
    assert 'compare the adapted network with the one before' in captured.out + captured.err
    for name, leaf in fixres_jax.load(out).head.items():
        np.testing.assert_array_equal(leaf, net.head[name])


@pytest.mark.parametrize('task', ['adapt', 'finetune'])
def test_a_run_warns_and_keeps_the_rows(task, net, saved, few, tmp_path, caplog):
    c = base.get_config()
    c.update(task=task, init_from=str(saved), validate_every_epochs=0.0)
    c.model.bn_group_size = 8
    c.data.update(source=str(few), held_out_fraction=0.0)
    c.adapt.update(solver='lbfgs', weight_decays=(1e-2,))
    c.finetune.update(epochs=4.0, batch_size=8, lr=0.5, lr_rule='none', weight_decay=1e-2)
    c.test.update(resolution=48, batch_size=8)
    recipe.run(c, tmp_path / 'run')
    assert len(warnings_of(caplog)) == 1
    after = network.load(tmp_path / 'run')
    assert rows_stay(net.head, after.head, ABSENT)
    for name, leaf in after.head.items():
        old = np.asarray(net.head[name])
        np.testing.assert_allclose(leaf[..., PRESENT].mean(-1), old[..., PRESENT].mean(-1), atol=1e-6)
    if task == 'adapt':
        assert json.loads((tmp_path / 'run' / 'adapt.json').read_text())['classes'] == 2
