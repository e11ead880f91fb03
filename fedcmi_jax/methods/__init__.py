"""Federated methods: the record of hooks, its composition, and the registry."""

from collections.abc import Callable

from fedcmi_jax.methods.base import FEDAVG as FEDAVG
from fedcmi_jax.methods.base import Client as Client
from fedcmi_jax.methods.base import Cohort as Cohort
from fedcmi_jax.methods.base import Finished as Finished
from fedcmi_jax.methods.base import Method as Method
from fedcmi_jax.methods.base import Step as Step
from fedcmi_jax.methods.base import chain as chain
from fedcmi_jax.methods.base import proximal as proximal
from fedcmi_jax.methods.fedavg import fedavg as fedavg
from fedcmi_jax.methods.fedcmi import fedcmi as fedcmi
from fedcmi_jax.methods.fedprox import fedprox as fedprox

REGISTRY: dict[str, Callable[..., Method]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "fedcmi": fedcmi,
}
"""Name -> factory with keyword-only options."""
