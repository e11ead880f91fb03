"""``fedcmi deploy init``: a configuration as a project for Flower."""

import pathlib

from fedcmi_jax.cli.commands import DeployInit
from fedcmi_jax.deploy.project import write_project
from fedcmi_jax.experiment import config as configs


def init(options: DeployInit) -> int:
    """Runs the command.

    Args:
      options: Its options.

    Returns:
      The exit code.

    Raises:
      ValueError: The folder is missing or taken, or the configuration cannot be
        deployed.
    """
    config = options.config
    if config.output is None:
        raise ValueError("deploy init: names no folder; give PRESET DIR")
    configs.check_config(config)
    configs.check_effects(config)
    folder = pathlib.Path(config.output)
    plan = write_project(config, folder)
    print(f"written: {folder}, plan {plan.digest}")
    print(
        f"try it: flwr run {folder} local --stream --federation-config "
        f"'num-supernodes={plan.clients}'"
    )
    return 0
