"""The commands: one dataclass each, which parser and help are generated from.

Nothing large is imported up here. What a command needs is imported when it runs or has
its defaults decided: help, mistakes and small commands then do not wait for JAX.
"""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from tyro.conf import Positional, arg

from fedcmi_jax.cli.command import FLAT, Command, Group, Launch
from fedcmi_jax.cli.run_commands import (
    Configured,
    Evaluate,
    Export,
    Predict,
    Resume,
    Train,
)
from fedcmi_jax.cli.sweep_commands import Compare, SweepClients, SweepRun

if TYPE_CHECKING:
    from fedcmi_jax.experiment.config import Config
else:
    Config = Any  # the parser takes the type of the default

What = Literal[
    "all",
    "presets",
    "datasets",
    "methods",
    "partitions",
    "encoders",
    "aggregators",
    "attacks",
    "privacy",
    "compressions",
    "systems",
    "runs",
]
"""What ``fedcmi list`` shows."""


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
class Describe(Configured):
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
class DeployInit(Configured):
    """Writes a project for Flower, whose clients are processes with data of their own.

    ``fedcmi deploy init PRESET DIR [--FLAG=VALUE ...]``; flwr run takes the folder
    (docs/deploy.md). Needs no Flower itself. The flags of fedcmi train are known.

    Attributes:
      config: The configuration; its output is DIR, new or empty.
    """

    takes = "a preset, a folder, then flags"

    @classmethod
    def settle(cls, args: Sequence[str]) -> tuple[Self, list[str]]:
        """See ``Command``; the folder behind the preset is its output."""
        given = list(args)
        if len(given) > 1 and not any(x.startswith("-") for x in given[:2]):
            given[1] = f"--output={given[1]}"
        return super().settle(given)

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import deploy

        return deploy.init(self)


@dataclass(frozen=True)
class List(Command):
    """Lists presets, data sets, methods, partitions, encoders and runs.

    Attributes:
      what: What to list.
      folder: Where to look for runs, at any depth; None: runs.
      imports: Modules of your own whose methods, data sets... to list, too.
    """

    takes = f"one of {', '.join(get_args(What))}, and behind runs a folder"
    what: Positional[What] = "all"
    folder: Positional[pathlib.Path | None] = None
    imports: Annotated[tuple[str, ...], arg(name="import")] = ()

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import lists

        return lists.run(self)


@dataclass(frozen=True)
class Report(Command):
    """Writes a page, a text, tables and figures on runs and sweeps.

    The page is index.html in the folder --output; it loads nothing. Beside it are
    report.md, all tables as CSV, and all figures as SVG and PNG. Runs given side by
    side are called by what differs between them; unfinished ones have what there is.

    Attributes:
      folders: Runs (of one seed or several) and sweeps.
      baseline: What to compare with: an entry's label, or a value such as fedavg; None:
        the sweep's baseline, or the first entry.
      output: Folder to write: new, empty, or a report, which is replaced.
      target: Accuracy in (0, 1] for rounds, seconds and bytes to reach it; None: the
        baseline's final mean.
    """

    takes = "run or sweep folders, then flags; `fedcmi list runs` shows what is here"
    folders: Annotated[tuple[pathlib.Path, ...], Positional, arg(metavar="RUN")] = ()
    baseline: str | None = None
    output: str = "report"
    target: float | None = None

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import report

        return report.run(self)


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
        "sweep": Group(
            "Trains every cell of a plan: fedcmi sweep FILE.toml, or a sweep's folder "
            "to go on with it. Or measures over client counts: fedcmi sweep clients.",
            {"run": SweepRun, "clients": SweepClients},
            default="run",
        ),
        "compare": Compare,
        "bench": Bench,
        "data": Group(
            "Prepares data sets, and shows how they are dealt out.",
            {"prepare": Prepare, "describe": Describe},
        ),
        "deploy": Group(
            "Takes a federation out of the simulation.", {"init": DeployInit}
        ),
        "list": List,
        "report": Report,
        "doctor": Doctor,
    },
)
"""All commands."""
