"""What may happen to the clients of a round, and who they are."""

import math
import pathlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.choices import check_choice
from fedcmi_jax.samples import PathOption
from fedcmi_jax.systems.table import Table, read_table
from fedcmi_jax.types import Array, PyTree

Late = Literal["partial", "drop"]
"""What comes of a client that is not done at the deadline."""


class Systems(NamedTuple):
    """What happens to clients in a round.

    Attributes:
      name: Registry name.
      samples_per_second: Median speed of training.
      speed_spread: Deviation of its logarithm over clients.
      bytes_per_second: Median bandwidth, of each direction.
      bandwidth_spread: Deviation of its logarithm over clients.
      available: Probability that a client is there when a cohort is drawn.
      dropout: Probability that a client of a cohort does not come back.
      deadline: Seconds after which a round ends; None: with its last client.
      late: What comes of whoever is not done by then.
      table: What a file says instead.
    """

    name: str
    samples_per_second: float
    speed_spread: float
    bytes_per_second: float
    bandwidth_spread: float
    available: float
    dropout: float
    deadline: float | None
    late: Late
    table: Table

    @property
    def limits_choice(self) -> bool:
        """Whether some clients may be away when a cohort is drawn."""
        return self.available < 1 or self.table.available is not None


def none() -> None:
    """Every client of a cohort is there and comes back; time is not simulated."""


def simulated(
    *,
    samples_per_second: float = 1000.0,
    speed_spread: float = 0.0,
    bytes_per_second: float = 1e6,
    bandwidth_spread: float = 0.0,
    available: float = 1.0,
    dropout: float = 0.0,
    deadline: float | None = None,
    late: Late = "partial",
    table: PathOption | None = None,
) -> Systems:
    """Clients with speeds and bandwidths, some of them away, slow or lost.

    Speeds are log-normal over clients, drawn from the seed, and stay: their defaults
    are round numbers, not measurements.

    Args:
      samples_per_second: Median speed of a client's training.
      speed_spread: Deviation of its natural logarithm over clients; 0: all alike.
      bytes_per_second: Median bandwidth of a client, down and up.
      bandwidth_spread: Deviation of its natural logarithm over clients.
      available: Probability that a client is there when a cohort is drawn, in (0, 1].
      dropout: Probability that a client of a cohort does not come back, in [0, 1).
      deadline: Seconds after which a round ends without those that are not done; None:
        it waits for the last one that comes back.
      late: Whoever would not be done by then sends what it has by then (partial, as in
        FedProx, arXiv 1812.06127), or counts as lost (drop).
      table: FILE.npz with some of the arrays samples_per_second [N], bytes_per_second
        [N] and available, [N] probabilities or a trace [T, N] of 0 and 1.

    Raises:
      ValueError: A number is out of range, or the file is not such a table.
    """
    positive = {
        "samples_per_second": samples_per_second,
        "bytes_per_second": bytes_per_second,
        "deadline": 1.0 if deadline is None else deadline,
    }
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: {value} is not a positive number")
    spreads = {"speed_spread": speed_spread, "bandwidth_spread": bandwidth_spread}
    for name, value in spreads.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: {value} is not a number from 0 on; try 0.5")
    if not 0 < available <= 1:
        raise ValueError(f"available: {available} is outside (0, 1]; try 0.8")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout: {dropout} is outside [0, 1); try 0.1")
    check_choice("late", late, Late)
    return Systems(
        "simulated",
        samples_per_second,
        speed_spread,
        bytes_per_second,
        bandwidth_spread,
        available,
        dropout,
        deadline,
        late,
        Table() if table is None else read_table(pathlib.Path(table)),
    )


REGISTRY: dict[str, Callable[..., Systems | None]] = {
    "none": none,
    "simulated": simulated,
}
"""Name -> factory with keyword-only options."""


def check_choice_of_clients(systems: Systems, selects: bool, is_private: bool) -> None:
    """Refuses clients that are away where a cohort must not depend on it.

    Args:
      systems: Who is there.
      selects: Whether the method chooses its own cohort.
      is_private: Whether the privacy of a draw counts on everybody's being there.

    Raises:
      ValueError: Names what is in the way.
    """
    if systems.limits_choice and (selects or is_private):
        what = "a method that chooses its cohort" if selects else "privacy"
        raise ValueError(
            f"systems.available: {what} draws from all clients; leave it at 1, and "
            "leave available out of the table (dropout is possible)"
        )


def check(systems: Systems, num_clients: int) -> None:
    """Refuses a table of another number of clients.

    Raises:
      ValueError: Names the array and both numbers.

    Example:
      >>> import numpy as np
      >>> few = simulated()._replace(table=Table(available=np.ones((4, 3))))
      >>> check(few, 5)
      Traceback (most recent call last):
      ValueError: table: available is of 3 clients, the federation has 5
    """
    for name, x in systems.table._asdict().items():
        if x is not None and x.shape[-1] != num_clients:
            raise ValueError(
                f"table: {name} is of {x.shape[-1]} clients, the federation has "
                f"{num_clients}"
            )


def speeds(systems: Systems, key: Array, num_clients: int) -> tuple[Array, Array]:
    """Samples and bytes per second of every client, float32 [N] each.

    Args:
      systems: Their distribution, or the table.
      key: Of the seed, for this purpose.
      num_clients: N.
    """
    of_training, of_network = jax.random.split(key)

    def drawn(key: Array, given: PyTree, median: float, spread: float) -> Array:
        if given is not None:
            return jnp.asarray(given)
        return median * jnp.exp(spread * jax.random.normal(key, (num_clients,)))

    table = systems.table
    return (
        drawn(
            of_training,
            table.samples_per_second,
            systems.samples_per_second,
            systems.speed_spread,
        ),
        drawn(
            of_network,
            table.bytes_per_second,
            systems.bytes_per_second,
            systems.bandwidth_spread,
        ),
    )


def present(systems: Systems, key: Array, round: Array, num_clients: int) -> Array:
    """[N] bool, who is there when a cohort is drawn.

    Args:
      systems: Their rate, or the table.
      key: Of the round, for this purpose.
      round: int32, counted from 0.
      num_clients: N.
    """
    given = systems.table.available
    if given is not None and given.ndim == 2:
        return jnp.asarray(given)[round % len(given)] > 0
    rate = systems.available if given is None else jnp.asarray(given)
    return jax.random.uniform(key, (num_clients,)) < rate
