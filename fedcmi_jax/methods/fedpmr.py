"""PMR in every client: Fan et al., CVPR 2023, arXiv 2211.07089; methods 7."""

import jax
import jax.numpy as jnp

from fedcmi_jax.choices import check_choice
from fedcmi_jax.methods._checks import (
    check_features,
    check_momentum,
    check_not_negative,
    check_window,
)
from fedcmi_jax.methods._prototypes import (
    Coefficient,
    Prototypes,
    class_means,
    class_sums,
    modality_logits,
    prototype_loss,
    pull,
    score_ratio,
    strongest,
    true_class_scores,
)
from fedcmi_jax.methods._samples import complete_samples, in_window
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, Sums


def fedpmr(
    *,
    alpha: float = 1.0,
    coefficient: Coefficient = "switch",
    momentum: float = 0.0,
    entropy: float = 0.0,
    entropy_rounds: int = 0,
    first_round: int = 0,
    last_round: int | None = None,
) -> Method:
    """Prototypical modality rebalance: the weaker modality is drawn to its class means.

    P_m[c] are the client's own class means of h_m, in eval mode, of the global weights
    when the round begins and of its own after every local epoch. On a multimodal
    client, over the samples that have all of its modalities:
      d_m = -||h_m - P_m||_2,   s_m = sum_j softmax(d_m)_j[y_j]
      CE(z, y) + alpha sum_m a_m CE(d_m, y)
    with a_m = 1 where s_m is below the greatest s, else 0 (``switch``, public code), or
    a_m = clip(max_k s_k / s_m - 1, 0, 1) (``soft``, the paper). A client with one
    modality minimises CE(z, y).

    Deviations from the public code: the loss goes on to the end (there to round 70),
    and sqrt and absent classes are safe (there NaN gradients and 1e30 as a mean).

    Args:
      alpha: Weight of the prototype loss, >= 0; 0 (and entropy 0) is FedAvg exactly.
      coefficient: How much each weaker modality counts.
      momentum: Share of the old prototype kept at every renewal within a round, in
        [0, 1) (original code: 0.2; public multimodal code: 0).
      entropy: mu of the paper's bonus -mu H(softmax(d)) on the strongest modality.
      entropy_rounds: Rounds in which that bonus is paid, from round 0 on.
      first_round: First round of the loss, counted from 0.
      last_round: Last one; None: to the end (public code: 70).

    Raises:
      ValueError: A coefficient is negative, momentum is outside [0, 1), coefficient is
        unknown, or the window is empty.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedpmr(coefficient="soft").name
      'fedpmr'
    """
    check_not_negative(alpha=alpha, entropy=entropy, entropy_rounds=entropy_rounds)
    check_choice("coefficient", coefficient, Coefficient)
    check_window(first_round, last_round)
    check_momentum(momentum, "0 renews wholly")

    def begin(client: Client, key: Array) -> tuple[Prototypes, Sums]:
        del key
        sums = class_sums(client.model, client.data, client.params, client.batch_stats)
        return class_means(sums), {}

    def epoch_end(
        client: Client, params: Params, batch_stats: Params, context: Prototypes
    ) -> Prototypes:
        new = class_means(class_sums(client.model, client.data, params, batch_stats))
        means = jax.tree.map(
            lambda n, old: (1 - momentum) * n + momentum * old, new.means, context.means
        )
        return Prototypes(means, new.known)

    def loss(
        client: Client, outputs: Outputs, batch: Batch, context: Prototypes
    ) -> tuple[Array, Sums]:
        weights = complete_samples(client, batch)
        logits = modality_logits(client.model, outputs.features, context)
        scores = {
            m: true_class_scores(d, batch.labels, weights) for m, d in logits.items()
        }
        pulls = pull(scores, client.available, coefficient)
        total = jnp.zeros(())
        for m, d in logits.items():
            ce = prototype_loss(d, batch.labels, context.known[m], weights)
            total = total + pulls[m] * ce
        total = alpha * total * in_window(client.round, first_round, last_round)
        if entropy:
            paid = client.round < entropy_rounds
            entropies = {m: _mean_entropy(d, weights) for m, d in logits.items()}
            best = strongest(scores, client.available)
            for m, bonus in entropies.items():
                total = total - entropy * paid * best[m] * bonus
        return total, score_ratio(scores, weights)

    def check(model: Model, clients_per_round: int) -> None:
        del clients_per_round
        check_features("fedpmr", model)

    return Method(
        name="fedpmr", check=check, begin=begin, epoch_end=epoch_end, loss=loss
    )


def _mean_entropy(logits: Array, weights: Array) -> Array:
    log_probs = jax.nn.log_softmax(logits)
    entropies = -(jnp.exp(log_probs) * log_probs).sum(-1)
    return (entropies * weights).sum() / jnp.maximum(weights.sum(), 1.0)
