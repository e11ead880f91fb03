"""FedRep: Collins et al., ICML 2021, arXiv 2102.07078; methods 17."""

import jax.numpy as jnp

from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client
from fedcmi_jax.types import Array, Params


def fedrep(
    *, personal: tuple[str, ...] = ("fusion",), head_share: float = 0.5
) -> Method:
    """FedPer, but a client first trains its own layers, then the common ones.

    Args:
      personal: Kinds of blocks that stay at the client.
      head_share: Share of a round's steps, the first ones, that train them, in [0, 1].

    Raises:
      ValueError: head_share is outside [0, 1].

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedrep(head_share=0.8).name
      'fedrep'
    """
    if not 0 <= head_share <= 1:
        raise ValueError(f"head_share: {head_share} is outside [0, 1]; it is a share")

    def trained(client: Client, done: Array) -> Params:
        own = (done < jnp.round(head_share * client.num_steps)).astype(jnp.float32)
        return {kind: own if kind in personal else 1.0 - own for kind in client.params}

    return Method(name="fedrep", personal=tuple(personal), trained=trained)
