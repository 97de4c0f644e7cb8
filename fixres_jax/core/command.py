"""How a command ends: an error in one line with its exit code, a closed pipe in silence."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from etils import epath

from fixres_jax.core import disk, files
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.core.resolution import Resolution

INTERRUPTED, PIPE_CLOSED = 130, 141  # as shells report a program that SIGINT or SIGPIPE ended
PROGRAM = 'fixres'  # the console script
_called = ''  # name under which `main` of the package runs a command


def call(name: str) -> None:
    """Let parsers say that they belong to a command of the console script; '' for a module of its own."""
    global _called
    _called = name and f'{PROGRAM} {name}'


class Parser(argparse.ArgumentParser):
    """Tell a wrong command line in one line, as every other wrong input."""

    def __init__(self, prog: str, describe: str = '', **options: Any):
        """Make a parser; in help and errors it has the name under which the command was called.

        Args:
          prog: its name where it was called as a module.
          describe: docstring of the command: its first line, and after an empty one examples, which are kept as they
            stand.
          **options: of argparse.
        """
        if describe:
            first, _, rest = describe.partition('\n')
            options |= {'description': first, 'epilog': f'examples:\n{rest.strip(chr(10)).rstrip()}'}
            other = options.get('formatter_class', argparse.HelpFormatter)
            options['formatter_class'] = type('Help', (argparse.RawDescriptionHelpFormatter, other), {})
        super().__init__(prog=_called or prog, **options)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f'{message}. See {self.prog} --help.')


def pixels(text: str) -> int | Resolution:
    """Return a resolution of a command line."""
    try:
        return Resolution.parse(text)
    except TypeError:
        raise argparse.ArgumentTypeError(f'{text!r} is no size: expected pixels, such as 288 or 352x640') from None


def empty_folder(path: str) -> epath.Path:
    """Return a folder to write into.

    Raises:
      UsageError: when there is something in it already.
    """
    folder = files.reachable(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f'{path} is not an empty folder: choose another one.')
    return folder


def run(function: Callable[..., int | None], *arguments: Any, interrupted: str = 'interrupted.') -> int:
    """Call a command's function, and turn what ends it early into one line on the error stream.

    Args:
      function: does the work; returns None or an exit code.
      *arguments: for it.
      interrupted: the line after Ctrl-C.

    Returns:
      The exit code: what the function returned, 2 for wrong input, 1 for a failure, 130 after Ctrl-C.
    """
    try:
        try:
            return function(*arguments) or 0
        finally:
            sys.stdout.flush()  # Here, not when Python ends, where an error cannot be caught.
    except UsageError as error:
        return _say(error, 2)
    except RunError as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        return _say(interrupted, INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output (`| head`) has enough. What is still to be written goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        reason = disk.reason(error)
        if not reason:
            raise
        text = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
        return _say(f'Stopped: {reason} ({text}). Make room or mend the disk; then give the same command again.', 1)


def _say(message: object, code: int) -> int:
    print(f'fixres_jax: {message}', file=sys.stderr, flush=True)
    return code
