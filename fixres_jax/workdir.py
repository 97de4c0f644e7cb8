"""The folder of a run: one run at a time, of one config."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from etils import epath

from fixres_jax import files, processes, trees
from fixres_jax.errors import UsageError
from fixres_jax.metrics import write_json

# Fields that change how fast or where a run goes but not what it computes: they may differ when a run goes on.
EXECUTION_FIELDS = (
    'log_every_steps',
    'checkpoint_every_steps',
    'keep_checkpoints',
    'restore_step',
    'compilation_cache',
    'sharding',
    'data.workers',
    'data.threads',
)


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it until the end, even that of a killed process.

    Buckets (gs://...) know no locks: there, nothing keeps two runs apart.

    Raises:
      UsageError: when another run has the folder, or it cannot be written or reached.
    """
    files.reachable(workdir)
    with contextlib.ExitStack() as stack:
        problem = ''
        if processes.is_host0() and '://' not in str(workdir):
            try:
                _lock(workdir, stack)
            except OSError as error:
                problem = f'{workdir} cannot be written: {error.strerror}. Give another --workdir.'
            except UsageError as error:
                problem = str(error)
        if problem := processes.from_host0(problem):
            raise UsageError(problem)
        yield


def _lock(workdir: epath.Path, stack: contextlib.ExitStack) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context(open(workdir / '.lock', 'a+'))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        raise UsageError(f'{workdir} is in use by another run ({holder}). Wait for it or stop it.') from None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()


def claim(workdir: epath.Path, config: dict[str, Any]) -> None:
    """Write the config into the folder, or refuse a folder that another config has used.

    Raises:
      UsageError: naming the fields that differ.
    """
    path = workdir / 'config.json'
    config = json.loads(json.dumps(config))
    earlier = processes.from_host0(read_json(path))
    if earlier is not None:
        now, then = trees.flatten(config), trees.flatten(earlier)
        names = (now.keys() | then.keys()) - {field.replace('.', '/') for field in EXECUTION_FIELDS}
        changed = sorted(name for name in names if now.get(name) != then.get(name))
        if changed:
            changes = '; '.join(f'{n.replace("/", ".")} was {then.get(n)!r}, now {now.get(n)!r}' for n in changed[:5])
            raise UsageError(
                f'{workdir} holds a run of another config: {changes}. Use another workdir, or the old values.'
            )
    if processes.is_host0():
        write_json(path, config)


def check_restore_step(workdir: epath.Path, step: int) -> None:
    """Raise UsageError when no phase in the folder has a checkpoint of the step that the config goes back to."""
    found = {int(path.name) for path in workdir.glob('*/checkpoints/*') if path.name.isdigit()} if step else set()
    if step and step not in found:
        have = f'those of steps {", ".join(map(str, sorted(found)))}' if found else 'none'
        raise UsageError(
            f'restore_step={step}: {workdir} has no such checkpoint, but {have}. Leave restore_step at 0 to go on from '
            'the last one.'
        )


def read_json(path: epath.Path) -> Any:
    """Return the content of a JSON file, or None if it is not there."""
    return json.loads(path.read_text()) if path.exists() else None
