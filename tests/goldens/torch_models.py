"""The networks of torchvision with the weights of `weights.py`, and what they compute. Needs torchvision."""
# ruff: noqa: I001, F401  torchvision_cpu comes before torchvision.

import numpy as np
import torch
import torchvision_cpu
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from goldens import weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Block, depths, groups, width per group.
NETWORKS = {
    'resnet18': (BasicBlock, (2, 2, 2, 2), 1, 64),
    'resnet34': (BasicBlock, (3, 4, 6, 3), 1, 64),
    'resnet50': (Bottleneck, (3, 4, 6, 3), 1, 64),
    'resnet101': (Bottleneck, (3, 4, 23, 3), 1, 64),
    'resnet152': (Bottleneck, (3, 8, 36, 3), 1, 64),
    'wide_resnet50_2': (Bottleneck, (3, 4, 6, 3), 1, 128),
    'wide_resnet101_2': (Bottleneck, (3, 4, 23, 3), 1, 128),
    'resnext50_32x4d': (Bottleneck, (3, 4, 6, 3), 32, 4),
    'resnext101_32x4d': (Bottleneck, (3, 4, 23, 3), 32, 4),
    'resnext101_32x8d': (Bottleneck, (3, 4, 23, 3), 32, 8),
    'resnext101_64x4d': (Bottleneck, (3, 4, 23, 3), 64, 4),
    'resnext101_32x16d': (Bottleneck, (3, 4, 23, 3), 32, 16),
    'resnext101_32x32d': (Bottleneck, (3, 4, 23, 3), 32, 32),
    'resnext101_32x48d': (Bottleneck, (3, 4, 23, 3), 32, 48),
}


def create(name: str, num_classes: int = weights.CLASSES) -> ResNet:
    """Return torchvision's network with its own random weights."""
    block, depths, groups, width_per_group = NETWORKS[name]
    return ResNet(block, list(depths), num_classes, groups=groups, width_per_group=width_per_group)


def load(name: str, weight=weights.weight) -> ResNet:
    """Return torchvision's network with weights that are a function of name and shape."""
    with torch.device('meta'):
        model = create(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    state_dict = {key: torch.from_numpy(weight(key, shape)) for key, shape in shapes.items()}
    model.load_state_dict(state_dict, strict=True, assign=True)
    return model


def normalize(images: np.ndarray) -> torch.Tensor:
    """Return float32[B, 3, H, W] of uint8[B, H, W, 3]."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def apply(model: ResNet, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and embeddings in eval mode."""
    embeddings = []
    hook = model.avgpool.register_forward_hook(lambda module, inputs, output: embeddings.append(output.flatten(1)))
    with torch.no_grad():
        logits = model.eval()(normalize(images))
    hook.remove()
    return logits.numpy(), embeddings[0].numpy()


def train(model: ResNet, *, steps: int, batch: int, resolution: int, **sgd: float) -> dict[str, np.ndarray]:
    """Take steps of SGD on the parameters that require gradients, in the modes that the modules are in."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **sgd)
    for step in range(steps):
        images, labels = weights.images(batch, resolution, step), weights.labels(batch, step)
        logits = model(normalize(images))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.numpy() for name, value in model.state_dict().items()}
