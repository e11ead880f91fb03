"""The plain client loop: what the first author's public PyTorch code does.

Written from its description, not from its text: a deep copy of the model per client, a
fresh SGD, the frozen global model run on every step's batch, and Python loops over the
samples where that code has them (class probabilities, dominance, distillation rows).
Kinder to it than that code: samples are sliced from tensors in memory rather than
collated by a DataLoader, and the loops run over ready softmax rows.
"""

import copy
import math

import torch
from peer import Data, Spec
from torch import Tensor
from torch.nn import functional as F
from torch_models import Net, build, image_tensors, load_arrays, save_arrays


class Eager:
    """Federated rounds in this form."""

    def __init__(self, spec: Spec, data: Data):
        self.spec, self.data = spec, data
        projectors = spec.model == "two_projector"
        self.net = build(spec.encoder, spec.modalities, projectors, data.arrays)
        self.inputs = image_tensors(spec.encoder, data.inputs, False)
        self.labels = torch.from_numpy(data.labels)

    def reset(self) -> None:
        """Back to the initial model."""
        load_arrays(self.net, self.data.arrays)

    def arrays(self) -> dict:
        """The global model."""
        return save_arrays(self.net)

    def run_round(self) -> None:
        """Trains every client in turn and averages."""
        locals_ = []
        for offset, size in zip(self.data.offsets, self.data.sizes, strict=True):
            inputs = {m: x[offset : offset + size] for m, x in self.inputs.items()}
            labels = self.labels[offset : offset + size]
            locals_.append(self.train_client(inputs, labels).state_dict())
        total = sum(self.data.sizes)
        with torch.no_grad():
            for name, value in self.net.state_dict().items():
                if value.is_floating_point():
                    value.copy_(
                        sum(
                            state[name] * (size / total)
                            for state, size in zip(
                                locals_, self.data.sizes, strict=True
                            )
                        )
                    )

    def train_client(self, inputs: dict[str, Tensor], labels: Tensor) -> Net:
        """One client's epochs; the trained copy."""
        spec = self.spec
        distils = spec.method == "fedcmi"
        self.net.eval()
        if distils:
            self.measure(inputs, labels)
        local = copy.deepcopy(self.net).train()
        optimizer = torch.optim.SGD(
            local.parameters(),
            lr=spec.learning_rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
        )
        for p in local.parameters():
            # A block without gradient in a step is decayed all the same.
            p.grad = torch.zeros_like(p)
        for _ in range(spec.epochs):
            order = torch.randperm(len(labels)) if spec.shuffle else None
            for start in range(0, len(labels), spec.batch_size):
                rows = slice(start, start + spec.batch_size)
                if order is not None:
                    rows = order[rows]
                x, y = {m: x[rows] for m, x in inputs.items()}, labels[rows]
                optimizer.zero_grad(set_to_none=False)
                outputs = local(x)
                loss = F.cross_entropy(outputs.logits, y)
                if distils:
                    loss = loss + self.extra_loss(outputs, x, y)
                loss.backward()
                if distils and spec.options["mu"]:
                    for p, g in zip(
                        local.parameters(), self.net.parameters(), strict=True
                    ):
                        p.grad += spec.options["mu"] * (p.detach() - g.detach())
                optimizer.step()
        return local

    def measure(self, inputs: dict[str, Tensor], labels: Tensor) -> None:
        """Class probabilities of the global model, their ratios and temperatures."""
        spec, options = self.spec, self.spec.options
        count = len(spec.modalities)
        by_class: list[dict[int, list[float]]] = [{} for _ in range(count)]
        with torch.no_grad():
            for start in range(0, len(labels), spec.batch_size):
                rows = slice(start, start + spec.batch_size)
                outputs = self.net({m: x[rows] for m, x in inputs.items()})
                for m in range(count):
                    probs = torch.softmax(outputs.self_logits[m], 1)
                    for j, y in enumerate(labels[rows].tolist()):
                        by_class[m].setdefault(y, []).append(probs[j, y].item())
        classes = sorted(by_class[0])
        means = [
            {c: min(max(sum(p[c]) / len(p[c]), 1e-8), 1.0) for c in classes}
            for p in by_class
        ]
        ratios = [
            sum(p[c] / means[-1][c] for c in classes) / len(classes) for p in means
        ]
        self.dominant = max(range(count), key=lambda m: (ratios[m], m))
        self.temperatures = torch.ones(count, spec.num_classes)
        lead = means[self.dominant]
        for m in range(count):
            for c in classes:
                u = lead[c] / means[m][c] * ratios[m] / ratios[self.dominant]
                if u > 1:
                    t = 1 / (1 + options["gamma"] * math.log(u))
                    self.temperatures[m, c] = max(t, options["min_temperature"])

    def extra_loss(self, outputs, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """beta times the heads' losses plus lam times the infiltration loss."""
        options = self.spec.options
        loss = options["beta"] * sum(
            F.cross_entropy(logits, labels) for logits in outputs.self_logits
        )
        with torch.no_grad():
            teachers = self.net(inputs).self_logits
        scores = []
        for logits in outputs.self_logits:
            probs = torch.softmax(logits.detach(), 1)
            scores.append(sum(probs[j][labels[j]] for j in range(len(labels))).item())
        direction = max(range(len(scores)), key=lambda m: (scores[m], m))
        for k, students in enumerate(outputs.infiltration_logits):
            if k != direction:
                row = direction if k == self.dominant else k
                distilled = self.distillation(
                    teachers[direction], students, self.temperatures[row], labels
                )
                loss = loss + options["lam"] * distilled
        return loss

    def distillation(
        self, teacher: Tensor, student: Tensor, temperatures: Tensor, labels: Tensor
    ) -> Tensor:
        """Mean cross-entropy of tempered softmax rows, filled in sample by sample."""
        targets, predictions = torch.zeros_like(teacher), torch.zeros_like(student)
        for j in range(len(labels)):
            t = temperatures[labels[j]]
            targets[j] = torch.softmax(teacher[j] / t, 0)
            predictions[j] = torch.softmax(student[j] / t, 0)
        return -(targets * torch.log(predictions)).sum(1).mean()
