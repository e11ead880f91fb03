"""What holds for every aggregator, as functions of a ``Combination``.

A check raises ``AssertionError``. All run one small compiled program, on one block.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.aggregators import Aggregator
from fedcmi_jax.stacks import combined

CLIENTS, SIZE = 9, 4
"""Owners of the block, enough for f = 3 of Krum, and the block's numbers."""

FAR = 1e6
"""Of an outlier, where honest numbers are around 1."""


class Combination:
    """An aggregator on a block of two arrays, of ``CLIENTS`` clients."""

    def __init__(self, aggregator: Aggregator):
        """Compiles nothing yet."""
        self.aggregator = aggregator
        rng = np.random.default_rng(0)
        self.block = rng.normal(1.0, 0.1, (CLIENTS, SIZE)).astype(np.float32)
        self.weights = np.full(CLIENTS, 7.0, np.float32)
        self._program = jax.jit(
            lambda w, x: combined(aggregator, jax.random.key(0), CLIENTS)(
                w, {"a": x[:, :1], "b": x[:, 1:]}
            )
        )

    def __call__(
        self, block: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, bool]:
        """The block's [SIZE] numbers as one, and whether its owners were enough."""
        found, enough = self._program(jnp.asarray(weights), jnp.asarray(block))
        return np.concatenate([found["a"], found["b"]]), bool(enough)


def equal_updates_give_that_update(case: Combination) -> None:
    """Whatever the weights."""
    same = np.broadcast_to(case.block[0], case.block.shape)
    found, enough = case(same, np.arange(1.0, CLIENTS + 1.0, dtype=np.float32))
    assert enough
    np.testing.assert_allclose(found, case.block[0], rtol=1e-5)


def who_is_no_owner_has_no_effect(case: Combination) -> None:
    """What such a client sends need not be a number."""
    weights, block = case.weights.copy(), case.block.copy()
    weights[4], block[4] = 0.0, 5.0
    expected, _ = case(block, weights)
    block[4] = np.nan
    np.testing.assert_array_equal(case(block, weights)[0], expected)


def too_few_owners_give_nothing(case: Combination) -> None:
    """Zeros, and it says so."""
    found, enough = case(case.block, np.zeros_like(case.weights))
    assert not enough
    np.testing.assert_array_equal(found, np.zeros(SIZE))


def a_shift_of_all_shifts_the_result(case: Combination) -> None:
    """Nothing hangs on where zero is."""
    before, _ = case(case.block, case.weights)
    after, _ = case(case.block + 2.0, case.weights)
    np.testing.assert_allclose(after, before + 2.0, rtol=1e-4)


def one_outlier_moves_it_little(case: Combination) -> None:
    """It stays among the honest ones; asked of all that compare updates."""
    if case.aggregator.combine is None:
        return
    block = case.block.copy()
    block[2] = FAR
    found, _ = case(block, case.weights)
    assert found.min() > 0.5, found
    assert found.max() < 1.5, found


AGGREGATOR_CHECKS: dict[str, Callable[[Combination], None]] = {
    check.__name__: check
    for check in (
        equal_updates_give_that_update,
        who_is_no_owner_has_no_effect,
        too_few_owners_give_nothing,
        a_shift_of_all_shifts_the_result,
        one_outlier_moves_it_little,
    )
}
"""Name -> check."""
