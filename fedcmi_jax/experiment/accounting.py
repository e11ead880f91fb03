"""What a private run spends: epsilon at delta, by Google's dp-accounting.

The extra ``privacy`` has it; it is imported when a run adds noise, and not before.
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from fedcmi_jax.experiment.config import Config, create
from fedcmi_jax.privacy import Privacy, overflow, places, probability

INTERVAL = 1e-3
"""Grid of privacy losses. They are rounded up on it: epsilon is an upper bound, here
0.02 % above that of dp-accounting's default grid, at a tenth of its time."""

DELTA_EXPONENT = -1.1
"""delta = N^-1.1 by default, as McMahan et al. (arXiv 1710.06963) choose it."""

TOLERANCE = 1e-3
"""Relative, of a calibrated noise multiplier; the larger end is taken."""

LARGEST_NOISE = 2.0**20
"""Noise multiplier at which calibration gives up."""

NOT_COVERED = (
    "not covered: in metrics lines and logs training losses, counts and who took part; "
    "what is measured on clients' own samples, and chosen by it; memory that stays at "
    "a client; several runs on the same clients; the noise is pseudorandom"
)
"""What the guarantee is not about; docs/privacy.md explains."""


class Guarantee(NamedTuple):
    """What a run promises one client, all of its samples together.

    Attributes:
      privacy: With its noise multiplier.
      clients_per_round: K, of a Poisson cohort expected.
      num_clients: N, taken as public.
      delta: The probability that epsilon does not hold.
    """

    privacy: Privacy
    clients_per_round: int
    num_clients: int
    delta: float

    def epsilon(self, rounds: int) -> float:
        """Of that many rounds together; infinity without noise.

        Raises:
          ValueError: dp-accounting is not installed.
        """
        return _epsilon(self, rounds)

    def described(self, rounds: int) -> list[str]:
        """Two lines: the guarantee after so many rounds, and what it does not cover."""
        private, n = self.privacy, self.num_clients
        q = probability(self.clients_per_round, n)
        if private.noise_multiplier == 0:
            return ["privacy: updates are clipped, no noise is added: no guarantee"]
        relation, how = (
            (
                "one client more or less",
                f"Poisson cohorts, q = {q:.3g}, at most "
                f"{places(private, self.clients_per_round, n)} clients",
            )
            if private.sampling == "poisson"
            else (
                "one client replaced by another",
                f"{self.clients_per_round} of {n} clients without replacement",
            )
        )
        return [
            f"privacy: epsilon {self.epsilon(rounds):.3g} at delta {self.delta:.3g} "
            f"after {rounds} rounds, for {relation} ({how}; noise multiplier "
            f"{private.noise_multiplier:.4g}); the server is trusted",
            f"privacy: {NOT_COVERED}",
        ]

    def summary(self, rounds: int) -> dict[str, Any]:
        """What summary.json says."""
        poisson = self.privacy.sampling == "poisson"
        return {
            "epsilon": self.epsilon(rounds),
            "delta": self.delta,
            "noise_multiplier": self.privacy.noise_multiplier,
            "relation": "add or remove a client" if poisson else "replace a client",
        }


def guarantee(
    privacy: Privacy, clients_per_round: int, num_clients: int, rounds: int
) -> Guarantee:
    """The guarantee of a run, its noise calibrated if an epsilon is asked for.

    Args:
      privacy: The mechanism.
      clients_per_round: K.
      num_clients: N.
      rounds: R, what target_epsilon is for.

    Raises:
      ValueError: dp-accounting is not installed, or no noise is enough.

    Example:
      >>> from fedcmi_jax.privacy import gaussian
      >>> clipped = guarantee(gaussian(noise_multiplier=0.0), 5, 20, 100)
      >>> clipped.epsilon(100), round(clipped.delta, 4)
      (inf, 0.0371)
    """
    delta = privacy.delta
    if delta is None:
        delta = min(num_clients**DELTA_EXPONENT, 0.5)
    made = Guarantee(privacy, clients_per_round, num_clients, delta)
    if privacy.target_epsilon is None:
        return made
    z = calibrated(made, rounds, privacy.target_epsilon)
    return made._replace(privacy=privacy._replace(noise_multiplier=z))


def promised(
    config: Config, num_clients: int, log: Callable[[str], None], spends: bool = True
) -> Guarantee | None:
    """What the run of a configuration promises its clients; None: nothing.

    Args:
      config: The configuration.
      num_clients: N.
      log: Receives it, and what it does not cover.
      spends: Whether noise is added here; otherwise none is looked for and nothing is
        said.

    Raises:
      ValueError: See ``guarantee``.
    """
    privacy = create("privacy", config.privacy)
    if privacy is None:
        return None
    if not spends:
        privacy = privacy._replace(noise_multiplier=0.0, target_epsilon=None)
    made = guarantee(privacy, config.clients_per_round, num_clients, config.rounds)
    for line in made.described(config.rounds) if spends else ():
        log(line)
    return made


