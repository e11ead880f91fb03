"""Training in one call from Python, with or without a run folder."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedcmi_jax.experiment import training
from fedcmi_jax.experiment.best import best_of, should_stop
from fedcmi_jax.experiment.config import Config, from_dict, trains_in_turn
from fedcmi_jax.experiment.experiment import Experiment, build
from fedcmi_jax.experiment.loop import calls, records
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.presets import preset
from fedcmi_jax.experiment.run_folder import METRICS, check_free, lock, make_folder
from fedcmi_jax.types import Params


class History(NamedTuple):
    """What ``train`` returns.

    Attributes:
      config: The configuration.
      records: The metrics lines, a dict per evaluated round.
      params: The model after the last round, as it is evaluated.
      batch_stats: Its BatchNorm statistics.
      folder: The run's folder; None: nothing was written.
    """

    config: Config
    records: list[dict[str, Any]]
    params: Params
    batch_stats: Params
    folder: pathlib.Path | None

    @property
    def final(self) -> dict[str, Any]:
        """The last metrics line."""
        return self.records[-1]

    def column(self, name: str) -> np.ndarray:
        """One metric over the evaluated rounds; NaN where a line lacks it."""
        return columns(self.records)[name]


def columns(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Metrics lines as an array per number.

    Example:
      >>> columns([{"round": 1, "acc": 0.5}, {"round": 2, "acc": 0.75}])["acc"].tolist()
      [0.5, 0.75]
    """
    names = dict.fromkeys(
        name for line in lines for name, x in line.items() if _is_number(x)
    )
    return {
        name: np.array(
            [x if _is_number(x := line.get(name)) else np.nan for line in lines]
        )
        for name in names
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def config_of(config: Config | Mapping[str, Any] | str | None) -> Config:
    """A configuration from one, from nested dicts, or from the name of a preset.

    Raises:
      ValueError: A field or name is unknown.

    Example:
      >>> config_of("synthetic").dataset.name
      'synthetic'
    """
    if isinstance(config, Config):
        return config
    if config is None or isinstance(config, str):
        return preset(config) if config else Config()
    try:
        return from_dict(dict(config))
    except (AttributeError, TypeError) as error:
        raise ValueError(f"config: {error}; see fedcmi_jax.config.Config") from None


def train(
    config: Config | Mapping[str, Any] | str | None = None,
    *,
    output: str | pathlib.Path | None = None,
    observer: training.Observer | None = None,
    mesh: Mesh | None = None,
) -> History:
    """Trains as ``fedcmi train`` does.

    Args:
      config: A configuration, nested dicts of its fields, or the name of a preset;
        None: the default.
      output: Folder of the run, new or empty: as that of the command line, listed and
        resumable. None: that of the configuration; without one nothing is written.
      observer: Receives the progress; see ``experiment.progress.Observer``.
      mesh: ``placement.client_mesh``: devices that share the cohort; None: one.

    Returns:
      The metrics and the model.

    Raises:
      ValueError: Something in the configuration is impossible, or the folder is taken.
      DivergedError: Training did.

    Example:
      >>> history = train({"dataset": {"name": "synthetic", "train_samples": 200},
      ...     "method": {"name": "fedavg"}, "rounds": 2})
      >>> history.column("round").tolist()
      [1, 2]
    """
    config = config_of(config)
    observer = observer or training.Observer()
    if trains_in_turn(config):
        raise ValueError(
            f"seeds: {config.seeds} is not one run; call train for each seed, or use "
            "fedcmi train --seeds"
        )
    if config.map_seeds or jax.process_count() > 1:
        raise ValueError("train: takes one seed and one process; use fedcmi train")
    output = config.output if output is None else output
    if output is None:
        return _in_memory(build(config, mesh, observer.note), observer)
    folder = pathlib.Path(output)
    check_free(folder)
    experiment = build(config, mesh, observer.note)
    make_folder(folder)
    with lock(folder):
        training.write_config(folder, config)
        state = training.train(experiment, folder, observer).state
    lines = [x for x in MetricsLog(folder / METRICS).read() if "acc" in x]
    params = experiment.algorithm.deploy(state, experiment.federation)
    return History(experiment.config, lines, params, state.batch_stats, folder)


def _in_memory(experiment: Experiment, observer: training.Observer) -> History:
    """Trains to the last round without a folder."""
    if experiment.config.chunk_size == "auto":
        raise ValueError("chunk_size: auto is recorded in a run's folder; give output")
    state = jax.jit(experiment.algorithm.init)(experiment.key, experiment.federation)
    observer.started(0, experiment.config.rounds)
    lines: list[dict[str, Any]] = []
    for call in calls(experiment, state):
        state = call.state
        for line in records(experiment, call):
            if "acc" in line:
                lines.append(line)
                observer.evaluated(line)
        patience = experiment.config.early_stop_rounds
        if lines and should_stop(best_of(lines), lines[-1]["round"], patience):
            break
    params = experiment.algorithm.deploy(state, experiment.federation)
    return History(experiment.config, lines, params, state.batch_stats, None)
