"""Run a config: the whole method, or what its field `task` says.

    fixres run --config quickstart --workdir runs/quickstart
    fixres run --config resnet50:128 --workdir runs/resnet50_128 --config.data.source=DATA
    python -m fixres_jax.main --config configs/resnet50.py --workdir DIR [--config.field=value ...]

A config is a file, or the name of one that comes with the program. A run that was stopped goes on when the same command
is given again.
"""

# The modules that import jax are imported late: processes that read images import this file too.

import os
import sys
import traceback

from absl import app, flags

from fixres_jax.core import command, progress
from fixres_jax.core.errors import UsageError
from fixres_jax.machines import preemption
from fixres_jax.runs import command_line

flags.adopt_module_key_flags(command_line)  # so that --help lists them


def run(values: flags.FlagValues) -> int:
    """Run the config's task; return the exit code, 2 for wrong input and 1 for a failure during the run."""
    try:
        code = command.run(_task, values)
    except preemption.Preempted as error:
        return preemption.finish(error)
    except Exception as error:
        if not values.distributed:
            raise
        traceback.print_exc()
        print(
            f'fixres_jax: {type(error).__name__}. Most likely another process of the run has ended; its own output '
            'says why. Start all of them again: they go on from the last checkpoint.',
            file=sys.stderr,
        )
        code = 1
    import jax

    if code and jax.process_count() > 1:
        sys.stderr.flush()
        os._exit(code)  # At once, for the others to notice, and not after a last meeting.
    return code


def _task(values: flags.FlagValues) -> None:
    from fixres_jax.machines import processes
    from fixres_jax.runs import recipe

    progress.show_log()
    if values.distributed:
        processes.start(values.coordinator_address, values.num_processes, values.process_id)
    elif values.coordinator_address or values.num_processes or values.process_id:
        raise UsageError('--coordinator_address, --num_processes and --process_id go with --distributed.')
    if not processes.is_host0():
        progress.log.setLevel('WARNING')
    recipe.run(values.config, values.workdir)


def main(argv: list[str]) -> int:
    """Run from the command line; return the exit code."""
    del argv
    preemption.watch()
    return run(flags.FLAGS)


if __name__ == '__main__':
    app.run(main, flags_parser=command_line.parse)
