"""Which images several networks get right, one by one; what the networks have in common is computed once."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fixres_jax.core import losses, trees
from fixres_jax.core.resolution import Resolution
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, keep_pace, one_pass
from fixres_jax.models import EVAL, Model
from fixres_jax.weights.network import Network

Point = tuple[str, int | Resolution]  # what a network is called, and the resolution that it is tested at


def hits(
    networks: Mapping[Point, Network],
    source: Source,
    test_transforms: Mapping[int | Resolution, Transform],
    feed: Feed,
    present: tuple[int, ...] | None = None,
) -> dict[Point, np.ndarray]:
    """Say for every image which networks get it right; each file is decoded once.

    Networks of one resolution that share weights, as an adapted network and the one that it comes from, are applied by
    one program, in which the compiler merges equal operations: the trunk runs once.

    Args:
      networks: (name, resolution) -> network on the devices.
      source: labelled images.
      test_transforms: resolution -> transform to uint8[R, R, 3], of all those of `networks`.
      feed: how the images pass.
      present: labels that may be answered; None for all of the network's classes.

    Returns:
      The same keys -> bool[N], in the order of the source.

    Raises:
      Preempted: after a SIGTERM.
    """
    used = {size: test_transforms[size] for size in dict.fromkeys(size for _, size in networks)}
    groups: dict[tuple[int | Resolution, Model], dict[str, Network]] = {}
    for (name, size), network in networks.items():
        groups.setdefault((size, network.model), {})[name] = network
    bases = {key: next(iter(group.values())).variables for key, group in groups.items()}
    changes = {
        key: {name: _changes(bases[key], network.variables) for name, network in group.items()}
        for key, group in groups.items()
    }
    found: dict[Point, list[jax.Array]] = {point: [] for point in networks}
    pending: list[Any] = []
    last = -(-len(source) // feed.size(source)) - 1
    for number, _, batch in one_pass(source, used, feed):
        for (size, model), base in bases.items():
            step = _make_step(model, feed.mesh, present)
            right = step(base, changes[size, model], batch['image'][size], batch['label'])
            for name, values in right.items():
                found[name, size].append(values)
        keep_pace(pending, [values[-1] for values in found.values()], last=number == last)
    return {point: _gathered(values)[: len(source)] for point, values in found.items()}


@functools.cache
def _make_step(model: Model, mesh: Mesh, present: tuple[int, ...] | None) -> Callable[..., dict[str, jax.Array]]:
    """Return the jitted function (variables, name -> changed leaves, image, label) -> name -> bool[B]."""

    def right(variables, changes, image, label):
        outcome, flat = {}, trees.flatten(variables)
        for name, new in changes.items():
            logits, _ = model.apply({'batch_stats': {}} | trees.unflatten(flat | new), image, EVAL)
            if present is not None:
                logits = losses.answering(logits, present)
            outcome[name] = losses.hits(logits, label, 1)
        return outcome

    return sharding.jit(right, mesh, out_shardings=sharding.by_example(mesh))


@jax.jit
def _same(first: dict[str, jax.Array], second: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.array_equal(leaf, second[name]) for name, leaf in first.items()}


def _changes(base: Any, variables: Any) -> dict[str, jax.Array]:
    """Return the leaves of variables, by their '/' names, that differ from those of `base`."""
    first, second = trees.flatten(base), trees.flatten(variables)
    same = _same(first, second)
    return {name: leaf for name, leaf in second.items() if not bool(same[name])}


def same(first: Network, second: Network) -> bool:
    """Say whether two networks of one architecture have the same weights."""
    return not _changes(first.variables, second.variables)


def _gathered(batches: list[jax.Array]) -> np.ndarray:
    return np.concatenate([multihost_utils.process_allgather(values, tiled=True) for values in batches])
