"""What all commands share: the record's methods, groups, and where a command runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Self

from tyro.conf import arg

FLAT = arg(name="")
"""Marks a field whose own fields are flags without a prefix."""


class Command:
    """What the dataclass of a command has besides its fields."""

    takes: ClassVar[str] = "flags only"
    """Its arguments in words, for one-line errors."""

    @classmethod
    def settle(cls, args: Sequence[str]) -> tuple[Self | None, list[str]]:
        """Decides the defaults by the arguments that come first or choose others.

        Args:
          args: Arguments behind the command's name.

        Returns:
          The command with its defaults, None if the arguments do not matter, and the
          arguments that are left.

        Raises:
          ValueError: A name is unknown.
        """
        return None, list(args)

    def run(self) -> int:
        """Runs the command.

        Returns:
          The exit code.
        """
        raise NotImplementedError


class Group(NamedTuple):
    """Commands below a common name.

    Attributes:
      help: One line.
      commands: Name -> command or group.
      default: The one that is meant where a file or a folder stands in a command's
        place; "": none.
    """

    help: str
    commands: "Mapping[str, type[Command] | Group]"
    default: str = ""


@dataclass(frozen=True)
class Launch:
    """Where a command runs; never part of a run's configuration.

    Attributes:
      devices: Devices that share every cohort; auto: all there are.
      host_devices: Devices to split the CPU into; None: one per core, at most eight; of
        several processes each has one.
      spread_samples: Each device holds a part of the training samples, which travel to
        the device that trains on them: for data larger than one device. No effect on
        results.
      coordinator: HOST:PORT of process 0, for several processes that train together, of
        which process 0 writes; None: alone, or found on TPU pods and under SLURM.
      num_processes: Number of these processes.
      process_id: Which of them this one is, from 0.
    """

    devices: int | Literal["auto"] = "auto"
    host_devices: int | None = None
    spread_samples: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


@dataclass(frozen=True)
class Follow:
    """What follows a run besides its own files; never part of its configuration.

    Attributes:
      log: tensorboard, wandb: metrics go there, too, from RUN/tensorboard and RUN/wandb
        (offline where nobody is logged in); each needs the extra of its name.
    """

    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
