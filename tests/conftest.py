"""The ground every test stands on: eight virtual devices, strict numerics, and small sets of images."""

# ruff: noqa: E402  (JAX reads the environment when it is imported.)
import logging
import os
import tempfile
from importlib import metadata
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Most of the time goes into compiling. Without the passes that make programs fast it takes a quarter to a half.
QUICK_TO_COMPILE = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
if metadata.version('jaxlib').startswith('0.10.'):  # later ones have no such option, and end at what they do not know
    QUICK_TO_COMPILE += ' --xla_cpu_use_fusion_emitters=false'
FLAGS = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8'
os.environ['XLA_FLAGS'] = f'{FLAGS} {QUICK_TO_COMPILE}'
# One compilation of each program for all tests, of both workers, and for the processes that they start.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix='fixres_jax_tests_')
    os.environ |= {'JAX_COMPILATION_CACHE_DIR': COMPILED.name, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3'}

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from fixres_jax import models
from toy import TOY

jax.devices()  # reads the flags
os.environ['XLA_FLAGS'] = FLAGS  # libtpu, in tests that compile for TPUs, ends at those that it does not know.
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_default_matmul_precision', 'highest')
flags.FLAGS.mark_as_parsed()  # grain's worker processes read flags.

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get('FIXRES_TEST_DATA') or ROOT.parent / 'shared' / 'data')


@pytest.fixture(autouse=True)
def _logs_as_they_were():
    """Leave the logs as each test finds them: a command sets them up for its whole process."""
    ours, *_ = logs = [logging.getLogger(name) for name in ('fixres_jax', None, 'jax._src.xla_bridge')]
    handlers, propagate, levels = ours.handlers, ours.propagate, [log.level for log in logs]
    yield
    ours.handlers, ours.propagate = handlers, propagate
    for log, level in zip(logs, levels, strict=True):
        log.setLevel(level)


@pytest.fixture(scope='module')
def toy():
    """Among the architectures a network that compiles at once, for what does not depend on the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.ARCHITECTURES, 'toy', TOY)
        yield


def _photographs(name: str) -> Path:
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f'{name} is not in {DATA}; set FIXRES_TEST_DATA to the folder that holds it')
    return folder


@pytest.fixture(scope='session')
def imagenette() -> Path:
    """A folder with train/ and val/ of ten ImageNet classes, 224x224 photographs."""
    return _photographs('imagenette')


@pytest.fixture(scope='session')
def imagenet_sample() -> Path:
    """A flat folder of 200 ImageNet photographs at their original sizes."""
    return _photographs('imagenet_sample')


def pattern(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw a smooth uint8[height, width, 3] image with detail in every channel, each seed another one."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi, 3)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + 3 * c) + y / (9 - 2 * c) + phase[c]) for c in range(3)]
    return np.uint8(127.5 + 127 * np.stack(waves, axis=-1))


@pytest.fixture(scope='session')
def odd_images(tmp_path_factory) -> Path:
    """A flat folder of image files of every odd kind that data sets hold."""
    folder = tmp_path_factory.mktemp('odd_images')
    photo = Image.fromarray(pattern(120, 160))
    photo.convert('L').save(folder / 'grey.jpg')
    photo.convert('CMYK').save(folder / 'cmyk.jpg')
    photo.save(folder / 'progressive.jpg', progressive=True)
    photo.save(folder / 'png_inside.JPEG', format='PNG')
    photo.quantize(32).save(folder / 'palette.png')
    photo.quantize(32).save(folder / 'palette_transparent.png', transparency=3)
    alpha = Image.linear_gradient('L').resize(photo.size)
    Image.merge('RGBA', (*photo.split(), alpha)).save(folder / 'alpha.png')
    Image.merge('LA', (photo.convert('L'), alpha)).save(folder / 'grey_alpha.png')
    photo.convert('1').save(folder / 'bilevel.png')
    Image.fromarray(pattern(120, 160)[..., 0].astype(np.uint16) * 257).save(folder / 'sixteen_bit.png')
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: shown rotated by a quarter turn. ImageNet pipelines ignore the tag.
    photo.save(folder / 'exif_rotated.jpg', exif=exif)
    Image.fromarray(pattern(5, 7)).save(folder / 'tiny.jpg')
    Image.fromarray(pattern(1, 1)).save(folder / 'one_pixel.png')
    Image.fromarray(pattern(200, 90)).save(folder / 'portrait.jpg')
    Image.fromarray(pattern(60, 420)).save(folder / 'panorama.jpg')
    return folder


@pytest.fixture(scope='session')
def tiny_folder(tmp_path_factory) -> Path:
    """A data set of four classes: train/ with 12 and val/ with 6 small JPEG files of each, at mixed sizes."""
    root = tmp_path_factory.mktemp('tiny_folder')
    rng = np.random.default_rng(0)
    for split, count in (('train', 12), ('val', 6)):
        for label, name in enumerate(('ant', 'bee', 'cat', 'dog')):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = pattern(*rng.integers(40, 81, 2), seed=index)
                image[..., label % 3] //= 1 + label  # Classes differ by colour: a few steps learn them.
                Image.fromarray(image).save(folder / f'{split}_{index:02}.jpg', quality=90)
    return root
