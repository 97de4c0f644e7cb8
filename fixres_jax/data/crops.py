"""Where training crops lie: the random boxes of torchvision and of TensorFlow."""

import math

import numpy as np

TENSORFLOW_MIN_COVERED = 0.1  # min_object_covered of the usual TensorFlow ImageNet pipelines

Box = tuple[int, int, int, int]


def random_resized_crop(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draw a training crop as torchvision's RandomResizedCrop does.

    The area is uniform in `scale` times the image's, the aspect ratio log-uniform in `ratio`; after ten crops
    that do not fit, the largest central one with an allowed aspect ratio.

    Returns:
      (left, top, right, bottom) in pixels.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < min(ratio):
        h = round(width / min(ratio))
    elif width / height > max(ratio):
        w = round(height * max(ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def distorted_bounding_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draw a training crop as TensorFlow's sample_distorted_bounding_box does on a whole image.

    The aspect ratio is uniform in `ratio`, then the height uniform between those of the smallest and the
    largest area: crops are smaller than torchvision's, objects in them 8 % larger. After ten misses the
    largest central square.

    Returns:
      (left, top, right, bottom) in pixels.

    Source: GenerateRandomCrop in tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc.
    """
    area = width * height
    low, high = scale[0] * area, scale[1] * area
    for _ in range(10):
        aspect = ratio[0] + (ratio[1] - ratio[0]) * rng.random()
        smallest, largest = round(math.sqrt(low / aspect)), round(math.sqrt(high / aspect))
        largest = min(largest, int((width + 0.5 - 1e-7) / aspect), height)
        h = largest if smallest >= largest else int(rng.integers(smallest, largest + 1))
        w = round(h * aspect)
        if w * h < low:  # rounding may leave the allowed areas by one row
            h += 1
        elif w * h > high:
            h -= 1
        w = round(h * aspect)
        covered = low <= w * h <= high and w * h >= TENSORFLOW_MIN_COVERED * area
        if covered and 0 < w <= width and 0 < h <= height:
            # The last position is never drawn there.
            top = int(rng.integers(height - h)) if h < height else 0
            left = int(rng.integers(width - w)) if w < width else 0
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


BOXES = {'torchvision': random_resized_crop, 'tensorflow': distorted_bounding_box}