@functools.cache
def calibrated(made: Guarantee, rounds: int, target: float) -> float:
    """The least noise multiplier, within ``TOLERANCE``, of an epsilon.

    Args:
      made: The guarantee; its own noise multiplier is ignored.
      rounds: R.
      target: Epsilon after them.

    Raises:
      ValueError: None up to ``LARGEST_NOISE`` is enough.
    """

    def spends(z: float) -> float:
        return _epsilon(
            made._replace(privacy=made.privacy._replace(noise_multiplier=z)), rounds
        )

    high = 1.0
    while spends(high) > target:
        high *= 2
        if high > LARGEST_NOISE:
            raise ValueError(
                f"target_epsilon: {target} is out of reach at delta {made.delta:g}; "
                "give a larger one, a larger delta or cap, or fewer rounds"
            )
    low = high / 2
    while spends(low) <= target:
        high, low = low, low / 2
    while high > low * (1 + TOLERANCE):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spends(middle) <= target else (middle, high)
    return high


@functools.cache
def _epsilon(made: Guarantee, rounds: int) -> float:
    private, z = made.privacy, made.privacy.noise_multiplier
    if rounds == 0:
        return 0.0
    if z is None or z == 0:
        return math.inf
    if private.sampling == "uniform":
        # Replacing a client moves the sum by up to 2 C: it leaves and another comes.
        return _by_rdp(made.num_clients, made.clients_per_round, z / 2)(
            rounds, made.delta
        )
    q = probability(made.clients_per_round, made.num_clients)
    of_rounds = _poisson(z, q).self_compose(rounds)
    lost = rounds * overflow(private, made.clients_per_round, made.num_clients)
    return _with_overflow(of_rounds.get_epsilon_for_delta, made.delta, lost)


def _with_overflow(
    epsilon_for: Callable[[float], float], delta: float, lost: float
) -> float:
    """Epsilon of a mechanism that differs from a private one with probability ``lost``.

    By that much total variation on either of two neighbours delta grows to delta' +
    (1 + e^epsilon) lost (Chua et al., arXiv 2411.04205, who cut Poisson batches so).

    Args:
      epsilon_for: ``delta' -> epsilon`` of the private mechanism.
      delta: What it must hold at.
      lost: Over all rounds.

    Example:
      >>> epsilon = _with_overflow(lambda delta: -math.log(delta), 1e-3, 1e-7)
      >>> 6.908 < epsilon < 7.1
      True
      >>> _with_overflow(lambda delta: -math.log(delta), 1e-3, 1e-3)
      inf
    """
    epsilon, before = epsilon_for(delta), -1.0
    while epsilon - before > INTERVAL * TOLERANCE:
        rest = delta - (1 + math.exp(min(epsilon, 700.0))) * lost
        if rest <= 0:
            return math.inf
        before, epsilon = epsilon, max(epsilon, epsilon_for(rest))
    return epsilon


@functools.cache
def _poisson(z: float, q: float) -> Any:
    """Privacy loss distribution of a round with Poisson cohorts."""
    accounting = _dp_accounting("dp_accounting")
    losses = _dp_accounting("dp_accounting.pld.privacy_loss_distribution")
    return losses.from_gaussian_mechanism(
        z,
        sampling_prob=q,
        value_discretization_interval=INTERVAL,
        neighboring_relation=accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


@functools.cache
def _by_rdp(n: int, k: int, z: float) -> Callable[[int, float], float]:
    """``(rounds, delta) -> epsilon`` of cohorts of k of n without replacement.

    Renyi differential privacy (arXiv 1808.00087, theorem 27).
    """
    accounting = _dp_accounting("dp_accounting")
    rdp = _dp_accounting("dp_accounting.rdp")
    event = accounting.GaussianDpEvent(z)
    if k < n:
        event = accounting.SampledWithoutReplacementDpEvent(n, k, event)

    def epsilon(rounds: int, delta: float) -> float:
        accountant = rdp.RdpAccountant(
            neighboring_relation=accounting.NeighboringRelation.REPLACE_ONE
        )
        return float(accountant.compose(event, rounds).get_epsilon(delta))

    return epsilon


def _dp_accounting(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"privacy: what noise guarantees is computed by dp-accounting ({error}); "
            "pip install 'fedcmi_jax[privacy]', or set privacy.noise_multiplier to 0"
        ) from None
