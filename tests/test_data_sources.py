import pickle

import numpy as np
import pytest

from fixres_jax.data import folders, sources
from fixres_jax.errors import RunError, UsageError


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


def test_hold_out_is_stratified_disjoint_and_seeded(tiny_folder):
    source = sources.create(str(tiny_folder), 'train')
    rest, held = sources.hold_out(source, 0.25, seed=3)
    assert np.bincount(held.labels).tolist() == [3, 3, 3, 3] and len(rest) == 36
    assert sorted([*rest.indices, *held.indices]) == list(range(48))
    assert (np.diff(rest.indices) > 0).all() and (np.diff(held.indices) > 0).all()
    assert rest[0] == source[int(rest.indices[0])]
    again, other = sources.hold_out(source, 0.25, seed=3)[1], sources.hold_out(source, 0.25, seed=4)[1]
    assert held.indices.tolist() == again.indices.tolist() != other.indices.tolist()
    assert len(sources.hold_out(source, 0.0, seed=0)[1]) == 0
    for fraction in (0.01, 0.1, 0.37):  # within one record of the share, in every class and in all
        held = sources.hold_out(source, fraction, seed=0)[1]
        assert abs(len(held) - 48 * fraction) <= 0.5
        assert np.abs(np.bincount(held.labels, minlength=4) - 12 * fraction).max() <= 1


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
