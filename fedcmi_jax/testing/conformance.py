"""The conformance suite: what holds for every method, as functions of a ``Case``.

A check raises ``AssertionError``. Nearly all of them run one compiled program, the
method's ``run`` at the compiler's default flags, on federations of one shape.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax import partition
from fedcmi_jax.algorithm import FederatedAlgorithm
from fedcmi_jax.experiment import checkpoint
from fedcmi_jax.federation import Federation
from fedcmi_jax.methods import Method
from fedcmi_jax.models.whole import complete
from fedcmi_jax.testing.problem import (
    AVAILABLE,
    SIZES,
    algorithm,
    all_equal,
    assert_close,
    assert_equal,
    dataset,
    model,
    parts,
    plain,
    poison,
    rounds,
)
from fedcmi_jax.testing.problem import federation as build
from fedcmi_jax.types import FederationState, Model, RoundInfo

COHORT = 3
"""Clients of a round in which not everybody takes part."""


def federation(available: Any = AVAILABLE, **options: Any) -> Federation:
    """The problem's; every sample says which modalities it has: all of its client's."""
    present = options.pop("present", np.ones((sum(SIZES), 2), bool))
    return build(available, present=present, **options)


class Case:
    """A method on a small problem; what several checks need is computed once.

    Args:
      method: The method.
      model_: Its model, of the problem's two modalities; None: one with projectors if
        the method needs them, else a classifier, which compiles in half the time.
    """

    def __init__(self, method: Method, model_: Model | None = None):
        """Compiles nothing yet."""
        kind = "two_projector" if method.needs_projectors else "classifier"
        self.method, self.model = method, complete(model_ or model(kind))

    @functools.cached_property
    def problem(self) -> FederatedAlgorithm:
        """Everybody takes part."""
        return algorithm(self.method, self.model, rounds_per_call=2)

    @functools.cached_property
    def some(self) -> FederatedAlgorithm:
        """``COHORT`` clients take part."""
        return algorithm(self.method, self.model, clients_per_round=COHORT)

    @functools.cached_property
    def some_step(self) -> Any:
        """A round of some, as a program."""
        return jax.jit(self.some.round)

    @functools.cached_property
    def init(self) -> Any:
        """The state before the first round, as one program."""
        return jax.jit(self.problem.init)

    def start(self, fed: Federation | None = None) -> FederationState:
        """The state before the first round; a new one every time, for it is donated."""
        return self.init(jax.random.key(0), fed or federation())

    def run(
        self,
        fed: Federation | None = None,
        num_rounds: int = 2,
        state: FederationState | None = None,
    ) -> tuple[FederationState, RoundInfo]:
        """The state after some rounds, and the last one's info; everybody trains."""
        fed = fed or federation()
        state, infos = self.problem.run(state or self.start(fed), fed, num_rounds)
        return state, jax.tree.map(lambda x: x[num_rounds - 1], infos)

    @property
    def num_traces(self) -> int:
        """How often ``run`` was traced so far."""
        program: Any = self.problem.run
        return program._cache_size()

    @functools.cached_property
    def two_rounds(self) -> tuple[FederationState, RoundInfo]:
        """Of the problem as it is."""
        state, info = self.run()
        return jax.tree.map(jnp.copy, state), info

    @functools.cached_property
    def rounds_of_some(self) -> list[tuple[FederationState, RoundInfo]]:
        """The state after each of two rounds of ``COHORT`` clients, and its info."""
        first = rounds(self.some, build(), 1, step=self.some_step)
        return [first, self.some_step(first[0], build())]

    def round_of_some(self, num_rounds: int = 1) -> tuple[FederationState, RoundInfo]:
        """The state after one or two rounds of ``COHORT`` clients, the last info."""
        return self.rounds_of_some[num_rounds - 1]


def state_keeps_its_structure(case: Case) -> None:
    """Shapes and dtypes do not change; the info has a row per client."""
    start, (state, info) = case.start(), case.two_rounds
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
    assert info.cohort.shape == (len(SIZES),)
    assert int(info.rejected) == 0
    assert float(info.num_examples) == sum(SIZES)


def scan_is_loop_in_one_program(case: Case) -> None:
    """Exactly in one program, up to rounding against the round compiled alone."""
    fed = federation()
    looped = case.start(fed)
    for i in range(2):
        looped, infos = case.problem.run(looped, fed, 1)
        assert np.asarray(infos.accepted).any(1).sum() == 1, f"round {i}"
    assert_equal(looped, case.two_rounds[0])
    assert_equal(jax.tree.map(lambda x: x[0], infos), case.two_rounds[1])
    assert case.num_traces == 1, "traced more than once"


def resumed_is_the_same_to_the_bit(case: Case) -> None:
    """One round, a checkpoint, one more round."""
    once, _ = case.run(num_rounds=1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, once)
        restored = checkpoint.restore(folder, case.start()).state
    assert_equal(case.run(num_rounds=1, state=restored)[0], case.two_rounds[0])
    assert case.num_traces == 1, "a restored state compiles anew"


