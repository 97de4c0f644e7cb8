"""The average of the parameters: timm's and torch's over ten steps, kept and resumed bit by bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixres_jax.core import trees
from fixres_jax.machines import sharding
from fixres_jax.models import Mode
from fixres_jax.training import state
from fixres_jax.training.averaging import Average
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.step import Procedure, make_train_step
from fixres_jax.weights.checkpoint import Checkpoints
from toy import make_toy

TX = make_sgd(lambda step: 0.1, momentum=0.9, weight_decay=0.0)


def walk(seed=0, steps=10):
    rng = np.random.default_rng(seed)
    return np.float32(np.cumsum(rng.normal(size=(steps + 1, 5)), axis=0))


def averaged(average, params):
    found, move = jnp.asarray(params[0]), jax.jit(average.move)
    values = []
    for step, new in enumerate(params[1:], start=1):
        found = move(found, new, step)
        values.append(np.asarray(found))
    return np.stack(values)


CASES = [{}, {'warmup': True}, {'start_step': 4}, {'warmup': True, 'start_step': 3}]


@pytest.mark.parametrize('fields', CASES, ids=str)
def test_ten_steps_are_timms(fields):
    torch = pytest.importorskip('torch')
    import torchvision_cpu  # noqa: F401

    timm_ema = pytest.importorskip('timm.utils.model_ema')
    params = walk()
    model = torch.nn.Linear(5, 1, bias=False)
    model.weight.data = torch.tensor(params[:1])
    names = {'warmup': 'use_warmup', 'start_step': 'update_after_step'}
    ema = timm_ema.ModelEmaV3(model, decay=0.9, **{names[name]: value for name, value in fields.items()})
    expected = []
    for step in range(1, 11):
        model.weight.data = torch.tensor(params[step : step + 1])
        ema.update(model, step=step)
        expected.append(ema.module.weight.detach().numpy()[0].copy())
    np.testing.assert_allclose(averaged(Average(0.9, **fields), params), expected, rtol=1e-6, atol=1e-6)


def test_ten_changes_are_torchs_where_the_average_moves_every_third_step():
    """As torchvision's ExponentialMovingAverage does, whose first change is a copy."""
    torch = pytest.importorskip('torch')
    params = walk(steps=30)
    model = torch.nn.Linear(5, 1, bias=False)
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    ema, expected = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average), []
    for step in range(1, 31):
        model.weight.data = torch.tensor(params[step : step + 1])
        if step % 3 == 0:
            ema.update_parameters(model)
        expected.append(ema.module.weight.detach().numpy()[0].copy())
    found = averaged(Average(0.9, every_steps=3), params)
    np.testing.assert_allclose(found[2:], expected[2:], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[3], found[2])  # Between changes not a bit moves.


def test_a_step_moves_the_average_of_what_trains_and_a_checkpoint_keeps_it_bit_by_bit(tmp_path):
    mesh, model, average = sharding.make_mesh(jax.devices()[:1]), make_toy(bn_group_size=4), Average(0.5)
    trainable, rng = '(middle|head)/.*', np.random.default_rng(0)
    batch = {'image': rng.integers(0, 256, (8, 12, 12, 3), dtype=np.uint8), 'label': np.arange(8, dtype=np.int32) % 4}
    kept = {'mesh': mesh, 'averages': True}
    step = make_train_step(model, TX, trainable, Mode('.*'), mesh=mesh, procedure=Procedure(average=average))

    def advance(now, steps):
        for _ in range(steps):
            now, _ = step(now, sharding.put(batch, mesh), jax.random.key(1))
        return now

    first = advance(state.create(model, TX, trainable, key=jax.random.key(0), **kept), 2)
    assert trees.flatten(first.ema).keys() == {'middle/kernel', 'head/kernel', 'head/bias'}
    whole = trees.flatten(first.averaged['params'])
    assert whole.keys() == trees.flatten(first.params).keys()
    assert not np.array_equal(whole['head/kernel'], first.params['head']['kernel'])
    np.testing.assert_array_equal(whole['begin/kernel'], first.params['begin']['kernel'])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, first.items)
    checkpoints.wait()
    blank = state.abstract(model, TX, trainable, **kept)
    again = state.from_items(checkpoints.restore(blank.items))
    checkpoints.close()
    straight, resumed = jax.device_get((advance(first, 2), advance(again, 2)))
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert straight.step == 4


def test_without_an_average_a_state_is_what_it_is_in_checkpoints_without_one():
    model = make_toy()
    blank = state.abstract(model, TX, '.*', mesh=sharding.make_mesh(jax.devices()[:1]))
    assert blank.items['training'].keys() == {'step', 'opt_state'}
    assert blank.ema is None and dataclasses.replace(blank).averaged is not None
