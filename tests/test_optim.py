"""Optimizer and schedules against torch's definitions, written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import defaults
from fixres_jax.core.errors import UsageError
from fixres_jax.training import optimization, schedules


def test_sgd_is_torchs():
    """Weight decay joins the gradient, the gradient joins the momentum, the learning rate multiplies last."""
    tx = optimization.make_sgd(schedules.make_schedule('constant', 0.1, num_steps=9), momentum=0.9, weight_decay=0.01)
    params, buffer = jnp.array([1.0, -2.0]), np.zeros(2)
    opt_state, expected = tx.init(params), np.array([1.0, -2.0])
    for gradient in ([0.5, 0.5], [-1.0, 2.0], [0.0, 0.0]):
        updates, opt_state = tx.update(jnp.array(gradient), opt_state, params)
        params = params + updates
        buffer = 0.9 * buffer + (np.array(gradient) + 0.01 * expected)
        expected = expected - 0.1 * buffer
        np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_schedules():
    step = schedules.make_schedule('step', 1.0, num_steps=100, decay_every_steps=30)
    np.testing.assert_allclose([step(0), step(29), step(30), step(89), step(90)], [1, 1, 0.1, 0.01, 0.001], rtol=1e-5)
    cosine = schedules.make_schedule('cosine', 1.0, num_steps=110, warmup_steps=10)
    values = [cosine(step) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(values, [0, 0.5, 1, 0.5, 0], atol=1e-6)
    assert schedules.make_schedule('constant', 0.3, num_steps=5)(4) == 0.3


def test_schedules_of_hardly_any_steps():
    cosine = schedules.make_schedule('cosine', 1.0, num_steps=1)
    assert (cosine(0), cosine(1)) == (1, 0)
    all_warmup = schedules.make_schedule('cosine', 1.0, num_steps=2, warmup_steps=2)
    np.testing.assert_allclose([all_warmup(0), all_warmup(1), all_warmup(2)], [0, 0.5, 1])


def test_learning_rate_rules():
    assert schedules.learning_rate(0.02, 512, 'fixres') == pytest.approx(0.16)  # the reference's, from scratch
    assert schedules.learning_rate(1e-3, 512, 'fixres') == pytest.approx(0.008)  # and of its fine-tuning
    assert schedules.learning_rate(0.1, 1024, 'batch/256') == pytest.approx(0.4)
    assert schedules.learning_rate(0.1, 1024, 'none') == 0.1


# The learning rate of a batch of 128 from a base of 0.1, neither of which is the reference's.
RULES = {'fixres': 0.2, 'batch/256': 0.05, 'none': 0.1}
# Shares of it at some of 100 steps, ten of which are an epoch; decay every four epochs.
PLAIN = {
    'step': {0: 1, 39: 1, 40: 0.1, 79: 0.1, 80: 0.01, 99: 0.01},
    'cosine': {0: 1, 25: 0.853553, 50: 0.5, 75: 0.146447, 100: 0},
    'polynomial': {0: 1, 25: 0.75, 50: 0.5, 100: 0},
    'one_cycle': {0: 1, 33: 0.75, 66: 0.25, 99: 0},
    'constant': {0: 1, 50: 1, 99: 1},
}
# After one epoch of warm-up the schedule begins, and a cosine ends with the run.
WARMED_UP = {
    'step': {0: 0, 5: 0.5, 10: 1, 49: 1, 50: 0.1, 89: 0.1, 90: 0.01},
    'cosine': {0: 0, 5: 0.5, 10: 1, 55: 0.5, 100: 0},
    'polynomial': {0: 0, 5: 0.5, 10: 1, 55: 0.5, 100: 0},
    'one_cycle': {0: 0, 3: 0.25, 6: 0.75, 9: 1, 54: 0.5, 99: 0},
    'constant': {0: 0, 9: 0.9, 10: 1, 99: 1},
}


@pytest.mark.parametrize(('warmup', 'shares'), [(0.0, PLAIN), (1.0, WARMED_UP)], ids=['plain', 'warmed up'])
@pytest.mark.parametrize('name', schedules.SCHEDULES)
@pytest.mark.parametrize('rule', schedules.LR_RULES)
def test_an_optimizer_takes_its_learning_rate_from_the_batch_and_its_schedule_from_the_epochs(
    rule, name, warmup, shares
):
    how = defaults.optimization(
        epochs=10.0, batch_size=128, accumulate_steps=1, lr=0.1, lr_rule=rule, schedule=name, decay_every_epochs=4.0,
        warmup_epochs=warmup, momentum=0.8, weight_decay=0.01, label_smoothing=0.0, trainable='.*', batch_norm='.*',
        repeats=1,
    )  # fmt: skip
    num_steps, tx, schedule = optimization.make_optimizer(how, 1280)
    assert num_steps == 100
    lr = {step: RULES[rule] * share for step, share in shares[name].items()}
    np.testing.assert_allclose([schedule(step) for step in lr], list(lr.values()), rtol=1e-4, atol=1e-8)
    weight, buffer, expected, update = jnp.array(2.0), 0.0, 2.0, jax.jit(tx.update)
    opt_state = tx.init(weight)
    for step in range(12):
        buffer = 0.8 * buffer + 0.5 + 0.01 * expected
        expected -= float(schedule(step)) * buffer
        change, opt_state = update(jnp.array(0.5), opt_state, weight)
        weight = weight + change
    assert float(weight) == pytest.approx(expected, rel=1e-5)


def test_a_phase_has_at_least_one_step():
    how = defaults.optimization(
        epochs=2.5, batch_size=48, accumulate_steps=1, lr=0.1, lr_rule='none', schedule='step', decay_every_epochs=0.1,
        warmup_epochs=0.0, momentum=0.9, weight_decay=0.0, label_smoothing=0.0, trainable='.*', batch_norm='.*',
        repeats=1,
    )  # fmt: skip
    assert [optimization.count_steps(how, images) for images in (1, 100, 1000)] == [1, 5, 52]
    _, _, schedule = optimization.make_optimizer(how, 100)  # a decay of less than one step is one of each step
    np.testing.assert_allclose([schedule(step) for step in range(3)], [0.1, 0.01, 0.001], rtol=1e-5)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'cosine'"):
        schedules.make_schedule('cosin', 1.0, num_steps=1)
    with pytest.raises(UsageError, match="Did you mean 'fixres'"):
        schedules.learning_rate(1.0, 1, 'fixre')
