"""The compiled pixel work is Pillow's, bit for bit."""

import subprocess
import sys

import numpy as np
import PIL
import pytest
from PIL import Image, ImageEnhance

from fixres_jax.data import pixels

FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
ENHANCE = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def images(count, largest, rng):
    """Yield random images, the first ones of few pixels."""
    for number in range(count):
        width, height = rng.integers(1, 6 if number < count // 4 else largest, 2)
        yield Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.skipif(int(PIL.__version__.split('.')[0]) < 13, reason='the order of the two passes is that of Pillow 13')
@pytest.mark.parametrize('interpolation', FILTERS)
def test_resize_is_pillows(interpolation):
    rng = np.random.default_rng(0)
    for image in images(300, 300, rng):
        size = tuple(map(int, rng.integers(1, 200, 2)))
        found = pixels.resize(pixels.of_image(image), size, interpolation)
        assert np.array_equal(pixels.to_rgb(found), image.resize(size, FILTERS[interpolation])), (image.size, size)


def test_colour_changes_are_pillows():
    rng = np.random.default_rng(1)
    for number, image in enumerate(images(200, 60, rng)):
        factors = rng.uniform(0, 2, 3) if number % 5 else (0, 1, 2)
        order, expected = rng.permutation(3), image
        for change in order:
            expected = ENHANCE[change](expected).enhance(factors[change])
        found = pixels.adjust_colors(pixels.of_image(image), factors, order)
        assert np.array_equal(pixels.to_rgb(found), expected), (factors, order)


def test_a_mirrored_view_is_taken_as_it_looks():
    image = next(images(1, 50, np.random.default_rng(2)))
    mirrored = pixels.of_image(image)[:, ::-1]
    expected = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(pixels.to_rgb(mirrored), expected)
    changed = pixels.adjust_colors(mirrored, (0.5, 1, 1), (0, 1, 2))
    assert np.array_equal(pixels.to_rgb(changed), ENHANCE[0](expected).enhance(0.5))


@pytest.mark.parametrize('left, top', [(0, 0), (5, 3), (-4, 2), (6, -3), (-2, -2), (20, 20), (-20, 0)])
def test_a_crop_is_black_outside_of_the_image(left, top):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (12, 10, 3), np.uint8))
    found = pixels.to_rgb(pixels.crop(pixels.of_image(image), left, top, (8, 8)))
    assert np.array_equal(found, image.crop((left, top, left + 8, top + 8)))


def test_without_a_folder_for_compiled_code_it_still_runs():
    code = (
        'import numba\n'
        'compiled = numba.njit\n'
        'def njit(function, cache=False, **options):\n'
        '    if cache: raise RuntimeError("cannot cache function: no locator available")\n'
        '    return compiled(function, **options)\n'
        'numba.njit = njit\n'
        'import numpy as np\n'
        'from fixres_jax.data import pixels\n'
        'assert pixels.to_rgb(np.zeros((2, 2), np.uint32)).shape == (2, 2, 3)\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)
