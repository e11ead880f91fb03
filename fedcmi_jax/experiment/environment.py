"""What a run was started on and from: hardware, and the commit of the user's code.

It is recorded, and nothing else: no result and no resumed run depends on it.
"""

import collections
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

from fedcmi_jax import backend
from fedcmi_jax.memory import host_memory

CPUINFO = pathlib.Path("/proc/cpuinfo")

GIT_PATIENCE = 2.0
"""Seconds that git has to say whether files have changed. 5 ms are usual; more where
the machine is busy, and a record must not depend on that."""


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory and, once JAX has started, its devices.

    Returns:
      ``cpu`` (its model), ``cores`` that this process may use, ``memory_bytes``, of a
      container its limit, and ``devices``, kind -> how many. None where unknown.

    Example:
      >>> hardware()["cores"] >= 1
      True
    """
    found = host_memory()
    devices = None
    if backend.has_started():
        devices = dict(collections.Counter(d.device_kind for d in jax.devices()))
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "memory_bytes": found[0] if found else None,
        "devices": devices,
    }


def usable_cores() -> int:
    """Cores that this process may use; Linux can allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str | None:
    """The processor's model."""
    if CPUINFO.exists():
        for line in CPUINFO.read_text(errors="replace").splitlines():
            name, _, model = line.partition(":")
            if name.strip() == "model name":
                return model.strip()
    return platform.processor() or platform.machine() or None


def git(folder: pathlib.Path | None = None) -> dict[str, Any] | None:
    """The commit that a folder is at.

    Args:
      folder: In a git repository; None: that of the running script, if it is in one,
        or the current folder.

    Returns:
      ``commit``, the id; None before the first. ``dirty``, whether tracked files have
      changed since; None where git is not installed or takes longer than
      ``GIT_PATIENCE``. None: there is no repository.

    Example:
      >>> git(pathlib.Path("/"))
    """
    for start in [folder] if folder else _folders():
        for place in (start, *start.parents):
            try:
                found = _git_folder(place / ".git")
                if found is not None:
                    return {"commit": _head(found), "dirty": _dirty(place)}
            except OSError:
                break
    return None


def _folders() -> list[pathlib.Path]:
    """Where a user's code may be."""
    script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    found = [pathlib.Path(script).absolute().parent] if script.endswith(".py") else []
    return [*found, pathlib.Path.cwd()]


def _git_folder(path: pathlib.Path) -> pathlib.Path | None:
    """Where git keeps its files; a worktree's and a submodule's .git names it."""
    if path.is_file():
        target = path.read_text().removeprefix("gitdir:").strip()
        return path.parent / target
    return path if (path / "HEAD").is_file() else None


def _head(folder: pathlib.Path) -> str | None:
    """The commit of HEAD, read from git's files: no process to wait for."""
    head = (folder / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return head or None
    name = head.removeprefix("ref:").strip()
    common = folder / "commondir"
    shared = folder / common.read_text().strip() if common.is_file() else folder
    for root in (folder, shared):
        if (root / name).is_file():
            return (root / name).read_text().strip()
    packed = shared / "packed-refs"
    for line in packed.read_text().splitlines() if packed.is_file() else ():
        commit, _, ref = line.partition(" ")
        if ref == name:
            return commit
    return None


def _dirty(folder: pathlib.Path) -> bool | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), "status"]
    try:
        done = subprocess.run(
            [*command, "--porcelain", "--untracked-files=no"],
            capture_output=True,
            timeout=GIT_PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None
