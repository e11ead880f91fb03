"""Where a command runs: devices and processes. Never part of a run's configuration.

A run may be resumed on another number of devices: on CPU its results are the same to
the bit, elsewhere (or with reduction=fast) up to the order of summation.
"""

import os
import pathlib

import jax
from jax.sharding import Mesh

from fedcmi_jax import backend
from fedcmi_jax.cli.command import Launch
from fedcmi_jax.placement import client_mesh
from fedcmi_jax.server import LANES


def check(launch: Launch) -> None:
    """Refuses numbers that cannot be, and some of the three process flags alone.

    Raises:
      ValueError: One line that names the flag.

    Example:
      >>> check(Launch(devices=0))
      Traceback (most recent call last):
      ValueError: --devices: '0' is no whole number of 1 or more
    """
    least = {"devices": 1, "host_devices": 1, "num_processes": 1, "process_id": 0}
    for name, lowest in least.items():
        value = getattr(launch, name)
        if isinstance(value, int) and value < lowest:
            raise ValueError(
                f"--{name.replace('_', '-')}: '{value}' is no whole number of {lowest} "
                "or more"
            )
    processes = (launch.coordinator, launch.num_processes, launch.process_id)
    if None in processes and processes != (None, None, None):
        raise ValueError(
            "coordinator: --coordinator, --num-processes and --process-id go together; "
            "give all three or none"
        )
    if (launch.process_id or 0) >= (launch.num_processes or 1):
        raise ValueError(
            f"--process-id: {launch.process_id} is not below --num-processes: "
            f"{launch.num_processes}; processes count from 0"
        )


def start(launch: Launch, *, spreads: bool = True) -> Mesh | None:
    """Starts JAX as asked; must come before anything else touches a device.

    Args:
      launch: What was asked.
      spreads: Whether the command can use several devices; else the CPU is one, unless
        more are asked for.

    Returns:
      The mesh to deal clients over; None for a single device.

    Raises:
      ValueError: As ``check``; there are fewer devices or none, or the processes cannot
        meet.
    """
    check(launch)
    keep_programs()
    several = launch.coordinator is not None or _is_cluster()
    if launch.host_devices is not None:
        jax.config.update("jax_num_cpu_devices", launch.host_devices)
    elif spreads and not (several or _is_settled()):
        jax.config.update("jax_num_cpu_devices", min(usable_cores(), LANES))
    if several:
        # Used on CPU only; other backends bring their own.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize(
                launch.coordinator, launch.num_processes, launch.process_id
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"coordinator: {error}") from None
    backend.find_devices()
    mesh = client_mesh(None if launch.devices == "auto" else launch.devices)
    if jax.process_count() > 1 and mesh.size != len(jax.devices()):
        raise ValueError(
            "--devices: several processes use all their devices; leave it out"
        )
    return mesh if mesh.size > 1 else None


def keep_programs() -> None:
    """Keeps compiled programs under the user's cache folder, unless told where."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(root) / "fedcmi_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def usable_cores() -> int:
    """Cores that this process may use; Linux can allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_settled() -> bool:
    """Whether how many devices the CPU is, is said in the environment or too late."""
    flags = os.environ.get("XLA_FLAGS", "")
    said = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags
    return said or backend.has_started()


def _is_cluster() -> bool:
    """Whether the environment says that this is one of several processes."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return (tasks.isdecimal() and int(tasks) > 1) or "," in hosts
