"""SCAFFOLD: Karimireddy et al., ICML 2020, arXiv 1910.06378; methods 4."""

from typing import Literal

import jax
import jax.numpy as jnp

from fedcmi_jax.blocks import by_block, drop_frozen
from fedcmi_jax.choices import check_choice
from fedcmi_jax.methods._blocks import zeros
from fedcmi_jax.methods._checks import check_momentum, check_not_negative
from fedcmi_jax.methods._momentum import momentum_gain
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, Cohort, LocalUpdate, Step
from fedcmi_jax.types import Mean, Params, PyTree

Weights = Literal["data", "uniform"]


def scaffold(
    *,
    momentum: float = 0.0,
    variate_scale: float | None = None,
    weights: Weights = "data",
) -> Method:
    """Control variates: the server's c and every client's c_i correct its gradients.

    Local step: g <- g + c - c_i. After K_i steps, with w_G the round's global and w_i
    the trained parameters, eta the round's learning rate:
      c_i+ = c_i - c + scale (w_G - w_i) / (K_i eta),   dc_i = c_i+ - c_i
    Server, S of N clients accepted, sums over those of them that train block b:
      c_b <- c_b + (S / N) sum_i w_i dc_{i,b} / sum_i w_i,   w_i = n_i
    Blocks of a modality that the client does not train have no correction, and their
    c_i stays. With momentum w_G - w_i is K_i eta G gradients long, G = momentum_gain of
    K_i steps, which ``variate_scale`` undoes.

    Steps without momentum are shorter: to train as far as the others do in a round, it
    needs their learning rate times their G (2.6 at 5 steps, 6.0 at 20). Experiments
    that a configuration describes do that, see ``local.rate_scale``; users of
    ``build_algorithm`` give the rate they want (``fc.momentum_gain``).

    Deviations from the public multimodal code: it keeps momentum 0.9 with scale 1,
    which overestimates the mean gradient G-fold, and it ignores the learning-rate
    schedule. The paper's server sums with equal weights: ``weights="uniform"``.

    Args:
      momentum: Of the clients' SGD, in [0, 1) (paper: 0); configurations that set
        ``local.momentum`` override it and must set ``variate_scale``.
      variate_scale: Scale of the measured mean gradient; None: 1 / G, 1 without
        momentum. 0 is FedAvg exactly.
      weights: Clients count by their samples, or all the same.

    Raises:
      ValueError: momentum is outside [0, 1), the scale is negative, or weights is
        unknown.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.scaffold().momentum
      0.0
    """
    check_momentum(momentum, "0 is the paper's")
    check_choice("weights", weights, Weights)
    if variate_scale is not None:
        check_not_negative(variate_scale=variate_scale)

    def update(
        client: Client, grads: Params, step: Step, context: PyTree
    ) -> tuple[Params, PyTree]:
        del step
        trained = client.model.trained(client.data.available)
        corrected = by_block(
            lambda own, g, c, c_i: g + own * (c - c_i),
            trained,
            grads,
            client.shared,
            client.memory,
        )
        return corrected, context

    def finish(
        client: Client, local_update: LocalUpdate, context: PyTree
    ) -> tuple[Params, Params]:
        del context
        steps = jnp.maximum(client.num_steps, 1)
        length = steps * client.learning_rate
        scale = (
            1.0 / momentum_gain(momentum, steps)
            if variate_scale is None
            else variate_scale
        )
        trained = client.model.trained(client.data.available)
        changes = by_block(
            lambda own, c, start, end: own * (scale / length * (start - end) - c),
            trained,
            client.shared,
            client.params,
            local_update.params,
        )
        changes = drop_frozen(client.model.frozen.params, changes)
        size = client.data.num_examples if weights == "data" else 1.0
        upload = jax.tree.map(lambda own, dc: Mean(dc, size * own), trained, changes)
        return upload, jax.tree.map(jnp.add, client.memory, changes)

    def merge(cohort: Cohort, upload: Params) -> tuple[Params, Params]:
        share = cohort.num_accepted / cohort.federation.num_clients
        change = jax.tree.map(
            lambda mean: mean.value, upload, is_leaf=lambda x: isinstance(x, Mean)
        )
        shared = jax.tree.map(lambda c, dc: c + share * dc, cohort.shared, change)
        return shared, cohort.memory

    return Method(
        name="scaffold",
        momentum=momentum,
        init=zeros,
        update=update,
        finish=finish,
        merge=merge,
    )
