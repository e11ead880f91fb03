"""What the noise of a private mechanism would not cover is refused."""

import jax

from fedcmi_jax.aggregators.base import Aggregator
from fedcmi_jax.blocks import drop_frozen
from fedcmi_jax.methods.base import Method, is_set
from fedcmi_jax.privacy.mechanism import Privacy, count_deviation, noise_multiplier
from fedcmi_jax.types import Model

SERVER_HOOKS = ("personal", "select", "start", "merge", "server_update")
"""What a method sets if its server reads more of clients than the sum of updates."""


def check(
    privacy: Privacy,
    method: Method,
    model: Model,
    clients_per_round: int,
    clip_norm: float | None,
    aggregator: Aggregator,
) -> None:
    """Refuses what the noise would not cover.

    Args:
      privacy: The mechanism.
      method: Its server may read the sum of updates only.
      model: It may have no BatchNorm statistics that train.
      clients_per_round: K.
      clip_norm: Another clipping; must be None.
      aggregator: Must be the mean.

    Raises:
      ValueError: Names what is in the way, and the remedy.
    """
    if clip_norm is not None:
        raise ValueError(
            f"clip_norm: {clip_norm} has no place beside privacy, which clips; set "
            "privacy.clip"
        )
    if aggregator.name != "mean":
        raise ValueError(
            f"aggregator: {aggregator.name!r} has no bounded sensitivity here; leave "
            "it at mean, or leave out privacy"
        )
    hooks = [hook for hook in SERVER_HOOKS if is_set(method, hook)]
    if hooks:
        raise ValueError(
            f"method: {method.name!r} gives its server more than the sum of updates "
            f"({', '.join(hooks)}), without noise; use e.g. fedavg, fedprox or fedcmi"
        )
    _, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    left = drop_frozen(model.frozen.batch_stats, batch_stats)
    if any(x.ndim for x in jax.tree.leaves(left)):
        raise ValueError(
            "model: its BatchNorm statistics would be sent without noise; use encoders "
            "without it (mlp, or encoder.norm = group), or freeze those that have it"
        )
    z = noise_multiplier(privacy)
    if privacy.quantile is not None and z > 0:
        deviation = count_deviation(privacy, clients_per_round)
        if not 2 * deviation > z:
            raise ValueError(
                f"count_deviation: {deviation:g} alone is more exact than "
                f"noise_multiplier {z:g} allows; give more than {z / 2:g}"
            )
