"""Checkpoints on disk: orbax behind one file.

A run's folder holds `fixres.json`, what is needed to use the network (architecture, classes, preprocessing), and
`checkpoints/`, a folder per step with the items `model` ({params, batch_stats}) and `training` ({step, opt_state}), and
the checksums of their files. A folder has its final name only once everything in it is written.
Converted weights are the same with the single step 0 and no `training`.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from fixres_jax.core import disk, files, trees
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.machines import processes
from fixres_jax.weights import checksums

Items = dict[str, Any]  # item -> tree of arrays, or of their shapes
# What a checkpoint of a run holds, and what it is of when it does not fit.
ITEMS = {'model': 'network', 'training': 'optimizer or selection of trained parameters'}
METADATA = 'fixres.json'
_UNFINISHED = '.orbax-checkpoint-tmp'  # in the name of a folder that orbax has not finished
# Where a workdir of the recipe keeps its networks, the most finished first.
PHASES = ('adapt', 'finetune', 'ema', 'train')


class Checkpoints:
    """Save and restore the states of one run, in the background, the newest ones kept."""

    def __init__(self, directory: epath.Path, keep: int = 2):
        disk.quieten()
        self.directory = epath.Path(directory) / 'checkpoints'
        self._manager = ocp.CheckpointManager(
            files.absolute(self.directory),
            item_handlers={name: _handler() for name in ITEMS},
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def _seal(self) -> None:
        """Add checksums to the checkpoint that is about to get its final name; runs in the background."""
        if processes.is_host0():
            for folder in self.directory.glob(f'*{_UNFINISHED}*'):
                checksums.write(folder)

    @property
    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, in order."""
        return sorted(ocp.utils.checkpoint_steps(self.directory))

    def save(self, step: int, items: Items) -> None:
        """Start to save the items of a step; returns before the files are written."""
        if step in self.steps:
            return
        with self._writing():
            saved = {name: ocp.args.PyTreeSave(tree) for name, tree in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**saved))

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        """Turn what goes wrong while checkpoints are written into one line."""

        def remedy() -> str:
            last = f'step {self.steps[-1]}' if self.steps else 'none'
            return f'The last good one there: {last}. Make room or mend the disk; the same command goes on from it.'

        return _one_line(f'A checkpoint could not be written to {self.directory}', remedy)

    def find(self, step: int | None = None) -> int:
        """Return the step that `restore` would restore: the last one if not given.

        Raises:
          UsageError: when it is not there.
        """
        steps = self.steps
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UsageError(f'{self.directory} has no checkpoint of step {step}, only of {steps}.')
        return step

    def restore(self, abstract: Items, step: int | None = None) -> Items:
        """Return the saved items of a step (the last one if not given).

        Args:
          abstract: their shapes, dtypes and shardings.
          step: which checkpoint; those after it are deleted.

        Raises:
          UsageError: when the checkpoint holds other leaves or shapes than are asked for, or the step is not there.
          RunError: when its files are damaged.
        """
        step, steps = self.find(step), self.steps
        _verify(self.directory / str(step), steps)
        try:
            saved = self._manager.item_metadata(step)
            for name, what in ITEMS.items():
                difference = trees.diff(_by_name(abstract[name]), _by_name(saved[name].tree))
                if difference:
                    raise UsageError(
                        f'The checkpoint {self.directory / str(step)} is of another {what} than the config describes:\n'
                        f'{difference.message()}\nGive the same config, or another workdir.'
                    )
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(**{name: _wanted(tree) for name, tree in abstract.items()}),
            )
        except UsageError:
            raise
        except Exception as error:
            raise RunError(_damaged(self.directory / str(step), _reason(error), steps)) from error
        for later in [other for other in steps if other > step]:
            self._manager.delete(later)
        return dict(restored)

    @property
    def saving(self) -> bool:
        """Whether something that `save` started is not on disk yet."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Return when everything that `save` started is on disk."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and let go of the folder."""
        with self._writing():
            self._manager.close()


def _handler(copy_host_arrays: bool = True) -> ocp.PyTreeCheckpointHandler:
    """Return what writes and reads a tree of arrays, those on the host copied first if they may change meanwhile."""
    host = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=copy_host_arrays)
    # Shares of each replica would be cut by a program for each shape, which take longer to compile than to write whole.
    devices = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, host), (jax.Array, devices))
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


def _wanted(tree: Any) -> ocp.args.PyTreeRestore:
    return ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))


