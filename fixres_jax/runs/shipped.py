"""The configs that come with the program: where they lie, found by name, importable by the configs of others.

In a clone they are the folder `configs` beside the package; an installed package has that folder inside.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

PACKAGE = 'configs'  # as config files import it: `from configs import base`
_HERE = Path(__file__).resolve().parent.parent
FOLDER = next((path for path in (_HERE / PACKAGE, _HERE.parent / PACKAGE) if (path / 'base.py').is_file()), _HERE)


def names() -> list[str]:
    """Return what `--config NAME` takes."""
    return sorted(path.stem for path in FOLDER.glob('[!_]*.py') if path.stem != 'base')


def find(name: str) -> str:
    """Return the file of a config: itself where it is one, else that of the program's own of this name.

    Args:
      name: a path, or a name such as 'resnet50', or 'configs/resnet50.py' away from a clone.
    """
    path = Path(name)
    own = FOLDER / f'{path.stem}.py'
    return str(own) if not path.is_file() and path.parent in (Path(), Path(PACKAGE)) and own.is_file() else name


def provide() -> None:
    """Let config files say `from configs import base` wherever the program is installed."""
    try:
        found = importlib.util.find_spec(f'{PACKAGE}.base')
    except ModuleNotFoundError:
        found = None
    if found is None:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, FOLDER / '__init__.py', submodule_search_locations=[str(FOLDER)]
        )
        sys.modules[PACKAGE] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def base() -> Any:
    """Return the ConfigDict that holds every field with its default."""
    provide()
    return importlib.import_module(f'{PACKAGE}.base').get_config()
