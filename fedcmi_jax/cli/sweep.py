"""``fedcmi sweep clients``: speed, memory and accuracy at growing client counts."""

import functools
import pathlib

from fedcmi_jax.cli import launch
from fedcmi_jax.cli.run_commands import RUNS
from fedcmi_jax.cli.sweep_commands import SweepClients
from fedcmi_jax.experiment import sweep
from fedcmi_jax.experiment.config import check_config
from fedcmi_jax.experiment.run_folder import (
    check_free,
    claim_folder,
    default_folder,
    make_folder,
)


def run(options: SweepClients) -> int:
    """Runs the command.

    Args:
      options: Its options.

    Returns:
      The exit code.

    Raises:
      ValueError: A count, the share or the configuration is impossible, or the folder
        has content.
      DivergedError: Some counts diverged.
    """
    config = options.config
    if not options.counts:
        raise ValueError("counts: is empty; give e.g. 10,100,1000")
    for clients in options.counts:
        check_config(sweep.sized(config, clients, options.participation))
    if config.output is None:
        folder = default_folder(RUNS, "sweep clients", config.seed)
    else:
        folder = pathlib.Path(config.output)
    check_free(folder)
    mesh = launch.start(options.launch)
    if config.output is None:
        folder = claim_folder(folder)
    else:
        make_folder(folder)
    sweep.sweep_clients(
        config,
        folder,
        counts=options.counts,
        participation=options.participation,
        mesh=mesh,
        spread=options.launch.spread_samples,
        log=functools.partial(print, flush=True),
    )
    print(f"written: {folder}/sweep.json, sweep.md, sweep.png")
    return 0
