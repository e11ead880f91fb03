"""Blocks that no training changes: kept out of gradients, optimizers and messages."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from fedcmi_jax.choices import matching
from fedcmi_jax.models.whole import complete
from fedcmi_jax.types import Array, Batch, Frozen, Model, Outputs, Params, PyTree


def frozen(model: Model, patterns: Iterable[str] | str) -> Model:
    """The model with blocks that never change, under any method.

    No gradient of them is computed, the clients' and the server's optimizers have no
    state of them, nobody owns them, and nothing of them is sent or averaged: they keep
    their bits. A statistic of BatchNorm is frozen where all parameters of its block, or
    of the layer that it is in, are. An encoder that is frozen whole runs as in
    evaluation, by its running statistics and without dropout.

    Args:
      model: Any model; what it has frozen before stays so.
      patterns: Blocks (``encoder/*``), layers (``encoder/*/Dense_0``) or arrays; see
        ``choices.matching``; one may be a string. None at all: the model as it is.

    Returns:
      The model.

    Raises:
      ValueError: A pattern names nothing, or nothing is left to train.

    Example:
      >>> import fedcmi_jax as fc
      >>> shapes = {"a": (4,), "b": (4,)}
      >>> encoders = {m: fc.models.mlp(features=8) for m in shapes}
      >>> model = frozen(fc.models.classifier(encoders, shapes, 3), ["encoder/a"])
      >>> model.frozen.params
      {'encoder': {'a': True, 'b': False}, 'fusion': False}
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not patterns:
        return model
    model = complete(model)
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    paths = [path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    named = matching("freeze", patterns, paths)
    before = jax.tree.map(
        lambda fixed, block: jax.tree.map(lambda x: fixed, block),
        model.frozen.params,
        params,
    )
    fixed = _prefix(
        jax.tree_util.tree_map_with_path(
            lambda path, was: was or path_of(path) in named, before
        )
    )
    if fixed is True:
        raise ValueError(f"freeze: {', '.join(patterns)} leaves nothing to train")
    found = Frozen(fixed, _of_statistics(fixed, stats))
    return _with_frozen(model, found)


def path_of(path: tuple[Any, ...]) -> str:
    """A leaf's place in a tree as ``part/part/...``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _with_frozen(model: Model, found: Frozen) -> Model:
    """The model's functions, blind to changes of what is frozen."""
    blocks = ["fusion", *(f"encoder/{m}" for m in model.modalities)]
    asleep = {block: False for block in blocks if _is_whole(found.params, block)}

    def still(params: Params) -> Params:
        return _where(found.params, jax.lax.stop_gradient, params)

    def apply(
        params: Params, stats: Params, batch: Batch, train: Any
    ) -> tuple[Outputs, Params]:
        if train and asleep:
            train = asleep | (train if isinstance(train, dict) else {})
        outputs, new_stats = model.apply(still(params), stats, batch, train)
        kept = jax.tree.map(
            lambda fixed, new, old: old if fixed else new,
            found.batch_stats,
            new_stats,
            stats,
        )
        return outputs, kept

    def fuse(params: Params, parts: dict[str, Array]) -> Array:
        assert model.fuse is not None  # noqa: S101 (only set below if it is)
        return model.fuse(still(params), parts)

    def shares(params: Params, parts: dict[str, Array]) -> dict[str, Array]:
        assert model.shares is not None  # noqa: S101 (only set below if it is)
        return model.shares(still(params), parts)

    return model._replace(
        apply=apply,
        fuse=fuse if model.fuse else None,
        shares=shares if model.shares else None,
        owned=lambda available: _without(found.params, model.owned(available)),
        trained=lambda available: _without(found.params, model.trained(available)),
        frozen=found,
    )


def _is_whole(fixed: PyTree, block: str) -> bool:
    """Whether all of a block is frozen."""
    for part in block.split("/"):
        fixed = fixed.get(part, False) if isinstance(fixed, dict) else fixed
    return fixed is True


def _prefix(tree: PyTree) -> PyTree:
    """A tree of bool in the fewest leaves: one for each part that is all the same."""
    if not isinstance(tree, dict):
        return tree
    parts = {name: _prefix(part) for name, part in tree.items()}
    for value in (True, False):
        if parts and all(part is value for part in parts.values()):
            return value
    return parts


def _of_statistics(fixed: PyTree, stats: PyTree) -> PyTree:
    """Prefix tree of the statistics: whether all parameters beside them are frozen."""
    if isinstance(fixed, bool):
        return fixed
    if not isinstance(stats, dict):
        return False  # some parameters of its layer are trained
    return {
        name: _of_statistics(fixed.get(name, False), part)
        for name, part in stats.items()
    }


def _where(fixed: PyTree, fn: Any, tree: PyTree) -> PyTree:
    """``fn`` of what is frozen; the rest as it is."""
    return jax.tree.map(lambda f, block: fn(block) if f else block, fixed, tree)


def _without(fixed: PyTree, weights: PyTree) -> PyTree:
    """Weights with 0 for what is frozen; part by part where some of a block is."""
    if not isinstance(fixed, dict):
        return jax.tree.map(jnp.zeros_like, weights) if fixed else weights
    return {
        name: _without(
            part, weights[name] if isinstance(weights, dict) else jnp.asarray(weights)
        )
        for name, part in fixed.items()
    }
