"""Hold the shape of the package: who imports whom, where the defaults live, how long a file may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / 'fixres_jax').rglob('*.py'))
CONFIGS = sorted((ROOT / 'configs').rglob('*.py'))

# A module imports from the lines above its own; the modules of one folder may import each other.
LAYERS = [
    ['errors', '__init__', '__version__'],
    ['files'],
    ['trees', 'metrics', 'rules', 'sharding', 'preemption', 'processes', 'progress', 'chips', 'checksums', 'disk'],
    ['command', 'footprint', 'workdir', 'models', 'data', 'analysis.frechet'],
    ['optim', 'state', 'prepare', 'analysis.sizes', 'releases', 'state_dicts'],
    ['sections'],
    ['settings'],
    ['checkpoint'],
    ['embeddings', 'convert'],
    ['classifier'],
    ['loop', 'evaluate', 'extract', 'advise'],
    ['train', 'analysis'],
    ['adapt'],
    ['studies'],
    ['plan'],
    ['phases'],
    ['analyze'],
    ['recipe'],
    ['main'],
    ['dryrun'],
]
DATA_MAY_IMPORT = {'numba', 'numpy', 'PIL', 'grain', 'etils', 'absl', 'array_record', 'tensorflow_datasets'}
FORBIDDEN = ('config.get(', 'pmap(', 'shard_map(', 'flax.training')


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


def layer(module: str) -> int:
    """Return the line of LAYERS that holds a module such as 'fixres_jax.models.resnet', or its package."""
    parts = module.split('.')[1:]
    for length in range(len(parts), 0, -1):
        for height, names in enumerate(LAYERS):
            if '.'.join(parts[:length]) in names:
                return height
    raise AssertionError(f'{module} stands in no line of LAYERS')


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    own = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    family = own.split('.')[1] if path.parent != ROOT / 'fixres_jax' else None
    for name in imports(path):
        assert not name.startswith('configs'), f'{own} imports {name}'
        parts = name.split('.')
        if parts[0] == 'fixres_jax' and parts[1] != family:
            assert layer(name) < layer(own), f'{own} imports {name}, which is not below it'


def test_data_imports_no_accelerator_library():
    for path in MODULES:
        if path.parent.name == 'data':
            known = DATA_MAY_IMPORT | set(sys.stdlib_module_names)
            for name in imports(path):
                ours = name.startswith(('fixres_jax.data', 'fixres_jax.errors', 'fixres_jax.files'))
                assert ours or name.split('.')[0] in known, f'{path} imports {name}'


def test_configs_do_not_import_the_package():
    for path in CONFIGS:
        assert not [name for name in imports(path) if name.startswith('fixres_jax')], path


@pytest.mark.parametrize('path', MODULES + CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_forbidden_names_and_no_endless_files(path):
    text = path.read_text()
    assert not [word for word in FORBIDDEN if word in text], path
    assert len(text.splitlines()) <= 400, f'{path} is long for one noun'
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and path in MODULES:  # A config is a list, as long as it has to be.
            length = node.end_lineno - node.lineno - len((ast.get_docstring(node) or '').splitlines())
            assert length < 80, f'{path}: {node.name} is long for one idea'
