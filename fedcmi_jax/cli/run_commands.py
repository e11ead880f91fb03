"""The commands on runs: train, resume, evaluate, predict, export.

As in ``commands``, nothing large is imported up here.
"""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

from tyro.conf import Positional, arg

from fedcmi_jax.cli.command import FLAT, Command, Follow, Launch

if TYPE_CHECKING:
    from fedcmi_jax.experiment.config import Config
else:
    Config = Any  # the parser takes the type of the default

RUNS = pathlib.Path("runs")
"""Where run folders go unless --output says otherwise."""


@dataclass(frozen=True)
class Configured(Command):
    """A command with a run's configuration: ``[PRESET] [--FLAG=VALUE ...]``.

    Attributes:
      config: The configuration.
    """

    takes = "a preset first, then flags"
    config: Annotated[Config, FLAT]

    @classmethod
    def settle(cls, args: Sequence[str]) -> tuple[Self, list[str]]:
        """See ``Command``: the preset, and names such as --method.name."""
        from fedcmi_jax.cli import sections

        sections.load_plugins(args)
        preset, rest = sections.take_preset(args)
        config, rest = sections.take_names(cls.base(preset), rest)
        return cls(config=config), rest

    @classmethod
    def base(cls, preset: str | None) -> "Config":
        """The configuration with this preset, before flags."""
        from fedcmi_jax.experiment import presets

        return presets.preset(preset or presets.DEFAULT)


@dataclass(frozen=True)
class Train(Configured):
    """Trains, and leaves a folder with configuration, metrics and checkpoints.

    Defaults are those of the preset. The names (--dataset.name, --partition.name,
    --encoder.name, --method.name) decide which other flags of their sections there are:
    --help behind a name shows its own. All names and presets: fedcmi list.

    Attributes:
      config: The configuration.
      launch: Devices and processes.
      follow: Loggers.
    """

    launch: Annotated[Launch, FLAT] = Launch()
    follow: Annotated[Follow, FLAT] = Follow()

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import train

        return train.train(self)


@dataclass(frozen=True)
class Resume(Command):
    """Goes on with an interrupted run, by its own config.json.

    Attributes:
      run_folder: The run's folder; fedcmi list runs shows what is here.
      launch: Devices and processes; a run may go on with others.
      follow: Loggers; those of the start are not kept.
    """

    takes = (
        "a run folder and nothing else (a run's configuration is fixed); `fedcmi list "
        "runs` shows what is here"
    )
    run_folder: Annotated[pathlib.Path, Positional, arg(metavar="RUN")]
    launch: Annotated[Launch, FLAT] = Launch()
    follow: Annotated[Follow, FLAT] = Follow()

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import train

        return train.resume(self)


@dataclass(frozen=True)
class OfRun(Command):
    """A command on a run's folder.

    Attributes:
      run_folder: The run's folder; of several seeds that of one, RUN/seed-S.
      round: Which model: last, best (on validation), or the number of a round that has
        a checkpoint.
    """

    takes = "a run folder first, then flags; `fedcmi list runs` shows what is here"
    run_folder: Annotated[pathlib.Path, Positional, arg(metavar="RUN")]
    round: str = "last"


@dataclass(frozen=True)
class Evaluate(OfRun):
    """Measures a model of a run on its test split, and prints the numbers as JSON.

    Attributes:
      run_folder: The run's folder; of several seeds that of one, RUN/seed-S.
      round: Which model: last, best (on validation), or the number of a round that has
        a checkpoint.
    """

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import use

        return use.evaluate(self)


@dataclass(frozen=True)
class Predict(OfRun):
    """Applies a model of a run to samples of your own.

    The input is an .npz file with an array [n, ...] per modality, and, if samples lack
    some, ``available`` [n, M]. The output has ``logits`` [n, C], ``probabilities``
    [n, C], ``labels`` [n] and ``class_names`` [C].

    Attributes:
      run_folder: The run's folder; of several seeds that of one, RUN/seed-S.
      round: Which model: last, best (on validation), or the number of a round that has
        a checkpoint.
      input: The samples, an .npz file.
      output: The .npz file to write; must not exist.
    """

    input: pathlib.Path | None = None
    output: pathlib.Path | None = None

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import use

        return use.predict(self)


@dataclass(frozen=True)
class Export(OfRun):
    """Writes a model of a run for use without this package.

    A folder with ``params.npz`` (an array per parameter and statistic, by path),
    ``predict.stablehlo`` (a portable program: inputs and available [b, M] -> logits [b,
    C], any number of samples b) and ``model.json`` (modalities, shapes, classes); with
    the extra ``export`` also ``params.safetensors``, and ``predict.jax``, which
    ``jax.export.deserialize`` reads.

    Attributes:
      run_folder: The run's folder; of several seeds that of one, RUN/seed-S.
      round: Which model: last, best (on validation), or the number of a round that has
        a checkpoint.
      output: The folder to write, new or empty; None: RUN-export.
    """

    output: pathlib.Path | None = None

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import use

        return use.export(self)
