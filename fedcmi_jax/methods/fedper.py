"""FedPer: Arivazhagan et al., 2019, arXiv 1912.00818; methods 17."""

from fedcmi_jax.methods.base import Method


def fedper(*, personal: tuple[str, ...] = ("fusion",)) -> Method:
    """The last layers stay at the client; everything below them is averaged.

    Args:
      personal: Kinds of blocks that stay: here the fusion, which ends in the logits.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedper().personal
      ('fusion',)
    """
    return Method(name="fedper", personal=tuple(personal))
