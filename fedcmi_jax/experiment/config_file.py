"""A run's config.json: its configuration, and the versions that ran it."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

from fedcmi_jax.experiment.config import Config, check_config, from_dict, to_dict
from fedcmi_jax.experiment.files import read_json, write_json
from fedcmi_jax.experiment.run_folder import CONFIG


def versions() -> dict[str, str]:
    """Versions of everything that results depend on."""
    packages = ("fedcmi_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    found = {name: importlib.metadata.version(name) for name in (*packages, "numpy")}
    return found | {"python": platform.python_version()}


def write_config(folder: pathlib.Path, config: Config) -> None:
    """Writes the run's config.json, complete, with versions and compiler flags."""
    values = {
        "config": to_dict(config),
        "versions": versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    write_json(folder / CONFIG, values)


def read_config(folder: pathlib.Path) -> Config:
    """Reads a run's config.json.

    Raises:
      ValueError: It is damaged or of another version's making.
    """
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or "config" not in values:
        raise ValueError(f"{folder / CONFIG}: has no 'config'; restore the file")
    try:
        config = from_dict(values["config"])
        check_config(config)
        return config
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}{_writer(values)}") from None


def _writer(values: dict[str, Any]) -> str:
    """The remedy for a run that another version wrote; "" for our own."""
    found = values.get("versions")
    writer = found.get("fedcmi_jax") if isinstance(found, dict) else None
    if writer in (None, versions()["fedcmi_jax"]):
        return ""
    return f"; fedcmi_jax {writer} wrote this run: finish it with that version"
