"""How commands end: in one line, with the right exit code, or quietly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fixres_jax.core import command
from fixres_jax.core.errors import RunError, UsageError

ROOT = Path(__file__).resolve().parent.parent


def fail(error):
    raise error


@pytest.mark.parametrize('error, code, line', [
    (UsageError('wrong.'), 2, 'wrong.'),
    (RunError('broken.'), 1, 'broken.'),
    (KeyboardInterrupt(), 130, 'interrupted.'),
])  # fmt: skip
def test_an_error_is_one_line_and_an_exit_code(error, code, line, capsys):
    assert command.run(fail, error) == code
    assert capsys.readouterr().err == f'fixres_jax: {line}\n'


def test_exit_codes_pass_through_and_other_errors_are_not_hidden():
    assert command.run(lambda: None) == 0 and command.run(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        command.run(lambda: 1 / 0)


@pytest.mark.parametrize('arguments', [['convert', '--list'], ['advise', '--model=none']])
def test_a_closed_pipe_ends_a_command_quietly(arguments):
    read, write = os.pipe()
    os.close(read)
    try:
        invocation = [sys.executable, '-m', f'fixres_jax.{arguments[0]}', *arguments[1:]]
        ran = subprocess.run(invocation, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    finally:
        os.close(write)
    assert (ran.returncode, ran.stderr) == (command.PIPE_CLOSED, '')
