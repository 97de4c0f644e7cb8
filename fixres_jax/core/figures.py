"""What every figure is made with: an empty one, its colours and strokes, and the way it is saved.

Figures are SVG with their text as text. Each is as wide as a phone, so that letters of 10 points are legible there; a
larger page enlarges it. A style sheet inside gives every colour a counterpart for dark mode, so a figure follows the
reader's choice wherever it is shown; a program that does not know style sheets shows it as it is in light mode.
"""

import colorsys
import io
import re
from typing import Any

import numpy as np
from etils import epath

from fixres_jax.core import files

BEFORE, AFTER, OWN, CHANCE = '#4477aa', '#cc3311', '#228833', '#888888'  # told apart by the colour-blind as well
INK, PAPER = '#000000', '#ffffff'
DARK_INK, DARK_PAPER = '#dedede', '#121212'
WIDTH = 5  # inches: 360 points, the width of a phone

Figure = Any  # a matplotlib Figure; matplotlib is imported when the first one is drawn, at the end of a run


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure, its size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')


def shades(count: int) -> np.ndarray:
    """Return that many colours from dark to middling, float[count, 4]: both ends are seen on white and on black."""
    import matplotlib

    return matplotlib.colormaps['viridis'](np.linspace(0, 0.65, count))


def strokes(count: int) -> np.ndarray:
    """Return widths in points for curves drawn one over the other: where some coincide, all are seen."""
    return np.linspace(1.4 + 0.5 * min(count, 5), 1.5, count) if count > 1 else np.array([2.0])


def legend_below(figure: Figure, columns: int = 2) -> None:
    """Put the legend of all axes under a figure, where it hides no curve."""
    handles = {}
    for axes in figure.axes:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc='outside lower center', ncols=columns, frameon=False, fontsize=9
    )


def save(figure: Figure, path: epath.Path) -> None:
    """Write a figure as SVG, whole or not at all; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': path.stem}):
        figure.savefig(buffer, format='svg', metadata={'Date': None})
    files.write(path, _follow_dark_mode(_without_ids(buffer.getvalue())))


def _without_ids(svg: str) -> str:
    """Leave out the description of the file and the names that nothing refers to: several figures share one page."""
    svg = re.sub(r'<metadata>.*?</metadata>\s*', '', svg, flags=re.DOTALL)
    used = set(re.findall(r'#([\w.-]+)', svg))
    return re.sub(r' id="([\w.-]+)"', lambda match: match[0] if match[1] in used else '', svg)


def _follow_dark_mode(svg: str) -> str:
    """Add a rule of dark mode for each colour that strokes or fills; what has no colour of its own is ink."""
    found = sorted(set(re.findall(r'\b(fill|stroke): (#[0-9a-f]{6})', svg)))
    rules = [f'[style*="{what}: {colour}"] {{ {what}: {_dark(colour)} !important; }}' for what, colour in found]
    rules = '\n'.join([f'svg {{ fill: {DARK_INK}; }}', *rules])
    style = f'<style>\nsvg {{ fill: {INK}; }}\n@media (prefers-color-scheme: dark) {{\n{rules}\n}}\n</style>\n'
    return re.sub(r'(<svg[^>]*>\n)', lambda match: match[1] + style, svg, count=1)


def _dark(colour: str) -> str:
    """Return the counterpart of a colour on a dark page: of the same hue, light where it was dark."""
    if colour in (INK, PAPER):
        return {INK: DARK_INK, PAPER: DARK_PAPER}[colour]
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    light = colorsys.hls_to_rgb(hue, min(max(1 - lightness, 0.62), 0.85), saturation)
    return '#' + ''.join(f'{round(255 * part):02x}' for part in light)
