"""The command line of a run: its flags, its config file, and what is wrong with either, in one line.

Imports no jax: processes that read images come by here too.
"""

import inspect
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.runs import shipped

EXAMPLE = '--config configs/quickstart.py --workdir /tmp/quickstart'
GET_CONFIG = 'a config file has a function get_config that returns a ConfigDict, as configs/quickstart.py does'


def define(values: flags.FlagValues, argv: Sequence[str] | None = None) -> None:
    """Define the flags of the program.

    Args:
      values: gets them.
      argv: the command line that they will be read from; that of the process, if it is not given.
    """
    config_flags.DEFINE_config_file(
        'config', None, 'Config: a file, or the name of one of the program such as quickstart or resnet50:128.',
        flag_values=values, sys_argv=argv,
    )  # fmt: skip
    for make, name, default, about in (
        (flags.DEFINE_string, 'workdir', None, 'Folder for checkpoints, metrics and the report; made if absent.'),
        (flags.DEFINE_bool, 'distributed', False, 'One of several processes; TPU slices, Slurm and others say which.'),
        (flags.DEFINE_string, 'coordinator_address', None, 'With --distributed elsewhere: HOST:PORT of process 0.'),
        (flags.DEFINE_integer, 'num_processes', None, 'With --distributed elsewhere: how many there are.'),
        (flags.DEFINE_integer, 'process_id', None, 'With --distributed elsewhere: number of this one, from 0.'),
    ):
        make(name, default, about, flag_values=values)


define(flags.FLAGS)


def parse(
    argv: list[str], required: tuple[str, ...] = ('config', 'workdir'), values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Read the flags; a wrong one is one line and exit code 2."""
    argv = _found(argv)
    shipped.provide()
    try:
        rest = values(argv)
        for name in required:
            if values[name].value is None and name not in _given(argv):
                raise UsageError(f'--{name} is missing. Example: {EXAMPLE}')
        if not isinstance(values['config'].value, ConfigDict):
            raise TypeError  # A file that did not load is told from one that is wrong below.
        if rest[1:]:
            raise UsageError(f'{rest[1]!r} was not expected: options begin with --.')
        return rest
    except Exception as error:  # absl, ml_collections and the config file itself each raise their own.
        fail(_explain(argv, error), 2)


def _found(argv: Sequence[str]) -> list[str]:
    """Return a command line whose --config is a file, where it was the name of one of the program's own."""
    found = [*argv]
    for place, argument in enumerate(argv):
        option, equals, text = argument.partition('=')
        if option in ('--config', '-config') and (equals or place + 1 < len(argv)):
            file, colon, variant = (text if equals else argv[place + 1]).partition(':')
            found[place + (not equals)] = f'{option}{equals}' * bool(equals) + shipped.find(file) + colon + variant
    return found


def _given(argv: Sequence[str]) -> dict[str, str]:
    """Return the options of a command line by name, with the last value of each."""
    given = {}
    for argument, following in zip(argv, [*argv[1:], ''], strict=True):
        if argument.startswith('-'):
            name, equals, text = argument.lstrip('-').partition('=')
            given[name] = text if equals else following
    return given


def _explain(argv: Sequence[str], error: Exception) -> str:
    """Turn what the flag parser raised into a line that names the nearest right thing."""
    if isinstance(error, UsageError):
        return str(error)
    config = None
    if 'config' in _given(argv):
        try:
            config = _load(_given(argv)['config'])
        except UsageError as wrong:
            return str(wrong)
    for line in _wrong_fields(argv, config, str(error)):
        return line
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0]


def _load(argument: str) -> ConfigDict:
    """Return the config of a file, and of the variant after a colon.

    Raises:
      UsageError: for a file that is not there or is no config, naming it and what is wrong with it.
    """
    file, *variant = argument.split(':', 1)
    if not Path(file).is_file():
        known = [*shipped.names(), *map(str, Path(shipped.PACKAGE).glob('*.py'))]
        hint = nearest(file, known) or f' Those that come with the program are {", ".join(shipped.names())}.'
        raise UsageError(f'There is no config file {file!r}.{hint}')
    try:
        get_config = runpy.run_path(file).get('get_config')
    except Exception as error:
        raise UsageError(f'{file} cannot be loaded: {_describe(error, file)}.') from error
    if not callable(get_config):
        raise UsageError(f'{file} has no get_config: {GET_CONFIG}.')
    try:
        inspect.signature(get_config).bind(*variant)
    except TypeError:
        takes = f'takes no variant: leave out :{variant[0]}' if variant else 'takes a variant: give it after a colon'
        raise UsageError(f'{file} {takes}.') from None
    try:
        config = get_config(*variant)
    except Exception as error:
        told = isinstance(error, ValueError) and Path(file).name in str(error)
        raise UsageError(str(error) if told else f'{file} went wrong: {_describe(error, file)}.') from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f'get_config of {file} returned a {type(config).__name__}: {GET_CONFIG}.')
    return config


def _describe(error: Exception, file: str) -> str:
    """Return an error's kind and text, and the line of the config file that it comes from."""
    if isinstance(error, SyntaxError):
        return f'SyntaxError in line {error.lineno}: {error.msg}'
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}{f" in line {lines[-1]}" if lines else ""}: {text}'.rstrip(': ')


def _wrong_fields(argv: Sequence[str], config: ConfigDict | None, error: str) -> Iterator[str]:
    """Yield a line for every --config.field that the config does not have, or whose value it does not take."""
    fields = _fields(config) if config is not None else {}
    for option, text in _given(argv).items():
        name = option.removeprefix('config.')
        if config is None or not option.startswith('config.'):
            continue
        if name not in fields and not any(field.startswith(f'{name}.') for field in fields):
            yield f'The config has no field {name!r}.{nearest(name, fields)}'
        elif name not in fields:
            yield f'{name} is a section of the config: give a field of it, such as {next(iter(config[name]))}.'
        elif error.startswith(f'flag --{option}={text}:'):
            kind = {int: 'a whole number', float: 'a number', bool: 'True or False'}.get(type(fields[name]), 'a value')
            yield f'{name}={text}: expected {kind}, such as {fields[name]!r}.'


def _fields(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
    found = {}
    for key, value in config.items():
        found |= _fields(value, f'{prefix}{key}.') if isinstance(value, ConfigDict) else {f'{prefix}{key}': value}
    return found


def fail(message: str, code: int) -> None:
    """End the program with one line on the error stream."""
    print(f'fixres_jax: {message}', file=sys.stderr, flush=True)
    sys.exit(code)
