"""Networks at several resolutions and crops on the same images, as one table."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.core.resolution import Resolution
from fixres_jax.data import given, sources, transforms
from fixres_jax.data.sources import Source
from fixres_jax.evaluation import evaluate, table
from fixres_jax.evaluation.table import Table
from fixres_jax.runs import provenance
from fixres_jax.runs.classifier import classed, feed, names
from fixres_jax.weights import imagenet
from fixres_jax.weights.network import Network


def compare(
    networks: Mapping[str, Network],
    data: Any,
    resolutions: Iterable[int | Resolution] = (),
    crop_fractions: Iterable[float] = (),
    batch_size: int = 0,
) -> Table:
    """Test networks at several resolutions and crops; the arguments are those of `library.evaluate`."""
    if not networks:
        raise UsageError('No network was given.')
    opened, place = given.labelled(data, 'test')
    source, present = _relabelled(networks, opened, place)
    own = {size for net in networks.values() for size in (net.about['train_resolution'], classed(net).resolution)}
    known, single, used = [], {}, {}
    for size in tuple(resolutions) or sorted(own):
        for fraction in tuple(crop_fractions) or (None,):
            for name, net in networks.items():
                transform = classed(net).transform(size, fraction)
                key = tuple(map(str, dataclasses.astuple(transform)))
                if (name, key) not in single:
                    used[key], single[name, key] = transform, net
                    known.append(_described(name, net, size, fraction))
    how = feed('evaluate', batch_size)
    placed = {name: net.placed(how.runtime) for name, net in networks.items()}
    single = {(name, key): placed[name] for name, key in single}
    result = evaluate.evaluate({}, source, used, how, single, present)
    log.info('%s: %d images.', place, len(source))
    return table.make(result, known, _note(next(iter(networks.values())), present))


def _described(name: str, net: Network, size: int | Resolution, fraction: float | None) -> dict[str, Any]:
    """Return the columns of a row that do not depend on the images."""
    count = sum(leaf.size for leaf in jax.tree.leaves(net.variables['params']))
    about = net.about
    return {
        'model': name,
        'param_count': round(count / 1e6, 2),
        'img_size': size,
        'crop_pct': fraction or 1 / about.get('resize_ratio', transforms.TEST_RATIO),
        'interpolation': about.get('interpolation', 'bilinear'),
        'num_classes': net.model.num_classes,
    }


def _relabelled(networks: Mapping[str, Network], source: Source, place: str) -> tuple[Source, tuple[int, ...] | None]:
    """Return a source whose labels count through the classes of the networks, and the labels present if not all are.

    Raises:
      UsageError: when the networks have different classes, or the data others.
    """
    first, *others = networks.items()
    for name, net in others:
        if net.model.num_classes != first[1].model.num_classes or list(names(net)) != list(names(first[1])):
            raise UsageError(f'{first[0]} and {name} have different classes: evaluate them apart.')
    name, net = first
    own = net.about.get('class_names') or imagenet.names_for(net.model.num_classes, source.class_names)
    if source.class_names and not own and len(source.class_names) != net.model.num_classes:
        raise UsageError(
            f'{place} has {len(source.class_names)} classes and {name} {net.model.num_classes} outputs without names: '
            'give load(..., class_names=...) in the order of the outputs, or data of those classes.'
        )
    source = given.named(source, names(net))
    of_labels, present = provenance.network_classes(own, source.class_names, name, place)
    return sources.relabelled(source, of_labels), present


def _note(net: Network, present: tuple[int, ...] | None) -> str:
    if present is None:
        return ''
    few, all_of_them = len(present), net.model.num_classes
    return f"They are of {few} of the network's {all_of_them:,} classes: 'among present' is the accuracy among those."
