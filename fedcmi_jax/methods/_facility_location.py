"""Choosing clients that cover the others: greedy facility location (methods 11).

Fan et al., ECCV 2024, arXiv 2401.00403.
"""

import jax
import jax.numpy as jnp

from fedcmi_jax.types import Array

NOT_COVERED = 1e11
"""Distance to an empty set of clients (public code)."""

POOL_SHARE = 0.1
"""Share of all clients in the random pool of one greedy step (public code)."""


def distances(x: Array, y: Array) -> Array:
    """||x_i - y_j||_2 between the rows of [n, P] and [m, P]: [n, m].

    Differences first, a row of x at a time: ||x||^2 + ||y||^2 - 2 x y takes one pass
    less, but what rows have in common cancels there, and with it the digits of what
    they have not.

    Example:
      >>> import jax.numpy as jnp
      >>> distances(jnp.array([[3.0, 4.0]]), jnp.zeros((2, 2))).tolist()
      [[5.0, 5.0]]
    """
    return jax.lax.map(lambda row: jnp.sqrt(((y - row[None]) ** 2).sum(1)), x)


def greedy(
    key: Array,
    joint_distances: Array,
    first_distances: Array,
    second_distances: Array,
    balances: Array,
    sizes: Array,
    available: Array,
    *,
    cohort_size: int,
    threshold: float | Array,
) -> tuple[Array, Array]:
    """The stochastic greedy cohort: clients and the modalities they train.

    Among clients that cover the others equally well, the first of the random pool is
    taken, whatever its id.

    Args:
      key: PRNG key of the pools.
      joint_distances: [N, N], D.
      first_distances: [N, N], D of the first modality's encoder.
      second_distances: The same of the second one's.
      balances: [N], b_i.
      sizes: [N], n_i.
      available: [N, 2].
      cohort_size: K.
      threshold: theta; infinite: nobody is restricted.

    Returns:
      ids [K] int32 and use [K, 2].
    """
    n = len(sizes)
    pool_size = max(cohort_size, int(POOL_SHARE * n))
    mean = (sizes * balances).sum() / jnp.maximum(sizes.sum(), 1.0)
    first_leads = mean > 1
    weaker = jnp.where(first_leads, 1, 0)
    weak_distances = jnp.where(first_leads, second_distances, first_distances)
    lead = jnp.where(first_leads, balances, 1.0 / balances)
    alone = jax.nn.one_hot(weaker, 2)

    def step(carry, key):
        chosen, cover, weak_cover = carry
        draws = jnp.where(chosen, jnp.inf, jax.random.uniform(key, (n,)))
        pool = jnp.argsort(draws)[:pool_size]

        def best(cover: Array, table: Array) -> Array:
            gaps = jnp.minimum(cover[:, None], table[:, pool]).sum(0)
            return pool[jnp.argmin(jnp.where(chosen[pool], jnp.inf, gaps))]

        j, j_weak = best(cover, joint_distances), best(weak_cover, weak_distances)
        restrict = (lead[j_weak] > threshold) & (available[j_weak].sum() == 2)
        pick = jnp.where(restrict, j_weak, j).astype(jnp.int32)
        cover = jnp.where(restrict, cover, jnp.minimum(cover, joint_distances[:, j]))
        weak_cover = jnp.where(
            restrict, jnp.minimum(weak_cover, weak_distances[:, j_weak]), weak_cover
        )
        use = jnp.where(restrict, alone, available[pick])
        return (chosen.at[pick].set(True), cover, weak_cover), (pick, use)

    nothing = jnp.full(n, NOT_COVERED)
    start = (jnp.zeros(n, bool), nothing, nothing)
    return jax.lax.scan(step, start, jax.random.split(key, cohort_size))[1]
