"""What a run ran on, and how to run it again."""

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax
from etils import epath


def describe() -> dict[str, Any]:
    """Say what the run ran on and how to run it again."""
    device = jax.devices()[0]
    packages = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'Pillow')
    return {
        'command': _command(),
        'date': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d'),
        'devices': f'{jax.device_count()} x {device.device_kind} ({device.platform})',
        'commit': _commit(),
        'host': f'{platform.machine()}, {platform.system()}',
        'versions': {'python': platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
    }


def _command() -> str:
    """Return the command of this process, quoted for a shell."""
    program = epath.Path(sys.argv[0])
    module = 'main'  # also where the program is used from another one
    if program.suffix == '.py' and program.parent.name == 'fixres_jax':
        module = program.stem
    start = (
        ['fixres'] if program.stem == 'fixres' else ['python', '-m', f'fixres_jax.{module}'.removesuffix('.__main__')]
    )
    return shlex.join([*start, *sys.argv[1:]])


def _commit() -> str:
    """Return the git commit that the program was started from, marked when files differ from it; '' without git."""
    command = 'git describe --always --dirty --abbrev=12 --match='.split()
    try:
        folder = epath.Path(__file__).parent
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ''
