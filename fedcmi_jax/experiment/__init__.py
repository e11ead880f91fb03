"""A configuration becomes an experiment, and an experiment a run in a folder."""

from fedcmi_jax.experiment.experiment import Experiment as Experiment
from fedcmi_jax.experiment.experiment import build as build
from fedcmi_jax.experiment.experiment import measure as measure
from fedcmi_jax.experiment.training import load_best as load_best
from fedcmi_jax.experiment.training import train as train
