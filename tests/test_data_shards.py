import functools
import json
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fixres_jax import prepare
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import pipeline, shards, sources, transforms
from fixres_jax.data.others import Others


@pytest.fixture(scope='module')
def prepared(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('prepared')
    prepare.main([str(tiny_folder), str(out), '--shards', '3', '--workers', '0'])
    return out


@pytest.fixture
def copied(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / 'copy')


@pytest.fixture
def folder_with_bad_image(tiny_folder, tmp_path_factory):
    """A class of three images; the one in the middle cannot be decoded."""
    root = tmp_path_factory.mktemp('bad')
    (root / 'a').mkdir()
    for index, name in enumerate(sorted((tiny_folder / 'train' / 'ant').iterdir())[:3]):
        (root / 'a' / f'{index}.jpg').write_bytes(name.read_bytes()[: None if index != 1 else 300])
    return root


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
    path = copied / 'train' / shards.LABELS
    labels = np.fromfile(path, '<i4')
    labels[9] = 4
    path.write_bytes(labels.tobytes())
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


def as_format_1(folder):
    """Rewrite what stands beside the shards as the first format had it."""
    labels = np.fromfile(folder / shards.LABELS, '<i4')
    np.save(folder / shards.OLD_LABELS, labels)
    manifest = json.loads((folder / shards.MANIFEST).read_text())
    for shard in manifest['shards']:
        del shard['name_bytes']
    del manifest['checksums'][shards.DIGESTS]
    (folder / shards.MANIFEST).write_text(json.dumps(manifest | {'format': 1}))
    for name in (shards.LABELS, shards.DIGESTS):
        (folder / name).unlink()


@pytest.mark.parametrize('piece', [7, shards.PIECE])
def test_shards_of_format_1_are_read_as_before(prepared, copied, monkeypatch, piece):
    monkeypatch.setattr(shards, 'PIECE', piece)
    as_format_1(copied / 'train')
    old, new = sources.create(str(copied), 'train'), sources.create(str(prepared), 'train')
    assert old.digests is None and new.digests is not None
    assert np.array_equal(old.labels, new.labels) and old.class_names == new.class_names
    assert [old.name(index) for index in range(48)] == [new.name(index) for index in range(48)]
    assert old[17] == new[17] and pickle.loads(pickle.dumps(old))[7] == new[7]
    np.testing.assert_array_equal(sources.digests(old), sources.digests(new))


def test_shards_of_format_1_become_format_2_when_prepared_again(prepared, copied, tiny_folder):
    before = {path: path.stat().st_mtime_ns for path in (copied / 'train').glob('*.array_record')}
    as_format_1(copied / 'train')
    prepare.main([str(tiny_folder), str(copied), '--shards', '3', '--workers', '0', '--split', 'train'])
    assert before == {path: path.stat().st_mtime_ns for path in before}
    files = {path.name: path.read_bytes() for path in (prepared / 'train').iterdir()}
    assert files == {path.name: path.read_bytes() for path in (copied / 'train').iterdir()}


def test_hashes_of_names_are_those_of_the_folder(prepared, tiny_folder):
    ours, theirs = sources.create(str(prepared), 'train'), sources.create(str(tiny_folder), 'train')
    np.testing.assert_array_equal(ours.digests, sources.digests(theirs))


def test_a_part_knows_its_records_under_their_numbers(prepared, tiny_folder):
    for root in (prepared, tiny_folder):
        whole = sources.create(str(root), 'train')
        for first, last in ((0, 5), (14, 34), (16, 32), (31, 48)):
            part = pickle.loads(pickle.dumps(sources.part(whole, first, last)))
            for index in range(first, last):
                assert part[index] == whole[index] and part.name(index) == whole.name(index)
    assert len(pickle.dumps(sources.part(sources.create(str(prepared), 'train'), 0, 5))) < 1500


def test_a_shard_without_records_has_a_place(folder_with_bad_image, tmp_path):
    prepare.main([str(folder_with_bad_image), str(tmp_path), '--shards', '3', '--workers', '0', '--skip-bad'])
    source = sources.create(str(tmp_path), '')
    assert [source.name(index) for index in range(2)] == ['a/0.jpg', 'a/2.jpg']
    assert [source[index]['name'] for index in range(2)] == ['a/0.jpg', 'a/2.jpg']
    as_format_1(tmp_path)
    assert sources.create(str(tmp_path), '').name(1) == 'a/2.jpg'


def test_few_shards_are_open_at_once(prepared, tiny_folder, monkeypatch):
    folder = sources.create(str(tiny_folder), 'train')
    shards._reader.cache_clear()
    few = functools.lru_cache(maxsize=2)(shards._reader.__wrapped__)
    monkeypatch.setattr(shards, '_reader', few)
    source = sources.create(str(prepared), 'train')

    def opened():
        links = [Path('/proc/self/fd') / name for name in os.listdir('/proc/self/fd')]
        return [link for link in links if os.path.realpath(link).endswith('.array_record')]

    for index in range(48):
        for place in (index, (7 * index) % 48):
            assert source[place]['encoded'] == folder[place]['encoded']
        assert len(opened()) <= 2
    assert few.cache_info().misses > 3


def test_a_hundred_million_records_open_in_little_memory(tmp_path):
    """The files have holes instead of content: what is read of them is read from the manifest alone."""
    count, each = 100, 10**6
    entries = [
        {
            'file': f'images-{n}.array_record',
            'bytes': 10**9,
            'count': each,
            'sha256': f'{n:064}',
            'name_bytes': 20 * each,
        }
        for n in range(count)
    ]
    sizes = {entry['file']: entry['bytes'] for entry in entries}
    sizes |= {shards.LABELS: 4 * count * each, shards.DIGESTS: 8 * count * each, shards.NAMES: 20 * count * each}
    for name, size in sizes.items():
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    with open(tmp_path / shards.NAMES, 'r+b') as file:
        file.seek(20 * each * 7)
        file.write(b'class_a/0000000.jpeg\n' * 10)
    manifest = {'format': 2, 'class_names': ['a'], 'shards': entries, 'checksums': {}}
    (tmp_path / shards.MANIFEST).write_text(json.dumps(manifest))
    tracemalloc.start()
    try:
        source = sources.create(str(tmp_path), '')
        rest = Others(10**8, np.arange(0, 10**6, 10, dtype=np.int32))
        assert len(source) == len(source.labels) == len(source.digests) == 10**8
        assert len(rest) == 10**8 - 10**5 and rest[len(rest) - 1] == 10**8 - 1 and rest[0] == 1
        assert tracemalloc.get_traced_memory()[1] < 16e6  # the labels take 400e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('name', [shards.LABELS, shards.NAMES, shards.DIGESTS])
@pytest.mark.parametrize('damage', ['cut', 'gone', 'short'])
def test_broken_labels_and_names_are_named(copied, name, damage):
    path = copied / 'train' / name
    if damage == 'gone':
        path.unlink()
    elif damage == 'cut':
        path.write_bytes(path.read_bytes()[:40])
    else:
        path.write_bytes(path.read_bytes()[4:])
    with pytest.raises(UsageError, match=f'{path} .*Run fixres_jax.prepare again'):
        sources.create(str(copied), 'train')


def test_manifest_of_another_format_is_refused(copied):
    path = copied / 'train' / shards.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {'format': 99}))
    with pytest.raises(UsageError, match='has format 99; expected 1 or 2'):
        sources.create(str(copied), 'train')
