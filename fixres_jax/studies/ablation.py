"""What each part of the adaptation is worth on the test images, and the paper's equalization beside it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fixres_jax.adaptation import adapt, embeddings, statistics
from fixres_jax.core import losses, tables
from fixres_jax.core.figures import AFTER, CHANCE, Figure, new_figure
from fixres_jax.core.progress import log
from fixres_jax.data import sources, transforms
from fixres_jax.data.sources import Source
from fixres_jax.evaluation import evaluate, intervals, scores
from fixres_jax.studies import frechet
from fixres_jax.studies.study import Arrays, Numbers, Picture, Study, Subject
from fixres_jax.training import train

NUM_EXAMPLES = 8  # of each kind
EXAMPLE_RESOLUTION = 128


def compute(subject: Subject) -> tuple[Numbers, Arrays]:
    """Measure what each part of the adaptation is worth, alone and together.

    Returns:
      Rows {'part', 'top1', 'low', 'high', 'loss', 'minus_nothing'}, and pictures that changed sides (see `_examples`).
    """
    before, resolution = subject.networks.before, subject.networks.resolution
    new = subject.networks.after.statistics(subject.adaptation.batch_norm)
    transform = subject.test_transforms((resolution,))

    def embed(source: Source, title: str) -> dict[tuple[int, str], embeddings.Embeddings]:
        changes = {resolution: {'before': {}, 'after': new}}
        storage = subject.adaptation.storage(None)
        return embeddings.embed(
            before, changes, source, transform, subject.feed.named(f'ablation: {title}'), storage=storage
        )

    training, test = embed(subject.train, 'training images'), embed(subject.test, 'test images')
    checking = embed(subject.held_out, 'held-out images') if subject.held_out is not None else {}
    heads, kept_old = {}, {}
    for name in ('before', 'after'):
        checks = [checking.get((resolution, checked)) for checked in ('before', name)]
        how = subject.adaptation
        heads[name], record = adapt.fit(training[resolution, name], *checks, before.head, how, seed=subject.seed)
        kept_old[name] = record['kept_old']

    # The test embeddings float32[N, C] under the old and the new statistics, and equalized.
    (old_values, labels), (new_values, _) = (embeddings.gather(test[resolution, name]) for name in ('before', 'after'))
    equalized = _equalize(subject, old_values)
    logits = {
        'nothing': _logits(old_values, before.head),
        'equalization': _logits(equalized, before.head),
        'statistics': _logits(new_values, before.head),
        'classifier': _logits(old_values, heads['before']),
        'statistics and classifier': _logits(old_values if kept_old['after'] else new_values, heads['after']),
    }
    nothing, both = logits['nothing'], logits['statistics and classifier']
    rows = [_row(part, labels, values, nothing) for part, values in logits.items()]
    if subject.epochs:
        rows += _affine_rows(subject)
    examples, arrays = _examples(subject.test, labels, nothing, both)
    numbers = {'count': len(labels), 'rows': rows, 'examples': examples}
    return numbers | {'train_resolution': subject.train_resolution, 'test_resolution': resolution}, arrays


def _equalize(subject: Subject, values: np.ndarray) -> np.ndarray:
    """Map test activations so that they are distributed as at the training resolution; no labels are used."""
    sample = sources.sample(subject.train, statistics.STATISTICS_LEAST * 4, subject.seed)
    resolutions = (subject.train_resolution, subject.networks.resolution)
    by_point = embeddings.embed(
        subject.networks.before,
        {resolution: {'same': {}} for resolution in resolutions},
        sample,
        subject.test_transforms(resolutions),
        subject.feed.named('equalization'),
        storage=subject.adaptation.storage(None),
    )
    target, origin = (frechet.fit(embeddings.gather(by_point[resolution, 'same'])[0]) for resolution in resolutions)
    log.info(
        'Equalization: activations of location %.3f and scale %.3f are given location %.3f and scale %.3f.',
        *(origin.location, origin.scale, target.location, target.scale),
    )
    return frechet.equalize(values, origin, target)


def _affine_rows(subject: Subject) -> list[dict[str, Any]]:
    """Fine-tune the scale and bias of BatchNorm, alone and with the rest, by the two regexes; return rows."""
    how, resolution = subject.finetuning, subject.networks.resolution
    before = subject.networks.before
    start = dataclasses.replace(before, model=train.regroup(before.model, how, 'ablation'))
    layer, transform = how.batch_norm, subject.test_transforms((resolution,))
    affine = f'({layer})/(scale|bias)'
    regexes = {'classifier, by SGD': (how.trainable, '')}
    if layer:
        regexes = {
            'scale and bias': (affine, ''),
            'statistics, scale and bias': (affine, layer),
            **regexes,
            'statistics and classifier, by SGD': (how.trainable, layer),
            'statistics, scale and bias, classifier': (f'{how.trainable}|{affine}', layer),
        }
    networks = {'nothing': before}
    for number, (part, (trainable, batch_norm)) in enumerate(regexes.items()):
        part_of_it = {'epochs': subject.epochs, 'trainable': trainable, 'batch_norm': batch_norm}
        networks[part], _ = train.run(
            start,
            subject.train,
            transform[resolution],
            dataclasses.replace(how, **part_of_it),
            runtime=subject.feed.runtime,
            writing=dataclasses.replace(subject.writing, directory=subject.writing.directory / str(number)),
            seed=subject.seed + 1,  # other batches than training saw
            title=f'ablation: {part}',
            classes=train.few_classes(subject.train, before.model.num_classes),
        )
    result = evaluate.evaluate(networks, subject.test, transform, subject.feed.named('ablation'))
    return [
        {'part': part}
        | {name: evaluate.find_point(result, part, resolution)[name] for name in ('top1', 'low', 'high', 'loss')}
        | {'minus_nothing': evaluate.compare(result, (part, resolution), ('nothing', resolution))}
        for part in regexes
    ]


def _logits(values: np.ndarray, head: Mapping[str, Any]) -> np.ndarray:
    return values @ np.asarray(head['kernel']) + np.asarray(head['bias'])[None, :]


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _hits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(losses.hits(logits, labels, 1))


def _row(part: str, labels: np.ndarray, logits: np.ndarray, nothing: np.ndarray) -> dict[str, Any]:
    right, base = _hits(logits, labels), _hits(nothing, labels)
    only, only_base = int((right & ~base).sum()), int((base & ~right).sum())
    same = np.array_equal(logits, nothing)
    low, high = intervals.wilson(int(right.sum()), len(labels))
    scored = scores.score(labels, _softmax(logits))
    return {
        'part': part,
        'top1': scored['top1'],
        'low': 100 * low,
        'high': 100 * high,
        'loss': scored['loss'],
        'ece': scored['ece'],
        'minus_nothing': intervals.SAME if same else intervals.paired(only, only_base, len(labels)),
    }


def _examples(
    source: Source, labels: np.ndarray, before: np.ndarray, after: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the images whose label's probability changed most among those that changed sides, with pictures.

    Returns:
      {'gained', 'lost': [{'name', 'label', 'before', 'after'}]}, class names; and uint8[n, R, R, 3] of each kind.
    """
    was_right, is_right = _hits(before, labels), _hits(after, labels)
    probability = [np.take_along_axis(_softmax(x), labels[:, None], axis=1)[:, 0] for x in (before, after)]
    change = np.abs(probability[1] - probability[0])
    picture = transforms.make_test(EXAMPLE_RESOLUTION)
    numbers, arrays = {}, {}
    for kind, rows in (
        ('gained', np.flatnonzero(is_right & ~was_right)),
        ('lost', np.flatnonzero(was_right & ~is_right)),
    ):
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


