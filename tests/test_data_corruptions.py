"""Corruptions: each does what it says, as strongly as published, and the same however images are read."""

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from conftest import pattern
from fixres_jax.core.errors import UsageError
from fixres_jax.data import corruptions, decoding, given, pipeline, sources, transforms
from fixres_jax.data.corruptions import KINDS, STRENGTHS, Corrupted, corrupt

RNG = np.random.default_rng


@pytest.fixture(scope='module')
def image():
    """Something between a photograph and noise, of all levels: uint8[96, 120, 3]."""
    field = ndimage.gaussian_filter(RNG(0).standard_normal((96, 120, 3)), (3, 3, 0))
    return np.uint8(255 * (field - field.min()) / np.ptp(field))


def change(image, kind, strength, seed=0):
    return np.int64(corrupt(image, kind, strength, RNG(seed))) - image


def test_the_kinds_are_those_of_imagenet_c_but_for_frost():
    assert len(KINDS) == 14 and all(len(kind.constants) == len(STRENGTHS) == 5 for kind in KINDS.values())
    assert [kind.group for kind in KINDS.values()] == 3 * ['noise'] + 4 * ['blur'] + 3 * ['weather'] + 4 * ['digital']


@pytest.mark.parametrize('kind', KINDS)
def test_a_corruption_repeats_and_grows_with_its_strength(kind, image):
    before, sizes = image.copy(), []
    for strength in STRENGTHS:
        changed = corrupt(image, kind, strength, RNG(0))
        assert changed.dtype == np.uint8 and changed.shape == image.shape
        np.testing.assert_array_equal(changed, corrupt(image, kind, strength, RNG(0)))
        sizes.append(np.sqrt(np.mean(change(image, kind, strength) ** 2.0)))
    np.testing.assert_array_equal(image, before)
    assert min(sizes) > 2
    if kind == 'elastic_transform':  # whose first two strengths move much, and the others here and there
        sizes = sizes[2:]
    if kind == 'glass_blur':  # which moves pixels further or more often
        sizes = sizes[::2]
    assert (np.diff(sizes) > 0).all(), sizes
    random = kind not in ('defocus_blur', 'zoom_blur', 'brightness', 'contrast', 'pixelate', 'jpeg_compression')
    assert (not np.array_equal(change(image, kind, 3), change(image, kind, 3, seed=1))) == random


def test_noise_is_as_large_as_its_constants_say():
    grey = np.full((200, 200, 3), 128, np.uint8)
    assert change(grey, 'gaussian_noise', 1).std() / 255 == pytest.approx(0.08, rel=0.02)
    assert change(grey, 'shot_noise', 1).std() / 255 == pytest.approx(np.sqrt(128 / 255 / 60), rel=0.02)
    changed = corrupt(grey, 'impulse_noise', 5, RNG(0))
    assert [np.mean(changed == level) for level in (0, 255)] == pytest.approx([0.135, 0.135], rel=0.05)
    assert (changed == 128).mean() == pytest.approx(0.73, rel=0.02)


def test_colours_change_by_hand(image):
    x = image / 255
    expected = np.array(
        [colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1)) for h, s, v in (colorsys.rgb_to_hsv(*p) for p in x.reshape(-1, 3))]
    )
    np.testing.assert_allclose(corrupt(image, 'brightness', 3, RNG(0)).reshape(-1, 3), 255 * expected, atol=0.51)
    black = np.zeros((8, 8, 3), np.uint8)
    assert (corrupt(black, 'brightness', 1, RNG(0)) == round(25.5)).all()
    mean = x.mean((0, 1))
    np.testing.assert_allclose(corrupt(image, 'contrast', 3, RNG(0)), 255 * ((x - mean) * 0.2 + mean), atol=0.51)


