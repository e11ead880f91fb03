"""Where a command runs: devices and processes. Never part of a run's configuration.

A run may be resumed on another number of devices; its results are the same up to the
order of summation.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from fedcmi_jax import backend
from fedcmi_jax.clients import client_mesh

HELP = """\
Where it runs (train, resume, sweep, bench):
  --devices=auto|N       devices that share every cohort (auto: all)
  --host-devices=N       split the CPU into N devices, one per core is best
  --coordinator=HOST:PORT --num-processes=N --process-id=I
                         one of N processes that train together; process 0 writes.
                         Found without flags on TPU pods and under SLURM.
"""


class Launch(NamedTuple):
    """The launch flags.

    Attributes:
      devices: Devices to use; None: all.
      host_devices: Devices to split the CPU into; None: not split.
      coordinator: host:port of process 0; None: alone, or found from the environment.
      num_processes: Number of processes.
      process_id: This one.
    """

    devices: int | None = None
    host_devices: int | None = None
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def split_flags(args: Sequence[str]) -> tuple[Launch, list[str]]:
    """Takes the launch flags out of a command's arguments.

    Returns:
      The launch, and the other arguments in order.

    Raises:
      ValueError: A flag has a bad value, or some of the three process flags lack.

    Example:
      >>> launch, rest = split_flags(["--devices=2", "noisy-digits"])
      >>> launch.devices, rest
      (2, ['noisy-digits'])
    """
    values: dict[str, str] = {}
    rest, remaining = [], list(args)
    while remaining:
        text = remaining.pop(0)
        flag, equals, value = text.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in Launch._fields:
            rest.append(text)
            continue
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ValueError(f"{flag}: has no value; give {flag}=VALUE")
            value = remaining.pop(0)
        values[name] = value
    if values.get("devices") == "auto":
        del values["devices"]
    numbers = {name: _number(name, v) for name, v in values.items() if name != _NAME}
    launch = Launch(coordinator=values.get(_NAME), **numbers)
    given = [getattr(launch, name) is not None for name in Launch._fields[2:]]
    if any(given) and not all(given):
        raise ValueError(
            "coordinator: --coordinator, --num-processes and --process-id go together; "
            "give all three or none"
        )
    return launch, rest


_NAME = "coordinator"


def _number(name: str, text: str) -> int:
    least = 0 if name == "process_id" else 1
    flag = f"--{name.replace('_', '-')}"
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{flag}: {text!r} is no whole number of {least} or more")
    return int(text)


def start(launch: Launch) -> Mesh | None:
    """Starts JAX as asked; must come before anything else touches a device.

    Returns:
      The mesh to deal clients over; None for a single device.

    Raises:
      ValueError: There are fewer devices or none, or the processes cannot meet.
    """
    if launch.host_devices is not None:
        jax.config.update("jax_num_cpu_devices", launch.host_devices)
    if launch.coordinator is not None or _is_cluster():
        if launch.process_id is not None and launch.num_processes is not None:
            if launch.process_id >= launch.num_processes:
                raise ValueError(
                    f"--process-id: {launch.process_id} is not below --num-processes: "
                    f"{launch.num_processes}; processes count from 0"
                )
        # Used on CPU only; other backends bring their own.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize(
                launch.coordinator, launch.num_processes, launch.process_id
            )
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"coordinator: {error}") from None
    backend.find_devices()
    mesh = client_mesh(launch.devices)
    if jax.process_count() > 1 and mesh.size != len(jax.devices()):
        raise ValueError(
            "--devices: several processes use all their devices; leave it out"
        )
    return mesh if mesh.size > 1 else None


def _is_cluster() -> bool:
    """Whether the environment says that this is one of several processes."""
    tasks = os.environ.get("SLURM_NTASKS", "1")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return (tasks.isdecimal() and int(tasks) > 1) or "," in hosts
