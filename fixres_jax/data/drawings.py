"""An embedded data set: pictures of textured shapes, drawn procedurally and saved as JPEG files.

The pictures stand in for photographs where none are at hand. What matters to this method is like in photographs:
mixed sizes and aspect ratios, an object that fills anything from a small part to most of the picture and sits
near its middle, clutter behind it, and classes told apart by outline and by the scale of a texture relative to
the object, never by colour. Each picture is a function of (seed, split, number) alone.
"""

import concurrent.futures
import io
import json
import os
import uuid
from collections.abc import Callable

import numpy as np
from etils import epath
from PIL import Image

from fixres_jax.core.errors import UsageError

VERSION = 1  # Counts changes of the pictures: a folder drawn by another version is not taken for this one.
_MARKER = 'drawings.json'

# Outlines: the radius at angle a, at most 1; the point at angle 0 is up.
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'triangle': lambda a: 0.5 / np.cos((a % (2 * np.pi / 3)) - np.pi / 3),
    'star': lambda a: 0.72 + 0.28 * np.cos(5 * a),
    'clover': lambda a: 0.78 + 0.22 * np.cos(3 * a),
}
# Textures: brightness in [-1, 1] at (u, v), in radii of the object; a stripe's period is a part of that radius.
TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    'broad': lambda u, v: np.sin(2 * np.pi * 1.3 * u),
    'fine': lambda u, v: np.sin(2 * np.pi * 3.2 * u),
    'spotted': lambda u, v: 1.4 * np.sin(2 * np.pi * 1.6 * u) * np.sin(2 * np.pi * 1.6 * v) - 0.3,
}
CLASSES = tuple(f'{texture}_{shape}' for texture in TEXTURES for shape in SHAPES)


def write(root: epath.PathLike, *, train: int, val: int, seed: int) -> epath.Path:
    """Draw the data set into a folder, unless it is there already.

    The folder appears whole or not at all: the files are written beside it, and renamed at the end.

    Args:
      root: folder that then holds train/<class>/*.jpg and val/<class>/*.jpg.
      train: number of training images; the classes take turns.
      val: number of validation images.
      seed: of all randomness; another seed gives another data set.

    Returns:
      The folder.

    Raises:
      UsageError: when the folder exists and holds something else, or when a split has fewer images than classes.
    """
    root, counts = epath.Path(root), {'train': train, 'val': val}
    marker = {'version': VERSION, 'seed': seed} | counts
    for split, count in counts.items():
        if count < len(CLASSES):
            raise UsageError(f'{split}={count} images are fewer than the {len(CLASSES)} classes of the drawings.')
    if _is_complete(root, marker):
        return root
    part = root.parent / f'{root.name}.{uuid.uuid4().hex[:8]}.part'
    try:
        _write_images(part, counts, seed)
        (part / _MARKER).write_text(json.dumps(marker))
        part.rename(root)
    except OSError:  # Another process may have been faster: its pictures are the same.
        if not _is_complete(root, marker):
            raise
    finally:
        if part.exists():
            part.rmtree()
    return root


def _is_complete(root: epath.Path, marker: dict[str, int]) -> bool:
    """Return whether the drawings are in the folder; refuse a folder that holds anything else."""
    if not root.exists():
        return False
    path = root / _MARKER
    found = json.loads(path.read_text()) if path.is_file() else None
    if found == marker:
        return True
    if found is None and root.is_dir() and not any(root.iterdir()):
        return False
    raise UsageError(
        f'{root} holds {f"drawings made with {found}" if found else "files that are not drawings"}, '
        f'but {marker} is asked for. Remove the folder or name another one.'
    )


def _write_images(root: epath.Path, counts: dict[str, int], seed: int) -> None:
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    for split in counts:
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)

    def write_one(job: tuple[str, int]) -> None:
        split, index = job
        label = index % len(CLASSES)
        rng = np.random.default_rng([seed, list(counts).index(split), index])
        file = io.BytesIO()
        draw(label, rng).save(file, 'JPEG', quality=int(rng.integers(75, 96)))
        (root / split / CLASSES[label] / f'{index:06}.jpg').write_bytes(file.getvalue())

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write_one, jobs):
            pass


