"""Clients that mean harm, to measure what holds against them (methods 19.3).

Which clients they are follows from the seed, and they stay the same. An attack changes
its clients' labels, what each of them sends, or what they send together.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.aggregate import Sent
from fedcmi_jax.aggregators.base import weighted_mean
from fedcmi_jax.types import Array, PyTree
from fedcmi_jax.uploads import map_values


class Attack(NamedTuple):
    """What some clients do; at least one of the last three is there.

    Attributes:
      name: Registry name.
      fraction: Share of the federation's clients.
      labels: ``(labels, C) -> labels`` that they train on, or None.
      update: ``(key, x) -> x`` that each sends in the place of an array of its updates
        of parameters and statistics and of the values of its upload, or None.
      craft: ``(mean, deviation, owners, attackers) -> x`` that all of them send in the
        place of a block, from the honest owners' [p], how many accepted clients own
        the block, and how many of them are attackers; or None. Needs the stack.
    """

    name: str
    fraction: float
    labels: Callable[[Array, int], Array] | None = None
    update: Callable[[Array, Array], Array] | None = None
    craft: Callable[[Array, Array, Array, Array], Array] | None = None


def none() -> None:
    """Nobody means harm."""


def scale(*, fraction: float = 0.2, factor: float = 100.0) -> Attack:
    """Updates many times too long.

    Args:
      fraction: Share of the federation's clients, in (0, 1).
      factor: On everything that they send.

    Raises:
      ValueError: fraction is outside (0, 1).
    """
    return _checked(Attack("scale", fraction, update=lambda key, x: factor * x))


def sign_flip(*, fraction: float = 0.2, factor: float = 1.0) -> Attack:
    """Updates in the opposite direction.

    Args:
      fraction: Share of the federation's clients, in (0, 1).
      factor: Their length over the honest one.

    Raises:
      ValueError: fraction is outside (0, 1).
    """
    return _checked(Attack("sign_flip", fraction, update=lambda key, x: -factor * x))


def gaussian(*, fraction: float = 0.2, deviation: float = 1.0) -> Attack:
    """Noise in the place of updates.

    Args:
      fraction: Share of the federation's clients, in (0, 1).
      deviation: Of every number that they send.

    Raises:
      ValueError: fraction is outside (0, 1).
    """

    def update(key: Array, x: Array) -> Array:
        return deviation * jax.random.normal(key, x.shape, x.dtype)

    return _checked(Attack("gaussian", fraction, update=update))


def label_flip(*, fraction: float = 0.2) -> Attack:
    """Honest training on wrong labels: c becomes C - 1 - c.

    Args:
      fraction: Share of the federation's clients, in (0, 1).

    Raises:
      ValueError: fraction is outside (0, 1).
    """

    def labels(labels: Array, classes: int) -> Array:
        return classes - 1 - labels

    return _checked(Attack("label_flip", fraction, labels=labels))


def alie(*, fraction: float = 0.2, z: float | None = 1.5) -> Attack:
    """A little is enough (arXiv 1902.06156): mean - z deviation, by coordinate.

    Args:
      fraction: Share of the federation's clients, in (0, 1).
      z: Deviations of the honest owners of a block; None: the paper's largest z that
        hides, Phi^-1((n - m - s) / (n - m)) with s = floor(n/2 + 1) - m, of n owners of
        which m are attackers; 0 where they are few.

    Raises:
      ValueError: fraction is outside (0, 1).
    """

    def craft(mean: Array, deviation: Array, owners: Array, attackers: Array) -> Array:
        return mean - (_hidden(owners, attackers) if z is None else z) * deviation

    return _checked(Attack("alie", fraction, craft=craft))


def ipm(*, fraction: float = 0.2, factor: float = 0.5) -> Attack:
    """Inner product manipulation (arXiv 1903.03936): -epsilon times the honest mean.

    Args:
      fraction: Share of the federation's clients, in (0, 1).
      factor: epsilon.

    Raises:
      ValueError: fraction is outside (0, 1).
    """

    def craft(mean: Array, deviation: Array, owners: Array, attackers: Array) -> Array:
        del deviation, owners, attackers
        return -factor * mean

    return _checked(Attack("ipm", fraction, craft=craft))


def _hidden(owners: Array, attackers: Array) -> Array:
    honest = owners - attackers
    supporters = owners // 2 + 1 - attackers
    share = (honest - supporters) / jnp.maximum(honest, 1)
    return jax.scipy.stats.norm.ppf(jnp.clip(share, 0.5, 1 - 1e-6))


def _checked(attack: Attack) -> Attack:
    if not 0 < attack.fraction < 1:
        raise ValueError(f"fraction: {attack.fraction} is outside (0, 1); try 0.2")
    return attack


def check(attack: Attack, num_clients: int) -> None:
    """Refuses a share of the clients that is nobody.

    Raises:
      ValueError: Names the share and the remedy.

    Example:
      >>> check(scale(fraction=0.1), 3)
      Traceback (most recent call last):
      ValueError: attack: fraction 0.1 of 3 clients is nobody; give at least 0.333...
    """
    if count_of(attack, num_clients) < 1:
        raise ValueError(
            f"attack: fraction {attack.fraction} of {num_clients} clients is nobody; "
            f"give at least {1 / num_clients:.3g}"
        )


def count_of(attack: Attack, num_clients: int) -> int:
    """How many of N clients attack: their share of them, rounded."""
    return int(np.floor(attack.fraction * num_clients + 0.5))


def attackers(attack: Attack, key: Array, num_clients: int) -> Array:
    """[N] bool, who attacks.

    Args:
      attack: Its share of clients.
      key: Of the seed, for this purpose.
      num_clients: N.

    Example:
      >>> int(attackers(scale(fraction=0.3), jax.random.key(0), 10).sum())
      3
    """
    return jax.random.permutation(key, num_clients) < count_of(attack, num_clients)


def changed(attack: Attack, key: Array, sent: Sent, is_attacker: Array) -> Sent:
    """What a client sends if ``is_attacker``; attacks of single clients.

    Args:
      attack: The attack.
      key: Of this client and round.
      sent: What it would send honestly.
      is_attacker: bool.
    """
    update = attack.update
    if update is None:
        return sent
    counter = iter(range(len(jax.tree.leaves(sent))))

    def one(x: Array) -> Array:
        new = update(jax.random.fold_in(key, next(counter)), x.astype(jnp.float32))
        return jnp.where(is_attacker, new.astype(x.dtype), x)

    return sent._replace(
        delta=jax.tree.map(one, sent.delta),
        stats=jax.tree.map(one, sent.stats),
        upload=map_values(one, sent.upload),
    )


def crafted(attack: Attack, sent: Sent, accepted: Array, is_attacker: Array) -> Sent:
    """What the clients of a round send if its attackers know what all of them do.

    Args:
      attack: The attack; without ``craft`` nothing changes.
      sent: ``stacks.as_vectors`` of every client, leaves [K, ...].
      accepted: [K] bool.
      is_attacker: [K] bool.
    """
    craft = attack.craft
    if craft is None:
        return sent

    def one(owned: Array, block: PyTree) -> PyTree:
        owns = accepted & (owned > 0)
        honest = (owns & ~is_attacker).astype(jnp.float32)[:, None]
        counts = owns.sum(), (owns & is_attacker).sum()

        def leaf(x: Array) -> Array:
            clean = jnp.where(honest > 0, x, 0.0)
            mean = weighted_mean(clean, honest)
            deviation = jnp.sqrt(weighted_mean((clean - mean[None]) ** 2, honest))
            new = craft(mean, deviation, *counts)
            return jnp.where(is_attacker[:, None], new[None].astype(x.dtype), x)

        return jax.tree.map(leaf, block)

    of_stats = {kind: sent.owned[kind] for kind in sent.stats}
    everybody = jnp.ones(len(accepted))
    return sent._replace(
        delta=jax.tree.map(one, sent.owned, sent.delta),
        stats=jax.tree.map(one, of_stats, sent.stats),
        upload=map_values(lambda x: one(everybody, x), sent.upload),
    )


REGISTRY: dict[str, Callable[..., Attack | None]] = {
    "none": none,
    "scale": scale,
    "sign_flip": sign_flip,
    "gaussian": gaussian,
    "label_flip": label_flip,
    "alie": alie,
    "ipm": ipm,
}
"""Name -> factory with keyword-only options."""
