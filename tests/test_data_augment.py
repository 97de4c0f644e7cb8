"""Augmentation policies are torchvision's and timm's: pixels operation by operation, draws by their distribution."""

import collections
import json
import pickle
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from fixres_jax.core.errors import UsageError
from fixres_jax.data import augment, pixels, transforms
from fixres_jax.data.pipeline import sample_rng
from goldens import make_augment, make_transforms

BLACK = augment.Warp('bilinear', (0, 0, 0))


def images():
    """Return images that are smooth, noisy, narrow in range, of few levels and of one colour."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((61, 47), Image.Resampling.BICUBIC)
    noisy, narrow = rng.integers(0, 256, (33, 40, 3), np.uint8), rng.integers(100, 130, (40, 33, 3), np.uint8)
    few = rng.choice(np.array([3, 200, 201], np.uint8), (30, 30, 3))
    return [smooth, *map(Image.fromarray, (noisy, narrow, few)), Image.new('RGB', (20, 20), (3, 4, 5))]


def done(image, name, argument, warp=BLACK):
    return pixels.to_rgb(augment.OPERATIONS[name](pixels.of_image(image), argument, warp))


PILLOWS = {
    'Brightness': lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    'Contrast': lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    'Color': lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    'Sharpness': lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    'Posterize': lambda image, bits: ImageOps.posterize(image, bits),
    'Solarize': lambda image, low: ImageOps.solarize(image, low),
    'AutoContrast': lambda image, _: ImageOps.autocontrast(image),
    'Equalize': lambda image, _: ImageOps.equalize(image),
    'Invert': lambda image, _: ImageOps.invert(image),
}


@pytest.mark.parametrize('name', PILLOWS)
def test_a_compiled_operation_is_pillows(name):
    arguments = {'Posterize': (1, 4, 7, 8), 'Solarize': (0, 0.5, 127.5, 128, 256)}.get(name, (0.0, 0.1, 0.7, 1.0, 1.9))
    for image in images():
        for argument in arguments:
            assert np.array_equal(done(image, name, argument), PILLOWS[name](image, argument)), (image.size, argument)


def test_a_mirrored_view_is_taken_as_it_looks():
    image = images()[1]
    mirrored = pixels.of_image(image)[:, ::-1]
    for name, argument in (('Sharpness', 1.7), ('Equalize', 0.0), ('Invert', 0.0), ('ShearX', 0.3), ('Rotate', 20.0)):
        expected = done(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), name, argument)
        assert np.array_equal(pixels.to_rgb(augment.OPERATIONS[name](mirrored, argument, BLACK)), expected), name


def torchvisions():
    pytest.importorskip('torch')
    import torchvision_cpu  # noqa: F401

    return pytest.importorskip('torchvision.transforms.autoaugment'), pytest.importorskip('torchvision.transforms')


def spaces(autoaugment, size):
    """Yield (its policy's operations, ours, bins) of each of torchvision's policies."""
    width, height = size
    for policy, ours, bins in (
        (autoaugment.RandAugment(), augment.randaugment_space((height, width)), 31),
        (autoaugment.TrivialAugmentWide(), augment.trivial_space(), 31),
        (autoaugment.AugMix(), augment.augmix_space((height, width)), 10),
    ):
        # TrivialAugment's magnitudes do not depend on the size.
        trivial = isinstance(policy, autoaugment.TrivialAugmentWide)
        yield policy._augmentation_space(bins, *(() if trivial else ((height, width),))), ours, bins


@pytest.mark.parametrize('interpolation', transforms.INTERPOLATIONS)
def test_operations_are_torchvisions(interpolation):
    autoaugment, torch_transforms = torchvisions()
    mode, warp = torch_transforms.InterpolationMode(interpolation), augment.Warp(interpolation, (0, 0, 0))
    for image in images():
        for theirs, ours, bins in spaces(autoaugment, image.size):
            assert set(theirs) == set(ours)
            for name, (magnitudes, signed) in theirs.items():
                assert signed == bool(ours[name] and ours[name].signed)
                for number in range(0, bins if magnitudes.ndim else 1, 2):
                    for sign in (1.0, -1.0) if signed else (1.0,):
                        magnitude = sign * float(magnitudes[number] if magnitudes.ndim else magnitudes)
                        if name == 'Posterize' and not magnitude:
                            continue  # refused by Pillow; torchvision's on tensors leaves black
                        expected = autoaugment._apply_op(image, name, magnitude, mode, None)
                        argument = ours[name].argument(magnitude) if ours[name] else 0.0
                        assert np.array_equal(done(image, name, argument, warp), expected), (name, magnitude)


GOLDEN = json.loads((Path(__file__).parent / 'goldens' / 'augment.json').read_text())


@pytest.mark.parametrize('policy', ['randaugment', 'trivial', 'augmix'])
def test_operations_are_torchvisions_as_they_were_frozen(policy):
    pictures, seen = make_augment.images(), set()
    for name, number, interpolation, operation, magnitude, expected in GOLDEN['torchvision']:
        if name == policy:
            image = pictures[number]
            size = (image.height, image.width)
            space = {'trivial': lambda size: augment.trivial_space(), 'augmix': augment.augmix_space}
            bins = space.get(policy, augment.randaugment_space)(size)[operation]
            argument = bins.argument(magnitude) if bins else 0.0
            found = done(image, operation, argument, augment.Warp(interpolation, (0, 0, 0)))
            assert make_transforms.checksum(found) == expected, (operation, magnitude, interpolation)
            seen.add(operation)
    assert len(seen) == (13 if policy == 'augmix' else 14)


@pytest.mark.parametrize(
    ('policy', 'table'), [('rand', augment.TIMM), ('rand-inc1', augment.TIMM_INCREASING)], ids=['rand', 'inc1']
)
def test_operations_and_arguments_are_timms_as_they_were_frozen(policy, table):
    pictures, seen = make_augment.images(), set()
    for name, number, interpolation, operation, level, coin, value, expected in GOLDEN['timm']:
        if name == policy:
            image = pictures[number]
            drawn = types.SimpleNamespace(random=lambda coin=coin: coin)
            argument = table[operation](level / 10, drawn, (image.height, image.width))
            side = {'TranslateX': image.width, 'TranslateY': image.height}.get(operation, 1)
            assert argument == pytest.approx(value * side), (operation, level)
            found = done(image, operation, argument, augment.Warp(interpolation, augment.TIMM_FILL))
            assert make_transforms.checksum(found) == expected, (operation, level, interpolation)
            seen.add(operation)
    assert seen == set(table)


def test_magnitudes_are_torchvisions():
    autoaugment, _ = torchvisions()
    for theirs, ours, bins in spaces(autoaugment, (224, 160)):
        for name, (magnitudes, _) in theirs.items():
            if magnitudes.ndim:
                plain = ours[name]._replace(argument=round if name == 'Posterize' else float)
                found = [augment.argument_of(plain, number, bins, negative=False) for number in range(bins)]
                np.testing.assert_allclose(found, magnitudes.numpy(), rtol=1e-6, atol=1e-5, err_msg=name)


def test_augmix_mixes_as_torchvision(monkeypatch):
    autoaugment, _ = torchvisions()
    import torch

    done, original = [], autoaugment._apply_op
    drawn = iter((torch.tensor([[0.3, 0.7]]), torch.tensor([[0.2, 0.5, 0.3]])))
    theirs = autoaugment.AugMix(chain_depth=1)
    monkeypatch.setattr(theirs, '_sample_dirichlet', lambda _: next(drawn))
    # An operation that is the same on tensors as on Pillow's images.
    monkeypatch.setattr(theirs, '_augmentation_space', lambda *_: {'Posterize': (torch.tensor([5.0, 3.0, 1.0]), False)})
    monkeypatch.setattr(
        autoaugment, '_apply_op', lambda *step, **how: done.append(step[1:]) or original(*step, **how)
    )  # fmt: skip
    torch.manual_seed(1)
    image = images()[0]
    expected = np.asarray(theirs(image))
    assert len({magnitude for _, magnitude in done}) > 1
    shares = np.float32(0.7) * np.float32([0.2, 0.5, 0.3])
    chains = [(0.3, []), *((share, [step]) for share, step in zip(shares, done, strict=True))]
    assert np.array_equal(pixels.to_rgb(augment.mix(pixels.of_image(image), chains, BLACK)), expected)


def drawn_steps(policy, count, size=(48, 64)):
    """Return all the steps of some draws of ours."""
    chains = [augment.make(policy, 'bilinear').draw(size, sample_rng(sample, 3)) for sample in range(count)]
    return [step for draw in chains for _, steps in draw for step in steps]


def assert_alike(ours, theirs):
    """Check that two lists of (operation, argument) are of one distribution: six standard deviations at most."""
    counts, expected = (collections.Counter(name for name, _ in steps) for steps in (ours, theirs))
    assert set(counts) == set(expected)
    for name in counts:
        assert (
            abs(counts[name] / len(ours) - expected[name] / len(theirs))
            < 6 * (expected[name] / len(theirs) * (1 / len(ours) + 1 / len(theirs))) ** 0.5
        ), name
        found, wanted = (np.sort([argument for one, argument in steps if one == name]) for steps in (ours, theirs))
        # Kolmogorov and Smirnov's distance, rounded so that one value is one value on both sides.
        found, wanted = found.round(3), wanted.round(3)
        places = np.union1d(found, wanted)
        distance = [np.searchsorted(values, places, 'right') / len(values) for values in (found, wanted)]
        limit = 2.6 * (1 / len(found) + 1 / len(wanted)) ** 0.5
        assert np.abs(distance[0] - distance[1]).max() < limit, name


@pytest.mark.parametrize('policy, name', [('trivial', 'TrivialAugmentWide'), ('randaugment-m9-n2', 'RandAugment')])
def test_draws_are_torchvisions(policy, name, monkeypatch):
    autoaugment, _ = torchvisions()
    import torch

    torch.manual_seed(0)
    theirs, done = getattr(autoaugment, name)(), []
    monkeypatch.setattr(
        autoaugment, '_apply_op', lambda image, name, magnitude, **_: done.append((name, magnitude)) or image
    )
    image = Image.new('RGB', (64, 48))
    for _ in range(3000):
        theirs(image)
    space = augment.trivial_space() if policy == 'trivial' else augment.randaugment_space((48, 64))
    done = [(name, space[name].argument(magnitude) if space[name] else 0.0) for name, magnitude in done]
    # The one bin that torch rounds to 15 or to 16 pixels, as the processor has it, is left out.
    ours, done = (
        [step for step in steps if abs(step[1]) not in (15, 16)] for steps in (drawn_steps(policy, 3000), done)
    )
    assert_alike(ours, done)


def test_augmix_draws_are_torchvisions(monkeypatch):
    autoaugment, _ = torchvisions()
    import torch

    torch.manual_seed(0)
    theirs, done = autoaugment.AugMix(), []
    monkeypatch.setattr(
        autoaugment, '_apply_op', lambda image, name, magnitude, **_: done.append((name, magnitude)) or image
    )
    image = Image.new('RGB', (64, 48))
    for _ in range(500):
        theirs(image)
    space = augment.augmix_space((48, 64))
    done = [(name, space[name].argument(magnitude) if space[name] else 0.0) for name, magnitude in done]
    ours = drawn_steps('augmix', 500)
    assert_alike(ours, done)
    assert abs(len(ours) - len(done)) < 6 * (2 * 3 * 500 * 2 / 3) ** 0.5
    chains = [augment.make('augmix', 'bilinear').draw((48, 64), sample_rng(sample, 0)) for sample in range(200)]
    shares = np.array([[share for share, _ in draw] for draw in chains])
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares.mean(axis=0), (1 / 2, 1 / 6, 1 / 6, 1 / 6), atol=0.08)


@pytest.mark.parametrize(
    'policy', ['rand-m9-n2-mstd0.5', 'rand-m7-mstd0.5-inc1', 'rand-m15-n3-p0.8-mmax20-inc1', 'rand-m6-mstd101']
)
def test_draws_are_timms(policy, monkeypatch):
    torchvisions()
    auto_augment = pytest.importorskip('timm.data.auto_augment')
    theirs, done = auto_augment.rand_augment_transform(policy, {'translate_pct': 0.45}), []

    def record(name):
        def operation(image, *arguments, **_):
            argument = arguments[0] if arguments else 0.0
            size = {'TranslateX': 64, 'TranslateY': 48}.get(name, 1)
            done.append((name, argument * size))
            return image

        return operation

    for operation in theirs.ops:
        name = operation.name
        name = (
            'TranslateX' if name.startswith('TranslateX') else 'TranslateY' if name.startswith('TranslateY') else name
        )
        monkeypatch.setattr(operation, 'aug_fn', record(name.removesuffix('Increasing')))
    np.random.seed(0)
    auto_augment.random.seed(0)
    for _ in range(2000):
        theirs(None)
    assert_alike(drawn_steps(policy, 2000), done)


@pytest.mark.parametrize('interpolation', transforms.INTERPOLATIONS)
def test_operations_are_timms(interpolation):
    torchvisions()
    auto_augment = pytest.importorskip('timm.data.auto_augment')
    how = {'resample': augment.RESAMPLING[interpolation], 'fillcolor': augment.TIMM_FILL}
    warp = augment.Warp(interpolation, augment.TIMM_FILL)
    for image in images():
        width, height = image.size
        for level in (0, 0.33, 0.7, 1.0):
            for name in augment.TIMM:
                for table in (augment.TIMM, augment.TIMM_INCREASING):
                    argument = table[name](level, np.random.default_rng(0), (height, width))
                    if (name, argument) == ('Posterize', 0):
                        continue  # refused by Pillow 13; before it left black
                    given = () if name in ('AutoContrast', 'Equalize', 'Invert') else (argument,)
                    expected = auto_augment.NAME_TO_OP[name](image, *given, **how)
                    assert np.array_equal(done(image, name, argument, warp), expected), (name, argument)


def test_three_augment_is_grey_solarized_or_blurred():
    steps = drawn_steps('3augment', 300)
    radii = [argument for name, argument in steps if name == 'GaussianBlur']
    assert all(0.1 <= radius <= 2 for radius in radii) and np.ptp(radii) > 1.5
    assert set(steps) - {('GaussianBlur', radius) for radius in radii} == {('Color', 0.0), ('Solarize', 128)}
    image = images()[0]
    assert np.array_equal(done(image, 'Color', 0.0), np.dstack([image.convert('L')] * 3))


@pytest.mark.parametrize('policy', ['trivial', 'randaugment', 'rand-m9-mstd0.5-inc1', 'augmix', '3augment'])
def test_a_training_crop_is_augmented_by_its_sample_number(policy):
    transform = transforms.make_train(32, augment=policy, jitter=0.0)
    plain = transforms.make_train(32, jitter=0.0)
    other = pickle.loads(pickle.dumps(transform))  # as worker processes get it
    image, changed = images()[0], 0
    for sample in range(12):
        found = transform(image, sample_rng(sample, 0))
        assert found.shape == (32, 32, 3) and found.dtype == np.uint8
        assert np.array_equal(found, other(image, sample_rng(sample, 0)))
        changed += not np.array_equal(found, plain(image, sample_rng(sample, 0)))
    assert changed > 4


@pytest.mark.parametrize(
    'text, message',
    [
        ('trival', 'trivial'),
        ('trivial-m9', 'no options'),
        ('rand-m9-x3', 'x3'),
        ('randaugment-m31', r'm \(0 to 30\)'),
        ('augmix-m0', r'm \(1 to 10\)'),
        ('rand-m', "'m'"),
    ],
)
def test_a_policy_that_is_none_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        augment.make(text, 'bilinear')
