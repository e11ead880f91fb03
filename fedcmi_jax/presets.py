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
    # K = 20, S = 5 as the FedCMI authors' run scripts (methods 1.8), in all three.
    "cg-mnist": Preset(
        "FedCMI on MNIST, gray and misleading colour view, convnets",
        {
            # A tenth of the images: what a CPU trains on in minutes.
            "dataset": {
                "name": "cg_mnist",
                "train_samples": 6_000,
                "test_samples": 2_000,
            },
            "encoder": {"name": "convnet", "features": 64},
            "method": {"name": "fedcmi"},
            "model": {"width": 64},
            "clients": 20,
            "clients_per_round": 5,
            "local": {"epochs": 2, "batch_size": 32, "learning_rate": 0.005},
            "rounds": 40,
        },
    ),
    "av-mnist": Preset(
        "FedCMI on written and spoken digits, convnets",
        {
            "dataset": {
                "name": "av_mnist",
                "train_samples": 6_000,
                "test_samples": 2_000,
            },
            "encoder": {"name": "convnet", "features": 64},
            "method": {"name": "fedcmi"},
            "model": {"width": 64},
            "clients": 20,
            "clients_per_round": 5,
            "local": {"epochs": 2, "batch_size": 32, "learning_rate": 0.005},
            "rounds": 40,
        },
    ),
    "hapt": Preset(
        "FedCMI on a phone's accelerometer and gyroscope, 1-D convolutions",
        {
            "dataset": {"name": "hapt"},
            "encoder": {"name": "har_conv", "features": 128},
            "method": {"name": "fedcmi"},
            "model": {"width": 128},
            # As many clients as volunteers in the training split.
            "clients": 21,
            "clients_per_round": 5,
            "local": {"epochs": 2, "batch_size": 32, "learning_rate": 0.01},
            "rounds": 60,
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
