"""One client's round where its samples are: pure functions over a federation of N rows.

A deployed client builds the tables of the whole federation with its own row only, so
that ``updates.trained`` finds its samples under its id, and its keys are those of the
simulation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax import compression
from fedcmi_jax.assembly import coarse_capacity
from fedcmi_jax.cohort import named_key
from fedcmi_jax.deploy.plan import Plan, no_samples
from fedcmi_jax.federation import Federation
from fedcmi_jax.methods.base import personal_blocks
from fedcmi_jax.methods.seen import Kept
from fedcmi_jax.server import seen
from fedcmi_jax.setup import Setup
from fedcmi_jax.types import Array, FederationState, Params, PyTree, Sums
from fedcmi_jax.updates import trained


class Samples(NamedTuple):
    """One client's own samples, on its host.

    Attributes:
      inputs: Modality -> [n, ...], training samples first, held-out ones behind them.
      labels: [n] int32.
      available: [M] bool, modalities that it has.
      num_probe: Samples held out for what a method measures.
      present: [n, M] bool, which modalities each sample has; None: all that it has.
    """

    inputs: dict[str, Any]
    labels: np.ndarray
    available: np.ndarray
    num_probe: int = 0
    present: np.ndarray | None = None


class Received(NamedTuple):
    """What a client gets of the server for a round.

    Attributes:
      params: Global parameters.
      batch_stats: Global BatchNorm statistics.
      shared: The method's server-side state.
      round: int32, counted from 0.
      learning_rate: float32.
    """

    params: Params
    batch_stats: Params
    shared: PyTree
    round: Array
    learning_rate: Array


class Answer(NamedTuple):
    """What a client sends back; stacked on the server, leaves [K, ...].

    Attributes:
      delta: w_i - w_G.
      stats: The same for BatchNorm statistics.
      weight: p_i, a scalar or a prefix tree.
      upload: The method's upload.
      metrics: Sums over its steps.
      sound: bool, whether all of it, and its memory, is finite.
    """

    delta: Params
    stats: Params
    weight: PyTree
    upload: PyTree
    metrics: Sums
    sound: PyTree

    @property
    def arrays(self) -> "Answer":
        """Without its metrics, which travel as numbers."""
        return self._replace(metrics={}, sound=())


LocalRound = Callable[[Received, Federation, Array, Kept], tuple[Answer, Kept]]
"""``(received, own federation, id, kept) -> (answer, kept if it is accepted)``."""


def own_federation(plan: Plan, id: int, samples: Samples) -> Federation:
    """A client's samples under its id, in tables of N rows of which the others are 0.

    Args:
      plan: The deployment's.
      id: The client's.
      samples: Its own.

    Raises:
      ValueError: It has no training sample.
    """
    count = len(samples.labels)
    if count - samples.num_probe < 1:
        raise ValueError(f"client {id} has no sample to train on; start it without")

    def row(value: Any, dtype: Any) -> Array:
        table = np.zeros((plan.clients, *np.shape(value)), dtype)
        table[id] = value
        return jnp.asarray(table)

    present = samples.present
    return Federation(
        inputs={
            m: jax.tree.map(jnp.asarray, samples.inputs[m]) for m in plan.modalities
        },
        labels=jnp.asarray(samples.labels, jnp.int32),
        offsets=row(0, np.int32),
        sizes=row(count - samples.num_probe, np.int32),
        probe_sizes=row(samples.num_probe, np.int32),
        available=row(samples.available, np.float32),
        max_size=coarse_capacity(count),
        modalities=plan.modalities,
        present=None if present is None else jnp.asarray(present, jnp.uint8),
    )


def first_kept(plan: Plan, setup: Setup) -> Kept:
    """What is kept of a client before its first round."""

    @jax.jit
    def first(key: Array) -> Kept:
        params, _ = setup.model.init(named_key(key, "init"))
        memory = setup.method.init(setup.model, params, plan.clients)[1]
        residual = compression.start(setup.compression, setup.model, params)
        return Kept(memory, personal_blocks(setup.method, params), residual)

    return first(plan.key)


def local_round(setup: Setup, key: Array) -> LocalRound:
    """One client's part of a round, compiled when it is first called.

    Args:
      setup: The algorithm's; its learning rate is the server's to say.
      key: The PRNG key of the run's seed, out of which a client's are folded.
    """

    @jax.jit
    def run(
        received: Received, federation: Federation, id: Array, kept: Kept
    ) -> tuple[Answer, Kept]:
        local = dataclasses.replace(setup.local, learning_rate=received.learning_rate)
        state = FederationState(
            params=received.params,
            batch_stats=received.batch_stats,
            shared=received.shared,
            memory=(),
            personal={},
            server_optimizer=(),
            round=received.round,
            key=key,
        )
        round_key = jax.random.fold_in(named_key(key, "local"), received.round)
        samples = federation.sizes[id] + federation.probe_sizes[id]
        found = trained(
            dataclasses.replace(setup, local=local),
            seen(state, federation, round_key),
            id,
            federation.available[id],
            kept,
            -(-samples // local.batch_size),
        )
        sent = found.sent
        answer = Answer(
            sent.delta, sent.stats, sent.weight, sent.upload, found.metrics, found.sound
        )
        return answer, found.kept

    return run


class Shapes(NamedTuple):
    """Shapes of what travels, and of what stays; trees of ``jax.ShapeDtypeStruct``.

    Attributes:
      received: What a client gets.
      answer: What it sends.
      kept: What is kept of it.
    """

    received: Received
    answer: Answer
    kept: Kept


def shapes_of(plan: Plan, setup: Setup) -> Shapes:
    """The shapes of a deployment, the same on both sides; traces a client's round."""
    data = no_samples(plan, 1).train
    everything = np.ones(len(plan.modalities), bool)
    federation = own_federation(plan, 0, Samples(data.inputs, data.labels, everything))
    kept = jax.eval_shape(lambda: first_kept(plan, setup))

    def received() -> Received:
        params, stats = setup.model.init(plan.key)
        shared = setup.method.init(setup.model, params, plan.clients)[0]
        nothing = jnp.zeros(())
        return Received(params, stats, shared, nothing.astype(jnp.int32), nothing)

    sent = jax.eval_shape(received)
    run = local_round(setup, plan.key)
    answer, _ = jax.eval_shape(run, sent, federation, jnp.zeros((), jnp.int32), kept)
    return Shapes(sent, answer, kept)
