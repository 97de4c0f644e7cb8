"""Files are there whole or not at all, and private while they are written."""

import os
import stat

import pytest

from fixres_jax import files


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
