"""Command line: `python -m fixres_jax.main --config configs/resnet50.py --workdir DIR [--config.field=value ...]`.

The modules that import jax are imported late: processes that read images import this file too.
"""

import logging
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from fixres_jax.errors import RunError, UsageError, nearest

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Config file, such as configs/quickstart.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for checkpoints, metrics and the report; made if absent.')


def _parse(argv: list[str]) -> list[str]:
    """Read the flags; a wrong one is one line and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        for name in ('config', 'workdir'):
            if flags.FLAGS[name].value is None:
                raise UsageError(
                    f'--{name} is missing. Example: --config configs/quickstart.py --workdir /tmp/quickstart'
                )
        if rest[1:]:
            raise UsageError(f'{rest[1]!r} was not expected: options begin with --.')
        return rest
    except Exception as error:  # absl, ml_collections and the config file itself each raise their own.
        _fail(_explain(argv, error), 2)


def _explain(argv: list[str], error: Exception) -> str:
    """Turn what the flag parser raised into a line that names the nearest right thing."""
    text = str(error).strip('\'"').splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, FileNotFoundError):
        return f'There is no config file {error.filename}.'
    if isinstance(error, UsageError):
        return text
    config = _loaded_config(argv)
    if config is not None:
        fields = _fields(config)
        for argument in argv:
            name = argument.removeprefix('--').partition('=')[0]
            if name.startswith('config.') and name.removeprefix('config.') not in fields:
                name = name.removeprefix('config.')
                return f'The config has no field {name!r}.{nearest(name, fields)}'
    return text


def _loaded_config(argv: list[str]):
    """Load the config file alone, without overrides, if that works."""
    for i, argument in enumerate(argv):
        name, _, value = argument.lstrip('-').partition('=')
        if name == 'config':
            try:
                from ml_collections.config_flags import config_flags as loader

                parser = loader._ConfigFileParser('config')
                return parser.parse(value or argv[i + 1])
            except Exception:
                return None
    return None


def _fields(config, prefix: str = '') -> list[str]:
    names = []
    for key, value in config.items():
        names += _fields(value, f'{prefix}{key}.') if hasattr(value, 'items') else [f'{prefix}{key}']
    return names


def _fail(message: str, code: int) -> None:
    print(f'fixres_jax: {message}', file=sys.stderr, flush=True)
    sys.exit(code)


def _show_log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))
    log = logging.getLogger('fixres_jax')
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.ERROR)  # orbax and jax tell a page for every checkpoint


def main(argv: list[str]) -> None:
    """Run the config's task; the exit code is 2 for wrong input and 1 for a failure during the run."""
    del argv
    _show_log()
    from fixres_jax import preemption, recipe

    preemption.watch()
    try:
        recipe.run(_CONFIG.value, _WORKDIR.value)
    except UsageError as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(str(error), 1)
    except preemption.Preempted as error:
        print(f'fixres_jax: told to stop; {error}. The same command goes on from there.', file=sys.stderr)


if __name__ == '__main__':
    app.run(main, flags_parser=_parse)
