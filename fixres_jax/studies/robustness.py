"""What larger images and the adaptation to them are worth on other images: corrupted ones, variants of the test set.

One network in four cells, not adapted and adapted at the training size and at the larger one: what differs between
sizes is resolution's, what differs between the two networks at one size is the adaptation's. A fifth network is adapted
at the larger size with statistics that are blended with the old ones.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from fixres_jax.adaptation import adapt
from fixres_jax.core import files, tables
from fixres_jax.core.figures import AFTER, BEFORE, CHANCE, OWN, Figure, legend_below, new_figure
from fixres_jax.core.progress import log
from fixres_jax.core.resolution import Resolution
from fixres_jax.data import sources
from fixres_jax.data.corruptions import KINDS, Corrupted
from fixres_jax.data.sources import Source, Splits
from fixres_jax.evaluation import hits, intervals
from fixres_jax.machines import processes
from fixres_jax.studies.study import Arrays, Numbers, Picture, Study, Subject
from fixres_jax.weights.network import Network

# Cell -> what it is called; {train} and {test} stand for the two sizes.
CELLS = {
    'before_train': '{train}, not adapted',
    'before_test': '{test}, not adapted',
    'after_test': '{test}, adapted',
    'control': '{train}, adapted',
    'blended_test': '{test}, adapted, statistics blended',
}
# Difference -> first cell, second cell, what it is called.
DIFFERENCES = {
    'resolution': ('before_test', 'before_train', 'larger, not adapted'),
    'adaptation': ('after_test', 'before_test', 'adapted, at the larger size'),
    'refitting': ('control', 'before_train', 'adapted, at the training size'),
    'resolution_adapted': ('after_test', 'control', 'larger, adapted at both'),
    'blending': ('blended_test', 'after_test', 'blended, not replaced'),
}
MEAN = 'mean of the corruptions'
PARTS = 'robustness'  # folder of the hits of each set while the study is made, so that it goes on where it was stopped

Hits = dict[str, np.ndarray]  # cell -> bool[N]


def compute(subject: Subject) -> tuple[Numbers, Arrays]:
    """Test the five networks on the clean test images, on each corruption of them and on each variant.

    Returns:
      A row for each: {'data', 'group', 'count', 'classes', 'top1': {cell: percent}, 'differences': {name:
      {'difference', 'low', 'high'}}}; of a corruption the means over its strengths, with 'by_strength' {strength:
      {cell: percent}}. And the hits, bool[N] of each cell packed into bits, by set.
    """
    networks = _networks(subject)
    found = {name: _hits(subject, networks, name, *one) for name, one in _sets(subject)}
    same = {
        name for name, (a, b, _) in DIFFERENCES.items()
        if networks[a][1] == networks[b][1] and hits.same(networks[a][0], networks[b][0])
    }  # fmt: skip
    clean = len(subject.present or ()) or subject.networks.before.model.num_classes
    rows = [_row('clean', '', [found['clean']], same) | {'classes': clean}]
    corrupted = {}
    for kind in subject.corruptions:
        by_strength = {strength: found[_name(kind, strength)] for strength in subject.strengths}
        corrupted |= {(kind, strength): one for strength, one in by_strength.items()}
        row = _row(kind, KINDS[kind].group, list(by_strength.values()), same) | {'classes': clean}
        rows.append(row | {'by_strength': {str(strength): _top1([one]) for strength, one in by_strength.items()}})
    if corrupted:
        rows.append(_row(MEAN, '', list(corrupted.values()), same) | {'classes': clean})
    for name, variant in subject.variants.items():
        classes = len(variant.present or ()) or subject.networks.before.model.num_classes
        rows.append(_row(name, 'variant', [found[name]], same) | {'classes': classes})
    numbers = {
        'train_resolution': subject.train_resolution,
        'test_resolution': subject.networks.resolution,
        'strengths': list(subject.strengths),
        'prior_images': subject.prior_images,
        'rows': rows,
    }
    arrays = {name: np.packbits([*one.values()], axis=1) for name, one in found.items()}
    if processes.is_host0() and subject.directory is not None and (subject.directory / PARTS).exists():
        (subject.directory / PARTS).rmtree()
    return numbers, arrays


def _networks(subject: Subject) -> dict[str, tuple[Network, int | Resolution]]:
    """Return cell -> network and the resolution that it is tested at; what the run has not adapted is adapted here."""
    given, train = subject.networks, subject.train_resolution
    blended = dataclasses.replace(subject.adaptation, prior_images=subject.prior_images)
    return {
        'before_train': (given.before, train),
        'before_test': (given.before, given.resolution),
        'after_test': (given.after or _adapted(subject, given.resolution, subject.adaptation), given.resolution),
        'control': (given.control or _adapted(subject, train, subject.adaptation), train),
        'blended_test': (_adapted(subject, given.resolution, blended), given.resolution),
    }


def _adapted(subject: Subject, resolution: int | Resolution, how: adapt.Adaptation) -> Network:
    adapted = adapt.adapt(
        subject.networks.before,
        Splits(subject.train, subject.held_out, subject.test),
        subject.test_transforms((resolution,)),
        dataclasses.replace(how, copies=0),
        subject.feed.named(f'robustness: adapt at {resolution}'),
        seed=subject.seed,
        directory=subject.directory / 'embeddings',
    )
    return adapted[resolution][0]


def _sets(subject: Subject) -> Iterator[tuple[str, tuple[Source, tuple[int, ...] | None]]]:
    """Yield (name, (images, the labels that may be answered, None for all))."""
    test = sources.sample(subject.test, subject.images, subject.seed)
    yield 'clean', (test, subject.present)
    for kind in subject.corruptions:
        for strength in subject.strengths:
            yield _name(kind, strength), (Corrupted(test, kind, strength, subject.seed), subject.present)
    for name, variant in subject.variants.items():
        yield name, (sources.sample(variant.source, subject.images, subject.seed), variant.present)


def _name(kind: str, strength: int) -> str:
    return f'{kind}-{strength}'


def _hits(
    subject: Subject,
    networks: dict[str, tuple[Network, int | Resolution]],
    name: str,
    source: Source,
    present: tuple[int, ...] | None,
) -> Hits:
    """Return the hits on one set of images, from the folder of parts if they are there."""
    path = subject.directory / PARTS / f'{name}.npz' if subject.directory is not None else None
    kept = files.read_arrays(path) if path is not None else {}
    part = {
        cell: np.array(values, bool)
        for cell, values in processes.from_host0({cell: values.tolist() for cell, values in kept.items()}).items()
    }
    if not part:
        points = {(cell, resolution): network for cell, (network, resolution) in networks.items()}
        test_transforms = subject.test_transforms(dict.fromkeys(resolution for _, resolution in points))
        right = hits.hits(points, source, test_transforms, subject.feed.named(name), present)
        part = {cell: values for (cell, _), values in right.items()}
        if path is not None and processes.is_host0():
            files.write_arrays(path, part)
    log.info('%s: %s.', name, ', '.join(f'{cell} {100 * values.mean():.2f} %' for cell, values in part.items()))
    return part


def _row(name: str, group: str, sets: list[Hits], same: set[str]) -> dict[str, Any]:
    """Return what several versions of the same images show together, each image counting once."""
    differences = {
        difference: intervals.SAME if difference in same else _difference([(one[a], one[b]) for one in sets])
        for difference, (a, b, _) in DIFFERENCES.items()
    }
    count = len(sets[0]['before_train'])
    return {'data': name, 'group': group, 'count': count, 'top1': _top1(sets), 'differences': differences}


def _top1(sets: list[Hits]) -> dict[str, float]:
    return {cell: 100 * float(np.mean([one[cell] for one in sets])) for cell in CELLS}


def _difference(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    first, second = pairs[0]
    if len(pairs) == 1 or all(np.array_equal(*pair) for pair in pairs):  # The same hits do not make the same network.
        return intervals.paired(int((first & ~second).sum()), int((second & ~first).sum()), len(first))
    return intervals.of_means(np.mean([np.float64(first) - second for first, second in pairs], axis=0))


def _label(cell: str, numbers: Numbers) -> str:
    return CELLS[cell].format(train=numbers['train_resolution'], test=numbers['test_resolution'])


def _table(numbers: Numbers) -> tables.Table:
    header = ('images', *(f'{_label(cell, numbers)} (%)' for cell in CELLS))
    header += tuple(label for *_, label in DIFFERENCES.values())
    rows = [
        (
            row['data'].replace('_', ' '),
            *(f'{row["top1"][cell]:.2f}' for cell in CELLS),
            *('{} ({})'.format(*tables.difference(row['differences'][name])) for name in DIFFERENCES),
        )
        for row in numbers['rows']
    ]
    return header, rows


def _draw(numbers: Numbers, arrays: Arrays) -> Figure:
    """Draw, for each kind of images, what resolution and adaptation change, as paired differences."""
    rows = numbers['rows']
    figure = new_figure(1.4 + 0.42 * len(rows))
    axes = figure.subplots()
    marks = (('resolution', BEFORE, 'o'), ('adaptation', AFTER, 's'), ('refitting', OWN, '^'))
    for number, (name, colour, marker) in enumerate(marks):
        for place, row in enumerate(reversed(rows)):
            change, y = row['differences'][name], place + 0.24 * (1 - number)
            axes.plot([change['low'], change['high']], [y, y], color=colour, linewidth=1.5)
            label = DIFFERENCES[name][2] if not place else None
            axes.plot(change['difference'], y, marker, color=colour, markersize=5, label=label, linestyle='none')
    axes.set_yticks(range(len(rows)), [row['data'].replace('_', ' ') for row in reversed(rows)], fontsize=9)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.axvline(0, color=CHANCE, linestyle='--')
    axes.set_xlabel('points of top-1')
    axes.grid(alpha=0.3, axis='x')
    legend_below(figure, columns=1)
    return figure


def _sentence(numbers: Numbers) -> str:
    clean = numbers['rows'][0]
    found = {row['data']: row['differences'] for row in numbers['rows']}
    text = (
        f'Trained at {numbers["train_resolution"]}, larger is {numbers["test_resolution"]}. {clean["count"]:,} test '
        'images; bars: paired 95 % intervals over the images.'
    )
    if MEAN not in found:
        return text
    change = {name: value['difference'] for name, value in found[MEAN].items()}
    strengths = ', '.join(map(str, numbers['strengths']))
    return (
        f'{text} Corruptions are means over the strengths {strengths}. In their mean the larger size alone changes '
        f'top-1 by {change["resolution"]:+.2f} points, the adaptation by {change["adaptation"]:+.2f} there and by '
        f'{change["refitting"]:+.2f} at the training size.'
    )


STUDY = Study(
    compute,
    {'robustness': Picture(_draw, 'On corrupted and other images', _sentence)},
    in_report=False,
    adapts=True,
    table=_table,
)
