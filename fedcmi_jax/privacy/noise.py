"""The noise of a private round, and the bound that it is measured by (methods 20)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.aggregate import Total, UpdateSums
from fedcmi_jax.blocks import drop_frozen
from fedcmi_jax.privacy.mechanism import Privacy, count_deviation, noise_multiplier
from fedcmi_jax.types import Array, PyTree
from fedcmi_jax.uploads import mean_upload


class Clipping(NamedTuple):
    """What a private round reports of its clipping; measured without noise.

    Attributes:
      clip: float32, the bound that held.
      clipped: float32, share of the accepted clients whose update was longer.
    """

    clip: Array
    clipped: Array


def update_noise(privacy: Privacy, clients_per_round: int) -> float:
    """z_Delta, the noise's deviation over C on the sum of updates.

    With adaptive clipping z covers updates and count together: z_Delta = (z^-2 - (2
    sigma_b)^-2)^-1/2 (arXiv 1905.03871, theorem 1), else it is z.

    Example:
      >>> from fedcmi_jax.privacy import gaussian
      >>> fixed = gaussian(noise_multiplier=1.0)
      >>> round(update_noise(fixed._replace(quantile=0.5, count_deviation=1.0), 20), 4)
      1.1547
    """
    z = noise_multiplier(privacy)
    if privacy.quantile is None or z == 0:
        return z
    deviation = count_deviation(privacy, clients_per_round)
    return (z**-2 - (2 * deviation) ** -2) ** -0.5


def start(privacy: Privacy | None) -> PyTree:
    """What the state holds of it: C if it adapts, else nothing."""
    if privacy is None or privacy.quantile is None:
        return ()
    return jnp.asarray(privacy.clip, jnp.float32)


def bound(privacy: Privacy, held: PyTree) -> Array:
    """C of a round; float32 scalar.

    Args:
      privacy: The mechanism.
      held: ``FederationState.privacy``.
    """
    fixed = privacy.quantile is None
    return jnp.asarray(privacy.clip, jnp.float32) if fixed else held


def moved(
    privacy: Privacy,
    key: Array,
    held: PyTree,
    norms: Array,
    accepted: Array,
    clients_per_round: int,
) -> PyTree:
    """What the state holds after a round: C exp(-eta_C (b - gamma)).

    b = 1/2 + (sum_i (b_i - 1/2) + N(0, sigma_b^2)) / (q N), b_i = 1 where client i's
    update was not longer than C. With 1/2 taken off, one client changes the sum by 1/2.

    Args:
      privacy: The mechanism.
      key: Of the round, for this purpose.
      held: ``FederationState.privacy``.
      norms: [K] float32, lengths of the updates before clipping.
      accepted: [K] bool.
      clients_per_round: q N.
    """
    if privacy.quantile is None:
        return held
    halves = jnp.where(norms <= held, 0.5, -0.5)
    total = jnp.where(accepted, halves, 0.0).sum()
    if noise_multiplier(privacy) > 0:
        deviation = count_deviation(privacy, clients_per_round)
        total += deviation * jax.random.normal(key)
    share = 0.5 + total / clients_per_round
    return held * jnp.exp(-privacy.quantile_rate * (share - privacy.quantile))


def private_total(
    privacy: Privacy,
    key: Array,
    clip: Array,
    sums: UpdateSums,
    clients_per_round: int,
    frozen: PyTree,
) -> Total:
    """(sum_i clipped delta_i + N(0, (z_Delta C)^2)) / (q N), the same for every block.

    Neither denominator nor weights depend on who took part or owns what, so a block
    moves by its noise even where nobody owned it.

    Args:
      privacy: The mechanism.
      key: Of the round, for this purpose.
      clip: C.
      sums: Of clients with weight 1 whose updates are not longer than C.
      clients_per_round: q N.
      frozen: ``Model.frozen.params``; nothing is added there.
    """
    deviation = update_noise(privacy, clients_per_round) * clip
    leaves, structure = jax.tree.flatten(sums.deltas)
    if noise_multiplier(privacy) > 0:
        leaves = [
            x + deviation * jax.random.normal(jax.random.fold_in(key, i), x.shape)
            for i, x in enumerate(leaves)
        ]
    share = 1.0 / clients_per_round
    delta = jax.tree.unflatten(structure, [share * x for x in leaves])
    apart = jax.lax.optimization_barrier
    return Total(
        delta=apart(drop_frozen(frozen, delta)),
        weights=jax.tree.map(jnp.ones_like, sums.weights),
        stats=jax.tree.map(jnp.zeros_like, sums.stats),
        upload=mean_upload(sums.upload),
        blocks_kept=jnp.zeros((), jnp.int32),
    )


def clipping(clip: Array, norms: Array, accepted: Array) -> Clipping:
    """What a round reports.

    Args:
      clip: C.
      norms: [K], before clipping.
      accepted: [K] bool.

    Example:
      >>> norms, accepted = jnp.array([0.5, 2.0, 3.0]), jnp.array([True, True, False])
      >>> float(clipping(jnp.asarray(1.0), norms, accepted).clipped)
      0.5
    """
    longer = (accepted & (norms > clip)).sum()
    return Clipping(clip, longer / jnp.maximum(accepted.sum(), 1))
