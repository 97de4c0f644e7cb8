"""The committed results can be had again by their commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_quickstart_gives_the_committed_numbers_again(tmp_path):
    out = tmp_path / 'found.json'
    command = [sys.executable, 'benchmarks/experiments.py', 'quickstart', '--seeds', '0']
    done = subprocess.run(
        [*command, '--runs', str(tmp_path), '--out', str(out)], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())['rows'][0]
    committed = json.loads((ROOT / 'docs/results/quickstart.json').read_text())['rows'][0]
    for name in ('train_resolution', 'larger', 'adapted', 'adapted_at_train_resolution'):
        assert found[name]['low'] <= committed[name]['each'][0] <= found[name]['high'], name
