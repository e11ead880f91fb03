"""What server and clients agree on beforehand: configuration and shapes of data."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedcmi_jax._version import __version__
from fedcmi_jax.algorithm import FederatedAlgorithm
from fedcmi_jax.data.base import Dataset, Split
from fedcmi_jax.experiment.accounting import Guarantee, promised
from fedcmi_jax.experiment.bound import algorithm_of
from fedcmi_jax.experiment.config import Config, create, from_dict, to_dict
from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.experiment.model import build_model
from fedcmi_jax.experiment.optimization import check_augmented
from fedcmi_jax.samples import Shape

FIELDS = ("version", "clients", "class_names", "modalities", "shapes", "config")
"""What the file of a plan holds."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A deployment, as its server and all its clients have it.

    Attributes:
      config: The configuration.
      clients: N, clients of the federation; their ids are 0 to N - 1.
      modalities: Names, in the order of every table.
      shapes: Modality -> ``Shape`` of a sample, or dict of them, with its dtype.
      class_names: C names.
      version: Of the package that wrote it.
    """

    config: Config
    clients: int
    modalities: tuple[str, ...]
    shapes: dict[str, Any]
    class_names: tuple[str, ...]
    version: str = __version__

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hexadecimal: what an owner of data may insist on."""
        text = json.dumps(to_json(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def key(self) -> jax.Array:
        """The PRNG key of the seed."""
        return jax.random.key(self.config.seed)


def plan_of(config: Config, dataset: Dataset, clients: int) -> Plan:
    """The plan of a configuration and of data such as all clients have.

    Args:
      config: With the number of clients that its partition gives.
      dataset: Any data set of those shapes and classes.
      clients: N, the number of those that take part.

    Example:
      >>> from fedcmi_jax.experiment.split import load_dataset
      >>> config = from_dict({"dataset": {"name": "synthetic"}})
      >>> plan_of(config, load_dataset(config.dataset, print), 3).modalities
      ('strong', 'weak')
    """
    return Plan(
        dataclasses.replace(config, output=None, preset=""),
        clients,
        dataset.modalities,
        dataset.shapes,
        dataset.class_names,
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values."""

    def plain(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {name: plain(part) for name, part in shape.items()}
        return [str(shape.dtype), *shape]

    return {
        "version": plan.version,
        "clients": plan.clients,
        "class_names": list(plan.class_names),
        "modalities": list(plan.modalities),
        "shapes": plain(plan.shapes),
        "config": to_dict(plan.config),
    }


def read_plan(path: Path) -> Plan:
    """Reads what ``to_json`` gave and a file keeps.

    Raises:
      ValueError: It is no plan, or one of another version of the package.
    """
    values = read_json(path)
    if not isinstance(values, dict) or set(values) != set(FIELDS):
        raise ValueError(
            f"{path}: is no plan of a deployment; write it with fedcmi deploy init"
        )
    if values["version"] != __version__:
        raise ValueError(
            f"{path}: of fedcmi_jax {values['version']}, here is {__version__}; "
            "install that release, or write the plan again"
        )

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shape(part) for name, part in value.items()}
        dtype, *sizes = value
        return Shape(tuple(sizes), dtype)

    return Plan(
        from_dict(values["config"]),
        values["clients"],
        tuple(values["modalities"]),
        shape(values["shapes"]),
        tuple(values["class_names"]),
    )


def bound_algorithm(
    plan: Plan, rate_scale: float = 1.0, guarantee: Guarantee | None = None
) -> FederatedAlgorithm:
    """The algorithm that a plan describes, built from the shapes of the data alone.

    Args:
      plan: The plan.
      rate_scale: Factor on the learning rates; a client is told its rate.
      guarantee: What the server promises, with its noise; None: this is no server, and
        adds none.

    Raises:
      ValueError: Something in the configuration is impossible.
    """
    config, data = plan.config, no_samples(plan)
    check_augmented(config.local.augment, data)
    method = create("method", config.method)
    model = build_model(config, data, method.needs_projectors)
    guarantee = guarantee or promised(config, plan.clients, print, spends=False)
    private = None if guarantee is None else guarantee.privacy
    return algorithm_of(config, method, model, rate_scale, privacy=private)


def no_samples(plan: Plan, count: int = 0) -> Dataset:
    """A data set of the plan's shapes; ``count`` samples of zeros."""

    def zeros(shape: Any) -> Any:
        if isinstance(shape, dict):
            return {name: zeros(part) for name, part in shape.items()}
        return np.zeros((count, *shape), shape.dtype)

    inputs = {m: zeros(plan.shapes[m]) for m in plan.modalities}
    split = Split(inputs, np.zeros(count, np.int32))
    return Dataset("plan", plan.modalities, plan.class_names, split, split)
