"""The server's part of a round: ``round.round`` of clients that trained elsewhere."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax import aggregate
from fedcmi_jax.algorithm import init
from fedcmi_jax.deploy.client import Answer
from fedcmi_jax.deploy.plan import Plan
from fedcmi_jax.federation import Federation
from fedcmi_jax.local import num_steps
from fedcmi_jax.methods.seen import Kept
from fedcmi_jax.round import round
from fedcmi_jax.selection import select_cohort
from fedcmi_jax.server import Seen
from fedcmi_jax.setup import Setup
from fedcmi_jax.types import Array, FederationState, PyTree, RoundInfo, Start
from fedcmi_jax.updates import Trained, Trainer, averaged_blocks


class Table(NamedTuple):
    """What the server knows of its clients' data.

    Attributes:
      sizes: [N] int32, training samples.
      probe_sizes: [N] int32, held-out ones.
      available: [N, M] bool, who has which modality.
    """

    sizes: np.ndarray
    probe_sizes: np.ndarray
    available: np.ndarray


def no_table(plan: Plan) -> Table:
    """The table before anybody has joined."""
    nobody = np.zeros(plan.clients, np.int32)
    has = np.zeros((plan.clients, len(plan.modalities)), bool)
    return Table(nobody, nobody.copy(), has)


def table_federation(plan: Plan, table: Table) -> Federation:
    """A federation of tables: no samples, for they are at the clients."""
    return Federation(
        inputs={},
        labels=jnp.zeros(0, jnp.int32),
        offsets=jnp.zeros(plan.clients, jnp.int32),
        sizes=jnp.asarray(table.sizes, jnp.int32),
        probe_sizes=jnp.asarray(table.probe_sizes, jnp.int32),
        available=jnp.asarray(table.available, jnp.float32),
        max_size=1,
        modalities=plan.modalities,
    )


def first_state(
    plan: Plan, setup: Setup, table: Table, start: Start | None = None
) -> FederationState:
    """The state before the first round, without what is kept at the clients.

    Args:
      plan: The deployment's.
      setup: The algorithm's.
      table: Of the clients.
      start: What parameters start from; None: all are drawn.

    Raises:
      ValueError: See ``algorithm.init``.
    """

    @jax.jit
    def first(federation: Federation) -> FederationState:
        state = init(setup, plan.key, federation, start)
        memory, residual = elsewhere((state.memory, state.residual))
        return state._replace(memory=memory, personal={}, residual=residual)

    return first(table_federation(plan, table))


def elsewhere(memory: PyTree) -> PyTree:
    """Memory [N, ...] without its numbers, which are at the clients: leaves [N, 0].

    Hooks find the structure that they know, and whoever needs a number is refused by
    ``support.check``.
    """
    return jax.tree.map(lambda x: jnp.zeros((len(x), 0), x.dtype), memory)


def looked_up(ids: Array, answers: Answer) -> Trainer:
    """A trainer for ``round.round`` that knows what each client sent.

    Args:
      ids: [K] int32; N: nobody answered here.
      answers: Of these clients, leaves [K, ...].
    """

    def train(
        setup: Setup,
        seen: Seen,
        id: Array,
        participation: Array,
        kept: Kept,
        max_batches: Array,
    ) -> Trained:
        del max_batches
        federation = seen.federation
        has_answered = (ids == id) & (id < federation.num_clients)
        row = jnp.argmax(has_answered)
        answer: Answer = jax.tree.map(lambda x: x[row], answers)
        size = federation.sizes.at[id].get(mode="clip")
        size = jnp.where(id < federation.num_clients, size, 0)
        sound = (
            has_answered.any()
            & answer.sound
            & aggregate.is_weight(answer.weight)
            & aggregate.all_finite((answer.delta, answer.stats, answer.upload))
        )
        sent = aggregate.Sent(
            delta=answer.delta,
            stats=answer.stats,
            owned=averaged_blocks(setup, participation),
            weight=jnp.ones(()) if setup.privacy is not None else answer.weight,
            num_examples=size,
            steps=num_steps(setup.local, size),
            upload=answer.upload,
        )
        return Trained(sent, sound, kept, answer.metrics)

    return train


ServerRound = Callable[
    [FederationState, Federation, Array, Answer], tuple[FederationState, RoundInfo]
]
"""``(state, tables, ids [K], answers [K, ...]) -> (state, info)``."""


def server_round(setup: Setup) -> ServerRound:
    """A round from what the clients sent, compiled when it is first called.

    Sums are added in the simulation's order. A client of the cohort whose id is not
    among the answers is not accepted, and counts as rejected.
    """

    @jax.jit
    def run(
        state: FederationState, federation: Federation, ids: Array, answers: Answer
    ) -> tuple[FederationState, RoundInfo]:
        return round(setup, state, federation, looked_up(ids, answers))

    return run


def stacked(
    like: Answer, answers: dict[int, Answer], size: int, nobody: int
) -> tuple[np.ndarray, Answer]:
    """Answers side by side, in the order of their clients' ids.

    Args:
      like: Shapes of one.
      answers: Id -> answer, at most ``size``.
      size: K.
      nobody: N, the id in the place of an answer that is missing.

    Returns:
      ids [K] int32, and the answers [K, ...], zero where there is none.
    """
    empty = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), like)
    found = sorted(answers)
    rows = [answers[i] for i in found] + [empty] * (size - len(found))
    ids = np.array(found + [nobody] * (size - len(found)), np.int32)
    return ids, jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def cohort_of(setup: Setup) -> Callable[[FederationState, Federation], Array]:
    """``(state, tables) -> ids [K]`` of the clients that the next round trains."""
    return jax.jit(lambda state, tables: select_cohort(setup, state, tables).ids)
