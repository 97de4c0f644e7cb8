"""Optimizers, layer-wise learning rates and schedules, against torch's and timm's own, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.training import optimizers, schedules

torch = pytest.importorskip('torch')
import torchvision_cpu  # noqa: E402, F401

pytest.importorskip('timm')
import timm.optim  # noqa: E402
import timm.scheduler  # noqa: E402
from timm.optim import param_groups_layer_decay  # noqa: E402

from fixres_jax.weights.torch_weights import torch_name  # noqa: E402

LR, DECAY = 0.01, 0.1
SHAPES = {'conv1/kernel': (3, 2, 4), 'bn1/scale': (4,), 'bn1/bias': (4,), 'fc/kernel': (4, 3), 'fc/bias': (3,)}
# name -> (torch's or timm's optimizer with the same values, our values beside those)
PEERS = {
    'sgd': (lambda p: torch.optim.SGD(p, LR, momentum=0.8), {}),
    'nesterov': (lambda p: torch.optim.SGD(p, LR, momentum=0.8, nesterov=True), {'nesterov': True}),
    'adamw': (lambda p: torch.optim.AdamW(p, LR, betas=(0.8, 0.999)), {}),
    'adamw, its own values': (lambda p: torch.optim.AdamW(p, LR, (0.8, 0.95), 1e-3), {'beta2': 0.95, 'epsilon': 1e-3}),
    'lamb': (lambda p: timm.optim.Lamb(p, LR, betas=(0.8, 0.999)), {'clip_norm': 1.0}),
    'lars': (lambda p: timm.optim.Lars(p, LR, momentum=0.8), {}),
    'rmsprop_tf': (lambda p: timm.optim.RMSpropTF(p, LR, eps=1e-3, momentum=0.8), {'epsilon': 1e-3}),
}  # fmt: skip


DECAYING = {
    'all': set(SHAPES),
    'not_norms': {'conv1/kernel', 'fc/kernel', 'fc/bias'},
    'kernels': {'conv1/kernel', 'fc/kernel'},
}
NETWORKS = ['resnet18']
NETWORKS += [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ('deit3_small_patch16_224', 'convnext_tiny', 'tf_efficientnet_b0', 'regnety_016', 'resnetv2_50')
]


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


CASES = [*((name, 'not_norms') for name in PEERS), ('sgd', 'all'), ('lamb', 'all'), ('lars', 'kernels')]


@pytest.mark.parametrize(('name', 'where'), CASES)
def test_ten_steps_are_the_peers(name, where):
    make, values = PEERS[name]
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in draw(0).items()}
    groups = [{'params': [p], 'weight_decay': DECAY * (name in DECAYING[where])} for name, p in theirs.items()]
    peer = make(groups)
    schedule = schedules.make_schedule('cosine', LR, num_steps=12)
    name = {'nesterov': 'sgd', 'adamw, its own values': 'adamw'}.get(name, name)
    values = {'momentum': 0.8, 'nesterov': False, 'weight_decay': DECAY, 'weight_decay_on': where} | values
    tx = optimizers.make(name, schedule, **values)
    ours = trees.unflatten(jax.tree.map(jnp.asarray, draw(0)))
    opt_state, update = tx.init(ours), jax.jit(tx.update)
    for step in range(10):
        gradients = draw(step + 1)
        for key, value in theirs.items():
            value.grad = torch.tensor(gradients[key])
        for group in peer.param_groups:
            group['lr'] = float(schedule(step))
        peer.step()
        updates, opt_state = update(trees.unflatten(gradients), opt_state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        for key, value in trees.flatten(ours).items():
            np.testing.assert_allclose(value, theirs[key].detach().numpy(), rtol=1e-6, atol=1e-6, err_msg=key)


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_of_tensorflow_has_the_learning_rate_in_its_momentum_and_the_decay_outside(nesterov):
    """Keras's SGD, written out: it is what a decay of the learning rate tells from torch's."""
    values = {'momentum': 0.8, 'nesterov': nesterov, 'weight_decay': DECAY}
    tx = optimizers.make('sgd_tf', lambda step: jnp.where(step < 2, LR, LR / 10), **values)
    weight, velocity, ours = np.float64(2.0), 0.0, jnp.array(2.0)
    opt_state = tx.init(ours)
    for step, gradient in enumerate([0.5, -1.0, 2.0, 0.25]):
        lr = LR if step < 2 else LR / 10
        weight -= weight * DECAY * lr
        velocity = 0.8 * velocity - lr * gradient
        weight += 0.8 * velocity - lr * gradient if nesterov else velocity
        updates, opt_state = tx.update(jnp.array(gradient), opt_state, ours)
        ours = ours + updates
        np.testing.assert_allclose(ours, weight, rtol=1e-6)


@pytest.mark.parametrize('name', NETWORKS)
def test_layers_learn_as_timms_do(name):
    peer = timm.create_model(name)
    names = {id(p): n for n, p in peer.named_parameters()}
    theirs = {
        names[id(p)]: group['lr_scale']
        for group in param_groups_layer_decay(peer, layer_decay=0.75)
        for p in group['params']
    }
    params = [one for one in models.create(name, 1000).names() if one.startswith('params/')]
    scales = optimizers.layer_scales([one.removeprefix('params/') for one in params], 0.75)
    ours = {torch_name(f'params/{one}'): value for one, value in scales.items()}
    assert ours.keys() == theirs.keys()
    for one, value in theirs.items():
        assert ours[one] == pytest.approx(value), one


def test_layer_scales_reach_the_steps_of_the_selected_parameters():
    scales = {'conv1/kernel': 0.25, 'fc/bias': 1.0}
    values = {'momentum': 0.9, 'nesterov': False, 'weight_decay': 0.0}
    tx = optimizers.make('rmsprop_tf', lambda step: 1.0, scales=scales, **values)
    params = trees.unflatten({name: jnp.ones(3) for name in scales})
    updates, _ = tx.update(params, tx.init(params), params)
    updates = trees.flatten(updates)
    np.testing.assert_allclose(updates['conv1/kernel'], 0.25 * updates['fc/bias'], rtol=1e-6)


def timms(make, steps=24):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.4)
    scheduler = make(optimizer)
    return [scheduler._get_lr(t)[0] for t in range(steps)]


def torchs(make, steps=24):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.4)
    scheduler, values = make(optimizer), []
    for _ in range(steps):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


def torchvisions(optimizer):
    """Return what torchvision's reference training makes for --lr-warmup-method=linear, step by step."""
    lr = torch.optim.lr_scheduler
    rise = lr.LinearLR(optimizer, start_factor=0.01, total_iters=6)
    fall = lr.CosineAnnealingLR(optimizer, T_max=18, eta_min=0.002)
    return lr.SequentialLR(optimizer, [rise, fall], milestones=[6])


