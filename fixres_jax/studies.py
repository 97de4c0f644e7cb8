"""Studies of a trained and an adapted network: each returns numbers and arrays, from which every figure is drawn."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from fixres_jax import adapt, embeddings, evaluate, extract, metrics, models, train, trees
from fixres_jax.analysis import frechet, sizes
from fixres_jax.data import transforms
from fixres_jax.embeddings import Changes
from fixres_jax.progress import log

Study = tuple[dict[str, Any], dict[str, np.ndarray]]  # numbers for a .json, arrays for an .npz

MOST_SIZES = 10_000  # images whose sizes are read
NUM_QUANTILES = 401
NEAR_ZERO = 0.01  # of the mean activation at the training resolution
NUM_EXAMPLES = 8  # of each kind
EXAMPLE_RESOLUTION = 128


def roc(source: Any, train_crop: sizes.TrainCrop, test_crop: sizes.TestCrop, *, seed: int) -> Study:
    """Compare the regions that training and testing show, from the sizes of the images alone.

    Args:
      source: random-access source of images; only their headers are read.
      train_crop, test_crop: how each is cropped.
      seed: of the images and the draws.

    Returns:
      Mean and spread of the areas and of the apparent size, and histograms of the areas ('edges', 'train', 'test', as
      densities).

    Source: figure 2 and section 3 of the paper.
    """
    picked = np.random.default_rng(seed).permutation(len(source))[:MOST_SIZES]
    found = np.array([_size(source[int(i)]['encoded']) for i in picked])
    areas, _ = sizes.train_regions(found, train_crop, seed=seed)
    test_areas, _ = sizes.test_regions(found, test_crop)
    apparent = sizes.apparent_size(found, train_crop, test_crop, seed=seed)
    mean, spread = sizes.closed_form(train_crop, test_crop)
    edges = np.linspace(0, 1, 41)
    numbers = {
        'images': len(found),
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


def activations(
    model: Any,
    variables: Any,
    changes: Mapping[int, Changes],
    source: Any,
    test_transforms: Mapping[int, Callable[..., np.ndarray]],
    *,
    train_resolution: int,
    **embedding: Any,
) -> Study:
    """Find the distribution of the pooled activations at each test resolution, before and after adaptation.

    Args:
      model: from `models.create`.
      variables: of the trained network, on the devices.
      changes: resolution -> the statistics of the network adapted there.
      source: images to look at.
      test_transforms: resolution -> transform.
      train_resolution: pixels; of the mean that near-zero is measured by.
      **embedding: batch_size, mesh, reading, as `embeddings.embed` takes them.

    Returns:
      A row for each resolution and network with mean, std and the share of near-zero values; quantiles at 'shares' as
      '<resolution>_<network>'.

    Source: figures 3 and 4 of the paper.
    """
    both = {size: {'before': {}, 'after': new} for size, new in changes.items()}
    found = embeddings.embed(model, variables, both, source, test_transforms, title='activations', **embedding)
    values = {at: embeddings.gather(data)[0] for at, data in found.items()}
    nearest_size = min(changes, key=lambda size: abs(size - train_resolution))
    threshold = NEAR_ZERO * float(values[nearest_size, 'before'].mean())
    shares = np.linspace(0, 1, NUM_QUANTILES)
    rows, arrays = [], {'shares': shares}
    for (size, network), array in values.items():
        near_zero = float((array < threshold).mean())
        moments = {'mean': float(array.mean()), 'std': float(array.std()), 'near_zero': near_zero}
        rows.append({'resolution': size, 'network': network} | moments)
        arrays[f'{size}_{network}'] = np.quantile(array, shares).astype(np.float32)
    return {'images': len(source), 'threshold': threshold, 'rows': rows}, arrays


def ablation(
    model: Any,
    variables: Any,
    statistics: Changes,
    split: Mapping[str, Any],
    test_transforms: Mapping[str, Callable[..., np.ndarray]],
    how: adapt.Adaptation,
    *,
    seed: int,
    **embedding: Any,
) -> Study:
    """Measure on the test images what each part of the adaptation is worth, and the paper's equalization beside it.

    Args:
      model: from `models.create`.
      variables: of the trained network, on the devices.
      statistics: of the last BatchNorm at the test resolution.
      split: 'train', 'held_out' (or None) and 'test' images.
      test_transforms: 'train' at the training resolution, 'test' at the test resolution.
      how: how the classifier is fitted.
      seed: of SGD's batches.
      **embedding: batch_size, mesh, reading, as `embeddings.embed` takes them.

    Returns:
      Rows {'part', 'top1', 'low', 'high', 'loss', 'minus_nothing'}, and pictures that changed sides (see `_examples`).
    """

    def embed(name, title):
        changes = {'test': {'before': {}, 'after': statistics}}
        at = {'test': test_transforms['test']}
        return embeddings.embed(model, variables, changes, split[name], at, title=f'ablation: {title}', **embedding)

    training, test = embed('train', 'training images'), embed('test', 'test images')
    checks = embed('held_out', 'held-out images') if split['held_out'] is not None else {}
    old = variables['params'][models.CLASSIFIER]
    heads = {}
    for name in ('before', 'after'):
        heads[name], record = adapt.fit(
            training['test', name], checks.get(('test', 'before')), checks.get(('test', name)), old, how, seed=seed
        )
    (before, labels), (after, _) = (embeddings.gather(test['test', name]) for name in ('before', 'after'))
    equalized = _equalize(model, variables, split['train'], test_transforms, before, seed=seed, **embedding)
    logits = {
        'nothing': _logits(before, old),
        'equalization': _logits(equalized, old),
        'statistics': _logits(after, old),
        'classifier': _logits(before, heads['before']),
        'statistics and classifier': _logits(before if record['kept_old'] else after, heads['after']),
    }
    nothing, both = logits['nothing'], logits['statistics and classifier']
    rows = [_row(part, labels, values, nothing) for part, values in logits.items()]
    examples, arrays = _examples(split['test'], labels, nothing, both)
    return {'count': len(labels), 'rows': rows, 'examples': examples}, arrays


def _equalize(model, variables, source, test_transforms, values, *, seed, **embedding) -> np.ndarray:
    """Map test activations so that they are distributed as at the training resolution; no labels are used."""
    sample = adapt.sample(source, adapt.STATISTICS_LEAST * 4, seed)
    same = {key: {'same': {}} for key in test_transforms}
    found = embeddings.embed(model, variables, same, sample, test_transforms, title='equalization', **embedding)
    target, origin = (frechet.fit(embeddings.gather(found[key, 'same'])[0]) for key in ('train', 'test'))
    log.info('Equalization: from %s to %s.', origin, target)
    return frechet.equalize(values, origin, target)


def _logits(values: np.ndarray, head: Mapping[str, Any]) -> np.ndarray:
    return values @ np.asarray(head['kernel']) + np.asarray(head['bias'])[None, :]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _row(part: str, labels: np.ndarray, logits: np.ndarray, nothing: np.ndarray) -> dict[str, Any]:
    right, base = extract.hits(labels, logits, 1), extract.hits(labels, nothing, 1)
    low, high = metrics.wilson(int(right.sum()), len(labels))
    scored = extract.score(labels, _softmax(logits))
    return {
        'part': part,
        'top1': scored['top1'],
        'low': 100 * low,
        'high': 100 * high,
        'loss': scored['loss'],
        'ece': scored['ece'],
        'minus_nothing': metrics.paired(int((right & ~base).sum()), int((base & ~right).sum()), len(labels)),
    }


def _examples(
    source: Any, labels: np.ndarray, before: np.ndarray, after: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the images whose label's probability changed most among those that changed sides, with pictures.

    Returns:
      {'gained', 'lost': [{'name', 'label', 'before', 'after'}]}, class names; and uint8[n, R, R, 3] of each kind.
    """
    was, now = (extract.hits(labels, logits, 1) for logits in (before, after))
    own = [np.take_along_axis(_softmax(x), labels[:, None], axis=1)[:, 0] for x in (before, after)]
    change = np.abs(own[1] - own[0])
    picture = transforms.make_test(EXAMPLE_RESOLUTION)
    numbers, arrays = {}, {}
    for kind, rows in (('gained', np.flatnonzero(now & ~was)), ('lost', np.flatnonzero(was & ~now))):
        numbers[f'num_{kind}'] = len(rows)
        rows = rows[np.argsort(-change[rows])][:NUM_EXAMPLES]
        images = [source[int(row)] for row in rows]
        numbers[kind] = [
            {
                'name': source.name(int(row)),
                'label': _class_name(source, labels[row]),
                'before': _class_name(source, before[row].argmax()),
                'after': _class_name(source, after[row].argmax()),
            }
            for row in rows
        ]
        pictures = [picture(transforms.decode(x['encoded'], x['name'], 0)) for x in images]
        arrays[kind] = np.array(pictures, np.uint8).reshape(-1, EXAMPLE_RESOLUTION, EXAMPLE_RESOLUTION, 3)
    return numbers, arrays


