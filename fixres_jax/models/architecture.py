"""Architecture: everything that the rest of the program knows of a network's kind; Model: one of that kind."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.models import devices
from fixres_jax.models.layers import EVAL, Mode

# {'params': tree of float32, 'batch_stats': tree of float32}, of arrays or of their shapes
Variables = Mapping[str, Any]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # mean and std where images go from -1 to 1


# What the backward pass may compute again instead of keeping it.
REMAT = ('', 'block', 'stage')
COMMON = ('dtype', 'bn_group_size', 'remat', 'mean', 'std')  # options of every family
RULES = ('code', 'paper')  # of fine-tuning, where what the reference does differs from what its paper says


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Describe an architecture: one row of the table of architectures.

    A module that is built must take (images, mode) and return (logits, {'features', 'embedding'}), as `resnet.ResNet`
    does, normalize uint8 images itself, name its layers as torch does and call them in torch's order, and have a field
    `num_classes`. The embedding is what enters the classifier, before dropout.

    Attributes:
      build: function (num_classes=..., **options) -> module, with the options that every family knows (dtype,
        bn_group_size, remat, mean, std), `width` where the row has one, and those of `options`.
      classifier: '/' path of the linear layer that maps the embedding to the logits.
      stem: '/' path of the convolution whose output channels are the option `width`.
      last_batch_norm: regex of the BatchNorm layers whose statistics the adaptation renews: the last before the pool;
        '' for a network that has none.
      width: channels of the stem of the published network; 0 where they cannot be chosen.
      options: other options of the family -> their values in the published network, such as dropout.
      remat: values that the option of that name takes.
      paddings: values that the option `padding` takes, in families that have it.
      min_resolution: pixels of the smallest square image that it can take.
      stride: pixels of the image to one of the last map; sizes that are no multiple of it lose a little at the borders.
      multiple: what the sides of images must be a multiple of.
      mean, std: of the RGB channels, in [0, 1], that its weights are usually trained with.
      train_resolution: pixels that its weights are usually trained at.
      interpolation: of the test transform its weights are usually tested with.
      resize_ratio: of that transform, resized side over crop.
      head_norm: '/' path of a LayerNorm between the pool and the classifier, '' for none. The embedding is its output:
        a linear classifier of that can express whatever its scale and bias together with a classifier can, so the
        adaptation in one pass fits the classifier and leaves them alone; fine-tuning through the network trains them.
      trainable: regex of the parameters that the reference's code fine-tunes, where that is not the rule of the paper:
        the classifier, with the affine of `head_norm`.
      batch_norm: regex of the BatchNorm layers that it puts on batch statistics, where that is not `last_batch_norm`.
      convolution_head: whether the classifier is a 1x1 convolution in torch.
      note: what the adaptation means for this network, in one line.
    """

    build: Callable[..., nn.Module]
    classifier: str
    stem: str
    last_batch_norm: str
    width: int = 64
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    remat: tuple[str, ...] = REMAT
    paddings: tuple[str, ...] = ('same', 'symmetric')
    min_resolution: int = 32
    stride: int = 32
    multiple: int = 1
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    train_resolution: int = 224
    interpolation: str = 'bilinear'
    resize_ratio: float = 256 / 224
    head_norm: str = ''
    trainable: str = ''
    batch_norm: str = ''
    convolution_head: bool = False
    note: str = ''

    @property
    def head(self) -> str:
        """Regex of the classifier's parameters."""
        return f'{self.classifier}/.*'

    def finetune(self, rule: str = 'code') -> dict[str, str]:
        """Return the two regexes of fine-tuning, by the names that the configs give them.

        Args:
          rule: 'code', what the reference's imnet_finetune does; 'paper', the classifier and the last BatchNorm. They
            are the same in most rows: for a ResNet-50 fc and layer4[2].bn3.
        """
        paper = f'({self.head_norm}|{self.classifier})/.*' if self.head_norm else self.head
        if rule == 'paper':
            return {'trainable': paper, 'batch_norm': self.last_batch_norm}
        return {'trainable': self.trainable or paper, 'batch_norm': self.batch_norm or self.last_batch_norm}

    def check_options(self, name: str, options: Mapping[str, Any]) -> None:
        """Raise UsageError for an option that networks of this kind do not have, or a value that none takes."""
        own = {*COMMON, *self.options} | ({'width'} if self.width else set())
        for option, value in options.items():
            if option not in own:
                raise UsageError(
                    f'model.{option}={value!r}: a {name} has no such option. Leave it out; those of {name} are '
                    f'{", ".join(sorted(own))}.'
                )
        for option in ('width', 'bn_group_size'):
            value = options.get(option)
            if value is not None and value < 1:
                raise UsageError(f'{option}={value} makes no network: it is at least 1.')
        remat = options.get('remat', '')
        if remat not in self.remat:
            raise UsageError(f'remat={remat!r} is none of {self.remat}.{nearest(remat, self.remat)}')
        for option in {'dropout', 'drop_path'} & options.keys():
            if not 0 <= options[option] < 1:
                raise UsageError(f'{option}={options[option]}: expected a share from 0 to below 1, such as 0.2.')
        padding = options.get('padding', 'same')
        if 'padding' in self.options and padding not in self.paddings:
            raise UsageError(f'padding={padding!r} is none of {self.paddings}.{nearest(padding, self.paddings)}')


