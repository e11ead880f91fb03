"""The best round on validation, and when to stop waiting for a better one."""

import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedcmi_jax.experiment import checkpoint, hosts
from fedcmi_jax.experiment.config import trains_in_turn
from fedcmi_jax.experiment.config_file import read_config
from fedcmi_jax.experiment.experiment import Experiment, build
from fedcmi_jax.experiment.metrics_log import MetricsLog
from fedcmi_jax.experiment.resume import check_unchanged
from fedcmi_jax.experiment.run_folder import BEST, CONFIG, METRICS, SUMMARY
from fedcmi_jax.types import FederationState

COLUMN = "val_acc"
"""The metric that chooses: fused accuracy on the validation split."""


class Best(NamedTuple):
    """The evaluated round with the highest validation accuracy; the earliest of equals.

    Attributes:
      round: Its round; 0: there is none yet.
      value: Its accuracy.

    Example:
      >>> lines = [{"round": r, "val_acc": a} for r, a in ((5, 0.5), (10, 0.5))]
      >>> best_of(lines)
      Best(round=5, value=0.5)
    """

    round: int = 0
    value: float = float("-inf")

    def is_beaten_by(self, record: Mapping[str, Any]) -> bool:
        """Whether a metrics line has a higher validation accuracy."""
        value = record.get(COLUMN)
        return value is not None and value > self.value


def best_of(records: Iterable[Mapping[str, Any]]) -> Best:
    """The best of metrics lines in the order of their rounds.

    Args:
      records: Lines; those without validation accuracy are passed over.

    Returns:
      The best, of round 0 where no line has a validation accuracy.
    """
    best = Best()
    for record in records:
        if best.is_beaten_by(record):
            best = Best(record["round"], record[COLUMN])
    return best


def should_stop(best: Best, round: int, patience: int | None) -> bool:
    """Whether the last ``patience`` rounds brought no better one.

    round - best.round >= patience; to be asked at evaluated rounds only.

    Args:
      best: The best round up to ``round``.
      round: An evaluated round.
      patience: Rounds to wait for a better one; None: for ever.

    Example:
      >>> should_stop(Best(5, 0.5), 15, 10), should_stop(Best(6, 0.5), 15, 10)
      (True, False)
    """
    return patience is not None and round - best.round >= patience


def best_so_far(
    folder: pathlib.Path,
    state: FederationState,
    log: MetricsLog,
    note: Callable[[str], None],
) -> Best:
    """The best round of a run that starts or goes on.

    Args:
      folder: The run's folder.
      state: The state from which it goes on.
      log: Its metrics log, as far as that state.
      note: Receives a line if the checkpoint of the best round is gone.
    """
    best = best_of(log.read()) if hosts.is_main() else Best()
    if best.round:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        try:
            # One of a later round comes from a killed process and will come again.
            is_there = checkpoint.restore(folder / BEST, like).round >= best.round
        except ValueError:
            is_there = False
        if not is_there:
            note(
                f"{folder / BEST} has lost round {best.round}, the best so far; the "
                "next better round is kept there"
            )
    return best._replace(round=int(hosts.agree(np.int32(best.round))))


def load_best(
    folder: str | pathlib.Path, experiment: Experiment | None = None
) -> checkpoint.Restored:
    """The state of the best round on validation.

    Args:
      folder: A run's folder; of seeds one after the other, that of one (``seed-S``).
      experiment: Its experiment, on one device; None: built from its config.json.

    Returns:
      The state and its round. Of mapped seeds: all their states
      (``seed_axis.one_seed``).

    Raises:
      ValueError: There is none, it is damaged, or the folder is that of several seeds.

    Example:
      >>> load_best("no/such/folder")
      Traceback (most recent call last):
      ValueError: no/such/folder/config.json: there is no such file; give a run's folder
    """
    folder = pathlib.Path(folder)
    if not (folder / CONFIG).is_file():
        path = folder / CONFIG
        raise ValueError(f"{path}: there is no such file; give a run's folder")
    config = experiment.config if experiment else read_config(folder, to_read=True)
    if trains_in_turn(config):
        raise ValueError(
            f"{folder} is a run of {config.seeds} seeds, each with a best round of its "
            f"own; give one of its seed-S folders, e.g. {folder}/seed-{config.seed}"
        )
    best = best_of(MetricsLog(folder / METRICS).read())
    if not best.round:
        raise ValueError(
            f"{folder} has no best round: none was evaluated on a validation split; "
            "train with --validation-fraction=0.1"
        )
    experiment = experiment or build(config)
    init = experiment.algorithm.init
    like = jax.eval_shape(init, experiment.key, experiment.federation)
    check = functools.partial(check_unchanged, folder, config)
    restored = checkpoint.restore(folder / BEST, like, check=check)
    if (folder / SUMMARY).exists() and restored.round != best.round:
        raise ValueError(
            f"{folder / BEST} holds round {restored.round}, but the best is round "
            f"{best.round}; its checkpoint was lost"
        )
    return restored
