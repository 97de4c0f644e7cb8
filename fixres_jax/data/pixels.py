"""Resize and colour changes: Pillow's pixels, bit for bit, in a third of its time and without Python's lock.

An image is uint32[H, W] here, a pixel four bytes: red, green, blue and one that means nothing. That is how Pillow
stores RGB, and the width that processors compute in. The functions are compiled when they are first called; the
compiled code is kept beside this file, or in the user's cache folder.
"""

import math
from collections.abc import Sequence

import numba
import numpy as np
from PIL import Image

RADII = {'bilinear': 1, 'bicubic': 2}  # of the filter, in pixels of the result
_BITS = 22  # Pillow's fixed-point weights
_HALF = 1 << (_BITS - 1)
_LANES = 16  # rows resized together: what a vector register holds


def compiled(function):
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # no folder for compiled code can be written: compile in every process
        return numba.njit(function, nogil=True)


def of_image(image: Image.Image) -> np.ndarray:
    """Return uint32[H, W] of an RGB image."""
    width, height = image.size
    return np.frombuffer(image.tobytes('raw', 'RGBX'), np.uint32).reshape(height, width)


def to_image(pixels: np.ndarray) -> Image.Image:
    """Return an RGB image of uint32[H, W]."""
    height, width = pixels.shape
    return Image.frombuffer('RGB', (width, height), np.ascontiguousarray(pixels).data, 'raw', 'RGBX', 0, 1)


def resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize as Pillow's `resize`: antialiased, across and down one after the other, uint8 after each.

    Args:
      pixels: uint32[H, W].
      size: (width, height) of the result.
      interpolation: 'bilinear' or 'bicubic'.

    Returns:
      uint32[height, width].
    """
    (height, width), (new_width, new_height) = pixels.shape, size
    # Pillow's order since version 13; up to 12 it always began across, which gives slightly other pixels.
    down_first = height - new_height > max(0, 2 * (width - new_width))
    for step in (_down, _across) if down_first else (_across, _down):
        pixels = step(pixels, size, RADII[interpolation])
    return pixels


def _across(pixels: np.ndarray, size: tuple[int, int], radius: int) -> np.ndarray:
    if pixels.shape[1] == size[0]:
        return pixels
    return _resize_across(np.ascontiguousarray(pixels), *_weights(pixels.shape[1], size[0], radius))


def _down(pixels: np.ndarray, size: tuple[int, int], radius: int) -> np.ndarray:
    if pixels.shape[0] == size[1]:
        return pixels
    rows = np.ascontiguousarray(pixels).view(np.uint8)
    return _resize_down(rows, *_weights(pixels.shape[0], size[1], radius)).view(np.uint32)


def crop(pixels: np.ndarray, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """Return the rectangle at (left, top); what lies outside the image is black.

    Args:
      pixels: uint32[H, W].
      left, top: where it begins, in pixels; may be negative.
      size: (width, height) of the rectangle, in pixels.

    Returns:
      uint32[height, width], contiguous.
    """
    height, width = pixels.shape
    right, bottom = left + size[0], top + size[1]
    if 0 <= left and right <= width and 0 <= top and bottom <= height:
        return np.ascontiguousarray(pixels[top:bottom, left:right])
    rectangle = np.zeros((size[1], size[0]), np.uint32)
    inside = pixels[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    down, across = max(0, -top), max(0, -left)
    rectangle[down : down + inside.shape[0], across : across + inside.shape[1]] = inside
    return rectangle


def adjust_colors(pixels: np.ndarray, factors: Sequence[float], order: Sequence[int]) -> np.ndarray:
    """Multiply brightness (0), contrast (1) and saturation (2) by their factors, in the given order.

    The pixels are those of Pillow's ImageEnhance, which torchvision calls.

    Args:
      pixels: uint32[H, W].
      factors: of brightness, contrast and saturation.
      order: a permutation of (0, 1, 2).

    Returns:
      uint32[H, W].
    """
    changed = np.array(pixels, order='C')
    for number in order:
        _COLOR_CHANGES[number](changed, np.float32(factors[number]))
    return changed


def look_up(pixels: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Replace the levels of red, green and blue by those of int[3, 256], as Pillow's `point`."""
    return _look_up(np.ascontiguousarray(pixels), tables.astype(np.uint32) << np.array([[0], [8], [16]], np.uint32))


