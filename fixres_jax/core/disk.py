"""A full or broken disk: whoever writes tells it in one line, and the libraries' threads keep their pages."""

import errno
import logging
import os
import sys
import threading
from typing import Any

ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_previous_hook = sys.unraisablehook


def reason(error: BaseException) -> str:
    """Return what is wrong with the disk, such as 'no space left on device', or '' for an error of another kind."""
    # Libraries in C++ raise their own errors, with the system's words inside, or others while they handle those.
    found = next((text for text in map(os.strerror, ERRNOS) if text in str(error)), '')
    if not found and error.__context__:
        return reason(error.__context__)
    return found.lower()


def quieten() -> None:
    """Keep threads of the libraries that write from printing the errors of the disk that their caller raises."""
    global _previous_hook
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).addFilter(_is_news)
    if sys.unraisablehook is not _show:
        _previous_hook, sys.unraisablehook = sys.unraisablehook, _show


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[1] and reason(record.exc_info[1]))


def _show(unraisable: Any) -> None:
    """Show an error that nobody can catch, but for one: a write that ends after its failed save has nobody to tell."""
    late = unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == 'Event loop is closed'
    if not (late and threading.current_thread() is not threading.main_thread()):
        _previous_hook(unraisable)
