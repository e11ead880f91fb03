"""The keys of a seed, and who takes part in a round."""

import jax
import jax.numpy as jnp

from fedcmi_jax.federation import Federation
from fedcmi_jax.types import Array, Model

KEYS = (
    "init",
    "partition",
    "sampling",
    "local",
    "probe",
    "attack",
    "buckets",
    "privacy",
    "compression",
    "systems",
    "speeds",
    "presence",
)
"""What a seed has keys for; their order is part of the result for a seed."""


def named_key(key: Array, name: str) -> Array:
    """The key of one purpose, folded out of a seed's."""
    return jax.random.fold_in(key, KEYS.index(name))


def uniform_cohort(
    key: Array, federation: Federation, cohort_size: int
) -> tuple[Array, Array]:
    """Clients drawn uniformly without replacement, with all their modalities.

    Args:
      key: PRNG key; the draw depends on nothing else but N and K.
      federation: The federation.
      cohort_size: K.

    Returns:
      ids [K] int32 and use [K, M] float32.
    """
    ids = jax.random.permutation(key, federation.num_clients)[:cohort_size]
    ids = ids.astype(jnp.int32)
    return ids, federation.available[ids]


def poisson_cohort(
    key: Array, federation: Federation, probability: float, places: int
) -> tuple[Array, Array]:
    """Each client by itself with one probability; of too many, some drawn uniformly.

    Args:
      key: PRNG key; the draw depends on nothing else but N, q and the places.
      federation: The federation.
      probability: q.
      places: K, at most so many.

    Returns:
      ids [K] int32, N where a place is left, and use [K, M] float32.
    """
    chance_key, order_key = jax.random.split(key)
    taken = jax.random.uniform(chance_key, (federation.num_clients,)) < probability
    return cohort_among(order_key, federation, taken, places)


def cohort_among(
    key: Array, federation: Federation, chosen: Array, places: int
) -> tuple[Array, Array]:
    """Some of the clients, drawn uniformly without replacement.

    Args:
      key: PRNG key.
      federation: The federation.
      chosen: [N] bool, who may be drawn.
      places: K; all of them if they are fewer.

    Returns:
      ids [K] int32, N where a place is left, and use [K, M] float32.
    """
    n = federation.num_clients
    order = jax.random.permutation(key, n)
    order = order[jnp.argsort(~chosen[order], stable=True)][:places]
    ids = jnp.where(chosen[order], order, n).astype(jnp.int32)
    return ids, federation.available.at[ids].get(mode="fill", fill_value=0.0)


def check_federation(
    federation: Federation, model: Model, clients_per_round: int, devices: int = 1
) -> None:
    """Refuses a federation that does not fit the model, the cohort size or the mesh.

    Raises:
      ValueError: Names the argument, its value and the remedy.
    """
    if federation.modalities != model.modalities:
        raise ValueError(
            f"federation: its modalities {federation.modalities} are not the model's "
            f"{model.modalities}; build both from one data set"
        )
    if clients_per_round > federation.num_clients:
        raise ValueError(
            f"clients_per_round: {clients_per_round} is more than the federation's "
            f"{federation.num_clients} clients; give at most {federation.num_clients}"
        )
    if federation.shards not in (1, devices):
        raise ValueError(
            f"federation: its samples are spread over {federation.shards} devices, the "
            f"algorithm runs on {devices}; build both with one mesh"
        )