@compiled
def histogram(pixels):
    """Return how often each level of red, green and blue occurs: int64[3, 256]."""
    counts = np.zeros((3, 256), np.int64)
    height, width = pixels.shape
    for y in range(height):
        for x in range(width):
            value = pixels[y, x]
            counts[0, value & 255] += 1
            counts[1, (value >> 8) & 255] += 1
            counts[2, (value >> 16) & 255] += 1
    return counts


def warp(pixels: np.ndarray, matrix: Sequence[float], fill: tuple[int, int, int]) -> np.ndarray:
    """Return what Pillow's affine `transform` makes of uint32[H, W], bilinear.

    Args:
      pixels: uint32[H, W].
      matrix: (a, b, c, d, e, f): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f).
      fill: red, green and blue of what comes from outside of the image.
    """
    outside = np.uint32(fill[0] | (fill[1] << 8) | (fill[2] << 16))
    return _warp(np.ascontiguousarray(pixels), np.array(matrix, np.float64), outside)


def sharpen(pixels: np.ndarray, factor: np.float32) -> np.ndarray:
    """Move uint32[H, W] away from its smoothed self by `factor`: Pillow's ImageEnhance.Sharpness."""
    return _sharpen(np.ascontiguousarray(pixels), np.float32(factor))


@compiled
def to_rgb(pixels):
    """Return uint8[H, W, 3] of uint32[H, W]."""
    height, width = pixels.shape
    rgb = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        for x in range(width):
            value = pixels[y, x]
            rgb[y, x, 0] = value & 255
            rgb[y, x, 1] = (value >> 8) & 255
            rgb[y, x, 2] = (value >> 16) & 255
    return rgb


@compiled
def _weights(length, size, radius):
    """Return (first pixel, number of pixels, weights times 2**_BITS) of each of `size` results."""
    scale = length / size
    stretch = max(scale, 1.0)
    support = radius * stretch
    first, count = np.empty(size, np.int32), np.empty(size, np.int32)
    weights = np.zeros((size, int(math.ceil(support)) * 2 + 1), np.int32)
    values = np.empty(weights.shape[1])
    for place in range(size):
        center = (place + 0.5) * scale
        low, high = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), length)
        total = 0.0
        for number in range(high - low):
            values[number] = _filter(abs((number + low - center + 0.5) * (1.0 / stretch)), radius)
            total += values[number]
        first[place], count[place] = low, high - low
        for number in range(high - low):
            value = values[number] / total if total else values[number]
            weights[place, number] = int(value * (1 << _BITS) + (0.5 if value >= 0 else -0.5))
    return first, count, weights


@compiled
def _filter(x, radius):
    if radius == 1:
        return 1.0 - x if x < 1.0 else 0.0
    a = -0.5  # of Keys' bicubic
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * a if x < 2.0 else 0.0


@compiled
def _clip(value):
    return min(max(value, 0), 255)


@compiled
def _resize_across(pixels, first, count, weights):
    height, width = pixels.shape
    result = np.empty((height, len(first)), np.uint32)
    columns = np.zeros((width, _LANES), np.uint32)
    red, green, blue = np.empty(_LANES, np.int32), np.empty(_LANES, np.int32), np.empty(_LANES, np.int32)
    packed = np.empty(_LANES, np.uint32)
    for top in range(0, height, _LANES):
        rows = min(_LANES, height - top)
        for row in range(rows):
            for x in range(width):
                columns[x, row] = pixels[top + row, x]
        for place in range(len(first)):
            red[:], green[:], blue[:] = _HALF, _HALF, _HALF
            for number in range(count[place]):
                weight, column = weights[place, number], columns[first[place] + number]
                for row in range(_LANES):
                    value = np.int32(column[row])
                    red[row] += (value & 255) * weight
                    green[row] += ((value >> 8) & 255) * weight
                    blue[row] += ((value >> 16) & 255) * weight
            for row in range(_LANES):
                r, g, b = _clip(red[row] >> _BITS), _clip(green[row] >> _BITS), _clip(blue[row] >> _BITS)
                packed[row] = np.uint32(r | (g << 8) | (b << 16))
            for row in range(rows):
                result[top + row, place] = packed[row]
    return result


@compiled
def _resize_down(rows, first, count, weights):
    """Resize uint8[H, N] to uint8[len(first), N]: all bytes of a row alike."""
    length = rows.shape[1]
    result = np.empty((len(first), length), np.uint8)
    sums = np.empty(length, np.int32)
    for place in range(len(first)):
        sums[:] = _HALF
        for number in range(count[place]):
            weight, row = weights[place, number], rows[first[place] + number]
            for x in range(length):
                sums[x] += np.int32(row[x]) * weight
        for x in range(length):
            result[place, x] = _clip(sums[x] >> _BITS)
    return result


