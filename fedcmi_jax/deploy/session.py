"""A deployment as its server has it: who joined, the state, and a folder of results."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.aggregate import all_finite
from fedcmi_jax.blocks import by_path
from fedcmi_jax.data.raw.npy import read_npz, zipped
from fedcmi_jax.deploy import server_key
from fedcmi_jax.deploy.card import terms_of, with_card
from fedcmi_jax.deploy.client import Answer, Received, shapes_of
from fedcmi_jax.deploy.kept_file import NEVER
from fedcmi_jax.deploy.plan import Plan, bound_algorithm
from fedcmi_jax.deploy.server import (
    Table,
    cohort_of,
    first_state,
    no_table,
    server_round,
    stacked,
    table_federation,
)
from fedcmi_jax.deploy.site import SOUND
from fedcmi_jax.deploy.support import check
from fedcmi_jax.deploy.wire import as_arrays, as_sums, as_tree, check_weights
from fedcmi_jax.experiment.accounting import promised
from fedcmi_jax.experiment.files import read_json, replace, write_json
from fedcmi_jax.experiment.loop import (
    DivergedError,
    spent,
    training_numbers,
    unusual,
)
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.model import first_start
from fedcmi_jax.experiment.optimization import rate_scale
from fedcmi_jax.federation import Federation
from fedcmi_jax.methods.base import Method
from fedcmi_jax.types import FederationState

Evaluate = Callable[[FederationState], dict[str, Any]]
"""Columns of a metrics line about the global model."""


class Session:
    """A deployment's server.

    Attributes:
      plan: The deployment's.
      run: Name of the run, under which clients keep their files.
      table: What is known of the clients' data.
      accepted: [N], the last round in which each client was accepted, or -1.
    """

    def __init__(self, plan: Plan, folder: Path, run: str):
        """Opens the folder of results; a run that it holds goes on.

        Args:
          plan: The deployment's.
          folder: Of its results; made if it is not there.
          run: Name of a new run; of one that goes on the folder knows it.

        Raises:
          ValueError: What the plan describes cannot be deployed, or the folder has the
            run of another plan.
        """
        self.plan, self.folder = plan, folder
        self._setup = bound_algorithm(plan).setup
        self._shapes = shapes_of(plan, self._setup)
        check(plan, self._setup, self._shapes)
        self._terms = terms_of(plan, self._shapes)
        self.table: Table = no_table(plan)
        self.accepted = np.full(plan.clients, NEVER, np.int32)
        self._scale = np.float64(1.0)
        self._state: FederationState | None = None
        self.run = self._opened(run)

    @property
    def missing(self) -> list[int]:
        """Ids of the clients of which nothing is known yet."""
        return np.flatnonzero(self.table.sizes == 0).tolist()

    @property
    def state(self) -> FederationState:
        """The state after the last round; there is one when ``begin`` was called."""
        assert self._state is not None
        return self._state

    @property
    def method(self) -> Method:
        """The plan's method."""
        return self._setup.method

    @property
    def rounds_left(self) -> int:
        """Rounds that are still to come."""
        return self.plan.config.rounds - int(self.state.round)

    def join(self, card: Any, taken: Collection[int] = ()) -> int:
        """Takes a client in.

        Args:
          card: What it sent.
          taken: Ids of the clients that are there already.

        Returns:
          Its id.

        Raises:
          ValueError: It is refused; one line says why.
        """
        table = with_card(self.plan, self._terms, self.table, card)
        id = int(card["client"])
        if id in taken:
            raise ValueError(f"client {id}: another node is it; give each its own id")
        same = [(a[id] == b[id]).all() for a, b in zip(table, self.table, strict=True)]
        if self._state is not None and self.table.sizes[id] and not all(same):
            raise ValueError(
                f"client {id}: has other samples than when the run began; begin a new "
                "run, or give it the old ones"
            )
        self.table = table
        return id

    def begin(self, log: Callable[[str], None]) -> None:
        """Binds the algorithm to who joined, and draws or restores the state.

        Args:
          log: Receives a learning rate that is not the configuration's.

        Raises:
          ValueError: ``init_from`` cannot be read, or the folder's state is damaged.
        """
        config, setup = self.plan.config, self._setup
        is_new = self._state is None
        if is_new:
            sizes = self.table.sizes[self.table.sizes > 0]
            self._scale = np.float64(rate_scale(config, setup.method, sizes, log))
        self._guarantee = promised(config, self.plan.clients, log)
        scale = float(self._scale)
        self._setup = bound_algorithm(self.plan, scale, self._guarantee).setup
        self._cohort = cohort_of(self._setup)
        self._round = server_round(self._setup)
        if is_new:
            start = first_start(config, setup.model)()
            state = first_state(self.plan, self._setup, self.table, start)
            self._state = state._replace(key=self._key)

    def cohort(self) -> list[int]:
        """Ids of the clients that the next round trains, ascending."""
        ids = np.asarray(self._cohort(self.state, self._tables()))
        return sorted(ids[ids < self.plan.clients].tolist())

    def received(self) -> dict[str, np.ndarray]:
        """What every client of the next round gets."""
        state = self.state
        rate = self._setup.local.rate(state.round)
        sent = Received(
            state.params, state.batch_stats, state.shared, state.round, rate
        )
        return as_arrays(sent)

    def answer(
        self, arrays: Mapping[str, np.ndarray], metrics: Mapping[str, Any]
    ) -> Answer:
        """What a client sent, checked.

        Raises:
          ValueError: Something is missing, of another shape, not finite, or a negative
            weight; names it.
        """
        like = self._shapes.answer
        found = as_tree(arrays, like.arrays)
        check_weights(found.upload)
        others = {name: x for name, x in metrics.items() if name != SOUND}
        sums = as_sums(others, like.metrics)
        sound = np.bool_(metrics.get(SOUND) == 1)
        return found._replace(metrics=sums, sound=sound)

    def close(
        self,
        answers: Mapping[int, Answer],
        lost: Mapping[int, str],
        evaluate: Evaluate | None = None,
    ) -> dict[str, Any]:
        """Ends the round with the answers that there are, and writes it down.

        Args:
          answers: Id -> answer, of clients of the cohort.
          lost: Id -> why there is none; in the metrics line under ``missing``.
          evaluate: Called after rounds that the configuration evaluates.

        Returns:
          The round's metrics line.

        Raises:
          DivergedError: The model is no longer finite. The session, and its folder,
            stay as they were before the round.
        """
        config, size = self.plan.config, self._setup.places(self.plan.clients)
        ids, rows = stacked(self._shapes.answer, dict(answers), size, self.plan.clients)
        before = int(self.state.round)
        state, info = self._round(self.state, self._tables(), jnp.asarray(ids), rows)
        info = jax.device_get(info)
        if not jax.jit(all_finite)((state.params, state.batch_stats)):
            raise DivergedError(
                f"round {before + 1}, method {self.method.name}: the model is not "
                f"finite; {self.folder} has it as of round {before}; begin anew with a "
                f"lower --local.learning-rate (now {config.local.learning_rate}) or "
                "with --clip-norm"
            )
        self._state = state
        self.accepted[info.cohort[info.accepted]] = before
        record: dict[str, Any] = {"round": before + 1}
        record |= unusual(config, self.plan.clients, {config.seed: info})
        if lost:
            record["missing"] = {str(id): why for id, why in sorted(lost.items())}
        record |= training_numbers(info, self.plan.clients)
        record |= spent(self._guarantee, info, before + 1)
        is_due = (before + 1) % config.eval_every == 0 or self.rounds_left == 0
        if evaluate is not None and is_due:
            record |= evaluate(state)
        MetricsLog(self.folder / "metrics.jsonl").append(record)
        self._save()
        return record

    def finish(self) -> Path:
        """Writes the model in the form that ``init_from`` reads.

        Returns:
          The file.
        """
        arrays = {"params": self.state.params, "batch_stats": self.state.batch_stats}
        replace(self.folder / "params.npz", zipped(by_path(arrays)))
        return self.folder / "params.npz"

    def _tables(self) -> Federation:
        """The clients of now: some may have joined after the start."""
        return table_federation(self.plan, self.table)

    def _save(self) -> None:
        kept = (_keyless(self.state), self.table, self.accepted, self._scale)
        replace(self.folder / "state.npz", zipped(as_arrays(kept)))

    def _opened(self, run: str) -> str:
        """The name of the folder's run, whose state is restored if it has one."""
        about, path = self.folder / "deployment.json", self.folder / "state.npz"
        if not about.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._setup.privacy is not None:
                server_key.create(self.folder)
            write_json(about, {"run": run, "plan": self.plan.digest})
            self._key = self._own_key()
            return run
        known = read_json(about)
        if not isinstance(known, dict) or known.get("plan") != self.plan.digest:
            raise ValueError(
                f"output: {self.folder} has the run of another plan; name a new folder"
            )
        self._key = self._own_key()
        log = MetricsLog(self.folder / "metrics.jsonl")
        if path.exists():
            state = jax.eval_shape(
                lambda: first_state(self.plan, self._setup, self.table)
            )
            like = (_keyless(state), self.table, self.accepted, self._scale)
            try:
                found = as_tree(read_npz(path), like, finite=False)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            fields, table, self.accepted, self._scale = found
            fields = jax.tree.map(jnp.asarray, fields)
            self.table = Table(*table)
            self._state = FederationState(**fields, key=self._key)
        log.truncate_after(0 if self._state is None else int(self._state.round))
        return str(known["run"])

    def _own_key(self) -> jax.Array:
        """Of cohorts and noise: the plan's key, with privacy the server's own."""
        if self._setup.privacy is None:
            return self.plan.key
        return server_key.read(self.folder)


def _keyless(state: FederationState) -> dict[str, Any]:
    """What a file has of a state: the key follows from the seed."""
    return {name: x for name, x in state._asdict().items() if name != "key"}
