"""Studies: what a trained and an adapted network show, each computed, drawn and tabulated by a file of its own.

A study is a row of `STUDIES`. It may look at everything in a `Subject`, returns numbers and arrays, which go to disk,
and its figures are drawn from those alone.

May import adaptation and what adaptation may import.
"""

from etils import epath

from fixres_jax.core import figures, files
from fixres_jax.machines import processes
from fixres_jax.studies import ablation, activations, cost, grid, regions, robustness
from fixres_jax.studies.study import Analysis, Numbers, Pair, Picture, Study, Subject, Variant

__all__ = ['STUDIES', 'Analysis', 'Numbers', 'Pair', 'Picture', 'Study', 'Subject', 'Variant', 'draw', 'make', 'read']

FOLDER = 'studies'
# In the order in which a report shows them.
STUDIES: dict[str, Study] = {
    'ablation': ablation.STUDY,
    'activations': activations.STUDY,
    'regions': regions.STUDY,
    'cost': cost.STUDY,
    'robustness': robustness.STUDY,
    'grid': grid.STUDY,
}


def make(workdir: epath.Path, name: str, subject: Subject) -> None:
    """Compute a study, write its numbers and arrays into a workdir, and draw its figures from them."""
    numbers, arrays = STUDIES[name].compute(subject)
    if processes.is_host0():
        files.write_arrays(workdir / FOLDER / f'{name}.npz', arrays)
        files.write_json(workdir / FOLDER / f'{name}.json', numbers)
        draw(workdir, name)


def draw(workdir: epath.Path, name: str) -> None:
    """Draw the figures of a study into plots/<figure>.svg, if it has been made."""
    numbers = read(workdir, name)
    if numbers is None:
        return
    arrays = files.read_arrays(workdir / FOLDER / f'{name}.npz')
    for file, picture in STUDIES[name].pictures.items():
        figure = picture.draw(numbers, arrays)
        if figure is not None:
            figures.save(figure, workdir / 'plots' / f'{file}.svg')


def read(workdir: epath.Path, name: str) -> Numbers | None:
    """Return the numbers of a study, or None when it has not been made."""
    return files.read_json(epath.Path(workdir) / FOLDER / f'{name}.json')
