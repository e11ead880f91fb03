"""Named configurations: ``fedcmi train PRESET``."""

from typing import Any, NamedTuple

from fedcmi_jax.config import Config, from_dict, lookup

DEFAULT = "noisy-digits"


class Preset(NamedTuple):
    """A named set of overrides of the defaults.

    Attributes:
      description: One line for ``fedcmi list presets``.
      values: Nested dicts for ``config.from_dict``.
    """

    description: str
    values: dict[str, Any]


PRESETS: dict[str, Preset] = {
    "noisy-digits": Preset(
        "FedCMI on real digits, a clean and a noisy view; about a minute on 2 cores",
        {
            "dataset": {"name": "noisy_digits"},
            "encoder": {"name": "mlp", "features": 128},
            "method": {"name": "fedcmi"},
            "local": {"epochs": 5, "batch_size": 32, "learning_rate": 0.01},
            "rounds": 100,
        },
    ),
    "cg-digits": Preset(
        "FedCMI on real digits, gray and misleading colour view, convnets",
        {
            "dataset": {"name": "cg_digits"},
            "encoder": {"name": "convnet", "features": 64},
            "method": {"name": "fedcmi"},
            "model": {"width": 64},
            "local": {"epochs": 5, "batch_size": 32, "learning_rate": 0.005},
            "rounds": 60,
        },
    ),
    "synthetic": Preset(
        "FedCMI on Gaussian classes with a strong and a weak modality",
        {
            "dataset": {"name": "synthetic"},
            "encoder": {"name": "mlp", "features": 64},
            "method": {"name": "fedcmi"},
            "model": {"width": 64},
            "rounds": 50,
        },
    ),
}


def preset(name: str) -> Config:
    """The configuration of a preset.

    Raises:
      ValueError: Unknown name; suggests a close one.

    Example:
      >>> preset("noisy-digits").method.name
      'fedcmi'
    """
    name = lookup("preset", name, PRESETS)
    return from_dict(PRESETS[name].values | {"preset": name})
