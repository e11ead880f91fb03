"""``fedcmi doctor``: what is installed, whether it computes right, and what to do."""

import importlib.metadata
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from fedcmi_jax import backend, memory
from fedcmi_jax.data.tfds.prepare import data_root
from fedcmi_jax.experiment import environment, training
from fedcmi_jax.experiment.programs import keep_programs

MIB = 1 << 20
"""Bytes of a MiB."""


class Diagnosis(NamedTuple):
    """What was found.

    Attributes:
      rows: (name, text), in the order to print.
      to_do: What to do, a line each.
      healthy: Whether every check passes.
    """

    rows: list[tuple[str, str]]
    to_do: list[str]
    healthy: bool


def run() -> int:
    """Runs ``fedcmi doctor``.

    Returns:
      The exit code.
    """
    keep_programs()
    found = diagnose(backend.check)
    for name, text in found.rows:
        print(f"{name:<12}{text}")
    for line in found.to_do or ["nothing"]:
        print(f"{'to do':<12}{line}")
    return 0 if found.healthy else 1


def diagnose(check: Callable[[], float]) -> Diagnosis:
    """Looks at this machine and computes the known reproducer.

    Args:
      check: Returns the reproducer's largest relative error: ``backend.check``.

    Example:
      >>> diagnose(backend.check).healthy
      True
    """
    versions = training.versions() | {
        "tensorflow-datasets": _version("tensorflow-datasets")
    }
    names = [f"{name} {number}" for name, number in versions.items()]
    half = len(names) // 2
    rows = [("versions", ", ".join(names[:half])), ("", ", ".join(names[half:]))]
    rows += [
        ("cores", f"{environment.usable_cores()} usable of {os.cpu_count()}"),
        ("memory", _memory()),
        ("xla cache", _folder(jax.config.values["jax_compilation_cache_dir"])),
        ("data cache", _folder(data_root())),
        ("XLA_FLAGS", os.environ.get("XLA_FLAGS") or "none"),
    ]
    try:
        rows.append(("devices", _devices()))
    except ValueError as failure:
        return Diagnosis([*rows, ("devices", "none")], [str(failure)], healthy=False)
    error = check()
    right = error <= backend.TOLERANCE
    verdict = "right" if right else "WRONG"
    rows.append(("sums", f"{verdict}, largest relative error {error:.1e}"))
    to_do = []
    for pitfall in backend.pitfalls(versions["jaxlib"]):
        if pitfall.backend not in ("any", jax.default_backend()):
            continue
        avoided = pitfall.guarded and right
        state = "avoided" if avoided else "open"
        rows.append(("known", f"{state}: {pitfall.what} ({pitfall.report})"))
        if not avoided:
            to_do.append(f"{pitfall.report}: {pitfall.remedy}")
    if not right and not to_do:
        to_do.append("trust no result of this jaxlib; install another, report it")
    return Diagnosis(rows, to_do, healthy=right)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _memory() -> str:
    """Total and available memory, the total of a container if it has a limit."""
    found = memory.host_memory()
    if found is None:
        return "unknown"
    total, free = found
    return f"{total / memory.GIB:.1f} GiB, {free / memory.GIB:.1f} GiB available"


def _folder(path: str | pathlib.Path | None) -> str:
    """A folder and the size of what is in it."""
    if path is None:
        return "no folder"
    files = [f for f in pathlib.Path(path).rglob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in files)
    return f"{path}: {size / MIB:.0f} MiB in {len(files)} files"


def _devices() -> str:
    """The backend, its devices and their memory where they tell."""
    devices = backend.find_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    each = f", {limit / memory.GIB:.1f} GiB each" if limit else ""
    return f"{jax.default_backend()}: {len(devices)} x {devices[0].device_kind}{each}"
