"""timm's networks beside ours: import this only where timm can be imported (see `torchvision_cpu`)."""

import numpy as np
import timm
import torch

import torchvision_cpu  # noqa: F401, I001  before timm, which imports torchvision
from goldens import covariance_pooling, weights

# Names that timm has under another, and networks that it has not.
NAMES = {'senet154': 'legacy_senet154'}
OTHERS = {'resnet50_mpncov': covariance_pooling.create, 'resnet101_mpncov': covariance_pooling.create}


def create(name: str, num_classes: int = weights.CLASSES, **options) -> torch.nn.Module:
    """Return timm's network of a name, or ours in torch."""
    if name in OTHERS:
        return OTHERS[name](name, num_classes)
    return timm.create_model(NAMES.get(name, name), num_classes=num_classes, **options)


def load(name: str, weight=weights.weight, **options) -> torch.nn.Module:
    """Return timm's network with weights that are a function of name and shape."""
    model = create(name, **options)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(weight(key, shape)) for key, shape in shapes.items()}, strict=True)
    return model


def apply(model: torch.nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and embeddings, what enters the classifier, in eval mode; images are normalized already."""
    with torch.no_grad():
        features = model.eval().forward_features(_nchw(images))
        embedding = model.forward_head(features, pre_logits=True)
        return model.forward_head(features).numpy(), embedding.numpy()


def train(model: torch.nn.Module, batches: list[dict[str, np.ndarray]], **sgd: float) -> dict[str, np.ndarray]:
    """Take steps of SGD on all parameters, in training mode; images are normalized."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), **sgd)
    for batch in batches:
        loss = torch.nn.functional.cross_entropy(model(_nchw(batch['image'])), torch.from_numpy(batch['label']).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.numpy() for name, value in model.state_dict().items()}


def _nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
