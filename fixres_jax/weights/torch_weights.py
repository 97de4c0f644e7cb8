"""Torch weights in and out.

Modules carry torch's names, so one rule serves every architecture: '.' is '/', `weight` is `kernel` (axes moved) or
`scale`, and the running statistics are a collection of their own.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fixres_jax import models
from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.models import Model

# Other leaves, such as a position embedding, have one name on both sides.
LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
COUNTER = 'num_batches_tracked'  # torch counts the batches of a BatchNorm and, at a fixed momentum, never reads it
# By rank of a kernel: HWIO, WIO or [in, out] here, OIHW, OIW or [out, in] in torch.
TO_TORCH_AXES = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}
FROM_TORCH_AXES = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}


def from_torch(state_dict: Mapping[str, Any], model: Model, *, reset_head: bool = False) -> dict[str, Any]:
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
        fresh = trees.flatten({'params': model.draw_head(jax.random.key(0))})
        for path in fresh:
            wanted.pop(names[path])
            found.pop(names[path], None)
    _check(wanted, found)
    leaves = _leaves(model)
    flat = {
        path: fresh[path] if path in fresh else _convert(path, name, found[name]).reshape(leaves[path].shape)
        for path, name in names.items()
    }
    return {'batch_stats': {}} | trees.unflatten(flat)


def to_torch(variables: Mapping[str, Any], model: Model) -> dict[str, np.ndarray]:
    """Turn variables into a torch state_dict that `load_state_dict(strict=True)` accepts, in torch's order.

    Args:
      variables: {'params': ..., 'batch_stats': ...}, arrays.
      model: whose they are.

    Returns:
      torch name -> numpy array, contiguous; batch counters are zero.
    """
    flat, state_dict = trees.flatten({name: variables[name] for name in ('params', 'batch_stats')}), {}
    shapes = torch_shapes(model)
    for path in _in_order(model):
        array, name = np.asarray(flat[path]), torch_name(path)
        moved = array.transpose(TO_TORCH_AXES[array.ndim]) if _moves(path) else array
        one_by_one = (1, 1) if len(shapes[name].shape) == moved.ndim + 2 else ()
        state_dict[name] = np.ascontiguousarray(moved).reshape(*moved.shape, *one_by_one)
        if name.endswith('running_var'):
            state_dict[name.replace('running_var', COUNTER)] = np.zeros((), np.int64)
    return state_dict


@functools.cache
def _in_order(model: Model) -> tuple[str, ...]:
    """Return the '/' names of a model's leaves as torch orders them.

    The layers in the order in which they are called, the leaves of each before those of layers inside it, and of a
    BatchNorm its affine before its statistics.
    """
    nested: dict[str, Any] = {}
    for path in sorted(model.names(), key=lambda path: path.startswith('batch_stats/')):
        _, *modules, _ = path.split('/')
        level = nested
        for module in modules:
            level = level.setdefault(module, {})
        level.setdefault('', []).append(path)

    def walk(level: dict[str, Any]) -> list[str]:
        inside = [path for name, child in level.items() if name for path in walk(child)]
        return level.get('', []) + inside

    return tuple(walk(nested))


def torch_name(path: str) -> str:
    """Return torch's name of a leaf: 'layer4.2.bn3.running_mean' for 'batch_stats/layer4/2/bn3/mean'."""
    _, *modules, leaf = path.split('/')
    return '.'.join((*modules, LEAVES.get(leaf, leaf)))


def torch_names(model: Model) -> list[str]:
    """Return the names of a model's state_dict in torch's order, batch counters left out."""
    return [torch_name(path) for path in _in_order(model)]


def _moves(path: str) -> bool:
    return path.endswith('/kernel')


def torch_shapes(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape of every array of a model's state_dict in torch, batch counters left out."""

    architecture = model.architecture
    convolution = f'params/{architecture.classifier}/kernel' if architecture.convolution_head else ''

    def move(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = TO_TORCH_AXES[len(leaf.shape)] if _moves(path) else range(len(leaf.shape))
        one_by_one = (1, 1) if path == convolution else ()
        return jax.ShapeDtypeStruct((*(leaf.shape[axis] for axis in axes), *one_by_one), leaf.dtype)

    return {torch_name(path): move(path, leaf) for path, leaf in _leaves(model).items()}


@functools.cache
def _leaves(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    return trees.flatten(model.shapes())


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
        hint = f'They fit {" and ".join(names)}.' if names else f'They fit none of {", ".join(models.ARCHITECTURES)}.'
        raise UsageError(f'The weights do not fit the model:\n{difference.message()}\n{hint}')


def options_of(state_dict: Mapping[str, Any], name: str) -> dict[str, int]:
    """Return the number of classes and the width that a state_dict has for an architecture, where it says them."""
    architecture = models.find(name)
    sources = {'num_classes': torch_name(f'params/{architecture.classifier}/bias')}
    if architecture.width:
        sources['width'] = torch_name(f'params/{architecture.stem}/kernel')
    return {option: state_dict[key].shape[0] for option, key in sources.items() if key in state_dict}


def fitting(state_dict: Mapping[str, Any]) -> list[str]:
    """Return the names of the architectures that a state_dict fits, whatever its width and number of classes."""
    shapes = {name: tuple(array.shape) for name, array in state_dict.items() if not name.endswith(COUNTER)}

    def fits(name: str) -> bool:
        options = options_of(state_dict, name)
        if 'num_classes' not in options or torch_name(f'params/{models.find(name).stem}/kernel') not in shapes:
            return False
        try:
            expected = torch_shapes(models.create(name, **options))
        except UsageError:  # no such width in this architecture
            return False
        return shapes == {name: leaf.shape for name, leaf in expected.items()}

    # Published networks first: tracing one takes about a second.
    usual = [
        name for name in models.ARCHITECTURES if options_of(state_dict, name).get('width') == models.find(name).width
    ]
    return [name for name in usual if fits(name)] or [name for name in models.ARCHITECTURES if fits(name)]
