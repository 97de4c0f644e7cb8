"""Command line: `python -m fixres_jax.main --config configs/resnet50.py --workdir DIR [--config.field=value ...]`.

The modules that import jax are imported late: processes that read images import this file too.
"""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from fixres_jax.errors import RunError, UsageError, nearest

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, such as configs/quickstart.py.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'One of several processes; TPU slices, Slurm, Open MPI and Kubernetes say which.'
)
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'With --distributed elsewhere: HOST:PORT of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --distributed elsewhere: how many there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --distributed elsewhere: number of this one, from 0.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for checkpoints, metrics and the report; made if absent.')


def parse(argv: list[str], required: tuple[str, ...] = ('config', 'workdir')) -> list[str]:
    """Read the flags; a wrong one is one line and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        for name in required:
            if flags.FLAGS[name].value is None:
                raise UsageError(
                    f'--{name} is missing. Example: --config configs/quickstart.py --workdir /tmp/quickstart'
                )
        if 'config' in required:
            _CONFIG.value.task  # noqa: B018 - a file that did not load says so only when it is used
        if rest[1:]:
            raise UsageError(f'{rest[1]!r} was not expected: options begin with --.')
        return rest
    except Exception as error:  # absl, ml_collections and the config file itself each raise their own.
        fail(_explain(argv, error), 2)


def _explain(argv: list[str], error: Exception) -> str:
    """Turn what the flag parser raised into a line that names the nearest right thing."""
    if isinstance(error, UsageError):
        return str(error)
    file = _config_argument(argv)
    if file and not Path(file.partition(':')[0]).is_file():
        return (
            f'There is no config file {file.partition(":")[0]}.{nearest(file, map(str, Path("configs").glob("*.py")))}'
        )
    for line in _unknown_fields(argv, file):
        return line
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (lines[-1] if lines[0].endswith('parsing config file:') else lines[0]).removeprefix('ValueError: ')


def _config_argument(argv: list[str]) -> str:
    """Return the value of the last --config on the command line, or ''."""
    value = ''
    for argument, following in zip(argv, [*argv[1:], ''], strict=True):
        name, equals, text = argument.lstrip('-').partition('=')
        if argument.startswith('-') and name == 'config':
            value = text if equals else following
    return value


def _unknown_fields(argv: list[str], file: str) -> Iterator[str]:
    """Yield a line for every --config.field that the config file does not have."""
    try:
        # The parser of config_flags, as the file may take a variant after a colon.
        config = config_flags.config_flags._ConfigFileParser('config').parse(file)
    except Exception:  # It was this file that went wrong: its own error says more.
        return
    fields = _fields(config)
    for argument in argv:
        name = argument.lstrip('-').partition('=')[0]
        if name.startswith('config.') and name.removeprefix('config.') not in fields:
            name = name.removeprefix('config.')
            yield f'The config has no field {name!r}.{nearest(name, fields)}'


def _fields(config, prefix: str = '') -> list[str]:
    names = []
    for key, value in config.items():
        names += _fields(value, f'{prefix}{key}.') if hasattr(value, 'items') else [f'{prefix}{key}']
    return names


def fail(message: str, code: int) -> None:
    """End the program with one line on the error stream."""
    print(f'fixres_jax: {message}', file=sys.stderr, flush=True)
    sys.exit(code)


def _show_log(host0: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
    log = logging.getLogger('fixres_jax')
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO if host0 else logging.WARNING)
    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax and jax tell a page for every checkpoint


def _end(message: str, code: int) -> None:
    """End this process with one line; of several, at once, for the others to notice, and not after a last meeting."""
    import jax

    if jax.process_count() > 1:
        print(f'fixres_jax: {message}', file=sys.stderr, flush=True)
        os._exit(code)
    fail(message, code)


def main(argv: list[str]) -> None:
    """Run the config's task; the exit code is 2 for wrong input and 1 for a failure during the run."""
    del argv
    from fixres_jax import preemption, processes, recipe

    try:
        if _DISTRIBUTED.value:
            processes.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        elif _COORDINATOR.value or _NUM_PROCESSES.value or _PROCESS_ID.value:
            raise UsageError('--coordinator_address, --num_processes and --process_id go with --distributed.')
        _show_log(processes.is_host0())
        preemption.watch()
        recipe.run(_CONFIG.value, _WORKDIR.value)
    except UsageError as error:
        _end(str(error), 2)
    except RunError as error:
        _end(str(error), 1)
    except preemption.Preempted as error:
        print(f'fixres_jax: told to stop; {error}. The same command goes on from there.', file=sys.stderr)
    except Exception as error:
        if getattr(error, 'errno', None) in _DISK:
            _end(f'{error}. Make room or mend the disk; the same command goes on from the last checkpoint.', 1)
        if not _DISTRIBUTED.value:
            raise
        traceback.print_exc()
        _end(
            f'{type(error).__name__}. Most likely another process of the run has ended; its own output says why. Start '
            'all of them again: they go on from the last checkpoint.',
            1,
        )


if __name__ == '__main__':
    app.run(main, flags_parser=parse)
