"""The method as functions, for notebooks and programs: load a network, adapt it, evaluate it, ask it, save it.

The commands are built on the same functions. What is not given is found out: sizes, colours and classes come from the
network, batches fit the devices, and nothing is written anywhere. All of it runs in one process, on all of its devices.

    >>> import numpy as np
    >>> from fixres_jax import library
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(48) % 2
    >>> images = rng.integers(0, 128, (48, 32, 32, 3), np.uint8) + np.uint8(120 * labels)[:, None, None, None]
    >>> net = library.random('resnet18', ['dark', 'light'], width=8, train_resolution=32)
    >>> adapted = library.adapt(net, (images, labels), resolution=48, held_out=0.25, unseen=True)
    >>> table = library.evaluate({'before': net, 'after': adapted}, (images, labels), resolutions=(32, 48))
    >>> [(row['model'], row['img_size']) for row in table.rows]
    [('before', 32), ('after', 32), ('before', 48), ('after', 48)]
    >>> [name for name, probability in adapted.predict(images[1])]
    ['light', 'dark']
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from fixres_jax import __version__, models
from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.core.resolution import Resolution
from fixres_jax.evaluation.table import Table
from fixres_jax.runs import alone, classifier, comparison
from fixres_jax.runs.classifier import Classifier
from fixres_jax.weights import hub, imports, network
from fixres_jax.weights.network import Network

Data = Any  # see `data.given.KINDS`


def load(
    name: str | os.PathLike,
    weights: str | os.PathLike | None = None,
    *,
    ema: bool = False,
    class_names: Sequence[str] = (),
    **about: Any,
) -> Classifier:
    """Load a network, onto the devices.

    Args:
      name: with `weights` an architecture, such as 'resnet50'. Without: a workdir, a folder of `convert`, a file of
        `save`, or 'hf:timm/resnet50.a1_in1k' for a repository of Hugging Face.
      weights: a file of torch weights, .safetensors or .pth.
      ema: take the moving average of the weights that the file holds.
      class_names: of its outputs, where the file does not say them or wrongly.
      **about: what is known better than from the file or its release: train_resolution, test_resolution, resize_ratio,
        interpolation, mean, std, resize, crop.

    Raises:
      UsageError: for what is not there, or does not fit.
      RunError: for damaged files of a workdir.
    """
    path = str(weights if weights is not None else name)
    if unknown := about.keys() - imports.FIELDS:
        one = sorted(unknown)[0]
        raise UsageError(f'load takes no {one}.{nearest(one, imports.FIELDS)} It takes {", ".join(imports.FIELDS)}.')
    if path.startswith(hub.PREFIX):
        architecture, path, told = hub.fetch(path)
        loaded, _ = imports.read(path, architecture, ema=ema, about=told | about)
    elif Path(path).suffix in classifier.FILES and not Path(path).is_dir():
        loaded, _ = imports.read(path, '' if weights is None else str(name), ema=ema, about=about)
    elif path in models.ARCHITECTURES and not Path(path).is_dir():
        raise UsageError(f"{path} is an architecture: give its weights too, as load('{path}', '{path}.pth').")
    else:
        loaded = network.load(path)
        if weights is not None and loaded.about['architecture'] != str(name):
            raise UsageError(f'{path} holds a {loaded.about["architecture"]}, not a {name}.')
        loaded = dataclasses.replace(loaded, about=dict(loaded.about) | about)
    if class_names:
        if len(class_names) != loaded.model.num_classes:
            raise UsageError(f'{len(class_names)} class names were given for {loaded.model.num_classes} outputs.')
        loaded = dataclasses.replace(loaded, about=dict(loaded.about) | {'class_names': list(class_names)})
    return classifier.place(loaded)


def named(text: str) -> Classifier:
    """Load a network by what a command line calls it: 'ARCHITECTURE=FILE', or what `load` takes alone."""
    name, equals, path = text.partition('=')
    return load(name, path) if equals and name in models.ARCHITECTURES else load(text)


def random(
    name: str, class_names: Sequence[str], *, seed: int = 0, train_resolution: int = 0, **options: Any
) -> Classifier:
    """Return a network with random weights, to try things with.

    Args:
      name: an architecture.
      class_names: of its outputs.
      seed: of the weights.
      train_resolution: pixels that it is said to be trained at; 0 for what is usual.
      **options: of the model, such as `width`.
    """
    model = models.create(name, len(class_names), **options)
    about = imports.usual(models.find(name)) | {'version': __version__, 'architecture': name, 'trained_on': []}
    about |= {'width': options.get('width') or models.find(name).width, 'num_classes': len(class_names)}
    about['class_names'] = list(class_names)
    about['train_resolution'] = train_resolution or about['train_resolution']
    return classifier.place(Network(model, jax.jit(model.init)(jax.random.key(seed)), about))


def adapt(
    net: Network,
    data: Data,
    resolution: int | Resolution | None = None,
    *,
    resolutions: Iterable[int | Resolution] = (),
    held_out: float = 0.1,
    unseen: bool | None = None,
    **config: Any,
) -> Classifier:
    """Adapt a network to a test resolution: the statistics of its last BatchNorm and its classifier, in one pass.

    Args:
      net: from `load`.
      data: training images with labels: a folder of class folders (of one with splits, that of training), prepared
        shards, 'tfds:NAME', (images uint8[N, H, W, 3], labels int[N]), pairs (image, label), or a data set of Hugging
        Face or torch.
      resolution: pixels to test at, such as 288 or Resolution('352x640'); None to choose on the held-out images.
      resolutions: to choose from; () for the training size to twice that.
      held_out: share of the images that are kept apart, to choose on; 0 for none, with a resolution.
      unseen: whether the network has been trained without the held-out images, which alone makes them fit to choose a
        classifier on, or to keep the old one; None for what its record of trainings says, or that its classes are new.
        Without such images SGD with the reference's values is used, and nothing is chosen.
      **config: fields of the config, such as reset_head=True for other classes than the network's, seed, and those of
        its section `adapt`, such as flip=True, copies=2, cache_gigabytes=2.0; batch_size of the images.

    Returns:
      The adapted network, whose `record` says what was chosen and on what. It is the old one where that was no worse.

    Raises:
      UsageError: for images that do not fit, or nothing to choose on.
    """
    with tempfile.TemporaryDirectory(prefix='fixres_jax_') as directory:
        how = {'held_out': held_out, 'unseen': unseen, 'workdir': epath.Path(directory)} | config
        return alone.adapt(alone.open_run(net, data, resolution, resolutions, **how))


def evaluate(
    networks: Network | Mapping[str, Network],
    data: Data,
    resolutions: Iterable[int | Resolution] = (),
    *,
    crop_fractions: Iterable[float] = (),
    batch_size: int = 0,
) -> Table:
    """Test networks at several resolutions; each file is decoded once.

    Args:
      networks: name -> network, all of the same classes; or one network.
      data: images with labels, as `adapt` takes them; of a folder with splits that of validation, else of testing.
      resolutions: pixels; () for those that each network is trained and tested at.
      crop_fractions: shares of the resized side that are looked at, such as 0.875 and 1.0; () for each network's own.
      batch_size: images at once; 0 for what suits the devices.

    Returns:
      A table that prints; `rows` are dicts. Differences are paired, against the first row.

    Raises:
      UsageError: for images of other classes than the networks'.
    """
    if isinstance(networks, Network):
        networks = {networks.about['architecture']: networks}
    return comparison.compare(networks, data, resolutions, crop_fractions, batch_size)
