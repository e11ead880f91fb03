"""One round, written once: select, map the clients, aggregate, merge."""

import functools

import jax
import jax.numpy as jnp

from fedcmi_jax import aggregate
from fedcmi_jax.blocks import where_owned
from fedcmi_jax.clients import ClientUpdate
from fedcmi_jax.cohort import named_key, uniform_cohort
from fedcmi_jax.federation import Federation
from fedcmi_jax.local import select, train_client
from fedcmi_jax.methods.base import personal_blocks
from fedcmi_jax.methods.seen import Cohort, Kept, Selection
from fedcmi_jax.placement import constrain, place_state, trim
from fedcmi_jax.server import (
    Seen,
    Setup,
    client_view,
    in_order,
    map_over,
    renewed,
    seen,
    server_view,
)
from fedcmi_jax.types import Array, FederationState, Params, PyTree, RoundInfo


def round(
    setup: Setup, state: FederationState, federation: Federation
) -> tuple[FederationState, RoundInfo]:
    """One round: select, map the clients, aggregate, merge.

    Args:
      setup: The algorithm's.
      state: Before the round.
      federation: The federation.

    Returns:
      The state after it, and what it reports. A round that accepts nobody changes
      nothing but the count of rounds.
    """
    selection = select_cohort(setup, state, federation)
    cohort, sums, kept = train_cohort(setup, state, federation, selection)

    upload = jax.lax.optimization_barrier(aggregate.mean_upload(sums.upload))
    params, shared, optimizer_state = server_step(setup, state, cohort, sums, upload)
    stats = aggregate.mean_delta(sums.stats, sums.stats_weights)
    stats = jax.lax.optimization_barrier(stats)
    shared, memory = setup.method.merge(cohort._replace(shared=shared), upload)
    memory = renewed(setup, federation, memory, cohort.memory, kept.memory)

    # Clients that are not accepted keep their memory: only what the method's server
    # hooks changed has to be taken back if nobody is.
    any_accepted = sums.num_accepted > 0
    chosen, before = map(jax.tree.leaves, (selection.memory, state.memory))
    unchanged = all(a is b for a, b in zip(chosen, before, strict=True))
    old_memory = kept.memory if unchanged else state.memory
    new_state = FederationState(
        params=params,
        batch_stats=jax.tree.map(jnp.add, state.batch_stats, stats),
        shared=select(any_accepted, shared, state.shared),
        memory=select(any_accepted, memory, old_memory),
        personal=kept.personal,
        server_optimizer=optimizer_state,
        round=state.round + 1,
        key=state.key,
    )
    info = RoundInfo(
        cohort=cohort.ids,
        accepted=cohort.accepted,
        rejected=(~cohort.accepted & (cohort.ids < federation.num_clients)).sum(),
        num_examples=sums.num_examples,
        learning_rate=setup.local.rate(state.round),
        metrics=sums.metrics,
    )
    new_state = place_state(new_state, setup.mesh, federation.num_clients)
    return new_state, constrain(info, setup.mesh)


def select_cohort(
    setup: Setup, state: FederationState, federation: Federation
) -> Selection:
    """The round's cohort: the method's choice, or drawn uniformly."""
    key = jax.random.fold_in(named_key(state.key, "sampling"), state.round)
    if setup.method.select is None:
        drawn = uniform_cohort(key, federation, setup.clients_per_round)
        return Selection(*drawn, state.shared, state.memory)
    probe_key = jax.random.fold_in(named_key(state.key, "probe"), state.round)
    view = server_view(setup, state, federation, probe_key)
    selection = setup.method.select(view, key)
    memory = renewed(setup, federation, selection.memory, view.memory, state.memory)
    return selection._replace(memory=memory)


def train_cohort(
    setup: Setup,
    state: FederationState,
    federation: Federation,
    selection: Selection,
) -> tuple[Cohort, aggregate.UpdateSums, Kept]:
    """Every selected client's local training, longest client first.

    Returns:
      The cohort with what its clients remember now, their sums, and what is kept of all
      clients.
    """
    members = in_order(setup, federation, selection.ids, selection.participation)
    selected = state._replace(shared=selection.shared, memory=selection.memory)
    round_key = jax.random.fold_in(named_key(state.key, "local"), state.round)
    sums, kept, accepted = map_over(
        setup,
        functools.partial(client_update, setup),
        seen(selected, federation, round_key),
        members,
        Kept(selected.memory, selected.personal),
    )
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
    return cohort, sums, kept


def client_update(
    setup: Setup,
    seen: Seen,
    id: Array,
    participation: Array,
    kept: Kept,
    max_batches: Array,
) -> ClientUpdate:
    """One client's round: local training, and what it sends.

    Args:
      setup: The algorithm's.
      seen: What all clients see.
      id: int32; N is nobody, who sends zeros.
      participation: [M] float32, modalities that it trains with.
      kept: What is kept of it between rounds.
      max_batches: int32, batches that a pass over its data may take.

    Returns:
      Its contribution to the round's sums, what is kept of it, and whether it is
      accepted: its update is finite, its weight finite and not negative.
    """
    method, state = setup.method, seen.state
    view = client_view(setup, seen, id, participation, kept, max_batches)
    client, key, is_real = view
    result = train_client(method, setup.local, client, key)
    owned = setup.model.owned(participation)
    owned = owned | {
        kind: jax.tree.map(jnp.zeros_like, owned[kind]) for kind in method.personal
    }
    delta = jax.tree.map(jnp.subtract, result.params, state.params)
    stats_delta = jax.tree.map(jnp.subtract, result.batch_stats, state.batch_stats)
    weight = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), result.weight)
    checked = (result.params, stats_delta, result.upload, result.memory)
    accepted = is_real & aggregate.is_weight(weight) & aggregate.all_finite(checked)
    if setup.clip_norm is not None:
        delta = aggregate.clip_by_norm(delta, owned, setup.clip_norm)
    return ClientUpdate(
        sums=aggregate.client_sums(
            delta,
            stats_delta,
            owned,
            weight,
            client.data.num_examples,
            result.upload,
            result.metrics,
            accepted,
        ),
        memory=select(
            accepted, Kept(result.memory, personal_blocks(method, result.params)), kept
        ),
        accepted=accepted,
    )


def server_step(
    setup: Setup,
    state: FederationState,
    cohort: Cohort,
    sums: aggregate.UpdateSums,
    upload: PyTree,
) -> tuple[Params, PyTree, PyTree]:
    """The new parameters, the method's server-side state, the optimizer's state.

    Blocks that no accepted client owns stay as they are.
    """
    # Kept apart from the step, so that no rounding depends on what XLA fuses it with.
    delta = jax.lax.optimization_barrier(
        aggregate.mean_delta(sums.deltas, sums.weights)
    )
    if setup.method.server_update is not None:
        params, shared = setup.method.server_update(cohort, delta, upload)
        params = where_owned(sums.weights, params, state.params)
        return params, shared, state.server_optimizer
    params, optimizer_state = aggregate.optimizer_step(
        state.params,
        delta,
        sums.weights,
        setup.server_optimizer,
        state.server_optimizer,
        sums.num_accepted > 0,
    )
    return params, cohort.shared, optimizer_state
