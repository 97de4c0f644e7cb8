"""What training and testing show of an image: the paper's regions of classification, from the sizes of images alone.

Source: figure 2 and section 3 of the paper.
"""

import dataclasses
import io

import numpy as np
from PIL import Image

from fixres_jax.core.figures import AFTER, BEFORE, Figure, legend_below, new_figure, strokes
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
    edges = np.linspace(0, 1, 201)
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
    """Draw the areas of the regions that training and testing show, as cumulative shares."""
    figure = new_figure(3.6)
    axes = figure.subplots()
    edges = 100 * arrays['edges']
    for (name, colour, label), width in zip(
        (('train', BEFORE, 'training'), ('test', AFTER, 'test')), strokes(2), strict=True
    ):
        share = np.cumsum(np.diff(arrays['edges']) * arrays[name])
        mean = numbers[f'{name}_area']['mean']
        label = f'{label}, mean {100 * mean:.0f} %'
        axes.plot(edges, 100 * np.array([0, *share]), color=colour, linewidth=width, label=label)
    axes.set_xlabel("area shown to the network (% of the image's)")
    axes.set_ylabel('crops that show less (%)')
    axes.grid(alpha=0.3)
    legend_below(figure)
    return figure


def _sentence(numbers: Numbers) -> str:
    apparent, closed = numbers['apparent_size'], numbers['closed_form']
    return (
        f'From the sizes of {numbers["images"]:,} training images. Objects in the test have {apparent["mean"]:.2f} ± '
        f'{apparent["std"]:.2f} times their size in training, at equal resolutions (closed form for square images: '
        f'{closed["mean"]:.2f} ± {closed["std"]:.2f}).'
    )


STUDY = Study(
    compute,
    {'regions': Picture(_draw, 'What training and testing show of an image', _sentence)},
    needs_networks=False,
)
