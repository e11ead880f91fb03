"""The server as an app of Flower: everybody joins, all rounds, the last word."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcmi_jax import backend
from fedcmi_jax.deploy import flower_records as records
from fedcmi_jax.deploy.flower_members import LOG, Members
from fedcmi_jax.deploy.flower_strategy import strategy_of
from fedcmi_jax.deploy.plan import Plan, read_plan
from fedcmi_jax.deploy.session import Evaluate, Session
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.programs import keep_programs
from fedcmi_jax.experiment.run_folder import lock
from fedcmi_jax.methods.base import has_own_models

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp


@dataclasses.dataclass(frozen=True)
class Options:
    """How a deployment runs; Flower's run configuration, with ``-`` for ``_``.

    Attributes:
      output: Folder of the results; a run that it holds goes on.
      round_timeout: Seconds that a round waits for its clients.
      join_timeout: Seconds that the start waits for all N clients, and a round for
        clients that are new, or for anybody.
      least_clients: Clients with which it starts when that time is over, and without
        whom no round begins; 0: all N, and 1.
      evaluate: Whether the server tests the model on the data set's test split, for
        which it must have the data set.
    """

    output: str = "deployed"
    round_timeout: float = 3600.0
    join_timeout: float = 600.0
    least_clients: int = 0
    evaluate: bool = True


def options_of(config: Mapping[str, Any]) -> Options:
    """The options that a run configuration sets.

    Raises:
      ValueError: A value is of another type, or is impossible.

    Example:
      >>> options_of({"round-timeout": 60}).round_timeout
      60
      >>> options_of({"round-timeout": -1})
      Traceback (most recent call last):
      ValueError: round-timeout: -1 is not positive; give seconds
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(Options):
        name = field.name.replace("_", "-")
        if name not in config:
            continue
        value: Any = config[name]
        usual: Any = field.default
        kinds = (int, float) if isinstance(usual, float) else type(usual)
        if not isinstance(value, kinds) or isinstance(value, bool) != (usual is True):
            raise ValueError(f"{name}: {value!r} is no {type(usual).__name__}")
        if name.endswith("timeout") and not value > 0:
            raise ValueError(f"{name}: {value} is not positive; give seconds")
        given[field.name] = value
    return Options(**given)


def server_app(plan: Path) -> "ServerApp":
    """Flower's ServerApp of a plan; needs the extra ``flower``.

    Args:
      plan: The file of the plan. The run configuration has the ``Options``.
    """
    from flwr.serverapp import ServerApp

    app = ServerApp()

    @app.main()
    def main(grid: "Grid", context: "Context") -> None:
        # What JAX takes along gives the root logger a handler: every line twice.
        LOG.propagate = False
        backend.guard()
        keep_programs()
        options = options_of(context.run_config)
        serve(grid, read_plan(plan), options, str(context.run_id))

    return app


def serve(grid: "Grid", plan: Plan, options: Options, run: str) -> Session:
    """Runs a deployment: everybody joins, all rounds, the last word to the clients.

    Args:
      grid: Flower's way to the nodes.
      plan: The deployment's.
      options: How it runs.
      run: Name of the run, unless the output folder knows it.

    Returns:
      The session, after its last round.

    Raises:
      ValueError: It cannot be deployed, too few clients are there, or another process
        has the output folder.
      DivergedError: The model is no longer finite.
    """
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder):
        return _served(grid, plan, options, Session(plan, folder, run))


def _served(grid: "Grid", plan: Plan, options: Options, session: Session) -> Session:
    members = Members(grid, session, options.join_timeout)
    members.gather(options.least_clients)
    session.begin(LOG.info)
    evaluate, least = _evaluate(plan, session, options), max(1, options.least_clients)
    strategy = strategy_of(session, members, options.round_timeout, evaluate, least)
    if session.rounds_left > 0:
        strategy.start(
            grid,
            records.array_record(session.received()),
            num_rounds=session.rounds_left,
            timeout=options.round_timeout,
        )
    members.settle(options.round_timeout)
    LOG.info("%s", f"written: {session.finish()}")
    return session


def _evaluate(plan: Plan, session: Session, options: Options) -> Evaluate | None:
    """What tests the global model on the data set's test split, where it can."""
    if not options.evaluate:
        return None
    if has_own_models(session.method):
        LOG.info("%s: its clients have models of their own", session.method.name)
        return None
    config = dataclasses.replace(plan.config, chunk_size=1)
    measures = build(config, log=LOG.info, resident=False).measures
    return lambda state: measures.all(state.params, state.batch_stats, None)
