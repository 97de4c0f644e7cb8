"""Training: what moves and what does not, on any number of devices, whatever interrupts it."""

import dataclasses
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defaults import optimization
from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import pipeline, sources, transforms
from fixres_jax.machines import preemption, sharding
from fixres_jax.machines.runtime import Runtime
from fixres_jax.training import loop, state, train
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.schedules import make_schedule
from fixres_jax.training.step import make_train_step
from fixres_jax.weights import checkpoint
from fixres_jax.weights.network import Network
from toy import make_toy

MODEL = models.create('resnet18', 4, width=8, bn_group_size=8)
TOY = make_toy(4, bn_group_size=8)  # for what does not depend on the network
TRAIN = transforms.make_train(32)
FROM_SCRATCH = optimization(
    epochs=2,
    batch_size=16,
    accumulate_steps=1,
    lr=0.05,
    lr_rule='none',
    schedule='cosine',
    decay_every_epochs=1,
    warmup_epochs=0,
    momentum=0.9,
    weight_decay=1e-4,
    label_smoothing=0.0,
    trainable='.*',
    batch_norm='.*',
    repeats=1,
)


def make_batch(seed: int, size: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        'image': rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8),
        'label': rng.integers(0, 4, size, dtype=np.int32),
    }


def steps(mesh, trainable, mode, count=2, model=MODEL):
    """Return the state before and after some steps, and their losses."""
    tx = make_sgd(make_schedule('constant', 0.01, num_steps=count), momentum=0.9, weight_decay=1e-3)
    now = state.create(model, tx, trainable, key=jax.random.key(0), mesh=mesh)
    first = jax.device_get(now)
    step_fn = make_train_step(model, tx, trainable, mode, mesh=mesh)
    losses = []
    for number in range(count):
        now, scalars = step_fn(now, sharding.put(make_batch(number), mesh), jax.random.key(1))
        losses.append(float(scalars['loss']))
    assert step_fn._cache_size() == 1, 'the step was compiled more than once'
    return first, jax.device_get(now), losses


def changed(before, after) -> set[str]:
    before, after = trees.flatten(before), trees.flatten(after)
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.fixture(scope='module')
def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope='module')
def from_scratch(mesh):
    return steps(mesh, '.*', models.TRAIN)


def test_from_scratch_everything_moves(from_scratch):
    before, after, _ = from_scratch
    assert changed(before.params, after.params) == set(trees.flatten(before.params))
    assert changed(before.batch_stats, after.batch_stats) == set(trees.flatten(before.batch_stats))
    assert after.step == 2


def test_fine_tuning_moves_only_what_the_two_regexes_name(mesh):
    regexes = models.ARCHITECTURES['resnet18'].finetune()
    before, after, _ = steps(mesh, regexes['trainable'], models.Mode(regexes['batch_norm']))
    assert changed(before.params, after.params) == {'fc/kernel', 'fc/bias'}
    assert changed(before.batch_stats, after.batch_stats) == {'layer4/1/bn2/mean', 'layer4/1/bn2/var'}
    assert {name for name in trees.flatten(after.opt_state[1].trace)} == {'fc/kernel', 'fc/bias'}


def test_fine_tuning_has_no_backward_pass_through_the_trunk(mesh):
    def count_convolutions(trainable, mode):
        tx = make_sgd(make_schedule('constant', 0.05, num_steps=1), momentum=0.9, weight_decay=0.0)
        step_fn = make_train_step(MODEL, tx, trainable, mode, mesh=mesh)
        shapes = state.abstract(MODEL, tx, trainable, mesh=mesh)
        # Of 96 pixels: on maps smaller than their window convolutions are written as products.
        batch = make_batch(0) | {'image': np.zeros((16, 96, 96, 3), np.uint8)}
        return step_fn.lower(shapes, batch, jax.random.key(0)).as_text().count('stablehlo.convolution')

    regexes = models.ARCHITECTURES['resnet18'].finetune()
    # The 3x3 and 7x7 convolutions of the forward pass, and no more; 1x1 are written as products.
    assert count_convolutions(regexes['trainable'], models.Mode(regexes['batch_norm'])) == 17
    assert count_convolutions('.*', models.TRAIN) > 45


