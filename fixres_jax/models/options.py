"""The section `model` of the config: which network, with which options."""

import dataclasses

from fixres_jax.core import sections
from fixres_jax.core.sections import Section
from fixres_jax.models import ARCHITECTURES
from fixres_jax.models.resnet import REMAT


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
    }

    name: str
    num_classes: int
    width: int
    dtype: str
    bn_group_size: int
    remat: str
    zero_init_residual: bool
