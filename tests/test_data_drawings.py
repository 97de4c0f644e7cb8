from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fixres_jax.core.errors import UsageError
from fixres_jax.data import drawings, sources

SMALL = {'train': 20, 'val': 11, 'seed': 3}


def contents(root):
    root = Path(root)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob('*.jpg')}


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return drawings.write(tmp_path_factory.mktemp('drawings') / 'data', **SMALL)


def test_it_is_a_folder_of_class_folders_of_jpeg_files(small):
    for split, count in (('train', 20), ('val', 11)):
        source = sources.create(str(small), split)
        assert len(source) == count and source.class_names == tuple(sorted(drawings.CLASSES))
        assert np.ptp(np.bincount(source.labels)) <= 1
    for name in contents(small):
        with Image.open(small / name) as image:
            assert image.format == 'JPEG' and image.mode == 'RGB' and 96 <= min(image.size) <= 160


def test_a_picture_depends_on_seed_split_and_number_alone(small, tmp_path):
    more = contents(drawings.write(tmp_path / 'more', train=30, val=12, seed=3))
    fewer = contents(small)
    assert all(more[name] == file for name, file in fewer.items())
    other = contents(drawings.write(tmp_path / 'other', **SMALL | {'seed': 4}))
    assert not set(other.values()) & set(fewer.values())
    assert len(set(fewer.values())) == 31


def test_what_is_there_is_not_drawn_again(small, monkeypatch):
    monkeypatch.setattr(drawings, 'draw', None)
    assert drawings.write(small, **SMALL) == small


def test_another_data_set_is_never_overwritten(small, tmp_path):
    with pytest.raises(UsageError, match='drawings made with .* Remove the folder'):
        drawings.write(small, **SMALL | {'train': 21})
    (tmp_path / 'photo.jpg').write_bytes(b'')
    with pytest.raises(UsageError, match='files that are not drawings'):
        drawings.write(tmp_path, **SMALL)
    with pytest.raises(UsageError, match='val=5 images are fewer than the 9 classes'):
        drawings.write(tmp_path / 'few', train=20, val=5, seed=0)


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    draw = drawings.draw
    monkeypatch.setattr(drawings, 'draw', lambda label, rng: draw(label, rng) if label < 4 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drawings.write(tmp_path / 'data', **SMALL)
    assert not any(tmp_path.iterdir())


def test_the_faster_of_two_processes_wins(small, tmp_path, monkeypatch):
    write_images = drawings._write_images

    def slow(part, counts, seed):
        monkeypatch.setattr(drawings, '_write_images', write_images)
        drawings.write(tmp_path / 'data', **SMALL)  # the other process
        write_images(part, counts, seed)

    monkeypatch.setattr(drawings, '_write_images', slow)
    assert contents(drawings.write(tmp_path / 'data', **SMALL)) == contents(small)
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_colour_does_not_tell_the_classes_apart():
    """A linear classifier of the middle's colour is no better than chance, which is 11 %."""
    count = 30 * len(drawings.CLASSES)
    labels = np.arange(count) % len(drawings.CLASSES)
    pictures = [drawings.draw(label, np.random.default_rng(i)) for i, label in enumerate(labels)]
    features = []
    for picture in pictures:
        pixels = np.asarray(picture.resize((9, 9)), np.float64)[3:6, 3:6] / 255
        features.append([1, *pixels.mean(axis=(0, 1))])
    features, targets = np.array(features), np.eye(len(drawings.CLASSES))[labels]
    half = count // 2
    weights = np.linalg.lstsq(features[:half], targets[:half], rcond=None)[0]
    assert ((features[half:] @ weights).argmax(axis=1) == labels[half:]).mean() < 0.2


def test_pictures_are_of_many_sizes_and_some_are_portrait():
    shapes = np.array([drawings.draw(0, np.random.default_rng(i)).size for i in range(100)])
    portrait = (shapes[:, 0] < shapes[:, 1]).mean()
    assert 0.1 < portrait < 0.4 and len(np.unique(shapes.min(axis=1))) > 30
