"""Hold the shape of the package: who imports whom, where the defaults live, how long a file may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / 'fixres_jax').rglob('*.py'))
CONFIGS = sorted((ROOT / 'configs').rglob('*.py'))

# A room imports from the lines above its own; the modules of one room may import each other.
ROOMS = [
    ['__version__', 'core'],
    ['models', 'data'],
    ['machines'],
    ['weights'],
    ['training', 'evaluation'],
    ['adaptation'],
    ['studies'],
    ['report'],
    ['runs'],
    ['library'],
]
# Thin, above all rooms; so is what the package itself shows.
COMMANDS = {
    '__init__', '__main__', 'adapt', 'advise', 'convert', 'dryrun', 'evaluate', 'extract', 'main', 'predict', 'prepare',
    'recalibrate',
}  # fmt: skip
DATA_MAY_IMPORT = {
    'numba',
    'numpy',
    'scipy',
    'PIL',
    'grain',
    'etils',
    'absl',
    'array_record',
    'tensorflow_datasets',
    'simplejpeg',
}
BEAM = 'fixres_jax/data/beam.py'  # the one file that imports Beam, which is an extra
CORE_WITHOUT_JAX = ('errors', 'files', 'progress', 'resolution', 'sections')
FORBIDDEN = ('config.get(', 'pmap(', 'shard_map(', 'flax.training')
EXEMPT = {('devices.py', 'shard_map(')}  # around an error of XLA


def imports(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports, also those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: a relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def floor(module: str) -> int:
    """Return the line of ROOMS that holds a module such as 'fixres_jax.models.resnet'; commands are above all."""
    room = module.split('.')[1]
    if room in COMMANDS:
        return len(ROOMS)
    return next(height for height, rooms in enumerate(ROOMS) if room in rooms)


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    own = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for name in imports(path):
        assert not name.startswith('configs'), f'{own} imports {name}'
        parts = name.split('.')
        if parts[0] == 'fixres_jax' and parts[1] != own.split('.')[1]:
            assert floor(name) < floor(own), f'{own} imports {name}, which is not below it'


def test_every_room_says_what_belongs_there():
    for folder in (ROOT / 'fixres_jax').iterdir():
        if folder.is_dir() and folder.name not in ('__pycache__', 'configs'):
            text = ast.get_docstring(ast.parse((folder / '__init__.py').read_text()))
            assert text.lower().startswith(f'{folder.name}: ') and 'import' in text.lower(), folder


def test_the_map_has_a_line_for_every_file():
    text = (ROOT / 'docs' / 'architecture.md').read_text()
    missing = [path.name for path in MODULES if path.name != '__init__.py' and f'`{path.name}`' not in text]
    assert not missing, missing


def test_data_imports_no_accelerator_library():
    for path in MODULES:
        if path.parent.name == 'data':
            known = DATA_MAY_IMPORT | set(sys.stdlib_module_names) | ({'apache_beam'} if path == ROOT / BEAM else set())
            for name in imports(path):
                ours = name.startswith(
                    ('fixres_jax.data', *(f'fixres_jax.core.{module}' for module in CORE_WITHOUT_JAX))
                )
                assert ours or name.split('.')[0] in known, f'{path} imports {name}'


def test_configs_do_not_import_the_package():
    for path in CONFIGS:
        assert not [name for name in imports(path) if name.startswith('fixres_jax')], path


@pytest.mark.parametrize('path', MODULES + CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_forbidden_names_and_no_endless_files(path):
    text = path.read_text()
    assert not [word for word in FORBIDDEN if word in text and (path.name, word) not in EXEMPT], path
    assert len(text.splitlines()) <= 400, f'{path} is long for one noun'
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and path in MODULES:  # A config is a list, as long as it has to be.
            length = node.end_lineno - node.lineno - len((ast.get_docstring(node) or '').splitlines())
            assert length < 80, f'{path}: {node.name} is long for one idea'
