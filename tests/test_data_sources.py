import hashlib
import pickle
import shutil

import numpy as np
import pytest

from fixres_jax import prepare
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import digests, folders, sources
from fixres_jax.data.others import Others


def test_image_folder_is_torchvisions(tiny_folder):
    source = sources.create(str(tiny_folder), 'train')
    assert source.class_names == ('ant', 'bee', 'cat', 'dog')
    assert source.labels.dtype == np.int32 and source.labels.tolist() == sorted([0, 1, 2, 3] * 12)
    paths = sorted((tiny_folder / 'train').glob('*/*.jpg'))
    assert [source[index]['name'] for index in range(len(source))] == [str(path) for path in paths]
    assert source[13] == {'encoded': paths[13].read_bytes(), 'label': 1, 'name': str(paths[13])}
    assert len(sources.create(str(tiny_folder / 'val'), '')) == len(sources.create(str(tiny_folder), 'validation'))
    assert pickle.loads(pickle.dumps(source))[47] == source[47]


def test_subfolders_and_unicode_names_belong_to_the_class(tmp_path):
    for name in ('a/x/1.png', 'a/0.JPEG', 'a/z.txt', 'a/.hidden.jpg', 'b/ü é.webp', '.cache/1.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = sources.create(str(tmp_path), '')
    names = [source[index]['encoded'].decode() for index in range(len(source))]
    assert names == ['a/0.JPEG', 'a/x/1.png', 'b/ü é.webp']


def test_hold_out_is_disjoint_seeded_and_never_empty(tiny_folder):
    source = sources.create(str(tiny_folder), 'train')
    rest, held = sources.hold_out(source, 0.25, seed=3)
    assert 0 < len(held) < len(rest)
    assert sorted([*rest.indices, *held.indices]) == list(range(48))
    assert (np.diff(rest.indices) > 0).all() and (np.diff(held.indices) > 0).all()
    assert rest[0] == source[int(rest.indices[0])]
    again, other = sources.hold_out(source, 0.25, seed=3)[1], sources.hold_out(source, 0.25, seed=4)[1]
    assert held.indices.tolist() == again.indices.tolist() != other.indices.tolist()
    assert len(sources.hold_out(source, 0.0, seed=0)[1]) == 0
    assert len(sources.hold_out(source, 1e-9, seed=0)[1]) == 1


def names(count, name='{}_{}.JPEG', root='/data'):
    """A source of that many file names in each of ten classes; the files are not there."""
    source = object.__new__(folders.ImageFolder)
    source.root, source.class_names = root, tuple(f'n{number:02}' for number in range(10))
    source.labels = np.repeat(np.arange(10, dtype=np.int32), count)
    source._files = folders.PackedStrings(name.format(c, i) for c in source.class_names for i in range(count))
    return source


def shown(source):
    return {source.name(index) for index in range(len(source))}


@pytest.mark.parametrize('fraction', [0.02, 0.1, 0.5])
def test_hold_out_takes_its_share_of_every_class(fraction):
    held = sources.hold_out(names(2000), fraction, seed=0)[1]
    spread = np.sqrt(2000 * fraction * (1 - fraction))
    assert abs(len(held) - 20_000 * fraction) < 4 * np.sqrt(10) * spread
    assert np.abs(np.bincount(held.labels) - 2000 * fraction).max() < 4 * spread
    other = sources.hold_out(names(2000), fraction, seed=1)[1]
    both = len(shown(held) & shown(other))  # Two seeds are two independent draws.
    assert abs(both - 20_000 * fraction**2) < 5 * np.sqrt(20_000) * fraction


def test_a_file_that_is_added_moves_no_other_between_the_parts(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / 'data')
    source = sources.create(str(tmp_path / 'data'), 'train')
    rest, held = (shown(part) for part in sources.hold_out(source, 0.25, seed=0))
    for number in range(20):
        (tmp_path / 'data' / 'train' / 'bee' / f'a{number}.jpg').write_bytes(b'')
        now = sources.hold_out(sources.create(str(tmp_path / 'data'), 'train'), 0.25, seed=0)
        now_rest, now_held = (shown(part) for part in now)
        assert rest <= now_rest and held <= now_held and len(now_rest) + len(now_held) == 49 + number
    assert held < now_held


def test_few_shot_changes_by_one_image_at_most_when_a_file_is_added(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / 'data')
    few = shown(sources.few_shot(sources.create(str(tmp_path / 'data'), 'train'), 5, seed=0))
    for number in range(20):
        (tmp_path / 'data' / 'train' / 'bee' / f'a{number}.jpg').write_bytes(b'')
        now = shown(sources.few_shot(sources.create(str(tmp_path / 'data'), 'train'), 5, seed=0))
        assert len(few - now) == len(now - few) <= 1
        few = now


def test_the_parts_do_not_depend_on_where_and_how_the_data_set_is_kept(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / 'moved')
    prepare.main([str(tiny_folder), str(tmp_path / 'shards'), '--workers=0'])
    places = (tiny_folder, tmp_path / 'moved', tmp_path / 'shards')
    found = []
    for place in places:
        source = sources.create(str(place), 'train')
        rest, held = sources.hold_out(source, 0.25, seed=0)
        few = sources.few_shot(rest, 3, seed=0)
        found.append([sources.fingerprint(part) for part in (source, rest, held, few)])
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 4


def test_a_fingerprint_is_of_names_and_classes_not_of_their_order(tiny_folder):
    source = sources.create(str(tiny_folder), 'train')
    mark = sources.fingerprint(source)
    assert mark == sources.fingerprint(sources.subset(source, np.arange(48)[::-1]))
    assert mark == sources.fingerprint(sources.some_classes(source, ['dog', 'cat', 'ant', 'bee']))
    assert mark != sources.fingerprint(sources.subset(source, np.arange(47)))
    assert len(mark) == 32
    with pytest.raises(ValueError, match='read-only'):  # the next who asks gets the same array
        sources.digests(source)[0] = 0
    assert len(np.unique(sources.digests(names(3, name='{1}.JPEG')))) == 30  # equal file names, other classes


def draw(name, purpose, seed):
    """Return the number from 0 to 1 that decides about a record, in Python's integers."""
    hashed = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in (name, f'{purpose} {seed}'))
    first, second = (int.from_bytes(value, 'little') for value in hashed)
    x = first ^ second
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return ((x ^ (x >> 31)) >> 11) / 2**53


