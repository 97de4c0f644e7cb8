import dataclasses
import io
import json
import math
import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.data import crops, pixels, transforms
from fixres_jax.data.crops import TrainCrop
from goldens.make_transforms import (
    FACTORS,
    NUM_BOXES,
    ORDERS,
    RESOLUTIONS,
    SIZES,
    checksum,
    checksums,
    draw,
    histograms,
)

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
GOLDEN = json.loads((GOLDENS / 'transforms.json').read_text())
TENSORFLOW = json.loads((GOLDENS / 'tensorflow_crops.json').read_text())
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def encode(image: Image.Image, kind: str = 'PNG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(params=SIZES)
def shape(request):
    return request.param


def image_of(shape: str) -> Image.Image:
    return Image.fromarray(draw(*SIZES[shape]))


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('resolution', RESOLUTIONS)
def test_test_transform_is_torchvisions(shape, interpolation, resolution):
    for resize, golden in (('short', 'test'), ('height', 'height')):
        transform = transforms.make_test(resolution, resize=resize, interpolation=interpolation)
        pixels = transform(image_of(shape), None)
        assert pixels.shape == (resolution, resolution, 3) and pixels.dtype == np.uint8
        assert checksum(pixels) == GOLDEN[golden][f'{shape} {interpolation} {resolution}']


def test_test_transform_is_torchvisions_on_photographs(imagenet_sample):
    made = {
        f'{interpolation} {size}': transforms.make_test(size, interpolation=interpolation)
        for interpolation in transforms.INTERPOLATIONS
        for size in RESOLUTIONS
    }
    assert checksums(imagenet_sample, made) == GOLDEN['photographs']


def test_height_resize_pads_portraits_with_zeros():
    pixels = transforms.make_test(64, resize='height')(np.full((200, 50, 3), 200, np.uint8))
    assert (pixels[:, 23:41] == 200).all() and not pixels[:, :23].any() and not pixels[:, 41:].any()


def test_whole_image_is_kept_and_padded():
    pixels = transforms.make_test(64, crop=False)(np.full((100, 200, 3), 200, np.uint8))
    assert (pixels[16:48] == 200).all() and not pixels[:16].any() and not pixels[48:].any()


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_training_crop_is_resized_as_torchvision_does(shape, interpolation, monkeypatch):
    width, height = SIZES[shape]
    left, top, w, h = width // 7, height // 5, width // 3, height // 2
    monkeypatch.setitem(crops.BOXES, 'torchvision', lambda *_: (left, top, left + w, top + h))
    transform = transforms.make_train(64, flip=False, jitter=0, interpolation=interpolation)
    pixels = transform(image_of(shape), np.random.default_rng(0))
    assert checksum(pixels) == GOLDEN['resized_crop'][f'{shape} {interpolation}']


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize('number', range(len(FACTORS)))
def test_colour_changes_are_torchvisions(shape, number, order):
    changed = pixels.adjust_colors(pixels.of_image(image_of(shape)), FACTORS[number], order)
    assert checksum(pixels.to_rgb(changed)) == GOLDEN['jitter'][f'{shape} {number} {order}']


def sampled_boxes(sampler, shape: str, count: int = NUM_BOXES) -> np.ndarray:
    rng = np.random.default_rng(1)
    boxes = np.array([sampler(*SIZES[shape], SCALE, RATIO, rng) for _ in range(count)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (right > left).all() and (bottom > top).all()
    assert right.max() <= SIZES[shape][0] and bottom.max() <= SIZES[shape][1]
    return np.stack([left, top, right - left, bottom - top], axis=1)


def kolmogorov_smirnov(first: list[int], second: list[int]) -> float:
    """Return the two-sample statistic in units of its standard error; above 1.95 once in a thousand."""
    first, second = np.array(first), np.array(second)
    distance = np.abs(first.cumsum() / first.sum() - second.cumsum() / second.sum()).max()
    return distance / np.sqrt(1 / first.sum() + 1 / second.sum())


def chi_square_excess(first: list[int], second: list[int]) -> float:
    """Return by how many standard deviations two tables of counts differ more than by chance."""
    first, second = np.array(first), np.array(second)
    used = first + second > 20
    statistic = ((first - second)[used] ** 2 / (first + second)[used]).sum()
    return (statistic - used.sum()) / np.sqrt(2 * used.sum())


def distance(sampler, shape: str, frozen: dict[str, list[int]]) -> float:
    """Return how far a sampler is from a frozen sample, 1 being the limit of chance."""
    ours = histograms(sampled_boxes(sampler, shape), *SIZES[shape])
    marginals = [kolmogorov_smirnov(ours[name], frozen[name]) / 1.95 for name in frozen if name != 'shape']
    return max(*marginals, chi_square_excess(ours['shape'], frozen['shape']) / 4)


def slightly_larger(width, height, scale, ratio, rng):
    return crops.random_resized_crop(width, height, (0.1, 1.0), ratio, rng)


def test_random_resized_crop_is_distributed_as_torchvisions(shape):
    assert distance(crops.random_resized_crop, shape, GOLDEN['boxes'][shape]) < 1


@pytest.mark.parametrize('shape', TENSORFLOW)
def test_distorted_bounding_box_is_distributed_as_tensorflows(shape):
    assert distance(crops.distorted_bounding_box, shape, TENSORFLOW[shape]) < 1


def test_the_comparison_of_crops_tells_samplers_apart():
    for sampler in (crops.distorted_bounding_box, slightly_larger):
        assert distance(sampler, '4:3', GOLDEN['boxes']['4:3']) > 1.5
    assert distance(crops.random_resized_crop, '4:3', TENSORFLOW['4:3']) > 1.5


def test_tensorflow_crops_are_smaller():
    areas = {}
    for sampler in crops.BOXES.values():
        boxes = sampled_boxes(sampler, '4:3', 5000)
        areas[sampler] = (boxes[:, 2] * boxes[:, 3]).mean()
    assert areas[crops.distorted_bounding_box] < 0.95 * areas[crops.random_resized_crop]


def test_flip_and_resize_then_random_crop():
    image = draw(80, 64)
    plain = transforms.make_train(56, TrainCrop('resize'), flip=False, jitter=0)
    places = {plain(image, np.random.default_rng(seed)).tobytes() for seed in range(60)}
    assert 20 < len(places) <= 9 * (80 - 56 + 1)
    full = transforms.make_train(64, TrainCrop('resize', resize_ratio=1.0), jitter=0)
    square = draw(64, 64)
    results = {full(square, np.random.default_rng(seed)).tobytes() for seed in range(20)}
    assert results == {square.tobytes(), square[:, ::-1].tobytes()}


def test_shifted_crop_moves_sideways_only():
    columns = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None] * 2, (64, 128, 3))
    rows = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 4, (64, 128, 3))
    transform = transforms.ShiftedTransform(56, (64, 64), 0.0, 'short', 'bilinear')
    starts = set()
    for seed in range(900):
        shifted = transform(columns, np.random.default_rng(seed))
        starts.add(int(shifted.min()) // 2)
        assert (transform(rows, np.random.default_rng(seed)) == rows[4:60, 36:92]).all()
    assert starts == set(range(0, 73))


class Extreme(np.random.Generator):
    """Draw the smallest or the largest integer of any range."""

    def __init__(self, largest):
        super().__init__(np.random.PCG64(0))
        self.largest = largest

    def integers(self, low, high=None):
        low, high = (0, low) if high is None else (low, high)
        return high - 1 if self.largest else low


@pytest.mark.parametrize('excess', range(17))
def test_shifted_crop_never_leaves_the_image_and_reaches_both_edges(excess):
    columns = np.zeros((8, 8 + excess, 3), np.uint8) + 10 * np.arange(1, 9 + excess, dtype=np.uint8)[None, :, None]
    transform = transforms.ShiftedTransform(8, (8, 8), 0.0, 'short', 'bilinear')
    transform(columns, np.random.default_rng(0))
    found = {transform(columns, Extreme(largest)).tobytes() for largest in (False, True)}
    flips = columns, columns[:, ::-1]
    edges = {image[:, start : start + 8].tobytes() for image in flips for start in (0, excess)}
    assert found <= edges and len(found) == (2 if excess else 1)


@pytest.mark.parametrize('excess', [1, 3, 4, 7])
def test_shifted_crop_is_as_likely_at_every_place(excess):
    columns = np.zeros((8, 8 + excess, 3), np.uint8) + 10 * np.arange(1, 9 + excess, dtype=np.uint8)[None, :, None]
    transform = transforms.ShiftedTransform(8, (8, 8), 0.0, 'short', 'bilinear')
    starts = [int(transform(columns, np.random.default_rng(seed)).min()) // 10 - 1 for seed in range(1600)]
    counts = np.bincount(starts)
    expected = 1600 / (excess + 1)
    # Five standard deviations of a binomial count.
    assert len(counts) == excess + 1 and np.abs(counts - expected).max() < 5 * expected**0.5


def test_v2_differs_from_the_test_transform_by_little_colour():
    image = np.full((64, 64, 3), 100, np.uint8)
    transform = transforms.make_finetune(56, augmentation='v2')
    values = [transform(image, np.random.default_rng(seed)).mean() for seed in range(100)]
    assert 94 <= min(values) < 97 and 103 < max(values) <= 105
    assert transforms.make_finetune(56) == transforms.make_test(56)


def test_array_and_image_give_the_same_and_transforms_travel():
    image = draw(120, 90)
    for make in (transforms.make_train, transforms.make_test, transforms.make_finetune):
        transform = pickle.loads(pickle.dumps(make(48)))
        assert transform == make(48)
        first = transform(image, np.random.default_rng(3))
        second = make(48)(Image.fromarray(image), np.random.default_rng(3))
        assert np.array_equal(first, second)


@pytest.mark.parametrize('arguments', [
    {'crop': ('tensorflw',)}, {'crop': ('torchvision', (0.5, 0.2))}, {'jitter': -1}, {'interpolation': 'bilinea'},
    {'crop': ('resize', (0.08, 1.0), (0.75, 1.33), 0.9)},
])  # fmt: skip
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(UsageError) as caught:
        crop = TrainCrop(*arguments.pop('crop', ()))
        transforms.make_train(64, crop, **arguments)
    assert '\n' not in str(caught.value)


def test_every_mode_becomes_rgb(odd_images):
    photo = np.asarray(Image.open(odd_images / 'progressive.jpg').convert('RGB')).astype(int)
    grey = np.asarray(Image.fromarray(photo.astype(np.uint8)).convert('L')).astype(int)
    for path in sorted(odd_images.iterdir()):
        if path.name == 'one_pixel.png':
            continue
        image = transforms.decode(path.read_bytes(), path.name, 0)
        assert image.mode == 'RGB'
        pixels = np.asarray(image).astype(int)
        if path.name in ('png_inside.JPEG', 'alpha.png', 'palette_transparent.png', 'palette.png', 'exif_rotated.jpg'):
            assert pixels.shape == photo.shape and np.abs(pixels - photo).mean() < 30, path
        if path.name in ('grey.jpg', 'grey_alpha.png'):
            assert np.abs(pixels - grey[..., None]).mean() < 2, path
        if path.name == 'sixteen_bit.png':
            assert np.abs(pixels[..., 0] - photo[..., 0]).mean() < 4 and pixels[..., 0].std() > 50
        if path.name == 'cmyk.jpg':
            assert np.abs(pixels - photo).mean() < 25 and pixels[0, 0].mean() > 20


def test_bad_images_give_one_line():
    good = encode(Image.fromarray(draw(64, 48)), 'JPEG')
    bomb = encode(Image.new('1', (20_000, 10_000)))
    cases = {
        'truncated.jpg': good[: len(good) // 2],
        'empty.jpg': b'',
        'text.jpg': b'this is no image',
        'header.png': encode(Image.fromarray(draw(64, 48)))[:60],
        'one.png': encode(Image.new('RGB', (1, 1))),
        'thin.png': encode(Image.new('RGB', (10_000, 2))),
        'bomb.png': bomb,
    }
    for name, encoded in cases.items():
        with pytest.raises(RunError) as caught:
            transforms.decode(encoded, f'/data/{name}', 7)
        message = str(caught.value)
        assert message.startswith(f'Image 7, /data/{name}, cannot be decoded: ') and '\n' not in message, message
        assert message.endswith('.') and '..' not in message


@pytest.mark.parametrize('height, width', [(40, 64), (64, 40), (20, 90), (50, 50)])
@pytest.mark.parametrize('resize_ratio', [1.0, 256 / 224])
def test_a_crop_that_is_no_square_is_covered_by_the_resized_image_and_no_more(height, width, resize_ratio):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 120, 3), np.uint8))
    found = transforms.make_test((height, width), resize_ratio)(image)
    assert found.shape == (height, width, 3)
    wanted = [math.floor(resize_ratio * side + 1e-9) for side in (height, width)]
    # One side is as wanted, the other follows the image and is at least that.
    by_width = wanted[1], 75 * wanted[1] // 120
    by_height = 120 * wanted[0] // 75, wanted[0]
    size = by_width if by_width[1] >= wanted[0] else by_height
    assert min(size[0] - wanted[1], size[1] - wanted[0]) == 0
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    top, left = (round((length - side) / 2) for length, side in zip(resized.shape, (height, width), strict=False))
    assert np.array_equal(found, resized[top : top + height, left : left + width])
    assert np.array_equal(transforms.make_test(f'{height}x{width}', resize_ratio)(image), found)


def test_a_whole_image_is_padded_to_a_crop_that_is_no_square():
    image = Image.fromarray(np.full((40, 60, 3), 200, np.uint8))
    found = transforms.make_test((32, 96), crop=False)(image)
    assert found.shape == (32, 96, 3) and (found[:, 24:72] == 200).all()
    assert not found[:, :24].any() and not found[:, 72:].any()


def test_v2_shifts_a_crop_that_is_no_square_sideways():
    columns = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (40, 128, 3))
    transform = transforms.make_finetune((40, 100), resize_ratio=1.0, augmentation='v2')
    shapes = {transform(columns, np.random.default_rng(seed)).shape for seed in range(3)}
    assert shapes == {(40, 100, 3)}
    plain = dataclasses.replace(transform, jitter=0.0)
    starts = {int(plain(columns, np.random.default_rng(seed)).min()) for seed in range(200)}
    assert starts == set(range(29))
