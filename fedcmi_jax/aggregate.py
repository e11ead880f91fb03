"""Ownership-weighted averaging of streamed client updates (methods 0.7)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedcmi_jax.types import Array, Params, PyTree, Sums


class UpdateSums(NamedTuple):
    """Sums over clients; what the client axis accumulates, of the size of one model.

    Attributes:
      deltas: sum_i w_{i,b} (w_i - w_G) per block b, w_{i,b} = p_i own_{i,b}.
      weights: sum_i w_{i,b}, prefix tree of the parameters.
      stats: The same for BatchNorm statistics, over their encoder's owners.
      stats_weights: Its prefix tree.
      upload: Sum of the method's uploads.
      metrics: Sums of metrics.
      num_examples: float32, sum of n_i.
      num_accepted: float32, clients in the sums.
    """

    deltas: Params
    weights: Params
    stats: Params
    stats_weights: Params
    upload: PyTree
    metrics: Sums
    num_examples: Array
    num_accepted: Array


def all_finite(tree: PyTree) -> Array:
    """Whether every floating-point element of a tree is finite; bool scalar."""
    finite = jnp.asarray(True)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            finite &= jnp.isfinite(leaf).all()
    return finite


def clip_by_norm(delta: Params, owned: Params, max_norm: float) -> Params:
    """Scales a client's delta down to an l2 norm over its own blocks of at most this.

    Args:
      delta: The client's update.
      owned: Prefix tree, 1 for blocks that count.
      max_norm: Largest norm allowed.

    Returns:
      The delta, scaled.
    """
    norm = optax.tree.norm(scale_blocks(owned, delta))
    factor = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
    return optax.tree.scale(factor, delta)


def scale_blocks(weights: Params, tree: Params) -> Params:
    """Multiplies each block by its scalar; ``weights`` is a prefix tree."""
    return jax.tree.map(
        lambda w, block: jax.tree.map(lambda x: w * x, block), weights, tree
    )


def client_sums(
    delta: Params,
    stats_delta: Params,
    owned: Params,
    weight: Array,
    num_examples: Array,
    upload: PyTree,
    metrics: Sums,
    accepted: Array,
) -> UpdateSums:
    """One client's contribution; exactly zero where it is not accepted.

    Args:
      delta: w_i - w_G.
      stats_delta: The same for BatchNorm statistics.
      owned: Prefix tree of own_{i,b}.
      weight: p_i, ``Method.weight``; n_i by default.
      num_examples: n_i.
      upload: The method's upload.
      metrics: The client's metrics.
      accepted: bool, whether it takes part.
    """
    weights = jax.tree.map(lambda own: weight * own, owned)
    stats_weights = {kind: weights[kind] for kind in stats_delta}
    sums = UpdateSums(
        deltas=scale_blocks(weights, delta),
        weights=weights,
        stats=scale_blocks(stats_weights, stats_delta),
        stats_weights=stats_weights,
        upload=upload,
        metrics=metrics,
        num_examples=num_examples.astype(jnp.float32),
        num_accepted=jnp.ones(()),
    )
    return jax.tree.map(lambda x: jnp.where(accepted, x, jnp.zeros_like(x)), sums)


def mean_delta(sums: Params, weights: Params) -> Params:
    """sum / weight per block; zero where nobody owns the block."""
    return jax.tree.map(
        lambda w, block: jax.tree.map(
            lambda x: jnp.where(w > 0, x / jnp.where(w > 0, w, 1.0), 0.0), block
        ),
        weights,
        sums,
    )


def apply_server_update(
    params: Params,
    sums: UpdateSums,
    optimizer: optax.GradientTransformation | None,
    optimizer_state: PyTree,
) -> tuple[Params, PyTree]:
    """w_G <- w_G + mean delta, or a server optimizer's step on its negative.

    Args:
      params: w_G.
      sums: The round's sums.
      optimizer: FedOpt's server optimizer, or None for plain averaging.
      optimizer_state: Its state.

    Returns:
      New parameters and state. A block that no accepted client owns stays as it is.
    """
    delta = mean_delta(sums.deltas, sums.weights)
    if optimizer is None:
        return jax.tree.map(jnp.add, params, delta), optimizer_state
    pseudo_gradient = optax.tree.scale(-1.0, delta)
    updates, new_state = optimizer.update(pseudo_gradient, optimizer_state, params)
    moved = optax.apply_updates(params, updates)
    new_params = jax.tree.map(
        lambda w, new, old: jax.tree.map(lambda n, o: jnp.where(w > 0, n, o), new, old),
        sums.weights,
        moved,
        params,
    )
    any_accepted = sums.num_accepted > 0
    new_state = jax.tree.map(
        lambda n, o: jnp.where(any_accepted, n, o), new_state, optimizer_state
    )
    return new_params, new_state
