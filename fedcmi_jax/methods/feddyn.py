"""FedDyn: Acar et al., ICLR 2021, arXiv 2111.04263; methods 15."""

import jax
import jax.numpy as jnp

from fedcmi_jax.blocks import by_block, drop_frozen
from fedcmi_jax.methods._blocks import block_sums, zeros
from fedcmi_jax.methods._samples import uniform
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, Cohort, LocalUpdate, Step
from fedcmi_jax.types import Params, PyTree


def feddyn(*, alpha: float = 0.1) -> Method:
    """A regulariser per client that makes local and global optima agree.

    Client i's gradient, and what it remembers (the paper's lambda_i is alpha d_i):
      g <- g + alpha (w - w_G - d_i),    d_i <- d_i - (w_i - w_G)
    Server, S of a block's N owners in the federation accepted (the paper's h is alpha
    d):
      d   <- d - (1 / N) sum_{i in S} (w_i - w_G)
      w_G <- (1 / |S|) sum_{i in S} w_i - d

    Clients count alike, as in the paper. BatchNorm statistics are averaged alike, too.

    Args:
      alpha: Strength of the regulariser, > 0 (paper: 0.01 to 0.1). There is no value
        that equals FedAvg.

    Raises:
      ValueError: alpha is not positive.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.feddyn(alpha=0.01).name
      'feddyn'
    """
    if not alpha > 0:
        raise ValueError(f"alpha: {alpha} is not positive; try 0.1")

    def update(
        client: Client, grads: Params, step: Step, context: PyTree
    ) -> tuple[Params, PyTree]:
        regularised = jax.tree.map(
            lambda g, w, w_global, d: g + alpha * (w - w_global - d),
            grads,
            step.params,
            client.params,
            client.memory,
        )
        return regularised, context

    def finish(
        client: Client, local_update: LocalUpdate, context: PyTree
    ) -> tuple[Params, Params]:
        drift = jax.tree.map(
            lambda d, w, w_global: d - (w - w_global),
            client.memory,
            local_update.params,
            client.params,
        )
        drift = drop_frozen(client.model.frozen.params, drift)
        return block_sums(client, uniform(client, context)), drift

    def server_update(
        cohort: Cohort, mean_delta: Params, upload: Params
    ) -> tuple[Params, Params]:
        owners = jax.vmap(cohort.model.owned)(cohort.federation.available)
        share = by_block(
            lambda sent, own: sent.value / jnp.maximum(own.sum(), 1.0), upload, owners
        )
        drift = by_block(lambda s, d, x: d - s * x, share, cohort.shared, mean_delta)
        params = jax.tree.map(
            lambda w, x, d: w + x - d, cohort.params, mean_delta, drift
        )
        return params, drift

    return Method(
        name="feddyn",
        init=zeros,
        update=update,
        finish=finish,
        weight=uniform,
        server_update=server_update,
    )
