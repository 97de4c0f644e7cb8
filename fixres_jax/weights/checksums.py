"""Checksums of the files of a folder, so that a damaged one is named instead of read."""

import json
import zlib

from etils import epath

NAME = 'checksums.json'
_CHUNK = 2**20  # bytes


def write(folder: epath.Path) -> None:
    """Write the size and the CRC-32 of every file in the folders inside a folder into one more file."""
    inside = [path for path in folder.iterdir() if path.is_dir()]
    files = {str(path.relative_to(folder)): _measure(path) for item in inside for path in _files(item)}
    (folder / NAME).write_text(json.dumps(files, indent=0))


def verify(folder: epath.Path, inside: str = '') -> str:
    """Say what is wrong with the files of a folder, or '' when nothing is or nothing is known.

    Args:
      folder: where `write` was called.
      inside: only the files of this folder inside it.
    """
    path = folder / NAME
    if not path.exists():
        return ''
    try:
        files = json.loads(path.read_text())
    except ValueError:
        return f'{path} is damaged'
    for name, (size, crc) in files.items():
        if not name.startswith(inside):
            continue
        if not (folder / name).exists():
            return f'{folder / name} is missing'
        found = _measure(folder / name)
        if found[0] != size:
            return f'{folder / name} has {found[0]} bytes and had {size} when it was written'
        if found[1] != crc:
            return f'{folder / name} has other bytes than when it was written'
    return ''


def _files(folder: epath.Path) -> list[epath.Path]:
    files = []
    for path in sorted(folder.iterdir()):
        files += _files(path) if path.is_dir() else [path]
    return files


def _measure(path: epath.Path) -> list[int]:
    size, crc = 0, 0
    with path.open('rb') as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return [size, crc]