def _class_name(source: Source, label: int) -> str:
    """Return the name of a class; a network may have more classes than the data names."""
    return source.class_names[label] if label < len(source.class_names) else f'class {label}'


def _table(numbers: Numbers) -> tables.Table:
    rows = [(row['part'], tables.accuracy(row), *tables.difference(row['minus_nothing'])) for row in numbers['rows']]
    return ('adapted', 'top-1 (%)', 'minus nothing', '95 % interval'), rows


def _draw(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw what each part of the adaptation is worth, as paired differences from doing nothing."""
    rows = [row for row in numbers['rows'] if row['part'] != 'nothing']
    figure = new_figure(0.9 + 0.4 * len(rows))
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        d = row['minus_nothing']
        axes.plot([d['low'], d['high']], [place, place], color=AFTER, linewidth=2)
        axes.plot(d['difference'], place, 'o', color=AFTER)
    axes.set_yticks(range(len(rows)), [row['part'] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.axvline(0, color=CHANCE, linestyle='--')
    axes.set_xlabel('points of top-1 over nothing adapted')
    axes.grid(alpha=0.3, axis='x')
    return figure


def _sentence(numbers: Numbers) -> str:
    return (
        f'{numbers["count"]:,} test images at {numbers["test_resolution"]}; bars: paired 95 % intervals. Equalization '
        'gives the pooled activations their distribution in training.'
    )


def _draw_examples(numbers: Numbers, arrays: Arrays) -> Figure | None:
    """Show test images that the adaptation got right and that it lost."""
    found = numbers['examples']
    kinds = [kind for kind in ('gained', 'lost') if found[kind]]
    if not kinds:
        return None
    columns = 4
    heights = [-(-len(found[kind]) // columns) for kind in kinds]
    figure = new_figure(sum(2.75 * height + 0.4 for height in heights), width=2.2 * columns)
    parts = figure.subfigures(len(kinds), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, kind, height in zip(parts, kinds, heights, strict=True):
        title = {'gained': 'wrong before, right after', 'lost': 'right before, wrong after'}[kind]
        part.suptitle(f'{title}: {len(found[kind])} of {found[f"num_{kind}"]}', fontsize=12)
        for place, axes in enumerate(part.subplots(height, columns, squeeze=False).ravel()):
            axes.axis('off')
            if place < len(found[kind]):
                item = found[kind][place]
                axes.imshow(arrays[kind][place], interpolation='none')
                axes.set_title(f'{item["label"]}\n{item["before"]} →\n{item["after"]}', fontsize=8)
    return figure


STUDY = Study(
    compute,
    {
        'ablation': Picture(
            _draw,
            'What each part of the adaptation was worth',
            _sentence,
        ),
        'examples': Picture(
            _draw_examples,
            'Images that changed sides',
            'Above each: its class; what was said before → after.',
            wide=True,
        ),
    },
    table=_table,
)
