"""All commands under one name: `fixres COMMAND ...`, which is `python -m fixres_jax COMMAND ...`."""

import runpy
import sys
from collections.abc import Sequence

from fixres_jax import __version__
from fixres_jax.core import command
from fixres_jax.core.errors import UsageError, nearest

# command -> (module, which `python -m` runs too, what it does)
COMMANDS = {
    'adapt': ('fixres_jax.adapt', 'adapt a trained network to a test resolution, in one pass over images'),
    'evaluate': ('fixres_jax.evaluate', 'test networks at several resolutions: a table, with intervals'),
    'predict': ('fixres_jax.predict', 'say what is on pictures'),
    'extract': ('fixres_jax.extract', 'write probabilities and embeddings of every image; score what was written'),
    'run': ('fixres_jax.main', 'run a config: the whole method, or a part of it'),
    'advise': ('fixres_jax.advise', 'say which resolutions suit, and what they cost'),
    'convert': ('fixres_jax.convert', 'take weights from torch, and back'),
    'prepare': ('fixres_jax.prepare', 'write a data set as shards'),
    'recalibrate': ('fixres_jax.recalibrate', 'give BatchNorm layers exact statistics of some images'),
    'dryrun': ('fixres_jax.dryrun', "compile a config's steps for devices that are not here"),
}
EXAMPLES = """
examples:
  fixres evaluate resnet50=resnet50.pth DATA --resolutions 224 288
  fixres adapt resnet50=resnet50.pth DATA --resolution 288 --out adapted.safetensors
  fixres predict adapted.safetensors cat.jpg
  fixres run --config quickstart --workdir runs/quickstart
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else [*arguments]
    return command.run(_run, arguments)


def _run(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else '--help'
    if name in ('-h', '--help', 'help'):
        print(_help())
        return 0
    if name == '--version':
        print(f'fixres_jax {__version__}')
        return 0
    if name not in COMMANDS:
        raise UsageError(f'{name!r} is not a command.{nearest(name, COMMANDS)} They are {", ".join(COMMANDS)}.')
    # As `python -m` does it, so that processes that read images start as they do there.
    sys.argv = [command.PROGRAM, *arguments[1:]]
    command.call(name)
    try:
        runpy.run_module(COMMANDS[name][0], run_name='__main__', alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        return end.code or 0
    finally:
        command.call('')
    return 0


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f'  {name.ljust(width)}  {about}' for name, (_, about) in COMMANDS.items())
    more = f'{command.PROGRAM} COMMAND --help says more. Each is python -m MODULE too: run is fixres_jax.main.'
    return '\n'.join((f'usage: {command.PROGRAM} COMMAND ...\n\ncommands:', *lines, EXAMPLES, more))


if __name__ == '__main__':
    sys.exit(main())
