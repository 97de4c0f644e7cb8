"""Vision transformers with timm's structure and names ('blocks/11/attn/qkv'): ViT, DeiT and DeiT III."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.core.errors import UsageError
from fixres_jax.models import initializers, layers
from fixres_jax.models.architecture import HALF, Architecture

LayerNorm = functools.partial(layers.LayerNorm, 1e-6)
PATCH = 16  # pixels of a side
HEAD = 64  # channels that a head attends by


class Attention(nn.Module):
    """Let each token attend to all; the softmax is float32.

    Attributes:
      heads: number of them.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, channels = x.shape
        qkv = layers.Linear(3 * channels, name='qkv')(x)
        # Split before the heads become an axis: of five axes XLA:TPU copies the map, twice.
        parts = (part.reshape(batch, tokens, self.heads, -1) for part in jnp.split(qkv, 3, axis=-1))
        y = jax.nn.dot_product_attention(*parts)
        return layers.Linear(channels, name='proj')(y.reshape(x.shape))


class Block(nn.Module):
    """Attention, then a perceptron, each after a LayerNorm and around a shortcut.

    Attributes:
      heads: of the attention.
      scale: initial scale of both branches; 0 for none.
      drop_path: rate of `layers.DropPath` on both.
    """

    heads: int
    scale: float
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        branches = (
            functools.partial(Attention, self.heads, name='attn'),
            functools.partial(layers.Perceptron, name='mlp'),
        )
        for number, branch in enumerate(branches, 1):
            y = branch()(LayerNorm(name=f'norm{number}')(x))
            if self.scale:
                y = layers.LayerScale(self.scale, name=f'ls{number}')(y)
            x = x + layers.DropPath(self.drop_path, name=f'drop_path{number}')(y, mode)
        return x


class Blocks(nn.Module):
    """Blocks '0', '1', ... of a network; attributes as in `ViT`."""

    depth: int
    heads: int
    scale: float
    drop_path: float
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        block = nn.remat(Block) if self.remat == 'block' else Block
        for i, rate in enumerate(layers.linear_rates(self.drop_path, self.depth)):
            x = block(self.heads, self.scale, rate, name=str(i))(x, mode)
        return x


