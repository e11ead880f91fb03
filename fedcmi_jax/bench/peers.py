"""Other software doing the same work: programs in environments of their own.

A peer is a script under ``experiments/benchmarks`` that reads a specification, answers
JSON lines, and never imports this package. It starts without the flag that
``fedcmi_jax.backend`` may have set for this process: other versions abort on it.
"""

import json
import pathlib
import subprocess
from typing import Any

import numpy as np

from fedcmi_jax import backend
from fedcmi_jax.bench.workloads import NUM_CLASSES, Entry, Workload
from fedcmi_jax.blocks import by_path
from fedcmi_jax.federation import Federation
from fedcmi_jax.types import FederationState

FOLDER = pathlib.Path("experiments") / "benchmarks"
"""Where peers are if nobody says otherwise: in a checkout, which the package is not."""

PEERS: dict[str, dict[str, Any]] = {
    "torch": {"forms": ("eager", "best"), "methods": ("fedavg", "fedcmi")},
    "pfl": {"forms": ("best",), "methods": ("fedavg",)},
    "flower": {"forms": ("best",), "methods": ("fedavg", "fedcmi")},
    "fedjax": {"forms": ("best",), "methods": ("fedavg",), "encoders": ("mlp",)},
}
"""Name -> its forms, the methods it can run, each on its own model, and its encoders,
if not all."""


def methods_of(name: str) -> tuple[str, ...]:
    """The methods that a peer can run; none for an empty name."""
    return PEERS[name]["methods"] if name else ()


def check_encoder(name: str, encoder: str) -> None:
    """Refuses a workload that a peer has no encoder for.

    Args:
      name: Key of ``PEERS``.
      encoder: Of the workload.

    Raises:
      ValueError: It has none; names those that it has.

    Example:
      >>> check_encoder("fedjax", "mlp")
    """
    known = PEERS[name].get("encoders", (encoder,))
    if encoder not in known:
        raise ValueError(
            f"against: {name} has no encoder {encoder!r}; choose a workload with "
            f"{' or '.join(known)}"
        )


def python_of(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The peer's interpreter.

    Args:
      name: Key of ``PEERS``.
      folder: Of its script and environment.

    Raises:
      ValueError: It is not there; says how to install it.
    """
    python = folder / f".venv-{name}" / "bin" / "python"
    if not python.exists():
        raise ValueError(
            f"against: {name} is not installed in {folder}; give the repository's "
            f"{FOLDER} as --peers, or in the repository run: python3.11 -m venv "
            f"{FOLDER}/.venv-{name} && {FOLDER}/.venv-{name}/bin/pip install -r "
            f"{FOLDER}/requirements-{name}.txt"
        )
    return python


def write_problem(
    folder: pathlib.Path,
    workload: Workload,
    entry: Entry,
    federation: Federation,
    state: FederationState,
    form: str,
    shuffle: bool = True,
) -> pathlib.Path:
    """Writes data, initial weights and specification; returns the latter's path."""
    local = workload.local()
    arrays = {f"inputs/{m}": np.asarray(x) for m, x in federation.inputs.items()}
    arrays |= {
        "labels": np.asarray(federation.labels),
        "offsets": np.asarray(federation.offsets),
        "sizes": np.asarray(federation.sizes),
        **by_path({"params": state.params, "stats": state.batch_stats}),
    }
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    spec = {
        "method": entry.method.name,
        "model": entry.architecture,
        "encoder": workload.encoder,
        "modalities": list(workload.shapes),
        "num_classes": NUM_CLASSES,
        "epochs": local.epochs,
        "batch_size": local.batch_size,
        "learning_rate": local.learning_rate,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "shuffle": shuffle,
        "form": form,
        "threads": None,
        "options": {
            "lam": 1.0,
            "beta": 2.0,
            "gamma": 2.0,
            "mu": 0.01,
            "min_temperature": 0.1,
        },
        "data": str(folder / "data.npz"),
    }
    path = folder / f"{form}.json"
    path.write_text(json.dumps(spec))
    return path


class Peer:
    """A running peer; use as a context manager."""

    def __init__(self, name: str, spec: pathlib.Path, folder: pathlib.Path):
        """Starts it; returns when it has warmed up.

        Args:
          name: Key of ``PEERS``.
          spec: The specification.
          folder: Of its script and environment.

        Raises:
          ValueError: It is not installed or refuses the specification.
        """
        self.name = name
        self._process = subprocess.Popen(
            [python_of(name, folder), folder / f"{name}_loop.py", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=backend.unguarded(),
        )
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        stdout, stderr = self._process.stdout, self._process.stderr
        line = stdout.readline() if stdout else ""
        if not line:
            said = stderr.read().strip().splitlines() if stderr else []
            raise ValueError(f"against: {self.name}: {said[-1] if said else 'it died'}")
        return json.loads(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer."""
        stdin = self._process.stdin
        if stdin is None:
            raise ValueError(f"against: {self.name} takes no requests")
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return self._answer()

    def round(self) -> float:
        """Seconds of one round."""
        return float(self.ask(op="round")["seconds"])

    def __enter__(self) -> "Peer":
        """Is itself."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
