"""A configuration becomes an experiment, and an experiment a run in a folder."""

from typing import TYPE_CHECKING

from fedcmi_jax._lazy import lazy as _lazy

if TYPE_CHECKING:
    from fedcmi_jax.experiment.experiment import Experiment as Experiment
    from fedcmi_jax.experiment.experiment import build as build
    from fedcmi_jax.experiment.experiment import measure as measure
    from fedcmi_jax.experiment.training import load_best as load_best
    from fedcmi_jax.experiment.training import train as train
else:
    # The same names, imported when first used: a configuration needs no Orbax.
    __getattr__, __dir__ = _lazy(
        __name__,
        {
            "Experiment": "fedcmi_jax.experiment.experiment",
            "build": "fedcmi_jax.experiment.experiment",
            "measure": "fedcmi_jax.experiment.experiment",
            "load_best": "fedcmi_jax.experiment.training",
            "train": "fedcmi_jax.experiment.training",
        },
    )
