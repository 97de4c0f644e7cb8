"""What the tests of the families of networks are given: a row a family, in the order of `models.ARCHITECTURES`."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """Say how a family is tested.

    Attributes:
      rows: name of its module in `fixres_jax.models`, whose ROWS are its members.
      small: the member that takes steps beside torch, drops numbers and goes through the recipe.
      options: of `small`, that make it smaller yet for the recipe; {} where it has none.
      fast: members that are compared with torch in the fast run; all others are in the slow one.
      sizes: pixels of the images of that comparison, height and width.
      recipe: pixels of training and of the larger test.
      steps: pixels of the images of the steps beside torch; on maps of a few positions roundings grow too large.
      reference: module of `goldens` that makes the same networks in torch; '' where there are none to compare with.
      narrow: options of `small` for the steps beside torch, which the reference takes too.
      elsewhere: members that are not compared with torch here.
      quick: whether `small` goes through the recipe, fine-tuning and the dry run in the fast run; the slow one has all.
      theirs: options of timm's network that make it compute what ours does.
    """

    rows: str
    small: str
    fast: tuple[str, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ((64, 64), (97, 97), (96, 160))
    recipe: tuple[int, int] = (32, 48)
    steps: int = 64
    reference: str = 'timm_models'
    narrow: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    quick: bool = False
    theirs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Against torchvision's goldens, in test_torch_parity.py.
TORCHVISION = (
    'resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'wide_resnet50_2', 'wide_resnet101_2',
    'resnext50_32x4d', 'resnext101_32x4d', 'resnext101_32x8d', 'resnext101_64x4d', 'resnext101_32x16d',
    'resnext101_32x32d', 'resnext101_32x48d',
)  # fmt: skip
FAMILIES = {
    'resnet': Family('resnet', 'resnet18d', ('resnet18d', 'resnetrs50'), {'width': 8}, elsewhere=TORCHVISION),
    'efficientnet': Family(
        'efficientnet',
        'tf_efficientnet_lite0',
        ('tf_efficientnet_lite0', 'efficientnet_b0'),
        {'width': 8},
    ),
    'efficientnetv2': Family('efficientnetv2', 'tf_efficientnetv2_b0', ('tf_efficientnetv2_b0',), {'width': 8}),
    'mobilenetv2': Family('mobilenetv2', 'mobilenetv2_100', (), {'width': 8}),
    'mobilenetv3': Family('mobilenetv3', 'mobilenetv3_large_100', ('mobilenetv3_large_100',), {'width': 8}),
    'inception_resnet_v2': Family(
        'inception_resnet_v2',
        'inception_resnet_v2',
        (),
        {'width': 2},
        sizes=((96, 96), (107, 107), (128, 160)),
        recipe=(80, 112),
        steps=160,
    ),
    'inception_v3': Family(
        'inception_v3',
        'inception_v3',
        (),
        {'width': 2},
        sizes=((96, 96), (107, 107), (128, 160)),
        recipe=(80, 112),
        steps=160,
    ),
    'densenet': Family('densenet', 'densenet121', (), {'width': 8}),
    'vgg': Family('vgg', 'vgg16_bn', (), {'width': 4}, sizes=((64, 64), (97, 97), (224, 256))),
    'pnasnet': Family(
        'pnasnet',
        'pnasnet5large',
        (),
        {'width': 8},
        sizes=((96, 96), (97, 97), (64, 96)),
        reference='pnasnet_models',
        narrow={'width': 16},
    ),
    'amoebanet': Family('amoebanet', 'amoebanet_b_small', (), {'width': 1}, reference=''),
    'senet': Family('senet', 'senet154', (), {'width': 32}, theirs={'drop_rate': 0.0}),
    'mpncov': Family('mpncov', 'resnet50_mpncov', (), {'width': 8}),
    'resnetv2': Family('resnetv2', 'resnetv2_50', (), {'width': 8}),
    # The member whose last sum has a BatchNorm on both sides.
    'regnet': Family('regnet', 'regnety_032', ('regnety_016',), {'width': 8}),
    'convnext': Family('convnext', 'convnextv2_tiny', ('convnext_tiny',), {'width': 8}, recipe=(32, 64)),
    'vit': Family(
        'vit',
        'deit3_small_patch16_224',
        ('vit_small_patch16_224', 'deit3_small_patch16_224'),
        {'width': 16},
        sizes=((224, 224), (80, 80), (96, 288)),  # where the grid of positions is kept, shrinks, and does both
        quick=True,
        theirs={'dynamic_img_size': True},
    ),
}