def test_pixels_and_jpeg_are_pillows(image):
    picture, buffer = Image.fromarray(image), io.BytesIO()
    small = picture.resize((int(120 * 0.4), int(96 * 0.4)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((120, 96), Image.Resampling.BOX))
    np.testing.assert_array_equal(corrupt(image, 'pixelate', 3, RNG(0)), expected)
    picture.save(buffer, 'JPEG', quality=7)
    np.testing.assert_array_equal(corrupt(image, 'jpeg_compression', 5, RNG(0)), np.asarray(Image.open(buffer)))


def test_blurs_are_what_scipy_makes_directly(image):
    x = np.float32(image) / 255
    place = np.arange(-3, 4)
    disk = np.float64(place[:, None] ** 2 + place**2 <= 9)
    expected = ndimage.convolve(np.float64(x), (disk / disk.sum())[..., None], mode='mirror')
    np.testing.assert_allclose(corrupt(image, 'defocus_blur', 1, RNG(0)), 255 * expected, atol=0.51)
    for factor in (1.05, 1.3):
        height, width = (int(np.ceil(length / factor)) for length in (96, 120))
        top, left = (96 - height) // 2, (120 - width) // 2
        zoomed = ndimage.zoom(x[top : top + height, left : left + width], (factor, factor, 1), order=1)
        top, left = (zoomed.shape[0] - 96) // 2, (zoomed.shape[1] - 120) // 2
        np.testing.assert_allclose(corruptions._zoom(x, factor), zoomed[top : top + 96, left : left + 120], atol=1e-4)
    field = RNG(0).uniform(-1, 1, (60, 80))
    expected = ndimage.gaussian_filter(field, 2.5, mode='reflect', truncate=8)
    np.testing.assert_allclose(corruptions._smooth(field, 2.5), expected, atol=1e-6)


def test_motion_drags_a_point_along_a_line_to_one_side():
    point = np.zeros((61, 61, 1), np.float32)
    point[30, 30] = 1
    dragged = corruptions._drag(point, 10, 5, 0.0)[..., 0]
    weights = np.exp(-(np.arange(21) ** 2) / 50)
    np.testing.assert_allclose(dragged[30, 30:51], weights / weights.sum(), atol=1e-6)
    assert np.abs(np.delete(dragged, 30, axis=0)).max() < 1e-6 and np.abs(dragged[30, :30]).max() < 1e-6
    slanted = corruptions._drag(point, 10, 5, 45.0)[..., 0]
    assert slanted.sum() == pytest.approx(1, abs=1e-4) and np.trace(slanted) == pytest.approx(1, abs=1e-4)


def test_glass_moves_pixels_no_further_than_its_distance_times_the_passes():
    ramp = np.float32(np.mgrid[:40, :50][1])[..., None] * np.ones(3, np.float32)
    moves = RNG(0).integers(-2, 2, (40, 50, 2), np.int8)
    moved = ramp.copy()
    corruptions._shuffle(moved, moves, 2)
    shift = moved - ramp
    assert shift.min() >= -2 - 40 * 2 and 0.2 < (shift != 0).mean() < 1
    np.testing.assert_array_equal(moved[0], ramp[0])
    np.testing.assert_array_equal(moved[38, 48], ramp[38, 48] + moves[38, 48, 0])


def test_fog_is_a_plasma_without_seams():
    plasma = corruptions._plasma(2.0, RNG(0))
    assert (plasma.min(), plasma.max()) == (0, 1)
    for axis in (0, 1):
        rims = np.abs(np.take(plasma, 0, axis) - np.take(plasma, -1, axis)).mean()
        assert rims < 3 * np.abs(np.diff(plasma, axis=axis)).mean()
    assert np.abs(np.diff(corruptions._plasma(1.2, RNG(0)))).mean() > 3 * np.abs(np.diff(plasma)).mean()
    wide = np.zeros((256, 300, 3), np.uint8)
    wide[0, 0] = 255
    foggy = corrupt(wide, 'fog', 1, RNG(0))
    np.testing.assert_array_equal(foggy[1:, :44], foggy[1:, 256:])


def test_a_corrupted_source_is_corrupted_at_one_size_before_the_test_transform(tmp_path):
    source = given.Given([pattern(40, 50, seed) for seed in range(3)], [0, 1, 0], ('a', 'b'))
    corrupted = Corrupted(source, 'gaussian_noise', 4)
    assert len(corrupted) == 3 and corrupted.name(1) == source.name(1) and corrupted.class_names == ('a', 'b')
    np.testing.assert_array_equal(corrupted.labels, [0, 1, 0])
    record = corrupted[2]
    assert record['label'] == 0 and record == corrupted[2]
    changed = np.asarray(decoding.decode(record['encoded'], 'x', 0))
    plain = corruptions.at_side(decoding.EncodedImage(source[2]['encoded'], 'x', 0))
    assert plain.shape == changed.shape == (256, 320, 3)
    np.testing.assert_array_equal(changed, corrupt(plain, 'gaussian_noise', 4, RNG((0, 2, 0))))
    noise = [
        np.int64(decoding.decode(corrupted[i]['encoded'], 'x', 0))
        - corruptions.at_side(decoding.EncodedImage(source[i]['encoded'], 'x', 0))
        for i in (0, 1)
    ]
    assert not np.array_equal(*noise)
    assert Corrupted(source, 'gaussian_noise', 4, seed=1)[2] != record
    tests = {size: transforms.make_test(size) for size in (32, 48)}
    (batch,) = pipeline.eval_batches(corrupted, tests, pipeline.Readers(threads=2), batch_size=3)
    for size, transform in tests.items():
        np.testing.assert_array_equal(batch['image'][size][2], transform(changed))
    part = sources.subset(corrupted, [2])
    assert part[0] == record


@pytest.mark.parametrize(
    ('kind', 'strength', 'message'),
    [
        ('fogg', 1, "no corruption 'fogg'.*fog"),
        ('frost', 1, 'frost'),
        ('fog', 0, 'strength of a corruption is 0'),
        ('fog', 6, '1 to 5'),
    ],
)
def test_unknown_corruptions_are_one_clear_line(kind, strength, message, image):
    for call in (lambda: corrupt(image, kind, strength, RNG(0)), lambda: Corrupted(None, kind, strength)):
        with pytest.raises(UsageError, match=message):
            call()
