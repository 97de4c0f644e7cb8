import hashlib
import sys

import numpy as np
import pytest

from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import pipeline, sources, transforms

tensorflow_datasets = pytest.importorskip('tensorflow_datasets')


@pytest.fixture(scope='module')
def data_dir(tiny_folder, tmp_path_factory):
    """Prepare a data set with tfds's own builder, without TensorFlow."""
    features = tensorflow_datasets.features
    files = {split: sorted((tiny_folder / split).glob('*/*.jpg')) for split in ('train', 'val')}

    class TinyAnimals(tensorflow_datasets.core.GeneratorBasedBuilder):
        VERSION = tensorflow_datasets.core.Version('1.0.0')

        def _info(self):
            names = features.ClassLabel(names=['ant', 'bee', 'cat', 'dog'])
            both = features.FeaturesDict({'image': features.Image(), 'label': names})
            return tensorflow_datasets.core.DatasetInfo(builder=self, features=both)

        def _split_generators(self, download_manager):
            return {'train': self._generate_examples('train'), 'validation': self._generate_examples('val')}

        def _generate_examples(self, split):
            for path in files[split]:
                yield f'{path.parent.name}/{path.name}', {'image': path, 'label': path.parent.name}

    class TinyTexts(TinyAnimals):
        def _info(self):
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, features=features.FeaturesDict({'text': features.Text()})
            )

        def _generate_examples(self, split):
            yield 0, {'text': 'no image'}

    folder = tmp_path_factory.mktemp('tfds')
    for builder in (TinyAnimals, TinyTexts):
        builder(data_dir=folder, file_format='array_record').download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def environment(data_dir, monkeypatch):
    monkeypatch.setattr(tensorflow_datasets.core.constants, 'DATA_DIR', str(data_dir))
    monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))


def test_records_keep_their_bytes_and_no_tensorflow_is_needed(tiny_folder):
    source = sources.create('tfds:tiny_animals', 'val')  # its name there is validation
    folder = sources.create(str(tiny_folder), 'val')
    assert len(source) == 24 and source.class_names == folder.class_names
    assert np.bincount(source.labels).tolist() == [6, 6, 6, 6]
    assert {source[i]['encoded'] for i in range(24)} == {folder[i]['encoded'] for i in range(24)}
    assert source[3]['name'] == 'tfds:tiny_animals/validation[3]'
    assert len(sources.create('tfds:tiny_animals', 'train[:25%]')) == 12
    both = sources.create('tfds:tiny_animals', 'train+val')
    assert both[48] == source[0] and np.bincount(both.labels).tolist() == [18, 18, 18, 18]
    assert 'tensorflow' not in sys.modules


def test_holding_out_reads_no_record(monkeypatch):
    source = sources.create('tfds:tiny_animals', 'train')
    monkeypatch.setattr(type(source), '__getitem__', None)
    rest, held = sources.hold_out(source, 0.25, seed=0)
    assert len(rest) + len(held) == 48 and len(held) > 0
    assert sources.fingerprint(held) != sources.fingerprint(rest)


def test_batches_in_a_worker_process():
    source = sources.create('tfds:tiny_animals', 'train')
    test = {16: transforms.make_test(16)}
    here, there = (
        list(pipeline.eval_batches(source, test, pipeline.Readers(workers=n), batch_size=20)) for n in (0, 1)
    )
    for a, b in zip(here, there, strict=True):
        assert np.array_equal(a['image'][16], b['image'][16]) and np.array_equal(a['label'], b['label'])


def test_a_fingerprint_tells_splits_apart():
    prints = [
        sources.create('tfds:tiny_animals', split).fingerprint() for split in ('train', 'train', 'train[:25%]', 'val')
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_prepare_reads_tfds(tmp_path):
    from fixres_jax import prepare

    prepare.main(['tfds:tiny_animals', str(tmp_path), '--workers', '2', '--shards', '2'])
    assert sources.splits(str(tmp_path)) == ['train', 'validation']
    shards, tfds = (sources.create(spec, 'val') for spec in (str(tmp_path), 'tfds:tiny_animals'))
    assert shards[5]['encoded'] == tfds[5]['encoded'] and np.array_equal(shards.labels, tfds.labels)


@pytest.mark.parametrize('spec, split, expected', [
    ('tfds:imagenete', 'train', "no data set 'imagenete'. Did you mean 'imagenet"),
    ('tfds:imagenette', 'train', 'not prepared.*tfds build imagenette --file_format=array_record'),
    ('tfds:tiny_animals', 'trian', "no split 'trian'; it has train, validation. Did you mean 'train'?"),
    ('tfds:tiny_texts', 'train', "has features text; expected 'image' and 'label'"),
])  # fmt: skip
def test_what_cannot_be_opened_is_one_line(spec, split, expected):
    with pytest.raises(UsageError, match=expected) as caught:
        sources.create(spec, split)
    assert '\n' not in str(caught.value)


def test_label_outside_the_classes_is_named():
    source = sources.create('tfds:tiny_animals', 'train')
    source.class_names = source.class_names[:2]
    with pytest.raises(RunError, match=r'train\[\d+\] has label \d, but there are 2 classes'):
        [source[index] for index in range(len(source))]


def test_the_hash_of_a_record_is_of_its_name_alone():
    for split in ('train', 'train[:1]'):
        source = sources.create('tfds:tiny_animals', split)
        expected = [
            int.from_bytes(hashlib.blake2b(source.name(index).encode(), digest_size=8).digest(), 'little')
            for index in range(len(source))
        ]
        assert sources.digests(source).tolist() == expected
