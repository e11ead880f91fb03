"""A client as a process has it: its samples, its file, and one compiled round."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.deploy import kept_file
from fedcmi_jax.deploy.card import card_of, terms_of
from fedcmi_jax.deploy.client import (
    Samples,
    first_kept,
    local_round,
    own_federation,
    shapes_of,
)
from fedcmi_jax.deploy.own_samples import dealt, of_file
from fedcmi_jax.deploy.plan import Plan, bound_algorithm
from fedcmi_jax.deploy.wire import as_arrays, as_metrics, as_tree

SOUND = "sound"
"""The metric that says whether a client's own check found everything finite."""


class Site:
    """One client of a deployment.

    Attributes:
      plan: The deployment's.
      id: Its number, from 0.
      samples: Its own.
    """

    def __init__(self, plan: Plan, id: int, folder: Path, data: Path | None = None):
        """Loads the samples; compiles nothing yet.

        Args:
          plan: The deployment's.
          id: Its number, from 0.
          folder: Where it keeps what it remembers, a file per run.
          data: Its .npz file; None: its share of the configuration's data set.

        Raises:
          ValueError: There is no such client, or its samples do not fit the plan.
        """
        if not 0 <= id < plan.clients:
            raise ValueError(
                f"partition-id: {id}, but there are clients 0 to {plan.clients - 1}"
            )
        self.plan, self.id, self._folder = plan, id, folder
        self._setup = bound_algorithm(plan).setup
        self._shapes = shapes_of(plan, self._setup)
        self.samples: Samples = dealt(plan, id) if data is None else of_file(plan, data)
        self._federation = own_federation(plan, id, self.samples)
        self._keeps = bool(jax.tree.leaves(self._shapes.kept))
        self._run = local_round(self._setup, plan.key)
        self._first = functools.cache(lambda: first_kept(plan, self._setup))

    def card(self) -> dict[str, Any]:
        """What it tells the server before the first round."""
        return card_of(terms_of(self.plan, self._shapes), self.id, self.samples)

    def train(
        self, arrays: Mapping[str, np.ndarray], run: str, accepted: int
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Its part of a round.

        Args:
          arrays: ``wire.as_arrays`` of a ``client.Received``.
          run: Name of the run; it keeps a file for each.
          accepted: The last round in which the server accepted it, or -1.

        Returns:
          Arrays and metrics to send. What it would keep lies in its file by then;
          where something of it is not finite, it keeps what it has.

        Raises:
          ValueError: The arrays do not fit, or its file is of another state.
        """
        received = as_tree(arrays, self._shapes.received)
        path, memory = self.path(run), kept_file.unused(self._first())
        if self._keeps:
            memory = kept_file.settled(kept_file.load(path, memory.kept), accepted)
        result = self._run(received, self._federation, jnp.int32(self.id), memory.kept)
        answer, proposed = jax.device_get(result)
        if self._keeps and not answer.sound:
            kept_file.store(path, kept_file.unproposed(memory))
        elif self._keeps:
            number = int(received.round)
            new = memory._replace(proposed=proposed, proposed_round=number)
            kept_file.store(path, new)
        metrics = as_metrics(answer.metrics) | {SOUND: int(answer.sound)}
        return as_arrays(answer.arrays), metrics

    def settle(self, run: str, accepted: int) -> None:
        """Keeps what the server accepted, after the last round.

        Raises:
          ValueError: Its file is of another state.
        """
        path = self.path(run)
        if self._keeps and (path.exists() or accepted != kept_file.NEVER):
            memory = kept_file.load(path, self._first())
            kept_file.store(path, kept_file.settled(memory, accepted))

    def path(self, run: str) -> Path:
        """Its file of a run.

        Raises:
          ValueError: The name is none.
        """
        if not run.isalnum():
            raise ValueError(f"run: {run!r} is no name of letters and digits")
        return self._folder / run / f"client-{self.id}.npz"
