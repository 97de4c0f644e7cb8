"""Optimizer and schedules against torch's definitions, written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from fixres_jax import optim
from fixres_jax.errors import UsageError


def test_sgd_is_torchs():
    """Weight decay joins the gradient, the gradient joins the momentum, the learning rate multiplies last."""
    tx = optim.make_sgd(optim.make_schedule('constant', 0.1, num_steps=9), momentum=0.9, weight_decay=0.01)
    params, buffer = jnp.array([1.0, -2.0]), np.zeros(2)
    opt_state, expected = tx.init(params), np.array([1.0, -2.0])
    for gradient in ([0.5, 0.5], [-1.0, 2.0], [0.0, 0.0]):
        updates, opt_state = tx.update(jnp.array(gradient), opt_state, params)
        params = params + updates
        buffer = 0.9 * buffer + (np.array(gradient) + 0.01 * expected)
        expected = expected - 0.1 * buffer
        np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_schedules():
    step = optim.make_schedule('step', 1.0, num_steps=100, decay_every_steps=30)
    np.testing.assert_allclose([step(0), step(29), step(30), step(89), step(90)], [1, 1, 0.1, 0.01, 0.001], rtol=1e-5)
    cosine = optim.make_schedule('cosine', 1.0, num_steps=110, warmup_steps=10)
    values = [cosine(step) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0, 0.5, 1, 0.5, 0], atol=1e-6)
    assert optim.make_schedule('constant', 0.3, num_steps=5)(4) == 0.3


def test_learning_rate_rules():
    assert optim.learning_rate(0.02, 512, 'fixres') == pytest.approx(0.16)  # the reference's, from scratch
    assert optim.learning_rate(1e-3, 512, 'fixres') == pytest.approx(0.008)  # and of its fine-tuning
    assert optim.learning_rate(0.1, 1024, 'batch/256') == pytest.approx(0.4)
    assert optim.learning_rate(0.1, 1024, 'none') == 0.1


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'cosine'"):
        optim.make_schedule('cosin', 1.0, num_steps=1)
    with pytest.raises(UsageError, match="Did you mean 'fixres'"):
        optim.learning_rate(1.0, 1, 'fixre')