def draw(label: int, rng: np.random.Generator) -> Image.Image:
    """Draw one picture of a class.

    Args:
      label: index into CLASSES.
      rng: source of all randomness.

    Returns:
      RGB image; the shorter side has 96 to 160 pixels, the longer up to 1.6 times as many.
    """
    texture, shape = CLASSES[label].split('_')
    height, width = _size(rng)
    canvas = _clouds(rng, height, width)
    for _ in range(rng.integers(2, 6)):
        _paint(canvas, rng, SHAPES[rng.choice(list(SHAPES))], None, rng.uniform(0.04, 0.12), rng.uniform(-0.5, 0.5, 2))
    # Sizes spread evenly over octaves, as objects' do that stand at any distance from the camera.
    radius = 0.5 * np.exp(rng.uniform(np.log(0.35), np.log(0.95)))
    _paint(canvas, rng, SHAPES[shape], TEXTURES[texture], radius, rng.normal(0, 0.1, 2))
    canvas += np.float32(0.03) * rng.standard_normal(canvas.shape, np.float32)
    return Image.fromarray(np.uint8(255 * np.clip(canvas, 0, 1)))


def _size(rng: np.random.Generator) -> tuple[int, int]:
    short = int(rng.integers(96, 161))
    long = int(short * rng.choice([1.0, 1.25, 4 / 3, 1.5, 1.6]))
    return (short, long) if rng.random() < 0.7 else (long, short)


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return float32[height, width, 3] of coloured noise with equal contrast in every octave."""
    canvas = np.full((height, width, 3), rng.uniform(0.25, 0.75, 3), np.float32)
    for cells in (2, 5, 12, 28):
        noise = np.uint8(rng.integers(0, 256, (cells, cells * width // height + 1, 3)))
        image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        canvas += np.float32(0.18 / 255) * np.asarray(image, np.float32) - np.float32(0.09)
    return canvas


def _paint(canvas, rng, shape, texture, radius, position) -> None:
    """Paint a shape onto the canvas in place.

    Args:
      canvas: float32[H, W, 3] in [0, 1].
      rng: draws colours, rotation, stretch and the texture's place.
      shape: an outline of SHAPES.
      texture: one of TEXTURES, or None for a plain colour.
      radius: as a fraction of the shorter side.
      position: of the centre, (y, x) as fractions of the sides, (0, 0) being the middle.
    """
    height, width, _ = canvas.shape
    pixels = radius * min(height, width)
    middle = np.array([height, width]) * (0.5 + np.asarray(position))
    reach = 1.3 * pixels + 1  # the farthest that stretching takes an outline
    (top, left), (bottom, right) = (np.int64(np.clip(middle + d, 0, (height, width))) for d in (-reach, reach))
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    y, x = (y - middle[0]) / pixels, (x - middle[1]) / pixels
    angle, stretch = rng.normal(0, 0.25), np.exp(rng.uniform(-0.25, 0.25))
    u = (np.cos(angle) * x + np.sin(angle) * y) * stretch
    v = (np.cos(angle) * y - np.sin(angle) * x) / stretch
    inside = np.clip((shape(np.arctan2(v, u) + np.pi / 2) - np.hypot(u, v)) * pixels + 0.5, 0, 1)
    bright, dark = _two_colours(rng)
    if texture is None:
        blend = np.full_like(u, rng.uniform(0, 1))
    else:
        turn, phase = rng.normal(0, 0.4), rng.uniform(-1, 1, 2)
        pitch = np.exp(rng.uniform(-0.2, 0.2))
        s = (np.cos(turn) * u + np.sin(turn) * v + 0.1 * np.sin(3 * v + phase[0])) * pitch + phase[0]
        t = (np.cos(turn) * v - np.sin(turn) * u + 0.1 * np.sin(3 * u + phase[1])) * pitch + phase[1]
        blend = np.clip(0.5 + texture(s, t), 0, 1)
    light = 1 + 0.25 * (np.cos(angle) * u + np.sin(angle) * v)
    colour = (dark + (bright - dark) * blend[..., None]) * light[..., None]
    region = canvas[top:bottom, left:right]
    region += inside[..., None] * (colour - region)


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return two colours that differ in brightness by a third or more: textures remain visible in grey."""
    mean, contrast = rng.uniform(0.3, 0.7), rng.uniform(0.18, 0.35)
    tint = rng.uniform(-0.15, 0.15, (2, 3))
    return np.float32(mean + contrast + tint[0]), np.float32(mean - contrast + tint[1])
