import io
import sys
import threading
import time

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from conftest import pattern
from fixres_jax.core.errors import RunError
from fixres_jax.data import crops, decoding, jpeg, pixels

OPTIONS = {
    '4:2:0': {'subsampling': 2},
    '4:2:2': {'subsampling': 1},
    '4:4:4': {'subsampling': 0},
    'optimized': {'optimize': True, 'quality': 95},
    'restarts': {'restart_marker_rows': 1, 'quality': 95},
    'restarts 4:4:4': {'restart_marker_rows': 1, 'subsampling': 0},
    'restarts elsewhere': {'restart_marker_blocks': 3},
    'coarse': {'quality': 5},
    'fine': {'quality': 100, 'subsampling': 0},
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
    whole = Image.open(io.BytesIO(encoded)).convert('RGB')
    rng = np.random.default_rng(0)
    for _ in range(count):
        image = decoding.EncodedImage(encoded, '', 0)
        assert image.size == whole.size
        box = crops.random_resized_crop(*image.size, (0.02, 1.0), (0.5, 2.0), rng)
        assert np.array_equal(pixels.to_rgb(image.crop(box)), whole.crop(box)), box


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kind', OPTIONS)
def test_partial_decoding_gives_the_pixels_of_the_whole(kind, mode):
    for width, height in ((200, 150), (97, 131), (16, 240), (33, 8), (5, 5), (4, 4)):
        encoded = encode(width, height, mode, **OPTIONS[kind])
        found = jpeg.layout(encoded)
        assert (found is not None) == (kind != 'progressive' and mode != 'CMYK')
        if found:
            assert jpeg.crop(encoded, found, (0, 0, width, height // 2)) is not None
        assert_crops_are_those_of_the_whole(encoded, 20)


@pytest.mark.parametrize('subsampling', ['440', '411'])
def test_subsamplings_that_pillow_does_not_write(subsampling):
    for width, height in ((200, 150), (97, 131), (5, 5)):
        encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(pattern(height, width)), colorsubsampling=subsampling)
        assert jpeg.layout(encoded)
        assert_crops_are_those_of_the_whole(encoded, 20)


def test_partial_decoding_of_photographs(imagenet_sample):
    decoded_here = 0
    for path in sorted(imagenet_sample.iterdir()):
        encoded = path.read_bytes()
        found = jpeg.layout(encoded)
        if found:
            whole = Image.open(io.BytesIO(encoded)).convert('RGB')
            pixels_here = jpeg.crop(encoded, found, (0, 0, *whole.size))
            assert np.array_equal(pixels.to_rgb(pixels_here), whole)
            decoded_here += 1
        assert_crops_are_those_of_the_whole(encoded, 1)
    assert decoded_here > 160


def test_a_loaded_image_has_the_same_crops():
    encoded = encode(90, 70)
    image, loaded = (decoding.EncodedImage(encoded, '', 0) for _ in range(2))
    loaded.load()
    for box in ((0, 0, 90, 70), (11, 5, 60, 70)):
        assert np.array_equal(pixels.to_rgb(image.crop(box)), pixels.to_rgb(loaded.crop(box)))


def test_extreme_contrast_saturates_as_in_pillow():
    noise = np.random.default_rng(0).integers(0, 2, (64, 64, 3)).astype(np.uint8) * 255
    for quality in (1, 20, 60, 100):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, 'JPEG', quality=quality)
        assert_crops_are_those_of_the_whole(buffer.getvalue(), 5)


def test_restart_markers_let_rows_be_skipped():
    encoded = encode(160, 320, restart_marker_rows=1)
    found = jpeg.layout(encoded)
    assert (found.width, found.height, found.restarts) == (160, 320, True)
    assert not jpeg.layout(encode(160, 320)).restarts
    first_row = encoded.index(b'\xff\xd0')
    unreadable = encoded[: found.data_at] + b'\xff\x00' * ((first_row - found.data_at) // 2) + encoded[first_row:]
    box = 20, 150, 100, 170
    assert np.array_equal(jpeg.crop(unreadable, found, box), jpeg.crop(encoded, found, box))


def test_other_files_are_left_to_pillow():
    encoded = encode(64, 64)
    assert jpeg.layout(encode(64, 64, progressive=True)) is None
    assert jpeg.layout(encode(64, 64, 'CMYK')) is None
    assert jpeg.layout(encoded[:-2]) is None  # its end is missing: let Pillow judge
    assert jpeg.layout(b'') is None and jpeg.layout(b'\xff\xd8\xff\xd9') is None
    assert jpeg.layout(b'\xff\xd8\xff\xda\xff\xd9') is None
    filled = encoded[:2] + b'\xff' + encoded[2:]
    assert jpeg.layout(filled) is None
    assert_crops_are_those_of_the_whole(filled, 3)
    comment = b'\xff\xfe' + (65532).to_bytes(2) + bytes(65530)
    assert jpeg.layout(encoded[:2] + comment + encoded[2:])
    assert jpeg.layout(encoded[:2] + b'\xff\x01' + comment + encoded[2:]) is None  # a marker without a length


def test_files_that_hold_red_green_and_blue():
    rgb = encode(64, 64, keep_rgb=True)
    assert jpeg.layout(rgb)
    assert_crops_are_those_of_the_whole(rgb, 3)


def test_damaged_files_are_left_to_pillow():
    encoded = encode(64, 128, restart_marker_rows=1)
    found = jpeg.layout(encoded)
    broken = encoded.replace(b'\xff\xd1', b'\x00\x00', 1)
    assert jpeg.crop(broken, found, (0, 100, 64, 128)) is None
    assert jpeg.crop(encoded[: found.data_at + 200] + b'\xff\xd9', found, (0, 0, 64, 128)) is None
    assert jpeg.crop(encoded[: found.data_at], found, (0, 0, 64, 128)) is None


def outcome(damaged: bytes) -> np.ndarray | None:
    """Return Pillow's pixels; None where it refuses the file."""
    try:
        return np.asarray(decoding.decode(damaged, '', 0))
    except RunError:
        return None


def test_any_damage_has_the_outcome_that_it_has_in_pillow():
    """With bytes changed anywhere in the file, it is Pillow's pixels or Pillow's refusal, and never a crash."""
    rng = np.random.default_rng(0)
    for kind in ('4:2:0', 'restarts', 'restarts elsewhere', 'optimized'):
        original = encode(60, 50, **OPTIONS[kind])
        decoded = refused = 0
        for _ in range(200):
            damaged = bytearray(original)
            for place in rng.integers(2, len(damaged) - 2, 3):
                damaged[place] = rng.integers(256)
            damaged = bytes(damaged)
            expected = outcome(damaged)
            try:
                image = decoding.EncodedImage(damaged, '', 0)
                found = pixels.to_rgb(image.crop((0, 0, *image.size)))
            except RunError:
                found = None
            assert (found is None) == (expected is None)
            decoded += found is not None
            refused += found is None
            assert found is None or np.array_equal(found, expected)
        assert decoded > 100 and refused > 10


def test_decoding_leaves_pythons_lock_to_others():
    encoded = encode(2000, 1500)
    image = decoding.EncodedImage(encoded, '', 0)
    spans, ticks, interval = [], [], sys.getswitchinterval()

    def decode():
        began = time.perf_counter()
        image.crop((0, 0, 2000, 1500))
        spans.append((began, time.perf_counter()))

    sys.setswitchinterval(60)  # the lock is given away by those only who do so on purpose
    try:
        thread = threading.Thread(target=decode)
        thread.start()
        while thread.is_alive():
            ticks.append(time.perf_counter())
            time.sleep(0.0001)
    finally:
        sys.setswitchinterval(interval)
    began, ended = spans[0]
    assert sum(began < tick < ended for tick in ticks) > 3
