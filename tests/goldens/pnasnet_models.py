"""timm's PNASNet beside ours, at any width and with either padding; import this only where timm can be imported."""

import torch
from timm.layers import ConvNormAct
from timm.layers.pool2d_same import MaxPool2dSame
from timm.models import pnasnet
from torch import nn

from goldens import timm_models, weights
from goldens.timm_models import apply, train

__all__ = ['apply', 'load', 'pad_as_cadene', 'train']

STEM, FILTERS = 96, 216
# Outputs of the two cells before it and its own, in channels over those of the first normal cells; stem as None.
CELLS = {
    'cell_stem_1': (None, 5 / 4, 1 / 2), 'cell_0': (5 / 4, 5 / 2, 1), 'cell_1': (5 / 2, 5, 1), 'cell_2': (5, 5, 1),
    'cell_3': (5, 5, 1), 'cell_4': (5, 5, 2), 'cell_5': (5, 10, 2), 'cell_6': (10, 10, 2), 'cell_7': (10, 10, 2),
    'cell_8': (10, 10, 4), 'cell_9': (10, 20, 4), 'cell_10': (20, 20, 4), 'cell_11': (20, 20, 4),
}  # fmt: skip
REDUCTIONS = ('cell_stem_1', 'cell_4', 'cell_8')
AFTER_REDUCTIONS = ('cell_stem_1', 'cell_0', 'cell_5', 'cell_9')


def load(name: str, weight=weights.weight, width: int = STEM) -> nn.Module:
    """Return timm's network with weights that are a function of name and shape, and `width` channels in its stem."""
    if width == STEM:
        return timm_models.load(name, weight)
    with torch.device('meta'):
        model = timm_models.create(name)
    _narrow(model, width, 4 * round(FILTERS * width / STEM / 4))
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(weight(key, shape)) for key, shape in shapes.items()}, strict=True)
    return model


def _narrow(model: nn.Module, width: int, filters: int) -> None:
    """Put cells of fewer channels in the place of timm's own."""

    def channels(factor: float | None) -> int:
        return width if factor is None else int(filters * factor)

    def norm(features: int, **_) -> nn.Module:
        return nn.BatchNorm2d(features, eps=1e-3)

    stem = channels(1 / 4)
    model.conv_0 = ConvNormAct(3, width, kernel_size=3, stride=2, padding=0, norm_layer=norm, apply_act=False)
    model.cell_stem_0 = pnasnet.CellStem0(width, stem, width, stem, pad_type='same')
    for cell, (left, right, own) in CELLS.items():
        own = channels(own)
        setattr(model, cell, pnasnet.Cell(
            channels(left), own, channels(right), own, pad_type='same',
            is_reduction=cell in REDUCTIONS, match_prev_layer_dims=cell in AFTER_REDUCTIONS,
        ))  # fmt: skip
    model.last_linear = nn.Linear(channels(20), weights.CLASSES)


class Cropped(nn.Module):
    """Apply a layer to a map with a row and a column of zeros in front, and cut off the first of the result."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(nn.functional.pad(x, (1, 0, 1, 0)))[:, :, 1:, 1:]


def pad_as_cadene(model: nn.Module) -> nn.Module:
    """Turn the padding of timm's network, in place, into that of the released FixPNASNet.

    Windows are padded by half of their side on all ends; in cell_4 those of stride 2 are cropped as well.
    """
    for name, module in list(model.named_modules()):
        strided = getattr(module, 'stride', None) in (2, (2, 2))
        if strided and isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1 and not name.startswith('conv_0'):
            side = module.kernel_size[0]
            layer = nn.Conv2d(
                module.in_channels, module.out_channels, side, 2, side // 2, groups=module.groups, bias=False
            )
            layer.weight = module.weight
        elif strided and isinstance(module, MaxPool2dSame):
            layer = nn.MaxPool2d(3, 2, 1)
        else:
            continue
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, Cropped(layer) if name.startswith('cell_4.') else layer)
    return model
