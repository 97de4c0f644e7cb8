"""Images as people hold them: every kind gives the same pixels, labels and classes."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from conftest import pattern
from fixres_jax.core.errors import UsageError
from fixres_jax.data import given, pipeline, sources, transforms

LABELS = [0, 1, 2, 0]


@pytest.fixture(scope='module')
def arrays():
    return np.stack([pattern(24, 24, seed) for seed in range(4)])


class Dataset:
    """A data set as torch's: len() and [i]."""

    def __init__(self, items, **more):
        self.items = items
        self.__dict__.update(more)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Columns(Dataset):
    """A data set as Hugging Face's: records are dicts, and a column can be had by its name."""

    def __getitem__(self, index):
        return [item[index] for item in self.items] if isinstance(index, str) else self.items[index]


class Feature:
    names = ['ant', 'bee', 'cat']


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'PNG')
    return buffer.getvalue()


def kinds(arrays):
    pictures = [Image.fromarray(array) for array in arrays]
    records = [{'image': picture, 'label': label} for picture, label in zip(pictures, LABELS, strict=True)]
    encoded = [{'image': {'bytes': png(a), 'path': None}, 'label': n} for a, n in zip(arrays, LABELS, strict=True)]
    pairs = list(zip(pictures, LABELS, strict=True))
    return {
        'arrays': (arrays, np.array(LABELS)),
        'pairs': pairs,
        'generator': ((array, label) for array, label in zip(arrays, LABELS, strict=True)),
        'records': records,
        'torch': Dataset(pairs),
        'torchvision': Dataset(pairs, targets=LABELS, classes=['ant', 'bee', 'cat']),
        'hugging face': Columns(records, features={'image': None, 'label': Feature}),
        'hugging face, not decoded': Columns(encoded, features={'image': None, 'label': Feature}),
    }


@pytest.mark.parametrize('kind', ['arrays', 'pairs', 'generator', 'records', 'torch', 'torchvision', 'hugging face',
                                  'hugging face, not decoded'])  # fmt: skip
def test_every_kind_gives_the_same_pixels_and_labels(kind, arrays):
    source, _ = given.labelled(kinds(arrays)[kind], 'train')
    assert source.class_names == (('ant', 'bee', 'cat') if kind.startswith(('hugging', 'torchvision')) else ())
    batch = next(pipeline.eval_batches(given.named(source, ['a', 'b', 'c']), {0: transforms.make_test(24, 1.0)},
                                       batch_size=4))  # fmt: skip
    np.testing.assert_array_equal(batch['image'][0], arrays)
    assert batch['label'].tolist() == LABELS == source.labels.tolist()


def test_names_of_classes_may_stand_for_labels(arrays):
    source, _ = given.labelled((arrays, ['cat', 'ant', 'cat', 'bee']), 'train')
    assert source.class_names == ('ant', 'bee', 'cat') and source.labels.tolist() == [2, 0, 2, 1]


def test_other_modes_keep_their_meaning(odd_images):
    for path in sorted(odd_images.iterdir()):
        if path.name in ('one_pixel.png', 'sixteen_bit.png'):
            continue
        with Image.open(path) as picture:
            source = given.Given([picture.copy()])
            found, wanted = (transforms.decode(e, path.name, 0) for e in (source[0]['encoded'], path.read_bytes()))
            np.testing.assert_allclose(np.asarray(found, int), np.asarray(wanted, int), atol=8, err_msg=path.name)


def test_a_source_travels_to_another_process(arrays):
    source = pickle.loads(pickle.dumps(given.Given(arrays, LABELS)))
    assert source[1]['label'] == 1 and source.name(1) == 'image 1'


def test_the_split_that_serves_the_purpose_is_taken(tiny_folder):
    train, place = given.labelled(tiny_folder, 'train')
    test, other = given.labelled(str(tiny_folder), 'test')
    assert (len(train), len(test)) == (48, 24)
    assert (place, other) == (f'{tiny_folder}/train', f'{tiny_folder}/val')
    assert len(given.labelled(tiny_folder / 'train', 'test')[0]) == 48


def test_without_the_split_it_says_what_to_give(tiny_folder, tmp_path):
    (tmp_path / 'train').symlink_to(tiny_folder / 'train')
    with pytest.raises(UsageError, match=f'has the splits train and none of val, .*: give {tmp_path}/train'):
        given.labelled(tmp_path, 'test')


def test_images_without_labels(tiny_folder, odd_images):
    one, _ = given.images(tiny_folder / 'val' / 'ant' / 'val_00.jpg')
    flat, _ = given.images(tiny_folder / 'val' / 'ant')
    assert (len(one), len(flat), len(given.images(tiny_folder)[0])) == (1, 6, 24)
    assert one.labels.tolist() == [-1] and one[0]['label'] == -1 and flat.name(0).endswith('val_00.jpg')
    files = [tiny_folder / 'val' / 'ant' / 'val_00.jpg', tiny_folder / 'val' / 'bee' / 'val_00.jpg']
    assert len(given.images(files)[0]) == 2
    assert len(given.images(np.zeros((3, 8, 8, 3), np.uint8))[0]) == 3
    assert len(given.images(np.zeros((8, 8, 3), np.uint8))[0]) == 1
    unlabelled = sources.unlabelled(sources.create(tiny_folder, 'val'), ['x'])
    assert unlabelled[3]['label'] == -1 and set(unlabelled.labels) == {-1}


WRONG = [
    (lambda a: (a, [0, 1]), r'labels of shape \(2,\) do not fit 4 images'),
    (lambda a: (a, [0.5] * 4), r'labels are float64: expected whole numbers'),
    (lambda a: (a, [0, 1, 2, -1]), r'labels go from -1 to 2'),
    (lambda a: (a[0], [0]), r'images have shape \(24, 24, 3\): expected uint8\[N, height, width, 3\]'),
    (lambda a: {'train': 1, 'test': 2}, r'data is dict with train, test: give one of its parts'),
    (lambda a: 3, r'data is int: expected a folder'),
    (lambda a: [a[0], a[1]], r'Record 0 of the data is ndarray: expected \(image, label\)'),
    (lambda a: [{'picture': a[0], 'label': 0}], r'Record 0 .* a dict with picture, label'),
    (lambda a: '/nowhere', r"There is no folder '/nowhere'"),
]  # fmt: skip


@pytest.mark.parametrize('make, expected', WRONG, ids=[expected for _, expected in WRONG])
def test_what_is_no_data_is_refused_in_one_line(make, expected, arrays):
    with pytest.raises(UsageError, match=expected):
        given.labelled(make(arrays), 'train')


@pytest.mark.parametrize('item, expected', [
    (np.zeros((8, 8, 3), np.float32), r'is float32\[8, 8, 3\]: expected uint8\[height, width, 3\]'),
    (np.zeros((3, 8, 8), np.uint8), r'the colours last'),
    (object(), r'expected uint8'),
])  # fmt: skip
def test_what_is_no_image_is_refused(item, expected):
    with pytest.raises(UsageError, match=expected):
        given.encode(item)