def _class_name(source: Any, label: int) -> str:
    """Return the name of a class; a network may have more classes than the data names."""
    return source.class_names[label] if label < len(source.class_names) else f'class {label}'


def affine_ablation(
    model: Any,
    variables: Any,
    split: Mapping[str, Any],
    resolution: int,
    test_transform: Callable[..., np.ndarray],
    optimization: train.Optimization,
    *,
    epochs: float,
    seed: int,
    batch_size: int,
    reading: Mapping[str, int],
    **running: Any,
) -> list[dict[str, Any]]:
    """Fine-tune BatchNorm's scale and bias, alone and with the rest, by the two regexes; return rows as `ablation`.

    Args:
      model, variables, split: as `ablation`.
      resolution: pixels, of the test.
      test_transform: at that resolution.
      optimization: the reference's fine-tuning.
      epochs: passes over the training images.
      seed: of the order of the images.
      batch_size, reading: of the evaluation; the latter of training too.
      **running: mesh, layout, directory, metadata and how often to write, as `train.run` takes them.
    """
    layer = optimization.batch_norm
    regexes = {
        'scale and bias': (f'{layer}/(scale|bias)', ''),
        'statistics, scale and bias': (f'{layer}/(scale|bias)', layer),
        'classifier, by SGD': (optimization.trainable, ''),
        'statistics and classifier, by SGD': (optimization.trainable, layer),
        'statistics, scale and bias, classifier': (f'{optimization.trainable}|{layer}/(scale|bias)', layer),
    }
    networks, directory = {'nothing': variables}, running.pop('directory')
    model = train.regroup(model, optimization, 'ablation')
    for number, (part, (trainable, batch_norm)) in enumerate(regexes.items()):
        how = dataclasses.replace(optimization, epochs=epochs, trainable=trainable, batch_norm=batch_norm)
        networks[part], _ = train.run(
            model, split['train'], test_transform, how, variables=variables, repeats=1, seed=seed,
            directory=directory / str(number), reading=reading, title=f'ablation: {part}', **running,
        )  # fmt: skip
    result = evaluate.evaluate(
        model, networks, split['test'], {resolution: test_transform},
        batch_size=batch_size, mesh=running['mesh'], reading=reading, title='ablation',
    )  # fmt: skip
    return [
        {'part': part}
        | {name: evaluate.find_point(result, part, resolution)[name] for name in ('top1', 'low', 'high', 'loss')}
        | {'minus_nothing': evaluate.compare(result, (part, resolution), ('nothing', resolution))}
        for part in regexes
    ]


def grid(runs: Mapping[str, Mapping[str, Any]]) -> Study:
    """Put the curves of several runs together: train resolution x test resolution, before and after.

    Args:
      runs: workdir -> its report.json.

    Returns:
      Rows {'run', 'train_resolution', 'test_resolution', 'curve'}; no arrays.

    Source: figure 5 of the paper, both panels.
    """
    names = ('train_resolution', 'test_resolution', 'curve')
    rows = [{'run': run} | {name: report[name] for name in names} for run, report in runs.items()]
    return {'rows': sorted(rows, key=lambda row: row['train_resolution'])}, {}


def statistics_of(variables: Any, batch_norm: str) -> dict[str, jax.Array]:
    """Return the statistics of the layers that a regex matches, by name, as `embeddings.change` takes them."""
    flat = trees.flatten(variables['batch_stats'])
    layers = models.batch_norm_layers(variables['batch_stats'], batch_norm)
    return {f'{layer}/{name}': flat[f'{layer}/{name}'] for layer in layers for name in ('mean', 'var')}
