"""Architecture: everything that the rest of the program knows of a network's kind; Model: one of that kind."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.core import trees
from fixres_jax.models.layers import EVAL, Mode

# {'params': tree of float32, 'batch_stats': tree of float32}, of arrays or of their shapes
Variables = Mapping[str, Any]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Describe an architecture: one row of the table of architectures.

    A module that is built must take (images, mode) and return (logits, {'features', 'embedding'}), as `resnet.ResNet`
    does, normalize uint8 images itself, name its layers as torch does, and have a field `num_classes`.

    Attributes:
      build: function (num_classes=..., **options) -> module. The options, with their checks, are those of the family;
        every family knows dtype, bn_group_size, width, remat, zero_init_residual, mean and std.
      classifier: '/' path of the linear layer that maps the embedding to the logits.
      stem: '/' path of the convolution whose output channels are the option `width`.
      last_batch_norm: regex of the BatchNorm layers whose statistics the adaptation renews: the last before the pool.
      width: channels of the stem of the published network.
      min_resolution: pixels of the smallest square image that it can take.
      stride: pixels of the image to one of the last map; sizes that are no multiple of it lose a little at the borders.
      mean, std: of the RGB channels, in [0, 1], that its weights are usually trained with.
      train_resolution: pixels that its weights are usually trained at.
      interpolation: of the test transform its weights are usually tested with.
      resize_ratio: of that transform, resized side over crop.
    """

    build: Callable[..., nn.Module]
    classifier: str
    stem: str
    last_batch_norm: str
    width: int = 64
    min_resolution: int = 32
    stride: int = 32
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    train_resolution: int = 224
    interpolation: str = 'bilinear'
    resize_ratio: float = 256 / 224

    @property
    def trainable(self) -> str:
        """Regex of the parameters that fine-tuning trains: those of the classifier."""
        return f'{self.classifier}/.*'

    @property
    def finetune(self) -> dict[str, str]:
        """The two regexes of fine-tuning, by the names that the configs give them.

        Source: imnet_finetune of the reference, which names layer4[2].bn3 and fc; basic blocks end with bn2.
        """
        return {'trainable': self.trainable, 'batch_norm': self.last_batch_norm}


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
        return self.module.init(key, jnp.zeros((1, size, size, 3), jnp.uint8), EVAL)

    def shapes(self) -> Variables:
        """Return the shapes and dtypes of the variables, without drawing them."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def apply(self, variables: Variables, images: jax.Array, mode: Mode, **options: Any) -> Any:
        """Return (logits float32[B, K], {'features', 'embedding'}), with the options of `flax.linen.Module.apply`."""
        return self.module.apply(variables, images, mode, **options)

    def clone(self, **options: Any) -> 'Model':
        """Return the same network with other options, such as bn_group_size=None."""
        return dataclasses.replace(self, module=self.module.clone(**options))

    def draw_head(self, key: jax.Array) -> Mapping[str, Any]:
        """Draw a fresh classifier, as a tree of its own; compiled, so that nothing else of the network is drawn."""

        def draw():
            return trees.split(self.init(key)['params'], self.architecture.trainable)[0]

        return jax.device_get(jax.jit(draw)())

    def head(self, variables: Variables) -> Mapping[str, Any]:
        """Return the classifier's parameters, {'kernel': float32[C, K], 'bias': float32[K]}."""
        head = variables['params']
        for name in self.architecture.classifier.split('/'):
            head = head[name]
        return head