def test_the_draws_are_those_of_every_version_and_machine(tiny_folder, tmp_path):
    """Or an update of the program would hold out images that it has trained on."""
    assert draw('ant/ant/train_00.jpg', 'hold_out', 0) == 0.4871621889772584
    source = sources.create(str(tiny_folder), 'train')
    for purpose, seed in (('hold_out', 0), ('hold_out', 7), ('few_shot', 0)):
        found = sources._draws(source, purpose, seed)
        expected = [
            draw(f'{folder}/{folder}/train_{number:02}.jpg', purpose, seed)
            for folder in source.class_names
            for number in range(12)
        ]
        np.testing.assert_array_equal(found, expected)
    assert sources.digests(names(0)).shape == (0,)
    (tmp_path / 'ant').mkdir()
    shutil.copy(tiny_folder / 'train' / 'ant' / 'train_00.jpg', tmp_path / 'ant')
    assert sources._draws(sources.create(str(tmp_path), ''), 'hold_out', 0).tolist() == [0.4871621889772584]


def test_parts_of_a_training_split_are_those_that_the_config_asks_for(tiny_folder, tmp_path):
    source = sources.create(str(tiny_folder), 'train')
    (tmp_path / 'list').write_text('ant/train_00.jpg\ndog/train_03.jpg')
    nothing = {'held_out_list': '', 'held_out_fraction': 0.0, 'few_shot_list': '', 'few_shot': 0.0, 'seed': 0}

    def counts(**how):
        rest, held = sources.training_parts(source, nothing | how)
        assert not held or not shown(rest) & shown(held)
        return [None if part is None else np.bincount(part.labels, minlength=4).tolist() for part in (rest, held)]

    assert counts() == [[12] * 4, None]
    assert counts(few_shot=2.0) == [[2] * 4, None]
    assert counts(few_shot=1.0) == [[1] * 4, None]
    assert counts(few_shot=0.25) == [[3] * 4, None]
    assert counts(few_shot_list=str(tmp_path / 'list')) == [[1, 0, 0, 1], None]
    assert counts(held_out_list=str(tmp_path / 'list')) == [[11, 12, 12, 11], [1, 0, 0, 1]]
    rest, held = sources.training_parts(source, nothing | {'held_out_fraction': 0.25, 'seed': 3})
    assert shown(held) == shown(sources.hold_out(source, 0.25, seed=3)[1])
    assert shown(rest) == shown(source) - shown(held)


