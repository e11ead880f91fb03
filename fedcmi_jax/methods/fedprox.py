"""FedProx: Li et al., MLSys 2020, arXiv 1812.06127; methods 3."""

from fedcmi_jax.methods.base import Method, proximal


def fedprox(*, mu: float = 0.01) -> Method:
    """Minimises F_i(w) + mu/2 ||w - w_G||^2 locally: g <- g + mu (w - w_G).

    Deviations from the public multimodal code: its mu is 1.0 and it ignores the
    learning-rate schedule; here the schedule holds and mu defaults to 0.01.

    Args:
      mu: Strength of the proximal term, >= 0; 0 is FedAvg exactly.

    Raises:
      ValueError: mu is negative.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedprox(mu=0.1).name
      'fedprox'
    """
    return proximal(mu)._replace(name="fedprox")
