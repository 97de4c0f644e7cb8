"""Sections of the config for tests, which name only the fields that they are about."""

import dataclasses

from configs import base
from fixres_jax.core import sections
from fixres_jax.training.optimization import Optimization


def optimization(**fields):
    """Return an Optimization with the defaults of `configs/base.py` for fields that are not given."""
    defaults = base.get_config().finetune
    names = [field.name for field in dataclasses.fields(Optimization)]
    return sections.fill(Optimization, {name: defaults[name] for name in names} | fields)