def test_relabelled_classes_keep_their_images(tiny_folder):
    source = sources.create(str(tiny_folder), 'train')
    assert sources.relabelled(None, ['ant']) is None
    assert sources.relabelled(source, source.class_names) is source
    wanted = ('eel', 'dog', 'cat', 'bee', 'ant')
    other = sources.relabelled(source, wanted)
    assert other.class_names == wanted and shown(other) == shown(source) and len(other) == 48
    for index in (0, 13, 47):
        assert wanted[other.labels[index]] == wanted[other[index]['label']] in other.name(index)


def test_bad_fractions_and_indices_are_refused(tiny_folder, tmp_path):
    source = sources.create(str(tiny_folder), 'train')
    for fraction in (-0.1, 1.0):
        with pytest.raises(UsageError, match='from 0 to below 1'):
            sources.hold_out(source, fraction, seed=0)
    for indices in ([-1], [0, 48]):
        with pytest.raises(UsageError, match='48 records'):
            sources.subset(source, indices)
    with pytest.raises(UsageError, match="no split 'train'; it has none"):
        sources.create(str(tmp_path), 'train')
    for place in ('', str(tmp_path / 'nowhere')):
        with pytest.raises(UsageError, match=f"There is no folder '{place}'"):
            sources.create(place, 'train')
    with pytest.raises(UsageError, match='is given twice'):
        sources.some_classes(source, ['dog', 'ant', 'dog'])


def test_subset_of_a_subset(tiny_folder):
    source = sources.create(str(tiny_folder), 'train')
    inner = sources.subset(sources.subset(source, [5, 20, 40]), [2, 0])
    assert inner.labels.tolist() == [3, 0] and inner[0] == source[40] and inner.class_names == source.class_names
    with pytest.raises(UsageError, match='48'):
        sources.subset(source, [48])


def test_folders_that_are_no_data_set_are_refused(tmp_path, tiny_folder):
    (tmp_path / 'empty' / 'cat').mkdir(parents=True)
    for name in ('cat', 'Cat'):
        (tmp_path / 'case' / name).mkdir(parents=True)
        (tmp_path / 'case' / name / '1.jpg').touch()
    cases = {
        (str(tmp_path / 'nowhere'), 'train'): 'nowhere',
        (str(tiny_folder), 'trian'): "Did you mean 'train'?",
        (str(tmp_path / 'empty'), ''): 'empty/cat holds no images',
        (str(tmp_path / 'empty' / 'cat'), ''): 'holds no class folders',
        (str(tmp_path / 'case'), ''): "'Cat' and 'cat', which differ in case only",
    }
    for arguments, expected in cases.items():
        with pytest.raises(UsageError) as caught:
            sources.create(*arguments)
        assert expected in str(caught.value) and '\n' not in str(caught.value)


