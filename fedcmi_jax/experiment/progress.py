"""A run's progress as a person sees it: a bar, or lines where there is no terminal."""

import importlib.util
import sys
from typing import Any

import rich.console
import rich.progress

from fedcmi_jax.experiment.callbacks import Begun, Callback, Ending
from fedcmi_jax.experiment.output import say

MOST_PLAIN_LINES = 20
"""Lines of progress of a run whose output is not a terminal."""


def progress(console: rich.console.Console | None = None) -> Callback:
    """A bar in a terminal or a notebook, else lines.

    A notebook without the package ipywidgets has lines: rich draws no bar there.

    Args:
      console: Where the bar goes; None: standard output, or the notebook's cell.

    Example:
      >>> import fedcmi_jax as fc
      >>> config = {"dataset": {"name": "synthetic", "train_samples": 200},
      ...     "method": {"name": "fedavg"}, "rounds": 1}
      >>> history = fc.train(config, callbacks=[progress()])  # doctest: +ELLIPSIS
      training from round 0 to 1
      round 1/1  accuracy ... %
    """
    console = console or rich.console.Console()
    if console.is_jupyter:
        draws = _has("ipywidgets")
    else:
        draws = console.file.isatty()
    return BarProgress(console) if draws else PlainProgress()


def _has(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # someone has put None in its place
        return False


def percent(value: float | None) -> str:
    """A share as a person reads it.

    Example:
      >>> percent(0.5), percent(None)
      ('50.0 %', '-')
    """
    return "-" if value is None else f"{100 * value:.1f} %"


def modality_accuracies(record: dict[str, Any]) -> dict[str, float]:
    """Modality -> fused accuracy with the other modalities zero.

    Example:
      >>> modality_accuracies({"acc": 0.5, "acc_audio_zero": 0.25})
      {'audio': 0.25}
    """
    return {
        name.removeprefix("acc_").removesuffix("_zero"): value
        for name, value in record.items()
        if name.startswith("acc_") and name.endswith("_zero")
    }


def _line(record: dict[str, Any]) -> str:
    parts = [f"accuracy {percent(record['acc'])}"]
    parts += [f"{m} {percent(a)}" for m, a in modality_accuracies(record).items()]
    return "  ".join(parts)


class PlainProgress(Callback):
    """One line per evaluated round, at most about twenty a run."""

    def started(self, begun: Begun) -> None:
        """Says where training starts."""
        self.rounds = begun.config.rounds
        self.next = 0.0
        say(f"training from round {begun.round} to {self.rounds}")

    def evaluated(self, record: dict[str, Any]) -> None:
        """Prints the round if its turn has come."""
        round = record["round"]
        if round >= self.next or round == self.rounds:
            say(f"round {round}/{self.rounds}  {_line(record)}")
            self.next = round + self.rounds / MOST_PLAIN_LINES

    def note(self, text: str) -> None:
        """Prints a note on standard error."""
        say(f"fedcmi: {text}", sys.stderr)


class BarProgress(Callback):
    """A progress bar with round, accuracies and the time left.

    Args:
      console: Where it goes; None: standard output.
    """

    def __init__(self, console: rich.console.Console | None = None):
        self.console = console or rich.console.Console()
        self.bar: rich.progress.Progress | None = None

    def started(self, begun: Begun) -> None:
        """Shows the bar."""
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[line]}"),
            console=self.console,
        )
        self.task = self.bar.add_task(
            "train", total=begun.config.rounds, completed=begun.round, line="compiling"
        )
        self.bar.start()

    def evaluated(self, record: dict[str, Any]) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=record["round"], line=_line(record))

    def ended(self, round: int, how: Ending) -> None:
        """Leaves the bar as it is."""
        if self.bar is not None:
            if self.console.is_jupyter:
                self.bar.refresh()  # rich leaves out the last one there
            self.bar.stop()

    def note(self, text: str) -> None:
        """Prints a note above the bar."""
        self.console.print(
            f"fedcmi: {text}", highlight=False, markup=False, soft_wrap=True
        )
