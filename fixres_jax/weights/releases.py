"""Weights that others have released for these architectures: how they were trained, and how they are best tested.

The accuracies are the publishers' own, on ImageNet's validation set under the test transform given.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.models.architecture import IMAGENET_MEAN, IMAGENET_STD
from fixres_jax.weights import (
    efficientnet_releases,
    fixres_releases,
    layer_norm_releases,
    resnet_releases,
    torchvision_releases,
)

TORCHVISION = 'torchvision 0.28, meta of the weights'
TIMM = 'timm, results/results-imagenet.csv of August 2026'
SWSL = 'README of facebookresearch/semi-supervised-ImageNet1K-models'
LITE = "README of tensorflow/tpu's efficientnet/lite, of the TensorFlow weights"
FIXRES = 'README of facebookresearch/FixRes'
CADENE = 'README of Cadene/pretrained-models.pytorch'
MPNCOV = 'README of jiangtaoxie/fast-MPN-COV'
WSL_PAPER = 'Touvron et al. 2019 (arXiv 1906.06423), at 224 before the adaptation'
NON_COMMERCIAL = 'CC BY-NC 4.0'


@dataclasses.dataclass(frozen=True)
class Release:
    """Describe one file of weights.

    Attributes:
      name: collection/model.variant; timm's are the repository names on Hugging Face.
      architecture: a key of `models.MODELS`.
      file: name under which it is published; '' where that tells nothing, as on Hugging Face, or there is none.
      top1: published ImageNet top-1, percent.
      source: where `top1` is published.
      train_resolution: pixels of the last stage of training on ImageNet, before any adaptation.
      test_resolution: pixels of the recommended test crop.
      resize_ratio: resized side over test crop.
      resize: side that is resized: 'short', or 'height' as the FixRes code does.
      interpolation: of the test transform.
      mean, std: of the channels, in [0, 1]; () for those of the architecture's row.
      url: of the folder of the file; '' where its publisher's program knows it.
      licence: where it forbids commercial use.
      padding: of the maps, a value of the option of that name; '' for the architecture's usual one.
      background: whether the file has one class more than ImageNet, the first, for what is none of it.
    """

    name: str
    architecture: str
    file: str
    top1: float
    source: str
    train_resolution: int = 224
    test_resolution: int = 224
    resize_ratio: float = 256 / 224
    resize: str = 'short'
    interpolation: str = 'bilinear'
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    url: str = ''
    licence: str = ''
    padding: str = ''
    background: bool = False

    def metadata(self) -> dict[str, Any]:
        """Return what an evaluation needs to know."""
        names = ('train_resolution', 'test_resolution', 'resize_ratio', 'resize', 'interpolation')
        channels = {name: list(getattr(self, name)) for name in ('mean', 'std') if getattr(self, name)}
        return {'release': self.name} | {name: getattr(self, name) for name in names} | channels


def _collection(source: str, rows: list[tuple[str, str, str, float]], **common: Any) -> tuple[Release, ...]:
    return tuple(Release(*row, source, **common) for row in rows)


def _of_timm(rows: tuple[tuple, ...]) -> tuple[Release, ...]:
    """Return releases that timm hosts; a row holds what `efficientnet_releases.ROWS` says."""
    found = []
    for name, file, train, test, crop, interpolation, value, top1 in rows:
        channels = ((value,) * 3,) * 2 if value else (IMAGENET_MEAN, IMAGENET_STD)
        found.append(Release(
            f'timm/{name}', name.partition('.')[0].removeprefix('legacy_'), file, top1, TIMM, train, test, 1 / crop,
            interpolation=interpolation, mean=channels[0], std=channels[1],
        ))  # fmt: skip
    return tuple(found)


def _torchvision() -> tuple[Release, ...]:
    """Return the releases of torchvision."""
    table = torchvision_releases
    return tuple(
        Release(
            f'torchvision/{name}', architecture, file, top1, TORCHVISION, train, test, resized / test,
            interpolation=interpolation, padding='symmetric' if architecture in table.SYMMETRIC else '',
            **{} if architecture in table.HALF else {'mean': IMAGENET_MEAN, 'std': IMAGENET_STD},
        )
        for name, architecture, file, train, test, resized, interpolation, top1 in table.ROWS
    )  # fmt: skip


def _efficientnets() -> tuple[Release, ...]:
    """Return the EfficientNets and MobileNets of timm, and the Lite networks that PyPI packages hold."""
    found = _of_timm(efficientnet_releases.ROWS)
    of_timm = {release.name: release for release in found}
    lite = (
        dataclasses.replace(
            of_timm[f'timm/{name}.in1k'], name=f'pypi/{name.removeprefix("tf_")}', file=file, top1=top1, source=LITE
        )
        for name, file, top1 in efficientnet_releases.PYPI
    )
    return (*found, *lite)


def _fixres() -> tuple[Release, ...]:
    """Return the FixRes releases, as its code tests them: under the standard transform, which does not resize the
    height, they score about 0.35 lower (its issue 4)."""
    usual = {'mean': IMAGENET_MEAN, 'std': IMAGENET_STD, 'resize': 'height', 'licence': NON_COMMERCIAL}
    return tuple(
        Release(
            f'fixres/{name}', architecture, file, top1, FIXRES, train, test,
            url=fixres_releases.URL if file else '', **usual | fixres_releases.OPTIONS.get(architecture, {}),
        )
        for name, architecture, file, train, test, top1 in fixres_releases.ROWS
    )  # fmt: skip


# In timm 1.0.31 resnetaa34d, 50, 50d and 101d, resnetblur18, 50, 50d and 101d: names and shapes of all its models'
# arrays were compared with ours, and where they are equal the modules.
LOOK_ALIKES = re.compile(r'(?<![a-z])(res(?:net|next))(?:aa|blur)([0-9]+d?)(?![0-9a-z])')
GENERIC_STEMS = ('model', 'pytorch_model')

RELEASES = (
    *_torchvision(),
    # Files of timm 0.6.13, whose arrays are on Hugging Face now.
    *_collection(TIMM, [
        ('timm/inception_v3.tv_in1k', 'inception_v3', 'inception_v3_google-1a9a5a14.pth', 77.472),
        ('timm/inception_v3.tf_in1k', 'inception_v3', 'tf_inception_v3-e0069de4.pth', 77.866),
        ('timm/inception_v3.tf_adv_in1k', 'inception_v3', 'adv_inception_v3-9e27bd63.pth', 77.598),
    ], train_resolution=299, test_resolution=299, resize_ratio=1 / 0.875, interpolation='bicubic'),
    *_collection(TIMM, [
        ('timm/inception_v3.gluon_in1k', 'inception_v3', 'gluon_inception_v3-9f746940.pth', 78.806),
    ], train_resolution=299, test_resolution=299, resize_ratio=1 / 0.875, interpolation='bicubic',
        mean=IMAGENET_MEAN, std=IMAGENET_STD),
    *_collection(TIMM, [
        ('timm/inception_resnet_v2.tf_in1k', 'inception_resnet_v2', 'inception_resnet_v2-940b1cd6.pth', 80.434),
        ('timm/inception_resnet_v2.tf_ens_adv_in1k', 'inception_resnet_v2',
         'ens_adv_inception_resnet_v2-2592a550.pth', 79.998),
    ], train_resolution=299, test_resolution=299, resize_ratio=1 / 0.8975, interpolation='bicubic'),
    *_collection(TIMM, [
        ('timm/densenet121.ra_in1k', 'densenet121', 'densenet121_ra-50efcf5c.pth', 76.486),
    ], test_resolution=288, resize_ratio=1 / 0.95, interpolation='bicubic'),
    *_collection(TIMM, [
        ('timm/resnet18.a1_in1k', 'resnet18', 'resnet18_a1_0-d63eafa0.pth', 73.164),
        ('timm/resnet18.a2_in1k', 'resnet18', 'resnet18_a2_0-b61bd467.pth', 72.364),
        ('timm/resnet34.a1_in1k', 'resnet34', 'resnet34_a1_0-46f8f793.pth', 77.930),
        ('timm/resnet34.a2_in1k', 'resnet34', 'resnet34_a2_0-82d47d71.pth', 77.150),
        ('timm/resnet50.a1_in1k', 'resnet50', 'resnet50_a1_0-14fe96d1.pth', 81.240),
        ('timm/resnet50.a2_in1k', 'resnet50', 'resnet50_a2_0-a2746f79.pth', 80.774),
        ('timm/resnet101.a1_in1k', 'resnet101', 'resnet101_a1_0-cdcb52a9.pth', 82.326),
        ('timm/resnet101.a2_in1k', 'resnet101', 'resnet101_a2_0-6edb36c7.pth', 82.218),
        ('timm/resnet152.a1_in1k', 'resnet152', 'resnet152_a1_0-2eee8a7a.pth', 82.742),
        ('timm/resnet152.a2_in1k', 'resnet152', 'resnet152_a2_0-b4c6978f.pth', 82.614),
        ('timm/resnext50_32x4d.a1_in1k', 'resnext50_32x4d', 'resnext50_32x4d_a1_0-b5a91a1d.pth', 81.480),
        ('timm/resnext50_32x4d.a2_in1k', 'resnext50_32x4d', 'resnext50_32x4d_a2_0-efc76add.pth', 81.304),
    ], test_resolution=288, resize_ratio=1.0, interpolation='bicubic'),
    *_collection(TIMM, [
        ('timm/resnet18.a3_in1k', 'resnet18', 'resnet18_a3_0-40c531c8.pth', 68.250),
        ('timm/resnet34.a3_in1k', 'resnet34', 'resnet34_a3_0-a20cabb6.pth', 72.996),
        ('timm/resnet50.a3_in1k', 'resnet50', 'resnet50_a3_0-59cae1ef.pth', 78.052),
        ('timm/resnet101.a3_in1k', 'resnet101', 'resnet101_a3_0-1db14157.pth', 79.836),
        ('timm/resnet152.a3_in1k', 'resnet152', 'resnet152_a3_0-134d4688.pth', 80.548),
        ('timm/resnext50_32x4d.a3_in1k', 'resnext50_32x4d', 'resnext50_32x4d_a3_0-3e450271.pth', 79.258),
    ], train_resolution=160, resize_ratio=1 / 0.95, interpolation='bicubic'),
    # Instagram hashtags, then ImageNet; 48d is no longer among timm's.
    *_collection(TIMM, [
        ('wsl/resnext101_32x8d', 'resnext101_32x8d', 'ig_resnext101_32x8-c38310e5.pth', 82.720),
        ('wsl/resnext101_32x16d', 'resnext101_32x16d', 'ig_resnext101_32x16-c6f796b0.pth', 84.166),
        ('wsl/resnext101_32x32d', 'resnext101_32x32d', 'ig_resnext101_32x32-e4b90b00.pth', 85.090),
    ], licence=NON_COMMERCIAL),
    *_collection(WSL_PAPER, [
        ('wsl/resnext101_32x48d', 'resnext101_32x48d', 'ig_resnext101_32x48-3e41cc8a.pth', 85.4),
    ], licence=NON_COMMERCIAL),
    *_collection(SWSL, [
        ('swsl/resnet18', 'resnet18', 'semi_weakly_supervised_resnet18-118f1556.pth', 73.4),
        ('swsl/resnet50', 'resnet50', 'semi_weakly_supervised_resnet50-16a12f1b.pth', 81.2),
        ('swsl/resnext50_32x4d', 'resnext50_32x4d',
         'semi_weakly_supervised_resnext50_32x4-72679e44.pth', 82.2),
        ('swsl/resnext101_32x4d', 'resnext101_32x4d',
         'semi_weakly_supervised_resnext101_32x4-3f87e46b.pth', 83.4),
        ('swsl/resnext101_32x8d', 'resnext101_32x8d',
         'semi_weakly_supervised_resnext101_32x8-b4712904.pth', 84.3),
        ('swsl/resnext101_32x16d', 'resnext101_32x16d',
         'semi_weakly_supervised_resnext101_32x16-f3559a9c.pth', 84.8),
    ], licence=NON_COMMERCIAL),
    *_fixres(),
    *_collection(CADENE, [
        ('pretrainedmodels/pnasnet5large', 'pnasnet5large', 'pnasnet5large-bf079911.pth', 82.736),
    ], train_resolution=331, test_resolution=331, resize_ratio=1 / 0.875, padding='cadene', background=True),
    *_collection(TIMM, [
        ('timm/pnasnet5large.tf_in1k', 'pnasnet5large', '', 82.814),
    ], train_resolution=331, test_resolution=331, resize_ratio=1 / 0.911, interpolation='bicubic'),
    *_efficientnets(),
    *_of_timm(resnet_releases.ROWS),
    *_of_timm(layer_norm_releases.ROWS),
    *_collection(CADENE, [
        ('cadene/senet154', 'senet154', 'senet154-c7b49a05.pth', 81.304),
    ]),
    *_collection(MPNCOV, [
        ('mpncov/resnet50', 'resnet50_mpncov', 'mpncovresnet50-15991845.pth', 78.29),
        ('mpncov/resnet101', 'resnet101_mpncov', 'mpncovresnet101-ade9737a.pth', 79.01),
    ]),
    *_collection(TIMM, [
        ('timm/mobilenetv3_large_100.miil_in21k_ft_in1k', 'mobilenetv3_large_100',
         'mobilenetv3_large_100_1k_miil_78_0-66471c13.pth', 77.920),
    ], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize_ratio=1 / 0.875),
)  # fmt: skip


def find(name: str, path: str) -> Release | None:
    """Return the release of a name, or without one that whose published file name a path has, or None."""
    if not name:
        return next((release for release in RELEASES if release.file and release.file == Path(path).name), None)
    known = {release.name: release for release in RELEASES}
    if name not in known:
        raise UsageError(f'There is no release {name!r}.{nearest(name, known)} --list prints all.')
    return known[name]


def of_torchvision(name: str) -> Release:
    """Return a release of torchvision of an architecture, for what all of them share: padding, mean and std.

    Raises:
      UsageError: for an architecture that torchvision has not, or that adds another epsilon in BatchNorm there.
    """
    known = {release.architecture: release for release in RELEASES if release.name.startswith('torchvision/')}
    if name not in known:
        raise UsageError(
            f"These weights are torchvision's, and none of its networks is a {name}.{nearest(name, known)}"
        )
    return known[name]


def refuse_look_alike(text: str) -> None:
    """Refuse a network that has the arrays of one of ours and computes something else.

    Args:
      text: what names it: an architecture, a release or the path of a file. Of a path its last part counts, and
        before the file names that Hugging Face gives to all networks the folders too.

    Raises:
      UsageError: when the text names such a network.
    """
    path = Path(text)
    words = path.parts if path.stem in GENERIC_STEMS else path.parts[-1:]
    for word in words:
        if match := LOOK_ALIKES.search(word.casefold()):
            like = f'{match[1]}{match[2]}'
            raise UsageError(
                f'{text} is a {match[0]}: its arrays are named and shaped like those of {like}, but it averages where '
                f'{like} strides, which no network of this program does. Give weights of {like}.'
            )


def table() -> str:
    """Return the releases as lines of text."""
    lines = [f'{"release":46} {"architecture":21} {"train -> test (resized to)":40}  top-1  file; source; licence']
    for r in RELEASES:
        resized = f'{r.resize} {r.resize_ratio * r.test_resolution:.0f}, {r.interpolation}'
        sizes = f'{r.train_resolution} -> {r.test_resolution} ({resized})'
        unnamed = 'model.safetensors' if r.name.startswith('timm/') else 'no file published'
        where = '; '.join(filter(None, (f'{r.url}{r.file}' or unnamed, r.source, r.licence)))
        lines.append(f'{r.name:46} {r.architecture:21} {sizes:40} {r.top1:6.2f}  {where}')
    return '\n'.join(lines)
