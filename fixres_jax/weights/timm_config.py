"""What timm and Hugging Face write beside weights, config.json, to our fixres.json and back."""

import math
from collections.abc import Mapping
from typing import Any

from fixres_jax import models
from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.data import transforms

# Names of the files of a repository or a folder, the weights as they are preferred.
CONFIG, WEIGHTS = 'config.json', ('model.safetensors', 'pytorch_model.bin')


def to_timm(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a network for timm, with its `pretrained_cfg`.

    The size of the images is the test resolution, as `test_input_size` and as `input_size`, which timm takes unless
    asked for the test size: a network that was adapted to a size is to be used at that size.

    Args:
      about: the content of fixres.json.
    """
    architecture = models.find(about['architecture'])
    name = about['architecture']
    train = about.get('train_resolution') or architecture.train_resolution
    sides = _sides(about.get('test_resolution') or train)
    side, ratio = min(sides), about.get('resize_ratio') or architecture.resize_ratio
    cfg = {
        'architecture': name,
        'num_classes': about['num_classes'],
        'input_size': [3, *sides],
        'test_input_size': [3, *sides],
        'fixed_input_size': False,
        'interpolation': about.get('interpolation') or architecture.interpolation,
        'crop_pct': _crop_pct(side, ratio),
        'test_crop_pct': _crop_pct(side, ratio),
        'crop_mode': 'center',
        'mean': list(about.get('mean') or architecture.mean),
        'std': list(about.get('std') or architecture.std),
        'first_conv': architecture.stem.replace('/', '.'),
        'classifier': architecture.classifier.replace('/', '.'),
        'pool_size': [-(-length // architecture.stride) for length in sides],
    }
    config = {'architecture': name, 'num_classes': about['num_classes'], 'pretrained_cfg': cfg}
    if architecture.multiple > 1:  # patches, whose position embedding is resized to each image
        config['model_args'] = {'dynamic_img_size': True}
    if about.get('class_names'):
        config['label_names'] = list(about['class_names'])
    return config


def _sides(resolution: Any) -> tuple[int, int]:
    """Return (height, width) of a resolution, which is a number or both."""
    return (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)


def _crop_pct(side: int, ratio: float) -> float:
    """Return timm's share of the resized side that the crop has, such that timm resizes to as many pixels as we do."""
    wanted = transforms.resize_side(side, ratio)
    share = side / wanted
    while math.floor(side / share) < wanted:
        share = math.nextafter(share, 0.0)
    return share


def from_timm(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return (architecture, fields of fixres.json) that a config.json of timm tells.

    Raises:
      UsageError: for an architecture that is not here, with the nearest names, or for another kind of config.
    """
    cfg = content.get('pretrained_cfg') or content
    name = content.get('architecture') or cfg.get('architecture')
    if not isinstance(name, str):
        raise UsageError('its config.json names no architecture of timm: expected "architecture" and "pretrained_cfg".')
    name = name.removeprefix('legacy_')
    if name not in models.ARCHITECTURES:
        raise UsageError(f'it is a {name}, which is no network of this program.{nearest(name, models.ARCHITECTURES)}')
    train = _resolution(cfg.get('input_size'))
    crop_pct = cfg.get('test_crop_pct') or cfg.get('crop_pct')
    fields = {
        'train_resolution': train,
        'test_resolution': _resolution(cfg.get('test_input_size')) or train,
        'resize_ratio': 1 / crop_pct if crop_pct else None,
        'interpolation': cfg.get('interpolation'),
        'mean': cfg.get('mean'),
        'std': cfg.get('std'),
        'class_names': _class_names(content, cfg),
    }
    return name, {field: value for field, value in fields.items() if value}


def _resolution(size: Any) -> Any:
    """Return the side in pixels of [channels, height, width], or both of what is not square; None for None."""
    if not size:
        return None
    height, width = size[1:]
    return height if height == width else (height, width)


def _class_names(content: Mapping[str, Any], cfg: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the classes in the order of their labels, where all are told."""
    names = content.get('label_names') or cfg.get('label_names')
    if isinstance(names, Mapping):
        names = [names.get(str(label)) for label in range(len(names))]
    number = content.get('num_classes') or cfg.get('num_classes')
    return list(names) if names and len(names) == number and all(names) else None
