"""Weights, images and labels that are a function of names and shapes alone: the same here and beside torch."""

import hashlib
import zlib
from collections.abc import Mapping

import numpy as np

CLASSES = 10
# Images by resolution. Of the embeddings every 256th number is kept.
BATCHES = {64: 4, 97: 3, 160: 2, 224: 2}
EMBEDDING_STRIDE = 256
# Steps of whole networks, and of the reference's fine-tuning.
TRAINED = ('resnet18', 'resnext50_32x4d')
TRAIN = {'steps': 5, 'batch': 8, 'resolution': 48, 'lr': 0.01, 'momentum': 0.9, 'weight_decay': 0.01}
FINETUNED = 'resnet50'
FINETUNED_KEYS = ('fc.bias', 'fc.weight', 'layer4.2.bn3.running_mean', 'layer4.2.bn3.running_var')
FINETUNE = TRAIN | {'steps': 20}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the float32 array of a torch name such as 'layer4.2.bn3.weight', in torch's layout.

    Running statistics and affine parameters are far from their defaults, so that none can be left out unseen.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    if len(shape) > 1:
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if name.endswith(('running_mean', 'bias')):
        return rng.uniform(-0.3, 0.3, shape).astype(np.float32)
    if name.endswith('running_var'):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.uniform(0.2, 0.8, shape).astype(np.float32)


def smooth_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return `weight`, with BatchNorm biases that keep activations away from ReLU's kink.

    At the kink rounding alone decides whether a gradient passes, and two right programs soon part.
    """
    array = weight(name, shape)
    return array + np.float32(1.5) if name.endswith('bias') and not name.startswith('fc') else array


def images(number: int, resolution: int, seed: int = 0) -> np.ndarray:
    """Return noise over gradients, uint8[number, resolution, resolution, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:resolution, :resolution] / resolution
    slopes = rng.uniform(-1, 1, (2, number, 1, 1, 3))
    values = slopes[0] * x[None, :, :, None] + slopes[1] * y[None, :, :, None]
    return np.clip(128 + 90 * values + rng.normal(0, 30, values.shape), 0, 255).astype(np.uint8)


def labels(number: int, seed: int = 0) -> np.ndarray:
    """Return int32[number] labels."""
    return np.random.default_rng(seed + 1000).integers(0, CLASSES, number).astype(np.int32)


def summary(name: str, array: np.ndarray) -> np.ndarray:
    """Return float32[5]: the root mean square of an array and four projections on signs that its name draws.

    A difference between two arrays shows in their projections at about its own root mean square.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()) + 1)
    values = np.asarray(array, np.float64).ravel()
    signs = rng.integers(0, 2, (4, values.size), np.int8) * np.int8(2) - np.int8(1)
    projections = [np.dot(row, values) / np.sqrt(values.size) for row in signs]
    return np.array([np.sqrt(np.mean(values**2)), *projections], np.float32)


def signature(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return a checksum of names and shapes."""
    lines = sorted(f'{name} {tuple(shape)}' for name, shape in shapes.items())
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()
