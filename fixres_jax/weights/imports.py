"""Weight files of torch as networks: with what is known of their release, and of how their images were prepared."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fixres_jax import __version__, models
from fixres_jax.core.errors import UsageError
from fixres_jax.models import Architecture
from fixres_jax.weights import lineages, releases, state_dicts, torch_weights
from fixres_jax.weights.network import Network

# What may be known better of weights than from their file or its release.
FIELDS = (
    'mean', 'std', 'train_resolution', 'test_resolution', 'resize_ratio', 'resize', 'interpolation', 'crop',
)  # fmt: skip


def read(
    path: str | Path,
    name: str = '',
    *,
    release: str = '',
    ema: bool = False,
    num_classes: int | None = None,
    reset_head: bool = False,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Network, list[str]]:
    """Read a file of torch weights, onto this host.

    Args:
      path: as `state_dicts.load` takes it.
      name: the architecture; '' for files that say it themselves, as those of this program do.
      release: which release the file is, where its name does not say so.
      ema: take the moving average of the weights.
      num_classes: another number than that of the file starts a fresh classifier.
      reset_head: start a fresh classifier.
      about: fields of `fixres.json` that are known better than from the file or its release.
      **options: `width` and `padding` of the model, where they are not those of the file.

    Returns:
      The network, and lines that tell what is not as in the file.

    Raises:
      UsageError: for a file that is not there, is damaged, or does not fit.
    """
    path = str(path)
    for text in (name, release, path):
        releases.refuse_look_alike(text)
    found = releases.find(release, path)
    if found and name and found.architecture != name:
        raise UsageError(f'{found.name} is a {found.architecture}, not a {name}.')
    state_dict, metadata = state_dicts.load(path, ema=ema)
    releases.refuse_look_alike(metadata.get('architecture', ''))
    name = name or (found.architecture if found else _name_in(metadata, path))
    like = releases.of_torchvision(name) if not found and lineages.is_torchvisions(state_dict) else found
    only = lineages.TRAINING_ONLY.get(name)
    left = sum(bool(only) and key.startswith(only) for key in state_dict)
    state_dict = lineages.to_timm(state_dict, name)
    if found and found.background:
        state_dict = lineages.without_background(state_dict, name)
    in_file = torch_weights.options_of(state_dict, name)
    num_classes = num_classes or in_file.get('num_classes')
    if num_classes is None:
        _refuse_part(state_dict, path, name)
        raise UsageError(f'{path} has no classifier: give --num-classes, and it starts afresh.')
    reset_head = reset_head or num_classes != in_file.get('num_classes')
    width = options.get('width') or in_file.get('width') or models.find(name).width
    kept = _options(name, options.get('padding') or (like.padding if like else ''))
    model = models.create(name, num_classes, width=width, **kept)
    variables = torch_weights.from_torch(state_dict, model, reset_head=reset_head)
    channels = {'mean': list(like.mean), 'std': list(like.std)} if like and like.mean else {}
    metadata = usual(models.find(name)) | channels | metadata | (found.metadata() if found else {}) | dict(about or {})
    metadata.pop('trained_on', None)  # Nobody knows what happened to the weights outside.
    if reset_head:
        metadata.pop('class_names', None)
    metadata |= {'version': __version__, 'architecture': name, 'width': width, 'num_classes': num_classes} | kept
    metadata |= {'source_file': Path(path).name, 'source_sha256': _sha256(path)}
    notes = [f'The classifier starts afresh with {num_classes} classes.'] if reset_head else []
    if left:
        notes.append(f'{left} arrays of {only}* are left out: they serve training alone.')
    return Network(model, variables, metadata), notes


def _name_in(metadata: Mapping[str, Any], path: str) -> str:
    name = metadata.get('architecture', '')
    if name not in models.ARCHITECTURES:
        said = f'names {name!r}, which is none of them' if name else 'does not say which network it is'
        raise UsageError(f'{path} {said}: give its architecture too, such as resnet50.')
    return name


def usual(architecture: Architecture) -> dict[str, Any]:
    """Return what `fixres.json` says of weights of which nothing else is known: how most are trained and tested."""
    return {
        'mean': list(architecture.mean),
        'std': list(architecture.std),
        'train_resolution': architecture.train_resolution,
        'test_resolution': None,
        'resize_ratio': architecture.resize_ratio,
        'resize': 'short',
        'interpolation': architecture.interpolation,
        'crop': 'torchvision',
    }


def _options(name: str, padding: str) -> dict[str, str]:
    """Return the options that belong to the weights, which no shape tells: how the maps are padded."""
    own = models.find(name).options.get('padding')
    return {'padding': padding or own} if padding or own else {}


def _refuse_part(state_dict: Mapping[str, Any], path: str, name: str) -> None:
    """Refuse a file in which the network stands beside other arrays."""
    architecture = models.find(name)
    classifier, stem = (
        torch_weights.torch_name(f'params/{leaf}')
        for leaf in (f'{architecture.classifier}/bias', f'{architecture.stem}/kernel')
    )
    for key in state_dict:
        prefix, found, _ = key.rpartition(classifier)
        if found and f'{prefix}{stem}' in state_dict:
            others = [other for other in state_dict if not other.startswith(prefix)]
            raise UsageError(
                f'{path} holds a network under the prefix {prefix!r} and {len(others)} other arrays, such as '
                f'{others[0]}: save the state_dict of that module alone.'
            )


def _sha256(path: str) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
