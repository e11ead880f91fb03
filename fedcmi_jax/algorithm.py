"""The round, written once: method + model + local training -> compiled federation."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedcmi_jax import aggregate, backend
from fedcmi_jax.clients import (
    ClientUpdate,
    constrain,
    longest_first,
    map_clients,
    place_state,
)
from fedcmi_jax.cohort import check_federation, stream, uniform_cohort
from fedcmi_jax.federation import ClientData, Federation
from fedcmi_jax.local import LocalTraining, select, train_client
from fedcmi_jax.methods.base import Client, Cohort, Finished, Method, Server
from fedcmi_jax.types import Array, FederationState, Model, Params, PyTree, RoundInfo


class FederatedAlgorithm(NamedTuple):
    """A federation's two pure functions, and their loop.

    Attributes:
      init: ``(key, federation) -> FederationState``.
      round: ``(state, federation) -> (state, RoundInfo)``. Neither jitted nor donated:
        wrap it in ``jax.jit``, ``lax.scan`` or ``vmap`` as you like.
      run: ``(state, federation, num_rounds) -> (state, RoundInfo)``, jitted, the state
        donated: ``num_rounds`` (at most ``rounds_per_call``, a runtime value, so that
        there is one compilation for any number) rounds as one program. The info's
        arrays are stacked [rounds_per_call, ...]; rows past ``num_rounds`` are zero.
      deploy: ``(state, federation) -> params``, the model to evaluate.
      rounds_per_call: Capacity of ``run``.
    """

    init: Callable[[Array, Federation], FederationState]
    round: Callable[[FederationState, Federation], tuple[FederationState, RoundInfo]]
    run: Callable[..., tuple[FederationState, RoundInfo]]
    deploy: Callable[[FederationState, Federation], Params]
    rounds_per_call: int


def build_algorithm(
    method: Method,
    model: Model,
    *,
    clients_per_round: int,
    local: LocalTraining = LocalTraining(),  # noqa: B008 (frozen)
    server_optimizer: optax.GradientTransformation | None = None,
    chunk_size: int = 1,
    rounds_per_call: int = 1,
    clip_norm: float | None = None,
    mesh: Mesh | None = None,
) -> FederatedAlgorithm:
    """Binds a method, a model and a way of training to pure ``init`` and ``round``.

    Args:
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
      clip_norm: Largest l2 norm of a client's delta; None: no clipping.
      mesh: ``clients.client_mesh``: devices that share every cohort. State and
        federation must lie on it (``clients.replicate``); None: one device.

    Returns:
      The algorithm.

    Raises:
      ValueError: A size is below 1, or the method needs a model with projectors.

    Example:
      >>> import jax, numpy as np, fedcmi_jax as fc
      >>> data = fc.data.load("synthetic", train_samples=64, test_samples=16)
      >>> parts = fc.partition.iid(data.train, 4, np.random.default_rng(0))
      >>> federation = fc.build_federation(data, parts)
      >>> encoders = {m: fc.models.mlp(features=8) for m in data.modalities}
      >>> model = fc.models.two_projector(encoders, data.shapes, 10, width=8)
      >>> algorithm = fc.build_algorithm(
      ...     fc.methods.fedcmi(), model, clients_per_round=2)
      >>> state = algorithm.init(jax.random.key(0), federation)
      >>> state, info = jax.jit(algorithm.round)(state, federation)
      >>> int(state.round)
      1
    """
    backend.warn_if_unguarded()
    for name, value in (
        ("clients_per_round", clients_per_round),
        ("chunk_size", chunk_size),
        ("rounds_per_call", rounds_per_call),
    ):
        if value < 1:
            raise ValueError(f"{name}: {value} is below 1; give at least 1")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm: {clip_norm} is not positive; None is no clipping")
    if method.needs_projectors and not model.has_projectors:
        raise ValueError(
            f"model: method {method.name!r} needs projectors; use models.two_projector"
        )
    method.check(model, clients_per_round)

    def init(key: Array, federation: Federation) -> FederationState:
        check_federation(federation, model, clients_per_round)
        params, batch_stats = model.init(stream(key, "init"))
        memory = method.init_client(model, params)
        n = federation.num_clients
        state = FederationState(
            params=params,
            batch_stats=batch_stats,
            # Copies: a donated state must not have one array in two places.
            shared=jax.tree.map(jnp.copy, method.init_shared(model, params, n)),
            memory=jax.tree.map(
                lambda x: jnp.copy(jnp.tile(x[None], (n,) + (1,) * x.ndim)), memory
            ),
            server_optimizer=server_optimizer.init(params) if server_optimizer else (),
            round=jnp.zeros((), jnp.int32),
            key=key,
        )
        return place_state(state, mesh, n)

    def view(
        shared: tuple[FederationState, Federation, Array],
        id: Array,
        use: Array,
        memory: PyTree,
        max_batches: Array,
    ) -> tuple[Client, Array, Array]:
        """What hooks see of a client, its key, and whether it is one."""
        state, federation, round_key = shared
        is_real = id < federation.num_clients
        sizes = federation.sizes.at[id].get(mode="clip")
        probes = federation.probe_sizes.at[id].get(mode="clip")
        data = ClientData(
            federation=federation,
            offset=federation.offsets.at[id].get(mode="clip"),
            num_examples=jnp.where(is_real, sizes, 0),
            num_probe=jnp.where(is_real, probes, 0),
            available=use,
            batch_size=local.batch_size,
            max_batches=max_batches,
        )
        client = Client(
            model=model,
            params=method.start(state.params, memory),
            batch_stats=state.batch_stats,
            shared=state.shared,
            memory=memory,
            data=data,
            round=state.round,
            learning_rate=local.rate(state.round),
            augmented=local.augment is not None,
            has=federation.available.at[id].get(mode="clip"),
        )
        return client, jax.random.fold_in(round_key, id), is_real

    def client_update(
        shared: tuple[FederationState, Federation, Array],
        id: Array,
        use: Array,
        memory: PyTree,
        max_batches: Array,
    ) -> ClientUpdate:
        state, _, _ = shared
        client, key, is_real = view(shared, id, use, memory, max_batches)
        result = train_client(method, local, client, key)
        owned = method.owned(model.owned(use), use)
        delta = jax.tree.map(jnp.subtract, result.params, state.params)
        stats_delta = jax.tree.map(jnp.subtract, result.batch_stats, state.batch_stats)
        checked = (result.params, stats_delta, result.upload, result.memory)
        weight = jnp.asarray(method.weight(client), jnp.float32)
        fair = jnp.isfinite(weight) & (weight >= 0)
        accepted = is_real & fair & aggregate.all_finite(checked)
        if clip_norm is not None:
            delta = aggregate.clip_by_norm(delta, owned, clip_norm)
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
            memory=jax.tree.map(
                lambda new, old: jnp.where(accepted, new, old), result.memory, memory
            ),
            accepted=accepted,
        )

    def in_order(
        federation: Federation, ids: Array, use: Array
    ) -> tuple[Array, Array, Array]:
        """Clients longest first: ids, modalities, batches per pass."""
        total = federation.sizes[ids] + federation.probe_sizes[ids]
        batches = -(-total // local.batch_size)
        order = longest_first(ids, batches)
        return ids[order], use[order], batches[order]

    def map_over(update, shared, ids, use, batches, memory, federation):
        return map_clients(
            update,
            shared,
            ids,
            use,
            batches,
            memory,
            num_clients=federation.num_clients,
            chunk_size=chunk_size,
            mesh=mesh,
        )

    def server_view(
        state: FederationState, federation: Federation, key: Array
    ) -> Server:
        """What ``probe`` and ``select`` see; ``key`` is for the clients they map."""
        shared = (state._replace(memory=()), federation, key)

        def mapped(fn: Callable[[Client, Array], PyTree], ids: Array, use: Array):
            def update(shared, id, use, memory, max_batches) -> ClientUpdate:
                client, key, is_real = view(shared, id, use, memory[0], max_batches)
                return ClientUpdate((), (memory[0], fn(client, key)), is_real)

            # Results travel as memory does: a row per client, written where it lives.
            n = federation.num_clients
            shapes = jax.eval_shape(
                lambda: fn(
                    *view(
                        shared,
                        jnp.zeros((), jnp.int32),
                        jnp.zeros_like(use[0]),
                        jax.tree.map(lambda x: x[0], state.memory),
                        jnp.zeros((), jnp.int32),
                    )[:2]
                )
            )
            rows = jax.tree.map(lambda s: jnp.zeros((n, *s.shape), s.dtype), shapes)
            ordered = in_order(federation, ids, use)
            results = map_over(
                update, shared, *ordered, (state.memory, rows), federation
            )
            return jax.tree.map(lambda x: x[ids], results[1][1])

        def train(other: Method, epochs: int, client: Client, key: Array) -> Finished:
            briefly = dataclasses.replace(local, epochs=epochs)
            result = train_client(other, briefly, client, key)
            steps = epochs * -(-client.data.num_examples // local.batch_size)
            return Finished(result.params, result.batch_stats, steps)

        return Server(
            model=model,
            params=state.params,
            batch_stats=state.batch_stats,
            shared=state.shared,
            memory=state.memory,
            federation=federation,
            cohort_size=clients_per_round,
            round=state.round,
            map=mapped,
            train=train,
        )

    def round(
        old_state: FederationState, federation: Federation
    ) -> tuple[FederationState, RoundInfo]:
        state = old_state
        sampling_key = jax.random.fold_in(stream(state.key, "sampling"), state.round)
        round_key = jax.random.fold_in(stream(state.key, "local"), state.round)
        probe_key = jax.random.fold_in(stream(state.key, "probe"), state.round)
        if method.probe is not None:
            server = server_view(state, federation, probe_key)
            shared, memory = method.probe(server, sampling_key)
            state = state._replace(shared=shared, memory=memory)
        if method.select is not None:
            server = server_view(state, federation, probe_key)
            ids, use = method.select(server, sampling_key)
        else:
            ids, use = uniform_cohort(sampling_key, federation, clients_per_round)
        ids, use, batches = in_order(federation, ids, use)

        sums, memory, accepted = map_over(
            client_update,
            (state._replace(memory=()), federation, round_key),
            ids,
            use,
            batches,
            state.memory,
            federation,
        )
        params, optimizer_state = aggregate.apply_server_update(
            state.params, sums, server_optimizer, state.server_optimizer
        )
        stats = aggregate.mean_delta(sums.stats, sums.stats_weights)
        cohort = Cohort(model, federation, ids, use, accepted, sums.num_accepted)
        shared = method.merge(state.shared, sums.upload, cohort)
        if method.conclude is not None:
            shared, memory = method.conclude(shared, memory, cohort)
        any_accepted = sums.num_accepted > 0
        shared = select(any_accepted, shared, old_state.shared)
        if method.probe is not None or method.conclude is not None:
            memory = select(any_accepted, memory, old_state.memory)
        new_state = FederationState(
            params=params,
            batch_stats=jax.tree.map(jnp.add, state.batch_stats, stats),
            shared=shared,
            memory=memory,
            server_optimizer=optimizer_state,
            round=state.round + 1,
            key=state.key,
        )
        info = RoundInfo(
            cohort=ids,
            accepted=accepted,
            rejected=(~accepted & (ids < federation.num_clients)).sum(),
            num_examples=sums.num_examples,
            learning_rate=local.rate(state.round),
            metrics=sums.metrics,
        )
        new_state = place_state(new_state, mesh, federation.num_clients)
        return new_state, constrain(info, mesh)

    def run(
        state: FederationState, federation: Federation, num_rounds: Array
    ) -> tuple[FederationState, RoundInfo]:
        shapes = jax.eval_shape(round, state, federation)[1]
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def body(state: FederationState, i: Array):
            return jax.lax.cond(
                i < num_rounds,
                lambda state: round(state, federation),
                lambda state: (state, nothing),
                state,
            )

        return jax.lax.scan(body, state, jnp.arange(rounds_per_call))

    def deploy(state: FederationState, federation: Federation) -> Params:
        return method.deploy(state.params, state.memory, federation)

    return FederatedAlgorithm(
        init=init,
        round=round,
        run=jax.jit(run, donate_argnums=0),
        deploy=deploy,
        rounds_per_call=rounds_per_call,
    )