class PatchEmbed(nn.Module):
    """Map each patch of an image to a token."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.Conv(self.features, PATCH, PATCH, padding=layers.valid, bias=True, name='proj')(x)


def resize_positions(positions: jax.Array, rows: int, columns: int) -> jax.Array:
    """Bring the position embedding of a square grid of patches to another grid.

    Bicubic with antialiasing (Keys' kernel with a = -0.5, wider where the grid shrinks), as timm resizes it with
    `dynamic_img_size`.

    Args:
      positions: float32[1, N, C], of N = n * n patches, row by row.
      rows, columns: of the wanted grid.

    Returns:
      float32[1, rows * columns, C].
    """
    _, number, channels = positions.shape
    side = round(number**0.5)
    if (rows, columns) == (side, side):
        return positions
    grid = positions.reshape(side, side, channels)
    return jax.image.resize(grid, (rows, columns, channels), 'cubic').reshape(1, -1, channels)


class ViT(nn.Module):
    """Classify images whose sides are multiples of 16 pixels.

    The position embedding is kept for the grid of patches of the training images, and resized to that of each image as
    it comes: one set of weights serves every resolution.

    Attributes:
      grid: patches of a side that the position embedding is kept for.
      class_slot: whether that has a slot for the class token too; resizing leaves it as it is.
      depth: number of blocks.
      scale: as in `Block`.
      num_classes: number of logits.
      width: channels of a token.
      mean, std: of the RGB channels, in [0, 1].
      dropout: rate of numbers of the embedding left out in training.
      drop_path: rate of the branches of the last block left out in training; earlier blocks' are in proportion.
      dtype: of the activations; parameters, embeddings and logits are float32.
      bn_group_size: without effect, because there is no BatchNorm.
      remat: '' or 'block', as in `resnet.ResNet`.
    """

    grid: int
    class_slot: bool
    depth: int
    scale: float
    num_classes: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dropout: float
    drop_path: float
    dtype: Any = jnp.float32
    bn_group_size: int | None = None
    remat: str = ''

    @nn.compact
    def __call__(self, images: jax.Array, mode: layers.Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and what they were computed from; arguments and values as `resnet.ResNet`.

        The features are those of the patches, and the embedding is the class token's.
        """
        batch, height, width, _ = images.shape
        if height % PATCH or width % PATCH:
            raise UsageError(
                f'Images of {height}x{width} pixels do not divide into patches of {PATCH}x{PATCH}: give sides that '
                f'are multiples of {PATCH}.'
            )
        token = self.param('cls_token', initializers.normal(1e-6), (1, 1, self.width), jnp.float32)
        slots = self.grid**2 + self.class_slot
        positions = self.param('pos_embed', initializers.TRUNCATED, (1, slots, self.width), jnp.float32)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        patches = PatchEmbed(self.width, name='patch_embed')(x)
        _, rows, columns, _ = patches.shape
        if self.class_slot:
            token, positions = token + positions[:, :1], positions[:, 1:]
        x = patches.reshape(batch, -1, self.width) + resize_positions(positions, rows, columns).astype(self.dtype)
        token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, self.width))
        heads = max(1, self.width // HEAD)
        blocks = Blocks(self.depth, heads, self.scale, self.drop_path, self.remat, name='blocks')
        x = blocks(jnp.concatenate([token, x], 1), mode)
        x = LayerNorm(name='norm')(x.astype(jnp.float32))
        embedding, features = x[:, 0], x[:, 1:].reshape(patches.shape).astype(self.dtype)
        kept = layers.Dropout(self.dropout, name='dropout')(embedding, mode)
        logits = layers.Classifier(self.num_classes, name='head')(kept)
        return logits, {'features': features, 'embedding': embedding}


def create_vit(size: int, *, class_slot: bool, scale: float, width: int, **options: Any) -> ViT:
    """Create a network of the family; raise UsageError for a width that its heads cannot share.

    Args:
      size: pixels of the images that the position embedding is for.
      class_slot, scale, width: as in `ViT`.
      **options: its other attributes.
    """
    if width > HEAD and width % HEAD:
        raise UsageError(
            f'model.width={width} makes no transformer: each head has {HEAD} channels. Give a multiple of {HEAD}, '
            f'such as {HEAD * round(width / HEAD)}, or less than {HEAD} for a single head.'
        )
    return ViT(size // PATCH, class_slot, DEPTH, scale, width=width, **options)


def _row(size: int, width: int, drop_path: float, *, class_slot: bool = True, scale: float = 0.0, **usual: Any):
    build = functools.partial(create_vit, size, class_slot=class_slot, scale=scale)
    return Architecture(
        build, 'head', 'patch_embed/proj', '', width=width, options={'dropout': 0.0, 'drop_path': drop_path},
        remat=('', 'block'), min_resolution=PATCH, stride=PATCH, multiple=PATCH, head_norm='norm',
        train_resolution=size, interpolation='bicubic', note=NOTE, **usual,
    )  # fmt: skip


DEPTH = 12
NOTE = 'no BatchNorm: the classifier of what the last LayerNorm gives out; an experiment, without published figures'
VIT = functools.partial(_row, drop_path=0.0, mean=HALF, std=HALF, resize_ratio=1 / 0.9)
DEIT = functools.partial(_row, drop_path=0.1, resize_ratio=1 / 0.9)
DEIT3 = functools.partial(_row, class_slot=False, scale=1e-6)
# Pixels, channels, drop path of training. Source: Steiner et al. 2021 (the weights with least), Touvron et al. 2021,
# README_revenge.md of facebookresearch/deit.
ROWS = {
    'vit_small_patch16_224': VIT(224, 384),
    'vit_base_patch16_224': VIT(224, 768),
    'deit_small_patch16_224': DEIT(224, 384),
    'deit_base_patch16_224': DEIT(224, 768),
    'deit3_small_patch16_224': DEIT3(224, 384, 0.05, resize_ratio=1 / 0.9),
    'deit3_small_patch16_384': DEIT3(384, 384, 0.0, resize_ratio=1.0),
    'deit3_base_patch16_224': DEIT3(224, 768, 0.2, resize_ratio=1 / 0.9),
}
