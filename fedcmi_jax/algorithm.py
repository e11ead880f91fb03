"""A method, a model and a way of training, bound to pure functions and their loop."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedcmi_jax import attacks, backend, guard
from fedcmi_jax import systems as effects
from fedcmi_jax.aggregators import MEAN, Aggregator
from fedcmi_jax.attacks import Attack
from fedcmi_jax.blocks import keep_frozen, overlaid
from fedcmi_jax.cohort import check_federation, named_key
from fedcmi_jax.compression import Compression
from fedcmi_jax.compression import start as residual_start
from fedcmi_jax.federation import Federation
from fedcmi_jax.local import LocalTraining
from fedcmi_jax.methods.base import Method, personal_blocks
from fedcmi_jax.models.whole import complete
from fedcmi_jax.optimizers import without_frozen
from fedcmi_jax.placement import own_rows, place_state
from fedcmi_jax.privacy import Privacy
from fedcmi_jax.privacy import start as private_start
from fedcmi_jax.round import round
from fedcmi_jax.setup import LANES, Reduction, Setup
from fedcmi_jax.systems import Systems
from fedcmi_jax.types import (
    Array,
    FederationState,
    Model,
    Params,
    PyTree,
    RoundInfo,
    Start,
)


class FederatedAlgorithm(NamedTuple):
    """A federation's two pure functions, and their loop.

    Attributes:
      init: ``(key, federation, start=None) -> FederationState``; see ``init``.
      round: ``(state, federation) -> (state, RoundInfo)``. Neither jitted nor donated:
        wrap it in ``jax.jit``, ``lax.scan`` or ``vmap`` as you like.
      run: ``(state, federation, num_rounds) -> (state, RoundInfo)``, jitted, the state
        donated: ``num_rounds`` (at most ``rounds_per_call``, a runtime value, so that
        there is one compilation for any number) rounds as one program. The info's
        arrays are stacked [rounds_per_call, ...]; rows past ``num_rounds`` are zero.
      deploy: ``(state, federation) -> params``, the model to evaluate.
      rounds_per_call: Capacity of ``run``.
      setup: What it was bound to.
    """

    init: Callable[..., FederationState]
    round: Callable[[FederationState, Federation], tuple[FederationState, RoundInfo]]
    run: Callable[..., tuple[FederationState, RoundInfo]]
    deploy: Callable[[FederationState, Federation], Params]
    rounds_per_call: int
    setup: Setup


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
    reduction: Reduction = "auto",
    lanes: int = LANES,
    aggregator: Aggregator = MEAN,
    attack: Attack | None = None,
    guard_factor: float = guard.FACTOR,
    privacy: Privacy | None = None,
    compression: Compression | None = None,
    systems: Systems | None = None,
) -> FederatedAlgorithm:
    """Binds a method, a model and a way of training to pure ``init`` and ``round``.

    The arguments are the fields of ``Setup``, and documented there.

    Returns:
      The algorithm.

    Raises:
      ValueError: See ``Setup`` and ``models.whole.complete``.

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
    if server_optimizer is not None:
        server_optimizer = without_frozen(server_optimizer, model.frozen.params)
    setup = Setup(
        method,
        complete(model),
        clients_per_round,
        local,
        server_optimizer,
        chunk_size,
        rounds_per_call,
        clip_norm,
        mesh,
        reduction,
        lanes,
        aggregator,
        attack,
        guard_factor,
        privacy,
        compression,
        systems,
    )
    return FederatedAlgorithm(
        init=functools.partial(init, setup),
        round=functools.partial(round, setup),
        run=jax.jit(functools.partial(run, setup), donate_argnums=0),
        deploy=functools.partial(deploy, setup),
        rounds_per_call=setup.rounds_per_call,
        setup=setup,
    )


