import math

import numpy as np
import pytest
from PIL import Image

from fixres_jax.core.errors import UsageError
from fixres_jax.data import transforms
from fixres_jax.studies import sizes
from fixres_jax.studies.sizes import TestCrop, TrainCrop

SQUARE = np.array([[500, 500]])
LANDSCAPE = np.array([[500, 375]])
# Crops of one aspect ratio, which fit square images whatever their area: the closed forms hold exactly there.
NO_REJECTION = {'ratio': (1.0, 1.0)}


def test_the_closed_form_is_the_papers_eighty_percent():
    mean, std = sizes.closed_form(TrainCrop(), TestCrop())
    assert mean == pytest.approx(256 / 224 * 2 / 3 * (1 - 0.08**1.5) / 0.92)
    assert round(mean, 2) == 0.81 and round(std, 2) == 0.22


@pytest.mark.parametrize('crop, scale', [
    ('torchvision', (0.08, 1.0)), ('torchvision', (0.3, 0.6)), ('torchvision', (0.5, 0.5)),
    ('tensorflow', (0.08, 1.0)), ('tensorflow', (0.3, 0.6)),
])  # fmt: skip
def test_closed_forms_agree_with_draws_of_the_samplers_that_train(crop, scale):
    train = TrainCrop(crop, scale, **NO_REJECTION)
    areas, zooms = sizes.train_regions(SQUARE, train, num_draws=20_000)
    ratios = sizes.apparent_size(SQUARE, train, TestCrop(), num_draws=20_000)
    mean, std = sizes.closed_form(train, TestCrop())
    assert ratios.mean() == pytest.approx(mean, abs=0.006) and ratios.std() == pytest.approx(std, abs=0.006)
    np.testing.assert_allclose(zooms**-2 / 500**2, areas)
    middle = np.linspace(*scale, 7)[1:-1] if scale[0] < scale[1] else np.array([0.45, 0.55])
    drawn = (areas.reshape(-1, 1) < middle).mean(axis=0)
    np.testing.assert_allclose(drawn, sizes.area_cdf(middle, train), atol=0.015)


def test_tensorflow_shows_objects_eight_percent_larger_in_training():
    """By area alone it would be 13 %; that a crop covers a tenth of the image takes the smallest ones away."""
    zooms = [sizes.train_regions(SQUARE, TrainCrop(crop, **NO_REJECTION), num_draws=20_000)[1] for crop in sizes.BOXES]
    assert zooms[1].mean() / zooms[0].mean() == pytest.approx(1.08, abs=0.01)


def test_rejected_crops_make_training_objects_larger_still():
    square, landscape = (sizes.apparent_size(s, TrainCrop(), TestCrop(), num_draws=10_000) for s in (SQUARE, LANDSCAPE))
    assert square.mean() == pytest.approx(0.763, abs=0.01)
    assert landscape.mean() == pytest.approx(0.837, abs=0.01)


def test_a_random_crop_of_the_resized_image_shows_what_the_test_shows():
    images = np.array([[500, 375], [90, 200], [64, 64]])
    np.testing.assert_allclose(sizes.apparent_size(images, TrainCrop('resize'), TestCrop()), 1.0)
    wider = TrainCrop('resize', resize_ratio=1.5)
    np.testing.assert_allclose(sizes.apparent_size(images, wider, TestCrop()), 256 / 224 / 1.5)
    assert sizes.closed_form(wider, TestCrop()) == (pytest.approx(256 / 224 / 1.5), 0.0)


@pytest.mark.parametrize('resize, crop', [('short', True), ('height', True), ('long', False)])
def test_test_regions_are_what_the_test_transform_does(resize, crop):
    """A white image, resized and cropped, is white where its region is shown, and the region has the zoom given."""
    for width, height in ((500, 375), (300, 400), (256, 256)):
        transform = transforms.make_test(200, resize='short' if resize == 'long' else resize, crop=crop)
        shown = (transform(Image.new('RGB', (width, height), 'white')) > 127).all(axis=-1).sum()
        area, zoom = sizes.test_regions([[width, height]], TestCrop(resize=resize))
        assert shown == pytest.approx(area[0] * width * height * (200 * zoom[0]) ** 2, rel=0.01)
        side = transforms.resize_side(200, 256 / 224) if crop else 200
        length = {'short': min(width, height), 'height': height, 'long': max(width, height)}[resize]
        assert zoom[0] * 200 == pytest.approx(side / length, rel=0.01)


def test_sizes_come_from_headers_of_files_at_any_depth(odd_images, tiny_folder):
    found = {tuple(row) for row in sizes.read(odd_images).tolist()}
    assert {(160, 120), (7, 5), (1, 1), (90, 200), (420, 60)} == found
    assert len(sizes.read(tiny_folder)) == 72
    assert len(sizes.read(tiny_folder, limit=10)) == 10


def test_statistics_of_real_photographs(imagenet_sample):
    photographs = sizes.read(imagenet_sample)
    assert np.median(photographs, axis=0).tolist() == [500, 375]
    spread = sizes.summarize(sizes.apparent_size(photographs, TrainCrop(), TestCrop(), num_draws=50))
    assert 0.76 < spread.mean < 0.86 and spread.low < spread.median < spread.high


@pytest.mark.parametrize('values, words', [
    ({'crop': 'tensorflwo'}, "Did you mean 'tensorflow'"),
    ({'scale': (0.0, 1.0)}, 'scale is 0.0 to 1.0'),
    ({'scale': (0.5, 1.5)}, 'areas up to 1'),
    ({'ratio': (2.0, 1.0)}, 'ratio is 2.0 to 1.0'),
    ({'crop': 'resize', 'resize_ratio': 0.5}, 'expected 1 or more'),
])  # fmt: skip
def test_impossible_crops_are_refused(values, words):
    with pytest.raises(UsageError, match=words):
        TrainCrop(**values)


def test_bad_input_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'short'"):
        TestCrop(resize='shorter')
    with pytest.raises(UsageError, match='holds no images'):
        sizes.read(tmp_path)
    with pytest.raises(UsageError, match='There is no folder'):
        sizes.read(tmp_path / 'absent')
    (tmp_path / 'broken.jpg').write_bytes(b'not a picture')
    with pytest.raises(UsageError, match='broken.jpg cannot be read as an image'):
        sizes.read(tmp_path)
    with pytest.raises(UsageError, match='expected one or more rows'):
        sizes.test_regions(np.zeros((0, 2)), TestCrop())
    with pytest.raises(UsageError, match='no distribution'):
        sizes.area_cdf(np.array([0.5]), TrainCrop('resize'))


def test_summary_is_that_of_the_numbers():
    spread = sizes.summarize(np.arange(101.0))
    assert (spread.mean, spread.low, spread.median, spread.high) == (50, 5, 50, 95)
    assert spread.std == pytest.approx(math.sqrt((101**2 - 1) / 12))
