"""fedcmi_jax's models as PyTorch modules with the same parameter names.

``encoder/gray/conv1/kernel`` is the weight of ``net.encoder["gray"].conv1``; widths are
read off the shapes of the given arrays.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from peer import SpecError
from torch import Tensor, nn
from torch.nn import functional as F

Shapes = Mapping[str, tuple[int, ...]]


class Outputs(NamedTuple):
    """Logits of one batch.

    Attributes:
      logits: [B, C], fused.
      self_logits: One [B, C] per modality.
      infiltration_logits: The same.
    """

    logits: Tensor
    self_logits: list[Tensor]
    infiltration_logits: list[Tensor]


def _linear(shapes: Shapes, path: str) -> nn.Linear:
    return nn.Linear(*shapes[f"{path}/kernel"])


def _conv(shapes: Shapes, path: str, stride: int = 1) -> nn.Conv2d:
    size, _, channels, features = shapes[f"{path}/kernel"]
    return nn.Conv2d(
        channels, features, size, stride, size // 2, bias=f"{path}/bias" in shapes
    )


def _norm(shapes: Shapes, path: str) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(*shapes[f"{path}/scale"])


class MLP(nn.Module):
    """Flatten, then Linear and ReLU per layer."""

    def __init__(self, shapes: Shapes, path: str):
        super().__init__()
        names = []
        while f"{path}/dense{len(names)}/kernel" in shapes:
            names.append(f"dense{len(names)}")
            self.add_module(names[-1], _linear(shapes, f"{path}/{names[-1]}"))
        self.layers = [self.get_submodule(name) for name in names]

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, ...] to [B, F]."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu_()
        return x


class ConvNet(nn.Module):
    """BatchNorm, four convolutions, mean over positions, Linear."""

    def __init__(self, shapes: Shapes, path: str):
        super().__init__()
        self.norm = _norm(shapes, f"{path}/norm")
        self.conv1 = _conv(shapes, f"{path}/conv1")
        self.conv2 = _conv(shapes, f"{path}/conv2")
        self.conv3 = _conv(shapes, f"{path}/conv3", 2)
        self.conv4 = _conv(shapes, f"{path}/conv4")
        self.dense = _linear(shapes, f"{path}/dense")

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [B, channels, H, W] to [B, F]."""
        # Pooling before the ReLU gives the same values at a quarter of the work.
        x = F.max_pool2d(self.conv1(self.norm(x)), 3, 2, 1).relu_()
        x = self.conv2(x).relu_()
        x = self.conv3(x).relu_()
        x = self.conv4(x).relu_()
        return self.dense(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """conv3x3, BN, ReLU, conv3x3, BN, plus the shortcut, ReLU."""

    def __init__(self, shapes: Shapes, path: str):
        super().__init__()
        stride = 2 if f"{path}/shortcut/kernel" in shapes else 1
        self.conv1 = _conv(shapes, f"{path}/conv1", stride)
        self.norm1 = _norm(shapes, f"{path}/norm1")
        self.conv2 = _conv(shapes, f"{path}/conv2")
        self.norm2 = _norm(shapes, f"{path}/norm2")
        self.shortcut = self.shortcut_norm = None
        if stride == 2:
            self.shortcut = _conv(shapes, f"{path}/shortcut", 2)
            self.shortcut_norm = _norm(shapes, f"{path}/shortcut_norm")

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, channels, H, W] to the same or, strided, to half the size."""
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x))
        return y.add_(x).relu_()


class ResNet18(nn.Module):
    """ResNet-18 without its last linear layer."""

    def __init__(self, shapes: Shapes, path: str):
        super().__init__()
        self.conv1 = _conv(shapes, f"{path}/conv1", 2)
        self.norm1 = _norm(shapes, f"{path}/norm1")
        for i in range(8):
            self.add_module(f"block{i}", BasicBlock(shapes, f"{path}/block{i}"))

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [B, channels, H, W] to [B, 512]."""
        x = self.norm1(self.conv1(x)).relu_()
        x = F.max_pool2d(x, 3, 2, 1)
        for i in range(8):
            x = self.get_submodule(f"block{i}")(x)
        return x.mean((2, 3))


ENCODERS = {"mlp": MLP, "convnet": ConvNet, "resnet18": ResNet18}


