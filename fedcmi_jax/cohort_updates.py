"""What the server makes of a cohort's updates, before it takes its step."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from fedcmi_jax import aggregate, aggregators, guard, privacy, stacks
from fedcmi_jax.cohort import named_key
from fedcmi_jax.local import select
from fedcmi_jax.models.apart import apart
from fedcmi_jax.server import Seen
from fedcmi_jax.setup import Setup
from fedcmi_jax.types import Array, FederationState, PyTree
from fedcmi_jax.updates import Report, judged


def judged_together(
    setup: Setup,
    view: Seen,
    sent: aggregate.Sent,
    sums: aggregate.UpdateSums,
    reports: Report,
) -> tuple[aggregate.UpdateSums, Report]:
    """The round after its attackers agreed on what to send, ``sent``, [K, ...].

    Their memory is what their honest training left; their metrics count.
    """
    judge = functools.partial(judged, setup, view)
    sent, judgement = jax.vmap(judge)(sent, reports.judgement.accepted)
    accepted = judgement.accepted
    sums = sums._replace(
        num_accepted=accepted.sum().astype(jnp.float32),
        num_examples=jnp.where(accepted, sent.num_examples, 0.0).sum(),
    )
    return sums, reports._replace(judgement=judgement, sent=sent)


def trusted(
    state: FederationState, sums: aggregate.UpdateSums, reports: Report
) -> tuple[aggregate.UpdateSums, Report, Array]:
    """The sums, or none at all if the guard, still new, finds somebody out of line.

    Its clients are in the sums by then: the round is dropped as if it accepted nobody.

    Returns:
      Sums, reports, and accepted [K].
    """
    found, steps = reports.judgement, reports.steps
    foul = guard.is_foul(state.guard, found.norms, steps, found.accepted)
    holds = ~foul.any()
    # By itself on CPU: what XLA fuses it with decides over roundings, and may depend on
    # the number of devices.
    sums = jax.lax.platform_dependent(holds, sums, cpu=apart(_kept), default=_kept)
    found = found._replace(set_aside=found.set_aside | foul)
    return sums, reports._replace(judgement=found), found.accepted & holds


def _kept(holds: Array, sums: PyTree) -> PyTree:
    """The sums, or zeros."""
    return select(holds, sums, jax.tree.map(jnp.zeros_like, sums))


def combined(
    setup: Setup, state: FederationState, sums: aggregate.UpdateSums, reports: Report
) -> aggregate.Total:
    """What the clients sent, as one."""
    if setup.privacy is not None:
        return privacy.private_total(
            setup.privacy,
            _privacy_key(state, "updates"),
            privacy.bound(setup.privacy, state.privacy),
            sums,
            setup.clients_per_round,
            setup.model.frozen.params,
        )
    if not setup.stacks:
        return aggregate.mean_total(sums)
    key = jax.random.fold_in(named_key(state.key, "buckets"), state.round)
    judgement = reports.judgement
    accepted = judgement.accepted & (sums.num_accepted > 0)
    return stacks.stacked_total(setup.aggregator, key, reports.sent, accepted, sums)


def remembered(
    setup: Setup, state: FederationState, reports: Report
) -> dict[str, PyTree]:
    """What guard and aggregator know after the round; fields of the state."""
    found, steps = reports.judgement, reports.steps
    ring = guard.remember(state.guard, found.norms, steps, found.accepted)
    bounds, bound = state.aggregator, setup.aggregator.bound
    if bound is not None:
        bounds = aggregators.moved(bound, bounds, found.bounded, found.accepted)
    fields = {"guard": ring, "aggregator": bounds}
    if setup.privacy is not None:
        fields["privacy"] = privacy.moved(
            setup.privacy,
            _privacy_key(state, "count"),
            state.privacy,
            found.norms[:, 0],
            found.accepted,
            setup.clients_per_round,
        )
    return fields


def _privacy_key(state: FederationState, purpose: Literal["updates", "count"]) -> Array:
    """The key of a round's noise."""
    key = jax.random.fold_in(named_key(state.key, "privacy"), state.round)
    return jax.random.fold_in(key, ("updates", "count").index(purpose))


def clipping_of(setup: Setup, state: FederationState, reports: Report) -> PyTree:
    """What the round reports of its clipping."""
    if setup.privacy is None:
        return ()
    found = reports.judgement
    clip = privacy.bound(setup.privacy, state.privacy)
    return privacy.clipping(clip, found.norms[:, 0], found.accepted)
