import json
import pickle
import shutil

import numpy as np
import pytest

from fixres_jax import prepare
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import pipeline, shards, sources, transforms


@pytest.fixture(scope='module')
def prepared(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('prepared')
    prepare.main([str(tiny_folder), str(out), '--shards', '3', '--workers', '0'])
    return out


@pytest.fixture
def copied(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / 'copy')


def test_records_are_those_of_the_folder(prepared, tiny_folder):
    for split in ('train', 'val'):
        ours, theirs = sources.create(str(prepared), split), sources.create(str(tiny_folder), split)
        assert isinstance(ours, shards.Shards) and len(ours) == len(theirs)
        assert ours.class_names == theirs.class_names and np.array_equal(ours.labels, theirs.labels)
        for index in range(len(ours)):
            a, b = ours[index], theirs[index]
            assert a['encoded'] == b['encoded'] and a['label'] == b['label']
            assert b['name'].endswith('/' + a['name']) and a['name'] == ours.name(index)
            image = transforms.decode(a['encoded'], '', 0)
            assert tuple(a['size']) == image.size
    assert pickle.loads(pickle.dumps(ours))[7] == ours[7]


def test_batches_from_shards_in_worker_processes(prepared, tiny_folder):
    arguments = {'batch_size': 12, 'seed': 0, 'start_step': 1, 'num_steps': 4}
    transform = transforms.make_train(24)
    expected = pipeline.train_batches(sources.create(str(tiny_folder), 'train'), transform, **arguments)
    found = pipeline.train_batches(
        sources.create(str(prepared), 'train'), transform, pipeline.Readers(workers=2), **arguments
    )
    for a, b in zip(expected, found, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_missing_or_cut_shard_is_named(copied):
    shard = sorted((copied / 'train').glob('*.array_record'))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-10])
    with pytest.raises(UsageError, match=f'{shard.name} has .* bytes, not .*prepare again'):
        sources.create(str(copied), 'train')
    shard.unlink()
    with pytest.raises(UsageError, match=f'{shard.name} is missing.*prepare again'):
        sources.create(str(copied), 'train')


@pytest.mark.parametrize('workers', [0, 1])
def test_flipped_byte_is_found_and_its_shard_named(copied, workers):
    shard = sorted((copied / 'train').glob('*.array_record'))[1]
    data = bytearray(shard.read_bytes())
    data[data.index(b'\xff\xd8') + 300] ^= 1
    shard.write_bytes(data)
    source = sources.create(str(copied), 'train')
    test = {16: transforms.make_test(16)}
    with pytest.raises(RunError) as caught:
        list(pipeline.eval_batches(source, test, pipeline.Readers(workers=workers), batch_size=16))
    message = str(caught.value)
    assert str(shard) in message and 'Delete it and run' in message and '\n' not in message


def test_label_outside_the_classes_is_refused(copied):
    labels = np.load(copied / 'train' / shards.LABELS)
    labels[9] = 4
    np.save(copied / 'train' / shards.LABELS, labels)
    with pytest.raises(UsageError, match='image 9 has label 4, but there are 4 classes'):
        sources.create(str(copied), 'train')


@pytest.mark.parametrize('damage', [
    lambda text: '', lambda text: text[:100], lambda text: '[]', lambda text: 'null', lambda text: '{"format": 1}',
    lambda text: text.replace('"bytes"', '"byte"'), lambda text: text.replace('"count": ', '"count": "1" , "x": '),
    lambda text: text.replace('"class_names": [', '"class_names": [1, '), lambda text: text.replace('"ant"', '\x00'),
])  # fmt: skip
def test_a_broken_manifest_is_named(copied, damage):
    path = copied / 'train' / shards.MANIFEST
    path.write_text(damage(path.read_text()))
    with pytest.raises(UsageError, match=f'{path} is missing or damaged .*Run fixres_jax.prepare again') as caught:
        sources.create(str(copied), 'train')
    assert '\n' not in str(caught.value)


def test_shards_without_a_manifest_are_no_folder_of_classes(copied):
    (copied / 'train' / shards.MANIFEST).unlink()
    with pytest.raises(UsageError, match='train holds shards but no manifest.json: .*Run fixres_jax.prepare again'):
        sources.create(str(copied), 'train')


@pytest.mark.parametrize('name', [shards.LABELS, shards.NAMES])
@pytest.mark.parametrize('damage', ['cut', 'gone', 'short'])
def test_broken_labels_and_names_are_named(copied, name, damage):
    path = copied / 'train' / name
    if damage == 'gone':
        path.unlink()
    elif damage == 'cut':
        path.write_bytes(path.read_bytes()[:40])
    elif name == shards.LABELS:
        np.save(path, np.load(path)[:-1])
    else:
        path.write_text(path.read_text().partition('\n')[2])
    with pytest.raises(UsageError, match=f'{path} .*Run fixres_jax.prepare again'):
        sources.create(str(copied), 'train')


def test_manifest_of_another_format_is_refused(copied):
    path = copied / 'train' / shards.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {'format': 99}))
    with pytest.raises(UsageError, match='has format 99; expected 1'):
        sources.create(str(copied), 'train')
