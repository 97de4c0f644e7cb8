"""Torch weights in and out: `python -m fixres_jax.convert resnet50 weights.pth OUT`; --help names the options.

Modules carry torch's names, so one rule serves every architecture: '.' is '/', `weight` is `kernel` (axes moved) or
`scale`, and the running statistics are a collection of their own.
"""

import argparse
import functools
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fixres_jax import __version__, checkpoint, command, files, models, releases, state_dicts, trees
from fixres_jax.errors import RunError, UsageError

LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
COUNTER = 'num_batches_tracked'  # torch counts the batches of a BatchNorm and, at a fixed momentum, never reads it
# By rank of a kernel: HWIO or [in, out] here, OIHW or [out, in] in torch.
TO_TORCH_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}
FROM_TORCH_AXES = {4: (2, 3, 1, 0), 2: (1, 0)}
HEAD = 'fc/.*'
# What `fixres.json` says of weights of which nothing else is known: the way most are trained and tested.
METADATA = {
    'mean': list(models.IMAGENET_MEAN),
    'std': list(models.IMAGENET_STD),
    'train_resolution': 224,
    'test_resolution': None,
    'resize_ratio': 256 / 224,
    'resize': 'short',
    'interpolation': 'bilinear',
    'crop': 'torchvision',
}


def from_torch(state_dict: Mapping[str, Any], model: Any, *, reset_head: bool = False) -> dict[str, Any]:
    """Turn a torch state_dict into the variables of a model.

    Args:
      state_dict: torch name -> numpy array of any floating dtype; batch counters are ignored.
      model: from `models.create`.
      reset_head: leave the classifier of the file and draw a fresh one of the model's classes.

    Returns:
      {'params': ..., 'batch_stats': ...}, float32. Arrays are views of those given where no conversion is needed.

    Raises:
      UsageError: unless every leaf of the model has its array and every array its leaf; the first that differ are
        listed, with the architecture that fits.
    """
    found = {name: array for name, array in state_dict.items() if not name.endswith(COUNTER)}
    if not found:
        raise UsageError('The state_dict is empty: expected the weights of a network.')
    wanted, names = torch_shapes(model), {path: torch_name(path) for path in _leaves(model)}
    fresh = {}
    if reset_head:
        fresh = trees.flatten({'params': _draw_head(model)})
        for path in fresh:
            wanted.pop(names[path])
            found.pop(names[path], None)
    _check(wanted, found)
    flat = {path: fresh[path] if path in fresh else _convert(path, name, found[name]) for path, name in names.items()}
    return trees.unflatten(flat)


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Turn variables into a torch state_dict that `load_state_dict(strict=True)` accepts.

    Args:
      variables: {'params': ..., 'batch_stats': ...}, arrays.

    Returns:
      torch name -> numpy array, contiguous; batch counters are zero.
    """
    state_dict = {}
    for path, leaf in trees.flatten({name: variables[name] for name in ('params', 'batch_stats')}).items():
        array, name = np.asarray(leaf), torch_name(path)
        state_dict[name] = np.ascontiguousarray(array.transpose(TO_TORCH_AXES[array.ndim]) if _moves(path) else array)
        if name.endswith('running_var'):
            state_dict[name.replace('running_var', COUNTER)] = np.zeros((), np.int64)
    return state_dict


def torch_name(path: str) -> str:
    """Return torch's name of a leaf: 'layer4.2.bn3.running_mean' for 'batch_stats/layer4/2/bn3/mean'."""
    _, *modules, leaf = path.split('/')
    return '.'.join((*modules, LEAVES[leaf]))


def _moves(path: str) -> bool:
    return path.endswith('/kernel')


