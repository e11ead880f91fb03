"""Where a command runs: devices and processes. Never part of a run's configuration.

A run may be resumed on another number of devices: on CPU its results are the same to
the bit, elsewhere (or with reduction=fast) up to the order of summation.
"""

import os
import re
import socket

import jax
from jax.sharding import Mesh

from fedcmi_jax import backend
from fedcmi_jax.cli.command import Launch
from fedcmi_jax.experiment.environment import usable_cores
from fedcmi_jax.experiment.programs import keep_programs
from fedcmi_jax.placement import client_mesh
from fedcmi_jax.setup import LANES

MOST_HOST_DEVICES = 64
"""Each is some threads; XLA aborts at thousands."""

MOST_PORT = 65_535
"""Ports are 16 bits."""


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
    if (launch.host_devices or 0) > MOST_HOST_DEVICES:
        raise ValueError(
            f"--host-devices: {launch.host_devices} is more than {MOST_HOST_DEVICES}; "
            f"there are {usable_cores()} cores"
        )
    processes = (launch.coordinator, launch.num_processes, launch.process_id)
    if None in processes and processes != (None, None, None):
        raise ValueError(
            "coordinator: --coordinator, --num-processes and --process-id go together; "
            "give all three or none"
        )
    if launch.coordinator is not None:
        address_of(launch.coordinator)
    if (launch.process_id or 0) >= (launch.num_processes or 1):
        raise ValueError(
            f"--process-id: {launch.process_id} is not below --num-processes: "
            f"{launch.num_processes}; processes count from 0"
        )


def address_of(text: str) -> tuple[str, int]:
    """Host and port of ``--coordinator``.

    Raises:
      ValueError: It is none of HOST:PORT, with a port from 1 to 65535.

    Example:
      >>> address_of("localhost:1234"), address_of("[::1]:1234")
      (('localhost', 1234), ('::1', 1234))
    """
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):([0-9]{1,5})", text, re.ASCII)
    if not found or not 1 <= int(found[2]) <= MOST_PORT:
        raise ValueError(
            f"--coordinator: {text!r} is no HOST:PORT with a port from 1 to {MOST_PORT}"
        )
    return found[1].strip("[]"), int(found[2])


def _check_reachable(coordinator: str, listens: bool) -> None:
    """Refuses an unknown host, and an address on which process 0 cannot listen.

    JAX would wait for the one for minutes, and abort at the other.
    """
    host, port = address_of(coordinator)
    try:
        kind, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
            0
        ]
    except OSError as error:
        raise ValueError(
            f"--coordinator: host {host!r} is not known ({error.strerror}); give the "
            "address of process 0's machine"
        ) from None
    if not listens:
        return
    try:
        with socket.socket(kind) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(place)
    except OSError as error:
        raise ValueError(
            f"--coordinator: process 0 cannot listen on {coordinator} "
            f"({error.strerror}); give a free port at an address of its own machine"
        ) from None


def start(launch: Launch, *, spreads: bool = True) -> Mesh | None:
    """Starts JAX as asked; must come before anything else touches a device.

    Args:
      launch: What was asked.
      spreads: Whether the command can use several devices; else the CPU is one, unless
        more are asked for.

    Returns:
      The mesh to deal clients over; None for a single device.

    The processes trust each other: neither JAX nor gloo asks who connects. Process 0
    listens on the coordinator's address only.

    Raises:
      ValueError: As ``check``; there are fewer devices or none, or the processes cannot
        meet.
    """
    check(launch)
    keep_programs()
    several = launch.coordinator is not None or is_cluster()
    if launch.host_devices is not None:
        jax.config.update("jax_num_cpu_devices", launch.host_devices)
    elif spreads and not (several or _is_settled()):
        jax.config.update("jax_num_cpu_devices", min(usable_cores(), LANES))
    listens = None
    if launch.coordinator is not None:
        _check_reachable(launch.coordinator, launch.process_id == 0)
        # By default JAX would listen on all interfaces.
        listens = launch.coordinator if launch.process_id == 0 else None
    if several:
        # Used on CPU only; other backends bring their own.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        try:
            jax.distributed.initialize(
                launch.coordinator,
                launch.num_processes,
                launch.process_id,
                coordinator_bind_address=listens,
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


def _is_settled() -> bool:
    """Whether how many devices the CPU is, is said in the environment or too late."""
    flags = os.environ.get("XLA_FLAGS", "")
    said = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags
    return said or backend.has_started()


def is_cluster() -> bool:
    """Whether the environment says that this is one of several processes.

    Example:
      >>> is_cluster()
      False
    """
    tasks = os.environ.get("SLURM_NTASKS", "1")
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return (tasks.isdecimal() and int(tasks) > 1) or "," in hosts
