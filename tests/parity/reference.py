"""Loads reference results (.npz files, data/README.md) into this package's records."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import fedcmi_jax as fc

OWN = pathlib.Path(__file__).parent / "data"
MORE = pathlib.Path(os.environ.get("FEDCMI_REFERENCE_DIR", "../shared/reference"))

MODALITIES = ("a", "v")
HAS = {"multimodal": (1, 1), "audio": (1, 0), "visual": (0, 1)}

# Reference module -> our block. Projectors, heads: (kind, modality).
BLOCKS = {
    "audio_net": ("encoder", "a"),
    "visual_net": ("encoder", "v"),
    "audio_a_branch": ("self_projector", "a"),
    "visual_v_branch": ("self_projector", "v"),
    "audio_v_branch": ("infiltration_projector", "a"),
    "visual_a_branch": ("infiltration_projector", "v"),
    "av_classifier": ("head", "a"),
    "va_classifier": ("head", "v"),
    "fusion_module": ("fusion",),
}
ENCODER_LAYERS = {"1": "dense0", "bn0": "norm", "fc": "dense"}
PROJECTOR_LAYERS = {"": "dense0", "0": "dense0", "2": "dense1", "4": "dense2"}
FUSION_LAYERS = {
    "concat": {"fc_out": "out"},
    "sum": {"fc_x": "out0", "fc_y": "out1"},
    "film": {"fc": "film", "fc_out": "out"},
    "gated": {"fc_x": "gate", "fc_y": "value", "fc_out": "out"},
}


def files(more: pathlib.Path = MORE) -> list[pathlib.Path]:
    """The files that come with the tests, and those of ``more`` with other names."""
    found = {path.name: path for folder in (more, OWN) for path in folder.glob("*.npz")}
    return [found[name] for name in sorted(found)]


class Reference(NamedTuple):
    name: str
    config: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def num_clients(self) -> int:
        return len(self.config["ns"])

    def client(self, i: int, name: str) -> np.ndarray:
        return self.arrays[f"client{i}/{name}"]

    def weights(self, prefix: str):
        """(params, batch_stats) in our layout of all keys below a prefix."""
        params: dict = {}
        stats: dict = {"encoder": {m: {} for m in MODALITIES}}
        for key, value in self.arrays.items():
            if key.startswith(prefix + "/"):
                path, is_stat, value = _translate(
                    key.removeprefix(prefix + "/"), value, self.config["fusion"]
                )
                target = stats if is_stat else params
                for part in path[:-1]:
                    target = target.setdefault(part, {})
                target[path[-1]] = jnp.asarray(value)
        return params, stats


def load(path: pathlib.Path) -> Reference:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Reference(path.stem, json.loads(str(arrays.pop("config"))), arrays)


def _translate(name: str, value: np.ndarray, fusion: str):
    """One torch entry -> (path, is BatchNorm state, value in our layout)."""
    module, *layer, leaf = name.split(".")
    block = BLOCKS[module]
    layer = ".".join(layer)
    if block[0] == "encoder":
        layer = ENCODER_LAYERS.get(layer, layer)
    elif block[0] == "head":
        layer = "out"
    elif block[0] == "fusion":
        layer = FUSION_LAYERS[fusion][layer]
    else:
        layer = PROJECTOR_LAYERS[layer]
    if leaf.startswith("running_"):
        return (*block, layer, leaf.removeprefix("running_")), True, value
    if layer == "norm":
        return (*block, layer, {"weight": "scale", "bias": "bias"}[leaf]), False, value
    if leaf == "weight":
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        leaf = "kernel"
    return (*block, layer, leaf), False, value


def _inputs(x: np.ndarray) -> np.ndarray:
    """Vectors as they are; NCHW (or NHW) images as NHWC."""
    if x.ndim == 4:
        return x.transpose(0, 2, 3, 1)
    return x[..., None] if x.ndim == 3 else x


def dataset(reference: Reference, clients: list[int]) -> fc.data.Dataset:
    def cat(name: str) -> np.ndarray:
        return np.concatenate([reference.client(i, name) for i in clients])

    split = fc.data.Split({m: _inputs(cat(m)) for m in MODALITIES}, cat("y"))
    names = tuple(str(c) for c in range(reference.config["C"]))
    return fc.data.Dataset("reference", MODALITIES, names, split, split)


def federation(reference: Reference, clients: list[int]):
    sizes = np.array([reference.config["ns"][i] for i in clients])
    has = [HAS[reference.config["modalities"][i]] for i in clients]
    data = dataset(reference, clients)
    parts = fc.partition.Partition(np.arange(sizes.sum()), sizes)
    return data, fc.build_federation(data, parts, np.array(has, bool))


def algorithm(reference: Reference, data: fc.data.Dataset, num_clients: int, **options):
    c = reference.config
    if c["conv"]:
        encoder = fc.models.convnet(features=512)
    else:
        encoder = fc.models.mlp(features=c["enc"])
    model = fc.models.two_projector(
        dict.fromkeys(MODALITIES, encoder),
        data.shapes,
        c["C"],
        fusion=c["fusion"],
        projector=c["branch"],
        width=c["d"],
    )
    method = fc.methods.fedcmi(
        lam=c["lam"],
        beta=c["beta"],
        gamma=c["gamma"],
        mu=c["mu"] if c["prox"] else 0.0,
        min_temperature=0.0,
        ratio_mean="arithmetic",
    )
    local = fc.LocalTraining(
        epochs=c["local_epochs"],
        batch_size=c["batch_size"],
        learning_rate=c["lr"],
        optimizer=fc.torch_sgd(momentum=c["momentum"], weight_decay=c["weight_decay"]),
        shuffle=False,
    )
    return model, fc.build_algorithm(
        method, model, clients_per_round=num_clients, local=local, **options
    )


def start(reference: Reference, algorithm, federation, key):
    """The state that the reference's first round starts from."""
    params, stats = reference.weights("init")
    state = algorithm.init(key, federation)
    return state._replace(
        params=params,
        batch_stats=stats,
        round=jnp.asarray(reference.config["first_round"], jnp.int32),
    )
