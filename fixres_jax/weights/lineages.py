"""Names that other packages give to the arrays of the same networks, brought to timm's."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from fixres_jax import models
from fixres_jax.core.errors import UsageError
from fixres_jax.weights import torch_weights

IMAGENET = 1000  # classes


def to_timm(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a state_dict under timm's names, in its own order; one that has them already as it is.

    Arrays of layers that serve training alone (see TRAINING_ONLY) are left out.

    Args:
      state_dict: torch name -> array.
      name: of the architecture that it is for, a key of `models.ARCHITECTURES`.

    Raises:
      UsageError: when its names are those of another network.
    """
    only = TRAINING_ONLY.get(name)
    kept = {key: array for key, array in state_dict.items() if not (only and key.startswith(only))}
    for marker, rename in LINEAGES.items():
        if marker in kept:
            return rename(kept, name)
    return kept


def is_torchvisions(state_dict: Mapping[str, Any]) -> bool:
    """Return whether the names are torchvision's, where those differ from timm's as what is computed may."""
    return any(LINEAGES[marker] in (_vit, _in_order) for marker in LINEAGES if marker in state_dict)


def without_background(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a state_dict without the first class of its classifier, if that is one more than ImageNet's.

    Args:
      state_dict: torch name -> array, under timm's names.
      name: of the architecture, a key of `models.ARCHITECTURES`.
    """
    classifier = models.find(name).classifier.replace('/', '.')
    keys = [key for key in (f'{classifier}.weight', f'{classifier}.bias') if key in state_dict]
    return dict(state_dict) | {key: state_dict[key][1:] for key in keys if len(state_dict[key]) == IMAGENET + 1}


# Source: efficientnet-pytorch and efficientnet-lite-pytorch on PyPI, which share names.
_EFFICIENTNET = {
    '_conv_stem': 'conv_stem',
    '_bn0': 'bn1',
    '_conv_head': 'conv_head',
    '_bn1': 'bn2',
    '_fc': 'classifier',
}
_SEPARABLE = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}
_EXPANDED = {
    '_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2',
    '_project_conv': 'conv_pwl', '_bn2': 'bn3',
}  # fmt: skip
_GATE = {'_se_reduce': 'se.conv_reduce', '_se_expand': 'se.conv_expand'}


def _efficientnet(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Rename: blocks are counted through the stages there, and in each stage by itself here."""
    here = torch_weights.torch_shapes(models.create(name))
    blocks = list(dict.fromkeys(match[0] for key in here if (match := re.match(r'blocks\.\d+\.\d+', key))))
    blocks.sort(key=lambda block: [int(number) for number in block.split('.')[1:]])
    expanded = {key.rpartition('.conv_pwl')[0] for key in here if '.conv_pwl.' in key}
    renamed = {}
    for key, array in state_dict.items():
        module, _, leaf = key.rpartition('.')
        if match := re.fullmatch(r'_blocks\.(\d+)\.(\w+)', module):
            number = int(match[1])
            if number >= len(blocks):
                raise UsageError(
                    f'The weights have a block {key}, and a {name} has {len(blocks)} blocks: name another.'
                )
            block = blocks[number]
            names = _GATE | (_EXPANDED if block in expanded else _SEPARABLE)
            module = f'{block}.{names.get(match[2], match[2])}'
        else:
            module = _EFFICIENTNET.get(module, module)
        renamed[f'{module}.{leaf}'] = array
    return renamed


# Source: torchvision's RegNets.
_REGNET = {
    'stem.0': 'stem.conv',
    'stem.1': 'stem.bn',
    'fc': 'head.fc',
    'proj.0': 'downsample.conv',
    'proj.1': 'downsample.bn',
    'f.a.0': 'conv1.conv',
    'f.a.1': 'conv1.bn',
    'f.b.0': 'conv2.conv',
    'f.b.1': 'conv2.bn',
    'f.se.fc1': 'se.fc1',
    'f.se.fc2': 'se.fc2',
    'f.c.0': 'conv3.conv',
    'f.c.1': 'conv3.bn',
}


def _regnet(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Rename: blocks are counted from 0 there and from 1 here."""
    del name
    renamed = {}
    for key, array in state_dict.items():
        module, _, leaf = key.rpartition('.')
        if match := re.fullmatch(r'trunk_output\.block(\d)\.block\d-(\d+)\.(.+)', module):
            module = f's{match[1]}.b{int(match[2]) + 1}.{_REGNET.get(match[3], match[3])}'
        else:
            module = _REGNET.get(module, module)
        renamed[f'{module}.{leaf}'] = array
    return renamed


def _pretrainedmodels(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    classifier = models.find(name).classifier.replace('/', '.')
    return {re.sub(r'^last_linear\.', f'{classifier}.', key): array for key, array in state_dict.items()}


# Source: torchvision's vgg.py; the layers are linear there, and 7x7 and 1x1 convolutions here.
_VGG = {'classifier.0': 'pre_logits.fc1', 'classifier.3': 'pre_logits.fc2', 'classifier.6': 'head.fc'}


def _vgg(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    here, renamed = torch_weights.torch_shapes(models.create(name)), {}
    for key, array in state_dict.items():
        module, _, leaf = key.rpartition('.')
        key = f'{_VGG.get(module, module)}.{leaf}'
        if key.startswith('pre_logits.') and leaf == 'weight' and array.ndim == 2 and key in here:
            array = array.reshape(len(array), -1, *here[key].shape[2:])
        renamed[key] = array
    return renamed


# Source: the authors' repositories, facebookresearch/ConvNeXt, ConvNeXt-V2 and deit (DeiT III).
_CONVNEXT = (
    (r'^head\.', 'head.fc.'),
    (r'^norm\.', 'head.norm.'),
    (r'^downsample_layers\.0\.', 'stem.'),
    (r'^downsample_layers\.(\d)\.', r'stages.\1.downsample.'),
    (r'^stages\.(\d)\.(\d+)\.', r'stages.\1.blocks.\2.'),
    (r'\.dwconv\.', '.conv_dw.'),
    (r'\.pwconv(\d)\.', r'.mlp.fc\1.'),
    (r'\.grn\.gamma$', '.mlp.grn.weight'),
    (r'\.grn\.beta$', '.mlp.grn.bias'),
)
_DEIT3 = ((r'\.gamma_(\d)$', r'.ls\1.gamma'),)


def _convnext(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Rename, and take from what scales and shifts channels the axes of batch and space."""
    del name
    renamed = _substitute(state_dict, _CONVNEXT)
    return {key: array.reshape(-1) if '.grn.' in key else array for key, array in renamed.items()}


def _deit3(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    del name
    return _substitute(state_dict, _DEIT3)


def _substitute(state_dict: Mapping[str, Any], rules: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Return the arrays under the names that regular expressions make of theirs, one after the other."""
    renamed = {}
    for key, array in state_dict.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = array
    return renamed


# Source: torchvision's vision_transformer.py.
_VIT = (
    (r'^class_token$', 'cls_token'),
    (r'^conv_proj\.', 'patch_embed.proj.'),
    (r'^encoder\.pos_embedding$', 'pos_embed'),
    (r'^encoder\.ln\.', 'norm.'),
    (r'^heads\.head\.', 'head.'),
    (r'^encoder\.layers\.encoder_layer_(\d+)\.', r'blocks.\1.'),
    (r'\.ln_(\d)\.', r'.norm\1.'),
    (r'\.self_attention\.in_proj_', '.attn.qkv.'),
    (r'\.self_attention\.out_proj\.', '.attn.proj.'),
    (r'\.mlp\.(0|linear_1)\.', '.mlp.fc1.'),
    (r'\.mlp\.(3|linear_2)\.', '.mlp.fc2.'),
)


def _vit(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    del name
    return _substitute(state_dict, _VIT)


# Parts of torchvision's names that come before their neighbours; the others follow by number or alphabet.
_FIRST = ('features', 'layer_scale', 'weight')


def _place(key: str) -> list[tuple[bool, int, str]]:
    """Return what puts torchvision's names into the order of its layers: files may have them in another."""
    return [(part not in _FIRST, int(part) if part.isdigit() else 0, part) for part in key.split('.')]


def _in_order(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Rename by place: torchvision has the same layers in the same order, in one list without names.

    What is a linear layer or has axes of size one there, and is a convolution or has none here, gets the shape of here.
    """
    model = models.create(name)
    here, names = torch_weights.torch_shapes(model), torch_weights.torch_names(model)
    arrays = [state_dict[key] for key in sorted(state_dict, key=_place) if not key.endswith(torch_weights.COUNTER)]
    if len(names) != len(arrays):
        raise UsageError(f'The weights have {len(arrays)} arrays, and a {name} has {len(names)}: name another network.')
    renamed = {}
    for key, array in zip(names, arrays, strict=True):
        wanted = here[key].shape
        same = array.ndim != len(wanted) and [n for n in array.shape if n != 1] == [n for n in wanted if n != 1]
        renamed[key] = array.reshape(wanted) if same else array
    return renamed


def _densenet(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {re.sub(r'\.(norm|conv)\.([12])\.', r'.\1\2.', key): array for key, array in state_dict.items()}


# An array that only files of a lineage have -> what renames all.
LINEAGES: dict[str, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    '_conv_stem.weight': _efficientnet,
    'trunk_output.block1.block1-0.f.a.0.weight': _regnet,
    'last_linear.weight': _pretrainedmodels,
    'classifier.6.weight': _vgg,
    'features.denseblock1.denselayer1.norm.1.weight': _densenet,
    'downsample_layers.0.0.weight': _convnext,
    'blocks.0.gamma_1': _deit3,
    'conv_proj.weight': _vit,
    'features.0.0.weight': _in_order,  # torchvision's EfficientNets, MobileNets and ConvNeXts
}
# What the arrays of layers begin with that others train beside a network and do not use after.
TRAINING_ONLY = {'inception_v3': 'AuxLogits.'}
