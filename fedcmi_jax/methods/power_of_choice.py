"""Power-of-Choice: Cho et al., AISTATS 2022, arXiv 2010.01243; methods 10."""

from typing import Literal

import jax
import jax.numpy as jnp

from fedcmi_jax.choices import check_choice
from fedcmi_jax.methods._samples import mean_loss, uniform
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, Selection, Server
from fedcmi_jax.types import Array, Model

Draw = Literal["by_size", "uniform"]
Average = Literal["uniform", "by_size"]


def power_of_choice(
    *,
    candidates: int = 10,
    draw: Draw = "by_size",
    average: Average = "uniform",
) -> Method:
    """The K clients with the greatest loss among d candidates train, as in the paper.

    Candidates A, |A| = d, are drawn without replacement with probability proportional
    to n_i; F_i is the mean cross-entropy of the global model over client i's training
    samples, in eval mode; the cohort S is the K of A with the greatest F_i. Sizes count
    in the draw, so S is averaged uniformly: w = (1 / K) sum_{i in S} w_i, per block
    over its owners in S.

    Deviations from the public code of FedCMI's authors: it draws candidates uniformly
    and averages S by n_i (both are options), measures a stale model and weights a short
    last batch like a full one.

    Args:
      candidates: d; at least K, and cut to the number of clients.
      draw: How candidates are drawn.
      average: ``uniform`` weights everybody in S equally, ``by_size`` by n_i. With
        d = K, ``draw`` uniform and ``average`` by_size this is FedAvg exactly.

    Raises:
      ValueError: candidates is below 1 or, when the algorithm is built, below K, or
        draw or average is unknown.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.power_of_choice(candidates=20).name
      'power_of_choice'
    """
    if candidates < 1:
        raise ValueError(f"candidates: {candidates} is below 1; give at least 1")
    check_choice("draw", draw, Draw)
    check_choice("average", average, Average)

    def check(model: Model, clients_per_round: int) -> None:
        del model
        if candidates < clients_per_round:
            raise ValueError(
                f"candidates: {candidates} is fewer than clients_per_round: "
                f"{clients_per_round}; give at least {clients_per_round}"
            )

    def select(server: Server, key: Array) -> Selection:
        federation = server.federation
        pool = candidate_clients(
            key, federation.sizes, min(candidates, federation.num_clients), draw
        )
        losses = server.map(client_loss, pool, federation.available[pool])
        ids = pool[highest(losses, server.cohort_size)]
        return Selection(ids, federation.available[ids], server.shared, server.memory)

    method = Method(name="power_of_choice", check=check, select=select)
    return method._replace(weight=uniform) if average == "uniform" else method


def candidate_clients(key: Array, sizes: Array, count: int, draw: Draw) -> Array:
    """[count] int32 different clients, drawn uniformly or in proportion to n_i."""
    if draw == "uniform":
        # The draw of uniform_cohort, so that d = K is FedAvg's cohort.
        return jax.random.permutation(key, len(sizes))[:count].astype(jnp.int32)
    # The greatest of log n_i + Gumbel noise: successive draws without replacement.
    noise = jax.random.gumbel(key, sizes.shape)
    scores = jnp.log(jnp.maximum(sizes, 1)) + noise
    return jax.lax.top_k(scores, count)[1].astype(jnp.int32)


def client_loss(client: Client, key: Array) -> Array:
    """F_i, the mean cross-entropy over the client's training samples, in nats."""
    del key
    return mean_loss(client)


def highest(losses: Array, count: int) -> Array:
    """Places of the greatest losses, earlier ones first among equals; NaN comes last.

    Example:
      >>> import jax.numpy as jnp
      >>> highest(jnp.array([0.5, 2.0, jnp.nan, 1.0]), 2).tolist()
      [1, 3]
    """
    return jax.lax.top_k(jnp.where(jnp.isnan(losses), -jnp.inf, losses), count)[1]
