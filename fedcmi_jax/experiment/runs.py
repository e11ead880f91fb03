"""A run's folder as an object: metrics, models, predictions."""

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.data.arrays import numeric, table_of
from fedcmi_jax.data.base import Dataset
from fedcmi_jax.evaluation.metrics import build_evaluator
from fedcmi_jax.evaluation.summary import summarise
from fedcmi_jax.evaluation.views import Metric
from fedcmi_jax.experiment import checkpoint, seeds, training
from fedcmi_jax.experiment.best import load_best
from fedcmi_jax.experiment.client_log import read_clients
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.experiment import Experiment, build
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.one_call import columns
from fedcmi_jax.experiment.parts import Parts
from fedcmi_jax.experiment.resume import check_unchanged
from fedcmi_jax.experiment.run_folder import CHECKPOINTS, CLIENTS, METRICS, check_run
from fedcmi_jax.methods.base import Method
from fedcmi_jax.samples import named_arrays
from fedcmi_jax.types import Batch, Model, Params

PREDICT_BATCH = 256
"""Samples per forward pass of ``Run.predict``; no effect on results."""

Round = Literal["last", "best"] | int


def round_of(round: str | int) -> Round:
    """A round from its name or number.

    Raises:
      ValueError: It is none of last, best and a number.

    Example:
      >>> round_of("best"), round_of("12")
      ('best', 12)
    """
    if round in ("last", "best"):
        return round  # type: ignore[return-value]
    if not str(round).isdecimal():
        raise ValueError(f"round: {round!r}; give last, best or a round's number")
    return int(round)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder, to be looked at and used; nothing in it is changed.

    Attributes:
      folder: The folder.
      config: Its configuration.
      parts: Objects in the place of what it names.
    """

    folder: pathlib.Path
    config: Config
    parts: Parts = Parts()  # noqa: RUF009 (immutable)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """Data, model and algorithm, built again; training samples stay on the host."""
        return build(self.config, resident=False, parts=self.parts)

    def records(self) -> list[dict[str, Any]]:
        """The metrics lines, a dict per evaluated round."""
        return MetricsLog(self.folder / METRICS).evaluated()

    def clients(self) -> list[dict[str, Any]]:
        """Who took part: the lines of clients.jsonl.

        Returns:
          Of round 0 ``examples``, n_i of all clients; of every round ``cohort``, client
          ids, ``rejected`` if there are any, and with log_clients = all ``loss``, the
          cohort's mean task losses over their local steps, and ``accuracy`` of all
          clients in evaluated rounds.

        Raises:
          ValueError: The run was trained without log_clients.
        """
        return read_clients(self.folder / CLIENTS)

    def metrics(self) -> Any:
        """The numbers of the metrics lines: a DataFrame if pandas is there, or a dict.

        Returns:
          A row per evaluated round, or name -> array [rounds].
        """
        found = columns(self.records())
        try:
            import pandas
        except ImportError:
            return found
        return pandas.DataFrame(found)

    def params(self, round: Round = "last") -> tuple[Params, Params]:
        """A model of the run, as it is evaluated.

        Args:
          round: last; best, on validation; or a round that has a checkpoint.

        Returns:
          Parameters and BatchNorm statistics.

        Raises:
          ValueError: The round is none of these, there is no such checkpoint, it is
            damaged, or config.json was changed since.
        """
        round = round_of(round)
        experiment = self.experiment
        if round == "best":
            state = load_best(self.folder, experiment).state
        else:
            init = experiment.algorithm.init
            like = jax.eval_shape(init, experiment.key, experiment.federation)
            number = None if round == "last" else round
            check = functools.partial(check_unchanged, self.folder, experiment.config)
            folder = self.folder / CHECKPOINTS
            restored = checkpoint.restore(folder, like, number, check)
            for line in restored.skipped:
                warnings.warn(line, stacklevel=2)
            state = restored.state
        params = experiment.algorithm.deploy(state, experiment.federation)
        return params, state.batch_stats

    def predict(
        self,
        inputs: Mapping[str, Any],
        available: Any = None,
        round: Round = "last",
    ) -> np.ndarray:
        """Fused logits of samples.

        Args:
          inputs: Modality -> [n, ...], as in training; what a sample lacks may hold
            anything finite.
          available: [n, M], which modalities each sample has; None: all.
          round: Of the model, see ``params``.

        Returns:
          [n, C] float32 logits z; softmax gives probabilities, argmax the class.

        Raises:
          ValueError: A modality is missing or has another shape, lengths disagree, or
            a value is not finite.
        """
        table, arrays = _samples(self.experiment.dataset, inputs, available)
        logits, found = jax.jit(self.predictor(round)), []
        for i in range(0, len(table), PREDICT_BATCH):
            rows = slice(i, i + PREDICT_BATCH)
            batch = jax.tree.map(lambda x, r=rows: x[r], arrays)
            found.append(np.asarray(logits(batch, table[rows])))
        return np.concatenate(found)

    def predictor(self, round: Round = "last") -> Callable[..., jax.Array]:
        """The model as a pure function: ``(inputs, available [n, M]) -> logits``.

        Args:
          round: Of the model, see ``params``.

        Raises:
          ValueError: See ``params``.
        """
        model = self.experiment.model
        params, stats = self.params(round)

        def logits(inputs: dict[str, jax.Array], available: jax.Array) -> jax.Array:
            size = available.shape[0]
            nothing, ones = jnp.zeros(size, jnp.int32), jnp.ones(size)
            batch = Batch(inputs, nothing, ones, available, jnp.arange(size))
            return model.apply(params, stats, batch, False)[0].logits

        return logits

    def evaluate(
        self, dataset: Dataset | None = None, round: Round = "last"
    ) -> dict[str, Any]:
        """Metrics of a model of the run on test samples.

        Args:
          dataset: Whose test split to take; None: the run's own.
          round: Of the model, see ``params``.

        Returns:
          ``evaluation.summarise``; with the run's own data of the clients, too.

        Raises:
          ValueError: The data set has other modalities, shapes or classes.
        """
        experiment, own = self.experiment, self.experiment.dataset
        params, stats = self.params(round)
        if dataset is None:
            return dict(summarise(experiment.evaluate(params, stats)))
        for what in ("modalities", "shapes", "num_classes"):
            theirs, ours = getattr(dataset, what), getattr(own, what)
            if theirs != ours:
                raise ValueError(
                    f"dataset: its {what} are {theirs}, those of the run {ours}"
                )
        evaluate = build_evaluator(
            experiment.model, dataset.test, None, metrics=self.parts.metrics
        )
        return dict(summarise(evaluate(params, stats)))


def load_run(
    folder: str | pathlib.Path,
    *,
    dataset: Dataset | None = None,
    encoders: Mapping[str, Any] | None = None,
    model: Model | None = None,
    method: Method | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Run:
    """Opens a run's folder; its data are loaded when they are needed.

    Args:
      folder: What ``fedcmi train`` or ``train(output=...)`` wrote; of several seeds the
        folder of one (``seed-S``).
      dataset: As it was given to ``train``; so are all others.
      encoders: Modality -> flax module.
      model: The model.
      method: The method.
      metrics: Name -> metric, for ``Run.evaluate``; may be left out.

    Returns:
      The run.

    Raises:
      ValueError: It is no run, its configuration is damaged, or it has several seeds.

    Example:
      >>> load_run("no/such/folder")
      Traceback (most recent call last):
      ValueError: no/such/folder is no run: there is no such folder
    """
    folder = pathlib.Path(folder)
    parts = Parts(dataset, encoders, model, method, metrics or None)
    check_run(folder)
    config = training.read_config(folder, parts, to_read=True)
    if config.seeds > 1:
        one = seeds.folder_of(folder, config.seed)
        raise ValueError(f"{folder} is a run of {config.seeds} seeds; give e.g. {one}")
    return Run(folder, config, parts)


def _samples(
    dataset: Dataset, inputs: Mapping[str, Any], available: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Checked samples: [n, M] float32 what they have, and their arrays."""
    if not isinstance(inputs, Mapping) or set(inputs) != set(dataset.modalities):
        has = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise ValueError(
            f"inputs: has {has}, the run's modalities are {sorted(dataset.modalities)}"
        )
    arrays = {}
    for m in dataset.modalities:
        where, like = f"inputs, modality {m!r}", dataset.shapes[m]
        arrays[m] = _like(where, like, inputs[m])
    sizes = {
        what: len(x)
        for m in arrays
        for what, x in named_arrays(f"modality {m!r}", arrays[m])
    }
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(f"inputs: numbers of samples differ, or are 0: {sizes}")
    shape = (next(iter(sizes.values())), len(dataset.modalities))
    table = np.ones(shape, bool) if available is None else table_of(available, shape)
    empty = np.flatnonzero(~table.any(axis=1))
    if empty.size:
        raise ValueError(f"available: sample {empty[0]} has no modality")
    return table.astype(np.float32), arrays


def _like(where: str, like: Any, values: Any) -> Any:
    """A modality's arrays, of the shapes and dtypes of the run's."""
    if isinstance(like, dict):
        if not isinstance(values, Mapping) or set(values) != set(like):
            raise ValueError(f"{where}: give a dict of the arrays {sorted(like)}")
        return {k: _like(f"{where}, {k!r}", like[k], values[k]) for k in like}
    x = numeric(where, values)
    if x.shape[1:] != like:
        raise ValueError(
            f"{where}: shape {x.shape}; the run's samples have "
            f"[n, {', '.join(map(str, like))}]"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"{where}: holds what is no finite number")
    if x.dtype != like.dtype and like.dtype in (np.float32, np.int32):
        raise ValueError(f"{where}: is of {x.dtype}, the run's of {like.dtype}")
    return x.astype(like.dtype, copy=False)
