"""Federated methods: the record of hooks, its composition, and the registry."""

from collections.abc import Callable

from fedcmi_jax.methods.base import FEDAVG as FEDAVG
from fedcmi_jax.methods.base import Method as Method
from fedcmi_jax.methods.base import hooks as hooks
from fedcmi_jax.methods.base import proximal as proximal
from fedcmi_jax.methods.bmsfed import bmsfed as bmsfed
from fedcmi_jax.methods.compose import chain as chain
from fedcmi_jax.methods.fedagm import fedagm as fedagm
from fedcmi_jax.methods.fedavg import fedavg as fedavg
from fedcmi_jax.methods.fedcmi import fedcmi as fedcmi
from fedcmi_jax.methods.feddyn import feddyn as feddyn
from fedcmi_jax.methods.fedmsplit import fedmsplit as fedmsplit
from fedcmi_jax.methods.fednova import fednova as fednova
from fedcmi_jax.methods.fedogm import fedogm as fedogm
from fedcmi_jax.methods.fedper import fedper as fedper
from fedcmi_jax.methods.fedpmr import fedpmr as fedpmr
from fedcmi_jax.methods.fedproto import fedproto as fedproto
from fedcmi_jax.methods.fedprox import fedprox as fedprox
from fedcmi_jax.methods.fedrep import fedrep as fedrep
from fedcmi_jax.methods.moon import moon as moon
from fedcmi_jax.methods.power_of_choice import power_of_choice as power_of_choice
from fedcmi_jax.methods.qfedavg import qfedavg as qfedavg
from fedcmi_jax.methods.scaffold import scaffold as scaffold
from fedcmi_jax.methods.seen import Client as Client
from fedcmi_jax.methods.seen import Cohort as Cohort
from fedcmi_jax.methods.seen import LocalUpdate as LocalUpdate
from fedcmi_jax.methods.seen import Selection as Selection
from fedcmi_jax.methods.seen import Server as Server
from fedcmi_jax.methods.seen import Step as Step
from fedcmi_jax.types import Mean as Mean
from fedcmi_jax.types import Sum as Sum

REGISTRY: dict[str, Callable[..., Method]] = {
    "fedavg": fedavg,
    "fedprox": fedprox,
    "scaffold": scaffold,
    "feddyn": feddyn,
    "fednova": fednova,
    "qfedavg": qfedavg,
    "fedper": fedper,
    "fedrep": fedrep,
    "moon": moon,
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
