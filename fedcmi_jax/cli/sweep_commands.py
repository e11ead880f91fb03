"""The commands on many runs: sweep FILE.toml, sweep clients, compare.

As in ``commands``, nothing large is imported up here.
"""

import pathlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Self

from tyro.conf import Positional, Suppress, arg

from fedcmi_jax.cli.command import FLAT, Command, Launch
from fedcmi_jax.cli.run_commands import Configured

if TYPE_CHECKING:
    from fedcmi_jax.experiment.config import Config
else:
    Config = Any  # the parser takes the type of the default


@dataclass(frozen=True)
class SweepRun(Command):
    """Trains every cell of a plan, or goes on with a sweep; run may be left out.

    Finished cells are skipped, a cell that fails is recorded and the rest goes on. The
    folder has a run's folder per cell, table.csv and table.md. Several processes may
    go on with one sweep at a time. The file: docs/sweeps.md.

    Attributes:
      source: A TOML file, or the folder of a sweep.
      output: The sweep's folder: new, or of this very plan, which then goes on; None: a
        new one under runs/.
      dry_run: Prints the cells and an estimate from one measured round of every
        distinct program; trains and writes nothing.
      launch: Devices.
    """

    takes = "a TOML file or a sweep's folder first, then flags"
    source: Annotated[pathlib.Path, Positional, arg(metavar="FILE.toml|SWEEP")]
    output: pathlib.Path | None = None
    dry_run: bool = False
    launch: Annotated[Launch, FLAT] = Launch()

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import sweeps

        return sweeps.run(self)


LISTS = {
    "--methods": "--methods=fedavg,fedcmi",
    "--grid": "--grid=partition.alpha=0.1,5",
    "--tune": "--tune=local.learning_rate=0.01,0.1",
}
"""Flags of ``Compare`` with several values or several times, and an example of each."""


@dataclass(frozen=True)
class Compare(Configured):
    """Trains several methods on one problem, or a grid of them, and prints the table.

    The flags of fedcmi train apply to all methods; --seeds=5 for five seeds. Each
    method is a run's folder below --output, beside table.csv and table.md: see fedcmi
    sweep, which goes on with a comparison that was interrupted.

    Attributes:
      config: The configuration.
      methods: Names, comma-separated: methods, and fedcmi-heads-only or another of
        FedCMI's ablations.
      grid: FIELD=VALUE,VALUE... of what is crossed; several, or several times.
      tune: FIELD=VALUE,VALUE... of what every method gets the best of, by validation.
      tune_seeds: Seeds of every tuning trial.
      baseline: Whom the others are compared with; None: the first method.
      measure: Column of the metrics that is compared.
      dry_run: Prints the cells and an estimate from one measured round of every
        distinct program; trains and writes nothing.
      launch: Devices.
      source: The command line.
    """

    methods: tuple[str, ...] = ("fedavg", "fedcmi-heads-only", "fedcmi")
    grid: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    tune_seeds: int = 1
    baseline: str | None = None
    measure: str = "acc"
    dry_run: bool = False
    launch: Annotated[Launch, FLAT] = Launch()
    source: Annotated[str, Suppress] = ""

    @classmethod
    def settle(cls, args: Sequence[str]) -> tuple[Self, list[str]]:
        """See ``Configured``; flags that are there several times become one."""
        if any(word.partition("=")[0] == "--method.name" for word in args):
            raise ValueError(
                "--method.name: --methods names the methods; leave it out, and write "
                "options of single methods into a file for fedcmi sweep"
            )
        chosen, rest = super().settle(args)
        lists: dict[str, list[str]] = {}
        others: list[str] = []
        words = list(rest)
        while words:
            word = words.pop(0)
            flag, equals, value = word.partition("=")
            if flag not in LISTS:
                others.append(word)
                continue
            values = [value] if value else []
            while not equals and words and not words[0].startswith("--"):
                values.append(words.pop(0))
            if not values:
                raise ValueError(f"{flag}: has no value; give {LISTS[flag]}")
            lists.setdefault(flag, []).extend(values)
        joined = [f"{flag}={','.join(values)}" for flag, values in lists.items()]
        source = shlex.join(["fedcmi", "compare", *args])
        return replace(chosen, source=source), [*others, *joined]

    def run(self) -> int:
        """See ``Command``."""
        from fedcmi_jax.cli import sweeps

        return sweeps.compare(self)


@dataclass(frozen=True)
class SweepClients(Configured):
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
        """See ``Configured``: few rounds of one large step, for speed is measured."""
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
