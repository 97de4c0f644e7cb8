"""Data sets of tensorflow-datasets, prepared as ArrayRecord and read without TensorFlow."""

import functools
import hashlib
import logging
from typing import Any

import numpy as np
import tensorflow_datasets
from etils import epath

from fixres_jax.core.errors import RunError, UsageError, nearest

log = logging.getLogger('fixres_jax')


class Tfds:
    """Read one split of a data set by name, images not decoded."""

    def __init__(self, name: str, split: str):
        """Open a prepared data set in the folder TFDS_DATA_DIR, by default ~/tensorflow_datasets.

        Args:
          name: as in the catalogue, for instance 'imagenet2012' or 'imagenette/160px-v2'.
          split: 'train', 'validation', or any of its slices such as 'train[:90%]'.

        Raises:
          UsageError: when there is no such data set or split, it is not prepared, or it has no images with labels.
        """
        self._name, self._split = name, split
        builder = _builder(name)
        if split.partition('[')[0] not in builder.info.splits:
            raise UsageError(
                f'tfds:{name} has no split {split!r}; it has {", ".join(builder.info.splits)}.'
                f'{nearest(split, builder.info.splits)}'
            )
        features = builder.info.features
        try:
            self.class_names = tuple(features['label'].names)
            decoders = {'image': tensorflow_datasets.decode.SkipDecoding()} if features['image'] else {}
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"tfds:{name} has features {', '.join(features)}; expected 'image' and 'label' among them."
            ) from error
        self._records = builder.as_data_source(split, decoders=decoders)

    def __reduce__(self):
        return Tfds, (self._name, self._split)  # a builder may not pickle; a worker opens its own

    def __len__(self) -> int:
        return len(self._records)

    def fingerprint(self) -> str:
        """Return a hash of the data set's version, its classes, and the names and sizes of its files of records."""
        info = _builder(self._name).info
        paths = sorted(info.splits[self._split.partition('[')[0]].filepaths)
        files = [(path.name, path.stat().length) for path in map(epath.Path, paths)]
        facts = (info.full_name, self._split, len(self), self.class_names, files)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def name(self, index: int) -> str:
        return f'tfds:{self._name}/{self._split}[{index}]'

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            record = self._records[index]
        except Exception as error:  # tfds, array_record and protobuf each raise their own
            reason = ' '.join(str(error).split())[:200]
            raise RunError(f'{self.name(index)} cannot be read: {reason} Prepare the data set again.') from error
        if not 0 <= record['label'] < len(self.class_names):
            raise RunError(
                f'{self.name(index)} has label {record["label"]}, but there are {len(self.class_names)} classes.'
            )
        return {'encoded': record['image'], 'label': int(record['label']), 'name': self.name(index)}

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Labels of all records, int32[N]: the first use reads the whole split."""
        log.info('Reading all of tfds:%s/%s for its labels; prepared shards have them ready.', self._name, self._split)
        return np.array([self[index]['label'] for index in range(len(self))], np.int32)


def splits(name: str) -> list[str]:
    """Return the names of the splits of a prepared data set."""
    return list(_builder(name).info.splits)


def _builder(name: str) -> tensorflow_datasets.core.DatasetBuilder:
    try:
        builder = tensorflow_datasets.builder(name, file_format='array_record')
    except tensorflow_datasets.core.registered.DatasetNotFoundError:
        known = tensorflow_datasets.list_builders(with_community_datasets=False)
        raise UsageError(f'tensorflow-datasets has no data set {name!r}.{nearest(name, known)}') from None
    except ValueError as error:
        reason = ' '.join(str(error).split())[:200]
        raise UsageError(f'tfds:{name} cannot be opened: {reason}') from error
    if not builder.info.splits:
        raise UsageError(
            f'tfds:{name} is not prepared in {builder.data_dir}. Run once, where TensorFlow is installed: '
            f'tfds build {name} --file_format=array_record'
        )
    return builder
