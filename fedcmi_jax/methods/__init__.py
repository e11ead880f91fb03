"""Federated methods: the record of hooks, its composition, and the registry."""

from collections.abc import Callable

from fedcmi_jax.methods.base import FEDAVG as FEDAVG
from fedcmi_jax.methods.base import Client as Client
from fedcmi_jax.methods.base import Cohort as Cohort
from fedcmi_jax.methods.base import Finished as Finished
from fedcmi_jax.methods.base import Method as Method
from fedcmi_jax.methods.base import Server as Server
from fedcmi_jax.methods.base import Step as Step
from fedcmi_jax.methods.base import hooks as hooks
from fedcmi_jax.methods.base import proximal as proximal
from fedcmi_jax.methods.bmsfed import bmsfed as bmsfed
from fedcmi_jax.methods.compose import chain as chain
from fedcmi_jax.methods.fedagm import fedagm as fedagm
from fedcmi_jax.methods.fedavg import fedavg as fedavg
from fedcmi_jax.methods.fedcmi import fedcmi as fedcmi
from fedcmi_jax.methods.fedmsplit import fedmsplit as fedmsplit
from fedcmi_jax.methods.fedogm import fedogm as fedogm
from fedcmi_jax.methods.fedpmr import fedpmr as fedpmr
from fedcmi_jax.methods.fedproto import fedproto as fedproto
from fedcmi_jax.methods.fedprox import fedprox as fedprox
from fedcmi_jax.methods.power_of_choice import power_of_choice as power_of_choice
from fedcmi_jax.methods.scaffold import scaffold as scaffold

REGISTRY: dict[str, Callable[..., Method]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "fedproto": fedproto,
    "fedogm": fedogm,
    "fedpmr": fedpmr,
    "fedagm": fedagm,
    "fedmsplit": fedmsplit,
    "power_of_choice": power_of_choice,
    "bmsfed": bmsfed,
    "fedcmi": fedcmi,
}
"""Name -> factory with keyword-only options."""
