"""FedAvg and FedCMI with Flower's simulation: ``python flower_loop.py SPEC.json``.

Its simulation runtime on Ray, its FedAvg strategy with everybody in every round and no
evaluation, one CPU per client. A client is the training of torch_best.py with one
thread; a worker process loads the data once and finds a client's by its id. See peer.py
for the protocol; ``form`` has no meaning here, ``threads`` is the number of worker
processes (null: one per core).

Rounds are stepped by a ServerApp that waits for each command; the seconds run from the
strategy's configure_train to the end of its aggregate_train, so that starting Ray is
not counted. The peak memory is the sum over this process and all that it started.
"""

import contextlib
import dataclasses
import json
import os
import platform
import threading
import time
from importlib.metadata import version
from pathlib import Path
from queue import Queue

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import flower_client  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from flwr.app import ArrayRecord, ConfigRecord  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.serverapp.strategy import FedAvg  # noqa: E402
from flwr.simulation import run_simulation  # noqa: E402
from peer import Spec, load_data, peak_rss, serve  # noqa: E402
from torch_best import Best  # noqa: E402


class TimedFedAvg(FedAvg):
    """Flower's FedAvg, with a clock."""

    def configure_train(self, *args, **kwargs):
        """The first thing in a round."""
        self.begun = time.perf_counter()
        return super().configure_train(*args, **kwargs)

    def aggregate_train(self, *args, **kwargs):
        """The last thing in a round."""
        result = super().aggregate_train(*args, **kwargs)
        self.seconds = time.perf_counter() - self.begun
        return result


class FlowerLoop:
    """The peer; see ``peer.Peer``."""

    def __init__(self, spec: Spec):
        torch.set_num_threads(1)
        self.server = Best(spec, load_data(spec))
        self.threads = spec.threads or len(os.sched_getaffinity(0))
        self.versions = {
            "python": platform.python_version(),
            "flwr": version("flwr"),
            "ray": version("ray"),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        self.config = {"spec": json.dumps(dataclasses.asdict(spec))}
        self.commands: Queue = Queue()
        self.results: Queue = Queue()
        self.thread = threading.Thread(target=self.simulate, daemon=True)
        self.thread.start()
        self.round()

    def simulate(self) -> None:
        """Runs the simulation until the commands end."""
        app = ServerApp()
        app.main()(lambda grid, context: self.serve(grid))
        try:
            run_simulation(
                server_app=app,
                client_app=flower_client.app,
                num_supernodes=len(self.server.clients),
                backend_config={
                    "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                    "init_args": {"num_cpus": self.threads, "log_to_driver": False},
                },
            )
        except BaseException as error:
            self.results.put(error)
            raise

    def serve(self, grid: Grid) -> None:
        """The ServerApp: one round per command; a command is the global model."""
        clients = len(self.server.clients)
        strategy = TimedFedAvg(
            fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients
        )
        while (arrays := self.commands.get()) is not None:
            result = strategy.start(
                grid,
                initial_arrays=arrays,
                num_rounds=1,
                train_config=ConfigRecord(self.config),
            )
            self.results.put((strategy.seconds, result.arrays))

    def round(self) -> float:
        """Runs one round and returns its seconds."""
        self.commands.put(ArrayRecord(self.server.state()))
        result = self.results.get()
        if isinstance(result, BaseException):
            raise RuntimeError("the simulation ended") from result
        seconds, arrays = result
        self.server.load_state(arrays.to_torch_state_dict())
        return seconds

    def reset(self) -> None:
        """Back to the initial model."""
        self.server.reset()

    def arrays(self) -> dict[str, np.ndarray]:
        """The global model by path."""
        return self.server.arrays()

    def close(self) -> int:
        """Ends the simulation; peak memory in bytes."""
        total = sum(map(peak_rss, [os.getpid(), *descendants(os.getpid())]))
        self.commands.put(None)
        self.thread.join()
        return total


def descendants(pid: int) -> list[int]:
    """Processes started by a process, directly or not."""
    found = []
    with contextlib.suppress(FileNotFoundError):  # it ended in the meantime
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


if __name__ == "__main__":
    serve(FlowerLoop)
