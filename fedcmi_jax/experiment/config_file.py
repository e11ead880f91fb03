"""A run's config.json: its configuration, and the versions that ran it."""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

from fedcmi_jax.data.places import expanded
from fedcmi_jax.experiment import environment
from fedcmi_jax.experiment.client_modalities import is_table
from fedcmi_jax.experiment.config import (
    REGISTRIES,
    Config,
    check_config,
    from_dict,
    to_dict,
)
from fedcmi_jax.experiment.files import read_json, write_json
from fedcmi_jax.experiment.parts import Parts, check_same
from fedcmi_jax.experiment.run_folder import CONFIG
from fedcmi_jax.experiment.sections import path_options


def versions() -> dict[str, str]:
    """Versions of everything that results depend on."""
    packages = ("fedcmi_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
    found = {name: importlib.metadata.version(name) for name in (*packages, "numpy")}
    return found | {"python": platform.python_version()}


def located(config: Config) -> Config:
    """The configuration with absolute paths, as it means the same in any folder.

    Example:
      >>> from fedcmi_jax.experiment.config import from_dict
      >>> config = from_dict({"dataset": {"name": "npz", "path": "/data/own.npz"}})
      >>> located(config) == config
      True
    """
    changed: dict[str, Any] = {}
    for kind in REGISTRIES:
        chosen = getattr(config, kind)
        given = {o: getattr(chosen, o) for o in path_options(kind, chosen.name)}
        paths = {option: _absolute(path) for option, path in given.items() if path}
        changed[kind] = dataclasses.replace(chosen, **paths)
    if config.modalities is not None and is_table(config.modalities):
        changed["modalities"] = _absolute(config.modalities)
    if config.init_from is not None:
        place, mark, block = config.init_from.partition(":")
        changed["init_from"] = f"{_absolute(place)}{mark}{block}"
    return dataclasses.replace(config, **changed)


def _absolute(path: str) -> str:
    return str(expanded(path).absolute())


def write_config(
    folder: pathlib.Path,
    config: Config,
    parts: Parts = Parts(),  # noqa: B008 (immutable)
) -> None:
    """Writes the run's config.json, complete, with where and by what it was started.

    Paths of data are made absolute: a run can be resumed from any folder.

    Args:
      folder: The run's.
      config: Its configuration.
      parts: What is a script's own.
    """
    values: dict[str, Any] = {
        "config": to_dict(located(config)),
        "versions": versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "git": environment.git(),
        "hardware": environment.hardware(),
    }
    if parts.names:
        values["parts"] = parts.described()
    write_json(folder / CONFIG, values)


def read_config(
    folder: pathlib.Path,
    parts: Parts = Parts(),  # noqa: B008 (immutable)
    *,
    to_read: bool = False,
) -> Config:
    """Reads a run's config.json.

    Args:
      folder: The run's.
      parts: Objects in the place of what it names.
      to_read: The run is looked at and does not go on.

    Raises:
      ValueError: It is damaged, of another version's making, or of a run with other
        parts.
    """
    values = read_json(folder / CONFIG)
    if not isinstance(values, dict) or "config" not in values:
        raise ValueError(f"{folder / CONFIG}: has no 'config'; restore the file")
    check_same(str(folder), values.get("parts"), parts, to_read=to_read)
    try:
        config = from_dict(values["config"])
        check_config(config)
        return config
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}{_writer(values)}") from None


def record_start(folder: pathlib.Path, digest: str) -> None:
    """Puts the digest of what a run starts from into its config.json.

    Raises:
      ValueError: Another one stands there: ``init_from`` has changed since.
    """
    values = read_json(folder / CONFIG)
    before = values.setdefault("init_from_digest", digest)
    if before != digest:
        raise ValueError(
            f"init_from: {values['config'].get('init_from')} has changed since "
            f"{folder} began (sha256 {digest[:12]}, not {before[:12]}); put it back, "
            "or start a new run"
        )
    write_json(folder / CONFIG, values)


def _writer(values: dict[str, Any]) -> str:
    """The remedy for a run that another version wrote; "" for our own."""
    found = values.get("versions")
    writer = found.get("fedcmi_jax") if isinstance(found, dict) else None
    if writer in (None, versions()["fedcmi_jax"]):
        return ""
    return f"; fedcmi_jax {writer} wrote this run: finish it with that version"
