"""Files that are there whole or not at all, and that only their owner can read while they are written."""

import contextlib
import importlib.util
import io
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from fixres_jax.core.errors import UsageError

LIBRARIES = {'gs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs'}  # that epath needs for other places than the disk
EXTRAS = {'gcsfs': 'gcs'}  # of this package, which install them
_UMASK = os.umask(0o077)
os.umask(_UMASK)  # it can only be read by setting it


def reachable(path: epath.PathLike) -> epath.Path:
    """Return a path as given.

    Raises:
      UsageError: for one in a bucket whose library is not installed, naming it.
    """
    scheme, separator, _ = str(path).partition('://')
    library = LIBRARIES.get(scheme if separator else '')
    # TensorFlow reads buckets too, and etils prefers it.
    if library and not any(importlib.util.find_spec(name) for name in (library, 'tensorflow')):
        extra = f', or this package with its extra "{EXTRAS[library]}"' if library in EXTRAS else ''
        raise UsageError(f'{path} needs the library {library}: pip install {library}{extra}.')
    return epath.Path(path)


def absolute(path: epath.PathLike) -> epath.Path:
    """Return a path from the root, without links; one in a bucket as it is, for epath would call it relative."""
    path = epath.Path(path)
    return path if '://' in str(path) else path.resolve()


def private(path: epath.PathLike) -> None:
    """Make an empty file that nobody else can read; in a bucket, whose own rules hold, do nothing."""
    if '://' not in str(path):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


@contextlib.contextmanager
def whole(path: epath.PathLike, mark: str = '') -> Iterator[epath.Path]:
    """Give a private temporary file beside a path; it takes the path's place when the block ends without an error.

    Args:
      path: of the file to be.
      mark: goes into the temporary name, where several processes may write the same file.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f'.{path.name}{mark and "."}{mark}.incomplete'
    private(temporary)
    yield temporary
    if '://' not in str(path):
        os.chmod(temporary, 0o666 & ~_UMASK)
    temporary.replace(path)


def write(path: epath.PathLike, content: str | bytes, mark: str = '') -> None:
    """Write a file whole or not at all, text as UTF-8; its folder is made. For `mark` see `whole`."""
    data = content.encode() if isinstance(content, str) else content
    if '://' in str(path):
        epath.Path(path).write_bytes(data)  # An object in a bucket is there when it is whole; to rename is to copy it.
        return
    with whole(path, mark) as temporary:
        temporary.write_bytes(data)


def write_json(path: epath.PathLike, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write(path, json.dumps(value, indent=2) + '\n')


def read_json(path: epath.PathLike) -> Any:
    """Return the content of a JSON file, or None when it is not there."""
    path = epath.Path(path)
    return json.loads(path.read_text()) if path.exists() else None


def write_arrays(path: epath.PathLike, arrays: Mapping[str, Any]) -> None:
    """Write named arrays as an .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write(path, buffer.getvalue())


def read_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file; none when it is not there."""
    path = epath.Path(path)
    return dict(np.load(io.BytesIO(path.read_bytes()))) if path.exists() else {}
