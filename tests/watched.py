"""What a program does that its results do not show."""

import contextlib

import pytest

from fixres_jax.training import train


@contextlib.contextmanager
def training_programs():
    """Give a list that gets the pixels of each program of the training step that is compiled in the block."""
    compiled, original = [], train.make_train_step

    class Step:
        def __init__(self, *args, **kwargs):
            self.step = original(*args, **kwargs)

        def lower(self, state, batch, key):
            compiled.append(batch['image'].shape[1])
            return self.step.lower(state, batch, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, 'make_train_step', Step)  # it cannot be called, only lowered
        yield compiled
