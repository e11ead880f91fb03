"""Training in one call from Python, with or without a run folder."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fedcmi_jax.data.base import Dataset
from fedcmi_jax.evaluation.views import Metric
from fedcmi_jax.experiment import checkpoint, training
from fedcmi_jax.experiment.best import best_of, should_stop
from fedcmi_jax.experiment.callbacks import Begun, Callback, Callbacks
from fedcmi_jax.experiment.config import (
    Config,
    check_effects,
    from_dict,
    to_dict,
    trains_in_turn,
)
from fedcmi_jax.experiment.experiment import Experiment, build
from fedcmi_jax.experiment.initial import initial_state
from fedcmi_jax.experiment.loop import calls, records
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.parts import Parts
from fedcmi_jax.experiment.presets import preset
from fedcmi_jax.experiment.resume import is_finished, mend_log
from fedcmi_jax.experiment.run_folder import (
    CHECKPOINTS,
    METRICS,
    check_free,
    check_run,
    lock,
    make_folder,
)
from fedcmi_jax.methods.base import Method
from fedcmi_jax.types import FederationState, Model, Params


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
        """One metric over the evaluated rounds; NaN where a line lacks it.

        Raises:
          ValueError: No line has it; names those that there are.
        """
        found = columns(self.records)
        if name not in found:
            raise ValueError(f"column: no {name!r}; choose from {sorted(found)}")
        return found[name]


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
    if not isinstance(config, Mapping):
        raise ValueError(
            f"config: is of type {type(config).__name__}; give a Config, nested dicts "
            "or the name of a preset"
        )
    try:
        given = dict(config)
        if given.get("preset"):
            given = overlaid(to_dict(preset(given["preset"])), given)
        return from_dict(given)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"config: {error}; see fedcmi_jax.config.Config") from None


def overlaid(base: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's values with others in their place, field by field.

    A section of another name replaces the whole one, whose options are not its own.

    Example:
      >>> base = {"rounds": 5, "method": {"name": "fedprox", "mu": 0.1}}
      >>> overlaid(base, {"method": {"mu": 0.2}})
      {'rounds': 5, 'method': {'name': 'fedprox', 'mu': 0.2}}
      >>> overlaid(base, {"method": {"name": "fedavg"}})["method"]
      {'name': 'fedavg'}
    """
    found = dict(base)
    for name, value in given.items():
        own = base.get(name)
        found[name] = value
        if isinstance(value, Mapping) and isinstance(own, dict):
            if value.get("name", own.get("name")) == own.get("name"):
                found[name] = overlaid(own, value)
    return found


def train(
    config: Config | Mapping[str, Any] | str | None = None,
    *,
    dataset: Dataset | None = None,
    encoders: Mapping[str, Any] | None = None,
    model: Model | None = None,
    method: Method | None = None,
    metrics: Mapping[str, Metric] | None = None,
    output: str | pathlib.Path | None = None,
    callbacks: Sequence[Callback] = (),
    mesh: Mesh | None = None,
) -> History:
    """Trains as ``fedcmi train`` does.

    Args:
      config: A configuration; nested dicts of its fields, with ``preset`` of those that
        differ from it; or the name of a preset. None: the default.
      dataset: In the place of the one that the configuration names.
      encoders: Modality -> flax module, likewise.
      model: Likewise.
      method: Likewise.
      metrics: Name -> ``(logits [B, C], labels [B], valid [B]) -> (sum, weight)`` of
        your own: a column each beside those that every run has.
      output: Folder of the run, new or empty: as that of the command line, listed and
        resumable (with objects of your own by ``resume``). None: that of the
        configuration; without one nothing is written.
      callbacks: What follows the run and may end it, see ``Callback``;
        ``experiment.progress.progress()`` shows a bar.
      mesh: ``placement.client_mesh``: devices that share the cohort; None: one.

    Returns:
      The metrics and the model.

    Raises:
      ValueError: Something in the configuration is impossible, or the folder is taken.
      DivergedError: Training did.
      CallbackError: A callback failed; with a folder, the round is saved.

    Example:
      >>> history = train({"dataset": {"name": "synthetic", "train_samples": 200},
      ...     "method": {"name": "fedavg"}, "rounds": 2})
      >>> history.column("round").tolist()
      [1, 2]
    """
    config = config_of(config)
    parts = Parts(dataset, encoders, model, method, metrics or None)
    told = Callbacks(callbacks)
    check_effects(config)
    _check_one_run(config)
    output = config.output if output is None else output
    if output is None:
        return _in_memory(build(config, mesh, told.note, parts=parts), told)
    folder = pathlib.Path(output)
    check_free(folder)
    experiment = build(config, mesh, told.note, parts=parts)
    experiment.start()  # refuses before anything is written
    make_folder(folder)
    with lock(folder):
        training.write_config(folder, config, parts)
        return _in_folder(experiment, folder, callbacks)


