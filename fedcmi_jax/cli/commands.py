"""The commands: one dataclass each, which parser and help are generated from.

Nothing large is imported up here. What a command needs is imported when it runs or has
its defaults decided: help, mistakes and small commands then do not wait for JAX.
"""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from tyro.conf import Positional, arg

from fedcmi_jax.cli.command import FLAT, Command, Group, Launch

if TYPE_CHECKING:
    from fedcmi_jax.experiment.config import Config
else:
    Config = Any  # the parser takes the type of the default

RUNS = pathlib.Path("runs")
"""Where run folders go unless --output says otherwise."""

What = Literal[
    "all", "presets", "datasets", "methods", "partitions", "encoders", "runs"
]
"""What ``fedcmi list`` shows."""


@dataclass(frozen=True)
class _Configured(Command):
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
class Train(_Configured):
    """Trains, and leaves a folder with configuration, metrics and checkpoints.

    Defaults are those of the preset. The names (--dataset.name, --partition.name,
    --encoder.name, --method.name) decide which other flags of their sections there are:
    --help behind a name shows its own. All names and presets: fedcmi list.

    Attributes:
      config: The configuration.
      launch: Devices and processes.
    """

    launch: Annotated[Launch, FLAT] = Launch()

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
    """

    takes = (
        "a run folder and nothing else (a run's configuration is fixed); `fedcmi list "
        "runs` shows what is here"
    )
    run_folder: Annotated[pathlib.Path, Positional, arg(metavar="RUN")]
    launch: Annotated[Launch, FLAT] = Launch()

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import train

        return train.resume(self)


@dataclass(frozen=True)
class _OfRun(Command):
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
class Evaluate(_OfRun):
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
class Predict(_OfRun):
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
class Export(_OfRun):
    """Writes a model of a run for use without this package.

    A folder with ``params.npz`` (an array per parameter and statistic, by path),
    ``predict.stablehlo`` (a portable program: inputs and available [b, M] -> logits [b,
    C], any number of samples b) and ``model.json`` (modalities, shapes, classes); with
    the extra ``export`` also ``predict.jax``, which ``jax.export.deserialize`` reads.

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


@dataclass(frozen=True)
class SweepClients(_Configured):
    """Measures seconds, memory and accuracy at growing client counts.

    The work per client is the same at every count: 32 samples. Writes sweep.json,
    sweep.md and sweep.png into the folder --output. Without a preset: synthetic data,
    everybody multimodal, one epoch. The flags of fedcmi train apply.

    Attributes:
      config: The configuration.
      counts: Client counts.
      participation: Share of the clients in every round's cohort, in (0, 1].
      launch: Devices and processes.
    """

    counts: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000)
    participation: float = 1.0
    launch: Annotated[Launch, FLAT] = Launch()

    @classmethod
    def base(cls, preset: str | None) -> "Config":
        """See ``_Configured``: few rounds of one large step, for speed is measured."""
        from fedcmi_jax.experiment.config import section
        from fedcmi_jax.experiment.presets import preset as preset_of

        config = preset_of(preset or "synthetic")
        if preset is None:
            local = replace(config.local, epochs=1)
            config = replace(config, multimodal_fraction=1.0, local=local)
        return replace(
            config,
            rounds=5,
            partition=section("partition", "iid")(),
            local=replace(config.local, learning_rate=0.3),
            chunk_size=100,  # small clients want many at once (docs/speed.md)
        )

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import sweep

        return sweep.run(self)


