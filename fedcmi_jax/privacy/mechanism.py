"""What a private mechanism is, and the cohorts that its guarantee counts on."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from scipy import stats

from fedcmi_jax.choices import check_choice

Sampling = Literal["poisson", "uniform"]
"""How a cohort is drawn: each client by itself, or K of N without replacement."""

OVERFLOW = 1e-15
"""Probability that a Poisson cohort has more clients than its default cap."""

FIRST_CLIP = 0.1
"""Of adaptive clipping, where no bound is given (arXiv 1905.03871, section 3)."""


class Privacy(NamedTuple):
    """A mechanism and what it shall guarantee.

    Attributes:
      name: Registry name.
      clip: C, largest l2 norm of a client's update; of the first round if it adapts.
      noise_multiplier: z, the noise's deviation over C for what one client can change,
        the count of adaptive clipping included; None: what target_epsilon takes.
      target_epsilon: Epsilon after the last round; None: what noise_multiplier gives.
      delta: Of the guarantee; None: N^-1.1.
      sampling: How cohorts are drawn.
      cap: Places in a Poisson cohort; None: as many as it exceeds with probability
        ``OVERFLOW``.
      quantile: gamma, share of updates that C shall not shorten; None: C is fixed.
      quantile_rate: eta_C, how fast C goes there.
      count_deviation: sigma_b, deviation of the noise on the count; None: K/20.
    """

    name: str
    clip: float
    noise_multiplier: float | None
    target_epsilon: float | None
    delta: float | None
    sampling: Sampling
    cap: int | None
    quantile: float | None
    quantile_rate: float
    count_deviation: float | None


def none() -> None:
    """Updates are averaged as they are."""


def gaussian(
    *,
    clip: float | None = None,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    delta: float | None = None,
    sampling: Sampling = "poisson",
    cap: int | None = None,
    quantile: float | None = None,
    quantile_rate: float = 0.2,
    count_deviation: float | None = None,
) -> Privacy:
    """Clipped updates and Gaussian noise on their sum.

    Args:
      clip: C, largest l2 norm of a client's update; None: 1, or 0.1 to begin with where
        a quantile is given.
      noise_multiplier: z, the noise's deviation over C; 0: clipping only, without any
        guarantee. Give this or target_epsilon.
      target_epsilon: Epsilon after the last round; the least noise for it is found.
      delta: Of the guarantee; None: N^-1.1.
      sampling: poisson, each client with probability q = K/N; or uniform, K of N.
      cap: Places in a Poisson cohort, whose clients beyond it are left out, which the
        accounting covers; None: as many as make that a matter of 1e-15.
      quantile: Share of updates that C, which then adapts, shall not shorten (0.5);
        None: C is fixed.
      quantile_rate: How fast C adapts, eta_C.
      count_deviation: Deviation of the noise on the count of updates that are not
        shortened; None: K/20.

    Raises:
      ValueError: A number is out of range, or there is no noise, or two.
    """
    _check_numbers(
        clip=clip,
        target_epsilon=target_epsilon,
        cap=cap,
        quantile_rate=quantile_rate,
        count_deviation=count_deviation,
    )
    check_choice("sampling", sampling, Sampling)
    if (noise_multiplier is None) == (target_epsilon is None):
        given = "neither" if noise_multiplier is None else "both"
        raise ValueError(
            f"noise_multiplier, target_epsilon: {given} given; give one, such as "
            "target_epsilon = 8"
        )
    if noise_multiplier is not None and not 0 <= noise_multiplier < math.inf:
        raise ValueError(
            f"noise_multiplier: {noise_multiplier} is not a number from 0 on; try 1"
        )
    for name, share in (("delta", delta), ("quantile", quantile)):
        if share is not None and not 0 < share < 1:
            raise ValueError(f"{name}: {share} is outside (0, 1)")
    if cap is not None and sampling == "uniform":
        raise ValueError(f"cap: {cap} has no effect on a uniform cohort; leave it out")
    first = 1.0 if quantile is None else FIRST_CLIP
    return Privacy(
        "gaussian",
        first if clip is None else clip,
        noise_multiplier,
        target_epsilon,
        delta,
        sampling,
        cap,
        quantile,
        quantile_rate,
        count_deviation,
    )


def _check_numbers(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}: {value} is not a positive number; try 1")


REGISTRY: dict[str, Callable[..., Privacy | None]] = {
    "none": none,
    "gaussian": gaussian,
}
"""Name -> factory with keyword-only options."""


def probability(clients_per_round: int, num_clients: int) -> float:
    """q = K/N, with which a client is in a Poisson cohort."""
    return clients_per_round / num_clients


def places(privacy: Privacy, clients_per_round: int, num_clients: int) -> int:
    """Places in a cohort, taken or not: what is trained has this size.

    Example:
      >>> places(gaussian(noise_multiplier=1.0), 50, 5000)
      115
      >>> places(gaussian(noise_multiplier=1.0, sampling="uniform"), 50, 5000)
      50
    """
    if privacy.sampling == "uniform":
        return clients_per_round
    if privacy.cap is not None:
        return min(privacy.cap, num_clients)
    q = probability(clients_per_round, num_clients)
    return max(1, int(stats.binom.isf(OVERFLOW, num_clients, q)))


def overflow(privacy: Privacy, clients_per_round: int, num_clients: int) -> float:
    """Probability that a Poisson cohort has more clients than places.

    Example:
      >>> few = gaussian(noise_multiplier=1.0, cap=60)
      >>> round(overflow(few, 50, 5000), 4)
      0.0712
    """
    if privacy.sampling == "uniform":
        return 0.0
    q = probability(clients_per_round, num_clients)
    taken = places(privacy, clients_per_round, num_clients)
    return float(stats.binom.sf(taken, num_clients, q))


def noise_multiplier(privacy: Privacy) -> float:
    """z, which is known when noise is to be added.

    Raises:
      ValueError: Only an epsilon was asked for.
    """
    if privacy.noise_multiplier is None:
        raise ValueError(
            f"target_epsilon: {privacy.target_epsilon} is not a noise_multiplier yet; "
            "see experiment.accounting.calibrated"
        )
    return privacy.noise_multiplier


def count_deviation(privacy: Privacy, clients_per_round: int) -> float:
    """sigma_b, of the noise on the count of adaptive clipping."""
    given = privacy.count_deviation
    return clients_per_round / 20 if given is None else given