@contextlib.contextmanager
def _one_line(what: str, remedy: Callable[[], str]) -> Iterator[None]:
    """Turn what goes wrong while files are written into a RunError: what, the reason, the remedy."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # not of the disk: another process is gone
        raise
    except Exception as error:
        raise RunError(f'{what} ({_reason(error)}). {remedy()}') from error


def _by_name(tree: Any) -> dict[str, Any]:
    """Return the leaves of any tree by '/' names, which are the same for what was saved and what is wanted."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def _reason(error: Exception) -> str:
    return disk.reason(error) or f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


def _damaged(folder: epath.Path, reason: str, steps: list[int]) -> str:
    others = [step for step in steps if step != int(folder.name)]
    remedy = f'Go back with --config.restore_step={others[-1]}' if others else 'There is no other: use another workdir'
    return f'The checkpoint {folder} cannot be read ({reason}). {remedy}.'


def _verify(folder: epath.Path, steps: list[int], item: str = '') -> None:
    """Raise RunError when files of a checkpoint, or of an item in it, are not as they were written."""
    problem = processes.from_host0(checksums.verify(folder, item) if processes.is_host0() else '')
    if problem:
        raise RunError(_damaged(folder, problem, steps))


def save_model(directory: epath.Path, variables: Any, metadata: dict[str, Any]) -> None:
    """Write a network that is not being trained: `fixres.json` and one checkpoint of step 0.

    Args:
      directory: an absent or empty folder.
      variables: {'params': ..., 'batch_stats': ...}, arrays.
      metadata: the content of `fixres.json`.

    Raises:
      RunError: when it cannot be written.
    """
    disk.quieten()
    directory = epath.Path(directory)
    # Arrays on the host change no more: orbax need not copy gigabytes of them before it writes.
    handlers = {'model': _handler(copy_host_arrays=False)}
    with _one_line(f'A network could not be written to {directory}', lambda: 'Make room or mend the disk.'):
        with ocp.CheckpointManager(files.absolute(directory / 'checkpoints'), item_handlers=handlers) as manager:
            manager.save(0, args=ocp.args.Composite(model=ocp.args.PyTreeSave(variables)))
        write_metadata(directory, metadata)


def write_metadata(directory: epath.Path, metadata: dict[str, Any]) -> None:
    """Write a network's `fixres.json`; host 0 does."""
    if processes.is_host0():
        files.write_json(epath.Path(directory) / METADATA, metadata)


def find(path: str | epath.Path) -> epath.Path:
    """Return the folder of the network that a path means: itself, or the most finished phase of a workdir.

    Raises:
      UsageError: when there is none.
    """
    path = files.reachable(path)
    for folder in (path, *(path / phase for phase in PHASES)):
        if (folder / METADATA).exists() and (folder / 'checkpoints').exists():
            return folder
    raise UsageError(
        f'{path} holds no network: expected a workdir of this program or a folder written by '
        f'`python -m fixres_jax.convert`, with {METADATA} and checkpoints/ inside'
        + ('.' if path.exists() else ', but there is no such folder.')
    )


def load_metadata(path: str | epath.Path) -> dict[str, Any]:
    """Return the `fixres.json` of the network that a path means (see `find`)."""
    return json.loads((find(path) / METADATA).read_text())


def load_model(path: str | epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load a network without its optimizer.

    Args:
      path: a workdir, the folder of one of its phases, or converted weights.

    Returns:
      variables: {'params': ..., 'batch_stats': ...}, numpy arrays on this host.
      metadata: the content of `fixres.json`.

    Raises:
      UsageError: when there is no network.
      RunError: when its files are damaged.
    """
    folder = find(path)
    with ocp.CheckpointManager(files.absolute(folder / 'checkpoints')) as manager:
        steps = sorted(manager.all_steps())
    if not steps:
        raise UsageError(f'{folder} has no finished checkpoint yet: let the run save one first.')
    item = folder / 'checkpoints' / str(steps[-1]) / 'model'
    _verify(item.parent, steps, 'model')
    try:
        # The handler alone: a checkpointer takes the item for a whole checkpoint and warns of missing metadata.
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.metadata(files.absolute(item)).tree
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            variables = reader.restore(files.absolute(item), args=ocp.args.PyTreeRestore(restore_args=restore_args))
    except Exception as error:
        raise RunError(_damaged(item.parent, _reason(error), steps)) from error
    return variables, json.loads((folder / METADATA).read_text())
