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


class Client:
    """One client's samples and what follows from its labels alone."""

    def __init__(self, spec: Spec, inputs: dict[str, Tensor], labels: Tensor):
        self.inputs, self.labels = inputs, labels
        one_hot = F.one_hot(labels, spec.num_classes).T.float()
        counts = one_hot.sum(1)
        # [C, n], takes the mean over the samples of a class; [1, C], over classes.
        self.class_mean = one_hot / counts.clamp(min=1.0)[:, None]
        self.present_mean = (counts > 0)[None] / (counts > 0).sum()


class Lesson:
    """What the global model says about one client's samples; fixed for the round."""

    def __init__(self, spec: Spec, teacher: Tensor, client: Client):
        """Takes the teacher's self logits [n, M, C]."""
        options, labels = spec.options, client.labels
        places = labels[:, None, None].expand(-1, teacher.shape[1], 1)
        at_label = torch.softmax(teacher, 2).gather(2, places)[..., 0]
        p = (client.class_mean @ at_label).clamp_(1e-8, 1.0)
        means = client.present_mean @ (p / p[:, -1:])
        self.dominant = last_max(means[0].tolist())
        lead = p[:, self.dominant, None] / p * (means / means[0, self.dominant])
        # 1 / T, [C, M]; classes that the client lacks are never looked up.
        sharpness = 1 + options["gamma"] * lead.clamp_(min=1.0).log_()
        if options["min_temperature"]:
            sharpness.clamp_(max=1 / options["min_temperature"])
        self.teacher, self.sharpness = teacher, sharpness[labels]
        self.cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def targets(self, direction: int, student: int) -> tuple[Tensor, Tensor]:
        """Tempered probabilities [n, C] of that teacher and 1 / T, [n, 1]."""
        key = direction, student
        if key not in self.cache:
            row = direction if student == self.dominant else student
            sharpness = self.sharpness[:, row, None]
            logits = self.teacher[:, direction] * sharpness
            self.cache[key] = torch.softmax(logits, 1), sharpness
        return self.cache[key]


class Best:
    """Federated rounds in this form."""

    def __init__(self, spec: Spec, data: Data):
        self.spec, self.data = spec, data
        self.distils = spec.method == "fedcmi"
        self.net = self._build()
        self.norms = [
            x for x in self.net.modules() if isinstance(x, torch.nn.BatchNorm2d)
        ]
        inputs = image_tensors(spec.encoder, data.inputs, True)
        labels = torch.from_numpy(data.labels)
        self.clients = []
        for offset, size in zip(data.offsets, data.sizes, strict=True):
            rows = slice(offset, offset + size)
            own = {m: x[rows] for m, x in inputs.items()}
            self.clients.append(Client(spec, own, labels[rows]))
        self.params = list(self.net.parameters())
        self.weights = [p.detach() for p in self.params]
        self.momenta = [torch.zeros_like(x) for x in self.weights]
        state = self.net.state_dict()
        stats = [e.name for e in entries(self.net) if e.path.startswith("stats/")]
        self.names = [name for name, _ in self.net.named_parameters()] + stats
        self.tensors = self.weights + [state[name] for name in stats]
        self.start = [x.clone() for x in self.tensors]
        self.start_weights = self.start[: len(self.weights)]
        self.total = [x.clone() for x in self.tensors]
        self.mu = spec.options["mu"] if self.distils else 0.0

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

    def state(self) -> dict[str, Tensor]:
        """The model's parameters and statistics themselves, by name."""
        return dict(zip(self.names, self.tensors, strict=True))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copies a ``state`` in, as the global model of the round to come."""
        tensors = [state[name] for name in self.names]
        torch._foreach_copy_(self.tensors, tensors)
        torch._foreach_copy_(self.start, tensors)

    def run_round(self) -> None:
        """Trains every client in turn and averages."""
        total = sum(self.data.sizes)
        torch._foreach_copy_(self.start, self.tensors)
        torch._foreach_zero_(self.total)
        for client, size in zip(self.clients, self.data.sizes, strict=True):
            self.train_client(client)
            torch._foreach_add_(self.total, self.tensors, alpha=size / total)
            torch._foreach_copy_(self.tensors, self.start)
        torch._foreach_copy_(self.tensors, self.total)

    def train_client(self, client: Client) -> None:
        """One client's epochs, in the net."""
        spec, inputs, labels = self.spec, client.inputs, client.labels
        lesson = self.lesson(client) if self.distils else None
        self.set_training(True)
        is_first = True
        for _ in range(spec.epochs):
            order = torch.randperm(len(labels)) if spec.shuffle else None
            for start in range(0, len(labels), spec.batch_size):
                rows = slice(start, start + spec.batch_size)
                if order is not None:
                    rows = order[rows]
                x = {m: values[rows] for m, values in inputs.items()}
                if lesson is None:
                    loss = self.task_loss(x, labels[rows])
                else:
                    loss = self.fedcmi_loss(lesson, x, labels[rows], rows)
                self.step(loss, is_first)
                is_first = False

    def step(self, loss: Tensor, is_first: bool) -> None:
        """Gradients and one step of SGD.

        Called by its kernel: ``torch.optim.SGD(fused=True)`` does the same at several
        times the overhead. The proximal term mu (w - w_G) is weight decay mu and a
        constant -mu w_G. A block without gradient in a step is decayed all the same.
        """
        grads = torch.autograd.grad(loss, self.params, materialize_grads=True)
        if self.mu:
            torch._foreach_add_(grads, self.start_weights, alpha=-self.mu)
        torch._fused_sgd_(
            self.weights,
            grads,
            self.momenta,
            lr=self.spec.learning_rate,
            momentum=self.spec.momentum,
            weight_decay=self.spec.weight_decay + self.mu,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=is_first,
        )

    def set_training(self, training: bool) -> None:
        """Only BatchNorm has two modes."""
        for norm in self.norms:
            norm.training = training

    def lesson(self, client: Client) -> Lesson:
        """The global model's logits of all samples; the net still holds it."""
        size = EVAL_BATCH[self.spec.encoder]
        self.set_training(False)
        logits = []
        with torch.inference_mode():
            for start in range(0, len(client.labels), size):
                x = {m: v[start : start + size] for m, v in client.inputs.items()}
                parts = self.net.project(self.net.features(x))
                logits.append(torch.stack(self.net.classify(parts), 1))
        with torch.no_grad():
            return Lesson(self.spec, torch.cat(logits), client)

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
