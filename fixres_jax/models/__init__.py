"""Models: architectures by name; a file a family, with the rows of its members.

May import core.
"""

from typing import Any

from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.models import (
    amoebanet,
    convnext,
    densenet,
    efficientnet,
    efficientnetv2,
    inception_resnet_v2,
    inception_v3,
    mobilenetv2,
    mobilenetv3,
    mpncov,
    pnasnet,
    regnet,
    resnet,
    resnetv2,
    senet,
    vgg,
    vit,
)
from fixres_jax.models.architecture import Architecture, Model, Variables
from fixres_jax.models.layers import EVAL, TRAIN, Mode, batch_norm_layers

__all__ = [
    'ARCHITECTURES', 'EVAL', 'TRAIN', 'Architecture', 'Mode', 'Model', 'Variables', 'batch_norm_layers', 'create',
    'find',
]  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = (
    resnet.ROWS
    | efficientnet.ROWS
    | efficientnetv2.ROWS
    | mobilenetv2.ROWS
    | mobilenetv3.ROWS
    | inception_resnet_v2.ROWS
    | inception_v3.ROWS
    | densenet.ROWS
    | vgg.ROWS
    | pnasnet.ROWS
    | amoebanet.ROWS
    | senet.ROWS
    | mpncov.ROWS
    | resnetv2.ROWS
    | regnet.ROWS
    | convnext.ROWS
    | vit.ROWS
)


def find(name: str) -> Architecture:
    """Return the architecture of a name.

    Raises:
      UsageError: when there is none, naming the nearest.
    """
    if name not in ARCHITECTURES:
        known = ', '.join(ARCHITECTURES)
        raise UsageError(f'There is no model {name!r}.{nearest(name, ARCHITECTURES)} The models are: {known}.')
    return ARCHITECTURES[name]


def create(name: str, num_classes: int = 1000, **options: Any) -> Model:
    """Create a model, without weights.

    Args:
      name: a key of ARCHITECTURES.
      num_classes: number of logits.
      **options: of the family, see `Architecture.build`; what is not given, or a width of 0, is the published
        network's.

    Returns:
      The model; `model.init(key)` draws its variables.

    Raises:
      UsageError: for an unknown name, an option that the family does not have, or a size that makes no network.
    """
    architecture = find(name)
    if not options.get('width', True):
        del options['width']
    architecture.check_options(name, options)
    if num_classes < 1:
        raise UsageError(f'num_classes={num_classes} makes no network: it is at least 1.')
    defaults = {'mean': architecture.mean, 'std': architecture.std, **architecture.options}
    if architecture.width:
        defaults['width'] = architecture.width
    # Tuples, or the module could not be hashed.
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in (defaults | options).items()}
    return Model(architecture, architecture.build(num_classes=num_classes, **options))