def chunks_and_padding_change_nothing(case: Case) -> None:
    """Clients mapped in pairs, and more padded samples."""
    fed = federation()
    padded = dataclasses.replace(fed, max_size=fed.max_size + 13)
    pairs = algorithm(case.method, case.model, chunk_size=2)
    many, info = rounds(pairs, padded)
    assert_close(many, case.two_rounds[0])
    assert_close(info.metrics, case.two_rounds[1].metrics)
    np.testing.assert_array_equal(info.cohort, case.two_rounds[1].cohort)


def clients_outside_the_cohort_keep_their_memory(case: Case) -> None:
    """What is kept of a client changes when it trains only."""
    (before, _), (after, info) = case.rounds_of_some
    outside = np.setdiff1d(np.arange(len(SIZES)), np.asarray(info.cohort))
    assert len(outside) == len(SIZES) - COHORT
    for kept in ("memory", "personal"):
        assert_equal(
            jax.tree.map(lambda x: x[outside], getattr(before, kept)),
            jax.tree.map(lambda x: x[outside], getattr(after, kept)),
        )


def a_modality_nobody_has_stays(case: Case) -> None:
    """Its blocks do not move; the other one's encoder does."""
    for column in (0, 1):
        table = np.zeros((len(SIZES), 2), bool)
        table[:, column] = True
        fed = federation(table)
        start, (state, _) = case.start(fed), case.run(fed)
        absent, owned = fed.modalities[1 - column], fed.modalities[column]
        for kind, blocks in start.params.items():
            if kind != "fusion":
                assert_equal(state.params[kind][absent], blocks[absent])
        leaves = zip(
            jax.tree.leaves(state.params["encoder"][owned]),
            jax.tree.leaves(start.params["encoder"][owned]),
            strict=True,
        )
        assert all(bool((a != b).any()) for a, b in leaves)


def a_class_nobody_has_does_no_harm(case: Case) -> None:
    """All numbers stay finite."""
    fed = federation()
    labels = jnp.where(fed.labels == 3, 0, fed.labels)
    state, info = case.run(dataclasses.replace(fed, labels=labels))
    assert int(info.rejected) == 0
    assert_finite(state)


def a_poisoned_client_is_rejected(case: Case) -> None:
    """It is counted and named, and its memory is finite."""
    state, info = case.run(poison(federation(), 2))
    assert int(info.rejected) == 1
    assert np.asarray(info.cohort)[~np.asarray(info.accepted)].tolist() == [2]
    assert float(info.num_examples) == sum(SIZES) - SIZES[2]
    assert_finite(state)


def all_rejected_leaves_the_state(case: Case) -> None:
    """Nothing but the count of rounds changes."""
    fed = federation()
    for client in range(len(SIZES)):
        fed = poison(fed, client)
    start, (state, info) = case.start(fed), case.run(fed, 1)
    assert int(info.rejected) == len(SIZES)
    assert not info.accepted.any()
    assert_equal(state._replace(round=start.round), start)


def what_a_sample_lacks_has_no_effect(case: Case) -> None:
    """Inputs that a sample does not have may be anything."""
    rng = np.random.default_rng(0)
    table = np.array(AVAILABLE, bool)
    train = dataset().train
    present = partition.drop_modalities(train, parts(), table, rng, fraction=0.4)
    fed = federation(present=present)
    assert 5 < (present.sum(1) == 1).sum() < 15
    has = np.asarray(fed.present)
    changed = {
        m: jnp.where((has[:, i] == 0).reshape(-1, 1), x + 100.0, x)
        for i, (m, x) in enumerate(fed.inputs.items())
    }
    a, info = case.run(fed)
    b, _ = case.run(dataclasses.replace(fed, inputs=changed))
    assert int(info.rejected) == 0
    assert_equal(a, b)
    assert not all_equal(a.params, case.two_rounds[0].params)


def held_out_samples_are_not_trained_on(case: Case) -> None:
    """Other inputs there, the same parameters; FedCMI measures on them on purpose."""
    if case.method.name.startswith("fedcmi"):
        return
    fed = federation(probe_fraction=0.4)
    held_out = np.zeros(sum(SIZES), bool)
    for offset, size, probes in zip(
        fed.offsets, fed.sizes, fed.probe_sizes, strict=True
    ):
        held_out[int(offset + size) : int(offset + size + probes)] = True
    assert held_out.sum() > 5
    changed = {m: x.at[held_out].add(100.0) for m, x in fed.inputs.items()}
    a, _ = case.run(fed)
    b, _ = case.run(dataclasses.replace(fed, inputs=changed))
    assert_equal(a.params, b.params)


def assert_finite(state: FederationState) -> None:
    """Every number of a state is one."""
    for leaf in jax.tree.leaves(plain(state)):
        assert bool(jnp.isfinite(leaf).all())


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__: check
    for check in (
        state_keeps_its_structure,
        scan_is_loop_in_one_program,
        resumed_is_the_same_to_the_bit,
        chunks_and_padding_change_nothing,
        clients_outside_the_cohort_keep_their_memory,
        a_modality_nobody_has_stays,
        a_class_nobody_has_does_no_harm,
        a_poisoned_client_is_rejected,
        all_rejected_leaves_the_state,
        what_a_sample_lacks_has_no_effect,
        held_out_samples_are_not_trained_on,
    )
}
"""Name -> check."""
