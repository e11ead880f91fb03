"""Metrics lines for TensorBoard and Weights & Biases, besides metrics.jsonl."""

import importlib
import os
import secrets
from collections.abc import Sequence
from typing import Any, ClassVar

from fedcmi_jax.experiment.callbacks import Begun, Callback, Ending
from fedcmi_jax.experiment.config import to_dict
from fedcmi_jax.experiment.files import read_json, write_json

WANDB_ID = "wandb.json"
"""File in the run's folder with the id of its run at Weights & Biases."""

PROJECT = "fedcmi_jax"
"""Project at Weights & Biases where WANDB_PROJECT names none."""


class Logger(Callback):
    """A logger: what is written, and where, is for derived classes to say.

    Attributes:
      package: What it needs.
      extra: The extra of this package that installs it.

    Raises:
      ValueError: The package is not installed.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    def __init__(self) -> None:
        try:
            self.module = importlib.import_module(self.package)
        except ImportError:
            raise ValueError(
                f"log: {self.extra} needs the package {self.package}; install it with: "
                f"pip install 'fedcmi_jax[{self.extra}]'"
            ) from None

    def open(self, begun: Begun) -> None:
        """The run starts or goes on, after ``begun.round``."""
        raise NotImplementedError

    def write(self, round: int, numbers: dict[str, float]) -> None:
        """Writes the numbers of an evaluated round."""
        raise NotImplementedError

    def close(self, how: Ending) -> None:
        """The run has ended; also where ``open`` failed."""
        raise NotImplementedError

    def started(self, begun: Begun) -> None:
        """See ``Callback``."""
        if begun.folder is None:
            raise ValueError(f"{self.extra} writes into a run's folder; give output")
        self.open(begun)

    def evaluated(self, record: dict[str, Any]) -> None:
        """See ``Callback``."""
        self.write(record["round"], numbers_of(record))

    def ended(self, round: int, how: Ending) -> None:
        """See ``Callback``."""
        self.close(how)


class TensorBoard(Logger):
    """Event files in RUN/tensorboard: ``tensorboard --logdir=runs``.

    A run that goes on tells TensorBoard to drop what a killed process wrote after the
    checkpoint, so every round is there once.
    """

    package, extra = "tensorboardX", "tensorboard"
    writer: Any = None

    def open(self, begun: Begun) -> None:
        """See ``Logger``."""
        assert begun.folder is not None  # Logger.started
        purge = begun.round + 1 if begun.round else None
        self.writer = self.module.SummaryWriter(
            str(begun.folder / "tensorboard"), purge_step=purge
        )

    def write(self, round: int, numbers: dict[str, float]) -> None:
        """See ``Logger``."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, round)
        self.writer.flush()

    def close(self, how: Ending) -> None:
        """See ``Logger``."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class WandB(Logger):
    """A run at Weights & Biases, its files in RUN/wandb.

    Where nobody is logged in it is written offline, for ``wandb sync``; WANDB_MODE,
    WANDB_PROJECT and WANDB_ENTITY are wandb's own and go first. A run that goes on
    keeps its id (RUN/wandb.json). Rounds that a killed process had sent already are
    refused there the second time, for steps only grow; offline, they stand in the
    files of both processes, with the same numbers.
    """

    package, extra = "wandb", "wandb"
    run: Any = None

    def open(self, begun: Begun) -> None:
        """See ``Logger``."""
        assert begun.folder is not None  # Logger.started
        path = begun.folder / WANDB_ID
        if not path.exists():
            write_json(path, {"id": secrets.token_hex(8)})
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not self.module.login(prompt=False):
            mode = "offline"
        self.run = self.module.init(
            id=read_json(path)["id"],
            resume="allow" if mode != "offline" else None,
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=begun.folder.name,
            dir=str(begun.folder),
            config=to_dict(begun.config),
            mode=mode,
        )

    def write(self, round: int, numbers: dict[str, float]) -> None:
        """See ``Logger``."""
        self.run.log(numbers, step=round)

    def close(self, how: Ending) -> None:
        """See ``Logger``."""
        if self.run is not None:
            self.run.finish(exit_code=0 if how in ("finished", "stopped") else 1)
            self.run = None


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""Name -> logger."""


def loggers(names: Sequence[str]) -> list[Callback]:
    """Loggers by name.

    Raises:
      ValueError: A name is unknown, or its package is not installed.

    Example:
      >>> loggers(["paper"])
      Traceback (most recent call last):
      ValueError: log: 'paper' is none of tensorboard, wandb
    """
    for name in names:
        if name not in LOGGERS:
            raise ValueError(f"log: {name!r} is none of {', '.join(LOGGERS)}")
    return [LOGGERS[name]() for name in dict.fromkeys(names)]


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """The numbers of a metrics line but its round.

    Example:
      >>> numbers_of({"round": 3, "acc": 0.5, "per_class": [0.5, 0.5]})
      {'acc': 0.5}
    """
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and name != "round"
    }
