"""Files are there whole or not at all, and private while they are written."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fixres_jax.core import files
from fixres_jax.core.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_file_is_private_until_it_is_whole(tmp_path):
    with files.whole(tmp_path / 'folder' / 'file') as temporary:
        temporary.write_text('half')
        assert mode(temporary) == 0o600 and not (tmp_path / 'folder' / 'file').exists()
    umask = os.umask(0)
    os.umask(umask)
    assert mode(tmp_path / 'folder' / 'file') == 0o666 & ~umask
    assert [path.name for path in (tmp_path / 'folder').iterdir()] == ['file']


def test_an_error_leaves_the_earlier_file(tmp_path):
    files.write(tmp_path / 'file', 'first')
    with pytest.raises(RuntimeError), files.whole(tmp_path / 'file') as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert (tmp_path / 'file').read_text() == 'first'
    files.write(tmp_path / 'file', b'second')  # what the failed one left is no hindrance
    assert (tmp_path / 'file').read_bytes() == b'second'


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / 'other').write_text('precious')
    (tmp_path / '.file.incomplete').symlink_to(tmp_path / 'other')
    files.write(tmp_path / 'file', 'new')
    assert (tmp_path / 'other').read_text() == 'precious' and (tmp_path / 'file').read_text() == 'new'


@pytest.mark.parametrize('path, message', [
    ('gs://bucket/x', r'gs://bucket/x needs the library gcsfs: pip install gcsfs, or this package with .* "gcs"\.'),
    ('s3://bucket/x', r's3://bucket/x needs the library s3fs: pip install s3fs\.'),
])  # fmt: skip
def test_a_bucket_without_its_library_is_refused(path, message, monkeypatch):
    for name in ('gcsfs', 's3fs', 'tensorflow'):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=message):
        files.reachable(path)
    assert str(files.reachable('here/gs:/x')) == 'here/gs:/x'


@pytest.mark.parametrize('arguments', [
    ['main', '--config=configs/quickstart.py', '--workdir=gs://bucket/x'],
    ['main', '--config=configs/quickstart.py', '--workdir=gs://bucket/x', '--config.restore_step=3'],
    ['main', '--config=configs/quickstart.py', '--workdir=OUT', '--config.compilation_cache=gs://bucket/x'],
    ['main', '--config=configs/quickstart.py', '--workdir=OUT', '--config.data.source=gs://bucket/x'],
    ['main', '--config=configs/quickstart.py', '--workdir=OUT', '--config.init_from=gs://bucket/x'],
    ['prepare', 'gs://bucket/x', 'OUT'],
    ['convert', 'resnet18', 'weights.safetensors', 'gs://bucket/x'],
    ['convert', '--to-torch', 'gs://bucket/x', 'weights.safetensors'],
    ['advise', '--images=gs://bucket/x', '--model=none'],
    ['extract', 'score', 'gs://bucket/x'],
])  # fmt: skip
def test_every_command_says_what_a_bucket_needs(arguments, tmp_path):
    module, *rest = (argument.replace('OUT', str(tmp_path / 'out')) for argument in arguments)
    code = (
        'import runpy, sys\n'
        'sys.modules |= {"gcsfs": None, "tensorflow": None}\n'
        f'sys.argv = {[module, *rest]!r}\n'
        f'runpy.run_module("fixres_jax.{module}", run_name="__main__")\n'
    )
    environment = os.environ | {'TPU_SKIP_MDS_QUERY': '1'}
    command = [sys.executable, '-c', code]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 2, ran.stderr
    line = 'fixres_jax: gs://bucket/x needs the library gcsfs: pip install gcsfs, or this package with its extra "gcs".'
    assert ran.stderr.splitlines()[-1] == line and 'Traceback' not in ran.stderr, ran.stderr
