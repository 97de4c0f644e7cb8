"""Checkpoints on disk: orbax behind one file.

A run's folder holds `fixres.json`, what is needed to use the network (architecture, classes, preprocessing), and
`checkpoints/`, a folder per step with the items `model` ({params, batch_stats}) and `training` ({step, opt_state}).
Converted weights are the same with the single step 0 and no `training`.
"""

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from fixres_jax import processes, trees
from fixres_jax.errors import RunError, UsageError
from fixres_jax.metrics import write_json
from fixres_jax.state import TrainState

METADATA = 'fixres.json'
# Where a workdir of the recipe keeps its networks, the most finished first.
PHASES = ('adapt', 'finetune', 'train')


class Checkpoints:
    """Save and restore the states of one run, in the background, the newest ones kept."""

    def __init__(self, directory: epath.Path, keep: int = 2):
        self.directory = epath.Path(directory) / 'checkpoints'
        self._manager = ocp.CheckpointManager(
            self.directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
            ),
        )

    @property
    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, in order."""
        return sorted(self._manager.all_steps(read=True))

    def save(self, state: TrainState) -> None:
        """Start to save a state under its own step; returns before the files are written."""
        step = int(state.step)
        if step in self.steps:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(state.variables),
                training=ocp.args.StandardSave({'step': state.step, 'opt_state': state.opt_state}),
            ),
        )

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """Return the saved state of a step (the last one if not given).

        Args:
          abstract: the state's shapes, dtypes and shardings, from `state.abstract`.
          step: which checkpoint.

        Raises:
          UsageError: when the checkpoint holds other leaves or shapes than the state needs, or the step is not there.
          RunError: when its files are damaged.
        """
        steps = self.steps
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UsageError(f'{self.directory} has no checkpoint of step {step}, only of {steps}.')
        targets = {
            'model': abstract.variables,
            'training': {'step': abstract.step, 'opt_state': abstract.opt_state},
        }
        try:
            saved = self._manager.item_metadata(step)['model'].tree
            difference = trees.diff(targets['model'], saved)
            if difference:
                raise UsageError(
                    f'The checkpoint {self.directory / str(step)} is of another network than the config describes:\n'
                    f'{difference.message()}\nGive the same model and classes, or another workdir.'
                )
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(**{name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}),
            )
        except UsageError:
            raise
        except Exception as error:
            others = [other for other in steps if other != step]
            raise RunError(
                f'The checkpoint {self.directory / str(step)} cannot be read ({type(error).__name__}: '
                f'{str(error)[:200]}). Checkpoints of other steps there: {others}.'
            ) from error
        return TrainState(**restored['model'], **restored['training'])

    def wait(self) -> None:
        """Return when everything that `save` started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and let go of the folder."""
        self._manager.close()


def save_model(directory: epath.Path, variables: Any, metadata: dict[str, Any]) -> None:
    """Write a network that is not being trained: `fixres.json` and one checkpoint of step 0.

    Args:
      directory: an absent or empty folder.
      variables: {'params': ..., 'batch_stats': ...}, arrays.
      metadata: see `METADATA_FIELDS` in `recipe.py` for what an evaluation reads.
    """
    directory = epath.Path(directory)
    with ocp.CheckpointManager((directory / 'checkpoints').resolve()) as manager:
        manager.save(0, args=ocp.args.Composite(model=ocp.args.StandardSave(variables)))
    write_metadata(directory, metadata)


def write_metadata(directory: epath.Path, metadata: dict[str, Any]) -> None:
    """Write a network's `fixres.json`; host 0 does."""
    if processes.is_host0():
        write_json(epath.Path(directory) / METADATA, metadata)


def find(path: str | epath.Path) -> epath.Path:
    """Return the folder of the network that a path means: itself, or the most finished phase of a workdir.

    Raises:
      UsageError: when there is none.
    """
    path = epath.Path(path)
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
    with ocp.CheckpointManager((folder / 'checkpoints').resolve()) as manager:
        step = manager.latest_step()
    if step is None:
        raise UsageError(f'{folder} has no finished checkpoint yet: let the run save one first.')
    item = folder / 'checkpoints' / str(step) / 'model'
    try:
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(item.resolve()).item_metadata.tree
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            variables = reader.restore(item.resolve(), restore_args=restore_args)
    except Exception as error:
        raise RunError(
            f'The network in {item} cannot be read ({type(error).__name__}: {str(error)[:200]}). '
            'Its files are damaged or unfinished: take another checkpoint.'
        ) from error
    return variables, json.loads((folder / METADATA).read_text())
