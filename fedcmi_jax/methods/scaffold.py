"""SCAFFOLD: Karimireddy et al., ICML 2020, arXiv 1910.06378; methods 4."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.methods._momentum import momentum_gain
from fedcmi_jax.methods.base import (
    Client,
    Cohort,
    Finished,
    Method,
    Step,
    check_choice,
    check_not_negative,
)
from fedcmi_jax.types import Array, Model, Params, PyTree

Weights = Literal["data", "uniform"]


class Upload(NamedTuple):
    """Sums over clients: w_{i,b} dc_{i,b} and w_{i,b}, prefix tree of the blocks."""

    changes: Params
    weights: Params


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
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: {momentum} is outside [0, 1); 0 is the paper's")
    check_choice("weights", weights, Weights)
    if variate_scale is not None:
        check_not_negative(variate_scale=variate_scale)

    def init_client(model: Model, params: Params) -> Params:
        del model
        return jax.tree.map(jnp.zeros_like, params)

    def grads(client: Client, grads: Params, step: Step, context: PyTree) -> Params:
        del step, context
        trained = client.model.trained(client.data.available)
        return by_block(
            lambda own, g, c, c_i: g + own * (c - c_i),
            trained,
            grads,
            client.shared,
            client.memory,
        )

    def finish(
        client: Client, finished: Finished, context: PyTree
    ) -> tuple[Upload, Params]:
        del context
        steps = jnp.maximum(finished.num_steps, 1)
        length = steps * client.learning_rate
        scale = (
            1.0 / momentum_gain(momentum, steps)
            if variate_scale is None
            else variate_scale
        )
        trained = client.model.trained(client.data.available)
        changes = by_block(
            lambda own, c, start, end: own * (scale * (start - end) / length - c),
            trained,
            client.shared,
            client.params,
            finished.params,
        )
        size = client.data.num_examples if weights == "data" else 1.0
        weight = jax.tree.map(lambda own: size * own, trained)
        upload = Upload(by_block(lambda w, dc: w * dc, weight, changes), weight)
        return upload, jax.tree.map(jnp.add, client.memory, changes)

    def merge(shared: Params, upload: Upload, cohort: Cohort) -> Params:
        share = cohort.num_accepted / cohort.federation.num_clients
        return by_block(
            lambda w, c, total: c + share * jnp.where(w > 0, total / _safe(w), 0.0),
            upload.weights,
            shared,
            upload.changes,
        )

    return Method(
        name="scaffold",
        momentum=momentum,
        init_shared=lambda model, params, num_clients: init_client(model, params),
        init_client=init_client,
        grads=grads,
        finish=finish,
        merge=merge,
    )


def by_block(fn, weights: Params, *trees: Params) -> Params:
    """``fn(weight, *leaves)`` leaf by leaf; ``weights`` is a prefix tree."""
    return jax.tree.map(
        lambda w, *blocks: jax.tree.map(lambda *x: fn(w, *x), *blocks), weights, *trees
    )


def _safe(weight: Array) -> Array:
    return jnp.where(weight > 0, weight, 1.0)
