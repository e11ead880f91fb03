"""This machine's memory, and the refusal of what cannot be in it."""

import pathlib

GIB = 1 << 30
"""Bytes of a GiB."""

MEMINFO = pathlib.Path("/proc/meminfo")
CGROUP_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")
"""A container's limit: a number of bytes, or ``max``."""
MAPPINGS = pathlib.Path("/proc/self/maps")
MAPPINGS_LIMIT = pathlib.Path("/proc/sys/vm/max_map_count")
"""Linux: 65,530 mappings a process, unless an administrator says otherwise."""


def host_memory() -> tuple[int, int] | None:
    """Bytes of the host: all, a container's limit if it has one, and available ones.

    None where the system does not say.

    Example:
      >>> found = host_memory()
      >>> found is None or found[0] >= found[1] > 0
      True
    """
    if not MEMINFO.exists():
        return None
    lines = (line.partition(":") for line in MEMINFO.read_text().splitlines())
    kilobytes = {name: int(text.split()[0]) for name, _, text in lines}
    total, free = (1024 * kilobytes[name] for name in ("MemTotal", "MemAvailable"))
    if CGROUP_LIMIT.exists() and CGROUP_LIMIT.read_text().strip().isdecimal():
        total = min(total, int(CGROUP_LIMIT.read_text()))
    return total, min(free, total)


def mappings_used() -> float:
    """Share of the memory mappings that this process may have; 0 where unknown.

    A compiled program takes tens to hundreds, and XLA ends the process when there are
    no more.

    Example:
      >>> 0 <= mappings_used() < 1
      True
    """
    if not (MAPPINGS.exists() and MAPPINGS_LIMIT.exists()):
        return 0.0
    with MAPPINGS.open() as lines:
        return sum(1 for _ in lines) / int(MAPPINGS_LIMIT.read_text())


def check_fits(what: str, num_bytes: float, remedy: str) -> None:
    """Refuses what is larger than all memory, before it is allocated.

    Args:
      what: What takes it, with its option: "train_samples=3: the samples".
      num_bytes: An estimate from below.
      remedy: What to do.

    Raises:
      ValueError: It cannot fit; has the estimate.

    Example:
      >>> check_fits("features=8: the samples", 1e30, "give fewer")
      Traceback (most recent call last):
      ValueError: features=8: the samples take 9.31e+20 GiB, more than this machine's \
memory; give fewer
    """
    found = host_memory()
    if found is not None and num_bytes > found[0]:
        raise ValueError(
            f"{what} take {num_bytes / GIB:.3g} GiB, more than this machine's memory; "
            f"{remedy}"
        )
