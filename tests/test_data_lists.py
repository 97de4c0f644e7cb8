"""Data sets in the folders of their authors: the images of each split are those that the official lists say."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from conftest import pattern
from fixres_jax import prepare
from fixres_jax.core.errors import UsageError
from fixres_jax.data import decoding, sources


def write(root: Path, texts: Mapping[str, str], images: Iterable[str]) -> Path:
    """Write the lists of a distribution, and a small JPEG for each image."""
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for seed, name in enumerate(images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pattern(20, 24, seed)).save(root / name)
    return root


def cub(root):
    files = [f'{bird}/{bird[4:]}_{number:04}.jpg' for bird in ('001.Albatross', '002.Auklet') for number in (1, 2, 3)]
    lists = {
        'images.txt': ''.join(f'{key} {file}\n' for key, file in enumerate(files, 1)),
        'image_class_labels.txt': '1 1\n2 1\n3 1\n4 2\n5 2\n6 2\n',
        'train_test_split.txt': '1 0\n2 1\n3 1\n4 1\n5 0\n6 0\n',
        'classes.txt': '1 001.Albatross\n2 002.Auklet\n',
    }
    return write(root, lists, [f'images/{file}' for file in files])


def birdsnap(root):
    files = ['Blue_Jay/191761.jpg', 'Blue_Jay/191858.jpg', 'Brant/95943.jpg', 'Brant/96001.jpg', 'Brant/97845.jpg']
    species = 'id\tcommon\tscientific\tdir\n1\tBlue Jay\tCyanocitta cristata\tBlue_Jay\n2\tBrant\tBranta\tBrant\n'
    images = ''.join(f'http://x/{file}\tmd5\t{file}\t1\n' for file in files)
    tests = 'path\nBlue_Jay/191761.jpg\nBrant/95943.jpg\nBrant/99999.jpg\n'  # the last one cannot be had any more
    lists = {'species.txt': species, 'images.txt': f'url\tmd5\tpath\tspecies_id\n{images}', 'test_images.txt': tests}
    return write(root, lists, [f'download/images/{file}' for file in files])


def pets(root):
    head = '#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n'
    lists = {
        'annotations/trainval.txt': f'{head}Abyssinian_1 1 1 1\nAbyssinian_2 1 1 1\namerican_bulldog_9 2 2 1\n',
        'annotations/test.txt': f'{head}Abyssinian_3 1 1 1\namerican_bulldog_10 2 2 1\nBombay_4 3 1 2\n',
    }
    names = ('Abyssinian_1', 'Abyssinian_2', 'american_bulldog_9', 'Abyssinian_3', 'american_bulldog_10', 'Bombay_4')
    return write(root, lists, [f'images/{name}.jpg' for name in names])


def grocery(root):
    names = 'Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int)\n'
    lists = {
        'classes.csv': f'{names}Royal-Gala,0,Apple,0\nKiwi,1,Kiwi,1\nAlpro-Soy-Milk,2,Soy-Milk,2\n',
        'train.txt': 'train/Fruit/Apple/Royal-Gala/Royal-Gala_001.jpg, 0, 0\ntrain/Fruit/Kiwi/Kiwi_001.jpg, 1, 1\n'
        'train/Packages/Soy-Milk/Alpro-Soy-Milk/Alpro-Soy-Milk_001.jpg, 2, 2\n',
        'val.txt': 'val/Fruit/Kiwi/Kiwi_001.jpg, 1, 1\n',
        'test.txt': 'test/Fruit/Apple/Royal-Gala/Royal-Gala_001.jpg, 0, 0\ntest/Fruit/Kiwi/Kiwi_001.jpg, 1, 1\n',
    }
    lines = ''.join(lists[f'{split}.txt'] for split in ('train', 'val', 'test')).splitlines()
    return write(root, lists, [line.split(',')[0] for line in lines])


# Of each distribution: its classes, and the images of each split by label and file.
EXPECTED = {
    cub: (
        ('001.Albatross', '002.Auklet'),
        {
            'train': [(0, 'Albatross_0002'), (0, 'Albatross_0003'), (1, 'Auklet_0001')],
            'test': [(0, 'Albatross_0001'), (1, 'Auklet_0002'), (1, 'Auklet_0003')],
        },
    ),
    birdsnap: (
        ('Blue_Jay', 'Brant'),
        {'train': [(0, '191858'), (1, '96001'), (1, '97845')], 'test': [(0, '191761'), (1, '95943')]},
    ),
    pets: (
        ('Abyssinian', 'american_bulldog', 'Bombay'),
        {
            'train': [(0, 'Abyssinian_1'), (0, 'Abyssinian_2'), (1, 'american_bulldog_9')],
            'test': [(0, 'Abyssinian_3'), (1, 'american_bulldog_10'), (2, 'Bombay_4')],
        },
    ),
    grocery: (
        ('Royal-Gala', 'Kiwi', 'Alpro-Soy-Milk'),
        {
            'train': [(0, 'Royal-Gala_001'), (1, 'Kiwi_001'), (2, 'Alpro-Soy-Milk_001')],
            'val': [(1, 'Kiwi_001')],
            'test': [(0, 'Royal-Gala_001'), (1, 'Kiwi_001')],
            'train+val': [(0, 'Royal-Gala_001'), (1, 'Kiwi_001'), (2, 'Alpro-Soy-Milk_001'), (1, 'Kiwi_001')],
        },
    ),
}


@pytest.mark.parametrize('make', EXPECTED, ids=lambda make: make.__name__)
def test_splits_are_those_of_the_official_lists(make, tmp_path):
    root, (class_names, splits) = make(tmp_path), EXPECTED[make]
    assert sources.splits(str(root)) == [split for split in splits if '+' not in split]
    for split, expected in splits.items():
        source = sources.create(str(root), split)
        assert source.class_names == class_names and len(source) == len(expected)
        assert [(int(label), Path(source.name(i)).stem) for i, label in enumerate(source.labels)] == expected
        for index, (label, _) in enumerate(expected):
            record = source[index]
            assert record['label'] == label and record['name'] == source.name(index)
            assert decoding.decode(record['encoded'], 'x', 0).size == (24, 20)
        assert pickle.loads(pickle.dumps(source))[0] == source[0]
        assert sources.subset(source, [0])[0] == source[0]
    fingerprints = {split: sources.create(str(root), split).fingerprint() for split in splits}
    assert len(set(fingerprints.values())) == len(splits)


def test_a_distribution_becomes_shards_of_the_same_images(tmp_path):
    root, shards = grocery(tmp_path / 'given'), tmp_path / 'shards'
    prepare.main([str(root), str(shards), '--workers', '0'])
    for split in ('train', 'test', 'train+val'):
        here, there = sources.create(str(root), split), sources.create(str(shards), split)
        assert here.class_names == there.class_names and here.labels.tolist() == there.labels.tolist()
        assert sources.fingerprint(here) == sources.fingerprint(there)


def test_splits_of_a_folder_are_joined(tiny_folder):
    joined = sources.create(str(tiny_folder), 'train+val')
    parts = [sources.create(str(tiny_folder), split) for split in ('train', 'val')]
    whole = [part.name(index) for part in parts for index in range(len(part))]
    assert [joined.name(index) for index in range(len(joined))] == whole and len(joined) == 72
    assert joined[47]['name'] == whole[47] and joined[48]['name'] == whole[48] and joined[-1]['name'] == whole[-1]
    rest, held = sources.hold_out(joined, 0.2, seed=0)
    of_train = sources.hold_out(parts[0], 0.2, seed=0)[1]
    assert {of_train.name(index) for index in range(len(of_train))} < {held.name(index) for index in range(len(held))}
    assert len(rest) + len(held) == 72


def without(root, name):
    (root / name).write_text('')
    return root


@pytest.mark.parametrize(
    ('spoil', 'split', 'expected'),
    [
        (lambda root: without(cub(root), 'train_test_split.txt'), 'train', 'train_test_split.txt are not as distrib'),
        (lambda root: without(grocery(root), 'val.txt'), 'val', "has no images of the split 'val'"),
        (lambda root: without(grocery(root), 'classes.csv'), 'train', 'classes.csv and train.txt .* not as distrib'),
        (cub, 'val', "no split 'val'; it has train, test"),
        (lambda root: (birdsnap(root), (root / 'download').rename(root / 'elsewhere'))[0], 'test', 'get_birdsnap.py'),
    ],
)  # fmt: skip
def test_lists_that_are_spoilt_are_named(spoil, split, expected, tmp_path):
    with pytest.raises(UsageError, match=expected):
        sources.create(str(spoil(tmp_path)), split)


def test_splits_of_other_classes_are_not_joined(tiny_folder, tmp_path):
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
        for name in ('ant', 'bee')[: 2 if split == 'train' else 1]:
            (tmp_path / split / name).symlink_to(tiny_folder / split / name)
    with pytest.raises(UsageError, match='train and val have different classes .* 1 are in one only: bee'):
        sources.create(str(tmp_path), 'train+val')