def init(
    setup: Setup, key: Array, federation: Federation, start: Start | None = None
) -> FederationState:
    """The state before the first round.

    Args:
      setup: The algorithm's.
      key: The seed's key.
      federation: The federation; it must fit the model and the cohort size.
      start: What parameters and statistics start from instead of what is drawn, such as
        ``init_from`` reads; None: all are drawn.

    Returns:
      The state; on a mesh its arrays are laid out there, and memory may have rows more
      than there are clients: ``placement.place_state``.
    """
    devices = setup.mesh.size if setup.mesh else 1
    check_federation(federation, setup.model, setup.clients_per_round, devices)
    params, batch_stats = setup.model.init(named_key(key, "init"))
    if start is not None:
        params = overlaid(params, start.params)
        batch_stats = overlaid(batch_stats, start.batch_stats)
    n = federation.num_clients
    if setup.attack is not None:
        attacks.check(setup.attack, n)
    if setup.systems is not None:
        effects.check(setup.systems, n)
    shared, memory = setup.method.init(setup.model, params, n)

    def of_all_clients(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.tile(x[None], (n,) + (1,) * x.ndim), tree)

    optimizer, bound = setup.server_optimizer, setup.aggregator.bound
    # Copies: a donated state must not have one array in two places.
    state = FederationState(
        params=params,
        batch_stats=batch_stats,
        shared=jax.tree.map(jnp.copy, shared),
        memory=jax.tree.map(jnp.copy, of_all_clients(memory)),
        personal=jax.tree.map(
            jnp.copy, of_all_clients(personal_blocks(setup.method, params))
        ),
        server_optimizer=optimizer.init(params) if optimizer else (),
        round=jnp.zeros((), jnp.int32),
        key=key,
        guard=guard.start(setup.guard_factor if setup.privacy is None else jnp.inf),
        aggregator=() if bound is None else jnp.full(3, bound.initial),
        privacy=private_start(setup.privacy),
        clock=effects.start(setup.systems),
        residual=of_all_clients(residual_start(setup.compression, setup.model, params)),
    )
    return place_state(state, setup.mesh, n)


def run(
    setup: Setup, state: FederationState, federation: Federation, num_rounds: Array
) -> tuple[FederationState, RoundInfo]:
    """``num_rounds`` rounds, at most ``rounds_per_call``, as one program.

    Args:
      setup: The algorithm's.
      state: Before them.
      federation: The federation.
      num_rounds: int32, a runtime value: one compilation serves any number.

    Returns:
      The state after them, and the infos stacked [rounds_per_call, ...], zero from
      ``num_rounds`` on.
    """
    # Jitted, so that the two uses of it share one trace.
    one_round = jax.jit(functools.partial(round, setup))
    shapes = jax.eval_shape(one_round, state, federation)[1]
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(state: FederationState, i: Array) -> tuple[FederationState, RoundInfo]:
        return jax.lax.cond(
            i < num_rounds,
            lambda state: one_round(state, federation),
            lambda state: (state, nothing),
            state,
        )

    state, infos = jax.lax.scan(body, state, jnp.arange(setup.rounds_per_call))
    # A loop's result may be laid out otherwise than what its body ends with.
    return place_state(state, setup.mesh, federation.num_clients), infos


def deploy(setup: Setup, state: FederationState, federation: Federation) -> Params:
    """The model to evaluate: personal blocks are their owners' mean by samples."""
    if not state.personal:
        return state.params
    state = own_rows(state, federation.num_clients)
    sizes = federation.sizes.astype(jnp.float32)
    owners = jax.vmap(setup.model.owned)(federation.available)

    def mean(owned: Array, block: PyTree) -> PyTree:
        weights = sizes * owned
        weights = weights / jnp.maximum(weights.sum(), 1.0)
        return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), block)

    deployed = state.params | {
        kind: jax.tree.map(mean, owners[kind], blocks)
        for kind, blocks in state.personal.items()
    }
    return keep_frozen(setup.model.frozen.params, deployed, state.params)
