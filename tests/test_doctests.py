"""The examples in docstrings are true."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize('name', ['core.trees', 'core.tables', 'evaluation.intervals', 'training.schedules',
                                  'weights.imagenet', 'library'])  # fmt: skip
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f'fixres_jax.{name}'))
    assert result.attempted and not result.failed