class Net(nn.Module):
    """Both architectures; the classifier is the one without projectors."""

    def __init__(
        self, encoder: str, modalities: Iterable[str], shapes: Shapes, projectors: bool
    ):
        super().__init__()
        self.modalities = tuple(modalities)
        self.projectors = projectors

        def blocks(kind: str, layer: str) -> list[nn.Module]:
            layers = [_linear(shapes, f"{kind}/{m}/{layer}") for m in self.modalities]
            by_name = {
                m: nn.ModuleDict({layer: module})
                for m, module in zip(self.modalities, layers, strict=True)
            }
            self.add_module(kind, nn.ModuleDict(by_name))
            return layers

        # Plain lists beside the registered modules: looking those up costs as much as
        # a small layer.
        self.encoders = [
            ENCODERS[encoder](shapes, f"encoder/{m}") for m in self.modalities
        ]
        self.encoder = nn.ModuleDict(zip(self.modalities, self.encoders, strict=True))
        self.fusion = nn.ModuleDict({"out": _linear(shapes, "fusion/out")})
        if projectors:
            self.self_layers = blocks("self_projector", "dense0")
            self.infiltration_layers = blocks("infiltration_projector", "dense0")
            self.heads = blocks("head", "out")

    def features(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """h, one [B, F] per modality."""
        return [
            encoder(inputs[m])
            for m, encoder in zip(self.modalities, self.encoders, strict=True)
        ]

    def project(self, features: list[Tensor]) -> list[Tensor]:
        """s, one [B, D] per modality; h where there are no projectors."""
        if not self.projectors:
            return features
        return [layer(h) for layer, h in zip(self.self_layers, features, strict=True)]

    def fuse(self, parts: list[Tensor]) -> Tensor:
        """z, [B, C]."""
        return self.fusion["out"](torch.cat(parts, 1))

    def classify(self, parts: list[Tensor]) -> list[Tensor]:
        """The heads on one vector per modality."""
        return [head(p) for head, p in zip(self.heads, parts, strict=True)]

    def infiltrate(self, index: int, feature: Tensor) -> Tensor:
        """[B, C], the head of one modality on its infiltration projection."""
        return self.heads[index](self.infiltration_layers[index](feature))

    def forward(self, inputs: Mapping[str, Tensor]) -> Outputs:
        """Everything the model computes."""
        features = self.features(inputs)
        parts = self.project(features)
        if not self.projectors:
            return Outputs(self.fuse(parts), [], [])
        infiltration = [self.infiltrate(i, h) for i, h in enumerate(features)]
        return Outputs(self.fuse(parts), self.classify(parts), infiltration)


class Entry(NamedTuple):
    """A tensor of the module and the array that it stands for.

    Attributes:
      name: In the module's state dict.
      path: In the npz file.
      axes: Axes of the torch tensor in terms of those of the array.
    """

    name: str
    path: str
    axes: tuple[int, ...]


def entries(net: nn.Module) -> list[Entry]:
    """All parameters, then all BatchNorm statistics of a net, in the module's order."""
    params, stats = [], []
    for name, module in net.named_modules():
        path = name.replace(".", "/")
        if isinstance(module, nn.Linear):
            params.append(Entry(f"{name}.weight", f"params/{path}/kernel", (1, 0)))
        elif isinstance(module, nn.Conv2d):
            axes = (3, 2, 0, 1)
            params.append(Entry(f"{name}.weight", f"params/{path}/kernel", axes))
        elif isinstance(module, nn.BatchNorm2d):
            params.append(Entry(f"{name}.weight", f"params/{path}/scale", (0,)))
            for stat in ("mean", "var"):
                entry = Entry(f"{name}.running_{stat}", f"stats/{path}/{stat}", (0,))
                stats.append(entry)
        else:
            continue
        if module.bias is not None:
            params.append(Entry(f"{name}.bias", f"params/{path}/bias", (0,)))
    return params + stats


def build(
    encoder: str,
    modalities: Iterable[str],
    projectors: bool,
    arrays: Mapping[str, np.ndarray],
) -> Net:
    """A net with the given parameters and statistics.

    Raises:
      SpecError: The arrays are not those of such a net.
    """
    shapes = {
        k.removeprefix("params/"): x.shape
        for k, x in arrays.items()
        if k.startswith("params/")
    }
    try:
        net = Net(encoder, modalities, shapes, projectors)
    except KeyError as error:
        raise SpecError(f"data: no parameter {error} for this model") from None
    paths = {entry.path for entry in entries(net)}
    if paths != set(arrays):
        wrong = sorted(paths ^ set(arrays))
        raise SpecError(f"data: missing or left over for this model: {wrong[:4]}")
    load_arrays(net, arrays)
    return net


def load_arrays(net: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies arrays into a net, in place."""
    state = net.state_dict()
    with torch.no_grad():
        for name, path, axes in entries(net):
            state[name].copy_(torch.from_numpy(arrays[path].transpose(axes).copy()))


def save_arrays(net: nn.Module) -> dict[str, np.ndarray]:
    """The arrays of a net by path."""
    state = net.state_dict()
    return {
        path: state[name].detach().permute(*np.argsort(axes).tolist()).numpy().copy()
        for name, path, axes in entries(net)
    }


def image_tensors(
    encoder: str, inputs: Mapping[str, np.ndarray], channels_last: bool
) -> dict[str, Tensor]:
    """The inputs as the encoder takes them: images [n, channels, H, W].

    Args:
      encoder: Its name; an mlp takes the samples as they are.
      inputs: Modality -> [n, ...] (images NHWC).
      channels_last: Memory order of images.
    """
    tensors = {m: torch.from_numpy(x) for m, x in inputs.items()}
    if encoder == "mlp":
        return {m: x.contiguous() for m, x in tensors.items()}
    order = torch.channels_last if channels_last else torch.contiguous_format
    return {
        m: x.permute(0, 3, 1, 2).contiguous(memory_format=order)
        for m, x in tensors.items()
    }
