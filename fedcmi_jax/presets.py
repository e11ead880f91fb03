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


ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "heads-only": ("lambda = 0: heads, no distillation", {"method": {"lam": 0.0}}),
    "no-heads": ("beta = 0: distillation, no heads' loss", {"method": {"beta": 0.0}}),
    "no-infiltration": (
        "no infiltration projector: distil into the self-projection",
        {"method": {"student": "self"}, "model": {"stand_in": "zero"}},
    ),
    "no-distillation": (
        "FedCMI's model, heads and proximal term off: FedAvg on it",
        {"method": {"lam": 0.0, "beta": 0.0, "mu": 0.0}},
    ),
    "fixed-temperature": (
        # 1 / (1 + gamma ln u) at gamma 2 and a lead u of sqrt(e): a usual class-wise T.
        "one T = 0.5 for all classes",
        {"method": {"temperature": "fixed", "fixed_temperature": 0.5}},
    ),
    "no-temperature": ("T = 1", {"method": {"temperature": "none"}}),
    "class-weights": (
        "classes weighted by 1 / T instead of sharpened",
        {"method": {"temperature": "weights"}},
    ),
    "local-teacher": ("the local model teaches", {"method": {"teacher": "local"}}),
    "no-proximal": ("mu = 0", {"method": {"mu": 0.0}}),
    "weak-to-strong": (
        "the weakest modality teaches the others",
        {"method": {"direction": "to_strong"}},
    ),
    "both-ways": ("both directions", {"method": {"direction": "both"}}),
}
"""FedCMI's ablations: name -> description and overrides of a preset that trains it."""


def ablation(base: str, name: str) -> Preset:
    """A preset of FedCMI with one of ``ABLATIONS`` applied.

    Raises:
      ValueError: Unknown ablation; suggests a close one.

    Example:
      >>> ablation("noisy-digits", "heads-only").values["method"]
      {'name': 'fedcmi', 'lam': 0.0}
    """
    description, changes = ABLATIONS[lookup("ablation", name, ABLATIONS)]
    values = dict(PRESETS[base].values)
    for section, options in changes.items():
        values[section] = values.get(section, {}) | options
    return Preset(f"{base}, {description}", values)


PRESETS |= {
    f"{base}-{name}": ablation(base, name)
    for base in ("noisy-digits", "synthetic")
    for name in ABLATIONS
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