@pytest.mark.parametrize('count', [1, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_devices_takes_the_same_steps(from_scratch, count):
    _, many, many_losses = from_scratch
    _, few, few_losses = steps(sharding.make_mesh(jax.devices()[:count]), '.*', models.TRAIN)
    np.testing.assert_allclose(few_losses, many_losses, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), few.variables, many.variables)


@pytest.mark.parametrize('share', [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_with_the_labels_smoothed_as_the_config_says(mesh, share):
    how = dataclasses.replace(FROM_SCRATCH, label_smoothing=share, trainable='fc/.*', batch_norm='')
    _, tx, _, step_fn = train.prepare(MODEL, how, 16, Runtime(mesh))
    now = state.create(MODEL, tx, 'fc/.*', key=jax.random.key(0), mesh=mesh)
    batch, model = make_batch(0), jax.jit(lambda variables, image: MODEL.apply(variables, image, models.EVAL)[0])
    log_p = jax.nn.log_softmax(np.float64(model(now.variables, batch['image'])))
    own = np.take_along_axis(np.asarray(log_p), batch['label'][:, None], axis=1)
    expected = -(1 - share) * own.mean() - share * log_p.mean()
    _, scalars = step_fn(now, sharding.put(batch, mesh), jax.random.key(1))
    assert float(scalars['loss']) == pytest.approx(float(expected), rel=1e-5)


def run(directory, folder, optimization=FROM_SCRATCH, title='train', transform=TRAIN, **options):
    source = sources.create(str(folder), 'train')
    options = {'log_every_steps': 1, 'checkpoint_every_steps': 2, 'keep_checkpoints': 2, 'restore_step': 0} | options
    network, info = train.run(
        Network(TOY, None, {'architecture': 'toy'}),
        source,
        transform,
        optimization,
        runtime=Runtime(sharding.make_mesh(), 'replicated', workers=0, threads=2),
        writing=train.Writing(directory, **options),
        seed=0,
        title=title,
    )
    return network.variables, info


def test_images_are_read_while_the_state_is_drawn_or_restored(tmp_path, tiny_folder, monkeypatch):
    read = threading.Event()

    def transform(image, rng):
        read.set()
        return TRAIN(image, rng)

    def after_reading(make):
        def waits(*args, **kwargs):
            assert read.wait(60), 'reading begins when there is a state'
            read.clear()
            return make(*args, **kwargs)

        return waits

    monkeypatch.setattr(state, 'create', after_reading(state.create))
    monkeypatch.setattr(checkpoint.Checkpoints, 'restore', after_reading(checkpoint.Checkpoints.restore))
    monkeypatch.setattr(preemption, 'requested', lambda step: step == 2)
    with pytest.raises(preemption.Preempted):
        run(tmp_path, tiny_folder, transform=transform)
    read.clear()
    monkeypatch.setattr(preemption, 'requested', lambda step: False)
    run(tmp_path, tiny_folder, transform=transform)
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]


def steps_logged(directory):
    return [json.loads(line)['step'] for line in (directory / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.parametrize('stop_at', [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_told_to_stop_goes_on_to_the_same_bits(tmp_path, tiny_folder, monkeypatch, stop_at):
    straight, info = run(tmp_path / 'straight', tiny_folder)
    assert info['num_steps'] == 6 and info['images_seen'] == 96
    monkeypatch.setattr(preemption, 'requested', lambda step: step == stop_at)
    with pytest.raises(preemption.Preempted, match=f'step {stop_at} of 6'):
        run(tmp_path / 'halting', tiny_folder)
    monkeypatch.setattr(preemption, 'requested', lambda step: False)
    resumed, info = run(tmp_path / 'halting', tiny_folder)
    assert info['earlier_seconds'] > 0
    assert not changed(straight, resumed)
    assert steps_logged(tmp_path / 'halting') == steps_logged(tmp_path / 'straight') == [1, 2, 3, 4, 5, 6]


def test_a_run_killed_after_logging_more_than_it_saved_repeats_no_step(tmp_path, tiny_folder, monkeypatch):
    class Killed(Exception):
        pass

    def killed(step):
        if step == 4:  # step 3 is in the log, the last checkpoint is of step 2
            raise Killed
        return False

    straight, _ = run(tmp_path / 'straight', tiny_folder)
    monkeypatch.setattr(preemption, 'requested', killed)
    with pytest.raises(Killed):
        run(tmp_path / 'killed', tiny_folder)
    with (tmp_path / 'killed' / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "lo')  # cut short by the kill
    monkeypatch.setattr(preemption, 'requested', lambda step: False)
    resumed, _ = run(tmp_path / 'killed', tiny_folder)
    assert not changed(straight, resumed)
    assert steps_logged(tmp_path / 'killed') == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(tmp_path, tiny_folder):
    source = sources.create(str(tiny_folder), 'train')
    calls = []

    def step_fn(now, batch, key):
        calls.append(1)
        loss = jnp.asarray(jnp.nan if len(calls) == 4 else 1.0)
        return now.replace(step=now.step + 1), {'loss': loss, 'top1': jnp.zeros(())}

    mesh = sharding.make_mesh()
    tx = make_sgd(make_schedule('constant', 0.1, num_steps=6), momentum=0.9, weight_decay=0.0)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    batches = pipeline.train_batches(
        source, transforms.make_train(32), batch_size=16, seed=0, start_step=0, num_steps=6
    )
    with pytest.raises(RunError, match=r'not finite at step 4 of 6 .* step 2 in'):
        loop.fit(
            state.create(TOY, tx, '.*', key=jax.random.key(0), mesh=mesh),
            step_fn,
            batches,
            loop.Pace(6, 16, 'train', lambda step: 0.1, log_every_steps=1, checkpoint_every_steps=2),
            key=jax.random.key(0),
            mesh=mesh,
            directory=tmp_path,
            checkpoints=checkpoints,
        )
    assert checkpoints.steps == [2]
    checkpoints.close()


def test_regexes_that_match_nothing_are_refused(tmp_path, tiny_folder):
    with pytest.raises(UsageError, match='fc.* matches none'):
        run(tmp_path, tiny_folder, dataclasses.replace(FROM_SCRATCH, trainable='fc/.*'))
    with pytest.raises(UsageError, match='norm9.* matches none'):
        run(tmp_path, tiny_folder, dataclasses.replace(FROM_SCRATCH, batch_norm='norm9'))
    with pytest.raises(UsageError, match='batch_size=12 cannot be split over 8 devices'):
        run(tmp_path, tiny_folder, dataclasses.replace(FROM_SCRATCH, batch_size=12))


def test_a_checkpoint_of_another_network_is_refused_with_both_shapes(tmp_path, tiny_folder):
    run(tmp_path, tiny_folder)
    tx = make_sgd(lambda step: 0.1, momentum=0.9, weight_decay=0.0)
    other = state.abstract(make_toy(5), tx, '.*', mesh=sharding.make_mesh())
    checkpoints = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(UsageError, match=r'(?s)another network.*head/bias: expected \(5,\), found \(4,\)'):
        checkpoints.restore(other.items)
    checkpoints.close()


def test_a_saved_network_loads_without_its_optimizer(tmp_path, tiny_folder):
    variables, _ = run(tmp_path / 'train', tiny_folder)
    loaded, metadata = checkpoint.load_model(tmp_path)
    assert metadata == {'architecture': 'toy'}
    assert not changed(variables, loaded) and not trees.diff(variables, loaded)
    checkpoint.save_model(tmp_path / 'copy', loaded, {'architecture': 'x'})
    again, metadata = checkpoint.load_model(tmp_path / 'copy')
    assert metadata == {'architecture': 'x'} and not changed(variables, again)
    with pytest.raises(UsageError, match='holds no network'):
        checkpoint.load_model(tmp_path / 'nowhere')
