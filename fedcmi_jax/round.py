"""One round, written once: select, map the clients, aggregate, merge."""

import functools

import jax
import jax.numpy as jnp

from fedcmi_jax import aggregate, attacks, guard, systems
from fedcmi_jax.blocks import keep_frozen, where_owned
from fedcmi_jax.cohort import named_key
from fedcmi_jax.cohort_updates import (
    clipping_of,
    combined,
    judged_together,
    remembered,
    trusted,
)
from fedcmi_jax.federation import Federation
from fedcmi_jax.local import select
from fedcmi_jax.methods.seen import Cohort, Kept, Selection
from fedcmi_jax.placement import constrain, place_state, trim
from fedcmi_jax.selection import select_cohort
from fedcmi_jax.server import in_order, map_over, renewed, seen
from fedcmi_jax.setup import Setup
from fedcmi_jax.types import FederationState, Params, PyTree, RoundInfo
from fedcmi_jax.updates import Report, Trainer, client_update, trained


def round(
    setup: Setup,
    state: FederationState,
    federation: Federation,
    train: Trainer = trained,
) -> tuple[FederationState, RoundInfo]:
    """One round: select, map the clients, aggregate, merge.

    Args:
      setup: The algorithm's.
      state: Before the round.
      federation: The federation.
      train: One client's training, or what looks up the result of one elsewhere.

    Returns:
      The state after it, and what it reports. A round that accepts nobody changes
      nothing but the count of rounds.
    """
    selection = select_cohort(setup, state, federation)
    cohort, sums, kept, reports = train_cohort(
        setup, state, federation, selection, train
    )
    total = combined(setup, state, sums, reports)
    params, shared, optimizer_state = server_step(setup, state, cohort, total)
    stats = jax.tree.map(jnp.add, state.batch_stats, total.stats)
    shared, memory = setup.method.merge(cohort._replace(shared=shared), total.upload)
    memory = renewed(setup, federation, memory, cohort.memory, kept.memory)

    # Clients that are not accepted keep their memory: only what the method's server
    # hooks changed has to be taken back if nobody is.
    any_accepted = sums.num_accepted > 0
    chosen, before = map(jax.tree.leaves, (selection.memory, state.memory))
    unchanged = all(a is b for a, b in zip(chosen, before, strict=True))
    old_memory = kept.memory if unchanged else state.memory
    frozen = setup.model.frozen
    new_state = FederationState(
        params=keep_frozen(frozen.params, params, state.params),
        batch_stats=keep_frozen(frozen.batch_stats, stats, state.batch_stats),
        shared=select(any_accepted, shared, state.shared),
        memory=select(any_accepted, memory, old_memory),
        personal=kept.personal,
        residual=kept.residual,
        server_optimizer=optimizer_state,
        round=state.round + 1,
        key=state.key,
        **remembered(setup, state, reports),
    )
    is_real = cohort.ids < federation.num_clients
    clock: PyTree = ()
    if setup.systems is not None:
        clock = systems.clock(setup.systems, state.clock, reports.outcome, is_real)
        new_state = new_state._replace(clock=clock.seconds)
        is_real &= clock.returned
    judgement = reports.judgement
    info = RoundInfo(
        cohort=cohort.ids,
        accepted=cohort.accepted,
        rejected=(~cohort.accepted & is_real).sum(),
        set_aside=judgement.set_aside,
        skipped=judgement.accepted.any() & ~any_accepted,
        blocks_kept=total.blocks_kept,
        client_loss=reports.loss,
        num_examples=sums.num_examples,
        learning_rate=setup.local.rate(state.round),
        metrics=sums.metrics,
        privacy=clipping_of(setup, state, reports),
        systems=clock,
    )
    new_state = place_state(new_state, setup.mesh, federation.num_clients)
    return new_state, constrain(info, setup.mesh)


def train_cohort(
    setup: Setup,
    state: FederationState,
    federation: Federation,
    selection: Selection,
    train: Trainer,
) -> tuple[Cohort, aggregate.UpdateSums, Kept, Report]:
    """Every selected client's local training, longest client first.

    Returns:
      The cohort with what its clients remember now, their sums, what is kept of all
      clients, and the reports, leaves [K, ...].
    """
    members = in_order(setup, federation, selection.ids, selection.participation)
    selected = state._replace(shared=selection.shared, memory=selection.memory)
    round_key = jax.random.fold_in(named_key(state.key, "local"), state.round)
    attackers: PyTree = ()
    if setup.attack is not None:
        key = named_key(state.key, "attack")
        attackers = attacks.attackers(setup.attack, key, federation.num_clients)
    view = seen(selected, federation, round_key)
    view = view._replace(reach=guard.reach(state.guard), attackers=attackers)
    if setup.systems is not None:
        key = named_key(state.key, "speeds")
        found = systems.speeds(setup.systems, key, federation.num_clients)
        view = view._replace(speeds=found)
    sums, kept, reports = map_over(
        setup,
        functools.partial(client_update, setup, train),
        view,
        members,
        Kept(selected.memory, selected.personal, selected.residual),
    )
    if setup.attack is not None and setup.crafts:
        sent = attacks.crafted(
            setup.attack,
            reports.sent,
            reports.judgement.accepted,
            attackers.at[members[0]].get(mode="fill", fill_value=False),
        )
        sums, reports = judged_together(setup, view, sent, sums, reports)
    sums, reports, accepted = trusted(state, sums, reports)
    cohort = Cohort(
        model=setup.model,
        federation=federation,
        params=state.params,
        shared=selected.shared,
        memory=trim(kept.memory, federation.num_clients),
        ids=members[0],
        participation=members[1],
        accepted=accepted,
        num_accepted=sums.num_accepted,
    )
    return cohort, sums, kept, reports


def server_step(
    setup: Setup,
    state: FederationState,
    cohort: Cohort,
    total: aggregate.Total,
) -> tuple[Params, PyTree, PyTree]:
    """The new parameters, the method's server-side state, the optimizer's state.

    Blocks that no accepted client owns stay as they are.
    """
    delta, weights = total.delta, total.weights
    if setup.method.server_update is not None:
        params, shared = setup.method.server_update(cohort, delta, total.upload)
        params = where_owned(weights, params, state.params)
        return params, shared, state.server_optimizer
    # The noise alone moves a private model, or an empty cohort would show.
    moves = cohort.num_accepted > 0 if setup.privacy is None else jnp.asarray(True)
    params, optimizer_state = aggregate.optimizer_step(
        state.params,
        delta,
        weights,
        setup.server_optimizer,
        state.server_optimizer,
        moves,
    )
    return params, cohort.shared, optimizer_state
