"""FedNova: Wang et al., NeurIPS 2020, arXiv 2007.07481; methods 14."""

import jax.numpy as jnp

from fedcmi_jax.blocks import by_block
from fedcmi_jax.methods._blocks import block_means
from fedcmi_jax.methods._checks import check_momentum
from fedcmi_jax.methods._momentum import momentum_gain
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, Cohort, LocalUpdate
from fedcmi_jax.types import Array, Mean, Params, PyTree


def fednova(*, momentum: float = 0.9) -> Method:
    """Clients that take more steps do not pull harder: updates per step are averaged.

    With a_i = sum_{s=1..K_i} (1 - m^s) / (1 - m), the length of K_i steps of momentum m
    in gradients (K_i without momentum), p_i = n_i / sum_j n_j over the owners of a
    block in the cohort:
      w_G <- w_G + (sum_i p_i a_i) sum_i p_i (w_i - w_G) / a_i
    Clients of the same number of steps give FedAvg. BatchNorm statistics are averaged
    by n_i / a_i, as the parameters are.

    Args:
      momentum: Of the clients' SGD, in [0, 1); configurations that set
        ``local.momentum`` to another value would normalise by the wrong length.

    Raises:
      ValueError: momentum is outside [0, 1).

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fednova().name
      'fednova'
    """
    check_momentum(momentum, "0 is none")

    def length(client: Client) -> Array:
        steps = jnp.maximum(client.num_steps, 1)
        return steps * momentum_gain(momentum, steps)

    def weight(client: Client, context: PyTree) -> Array:
        del context
        return client.data.num_examples / length(client)

    def finish(
        client: Client, local_update: LocalUpdate, context: PyTree
    ) -> tuple[Params, PyTree]:
        del local_update, context
        a = length(client)
        upload = block_means(client, (a, 1.0 / a), client.data.num_examples)
        return upload, client.memory

    def server_update(
        cohort: Cohort, mean_delta: Params, upload: Params
    ) -> tuple[Params, PyTree]:
        # mean_delta is by n_i / a_i: times the mean of 1 / a_i it is the sum above.
        def step(sent: Mean, w: Array, delta: Array) -> Array:
            return w + sent.value[0] * sent.value[1] * delta

        return by_block(step, upload, cohort.params, mean_delta), cohort.shared

    return Method(
        name="fednova",
        momentum=momentum,
        weight=weight,
        finish=finish,
        server_update=server_update,
    )
