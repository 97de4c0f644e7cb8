"""Mixup, CutMix, random erasing and their losses, against timm's and torchvision's on the same draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from fixres_jax import models
from fixres_jax.core import losses, sections
from fixres_jax.machines import sharding
from fixres_jax.models.layers import normalize
from fixres_jax.training import erasing, mixing, state
from fixres_jax.training.optimization import make_sgd
from fixres_jax.training.programs import batch_of
from fixres_jax.training.step import Procedure, make_train_step
from toy import make_toy

torch = pytest.importorskip('torch')
import torchvision_cpu  # noqa: E402, F401

pytest.importorskip('timm')
pytest.importorskip('torchvision')
from timm.data.mixup import Mixup  # noqa: E402
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

SIZE, CLASSES = (20, 28), 5
OFF = sections.fill(mixing.Mixing, base.get_config().train.mixing)
ALL = dataclasses.replace(OFF, mixup=0.3, cutmix=1.0, erasing=0.5, erasing_fill='noise')


def draw_batch(count=8, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, *SIZE, 3)).astype(np.float32)
    return images, rng.integers(0, CLASSES, count).astype(np.int32), rng.normal(size=(count, CLASSES))


def timms(monkeypatch, images, labels, lam, smoothing=0.1, **alphas):
    """Return timm's images and targets, with its draw of lam and of the centre of the box given."""
    monkeypatch.setattr(np.random, 'beta', lambda *_, **__: lam)
    monkeypatch.setattr(np.random, 'randint', lambda low, high, size=None: high // 3)
    mix = Mixup(label_smoothing=smoothing, num_classes=CLASSES, **alphas)
    mixed, targets = mix(torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(labels))
    return mixed.numpy().transpose(0, 2, 3, 1), targets


def ours(images, labels, lam, cuts):
    row, column = (jnp.array([length // 3]) for length in SIZE)
    weight = jnp.array([1.0 if cuts else lam], jnp.float32)
    box = mixing.cutmix_box(jnp.array([lam if cuts else 1.0]), row, column, SIZE)
    return mixing.mix(jnp.asarray(images), jnp.asarray(labels), weight, box)


@pytest.mark.parametrize('cuts', [False, True], ids=['mixup', 'cutmix'])
def test_images_losses_and_their_gradients_are_timms(monkeypatch, cuts):
    images, labels, logits = draw_batch()
    lam = 0.64  # of a box of even sides: timm gives odd ones a pixel more than the authors of CutMix and torchvision
    alphas = {'mixup_alpha': 0.0, 'cutmix_alpha': 1.0} if cuts else {'mixup_alpha': 0.2}
    expected, targets = timms(monkeypatch, images, labels, lam, **alphas)
    batch = ours(images, labels, lam, cuts)
    np.testing.assert_allclose(batch['image'], expected, rtol=1e-6, atol=1e-6)
    peers = {
        losses.Objective('cross_entropy', 0.1): SoftTargetCrossEntropy(),
        losses.Objective('bce', 0.1): BinaryCrossEntropy(),
        losses.Objective('bce', 0.1, 0.2): BinaryCrossEntropy(target_threshold=0.2),
    }
    for objective, peer in peers.items():
        theirs = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
        value = peer(theirs, targets)
        value.backward()
        loss, gradient = jax.value_and_grad(lambda x, f=objective: f(x, batch).mean())(jnp.float32(logits))
        np.testing.assert_allclose(loss, value.item(), rtol=2e-6)
        np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-7)


def test_the_loss_of_labels_that_are_not_mixed_is_timms():
    _, labels, logits = draw_batch()
    loss = losses.Objective('bce', 0.1)(jnp.float32(logits), {'label': labels})
    expected = BinaryCrossEntropy(smoothing=0.1)(torch.tensor(logits), torch.tensor(labels))
    np.testing.assert_allclose(loss.mean(), expected.item(), rtol=2e-6)


def test_boxes_of_cutmix_are_torchvisions():
    size = (37, 53)
    for seed in range(40):
        torch.manual_seed(seed)
        cut = v2.CutMix(alpha=1.0, num_classes=CLASSES)
        params = cut.make_params([torch.zeros(4, 3, *size)])
        torch.manual_seed(seed)  # the same draws again
        lam, column, row = cut._dist.sample(()), torch.randint(size[1], size=(1,)), torch.randint(size[0], size=(1,))
        box = mixing.cutmix_box(jnp.array([float(lam)]), *(jnp.asarray(x.numpy()) for x in (row, column)), size)
        left, top, right, bottom = params['box']
        assert box.tolist() == [[top, bottom, left, right]]
        labels = jnp.zeros(4, jnp.int32)
        share = mixing.mix(jnp.zeros((4, *size, 3)), labels, jnp.ones(1), box)['share']
        np.testing.assert_allclose(share, float(params['lam_adjusted']), rtol=1e-6)


def test_erased_images_are_torchvisions():
    images, boxes, expected = draw_batch()[0], [], []
    torch.manual_seed(0)
    erase = v2.RandomErasing(p=1.0, value=0.5)
    for image in images:
        params = erase.make_params([torch.tensor(image.transpose(2, 0, 1))])
        boxes.append([params['i'], params['j'], params['h'], params['w']])
        pixels = v2.functional.erase(torch.tensor(image.transpose(2, 0, 1)), *boxes[-1], params['v'])
        expected.append(pixels.numpy().transpose(1, 2, 0))
    erased = erasing.erase(jnp.asarray(images), jnp.array(boxes), jnp.full(images.shape, 0.5))
    np.testing.assert_array_equal(erased, np.stack(expected))
    assert (erased != images).any(axis=(1, 2, 3)).all()


def test_erased_boxes_are_drawn_as_torchvision_draws_them():
    torch.manual_seed(0)
    erase = v2.RandomErasing(p=1.0, scale=erasing.AREA, ratio=erasing.ASPECT)
    drawn = [erase.make_params([torch.zeros(3, *SIZE)]) for _ in range(3000)]
    theirs = np.array([[params[name] for name in 'ijhw'] for params in drawn])
    ours = np.asarray(jax.jit(erasing.draw, static_argnums=(1, 2))(jax.random.key(0), 3000, SIZE))
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= SIZE).all() and (ours[:, 2:] < SIZE).all()
    for column in range(4):
        quantiles = [np.quantile(values[:, column], np.arange(0.1, 1, 0.1)) for values in (ours, theirs)]
        np.testing.assert_allclose(*quantiles, atol=1)
        assert ours[:, column].mean() == pytest.approx(theirs[:, column].mean(), rel=0.05)


def test_images_are_erased_as_often_as_the_config_says_and_noise_is_normal():
    images = jnp.full((4000, 4, 4, 1), 9.0)
    erase_some = jax.jit(erasing.erase_some, static_argnums=(2, 3))
    erased = np.asarray(erase_some(images, jax.random.key(1), 0.25, 'noise'))
    changed = (erased != 9).any(axis=(1, 2, 3))
    assert changed.mean() == pytest.approx(0.25, abs=0.03)
    values = erased[erased != 9]
    assert values.mean() == pytest.approx(0, abs=0.05) and values.std() == pytest.approx(1, abs=0.05)
    assert set(np.unique(erase_some(images, jax.random.key(1), 0.25, 'zero'))) == {0, 9}


def test_mixtures_are_drawn_as_the_config_says():
    count = 20000
    draw = jax.jit(mixing.draw, static_argnums=(1, 2, 3))
    weight, box = draw(jax.random.key(0), count, (64, 64), dataclasses.replace(ALL, probability=0.8, switch=0.3))
    weight, cut = np.asarray(weight), np.asarray((box[:, 1] > box[:, 0]) & (box[:, 3] > box[:, 2]))
    assert not (cut & (weight < 1)).any()
    assert (weight < 1).mean() == pytest.approx(0.8 * 0.7, abs=0.02)
    assert cut.mean() == pytest.approx(0.8 * 0.3, abs=0.02)  # but for boxes of less than a pixel
    expected = np.random.default_rng(0).beta(0.3, 0.3, count)
    levels = np.arange(0.1, 1, 0.1)
    np.testing.assert_allclose(np.quantile(weight[weight < 1], levels), np.quantile(expected, levels), atol=0.03)
    _, box = draw(jax.random.key(1), count, (64, 64), dataclasses.replace(OFF, cutmix=1.0))
    centred = np.asarray(box)[(box[:, 0] > 0) & (box[:, 1] < 64) & (box[:, 2] > 0) & (box[:, 3] < 64)]
    assert (centred[:, 1] - centred[:, 0] == centred[:, 3] - centred[:, 2]).all(), 'a box has the shape of the image'


def test_images_that_are_mixed_with_nothing_are_what_the_network_sees_of_uint8():
    images, labels, _ = draw_batch()
    images = np.uint8(np.abs(images) * 60)
    mean, std = models.architecture.IMAGENET_MEAN, models.architecture.IMAGENET_STD
    change = mixing.make(dataclasses.replace(OFF, mixup=1.0), mean, std, 4)
    batch = jax.jit(change)({'image': images, 'label': labels}, jax.random.key(0))
    whole = normalize(jnp.asarray(images), mean, std, jnp.float32)
    share = np.asarray(batch['share']).reshape(-1, 1, 1, 1)
    partners = np.arange(8).reshape(2, 4)[:, ::-1].reshape(-1)
    np.testing.assert_allclose(batch['image'], share * whole + (1 - share) * whole[partners], atol=1e-6)
    np.testing.assert_array_equal(batch['other'], labels[partners])
    assert len(np.unique(share)) == 2, 'each group has its own'
    assert mixing.make(dataclasses.replace(ALL, erasing=0.0, probability=0.0), mean, std, 4) is None


def test_devices_do_not_ask_each_other_while_they_draw():
    mesh = sharding.make_mesh()
    change, place = mixing.make(ALL, (0.5,) * 3, (0.2,) * 3, 8), sharding.by_example(mesh)
    placed = {'in_shardings': (place, sharding.replicated(mesh)), 'out_shardings': place}
    key = jax.eval_shape(lambda: jax.random.key(0))
    text = sharding.jit(change, mesh, **placed).lower(batch_of(16, 8, mesh), key).compile().as_text()
    assert 'collective-permute' in text  # the images of a group lie on several devices
    assert 'all-reduce' not in text


def test_images_that_nothing_happens_to_are_normalized_once():
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    nothing = dataclasses.replace(OFF, erasing=1e-12)  # of no image that will be seen
    left = mixing.make(nothing, mean, std, 4)({'image': images, 'label': np.zeros(4, np.int32)}, jax.random.key(0))
    assert jnp.issubdtype(left['image'].dtype, jnp.floating)
    for found in (left['image'], normalize(left['image'], mean, std, jnp.float32)):  # as the network does
        np.testing.assert_allclose(found, (images / 255 - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_steps_depend_on_neither_the_devices_nor_the_parts_of_a_batch():
    model = make_toy(CLASSES, bn_group_size=8)
    change = mixing.make(ALL, model.module.mean, model.module.std, 8)
    tx = make_sgd(lambda step: 0.1, momentum=0.9, weight_decay=1e-4)
    rng = np.random.default_rng(0)
    batch = {
        'image': rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
        'label': rng.integers(0, CLASSES, 16, dtype=np.int32),
    }

    def train(devices, parts):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        now = state.create(model, tx, '.*', key=jax.random.key(0), mesh=mesh)
        how = Procedure(losses.Objective('bce', 0.1), change, accumulate_steps=parts)
        step = make_train_step(model, tx, '.*', models.TRAIN, mesh=mesh, procedure=how)
        for _ in range(2):
            now, scalars = step(now, sharding.put(batch, mesh), jax.random.key(1))
        return jax.device_get((now.variables, scalars))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), train(8, 2), train(1, 1))
