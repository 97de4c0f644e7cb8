"""Images are held out only from a network that has not seen them, and labels mean what the network's outputs mean."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from configs import base
from fixres_jax.core.errors import UsageError
from fixres_jax.runs import phases, provenance, recipe, settings
from fixres_jax.runs.run import open_run
from fixres_jax.weights import checkpoint
from toy import make_toy

CLASSES = ['ant', 'bee', 'cat', 'dog']
pytestmark = pytest.mark.usefixtures('toy')


@pytest.fixture
def data(tmp_path, tiny_folder):
    """A copy of the tiny data set, to change."""
    return epath.Path(shutil.copytree(tiny_folder, tmp_path / 'data'))


@pytest.fixture
def config(data):
    c = base.get_config()
    c.validate_every_epochs = 0.0  # a program less to compile
    c.model.update(name='toy', bn_group_size=16)
    c.data.update(source=str(data), held_out_fraction=0.25)
    c.train.update(resolution=32, batch_size=16, epochs=1.0)
    c.finetune.update(epochs=1.0, batch_size=16)
    c.adapt.update(weight_decays=(0.001, 0.01), max_iterations=3)
    c.test.update(resolution=48, resolutions=(32, 48), batch_size=16)
    return c


def draw(model):
    return jax.device_get(jax.jit(lambda: model.init(jax.random.key(0)))())


@pytest.fixture(scope='module')
def variables():
    return draw(make_toy(4))


def copy(config, **fields):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({name.replace('__', '.'): value for name, value in fields.items()})
    return config


def make(config, folder='plan'):
    return open_run(settings.read(config), epath.Path(config.data.source).parent / folder)


def trained(config, variables, folder):
    """Leave the network that a run of this config would have trained, and return where; and the names it has seen."""
    made = make(copy(config, task='train'))
    directory = epath.Path(config.data.source).parent / folder
    checkpoint.save_model(directory, variables, made.start.about)
    return str(directory), names(made.images.train)


def names(source):
    return {source.name(index) for index in range(len(source))}


def adapting(config, network, caplog):
    """Return the plan of an adaptation of a network on disk, and what the program says of the held-out images."""
    caplog.clear()
    with caplog.at_level('INFO', logger='fixres_jax'):
        made = make(copy(config, task='adapt', init_from=network))
    said = [record.getMessage() for record in caplog.records if 'may have seen' in record.getMessage()]
    assert len(said) == (not made.adaptation.unseen)
    assert made.adaptation.solver == ('lbfgs' if made.adaptation.unseen else 'sgd')
    return made, ''.join(said)


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    monkeypatch.setattr(logging.getLogger('fixres_jax'), 'propagate', True)


def test_held_out_images_of_the_same_split_are_unseen(config, variables, caplog):
    network, seen = trained(config, variables, 'network')
    made, _ = adapting(config, network, caplog)
    assert made.adaptation.unseen and len(made.images.held_out) and not names(made.images.held_out) & seen
    moved = shutil.copytree(config.data.source, f'{config.data.source}_moved')
    assert adapting(copy(config, data__source=str(moved)), network, caplog)[0].adaptation.unseen


def test_training_on_with_another_seed_is_remembered(config, variables, caplog):
    """What the second training holds out, the first has trained on."""
    first, seen = trained(config, variables, 'first')
    second, more = trained(copy(config, init_from=first, seed=1), variables, 'second')
    made, said = adapting(copy(config, seed=1), second, caplog)
    assert names(made.images.held_out) & seen and not names(made.images.held_out) & more
    assert not made.adaptation.unseen and 'trained on' in said and '(seed 0)' in said
    assert len(checkpoint.load_metadata(second)['trained_on']) == 2
    same, _ = trained(copy(config, init_from=first), variables, 'same')
    assert adapting(config, same, caplog)[0].adaptation.unseen


def test_a_file_added_between_training_and_adaptation_lets_no_seen_image_choose(config, variables, data, caplog):
    network, seen = trained(config, variables, 'network')
    held_before = names(make(config).images.held_out)
    outcomes = set()
    for number in range(8):
        shutil.copy(data / 'train' / 'bee' / 'train_00.jpg', data / 'train' / 'bee' / f'a{number}.jpg')
        made, _ = adapting(config, network, caplog)
        assert not names(made.images.held_out) & seen
        assert made.adaptation.unseen == (names(made.images.held_out) == held_before)
        outcomes.add(made.adaptation.unseen)
    assert outcomes == {True, False}


def test_another_content_of_the_list_is_noticed(config, variables, tmp_path, caplog):
    listed = tmp_path / 'list.txt'
    listed.write_text('ant/train_00.jpg\nbee/train_00.jpg\n')
    config = copy(config, data__held_out_list=str(listed))
    network, seen = trained(config, variables, 'network')
    assert adapting(config, network, caplog)[0].adaptation.unseen
    listed.write_text('ant/train_00.jpg\nbee/train_01.jpg\n')
    made, said = adapting(config, network, caplog)
    assert names(made.images.held_out) & seen and not made.adaptation.unseen and '2 other images held out' in said


def test_another_number_of_drawings_is_noticed(config, variables, caplog):
    root = epath.Path(config.data.source).parent
    config = copy(config, data__source='drawings', data__drawings__train=36, data__drawings__val=9)
    metadata = open_run(settings.read(copy(config, task='train')), root / 'train').start.about
    checkpoint.save_model(root / 'network', draw(make_toy(9)), metadata)
    for count, unseen in ((36, True), (200, False)):
        config = copy(config, task='adapt', init_from=str(root / 'network'), data__drawings__train=count)
        assert open_run(settings.read(config), root / f'adapt{count}').adaptation.unseen == unseen


def test_weights_without_a_record_may_have_seen_everything(config, variables, tmp_path, caplog):
    about = {'architecture': 'toy', 'num_classes': 4}
    checkpoint.save_model(epath.Path(tmp_path) / 'imported', variables, about)
    made, said = adapting(config, str(tmp_path / 'imported'), caplog)
    assert not made.adaptation.unseen and 'carries no record' in said
    network, _ = trained(copy(config, init_from=str(tmp_path / 'imported')), variables, 'further')
    made, said = adapting(config, network, caplog)
    assert not made.adaptation.unseen and 'carries no record' in said
    assert provenance.why_seen([], made.images.held_out) == ''
    # A network that an adaptation left has seen what that adaptation was fitted on too.
    assert made.adapted_about['trained_on'] == checkpoint.load_metadata(network)['trained_on']
    other = adapting(copy(config, seed=1), network, caplog)[0].adapted_about['trained_on']
    assert [record and record['selection']['seed'] for record in other] == [None, 0, 1]


@pytest.mark.parametrize('task', ['recipe', 'adapt'])
def test_weights_without_a_record_have_not_seen_images_of_other_classes(config, variables, tmp_path, task):
    """With a fresh classifier held-out images choose; a training that is on record is held against them still."""
    about = {'architecture': 'toy', 'num_classes': 4}
    checkpoint.save_model(epath.Path(tmp_path) / 'imported', variables, about)
    fields = {'init_from': str(tmp_path / 'imported'), 'task': task}
    assert make(copy(config, **fields, reset_head=True)).adaptation.unseen
    assert not make(copy(config, **fields)).adaptation.unseen
    network, _ = trained(copy(config, seed=1), variables, 'seed1')
    for record in ([None], []):
        loaded, about = checkpoint.load_model(network)
        checkpoint.save_model(f'{network}_{len(record)}', loaded, about | {'trained_on': record + about['trained_on']})
        fields['init_from'] = f'{network}_{len(record)}'
        assert not make(copy(config, **fields, reset_head=True)).adaptation.unseen


@pytest.mark.parametrize(('classes', 'unseen'), [(('cat', 'dog'), True), (('bee', 'cat'), False)])
def test_a_training_on_record_has_not_seen_images_of_classes_that_it_does_not_know(config, tmp_path, classes, unseen):
    pair = draw(make_toy(2))
    network, _ = trained(copy(config, data__classes=('ant', 'bee')), pair, 'pair')
    fields = {'init_from': network, 'task': 'adapt', 'data__classes': classes, 'reset_head': True}
    assert make(copy(config, **fields)).adaptation.unseen == unseen
    # Of two trainings on record only the last one's classes are known.
    variables, about = checkpoint.load_model(network)
    checkpoint.save_model(f'{network}_twice', variables, about | {'trained_on': 2 * about['trained_on']})
    assert not make(copy(config, **fields | {'init_from': f'{network}_twice'})).adaptation.unseen


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_images_or_not_at_all(config, data, tmp_path, monkeypatch):
    """Stopped after training, then an image more: the same command says so and does nothing."""

    def stop(plan, results):
        raise KeyboardInterrupt

    monkeypatch.setitem(recipe.PHASES, 'sweep', stop)
    with pytest.raises(KeyboardInterrupt):
        recipe.run(config, tmp_path / 'run')
    monkeypatch.setitem(recipe.PHASES, 'sweep', phases.sweep_phase)
    path = tmp_path / 'run' / 'config.json'
    earlier = json.loads(path.read_text())
    del earlier['analyze'], earlier['data']['few_shot_list'], earlier['train']['ratio']  # as if they did not exist then
    path.write_text(json.dumps(earlier))
    shutil.copy(data / 'train' / 'bee' / 'train_00.jpg', data / 'train' / 'bee' / 'more.jpg')
    before = {file: file.read_bytes() for file in (tmp_path / 'run').rglob('*') if file.is_file()}
    with pytest.raises(UsageError) as error:
        recipe.run(config, tmp_path / 'run')
    assert before == {file: file.read_bytes() for file in (tmp_path / 'run').rglob('*') if file.is_file()}
    then, now = json.loads((tmp_path / 'run' / 'run.json').read_text())['images'], provenance.parts(make(config).images)
    (part,) = (part for part in then if then[part] != now[part])
    assert f'began with {then[part]["count"]} {part} images, now {then[part]["count"] + 1}.' in str(error.value)
    (data / 'train' / 'bee' / 'more.jpg').unlink()
    recipe.run(config, tmp_path / 'run')  # fields that were not there had their defaults
    about = [checkpoint.load_metadata(tmp_path / 'run' / phase)['trained_on'] for phase in ('train', 'adapt')]
    assert about[0] == about[1] and len(about[0]) == 1
    assert json.loads((tmp_path / 'run' / 'adapt.json').read_text())['chosen_on'] == 'held-out training images'


@pytest.fixture
def network(config, variables):
    return trained(config, variables, 'network')[0]


def run(config, folder, **fields):
    """Run a task and return its result and its workdir."""
    config = copy(config, **fields)
    workdir = epath.Path(config.data.source).parent / folder
    recipe.run(config, workdir)
    name = 'report' if config.task == 'recipe' else config.task
    return json.loads((workdir / f'{name}.json').read_text()), workdir


def test_classes_in_another_order_are_the_same_classes(config, network):
    backwards = tuple(reversed(CLASSES))
    straight, _ = run(config, 'a', task='evaluate', init_from=network)
    mapped, _ = run(config, 'b', task='evaluate', init_from=network, data__classes=backwards)
    assert straight['points'] == mapped['points'] and 'present' not in mapped
    _, workdir = run(config, 'c', task='adapt', init_from=network, data__classes=backwards)
    assert checkpoint.load_metadata(workdir)['class_names'] == CLASSES
    made = make(copy(config, task='adapt', init_from=network, data__classes=backwards))
    for source in (made.images.train, made.images.held_out, made.images.test):
        assert source.class_names == tuple(CLASSES)
        for index in range(len(source)):
            assert f'/{CLASSES[source.labels[index]]}/' in source.name(index)
            assert source[index]['label'] == source.labels[index]


def extracted(config, folder, **fields):
    _, workdir = run(config, folder, task='extract', **fields)
    return (np.load(workdir / 'extracted' / f'{name}.npy') for name in ('labels', 'softmax'))


def test_some_of_the_networks_classes_are_scored_among_all_and_by_themselves(config, network):
    chosen = {'data__classes': ('dog', 'bee'), 'test__resolutions': (48,)}
    _, softmax = extracted(config, 'e', init_from=network, **chosen)
    bee, dog = np.log(softmax[:, [1, 3]]).T
    # A network that says each of the two for half of the images, and before either a class that the data do not have.
    variables, about = checkpoint.load_model(network)
    variables['params']['head']['bias'] += np.float32([20, 0, 0, np.median(bee - dog)])
    chosen['init_from'] = f'{network}_live'
    checkpoint.save_model(chosen['init_from'], variables, about)
    result, _ = run(config, 'a', task='evaluate', **chosen)
    labels, softmax = extracted(config, 'b', **chosen)
    assert softmax.shape == (12, 4) and sorted(set(labels)) == [1, 3]
    (point,) = result['points']
    assert result['present'] == ['bee', 'dog']
    assert point['top1'] == pytest.approx(100 * (softmax.argmax(axis=1) == labels).mean())
    alone = softmax[:, [1, 3]].argmax(axis=1) * 2 + 1
    assert point['top1_among_present'] == pytest.approx(100 * (alone == labels).mean())
    assert len(set(alone)) == 2 and point['top1_among_present'] > point['top1'] == 0.0
    assert point['top5_among_present'] == 100.0
    assert point['low_among_present'] < point['top1_among_present'] < point['high_among_present']
    report, workdir = run(config, 'c', task='recipe', train__epochs=0.0, **chosen)
    assert checkpoint.load_metadata(workdir)['class_names'] == CLASSES
    assert checkpoint.load_model(workdir)[0]['params']['head']['bias'].shape == (4,)
    assert report['numbers']['larger']['top1_among_present'] == point['top1_among_present']
    for name in ('report.md', 'report.html'):
        text = (workdir / name).read_text()
        assert 'more classes than the 2 of the data' in text and f'{point["top1_among_present"]:.2f} (' in text


@pytest.mark.parametrize('task', ['evaluate', 'adapt', 'finetune', 'train', 'recipe'])
def test_classes_that_the_network_does_not_know_are_refused(config, network, data, task):
    for split in ('train', 'val'):
        (data / split / 'dog').rename(data / split / 'wolf')
    fields = {'task': task, 'init_from': network}
    expected = r'1 only in the data \(wolf\); 1 only in the network \(dog\).*reset_head=True'
    with pytest.raises(UsageError, match=expected):
        make(copy(config, **fields))
    fresh = make(copy(config, **fields, reset_head=True))
    assert fresh.start.about['class_names'] == ['ant', 'bee', 'cat', 'wolf'] and fresh.present is None
    common = make(copy(config, **fields, data__classes=('cat', 'ant')))
    assert common.start.about['class_names'] == CLASSES and common.present == (0, 2)


def test_a_long_difference_of_classes_is_cut():
    own, data = [f'a{number}' for number in range(1000)], [f'b{number}' for number in range(100)]
    with pytest.raises(UsageError) as error:
        provenance.network_classes(own, data, 'run', 'folder')
    message = str(error.value)
    assert '100 only in the data (b0, b1, b2, b3, b4, ...)' in message and 'data.classes' not in message
    assert '1000 only in the network (a0, a1, a2, a3, a4, ...)' in message and len(message) < 400


def test_a_network_that_names_no_classes_goes_by_their_number(config, variables, tmp_path):
    about = {'architecture': 'toy', 'num_classes': 4}
    checkpoint.save_model(epath.Path(tmp_path) / 'imported', variables, about)
    fields = {'init_from': str(tmp_path / 'imported'), 'task': 'evaluate'}
    backwards = make(copy(config, **fields, data__classes=tuple(reversed(CLASSES))))
    assert backwards.images.test.class_names == tuple(reversed(CLASSES)) and backwards.present is None
    with pytest.raises(UsageError, match='has 4 classes and the data 3 .*reset_head=True .*model.num_classes=4'):
        make(copy(config, **fields, data__classes=('ant', 'bee', 'cat')))


def test_a_network_with_spare_outputs_needs_not_be_told_their_number(config):
    wide = copy(config, model__num_classes=7)
    network, _ = trained(wide, draw(make_toy(7)), 'wide')
    made = make(copy(config, task='evaluate', init_from=network))
    assert made.start.model.num_classes == 7 and made.start.about['class_names'] == CLASSES and made.present is None
