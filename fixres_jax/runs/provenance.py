"""What a network was trained on and for, held against the data of a run: images by their names, classes by theirs.

`fixres.json` carries `trained_on`, a record of every training that led to the network, the first one first. A record
tells images by a hash of their names (`data.sources.fingerprint`): pictures that are exchanged under the same names are
not noticed. None stands for a training of which nothing is known, such as that of converted weights.
"""

from collections.abc import Sequence
from typing import Any

from fixres_jax.core.errors import UsageError
from fixres_jax.core.progress import log
from fixres_jax.data import sources
from fixres_jax.data.sources import Source, Splits

Training = dict[str, Any] | None


def images(source: Source | None) -> dict[str, Any]:
    """Return {'count', 'names': hash of their names} of the images of a source; nothing is held out of None."""
    if source is None:
        return {'count': 0, 'names': None}
    return {'count': len(source), 'names': sources.fingerprint(source)}


def parts(of_run: Splits) -> dict[str, dict[str, Any]]:
    """Return what tells the images of a run, by part; parts that the run does not have are left out."""
    named = {'training': of_run.train, 'held-out': of_run.held_out, 'test': of_run.test}
    return {name: images(source) for name, source in named.items() if source is not None}


def training(selection: dict[str, Any], train_source: Source, held_out: Source | None) -> dict[str, Any]:
    """Return the record of a training.

    Args:
      selection: how the images were selected, for people to read.
      train_source: images that are trained on.
      held_out: images kept from it, or None.
    """
    return {'selection': selection, 'trained': images(train_source), 'held_out': images(held_out)}


def given_trainings(metadata: dict[str, Any]) -> list[Training]:
    """Return the records that a given network's `fixres.json` carries; [] for {}, a network that begins at random."""
    return metadata.get('trained_on', [None]) if metadata else []


def on_other_images(metadata: dict[str, Any], data: Sequence[str]) -> list[Training]:
    """Return the records of a given network that tell of other images than those at hand, where its classes are others.

    Those without a record, such as ImageNet's; and a single training on record, if none of its classes has the name of
    one of the data. Of several, only the last one's classes are known.

    Args:
      metadata: of the network, whose classifier starts afresh.
      data: names of the data's classes.
    """
    recorded = [record for record in given_trainings(metadata) if record is not None]
    own = set(metadata.get('class_names') or data)
    return [None, *(recorded if len(recorded) == 1 and not own & set(data) else ())]


def extend(trainings: Sequence[Training], new: Training) -> list[Training]:
    """Return the records with a new one at the end, unless it is there."""
    return [*trainings] if new in trainings else [*trainings, new]


def why_seen(trainings: Sequence[Training], held_out: Source) -> str:
    """Say why a network may have seen held-out images; '' when each of its trainings kept exactly these out.

    Args:
      trainings: records of the network.
      held_out: a source.
    """
    kept_now = images(held_out)
    for record in trainings:
        if record is None:
            return 'the network carries no record of what it was trained on'
        if record['held_out'] != kept_now:
            trained, then, where = record['trained'], record['held_out'], record['selection']
            kept = f'{then["count"]:,} other images' if then['count'] else 'none'
            return (
                f'the network was trained on {trained["count"]:,} images of {where["source"]} (seed {where["seed"]}) '
                f'with {kept} held out'
            )
    return ''


def network_classes(
    own: Sequence[str], data: Sequence[str], network: str, source: str
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Compare the classes of a given network with those of the data, by name.

    Args:
      own: the network's, in the order of its outputs; empty when it does not name them.
      data: the data's, in the order of their labels.
      network, source: where each comes from, for messages.

    Returns:
      The names that the labels are to follow, the network's where it has some; and the labels among these that the data
      have, None when they have all.

    Raises:
      UsageError: when the data have a class that the network does not know.
    """
    own, data = tuple(own), tuple(data)
    if not own:
        return data, None
    unknown, absent = [name for name in data if name not in set(own)], [name for name in own if name not in set(data)]
    if unknown:
        common = 'set data.classes to those that both have, ' if len(unknown) < len(data) else ''
        raise UsageError(
            f'{source} has {len(data)} classes and {network} {len(own)}, and they differ: {len(unknown)} only in the '
            f'data ({_list(unknown)}); {len(absent)} only in the network ({_list(absent)}). Give data of the '
            f"network's classes, {common}or reset_head=True to start a fresh classifier."
        )
    if absent:
        log.info("%s has %d of the network's %d classes; labels follow the network's.", source, len(data), len(own))
        return own, tuple(index for index, name in enumerate(own) if name in set(data))
    if own != data:
        log.info("%s has the network's classes in another order; labels follow the network's.", source)
    return own, None


def _list(names: Sequence[str]) -> str:
    return ', '.join((*names[:5], '...') if len(names) > 5 else names) or 'none'
