"""What a round's functions share, and what hooks see of clients and server."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax import exchange
from fedcmi_jax.clients import ClientUpdate, longest_first, map_clients
from fedcmi_jax.federation import ClientData, Federation
from fedcmi_jax.local import num_steps, train_client
from fedcmi_jax.methods.base import Method, own_model
from fedcmi_jax.methods.seen import Client, Kept, LocalUpdate, Server
from fedcmi_jax.placement import place_rows, rows_on, trim
from fedcmi_jax.setup import Setup
from fedcmi_jax.types import Array, FederationState, PyTree


class Seen(NamedTuple):
    """What all clients of a round see.

    Attributes:
      state: The state, without what is one client's.
      federation: The federation.
      key: The round's key; a client's own is folded out of it.
      reach: ``guard.Reach`` of the round's training; () where nobody trains.
      attackers: [N] bool; () without an attack.
      speeds: ``systems.speeds``, [N] each; () without.
    """

    state: FederationState
    federation: Federation
    key: Array
    reach: PyTree = ()
    attackers: PyTree = ()
    speeds: PyTree = ()


def seen(state: FederationState, federation: Federation, key: Array) -> Seen:
    """What all clients see; the clients' own stays out, for it is mapped."""
    return Seen(
        state._replace(memory=(), personal={}, guard=(), residual=()), federation, key
    )


def in_order(
    setup: Setup, federation: Federation, ids: Array, participation: Array
) -> tuple[Array, Array, Array]:
    """Clients longest first: ids [K], participation [K, M], batches per pass [K]."""
    sizes = federation.sizes + federation.probe_sizes
    total = sizes.at[ids].get(mode="fill", fill_value=0)  # of nobody: none
    batches = -(-total // setup.local.batch_size)
    order = longest_first(ids, batches)
    return ids[order], participation[order], batches[order]


def client_view(
    setup: Setup,
    seen: Seen,
    id: Array,
    participation: Array,
    kept: Kept,
    max_batches: Array,
) -> tuple[Client, Array, Array]:
    """What hooks see of a client.

    Args:
      setup: The algorithm's.
      seen: What all clients see.
      id: int32; N is nobody, who has no samples.
      participation: [M] float32, modalities that it uses.
      kept: Its own.
      max_batches: int32, batches that a pass over its data may take.

    Returns:
      The client, its key, and whether it is one.
    """
    state, federation, round_key = seen.state, seen.federation, seen.key
    is_real = id < federation.num_clients
    sizes = federation.sizes.at[id].get(mode="clip")
    probes = federation.probe_sizes.at[id].get(mode="clip")
    data = ClientData(
        federation=federation,
        offset=federation.offsets.at[id].get(mode="clip"),
        num_examples=jnp.where(is_real, sizes, 0),
        num_probe=jnp.where(is_real, probes, 0),
        available=participation,
        batch_size=setup.local.batch_size,
        max_batches=max_batches,
    )
    client = Client(
        model=setup.model,
        params=own_model(setup.method, state.params, kept),
        batch_stats=state.batch_stats,
        shared=state.shared,
        memory=kept.memory,
        data=data,
        round=state.round,
        learning_rate=setup.local.rate(state.round),
        num_steps=num_steps(setup.local, data.num_examples),
        augmented=setup.local.augment is not None,
        has=federation.available.at[id].get(mode="clip"),
    )
    return client, jax.random.fold_in(round_key, id), is_real


def map_over(
    setup: Setup,
    update: Callable[..., ClientUpdate],
    seen: Seen,
    cohort: tuple[Array, Array, Array],
    kept: PyTree,
) -> tuple[PyTree, PyTree, PyTree]:
    """``clients.map_clients`` with the algorithm's chunks and devices."""
    map_cohort = functools.partial(
        map_clients,
        update,
        num_clients=seen.federation.num_clients,
        chunk_size=setup.chunk_size,
        lanes=setup.lanes if setup.is_fixed else 0,
        mesh=setup.mesh,
    )
    if seen.federation.shards == 1:
        return map_cohort(seen, *cohort, kept)

    def fetch(seen: Seen, part: exchange.Samples, ids: Array) -> Seen:
        return seen._replace(federation=exchange.collect(seen.federation, part, ids))

    tables, samples = exchange.split(seen.federation)
    seen = seen._replace(federation=tables)
    return map_cohort(seen, *cohort, kept, spread=samples, fetch=fetch)


def renewed(
    setup: Setup, federation: Federation, new: PyTree, seen: PyTree, kept: PyTree
) -> PyTree:
    """What a server hook made of the clients' memory, spread over the devices again.

    Args:
      setup: The algorithm's.
      federation: The federation.
      new: The hook's result, leaves [N, ...].
      seen: What it saw.
      kept: The same with the rows that ``place_rows`` appends.

    Returns:
      Leaves like ``kept``: its own where the hook left what it saw.
    """

    def spread(new: Array, seen: Array, kept: Array) -> Array:
        if new is seen:
            return kept
        return place_rows(new, setup.mesh, federation.num_clients)

    return jax.tree.map(spread, new, seen, kept)


def server_view(
    setup: Setup, state: FederationState, federation: Federation, key: Array
) -> Server:
    """What ``Method.select`` sees; ``key`` is for the clients that it maps."""
    everybody = Kept(state.memory, state.personal)
    shared = seen(state, federation, key)

    def mapped(
        fn: Callable[[Client, Array], PyTree], ids: Array, participation: Array
    ) -> PyTree:
        return _measured(setup, shared, everybody, fn, ids, participation)

    def train(method: Method, epochs: int, client: Client, key: Array) -> LocalUpdate:
        briefly = dataclasses.replace(setup.local, epochs=epochs)
        client = client._replace(num_steps=num_steps(briefly, client.data.num_examples))
        result = train_client(method, briefly, client, key)
        return LocalUpdate(result.params, result.batch_stats)

    return Server(
        model=setup.model,
        params=state.params,
        batch_stats=state.batch_stats,
        shared=state.shared,
        memory=trim(state.memory, federation.num_clients),
        federation=federation,
        cohort_size=setup.clients_per_round,
        round=state.round,
        map=mapped,
        train=train,
    )


def _measured(
    setup: Setup,
    seen: Seen,
    everybody: Kept,
    fn: Callable[[Client, Array], PyTree],
    ids: Array,
    participation: Array,
) -> PyTree:
    """``fn`` of every client, [n, ...]; nothing is trained or kept.

    Results travel as what is kept does: a row per client, written where it lives.
    """
    n = rows_on(setup.mesh, seen.federation.num_clients)

    def update(seen, id, participation, kept, max_batches) -> ClientUpdate:
        view = client_view(setup, seen, id, participation, kept[0], max_batches)
        client, key, is_real = view
        return ClientUpdate((), (kept[0], fn(client, key)), is_real)

    first = jax.tree.map(lambda x: x[0], everybody)
    nothing = jnp.zeros((), jnp.int32)
    none = jnp.zeros_like(participation[0])
    shapes = jax.eval_shape(
        lambda: update(seen, nothing, none, (first, ()), nothing).memory[1]
    )
    rows = jax.tree.map(lambda s: jnp.zeros((n, *s.shape), s.dtype), shapes)
    cohort = in_order(setup, seen.federation, ids, participation)
    _, kept, _ = map_over(setup, update, seen, cohort, (everybody, rows))
    return jax.tree.map(lambda x: x[ids], kept[1])
