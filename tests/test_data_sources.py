import pickle

import numpy as np
import pytest

from fixres_jax.data import sources
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
