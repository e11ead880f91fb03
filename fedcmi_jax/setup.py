"""Everything about an algorithm that no round changes: one static record."""

import dataclasses
from typing import Literal

import jax
import optax
from jax.sharding import Mesh

from fedcmi_jax import aggregators, guard, privacy, systems
from fedcmi_jax.aggregators import MEAN, Aggregator
from fedcmi_jax.attacks import Attack
from fedcmi_jax.choices import check_choice
from fedcmi_jax.compression import Compression
from fedcmi_jax.local import LocalTraining
from fedcmi_jax.methods.base import Method
from fedcmi_jax.privacy import Privacy
from fedcmi_jax.systems import Systems
from fedcmi_jax.types import Model

Reduction = Literal["auto", "fixed", "fast"]
"""How the sums of a cohort are added; see ``Setup``."""

LANES = 8
"""Partial sums by default: two to eight cores share them evenly."""


@dataclasses.dataclass(frozen=True, eq=False)  # a model is not hashable, a record is
class Setup:
    """Everything about an algorithm that no round changes.

    Attributes:
      method: Hooks; ``fedcmi_jax.methods``.
      model: Pure functions; ``fedcmi_jax.models``.
      clients_per_round: K, drawn uniformly without replacement unless the method
        selects its own cohort.
      local: Epochs, batch size, optimizer.
      server_optimizer: Takes the negative mean delta as its gradient (FedOpt, arXiv
        2003.00295); None: the mean delta is added.
      chunk_size: Clients mapped together; changes speed and memory, not results
        (beyond the order of summation).
      rounds_per_call: Rounds that one call of ``run`` can do.
      clip_norm: Largest l2 norm of a client's delta, of its parameters only: statistics
        and uploads pass as they are; None: no clipping.
      mesh: ``placement.client_mesh``: devices that share every cohort. The federation
        must lie on it (``placement.replicate``, or spread by ``build_federation``), and
        ``init`` puts the state there; None: one device.
      reduction: How the cohort's sums are added. fixed: over ``lanes`` in a fixed tree,
        so that the number of devices, up to that many, does not change a bit; fast: one
        sum per device and one all-reduce; auto: fixed on CPU, fast elsewhere.
      lanes: Partial sums of a fixed reduction; memory for as many models.
      aggregator: What stands in the place of the mean; ``fedcmi_jax.aggregators``. Most
        need the cohort's updates side by side: memory of K models, on a mesh spread
        over its devices.
      attack: What some clients do to harm; ``fedcmi_jax.attacks``. None: nobody.
      guard_factor: Clients whose update is longer than this many times the median of
        earlier rounds are set aside; infinity: nobody. It goes into the state. With
        privacy there is no guard: whom it sets aside would depend on the data.
      privacy: Clipping of what clients send and noise on their sum;
        ``fedcmi_jax.privacy``. All count alike then: ``Method.weight`` has no part.
        None: the mean as it is.
      compression: What clients do to their updates to send less;
        ``fedcmi_jax.compression``. None: nothing.
      systems: Which clients are away, slow or lost, and how long a round would take;
        ``fedcmi_jax.systems``. None: nobody is, and no time passes.

    Raises:
      ValueError: A size is below 1, the norm is not positive, or the method is not
        defined for this model or cohort, or does not take a server optimizer.
    """

    method: Method
    model: Model
    clients_per_round: int
    local: LocalTraining = LocalTraining()  # noqa: RUF009 (frozen)
    server_optimizer: optax.GradientTransformation | None = None
    chunk_size: int = 1
    rounds_per_call: int = 1
    clip_norm: float | None = None
    mesh: Mesh | None = None
    reduction: Reduction = "auto"
    lanes: int = LANES
    aggregator: Aggregator = MEAN
    attack: Attack | None = None
    guard_factor: float = guard.FACTOR
    privacy: Privacy | None = None
    compression: Compression | None = None
    systems: Systems | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot work."""
        for name in ("clients_per_round", "chunk_size", "rounds_per_call", "lanes"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name}: {value} is below 1; give at least 1")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm: {self.clip_norm} is not positive; None is no clipping"
            )
        check_choice("reduction", self.reduction, Reduction)
        if self.mesh is not None and self.is_fixed and self.mesh.size > self.lanes:
            raise ValueError(
                f"lanes: {self.lanes} are too few for {self.mesh.size} devices; give "
                f"at least {self.mesh.size}, or reduction=fast"
            )
        method = self.method
        if method.needs_projectors and not self.model.has_projectors:
            raise ValueError(
                f"model: method {method.name!r} needs projectors; use "
                "models.two_projector"
            )
        if method.server_update is not None and self.server_optimizer is not None:
            raise ValueError(
                f"server_optimizer: method {method.name!r} has a server step of its "
                "own; leave it out"
            )
        if not self.guard_factor > 1:
            raise ValueError(
                f"guard_factor: {self.guard_factor} is not above 1; try 30, or inf for "
                "no guard"
            )
        method.check(self.model, self.clients_per_round)
        aggregators.check(self.aggregator, self.clients_per_round)
        if self.systems is not None:
            systems.check_choice_of_clients(
                self.systems, method.select is not None, self.privacy is not None
            )
        if self.privacy is not None and self.crafts:
            raise ValueError(
                "attack: one that is crafted from the cohort's updates is not clipped; "
                "choose scale or sign_flip, or leave out privacy"
            )
        if self.privacy is not None:
            privacy.check(
                self.privacy,
                method,
                self.model,
                self.clients_per_round,
                self.clip_norm,
                self.aggregator,
            )

    def places(self, num_clients: int) -> int:
        """K, or the places of a Poisson cohort, of N clients."""
        if self.privacy is None:
            return self.clients_per_round
        return privacy.places(self.privacy, self.clients_per_round, num_clients)

    @property
    def crafts(self) -> bool:
        """Whether attackers look at the whole cohort before they send."""
        return self.attack is not None and self.attack.craft is not None

    @property
    def stacks(self) -> bool:
        """Whether the cohort's updates are kept side by side, [K, ...]."""
        return self.crafts or self.aggregator.combine is not None

    @property
    def is_fixed(self) -> bool:
        """Whether the reduction is ``fixed`` where the algorithm runs."""
        if self.reduction != "auto":
            return self.reduction == "fixed"
        if self.mesh is not None:
            return self.mesh.devices.flat[0].platform == "cpu"
        return jax.default_backend() == "cpu"
