"""What training and testing show of an image: the paper's regions of classification, from the sizes of images alone.

Source: figure 2 and section 3 of the paper.
"""

import dataclasses
import io

import numpy as np
from PIL import Image

from fixres_jax.core.figures import AFTER, BEFORE, Figure, new_figure
from fixres_jax.studies import sizes
from fixres_jax.studies.study import Arrays, Numbers, Picture, Study, Subject

MOST_SIZES = 10_000  # images whose sizes are read


def compute(subject: Subject) -> tuple[Numbers, Arrays]:
    """Compare the regions that training and testing show of the training images; only the headers of files are read.

    Returns:
      Mean and spread of the areas and of the apparent size, and histograms of the areas ('edges', 'train', 'test', as
      densities).
    """
    source, train_crop, test_crop, seed = subject.train, subject.train_crop, subject.test_crop, subject.seed
    picked = np.random.default_rng(seed).permutation(len(source))[:MOST_SIZES]
    image_sizes = np.array([_size(source[int(i)]['encoded']) for i in picked])
    areas, _ = sizes.train_regions(image_sizes, train_crop, seed=seed)
    test_areas, _ = sizes.test_regions(image_sizes, test_crop)
    apparent = sizes.apparent_size(image_sizes, train_crop, test_crop, seed=seed)
    mean, spread = sizes.closed_form(train_crop, test_crop)
    edges = np.linspace(0, 1, 41)
    numbers = {
        'images': len(image_sizes),
        'crop': train_crop.crop,
        'train_area': dataclasses.asdict(sizes.summarize(areas)),
        'test_area': dataclasses.asdict(sizes.summarize(test_areas)),
        'apparent_size': dataclasses.asdict(sizes.summarize(apparent)),
        'closed_form': {'mean': mean, 'std': spread},
    }
    histograms = (np.histogram(area, edges, density=True)[0] for area in (areas.ravel(), test_areas.clip(0, 1)))
    return numbers, {'edges': edges} | dict(zip(('train', 'test'), histograms, strict=True))


def _size(encoded: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(encoded)) as image:
        return image.size


def _draw(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw the areas of the regions that training and testing show ."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    edges = 100 * arrays['edges']
    for name, colour, label in (('train', BEFORE, 'training'), ('test', AFTER, 'test')):
        axes.stairs(arrays[name] / 100, edges, color=colour, fill=True, alpha=0.25)
        mean = numbers[f'{name}_area']['mean']
        axes.stairs(arrays[name] / 100, edges, color=colour, label=f'{label}, mean {100 * mean:.0f} %')
    apparent, closed = numbers['apparent_size'], numbers['closed_form']
    axes.set_xlabel("area shown to the network (% of the image's)")
    axes.set_ylabel('density (per %)')
    axes.set_title(
        f'{numbers["images"]:,} images; objects in the test have {apparent["mean"]:.2f} ± {apparent["std"]:.2f} times '
        f'their size in training\n(closed form for square images: {closed["mean"]:.2f} ± {closed["std"]:.2f})',
        fontsize=10,
    )
    axes.legend()
    return figure


STUDY = Study(
    compute,
    {
        'regions': Picture(
            _draw, 'What training and testing show of an image', 'From the sizes of the training images alone.'
        )
    },
    needs_networks=False,
)
