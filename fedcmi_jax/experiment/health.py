"""Signs that a run went wrong although it ended: its summary says so."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from fedcmi_jax.cohort import named_key
from fedcmi_jax.experiment.experiment import Experiment
from fedcmi_jax.types import FederationState, PyTree

NEAR_CHANCE = 1.5
"""Times 1/C: an accuracy of at most that is called chance."""

GROWTH = 1000.0
"""Of the parameters' norm since the start; sound runs here stayed below 10."""

REMEDY = (
    "a client may send poison (--aggregator.name=median, --guard-factor), or the "
    "learning rate is too high (--local.learning-rate)"
)


def norm(params: PyTree) -> float:
    """The l2 norm of all parameters, on the host; of mapped seeds together."""
    squares = [
        np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(params)
    ]
    return float(np.sqrt(sum(squares)))


def growth(
    experiment: Experiment, state: FederationState, start: float | None
) -> float:
    """The parameters' norm over that before the first round.

    Args:
      experiment: The run's.
      state: Of its algorithm; of mapped seeds all are looked at together.
      start: ``norm`` before the first round; None: the run went on, and it is made
        again.
    """
    if start is None:

        @jax.jit
        def drawn(key: jax.Array) -> PyTree:
            return experiment.model.init(named_key(key, "init"))[0]

        start = norm([drawn(key) for key in experiment.key.reshape(-1)])
    return norm(state.params) / max(start, 1e-30)


def signs(
    records: Iterable[Mapping[str, Any]], num_classes: int, growth: float
) -> tuple[str, ...]:
    """One line for each sign; none of a sound run.

    Args:
      records: Metrics lines of the evaluated rounds.
      num_classes: C.
      growth: The parameters' norm at the last round over that at the first.

    Returns:
      That the test accuracy fell below half of its best and to chance (at most
      1.5 / C), and that the parameters' norm grew more than a thousandfold.

    Example:
      >>> lines = [{"round": 1, "acc": 0.9}, {"round": 2, "acc": 0.1}]
      >>> signs(lines, 10, 1.0)[0].partition(";")[0]
      'test accuracy collapsed: 0.9 at round 1, 0.1 at round 2'
      >>> signs(lines[:1], 10, 1.0)
      ()
    """
    lines = [r for r in records if r.get("acc") is not None]
    found = []
    if lines:
        best, now = max(lines, key=lambda r: r["acc"]), lines[-1]
        if now["acc"] < best["acc"] / 2 and now["acc"] <= NEAR_CHANCE / num_classes:
            found.append(
                f"test accuracy collapsed: {best['acc']:.3g} at round {best['round']}, "
                f"{now['acc']:.3g} at round {now['round']}; {REMEDY}"
            )
    if not growth <= GROWTH:
        found.append(f"the parameters' norm grew {growth:.3g}-fold; {REMEDY}")
    return tuple(found)
