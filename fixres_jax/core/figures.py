"""What every figure is made with: an empty one, its colours, and the way it is saved."""

import io
from typing import Any

import numpy as np
from etils import epath

from fixres_jax.core import files

BEFORE, AFTER, OWN, CHANCE = '#4477aa', '#cc3311', '#228833', '#999999'  # told apart by the colour-blind as well

Figure = Any  # a matplotlib Figure; matplotlib is imported when the first one is drawn, at the end of a run


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, its size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')


def shades(count: int) -> np.ndarray:
    """Return that many colours from dark to light, float[count, 4]."""
    import matplotlib

    return matplotlib.colormaps['viridis'](np.linspace(0, 0.9, count))


def save(figure: Figure, path: epath.Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({'font.size': 11}):
        figure.savefig(buffer, format='png', dpi=150)
    files.write(path, buffer.getvalue())
