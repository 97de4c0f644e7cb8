"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

SHORT = ('core.trees', 'core.tables', 'evaluation.intervals', 'training.schedules', 'weights.imagenet')
LONG = ('library',)  # compiles a network


@pytest.mark.parametrize('name', [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(f'fixres_jax.{name}'))
    assert result.attempted and not result.failed
