"""ImageNet's thousand classes, in the order of the outputs of networks that are trained on them.

Their names come from WordNet 3.0 (Princeton University), whose identifiers are the names of ImageNet's class folders.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

_FILE = Path(__file__).parent / 'imagenet_classes.txt'  # a line a class: identifier, then its words


@functools.cache
def classes() -> dict[str, str]:
    """Return WordNet identifier -> words, in the order of the outputs.

    >>> list(classes().items())[0]
    ('n01440764', 'tench, Tinca tinca')
    """
    lines = _FILE.read_text(encoding='utf-8').splitlines()
    return dict(line.split(' ', 1) for line in lines)


def word(name: str) -> str:
    """Return the first word of an identifier of ImageNet's; any other name as it is.

    >>> word('n01440764'), word('ant')
    ('tench', 'ant')
    """
    return classes().get(name, name).split(', ')[0]


def names_for(num_classes: int, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the outputs of a network that names none, where they are ImageNet's; else ().

    Args:
      num_classes: outputs of the network.
      wanted: class names that must be among them.
    """
    found = tuple(classes())
    return found if num_classes == len(found) and set(wanted) <= set(found) else ()