@compiled
def _grey(value):
    """Return Pillow's luminance of a pixel."""
    return ((value & 255) * 19595 + ((value >> 8) & 255) * 38470 + ((value >> 16) & 255) * 7471 + 0x8000) >> 16


@compiled
def _blend(origin, value, factor):
    """Return a pixel whose channels are moved from the grey `origin` by `factor`, in float32 as Pillow computes it."""
    low = np.float32(0.0)
    start, high = np.float32(origin), np.float32(255.0)
    red = min(max(start + factor * np.float32((value & 255) - origin), low), high)
    green = min(max(start + factor * np.float32(((value >> 8) & 255) - origin), low), high)
    blue = min(max(start + factor * np.float32(((value >> 16) & 255) - origin), low), high)
    return np.uint32(np.int32(red) | (np.int32(green) << 8) | (np.int32(blue) << 16))


@compiled
def _change_brightness(pixels, factor):
    flat = pixels.reshape(-1)
    for place in range(len(flat)):
        flat[place] = _blend(np.int32(0), np.int32(flat[place]), factor)


@compiled
def _change_contrast(pixels, factor):
    flat = pixels.reshape(-1)
    total = 0
    for place in range(len(flat)):
        total += _grey(np.int32(flat[place]))
    mean = np.int32(total / len(flat) + 0.5)
    for place in range(len(flat)):
        flat[place] = _blend(mean, np.int32(flat[place]), factor)


@compiled
def _change_saturation(pixels, factor):
    flat = pixels.reshape(-1)
    for place in range(len(flat)):
        value = np.int32(flat[place])
        flat[place] = _blend(np.int32(_grey(value)), value, factor)


@compiled
def _look_up(pixels, tables):
    height, width = pixels.shape
    result = np.empty((height, width), np.uint32)
    for y in range(height):
        for x in range(width):
            value = pixels[y, x]
            result[y, x] = tables[0, value & 255] | tables[1, (value >> 8) & 255] | tables[2, (value >> 16) & 255]
    return result


@compiled
def _warp(pixels, matrix, outside):
    height, width = pixels.shape
    result = np.empty((height, width), np.uint32)
    for row in range(height):
        for column in range(width):
            across = matrix[0] * (column + 0.5) + matrix[1] * (row + 0.5) + matrix[2]
            down = matrix[3] * (column + 0.5) + matrix[4] * (row + 0.5) + matrix[5]
            if not (0.0 <= across < width and 0.0 <= down < height):
                result[row, column] = outside
                continue
            across, down = across - 0.5, down - 0.5
            x, y = int(across) - (across < 0), int(down) - (down < 0)
            right, below = across - x, down - y
            left, x, top, y = max(x, 0), min(x + 1, width - 1), max(y, 0), min(y + 1, height - 1)
            corners = pixels[top, left], pixels[top, x], pixels[y, left], pixels[y, x]
            result[row, column] = (
                _between(corners, 0, right, below)
                | _between(corners, 8, right, below)
                | _between(corners, 16, right, below)
            )
    return result


@compiled
def _between(corners, shift, right, below):
    """Return a channel between four pixels, in float64 as Pillow computes it."""
    a, b = np.int32((corners[0] >> shift) & 255), np.int32((corners[1] >> shift) & 255)
    c, d = np.int32((corners[2] >> shift) & 255), np.int32((corners[3] >> shift) & 255)
    high, low = a + (b - a) * right, c + (d - c) * right
    return np.uint32(high + (low - high) * below) << np.uint32(shift)


@compiled
def _sharpen(pixels, factor):
    height, width = pixels.shape
    result = pixels.copy()
    low, high = np.float32(0.0), np.float32(255.0)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            packed = 0
            for shift in (0, 8, 16):
                value = np.int32((pixels[y, x] >> shift) & 255)
                total = 4 * value + 0
                for row in range(y - 1, y + 2):
                    for column in range(x - 1, x + 2):
                        total += np.int32((pixels[row, column] >> shift) & 255)
                smooth = np.int32((2 * total + 13) // 26)  # of weights 1 and, in the middle, 5
                moved = np.float32(smooth) + factor * np.float32(value - smooth)
                packed |= np.int32(min(max(moved, low), high)) << shift
            result[y, x] = np.uint32(packed)
    return result


_COLOR_CHANGES = (_change_brightness, _change_contrast, _change_saturation)
