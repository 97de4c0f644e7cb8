"""What the compilers for GPU and TPU make of a training step: it moves what it moved, and no float32 activation."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parent / 'goldens'
COMPILERS = {'h100': ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13'), 'v5e:2x2': ('libtpu',)}


def installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize('topology', COMPILERS)
def test_a_step_moves_what_it_moved_and_writes_no_float32_activation(topology):
    if not any(map(installed, COMPILERS[topology])):
        pytest.skip(f'no compiler for {topology}')
    done = subprocess.run(
        [sys.executable, str(GOLDENS / 'compiled_step.py'), topology],
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(GOLDENS.parents[1]), 'XLA_FLAGS': ''},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['float32'] == []
    expected = json.loads((GOLDENS / 'compiled.json').read_text())[topology]
    assert found['bytes'] == pytest.approx(expected, rel=0.02)
