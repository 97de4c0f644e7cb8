"""The images of a run: which are trained on, which are held out, which the numbers come from."""

from typing import Any

from etils import epath

from fixres_jax.core.errors import UsageError
from fixres_jax.data import drawings, sources
from fixres_jax.data.sources import Splits
from fixres_jax.runs.settings import Settings


def open_images(s: Settings, workdir: epath.Path) -> Splits:
    """Open the data set that the config names, and split it.

    Raises:
      UsageError: when it is not there, or its splits have different classes.
    """
    data, spec = s.data, s.data.source
    if spec == 'drawings':
        spec = workdir / 'data'
        drawings.write(spec, train=data.drawings.train, val=data.drawings.val, seed=s.seed)
    test = _some(sources.create(spec, data.test_split), data.classes)
    if not s.reads_training:
        return Splits(None, None, test)
    train = _some(sources.create(spec, data.train_split), data.classes)
    if train.class_names != test.class_names:
        only = sorted(set(train.class_names) ^ set(test.class_names))
        raise UsageError(
            f'The splits {data.train_split} and {data.test_split} of {spec} have different classes; '
            f'{len(only)} are in one only: {", ".join(only[:5])}.'
        )
    train, held_out = sources.training_parts(train, selection(s))
    return Splits(train, held_out, test)


def _some(source: sources.Source, classes: tuple[str, ...]) -> sources.Source:
    return sources.some_classes(source, classes) if classes else source


def selection(s: Settings) -> dict[str, Any]:
    """Return what says which images are trained on, and which are held out."""
    names = ('source', 'train_split', 'held_out_fraction', 'held_out_list', 'few_shot', 'few_shot_list')
    return {name: getattr(s.data, name) for name in names} | {'classes': list(s.data.classes), 'seed': s.seed}