def resume(
    folder: str | pathlib.Path,
    *,
    dataset: Dataset | None = None,
    encoders: Mapping[str, Any] | None = None,
    model: Model | None = None,
    method: Method | None = None,
    metrics: Mapping[str, Metric] | None = None,
    callbacks: Sequence[Callback] = (),
    mesh: Mesh | None = None,
) -> History:
    """Goes on with a run as ``fedcmi resume`` does: to the same result, bit for bit.

    Args:
      folder: The run's folder.
      dataset: As it was given to ``train``; so are all others.
      encoders: Modality -> flax module.
      model: The model.
      method: The method.
      metrics: Name -> metric.
      callbacks: See ``train``.
      mesh: Devices; others than before are as good.

    Returns:
      The metrics and the model; of a finished run at once.

    Raises:
      ValueError: The folder is no run, or one with other parts.

    Example:
      >>> resume("no/such/folder")
      Traceback (most recent call last):
      ValueError: no/such/folder is no run: there is no such folder
    """
    folder = pathlib.Path(folder)
    parts = Parts(dataset, encoders, model, method, metrics or None)
    check_run(folder)
    config = training.read_config(folder, parts)
    _check_one_run(config)
    told = Callbacks(callbacks)
    with lock(folder):
        if is_finished(folder, config):
            if note := mend_log(folder, config):
                told.note(note)
            experiment = build(config, None, told.note, parts=parts, resident=False)
            like = jax.eval_shape(
                experiment.algorithm.init, experiment.key, experiment.federation
            )
            state = checkpoint.restore(folder / CHECKPOINTS, like).state
            return _history(experiment, folder, state)
        experiment = build(config, mesh, told.note, parts=parts)
        return _in_folder(experiment, folder, callbacks)


def _check_one_run(config: Config) -> None:
    if trains_in_turn(config):
        raise ValueError(
            f"seeds: {config.seeds} is not one run; call train for each seed, or use "
            "fedcmi train --seeds"
        )
    if config.map_seeds or jax.process_count() > 1:
        raise ValueError("train: takes one seed and one process; use fedcmi train")


def _in_folder(
    experiment: Experiment, folder: pathlib.Path, callbacks: Sequence[Callback]
) -> History:
    """Trains to the last round in a folder that holds the configuration."""
    state = training.train(experiment, folder, callbacks).state
    return _history(experiment, folder, state)


def _history(
    experiment: Experiment, folder: pathlib.Path, state: FederationState
) -> History:
    lines = MetricsLog(folder / METRICS).evaluated()
    params = experiment.algorithm.deploy(state, experiment.federation)
    return History(experiment.config, lines, params, state.batch_stats, folder)


def _in_memory(experiment: Experiment, told: Callbacks) -> History:
    """Trains to the last round without a folder."""
    config = experiment.config
    if config.chunk_size == "auto":
        raise ValueError("chunk_size: auto is recorded in a run's folder; give output")
    if config.log_clients != "none":
        raise ValueError("log_clients: is a file in a run's folder; give output")
    state = initial_state(experiment)
    lines: list[dict[str, Any]] = []
    patience = config.early_stop_rounds
    begin = told.round_start if told.wants_rounds else None
    with told.run(Begun(config, None, 0)):
        for call in calls(experiment, state, begin):
            state, told.round = call.state, call.round
            if begin:
                info = jax.tree.map(lambda x: x[0], call.infos)
                told.round_end(call.round, info, state)
            for line in records(experiment, call, told.wants_stop):
                if "acc" in line:
                    lines.append(line)
                    told.evaluated(line)
            told.check("nothing is saved without output")
            done = lines and should_stop(best_of(lines), lines[-1]["round"], patience)
            if told.wants_stop or done:
                break
    told.finished(call.round < config.rounds)
    params = experiment.algorithm.deploy(state, experiment.federation)
    return History(config, lines, params, state.batch_stats, None)
