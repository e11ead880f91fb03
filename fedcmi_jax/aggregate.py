"""Ownership-weighted averaging of streamed client updates (methods 0.7)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedcmi_jax.blocks import (
    keep_unowned,
    scale_blocks,
    statistics_weights,
    where_owned,
)
from fedcmi_jax.reductions import by_columns
from fedcmi_jax.types import Array, Params, PyTree, Sums
from fedcmi_jax.uploads import inverse, mean_upload, weighted_upload


class UpdateSums(NamedTuple):
    """Sums over clients; what the client axis accumulates, of the size of one model.

    Attributes:
      deltas: sum_i w_{i,b} (w_i - w_G) per block b, w_{i,b} = p_i own_{i,b}.
      weights: sum_i w_{i,b}, prefix tree of the parameters.
      stats: The same for BatchNorm statistics, over their encoder's owners.
      stats_weights: Its prefix tree.
      upload: Sums of the method's uploads, see ``weighted_upload``.
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


class Sent(NamedTuple):
    """What one client sends; stacked, leaves [K, p] of every client as vectors.

    Attributes:
      delta: w_i - w_G.
      stats: The same for BatchNorm statistics.
      owned: Prefix tree of own_{i,b}.
      weight: p_i, a scalar or a prefix tree.
      num_examples: n_i.
      steps: int32, its local steps.
      upload: The method's upload.
    """

    delta: Params
    stats: Params
    owned: Params
    weight: PyTree
    num_examples: Array
    steps: Array
    upload: PyTree


class Total(NamedTuple):
    """What the clients of a round sent, as one.

    Attributes:
      delta: The mean delta, or what stands in its place; 0 in blocks without an owner.
      weights: Total weight of every block, prefix tree; 0: the block keeps its value.
      stats: As delta, of the statistics.
      upload: The aggregated upload.
      blocks_kept: int32, blocks that have owners, but too few.
    """

    delta: Params
    weights: Params
    stats: Params
    upload: PyTree
    blocks_kept: Array


def all_finite(tree: PyTree) -> Array:
    """Whether every floating-point element of a tree is finite; bool scalar."""
    finite = jnp.asarray(True)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            finite &= by_columns(jnp.all, jnp.isfinite(leaf))
    return finite


def clip_by_norm(delta: Params, owned: Params, max_norm: float | Array) -> Params:
    """Scales a client's delta down to an l2 norm over its own blocks of at most this.

    It bounds the parameters' update only: BatchNorm statistics and what a method
    uploads pass as they are. The guard and the aggregator ``norm_bound`` cover those.

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


def client_sums(
    delta: Params,
    stats_delta: Params,
    owned: Params,
    weight: PyTree,
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
      weight: p_i, ``Method.weight``: a scalar or a prefix tree; n_i by default.
      num_examples: n_i.
      upload: The method's upload.
      metrics: The client's metrics.
      accepted: bool, whether it takes part.
    """
    weights = scale_blocks(weight, owned)
    stats_weights = statistics_weights(weights, stats_delta)
    sums = UpdateSums(
        deltas=scale_blocks(weights, delta),
        weights=weights,
        stats=scale_blocks(stats_weights, stats_delta),
        stats_weights=stats_weights,
        upload=weighted_upload(upload),
        metrics=metrics,
        num_examples=num_examples.astype(jnp.float32),
        num_accepted=jnp.ones(()),
    )
    return jax.tree.map(lambda x: jnp.where(accepted, x, jnp.zeros_like(x)), sums)


def mean_total(sums: UpdateSums) -> Total:
    """The weighted means of a round whose clients' sums were streamed."""
    # Kept apart from the step, so that no rounding depends on what XLA fuses it with.
    apart = jax.lax.optimization_barrier
    return Total(
        delta=apart(mean_delta(sums.deltas, sums.weights)),
        weights=sums.weights,
        stats=apart(mean_delta(sums.stats, sums.stats_weights)),
        upload=apart(mean_upload(sums.upload)),
        blocks_kept=jnp.zeros((), jnp.int32),
    )


def is_weight(weight: PyTree) -> Array:
    """Whether every weight is finite and not negative; bool scalar."""
    leaves = [jnp.asarray(w, jnp.float32) for w in jax.tree.leaves(weight)]
    return jnp.stack([jnp.isfinite(w) & (w >= 0) for w in leaves]).all()


def mean_delta(sums: Params, weights: Params) -> Params:
    """sum / weight per block; zero where nobody owns the block."""
    return scale_blocks(jax.tree.map(inverse, weights), sums)


def optimizer_step(
    params: Params,
    delta: Params,
    weights: Params,
    optimizer: optax.GradientTransformation | None,
    optimizer_state: PyTree,
    any_accepted: Array,
) -> tuple[Params, PyTree]:
    """w_G <- w_G + mean delta, or a server optimizer's step on its negative.

    Args:
      params: w_G.
      delta: The mean delta.
      weights: Total weight of every block, prefix tree of the parameters.
      optimizer: FedOpt's server optimizer, or None for plain averaging.
      optimizer_state: Its state.
      any_accepted: bool, whether any client takes part.

    Returns:
      New parameters and state. A block that no accepted client owns stays as it is,
      and so does what the optimizer's state holds of it.
    """
    if optimizer is None:
        return jax.tree.map(jnp.add, params, delta), optimizer_state
    pseudo_gradient = optax.tree.scale(-1.0, delta)
    updates, new_state = optimizer.update(pseudo_gradient, optimizer_state, params)
    moved = where_owned(weights, optax.apply_updates(params, updates), params)
    return moved, keep_unowned(weights, new_state, optimizer_state, any_accepted)
