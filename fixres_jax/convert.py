"""Torch weights in and out: `python -m fixres_jax.convert resnet50 weights.pth OUT`; --help names the options."""

import argparse
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from fixres_jax import __version__, models
from fixres_jax.core import command, files
from fixres_jax.core.errors import RunError, UsageError
from fixres_jax.models import Architecture
from fixres_jax.weights import lineages, network, releases, state_dicts, torch_weights
from fixres_jax.weights.network import Network


def _import(arguments: argparse.Namespace, name: str, path: str, out: str) -> str:
    """Convert a file of torch weights into a folder that every task accepts; return what to tell."""
    folder = files.reachable(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f'{out} is not an empty folder: choose another one.')
    for text in (name, arguments.release, path):
        releases.refuse_look_alike(text)
    release = releases.find(arguments.release, path)
    if release and release.architecture != name:
        raise UsageError(f'{release.name} is a {release.architecture}, not a {name}.')
    state_dict, metadata = state_dicts.load(path, ema=arguments.ema)
    releases.refuse_look_alike(metadata.get('architecture', ''))
    state_dict = lineages.to_timm(state_dict, name)
    if release and release.background:
        state_dict = lineages.without_background(state_dict, name)
    in_file = torch_weights.options_of(state_dict, name)
    num_classes = arguments.num_classes or in_file.get('num_classes')
    if num_classes is None:
        _refuse_part(state_dict, path, name)
        raise UsageError(f'{path} has no classifier: give --num-classes, and it starts afresh.')
    reset_head = arguments.reset_head or num_classes != in_file.get('num_classes')
    width = arguments.width or in_file.get('width') or models.find(name).width
    kept = _options(name, arguments.padding or (release.padding if release else ''))
    model = models.create(name, num_classes, width=width, **kept)
    variables = torch_weights.from_torch(state_dict, model, reset_head=reset_head)
    usual = _usual(models.find(name))
    given = {key: getattr(arguments, key) for key in usual if getattr(arguments, key) is not None}
    metadata = usual | metadata | (release.metadata() if release else {}) | given
    metadata.pop('trained_on', None)  # Nobody knows what happened to the weights outside.
    if reset_head:
        metadata.pop('class_names', None)
    metadata |= {'version': __version__, 'architecture': name, 'width': width, 'num_classes': num_classes} | kept
    metadata |= {'source_file': Path(path).name, 'source_sha256': _sha256(path)}
    try:
        network.save(folder, Network(model, variables, metadata))
    except RunError:
        _remove(folder)  # half a network, which would be in the way of the next attempt
        raise
    head = f'The classifier starts afresh with {num_classes} classes.\n' if reset_head else ''
    return f'{head}{out} holds {path} as {name}:\n{json.dumps(metadata, indent=1)}'


def _usual(architecture: Architecture) -> dict[str, Any]:
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


def _remove(folder: epath.Path) -> None:
    """Remove a folder that threads of orbax may still be writing to: until it stays away."""
    for _ in range(20):
        with contextlib.suppress(OSError):
            folder.rmtree(missing_ok=True)
        time.sleep(0.1)
        if not folder.exists():
            return


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


def _export(run: str, out: str) -> str:
    """Write the network of a run as a torch file; return what to tell."""
    if '://' in out:
        raise UsageError(f'Torch files are written to a local or mounted folder, not to {out}: copy them after.')
    loaded = network.load(run)
    state_dict = torch_weights.to_torch(loaded.variables, loaded.model)
    state_dicts.save(out, state_dict, loaded.about)
    return f'{out} holds the {loaded.about["architecture"]} of {run}: {len(state_dict)} arrays.'


def _sha256(path: str) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _parser() -> argparse.ArgumentParser:
    parser = command.Parser(
        prog='python -m fixres_jax.convert',
        usage='%(prog)s MODEL WEIGHTS OUT [options] | --to-torch RUN OUT | --list',
        description='Bring torch weights in, take a network back to torch, or list released weights.',
    )
    add = parser.add_argument
    add('arguments', nargs='*', metavar='MODEL WEIGHTS OUT', help='architecture, weight file, folder to write')
    add('--to-torch', action='store_true', help='write the network of RUN as OUT, .safetensors or .pth')
    add('--list', action='store_true', help='print the released weights that are known')
    add('--release', default='', help='which release the file is, where its name does not say so')
    add('--ema', action='store_true', help='take the moving average of the weights')
    add('--num-classes', type=int, help='another number than that of the file starts a fresh classifier')
    add('--reset-head', action='store_true', help='start a fresh classifier')
    add('--width', type=int, help='channels of the stem; those of the file, if it is not given')
    add('--padding', help='of a family with several, such as same (TensorFlow) or symmetric; the usual one of MODEL')
    about = parser.add_argument_group('what to remember with the weights, where the release is not a known one')
    about.add_argument('--mean', type=float, nargs=3, help='of the channels of an image in [0, 1]')
    about.add_argument('--std', type=float, nargs=3, help='likewise')
    about.add_argument('--train-resolution', type=int, help='pixels')
    about.add_argument('--test-resolution', type=int, help='pixels')
    about.add_argument('--resize-ratio', type=float, help='resized side over test crop')
    about.add_argument('--resize', choices=('short', 'height'), help='side that is resized')
    about.add_argument('--interpolation', choices=('bilinear', 'bicubic'))
    about.add_argument('--crop', choices=('torchvision', 'tensorflow', 'resize'), help='random crop of training')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 2 for wrong input, or 1 for a file of ours that is damaged."""
    return command.run(_main, argv)


def _main(argv: Sequence[str] | None) -> None:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        print(releases.table())
        return
    wanted = 2 if arguments.to_torch else 3
    if len(arguments.arguments) != wanted:
        parser.error(f'expected {wanted} arguments, found {len(arguments.arguments)}')
    if arguments.to_torch:
        print(_export(*arguments.arguments))
    else:
        print(_import(arguments, *arguments.arguments))


if __name__ == '__main__':
    sys.exit(main())
