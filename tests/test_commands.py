"""`fixres` and its commands, as they are typed: from a clone, and from a wheel away from it."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fixres_jax import __main__ as fixres
from fixres_jax.core import command
from fixres_jax.runs import command_line, shipped

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _as_in_a_process_of_its_own(monkeypatch):
    """Other tests have imported the commands, which `python -m` would warn of."""
    for module, _ in fixres.COMMANDS.values():
        monkeypatch.delitem(sys.modules, module, raising=False)


def test_every_command_is_a_module_and_every_module_a_command():
    modules = {module for module, _ in fixres.COMMANDS.values()}
    assert all(importlib.util.find_spec(module) for module in modules)
    files = {path for path in (ROOT / 'fixres_jax').glob('*.py') if 'command.run(' in path.read_text()}
    assert {f'fixres_jax.{path.stem}' for path in files} - {'fixres_jax.__main__'} == modules


@pytest.mark.parametrize('name', [name for name in fixres.COMMANDS if name not in ('run', 'dryrun')])
def test_help_has_the_name_that_was_typed(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['fixres', name, '--help'])
    assert fixres.main() == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f'usage: fixres {name} ') and f'fixres {name} ' in printed[30:]


def test_without_a_command_it_lists_them(capsys):
    assert fixres.main([]) == 0
    assert fixres.COMMANDS.keys() <= set(capsys.readouterr().out.split())


def test_a_wrong_command_is_one_line(capsys):
    assert fixres.main(['adopt', 'x']) == 2
    assert capsys.readouterr().err.startswith("fixres_jax: 'adopt' is not a command. Did you mean 'adapt'?")


def test_a_wrong_option_ends_with_its_code(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['fixres'])
    assert fixres.main(['predict', 'net.safetensors']) == 2
    assert 'See fixres predict --help' in capsys.readouterr().err


@pytest.mark.parametrize('given, file', [
    (['--config', 'resnet50:128'], 'resnet50.py:128'),
    (['--config=quickstart'], 'quickstart.py'),
    (['--config', 'finetune:resnet50,paper', '--config.seed=1'], 'finetune.py:resnet50,paper'),
    (['--config=configs/resnet50.py'], 'resnet50.py'),
])  # fmt: skip
def test_configs_are_found_by_name_away_from_a_clone(given, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = command_line._found(['fixres', *given])
    assert found[-1 if 'seed' not in given[-1] else -2].endswith(f'{shipped.FOLDER}/{file}')
    assert len(found) == len(given) + 1


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'quickstart').write_text('')
    assert shipped.find('quickstart') == 'quickstart' and shipped.find('nothing') == 'nothing'
    assert shipped.find('elsewhere/quickstart.py') == 'elsewhere/quickstart.py'


def test_the_wheel_has_every_room():
    listed = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']['packages']
    rooms = {path.parent.name for path in (ROOT / 'fixres_jax').glob('*/__init__.py')}
    assert listed == ['fixres_jax', *(f'fixres_jax.{name}' for name in sorted(rooms | {'configs'}))]


def test_the_name_of_the_program_is_that_of_the_script():
    scripts = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']
    assert scripts == {command.PROGRAM: 'fixres_jax.__main__:main'}


@pytest.mark.slow
def test_a_wheel_works_away_from_the_clone(tmp_path):
    """The wheel, in an environment of its own that borrows the libraries of this one."""

    def run(*words, expect=0, **options):
        environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
        done = subprocess.run(
            words, cwd=tmp_path, env=environment | options, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == expect, done.stderr
        return done.stdout + done.stderr

    # A copy: setuptools leaves a folder beside what it builds.
    tracked = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if name.startswith(('fixres_jax', 'configs', 'pyproject', 'requirements', 'README', 'LICENSE')):
            target = tmp_path / 'source' / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    run(sys.executable, '-m', 'venv', 'venv')
    run('venv/bin/python', '-m', 'pip', 'wheel', '--no-deps', '--wheel-dir', 'wheels', './source')
    run('venv/bin/python', '-m', 'pip', 'install', '--no-deps', *map(str, (tmp_path / 'wheels').glob('*.whl')))
    borrowed = next(path for path in map(Path, sys.path) if (path / 'jax').is_dir())
    site = next((tmp_path / 'venv' / 'lib').glob('python*/site-packages'))
    (site / 'borrowed.pth').write_text(f'{borrowed}\n')
    fixres_script = 'venv/bin/fixres'
    assert 'site-packages/fixres_jax/__init__.py' in run(
        'venv/bin/python', '-c', 'import fixres_jax; print(fixres_jax.__file__)'
    )
    assert (site / 'fixres_jax' / 'py.typed').exists()
    assert 'evaluate' in run(fixres_script, '--help')
    assert 'predictions.csv' in run('venv/bin/python', '-m', 'fixres_jax.predict', '--help')
    shipped = sorted({path.stem for path in (ROOT / 'configs').glob('*.py')} - {'__init__', 'base'})
    assert f'Those that come with the program are {", ".join(shipped)}.' in run(
        fixres_script, 'run', '--config', 'xyzzy', '--workdir', 'w', expect=2
    )
    printed = run(
        fixres_script, 'run', '--config', 'quickstart', '--workdir', 'run', '--config.task=train',
        '--config.train.epochs=0.1', '--config.data.drawings.train=90', '--config.data.drawings.val=18',
        '--config.data.workers=1', JAX_PLATFORMS='cpu',
    )  # fmt: skip
    assert (tmp_path / 'run' / 'train' / 'fixres.json').exists(), printed
    assert 'val' in run(fixres_script, 'evaluate', 'run', 'run/data', '--resolutions', '48', JAX_PLATFORMS='cpu')
    # A config of one's own that begins from those of the program.
    (tmp_path / 'mine.py').write_text('from configs.quickstart import get_config\n')
    run(fixres_script, 'dryrun', '--config', 'mine.py', '--devices', '1', '--steps', 'evaluate', '--config.seed=1')
