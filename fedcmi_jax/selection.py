"""Who takes part in a round: the method's choice, or a draw."""

import jax

from fedcmi_jax import privacy, systems
from fedcmi_jax.cohort import cohort_among, named_key, poisson_cohort, uniform_cohort
from fedcmi_jax.federation import Federation
from fedcmi_jax.methods.seen import Selection
from fedcmi_jax.server import renewed, server_view
from fedcmi_jax.setup import Setup
from fedcmi_jax.types import Array, FederationState


def select_cohort(
    setup: Setup, state: FederationState, federation: Federation
) -> Selection:
    """The round's cohort: the method's choice, or drawn uniformly."""
    key = jax.random.fold_in(named_key(state.key, "sampling"), state.round)
    if setup.method.select is None:
        drawn = drawn_cohort(setup, state, key, federation)
        return Selection(*drawn, state.shared, state.memory)
    probe_key = jax.random.fold_in(named_key(state.key, "probe"), state.round)
    view = server_view(setup, state, federation, probe_key)
    selection = setup.method.select(view, key)
    memory = renewed(setup, federation, selection.memory, view.memory, state.memory)
    return selection._replace(memory=memory)


def drawn_cohort(
    setup: Setup, state: FederationState, key: Array, federation: Federation
) -> tuple[Array, Array]:
    """Ids [K] and participation [K, M] of a cohort that no method chooses."""
    size, private = setup.clients_per_round, setup.privacy
    if setup.systems is not None and setup.systems.limits_choice:
        away = jax.random.fold_in(named_key(state.key, "presence"), state.round)
        there = systems.present(
            setup.systems, away, state.round, federation.num_clients
        )
        return cohort_among(key, federation, there, size)
    if private is None or private.sampling == "uniform":
        return uniform_cohort(key, federation, size)
    n = federation.num_clients
    chance = privacy.probability(size, n)
    return poisson_cohort(key, federation, chance, setup.places(n))
