"""FedAvg and FedCMI as plain PyTorch client loops: ``python torch_loop.py SPEC.json``.

``form`` eager: in the manner of the public code (torch_eager.py); best: the fastest
plain PyTorch that we found (torch_best.py). See peer.py for the protocol. With
``threads`` null, eager takes PyTorch's default; best tries one thread and all cores on
a warm-up round each and keeps the faster.
"""

import os
import platform
import time

import numpy as np
import torch
from peer import Spec, load_data, peak_rss, serve
from torch_best import Best
from torch_eager import Eager


class TorchLoop:
    """The peer; see ``peer.Peer``."""

    def __init__(self, spec: Spec):
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        torch.manual_seed(0)
        data = load_data(spec)
        self.rounds = (Best if spec.form == "best" else Eager)(spec, data)
        self.versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        self.round()
        if spec.threads is None and spec.form == "best":
            self.choose_threads()
        self.threads = torch.get_num_threads()

    def choose_threads(self) -> None:
        """Keeps the faster of one thread and one per core."""
        seconds = {}
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            torch.set_num_threads(threads)
            self.reset()
            seconds[threads] = self.round()
        torch.set_num_threads(min(seconds, key=seconds.__getitem__))

    def round(self) -> float:
        """Runs one round and returns its seconds."""
        begun = time.perf_counter()
        self.rounds.run_round()
        return time.perf_counter() - begun

    def reset(self) -> None:
        """Back to the initial model."""
        self.rounds.reset()

    def arrays(self) -> dict[str, np.ndarray]:
        """The global model by path."""
        return self.rounds.arrays()

    def close(self) -> int:
        """Peak memory in bytes."""
        return peak_rss()


if __name__ == "__main__":
    serve(TorchLoop)
