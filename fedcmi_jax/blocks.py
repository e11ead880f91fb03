"""Trees of blocks: a model's parts that clients own, or do not, as a whole."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.types import Array, Mean, Params, PyTree, Sum


def by_block(fn: Callable[..., Array], weights: Params, *trees: Params) -> Params:
    """``fn(weight, *leaves)`` leaf by leaf.

    Args:
      fn: Of a block's weight and one array of each tree.
      weights: Prefix tree of the parameters: numbers, ``Mean`` or ``Sum``.
      *trees: Trees like the parameters.
    """
    return jax.tree.map(
        lambda w, *blocks: jax.tree.map(lambda *x: fn(w, *x), *blocks),
        weights,
        *trees,
        is_leaf=lambda x: isinstance(x, (Mean, Sum)),
    )


def scale_blocks(weights: Params, tree: Params) -> Params:
    """Multiplies each block by its scalar; ``weights`` is a prefix tree."""
    return by_block(lambda w, x: w * x, weights, tree)


def keep_unowned(
    weights: Params, new: PyTree, old: PyTree, any_accepted: Array
) -> PyTree:
    """A server optimizer's new state, but the old one of blocks that nobody trained.

    Moments are the subtrees that have the parameters' blocks; they are kept block by
    block. Everything else, like a count of steps, is kept if ``any_accepted`` is false.

    Args:
      weights: Total weight of every block, prefix tree of the parameters.
      new: The state after the optimizer's step.
      old: The state before.
      any_accepted: bool, whether any client takes part.

    Returns:
      The state to go on with.
    """

    def has_blocks(tree: PyTree) -> bool:
        try:
            jax.tree.map(lambda w, block: None, weights, tree)
        except ValueError:
            return False
        return True

    def keep(new: PyTree, old: PyTree) -> PyTree:
        if has_blocks(new):
            return where_owned(weights, new, old)
        return jnp.where(any_accepted, new, old)

    return jax.tree.map(keep, new, old, is_leaf=has_blocks)


def where_owned(weights: Params, new: Params, old: Params) -> Params:
    """``new`` in blocks with a weight above 0, else ``old``; exactly."""
    return by_block(lambda w, n, o: jnp.where(w > 0, n, o), weights, new, old)


def keep_frozen(frozen: PyTree, new: PyTree, old: PyTree) -> PyTree:
    """``new``, but the very arrays of ``old`` where a leaf is frozen.

    Args:
      frozen: A field of ``Model.frozen``, prefix tree of bool.
      new: A tree like the parameters.
      old: Another one.
    """
    return jax.tree.map(lambda fixed, n, o: o if fixed else n, frozen, new, old)


def drop_frozen(frozen: PyTree, tree: PyTree) -> PyTree:
    """The tree with the number 0 for each frozen leaf: what is sent of a model.

    Args:
      frozen: As of ``keep_frozen``.
      tree: A tree like the parameters.

    Example:
      >>> drop_frozen({"a": True, "b": False}, {"a": jnp.ones(9), "b": jnp.ones(2)})
      {'a': Array(0., dtype=float32), 'b': Array([1., 1.], dtype=float32)}
    """

    def nothing(block: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.zeros((), x.dtype), block)

    return jax.tree.map(lambda f, block: nothing(block) if f else block, frozen, tree)


def statistics_weights(weights: PyTree, stats: PyTree) -> PyTree:
    """Prefix tree of the BatchNorm statistics: the weight of their block.

    Where a block's weights are given part by part (some of it is frozen), statistics
    have the largest weight of the module that they are in.

    Args:
      weights: Prefix tree of the parameters.
      stats: The statistics.

    Example:
      >>> norm = {"mean": 0.0, "var": 1.0}
      >>> weights = {"a": {"norm": {"bias": 2.0, "scale": 0.0}}, "b": 3.0}
      >>> found = statistics_weights(weights, {"a": {"norm": norm}, "b": {}})
      >>> float(found["a"]["norm"]["mean"]), found["b"]
      (2.0, 3.0)
    """
    if not isinstance(weights, dict):
        return weights
    largest = functools.partial(functools.reduce, jnp.maximum)
    if not isinstance(stats, dict):
        return largest(jax.tree.leaves(weights))
    return {
        name: statistics_weights(
            weights[name] if name in weights else largest(jax.tree.leaves(weights)),
            part,
        )
        for name, part in stats.items()
    }


def overlaid(tree: PyTree, given: PyTree) -> PyTree:
    """A tree of dicts with the leaves of another one, a part of it, in their places.

    Example:
      >>> overlaid({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 9}})
      {'a': {'b': 1, 'c': 9}, 'd': 3}
    """
    if not isinstance(given, dict):
        return given
    return tree | {name: overlaid(tree[name], part) for name, part in given.items()}


def by_path(tree: PyTree) -> dict[str, np.ndarray]:
    """A tree of dicts as a flat dict of host arrays, ``path/to/leaf`` -> array.

    Example:
      >>> by_path({"head": {"bias": jnp.zeros(2)}})
      {'head/bias': array([0., 0.], dtype=float32)}
    """
    return {
        "/".join(str(step.key) for step in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
