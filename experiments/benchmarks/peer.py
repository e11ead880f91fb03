"""What the benchmark peers share: the SPEC file, the data, the line protocol.

A peer is started as ``python PEER.py SPEC.json``. It prints one JSON line when it is
warm, then answers one JSON line per line on standard input:

    {"op": "round"}             one federated round           {"seconds": s}
    {"op": "params", "path": P} global model to an npz file   {"saved": P}
    {"op": "reset"}             back to the first parameters  {"reset": true}
    {"op": "quit"}, end of file                               {"peak_rss_bytes": n}

A mistake in the SPEC is one line on standard error and exit status 2. Nothing else goes
to standard output: what libraries print there is sent to standard error.

Arrays are called by the paths of fedcmi_jax's trees, ``params/encoder/gray/conv1/
kernel``: kernels are [in, out] or HWIO, images NHWC. No peer imports fedcmi_jax.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

CHOICES = {
    "method": ("fedcmi", "fedavg"),
    "model": ("two_projector", "classifier"),
    "encoder": ("mlp", "convnet", "resnet18"),
    "form": ("eager", "best"),
}
OPTIONS = {"lam": 1.0, "beta": 2.0, "gamma": 2.0, "mu": 0.01, "min_temperature": 0.1}


class SpecError(ValueError):
    """The SPEC cannot be run."""


@dataclass(frozen=True)
class Spec:
    """One benchmark problem.

    Attributes:
      method: fedcmi or fedavg.
      model: two_projector or classifier; fusion is concat, projectors are linear.
      encoder: mlp, convnet or resnet18, for every modality.
      modalities: Their names, in order.
      num_classes: C.
      epochs: Local epochs E.
      batch_size: B; the last batch of an epoch may be smaller.
      learning_rate: Constant.
      momentum: Of SGD.
      weight_decay: On all parameters.
      shuffle: New order in every epoch.
      form: eager or best (torch_loop.py only).
      threads: Of PyTorch or XLA; None: the peer decides.
      options: Of FedCMI.
      data: Path of the npz file.
    """

    method: str
    model: str
    encoder: str
    modalities: list[str]
    num_classes: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    shuffle: bool
    form: str
    threads: int | None
    options: dict[str, float]
    data: str


class Data(NamedTuple):
    """The content of the npz file, samples sorted by client.

    Attributes:
      inputs: Modality -> [n, ...] float32.
      labels: [n] int64.
      offsets: [N], each client's first sample.
      sizes: [N], its number of samples.
      arrays: Path -> initial parameter or BatchNorm statistic.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    offsets: list[int]
    sizes: list[int]
    arrays: dict[str, np.ndarray]


class Peer(Protocol):
    """A warm implementation of federated rounds."""

    versions: dict[str, str]
    threads: int

    def round(self) -> float:
        """Runs one round on the global model and returns its seconds."""

    def reset(self) -> None:
        """Sets the global model back to the initial one."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The global model by path."""

    def close(self) -> int:
        """Ends everything it started; peak memory in bytes."""


def load_spec(path: str | Path) -> Spec:
    """Reads and checks a SPEC file.

    Args:
      path: The JSON file; a relative data path is relative to its folder.

    Returns:
      The problem.

    Raises:
      SpecError: The file cannot be read, or a value is missing, unknown or out of
        range.
    """
    try:
        raw = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise SpecError(f"{path}: not a JSON object")
    names = set(Spec.__dataclass_fields__)
    missing = sorted(names - set(raw) - {"options", "threads", "form"})
    unknown = sorted(set(raw) - names)
    if missing or unknown:
        raise SpecError(f"missing keys: {missing}; unknown keys: {unknown}")
    options = raw.get("options") or {}
    if bad := sorted(set(options) - set(OPTIONS)):
        raise SpecError(f"options: unknown {bad}; choose from {sorted(OPTIONS)}")
    raw = {"threads": None, "form": "best"} | raw
    raw["options"] = OPTIONS | options
    raw["data"] = str(Path(path).parent / raw["data"])
    for name, choices in CHOICES.items():
        if raw[name] not in choices:
            raise SpecError(f"{name}: unknown {raw[name]!r}; choose from {choices}")
    for name in ("num_classes", "epochs", "batch_size"):
        if not isinstance(raw[name], int) or raw[name] < 1:
            raise SpecError(f"{name}: {raw[name]!r} is not a whole number from 1 on")
    threads = raw["threads"]
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise SpecError(f"threads: {threads!r} is neither null nor a number from 1 on")
    if raw["method"] == "fedcmi" and raw["model"] != "two_projector":
        raise SpecError("model: fedcmi needs two_projector")
    return Spec(**raw)


def load_data(spec: Spec) -> Data:
    """Reads the npz file of a SPEC.

    Raises:
      SpecError: It cannot be read or an array is missing.
    """
    try:
        with np.load(spec.data) as file:
            arrays = {k: file[k] for k in file if k.startswith(("params/", "stats/"))}
            return Data(
                inputs={
                    m: file[f"inputs/{m}"].astype(np.float32, copy=False)
                    for m in spec.modalities
                },
                labels=file["labels"].astype(np.int64),
                offsets=file["offsets"].tolist(),
                sizes=file["sizes"].tolist(),
                arrays=arrays,
            )
    except (OSError, ValueError, KeyError) as error:
        raise SpecError(f"data: {error}") from None


def peak_rss(pid: int | str = "self") -> int:
    """Peak resident memory of a process in bytes.

    From the kernel's own record (Linux): ``getrusage`` would also count what the parent
    held before it started this program.
    """
    with contextlib.suppress(FileNotFoundError):  # it ended in the meantime
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def serve(start: Callable[[Spec], Peer]) -> None:
    """Runs a peer by the protocol above; does not return.

    Args:
      start: Sets a peer up and runs its warm-up round.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=out, flush=True)

    try:
        if len(sys.argv) != 2:
            raise SpecError(f"usage: python {Path(sys.argv[0]).name} SPEC.json")
        peer = start(load_spec(sys.argv[1]))
    except SpecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    peer.reset()
    answer({"ready": True, "versions": peer.versions, "threads": peer.threads})
    for line in sys.stdin:
        message = json.loads(line)
        match message["op"]:
            case "round":
                answer({"seconds": peer.round()})
            case "params":
                np.savez(message["path"], **peer.arrays())
                answer({"saved": message["path"]})
            case "reset":
                peer.reset()
                answer({"reset": True})
            case "quit":
                break
    answer({"peak_rss_bytes": peer.close()})
    sys.exit(0)