def test_folder_without_permission_is_named(tiny_folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr('os.scandir', refuse)
    with pytest.raises(UsageError, match='ant cannot be listed: Permission denied'):
        sources.create(str(tiny_folder), 'train')


def test_file_that_vanished_is_named(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / '1.jpg').touch()
    source = sources.create(str(tmp_path), '')
    (tmp_path / 'a' / '1.jpg').unlink()
    with pytest.raises(RunError, match='Image 0, .*a/1.jpg, cannot be read: No such file'):
        source[0]


def test_few_shot_by_number_and_by_fraction(tiny_folder):
    source = sources.create(str(tiny_folder), 'train')
    few, more = sources.few_shot(source, 2, seed=1), sources.few_shot(source, 5, seed=1)
    assert np.bincount(few.labels).tolist() == [2] * 4 and np.bincount(more.labels).tolist() == [5] * 4
    assert set(few.indices) < set(more.indices)
    assert np.bincount(sources.few_shot(source, 0.25, seed=1).labels).tolist() == [3] * 4
    assert np.bincount(sources.few_shot(source, 0.01, seed=1).labels).tolist() == [1] * 4
    assert len(sources.few_shot(source, 12, seed=1)) == 48
    assert few.indices.tolist() != sources.few_shot(source, 2, seed=2).indices.tolist()
    for amount in (13, 0, -1):
        with pytest.raises(UsageError, match="class 'ant' has 12"):
            sources.few_shot(source, amount, seed=0)


def test_file_list_holds_out(tiny_folder, tmp_path):
    source = sources.create(str(tiny_folder), 'train')
    listed = tmp_path / 'list.txt'
    listed.write_text('dog/train_03.jpg\n\nsome/where/ant/train_00.jpg\n')
    rest, held = sources.hold_out_listed(source, listed)
    assert [held.name(index)[-16:] for index in range(2)] == ['ant/train_00.jpg', 'dog/train_03.jpg']
    assert len(rest) == 46 and not set(rest.indices) & set(held.indices)
    for line, expected in (('train_03.jpg', '4 times'), ('cat/train_99.jpg', '0 times.*Did you mean')):
        listed.write_text(line)
        with pytest.raises(UsageError, match=expected):
            sources.hold_out_listed(source, listed)


def test_some_classes_get_new_labels(tiny_folder):
    source = sources.some_classes(sources.create(str(tiny_folder), 'train'), ['dog', 'bee'])
    assert source.class_names == ('dog', 'bee') and np.bincount(source.labels).tolist() == [12, 12]
    for index in (0, 12):
        record = source[index]
        assert source.class_names[record['label']] in record['name'] and record['label'] == source.labels[index]
    held = sources.hold_out(source, 0.5, seed=0)[1]
    assert held.class_names == ('dog', 'bee') and held[0]['label'] == held.labels[0] == 1
    with pytest.raises(UsageError, match="'dgo'.*Did you mean 'dog'"):
        sources.some_classes(source, ['dgo'])


def test_index_of_many_files_is_small(tmp_path, monkeypatch):
    """30,000 files in 300 folders: under 100 bytes each, pickled too."""
    names = [f'n{number:08d}' for number in range(300)]
    monkeypatch.setattr(folders, 'folders', lambda path: names)
    monkeypatch.setattr(folders, '_list_images', lambda folder: [f'{folder.name}_{i}.JPEG' for i in range(100)])
    source = folders.ImageFolder(tmp_path)
    assert len(source) == 30_000 and source.name(12_345) == f'{tmp_path}/n00000123/n00000123_45.JPEG'
    assert len(pickle.dumps(source)) < 100 * len(source)


@pytest.mark.parametrize('left_out', [[], [0], [9], [0, 1, 2], [3, 4, 7], list(range(10)), [1, 3, 5, 7, 9]])
def test_others_are_the_numbers_that_a_list_leaves_out(left_out):
    others, expected = Others(10, np.array(left_out, np.int32)), sorted(set(range(10)) - set(left_out))
    assert list(others) == expected == np.asarray(others).tolist() and len(others) == len(expected)
    assert others[np.arange(len(expected))].tolist() == expected
    for first in range(len(expected) + 1):
        for stop in range(first, len(expected) + 2):
            assert others[first:stop].tolist() == expected[first:stop]
    with pytest.raises(IndexError):
        others[len(expected)]


def test_hashes_in_pieces_are_the_hashes(tiny_folder, monkeypatch):
    source = sources.create(str(tiny_folder), 'train')

    def marks():
        sources.fingerprint.cache_clear()
        rest, held = sources.hold_out(source, 0.25, seed=3)
        again, few = sources.hold_out(rest, 0.25, seed=4)[0], sources.few_shot(rest, 2, seed=0)
        parts = (source, rest, held, again, few, sources.hold_out(source, 1e-9, seed=1)[1])
        assert all(len(sources.digests(part)) == len(part) for part in parts)
        return [(shown(part), sources.fingerprint(part)) for part in parts]

    expected = marks()
    for piece, sorted_at_once in ((7, 2**26), (2**20, 10), (5, 3)):
        monkeypatch.setattr(digests, 'PIECE', piece)
        monkeypatch.setattr(digests, 'SORTED_AT_ONCE', sorted_at_once)
        assert marks() == expected
    in_order = b''.join(int(value).to_bytes(8, 'little') for value in sorted(sources.digests(source).tolist()))
    assert expected[0][1] == hashlib.sha256(in_order).hexdigest()[:32]
