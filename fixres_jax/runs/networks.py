"""The network that a run begins with: the given one, or a blank one that the config describes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fixres_jax import __version__, models
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.models import Model, Variables
from fixres_jax.runs.settings import Settings
from fixres_jax.training.optimization import Finetuning
from fixres_jax.weights.network import Network

DEFAULT_NAME = 'resnet50'  # where neither the config nor a given network says
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


def identify(s: Settings, given: Mapping[str, Any]) -> tuple[str, int]:
    """Return the architecture and the width of a run, which the config may leave to the given network.

    Args:
      s: the config.
      given: `fixres.json` of the given network; {} without one.

    Raises:
      UsageError: when the config names another network than the one given.
    """
    name = given.get('architecture') or s.model.name or DEFAULT_NAME
    width = given.get('width') or s.model.width or models.find(name).width
    want = (s.model.name or name, s.model.width or width)
    if want != (name, width):
        raise UsageError(
            f'{s.init_from} is a {name} of width {width}, and the config says {want[0]} of '
            f'width {want[1]}: leave model.name empty and model.width 0 to take the network as it is.'
        )
    return name, width


def finetuning(s: Settings, name: str) -> Finetuning:
    """Return how the config fine-tunes; the regexes that it leaves open are those of the architecture."""
    # In one pass the last statistics and the classifier change, whatever the reference fine-tunes.
    own = models.find(name).finetune(s.finetune.follows if 'finetune' in s.phases else 'paper')
    return dataclasses.replace(s.finetune, **{field: getattr(s.finetune, field) or own[field] for field in own})


def make(s: Settings, given: Network | None, class_names: tuple[str, ...], num_data_classes: int) -> Network:
    """Return the network of a run, with a fresh classifier where `reset_head` asks for one.

    Args:
      s: the config.
      given: the network that it names; None for a blank one.
      class_names: of the labels; what `provenance.network_classes` returned.
      num_data_classes: classes that the data have.

    Returns:
      The network on this host; one without variables begins with random ones.

    Raises:
      UsageError: when the weights do not fit what the config describes.
    """
    about = describe(s, given.about if given else {}, class_names)
    model = create(s, about)
    if given is None:
        return Network(model, None, about)
    return Network(model, _fit(model, given.variables, s, num_data_classes), about)


def describe(s: Settings, given: Mapping[str, Any], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Return the `fixres.json` of a run; what the config leaves open comes from the given network's, or {}."""
    name, width = identify(s, given)
    architecture = models.find(name)
    named = bool(given.get('class_names')) and not s.reset_head
    num_classes = s.model.num_classes or (named and given.get('num_classes')) or len(class_names)
    if num_classes < len(class_names):
        raise UsageError(
            f'model.num_classes={num_classes} is fewer than the {len(class_names)} classes of '
            f'{s.init_from if named else s.data.source}: give at least as many, or 0 to take their number.'
        )
    train_resolution, crop = s.train.resolution, s.train.crop
    if not s.trains:  # The network comes trained.
        train_resolution, crop = given.get('train_resolution') or train_resolution, given.get('crop') or crop
    padding = s.model.padding or given.get('padding') or architecture.options.get('padding')
    return ({'padding': padding} if padding else {}) | {
        'version': __version__,
        'architecture': name,
        'width': width,
        'num_classes': num_classes,
        'class_names': list(class_names),
        'mean': list(s.data.mean or given.get('mean') or architecture.mean),
        'std': list(s.data.std or given.get('std') or architecture.std),
        'train_resolution': train_resolution,
        'test_resolution': s.test.resolution or None,
        'resize_ratio': s.test.resize_ratio or given.get('resize_ratio') or architecture.resize_ratio,
        'resize': s.test.resize or given.get('resize') or 'short',
        'interpolation': s.test.interpolation or given.get('interpolation') or architecture.interpolation,
        'crop': crop,
    }


def create(s: Settings, about: Mapping[str, Any], platform: str | None = None) -> Model:
    """Return the model that a `fixres.json` and the options of the config describe.

    Args:
      s: the config.
      about: the content of `fixres.json`.
      platform: of the devices that it will run on, 'cpu', 'gpu' or 'tpu'; None for that of this process.
    """
    automatic = 'float32' if (platform or jax.default_backend()) == 'cpu' else 'bfloat16'
    return models.create(
        about['architecture'],
        about['num_classes'],
        dtype=DTYPES[automatic if s.model.dtype == 'auto' else s.model.dtype],
        bn_group_size=s.model.bn_group_size or None,
        width=about['width'],
        remat=s.model.remat,
        mean=tuple(about['mean']),
        std=tuple(about['std']),
        **s.model.of_family | ({'padding': about['padding']} if about.get('padding') else {}),
    )


def _fit(model: Model, given: Variables, s: Settings, num_data_classes: int) -> Variables:
    """Return loaded variables that fit the model, with a fresh classifier where `reset_head` asks for one."""
    classifier = model.architecture.head
    if s.reset_head:
        _, trunk = trees.split(given['params'], classifier)
        given = {**given, 'params': trees.merge(model.draw_head(jax.random.key(s.seed)), trunk)}
        log.info('The classifier starts afresh with %d classes.', model.num_classes)
    difference = trees.diff(model.shapes(), given)
    if not difference:
        return given
    bias = trees.flatten(given['params']).get(f'{model.architecture.classifier}/bias')
    if bias is not None and len(bias) != model.num_classes:
        raise UsageError(
            f'{s.init_from} has {len(bias)} classes and the data {num_data_classes} (model.num_classes='
            f'{model.num_classes}). For other classes give reset_head=True (--reset-head), which starts a fresh '
            f'classifier; if the first labels mean the same classes, model.num_classes={len(bias)}.'
        )
    raise UsageError(f'{s.init_from} does not fit the network that the config describes:\n{difference.message()}')