@dataclasses.dataclass(frozen=True)
class Model:
    """Hold a network without its weights: hashable, so that compiled functions can be kept by it.

    Attributes:
      architecture: its row of the table.
      module: what `architecture.build` made.
    """

    architecture: Architecture
    module: nn.Module

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.module.num_classes

    def init(self, key: jax.Array) -> Variables:
        """Draw variables: the same ones whatever the devices."""
        size = self.architecture.min_resolution
        with devices.on_none():
            variables = self.module.init(key, jnp.zeros((1, size, size, 3), jnp.uint8), EVAL)
        return {'batch_stats': {}} | variables  # which networks without BatchNorm have too

    def shapes(self) -> Variables:
        """Return the shapes and dtypes of the variables, without drawing them."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def apply(self, variables: Variables, images: jax.Array, mode: Mode, **options: Any) -> Any:
        """Return (logits float32[B, K], {'features', 'embedding'}), with the options of `flax.linen.Module.apply`."""
        outputs = self.module.apply(variables, images, mode, **options)
        if not options.get('mutable'):
            return outputs
        return outputs[0], {'batch_stats': {}} | outputs[1]

    def names(self) -> tuple[str, ...]:
        """Return the '/' names of the leaves in the order in which torch lists them: as the layers are called, and of
        each layer its own before those of layers inside it."""
        order = []
        plain = self.clone(remat='')  # Flax sorts the leaves of layers that are computed again.

        def init(key):
            variables = plain.init(key)
            order.extend(trees.flatten(variables))  # The tree that eval_shape returns is sorted.
            return variables

        jax.eval_shape(init, jax.random.key(0))
        return tuple(order)

    def clone(self, **options: Any) -> 'Model':
        """Return the same network with other options, such as bn_group_size=None."""
        return dataclasses.replace(self, module=self.module.clone(**options))

    def draw_head(self, key: jax.Array) -> Mapping[str, Any]:
        """Draw a fresh classifier, as a tree of its own; compiled, so that nothing else of the network is drawn."""

        def draw():
            return trees.split(self.init(key)['params'], self.architecture.head)[0]

        return jax.device_get(jax.jit(draw)())

    def head(self, variables: Variables) -> Mapping[str, Any]:
        """Return the classifier's parameters, {'kernel': float32[C, K], 'bias': float32[K]}."""
        head = variables['params']
        for name in self.architecture.classifier.split('/'):
            head = head[name]
        return head
