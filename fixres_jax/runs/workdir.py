"""The folder of a run: one run at a time, of one config, on the same images."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from fixres_jax import __version__
from fixres_jax.core import files, trees
from fixres_jax.core.errors import UsageError
from fixres_jax.machines import processes

CONFIG, RUN = 'config.json', 'run.json'  # the config; the version of the program and the images that the run has

# Fields that change how fast or where a run goes but not what it computes: they may differ when a run goes on.
EXECUTION_FIELDS = (
    'log_every_steps',
    'checkpoint_every_steps',
    'keep_checkpoints',
    'restore_step',
    'compilation_cache',
    'validate_every_epochs',
    'validation_images',
    'tracker',
    'sharding',
    'data.workers',
    'data.threads',
)


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it until the end, even that of a killed process.

    Buckets (gs://...) know no locks: there, nothing keeps two runs apart.

    Raises:
      UsageError: when another run has the folder, or it cannot be written.
    """
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


def claim(
    workdir: epath.Path, config: Mapping[str, Any], defaults: Mapping[str, Any], images: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write config and images of a run into its folder, or refuse a folder that holds a run of others.

    Args:
      workdir: the folder.
      config: all fields.
      defaults: of the fields of a config: one that the earlier config did not have yet had this value.
      images: part of the data -> {'count', 'names': hash of the names}.

    Raises:
      UsageError: naming the fields that differ, or how many images there are and were.
    """
    config, defaults = json.loads(json.dumps(config)), json.loads(json.dumps(defaults))
    earlier, begun = (processes.from_host0(files.read_json(workdir / name)) for name in (CONFIG, RUN))
    images = processes.from_host0(images)
    if earlier is not None:
        by = '' if begun and begun['version'] == __version__ else f'; {_versions(begun)}'
        if changes := _changes(earlier, config, defaults):
            raise UsageError(
                f'{workdir} holds a run of another config: {"; ".join(changes[:5])}{by}. '
                'Use another workdir, or the old values.'
            )
        if begun is None:
            raise UsageError(
                f'{workdir} does not say which images its run has, so it may have trained on those held out now{by}. '
                'Use another workdir, or that version.'
            )
        if others := _other_images(begun['images'], images):
            raise UsageError(
                f'{workdir} holds a run on other images: it began with {"; ".join(others)}{by}. '
                'Bring back the images as they were, or use another workdir.'
            )
    if processes.is_host0():
        if earlier is None:  # First, so that a config without it is always that of an earlier version.
            files.write_json(workdir / RUN, {'version': __version__, 'images': images})
        files.write_json(workdir / CONFIG, config)


def _versions(begun: dict[str, Any] | None) -> str:
    then = f'version {begun["version"]}' if begun else 'an earlier version'
    return f'it was begun by {then} of this program, and this is {__version__}'


def _changes(earlier: dict[str, Any], config: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """Say which fields differ, in words; those that may, and those that are new and have their default, do not."""
    current = trees.flatten(config)
    earlier_values = {
        name: value for name, value in trees.flatten(defaults).items() if name in current
    } | trees.flatten(earlier)
    names = (current.keys() | earlier_values.keys()) - {field.replace('.', '/') for field in EXECUTION_FIELDS}
    changed = sorted(name for name in names if current.get(name) != earlier_values.get(name))
    return [f'{name.replace("/", ".")} was {earlier_values.get(name)!r}, now {current.get(name)!r}' for name in changed]


def _other_images(earlier: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Say which parts of the data hold other images, in words."""
    differences = []
    for part in current:
        was, is_now = earlier.get(part, {'count': 0, 'names': None}), current[part]
        if was != is_now:
            same = ' of other names' if was['count'] == is_now['count'] else ''
            differences.append(f'{was["count"]:,} {part} images, now {is_now["count"]:,}{same}')
    return differences


def check_restore_step(workdir: epath.Path, step: int) -> None:
    """Raise UsageError when no phase in the folder has a checkpoint of the step that the config goes back to."""
    found = {int(path.name) for path in workdir.glob('*/checkpoints/*') if path.name.isdigit()} if step else set()
    if step and step not in found:
        have = f'those of steps {", ".join(map(str, sorted(found)))}' if found else 'none'
        raise UsageError(
            f'restore_step={step}: {workdir} has no such checkpoint, but {have}. Leave restore_step at 0 to go on from '
            'the last one.'
        )