S, T = timm.scheduler, torch.optim.lr_scheduler
WARM = {'warmup_t': 6, 'warmup_lr_init': 0.01}
OURS = {'warmup_steps': 6, 'warmup_lr': 0.01}
SCHEDULES = {
    'cosine, as timm': (
        timms, lambda o: S.CosineLRScheduler(o, 24, lr_min=0.002, **WARM),
        {'name': 'cosine', 'final_lr': 0.002, 'warmup_prefix': False, **OURS},
    ),
    'cosine, after the warm-up': (
        timms, lambda o: S.CosineLRScheduler(o, 18, lr_min=0.002, warmup_prefix=True, **WARM),
        {'name': 'cosine', 'final_lr': 0.002, **OURS},
    ),
    'cosine, as torchvision': (
        torchs, torchvisions, {'name': 'cosine', 'final_lr': 0.002, 'warmup_steps': 6, 'warmup_lr': 0.004},
    ),
    'step': (
        timms, lambda o: S.StepLRScheduler(o, 5, 0.97, warmup_prefix=False, **WARM),
        {'name': 'step', 'decay_every_steps': 5, 'decay_rate': 0.97, 'warmup_prefix': False, **OURS},
    ),
    'step, as torch': (
        torchs, lambda o: T.StepLR(o, 7, 0.3), {'name': 'step', 'decay_every_steps': 7, 'decay_rate': 0.3},
    ),
    'polynomial': (
        timms, lambda o: S.PolyLRScheduler(o, 24, power=0.5, lr_min=0.002, **WARM),
        {'name': 'polynomial', 'power': 0.5, 'final_lr': 0.002, 'warmup_prefix': False, **OURS},
    ),
    'polynomial, as torch': (torchs, lambda o: T.PolynomialLR(o, 24, 2.0), {'name': 'polynomial', 'power': 2.0}),
    'one cycle': (
        torchs, lambda o: T.OneCycleLR(o, 0.4, total_steps=25, pct_start=0.24, cycle_momentum=False),
        {'name': 'one_cycle', 'num_steps': 25, 'warmup_steps': 6, 'warmup_lr': 0.4 / 25, 'final_lr': 0.4 / 25e4},
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', SCHEDULES)
def test_every_value_is_the_peers(name):
    values, make, ours = SCHEDULES[name]
    schedule = schedules.make_schedule(**{'lr': 0.4, 'num_steps': 24} | ours)
    np.testing.assert_allclose([float(schedule(step)) for step in range(24)], values(make), rtol=2e-5, atol=1e-7)


def test_a_schedule_by_epochs_has_timms_value_of_the_epoch_all_through_it():
    expected = timms(lambda o: S.CosineLRScheduler(o, 6, warmup_t=2, warmup_lr_init=1e-3), 6)
    schedule = schedules.make_schedule(
        'cosine', 0.4, num_steps=60, warmup_steps=20, warmup_lr=1e-3, warmup_prefix=False, hold_steps=10
    )
    np.testing.assert_allclose([float(schedule(s)) for s in range(60)], np.repeat(expected, 10), rtol=2e-5, atol=1e-7)