def torch_shapes(model: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape of every array of a model's state_dict in torch, batch counters left out."""

    def move(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = TO_TORCH_AXES[len(leaf.shape)] if _moves(path) else range(len(leaf.shape))
        return jax.ShapeDtypeStruct(tuple(leaf.shape[axis] for axis in axes), leaf.dtype)

    return {torch_name(path): move(path, leaf) for path, leaf in _leaves(model).items()}


@functools.cache
def _leaves(model: Any) -> dict[str, jax.ShapeDtypeStruct]:
    images = jax.ShapeDtypeStruct((1, models.MIN_RESOLUTION, models.MIN_RESOLUTION, 3), jnp.uint8)
    return trees.flatten(jax.eval_shape(model.init, jax.random.key(0), images, models.EVAL))


def _draw_head(model: Any) -> dict[str, Any]:
    """Draw a fresh classifier; compiled, so that nothing else of the model is drawn."""

    def draw():
        images = jnp.zeros((1, models.MIN_RESOLUTION, models.MIN_RESOLUTION, 3), jnp.uint8)
        return trees.split(model.init(jax.random.key(0), images, models.EVAL)['params'], HEAD)[0]

    return jax.device_get(jax.jit(draw)())


def _convert(path: str, name: str, array: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UsageError(f'{name} is {array.dtype}: expected floating weights, not quantized ones.')
    array = array.astype(np.float32, copy=False)
    return array.transpose(FROM_TORCH_AXES[array.ndim]) if _moves(path) else array


def _check(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise with the differences, and at the end the architecture that would fit."""
    difference = trees.diff(wanted, found)
    if difference:
        names = fitting(found)
        hint = f'They fit {" and ".join(names)}.' if names else f'They fit none of {", ".join(models.MODELS)}.'
        raise UsageError(f'The weights do not fit the model:\n{difference.message()}\n{hint}')


def fitting(state_dict: Mapping[str, Any]) -> list[str]:
    """Return the names of the architectures that a state_dict fits, whatever its width and number of classes."""
    shapes = {name: tuple(array.shape) for name, array in state_dict.items() if not name.endswith(COUNTER)}
    if not {'conv1.weight', 'fc.bias'} <= shapes.keys():
        return []
    options = {'num_classes': shapes['fc.bias'][0], 'width': shapes['conv1.weight'][0]}

    def fits(name: str) -> bool:
        try:
            expected = torch_shapes(models.create(name, **options))
        except UsageError:  # no such width in this architecture
            return False
        return shapes == {name: leaf.shape for name, leaf in expected.items()}

    return [name for name in models.MODELS if fits(name)]


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
    in_file = len(state_dict['fc.bias']) if 'fc.bias' in state_dict else None
    num_classes = arguments.num_classes or in_file
    if num_classes is None:
        _refuse_part(state_dict, path)
        raise UsageError(f'{path} has no classifier: give --num-classes, and it starts afresh.')
    reset_head = arguments.reset_head or num_classes != in_file
    width = arguments.width or (len(state_dict['conv1.weight']) if 'conv1.weight' in state_dict else 64)
    model = models.create(name, num_classes, width=width)
    variables = from_torch(state_dict, model, reset_head=reset_head)
    given = {key: getattr(arguments, key) for key in METADATA if getattr(arguments, key) is not None}
    metadata = METADATA | metadata | (release.metadata() if release else {}) | given
    metadata.pop('trained_on', None)  # Nobody knows what happened to the weights outside.
    if reset_head:
        metadata.pop('class_names', None)
    metadata |= {'version': __version__, 'architecture': name, 'width': width, 'num_classes': num_classes}
    metadata |= {'source_file': Path(path).name, 'source_sha256': _sha256(path)}
    try:
        checkpoint.save_model(folder, variables, metadata)
    except RunError:
        folder.rmtree(missing_ok=True)  # half a network, which would be in the way of the next attempt
        raise
    head = f'The classifier starts afresh with {num_classes} classes.\n' if reset_head else ''
    return f'{head}{out} holds {path} as {name}:\n{json.dumps(metadata, indent=1)}'


def _refuse_part(state_dict: Mapping[str, Any], path: str) -> None:
    """Refuse a file in which the network stands beside other arrays."""
    for name in state_dict:
        prefix, found, _ = name.rpartition('fc.bias')
        if found and f'{prefix}conv1.weight' in state_dict:
            others = [other for other in state_dict if not other.startswith(prefix)]
            raise UsageError(
                f'{path} holds a network under the prefix {prefix!r} and {len(others)} other arrays, such as '
                f'{others[0]}: save the state_dict of that module alone.'
            )


def _export(run: str, out: str) -> str:
    """Write the network of a run as a torch file; return what to tell."""
    if '://' in out:
        raise UsageError(f'Torch files are written to a local or mounted folder, not to {out}: copy them after.')
    variables, metadata = checkpoint.load_model(run)
    state_dict = to_torch(variables)
    state_dicts.save(out, state_dict, metadata)
    return f'{out} holds the {metadata["architecture"]} of {run}: {len(state_dict)} arrays.'


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
