"""Evaluation: confusion tables of every view of the model, and metrics from them."""

from fedcmi_jax.evaluation.metrics import Evaluation as Evaluation
from fedcmi_jax.evaluation.metrics import build_evaluator as build_evaluator
from fedcmi_jax.evaluation.summary import read_sums as read_sums
from fedcmi_jax.evaluation.summary import summarise as summarise
