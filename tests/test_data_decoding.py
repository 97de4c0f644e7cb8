import io

import numpy as np
import pytest
from PIL import Image

from conftest import pattern
from fixres_jax.data import crops, decoding, jpeg, transforms

OPTIONS = {
    '4:2:0': {'subsampling': 2},
    '4:2:2': {'subsampling': 1},
    '4:4:4': {'subsampling': 0},
    'optimized': {'optimize': True, 'quality': 95},
    'restarts': {'restart_marker_rows': 1, 'quality': 95},
    'restarts 4:4:4': {'restart_marker_rows': 1, 'subsampling': 0},
    'restarts elsewhere': {'restart_marker_blocks': 3},
    'progressive': {'progressive': True},
}
MODES = ('RGB', 'L', 'CMYK')


def encode(width: int, height: int, mode: str = 'RGB', **options) -> bytes:
    noise = np.random.default_rng(width).integers(-20, 20, (height, width, 3))
    image = Image.fromarray((pattern(height, width) + noise).clip(0, 255).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', **options)
    return buffer.getvalue()


def assert_crops_are_those_of_the_whole(encoded: bytes, count: int) -> None:
    whole = decoding.decode(encoded, '', 0)
    rng = np.random.default_rng(0)
    for _ in range(count):
        image = decoding.EncodedImage(encoded, '', 0)
        assert image.size == whole.size
        box = crops.random_resized_crop(*image.size, (0.02, 1.0), (0.5, 2.0), rng)
        assert image.crop(box).tobytes() == whole.crop(box).tobytes(), box


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kind', OPTIONS)
def test_partial_decoding_gives_the_pixels_of_the_whole(kind, mode):
    for width, height in ((200, 150), (97, 131), (16, 240), (33, 8)):
        assert_crops_are_those_of_the_whole(encode(width, height, mode, **OPTIONS[kind]), 20)


def test_partial_decoding_of_photographs(imagenet_sample):
    for path in sorted(imagenet_sample.iterdir())[::4]:
        assert_crops_are_those_of_the_whole(path.read_bytes(), 2)


def test_fewer_bytes_and_rows_are_decoded():
    encoded = encode(160, 320, restart_marker_rows=1)
    found = jpeg.layout(encoded)
    assert (found.width, found.height, found.row, found.restarts) == (160, 320, 16, True)
    part, first = jpeg.keep_rows(encoded, found, 150, 170)
    assert first == 144 and Image.open(io.BytesIO(part)).size == (160, 32)
    assert len(part) < 0.4 * len(encoded)
    plain = encode(160, 320)
    part, first = jpeg.keep_rows(plain, jpeg.layout(plain), 150, 170)
    assert first == 0 and Image.open(io.BytesIO(part)).size == (160, 176)


def test_files_that_cannot_be_cut_are_left_whole():
    assert jpeg.layout(encode(64, 64, progressive=True)) is None
    assert jpeg.layout(encode(64, 64)[:-2]) is None  # its end is missing: let Pillow judge
    assert jpeg.layout(b'') is None and jpeg.layout(b'\xff\xd8\xff\xd9') is None
    encoded = encode(64, 128, restart_marker_rows=1)
    broken = encoded.replace(b'\xff\xd1', b'\x00\x00', 1)
    assert jpeg.keep_rows(broken, jpeg.layout(broken), 100, 128)[1] == 0


@pytest.mark.parametrize('side, divisor', [(200, 1), (150, 2), (80, 4), (40, 8)])
def test_fast_decoding_keeps_enough_pixels_and_looks_alike(side, divisor):
    buffer = io.BytesIO()
    Image.fromarray(pattern(50, 60)).resize((480, 400)).save(buffer, 'JPEG')
    encoded = buffer.getvalue()
    box = (64, 32, 64 + 384, 32 + 320)
    image = decoding.EncodedImage(encoded, '', 0)
    fast, exact = image.crop(box, at_least=side), image.crop(box)
    assert fast.size == (384 // divisor, 320 // divisor) and min(fast.size) >= side
    small = [np.asarray(part.resize((32, 32), Image.Resampling.BOX), int) for part in (fast, exact)]
    assert np.abs(small[0] - small[1]).mean() < 6


def test_fast_decoding_is_for_training_crops_of_jpegs_only():
    fast, exact = transforms.make_train(48, fast_decode=True), transforms.make_train(48)
    buffer = io.BytesIO()
    Image.fromarray(pattern(300, 300)).save(buffer, 'PNG')
    for encoded, same in ((encode(300, 300), False), (buffer.getvalue(), True)):
        pair = [make(decoding.EncodedImage(encoded, '', 0), np.random.default_rng(1)) for make in (fast, exact)]
        assert np.array_equal(*pair) is same
