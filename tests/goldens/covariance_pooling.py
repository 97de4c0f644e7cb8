"""ResNets with global covariance pooling in torch, by the equations of Li et al. 2018 (arXiv 1712.01034), section 3."""

import torch
from torch import nn

from goldens import torch_models

REDUCED, ITERATIONS = 256, 5


class Network(nn.Module):
    """torchvision's trunk with a stride of 16, the reduction to 256 channels, and the classifier of the root."""

    def __init__(self, trunk: nn.Module, num_classes: int):
        super().__init__()
        for layer in (trunk.layer4[0].conv2, trunk.layer4[0].downsample[0]):
            layer.stride = (1, 1)
        for name, module in trunk.named_children():
            if name not in ('avgpool', 'fc'):
                self.add_module(name, module)
        self.layer_reduce = nn.Conv2d(2048, REDUCED, 1, bias=False)
        self.layer_reduce_bn = nn.BatchNorm2d(REDUCED)
        self.fc = nn.Linear(REDUCED * (REDUCED + 1) // 2, num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.relu(self.layer_reduce_bn(self.layer_reduce(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        root = square_root(covariance(x.flatten(2)))
        rows, columns = torch.triu_indices(REDUCED, REDUCED)
        triangle = root[:, rows, columns]
        return triangle if pre_logits else self.fc(triangle)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def covariance(x: torch.Tensor) -> torch.Tensor:
    """Return X I' X^T with I' = (I - 11^T / n) / n, of maps [B, C, n]."""
    number = x.shape[-1]
    centring = (torch.eye(number) - torch.full((number, number), 1 / number)) / number
    return x @ centring @ x.transpose(1, 2)


def square_root(matrix: torch.Tensor) -> torch.Tensor:
    """Return Y_5 of the coupled iteration from Y_0 = A / tr(A) and Z_0 = I, times sqrt(tr(A))."""
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    y, z = matrix / trace, torch.eye(REDUCED).expand_as(matrix)
    for _ in range(ITERATIONS):
        middle = 3 * torch.eye(REDUCED) - z @ y
        y, z = y @ middle / 2, middle @ z / 2
    return y * trace.sqrt()


def create(name: str, num_classes: int) -> Network:
    """Return the network of a name such as 'resnet50_mpncov', with random weights."""
    return Network(torch_models.create(name.removesuffix('_mpncov'), 1), num_classes)
