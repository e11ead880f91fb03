"""FedAvg: McMahan et al., AISTATS 2017, arXiv 1602.05629; methods 2."""

from fedcmi_jax.methods.base import FEDAVG, Method


def fedavg() -> Method:
    """w_G <- sum_i n_i w_i / sum_i n_i, block by block over the block's owners.

    The record of defaults: every client minimises its task cross-entropy.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedavg().name
      'fedavg'
    """
    return FEDAVG
