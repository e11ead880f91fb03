"""Federated multimodal learning as pure JAX: FedCMI and its baselines."""

from typing import TYPE_CHECKING

from fedcmi_jax._lazy import lazy as _lazy

if TYPE_CHECKING:
    from fedcmi_jax import backend as backend
    from fedcmi_jax import data as data
    from fedcmi_jax import evaluation as evaluation
    from fedcmi_jax import experiment as experiment
    from fedcmi_jax import methods as methods
    from fedcmi_jax import models as models
    from fedcmi_jax import partition as partition
    from fedcmi_jax import server_optimizers as server_optimizers
    from fedcmi_jax._version import __version__ as __version__
    from fedcmi_jax.algorithm import FederatedAlgorithm as FederatedAlgorithm
    from fedcmi_jax.algorithm import build_algorithm as build_algorithm
    from fedcmi_jax.assembly import build_federation as build_federation
    from fedcmi_jax.evaluation import build_evaluator as build_evaluator
    from fedcmi_jax.experiment import config as config
    from fedcmi_jax.experiment.callbacks import Callback as Callback
    from fedcmi_jax.experiment.one_call import resume as resume
    from fedcmi_jax.experiment.one_call import train as train
    from fedcmi_jax.experiment.plugins import register as register
    from fedcmi_jax.experiment.pretrained import init_from as init_from
    from fedcmi_jax.experiment.runs import load_run as load_run
    from fedcmi_jax.federation import Federation as Federation
    from fedcmi_jax.local import LocalTraining as LocalTraining
    from fedcmi_jax.methods import Method as Method
    from fedcmi_jax.methods import chain as chain
    from fedcmi_jax.methods._momentum import momentum_gain as momentum_gain
    from fedcmi_jax.optimizers import linear_decay as linear_decay
    from fedcmi_jax.optimizers import torch_sgd as torch_sgd
    from fedcmi_jax.results.report import report as report
    from fedcmi_jax.sweeps.one_call import compare as compare
    from fedcmi_jax.sweeps.one_call import sweep as sweep
    from fedcmi_jax.types import Batch as Batch
    from fedcmi_jax.types import FederationState as FederationState
    from fedcmi_jax.types import Model as Model
    from fedcmi_jax.types import Outputs as Outputs
    from fedcmi_jax.types import RoundInfo as RoundInfo
else:
    # The same names, imported when first used: tests/test_structure.py compares.
    __getattr__, __dir__ = _lazy(
        __name__,
        {
            "__version__": "fedcmi_jax._version",
            "FederatedAlgorithm": "fedcmi_jax.algorithm",
            "build_algorithm": "fedcmi_jax.algorithm",
            "build_evaluator": "fedcmi_jax.evaluation",
            "config": "fedcmi_jax.experiment",
            "Callback": "fedcmi_jax.experiment.callbacks",
            "init_from": "fedcmi_jax.experiment.pretrained",
            "register": "fedcmi_jax.experiment.plugins",
            "load_run": "fedcmi_jax.experiment.runs",
            "resume": "fedcmi_jax.experiment.one_call",
            "train": "fedcmi_jax.experiment.one_call",
            "Federation": "fedcmi_jax.federation",
            "build_federation": "fedcmi_jax.assembly",
            "LocalTraining": "fedcmi_jax.local",
            "linear_decay": "fedcmi_jax.optimizers",
            "torch_sgd": "fedcmi_jax.optimizers",
            "Method": "fedcmi_jax.methods",
            "chain": "fedcmi_jax.methods",
            "momentum_gain": "fedcmi_jax.methods._momentum",
            "report": "fedcmi_jax.results.report",
            "compare": "fedcmi_jax.sweeps.one_call",
            "sweep": "fedcmi_jax.sweeps.one_call",
            "Batch": "fedcmi_jax.types",
            "FederationState": "fedcmi_jax.types",
            "Model": "fedcmi_jax.types",
            "Outputs": "fedcmi_jax.types",
            "RoundInfo": "fedcmi_jax.types",
        },
    )