@dataclass(frozen=True)
class Bench(Command):
    """Times compiled rounds, ours and others' in turns; or compiles them for a TPU pod.

    Attributes:
      workload: One of mlp, convnet, uneven, resnet18, or all of these; or layers: every
        convolution of convnet and resnet18 alone, forward and backward, on one core.
      method: Methods, comma-separated, or all.
      clients: Client counts, comma-separated; empty: the workload's own.
      chunk_size: Clients computed together; 0: the workload's own; auto: measured; with
        --topology also several, comma-separated.
      topology: TPU pod to compile for, without one: v5e:8x8. Nothing runs; memory per
        chip, collectives, cycles of layers. Needs the extra tpu.
      against: torch, pfl, flower or fedjax: the same work there, interleaved; empty:
        nobody.
      peers: Folder with the scripts and environments of those, the repository's
        experiments/benchmarks; None: that folder below the current one.
      repeats: Timed rounds of every entry.
      output: JSON file to write; None: bench-WORKLOAD.json; a topology is named too.
      launch: Devices and processes.
    """

    workload: str = "mlp"
    method: str = "fedavg,fedcmi"
    clients: str = ""
    chunk_size: str = "0"
    topology: str = ""
    against: str = ""
    peers: pathlib.Path | None = None
    repeats: int = 7
    output: str | None = None
    launch: Annotated[Launch, FLAT] = Launch()

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import bench, bench_topology

        return bench_topology.run(self) if self.topology else bench.run(self)


@dataclass(frozen=True)
class NoOptions:
    """The options of a data set that is not named yet."""


@dataclass(frozen=True)
class Prepare(Command):
    """Downloads and prepares a data set, and prints its counts.

    The options are those of the data set: fedcmi data prepare NAME --help. Most have a
    --data-dir and a --manual-dir, those of original files a --root and --workers. What
    there is, and what has to be got by hand: fedcmi list datasets.

    Attributes:
      name: The data set.
      options: Its options.
    """

    takes = "a data set first, then its options: fedcmi data prepare NAME --help"
    name: Annotated[str, Positional, arg(metavar="NAME")]
    options: Annotated[Any, FLAT] = NoOptions()

    @classmethod
    def settle(cls, args: Sequence[str]) -> tuple[Self | None, list[str]]:
        """See ``Command``; the data set is named first."""
        if args and args[0] in ("-h", "--help"):
            return None, list(args)
        from fedcmi_jax.cli import sections

        sections.load_plugins(args)
        name, options = sections.dataset_options(args[0] if args else "")
        return cls(name, options), list(args[1:])

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import prepare

        return prepare.run(self)


@dataclass(frozen=True)
class Describe(_Configured):
    """Shows who holds what: samples, classes and modalities of every client.

    Deals the training samples out as fedcmi train would, and draws class counts,
    modalities and sizes too if the output is a picture (--output=FILE.png). The flags
    of fedcmi train are known; those of training have no effect.

    Attributes:
      config: The configuration.
    """

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import describe

        return describe.run(self)


@dataclass(frozen=True)
class List(Command):
    """Lists presets, data sets, methods, partitions, encoders and runs.

    Attributes:
      what: What to list.
      imports: Modules of your own whose methods, data sets... to list, too.
    """

    takes = f"one of {', '.join(get_args(What))}"
    what: Positional[What] = "all"
    imports: Annotated[tuple[str, ...], arg(name="import")] = ()

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import lists

        return lists.run(self)


@dataclass(frozen=True)
class Doctor(Command):
    """Checks what is installed, whether it computes right, and says what to do.

    Prints versions, devices, cores, memory, caches, XLA_FLAGS and the known defects of
    the installed jaxlib. Computes sums that a defective compiler gets wrong. The exit
    code is 1 if a check fails.
    """

    takes = "no arguments"

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import doctor

        return doctor.run()


COMMANDS = Group(
    "Federated multimodal learning. fedcmi --version prints the version.",
    {
        "train": Train,
        "resume": Resume,
        "evaluate": Evaluate,
        "predict": Predict,
        "export": Export,
        "sweep": Group("Measures over a range.", {"clients": SweepClients}),
        "bench": Bench,
        "data": Group(
            "Prepares data sets, and shows how they are dealt out.",
            {"prepare": Prepare, "describe": Describe},
        ),
        "list": List,
        "doctor": Doctor,
    },
)
"""All commands."""
