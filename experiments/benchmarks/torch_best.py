"""The best plain-PyTorch form of the same rounds that we could find.

One model that is loaded per client by a copy; the frozen global model's logits cached
once per client and round, which also gives the class statistics; tempered targets
computed once per direction; only the weaker modality's infiltration projection is run;
fused SGD with weight decay and the proximal term in one pass over the parameters;
images channels-last.
"""

import torch
from peer import Data, Spec
from torch import Tensor
from torch.nn import functional as F
from torch_models import Net, build, entries, image_tensors, load_arrays, save_arrays

EVAL_BATCH = {"mlp": 1 << 16, "convnet": 128, "resnet18": 64}
"""Samples at once in the teacher's pass."""


class Lesson:
    """What the global model says about one client's samples; fixed for the round."""

    def __init__(self, spec: Spec, teacher: Tensor, labels: Tensor):
        """Takes the teacher's self logits [n, M, C]."""
        options = spec.options
        self.teacher, self.labels = teacher, labels
        probs = torch.softmax(teacher, 2)
        at_label = probs.gather(
            2, labels[:, None, None].expand(-1, teacher.shape[1], 1)
        )[..., 0]
        counts = torch.bincount(labels, minlength=spec.num_classes)
        p = torch.zeros(spec.num_classes, teacher.shape[1])
        p = p.index_add_(0, labels, at_label) / counts.clamp(min=1)[:, None]
        p = p.clamp(1e-8, 1.0)
        present = counts > 0
        means = (p / p[:, -1:])[present].mean(0)
        self.dominant = last_max(means.tolist())
        lead = p[:, self.dominant, None] / p * (means / means[self.dominant])
        sharper = 1 / (1 + options["gamma"] * lead.clamp(min=1.0).log())
        sharper = sharper.clamp(min=options["min_temperature"])
        self.temperatures = torch.where(present[:, None], sharper, 1.0)
        self.cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def targets(self, direction: int, student: int) -> tuple[Tensor, Tensor]:
        """Tempered probabilities [n, C] of that teacher and 1 / T, [n, 1]."""
        key = direction, student
        if key not in self.cache:
            row = direction if student == self.dominant else student
            sharpness = 1 / self.temperatures[self.labels, row, None]
            logits = self.teacher[:, direction] * sharpness
            self.cache[key] = torch.softmax(logits, 1), sharpness
        return self.cache[key]


class Best:
    """Federated rounds in this form."""

    def __init__(self, spec: Spec, data: Data):
        self.spec, self.data = spec, data
        self.distils = spec.method == "fedcmi"
        self.net = self._build()
        self.inputs = image_tensors(spec.encoder, data.inputs, True)
        self.labels = torch.from_numpy(data.labels)
        self.params = [p.detach() for p in self.net.parameters()]
        state = self.net.state_dict()
        names = [e.name for e in entries(self.net) if e.path.startswith("stats/")]
        self.tensors = self.params + [state[name] for name in names]
        self.start = [x.clone() for x in self.tensors]
        self.total = [x.clone() for x in self.tensors]
        # The proximal term mu (w - w_G) is weight decay mu and a constant -mu w_G.
        self.mu = spec.options["mu"] if self.distils else 0.0
        self.optimizer = torch.optim.SGD(
            self.net.parameters(),
            lr=spec.learning_rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay + self.mu,
            fused=True,
        )

    def _build(self) -> Net:
        spec, data = self.spec, self.data
        projectors = spec.model == "two_projector"
        net = build(spec.encoder, spec.modalities, projectors, data.arrays)
        net = net.to(memory_format=torch.channels_last)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.num_batches_tracked = None
        return net

    def reset(self) -> None:
        """Back to the initial model."""
        load_arrays(self.net, self.data.arrays)

    def arrays(self) -> dict:
        """The global model."""
        return save_arrays(self.net)

    def run_round(self) -> None:
        """Trains every client in turn and averages."""
        total = sum(self.data.sizes)
        torch._foreach_copy_(self.start, self.tensors)
        torch._foreach_zero_(self.total)
        for offset, size in zip(self.data.offsets, self.data.sizes, strict=True):
            inputs = {m: x[offset : offset + size] for m, x in self.inputs.items()}
            self.train_client(inputs, self.labels[offset : offset + size])
            torch._foreach_add_(self.total, self.tensors, alpha=size / total)
            torch._foreach_copy_(self.tensors, self.start)
        torch._foreach_copy_(self.tensors, self.total)

    def train_client(self, inputs: dict[str, Tensor], labels: Tensor) -> None:
        """One client's epochs, in the net."""
        spec, optimizer = self.spec, self.optimizer
        lesson = self.lesson(inputs, labels) if self.distils else None
        self.net.train()
        optimizer.state.clear()
        for _ in range(spec.epochs):
            order = torch.randperm(len(labels)) if spec.shuffle else None
            for start in range(0, len(labels), spec.batch_size):
                rows = slice(start, start + spec.batch_size)
                if order is not None:
                    rows = order[rows]
                x = {m: values[rows] for m, values in inputs.items()}
                optimizer.zero_grad(set_to_none=True)
                if lesson is None:
                    loss = self.task_loss(x, labels[rows])
                else:
                    loss = self.fedcmi_loss(lesson, x, labels[rows], rows)
                loss.backward()
                grads = [
                    # A block without gradient in a step is decayed all the same.
                    torch.zeros_like(p) if p.grad is None else p.grad
                    for p in self.net.parameters()
                ]
                if self.mu:
                    start_params = self.start[: len(grads)]
                    torch._foreach_add_(grads, start_params, alpha=-self.mu)
                for p, grad in zip(self.net.parameters(), grads, strict=True):
                    p.grad = grad
                optimizer.step()

    def lesson(self, inputs: dict[str, Tensor], labels: Tensor) -> Lesson:
        """The global model's logits of all samples; the net still holds it."""
        size = EVAL_BATCH[self.spec.encoder]
        self.net.eval()
        logits = []
        with torch.inference_mode():
            for start in range(0, len(labels), size):
                x = {m: v[start : start + size] for m, v in inputs.items()}
                parts = self.net.project(self.net.features(x))
                logits.append(torch.stack(self.net.classify(parts), 1))
        with torch.no_grad():
            return Lesson(self.spec, torch.cat(logits), labels)

    def task_loss(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy of the fused logits."""
        net = self.net
        return F.cross_entropy(net.fuse(net.project(net.features(inputs))), labels)

    def fedcmi_loss(
        self, lesson: Lesson, inputs: dict[str, Tensor], labels: Tensor, rows
    ) -> Tensor:
        """Task loss, heads' losses and infiltration loss."""
        net, options = self.net, self.spec.options
        features = net.features(inputs)
        parts = net.project(features)
        losses = [
            F.cross_entropy(logits, labels, reduction="none")
            for logits in net.classify(parts)
        ]
        loss = F.cross_entropy(net.fuse(parts), labels)
        loss = loss + sum(losses).mean() * options["beta"]
        with torch.no_grad():
            scores = torch.stack(losses).neg_().exp_().sum(1).tolist()
        direction = last_max(scores)
        for k, feature in enumerate(features):
            if k != direction:
                targets, sharpness = lesson.targets(direction, k)
                student = net.infiltrate(k, feature) * sharpness[rows]
                distilled = F.cross_entropy(student, targets[rows])
                loss = loss + distilled * options["lam"]
        return loss


def last_max(values: list[float]) -> int:
    """Place of the greatest value, of the last one among equals."""
    return max(range(len(values)), key=lambda i: (values[i], i))
