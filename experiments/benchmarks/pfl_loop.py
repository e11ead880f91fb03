"""FedAvg with pfl-research's simulation: ``python pfl_loop.py SPEC.json``.

Its FederatedAveraging, SimulatedBackend, PyTorchModel with its local training, and
in-memory tensor data sets, all clients as one cohort in one process and no evaluation.
The torch model is the one of torch_models.py, images channels-last, the local optimizer
torch's fused SGD. A round is one central iteration. See peer.py for the protocol;
``form`` has no meaning here, ``threads`` null is PyTorch's default.

pfl-research averages parameters only. BatchNorm statistics are made variables of its
model beside them, so that they are averaged with the same weights as in the library.
"""

import functools
import platform
import time

import numpy as np
import torch
from peer import Data, Spec, SpecError, load_data, peak_rss, serve
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.version import __version__ as pfl_version
from torch import Tensor, nn
from torch.nn import functional as F
from torch_models import build, entries, image_tensors, load_arrays, save_arrays


class Task(nn.Module):
    """The net with the two functions that PyTorchModel calls."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def loss(self, *batch: Tensor) -> Tensor:
        """Cross-entropy; the batch is one tensor per modality and the labels."""
        *inputs, labels = batch
        net = self.net
        features = net.features(dict(zip(net.modalities, inputs, strict=True)))
        return F.cross_entropy(net.fuse(features), labels)

    def metrics(self, *batch: Tensor) -> dict:
        """pfl-research evaluates in its very first iteration, the warm-up."""
        self.eval()
        with torch.no_grad():
            loss = self.loss(*batch).item()
        self.train()
        return {"loss": Weighted.from_unweighted(loss)}


class Model(PyTorchModel):
    """PyTorchModel whose variables include the BatchNorm statistics."""

    def __init__(self, net: nn.Module, create_optimizer):
        state = net.state_dict()
        names = [e.name for e in entries(net) if e.path.startswith("stats/")]
        stats = {f"net.{name}": state[name] for name in names}
        central = torch.optim.SGD([*net.parameters(), *stats.values()], lr=1.0)
        super().__init__(Task(net), create_optimizer, central)
        self._variable_map |= stats


class Shuffled(PyTorchTensorDataset):
    """A user's tensors in a new order in every epoch."""

    def iter(self, batch_size: int):
        """Yields batches, a list of tensors each."""
        for rows in torch.randperm(len(self)).split(batch_size):
            yield [x[rows] for x in self.raw_data]


class StopAfterOne(TrainingProcessCallback):
    """Ends ``run`` after each central iteration."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Asks to stop."""
        del aggregate_metrics, model, central_iteration
        return True, Metrics()


class PflLoop:
    """The peer; see ``peer.Peer``."""

    def __init__(self, spec: Spec):
        if spec.method != "fedavg" or spec.model != "classifier":
            raise SpecError("method: this peer has fedavg on a classifier only")
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002, what pfl-research draws from
        self.threads = torch.get_num_threads()
        self.versions = {
            "python": platform.python_version(),
            "pfl": pfl_version,
            "torch": torch.__version__,
            "numpy": np.__version__,
        }
        self.data = load_data(spec)
        self.net = build(spec.encoder, spec.modalities, False, self.data.arrays)
        self.net.to(memory_format=torch.channels_last).train()
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.num_batches_tracked = None
        create_optimizer = functools.partial(
            torch.optim.SGD,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            fused=True,
        )
        self.model = Model(self.net, create_optimizer)
        users = user_datasets(spec, self.data)
        sampler = get_user_sampler("minimize_reuse", list(range(len(users))))
        federation = FederatedDataset(users.__getitem__, sampler)
        self.backend = SimulatedBackend(
            training_data=federation,
            val_data=federation,
            postprocessors=[WeightByDatapoints()],
        )
        self.algorithm = FederatedAveraging()
        self.algorithm_params = NNAlgorithmParams(
            central_num_iterations=1 << 31,
            evaluation_frequency=1 << 31,
            train_cohort_size=len(users),
            val_cohort_size=0,
        )
        self.train_params = NNTrainHyperParams(
            local_batch_size=spec.batch_size,
            local_num_epochs=spec.epochs,
            local_learning_rate=spec.learning_rate,
        )
        self.round()

    def round(self) -> float:
        """Runs one central iteration and returns its seconds."""
        begun = time.perf_counter()
        self.algorithm.run(
            self.algorithm_params,
            self.backend,
            self.model,
            self.train_params,
            callbacks=[StopAfterOne()],
            send_metrics_to_platform=False,
        )
        return time.perf_counter() - begun

    def reset(self) -> None:
        """Back to the initial model."""
        load_arrays(self.net, self.data.arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        """The global model by path."""
        return save_arrays(self.net)

    def close(self) -> int:
        """Peak memory in bytes."""
        return peak_rss()


def user_datasets(spec: Spec, data: Data) -> list[PyTorchTensorDataset]:
    """One data set per client, kept for all rounds: it caches its batches."""
    inputs = image_tensors(spec.encoder, data.inputs, True)
    tensors = [*inputs.values(), torch.from_numpy(data.labels)]
    kind = Shuffled if spec.shuffle else PyTorchTensorDataset
    return [
        kind(tuple(x[offset : offset + size] for x in tensors), user_id=str(i))
        for i, (offset, size) in enumerate(zip(data.offsets, data.sizes, strict=True))
    ]


if __name__ == "__main__":
    serve(PflLoop)
