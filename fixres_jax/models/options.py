"""The section `model` of the config: which network, with which options."""

import dataclasses
from typing import Any

from fixres_jax.core import sections
from fixres_jax.core.sections import Section
from fixres_jax.models import ARCHITECTURES
from fixres_jax.models.architecture import REMAT


@dataclasses.dataclass(frozen=True)
class Options(Section):
    """The network."""

    PATH = 'model.'
    RULES = {
        'name': lambda: sections.one_of(('', *ARCHITECTURES), 'resnet50'),
        'num_classes': sections.least(0, 0),
        'width': sections.least(0, 64),
        'dtype': sections.one_of(('auto', 'float32', 'bfloat16')),
        'bn_group_size': sections.least(0, 64),
        'remat': sections.one_of(REMAT, 'block'),
        'dropout': sections.Rule(lambda v: v == -1 or 0 <= v < 1, 'a share below 1, or -1', 0.2),
        'drop_path': sections.Rule(lambda v: v == -1 or 0 <= v < 1, 'a share below 1, or -1', 0.2),
    }

    name: str
    num_classes: int
    width: int
    dtype: str
    bn_group_size: int
    remat: str
    zero_init_residual: bool
    dropout: float
    drop_path: float
    padding: str

    @property
    def of_family(self) -> dict[str, Any]:
        """The options that not every family has, those that the config sets: the others are the network's own."""
        unset = {'zero_init_residual': False, 'dropout': -1, 'drop_path': -1, 'padding': ''}
        return {name: getattr(self, name) for name, value in unset.items() if getattr(self, name) != value}
