"""Class means of encoder features: their sums, distances to them, their merging.

Prototypes of modality m are P_m[c], the mean of h_m over samples of class c
(FedProto, arXiv 2105.00243; PMR, arXiv 2211.07089; methods 5, 7 and 11).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.federation import ClientData
from fedcmi_jax.types import Array, Batch, Mean, Model, Params, Sums

DISTANCE_FLOOR = 1e-12
"""Added to squared distances: the gradient of sqrt at 0 is infinite (methods 7)."""

RESOLUTION = 1e-5
"""Features whose distance is below this share of their length are equal. The only
sample of a class IS its prototype, but for float32's rounding in two programs (1e-7 of
its length), of which the root's gradient would make a direction."""

SCORE_FLOOR = 1e-8
"""Scores are clamped to at least this before they are divided."""

Coefficient = Literal["switch", "soft"]

UNKNOWN_LOGIT = -1e9
"""Logit of a class without prototype (methods 7)."""


class Prototypes(NamedTuple):
    """Class means, modality by modality.

    Attributes:
      means: Modality -> [C, F].
      known: Modality -> [C] float32, 1 where there is one.
    """

    means: dict[str, Array]
    known: dict[str, Array]


class ClassSums(NamedTuple):
    """What class means are made of; adds over batches and clients.

    Attributes:
      totals: Modality -> [C, F], sums of features.
      counts: Modality -> [C], samples behind them.
    """

    totals: dict[str, Array]
    counts: dict[str, Array]


def no_prototypes(model: Model) -> Prototypes:
    """Prototypes of a model of which nothing is known yet: all zero."""
    c, widths = model.num_classes, model.widths or {}
    return Prototypes(
        {m: jnp.zeros((c, widths[m])) for m in model.modalities},
        {m: jnp.zeros(c) for m in model.modalities},
    )


def class_sums(
    model: Model, data: ClientData, params: Params, batch_stats: Params
) -> ClassSums:
    """Sums of features by class over a client's training samples, in eval mode.

    Args:
      model: The model.
      data: The client's samples; those that lack a modality do not count for it.
      params: Parameters.
      batch_stats: BatchNorm statistics.

    Returns:
      The sums; no gradient flows through them.
    """

    def sums(batch: Batch) -> ClassSums:
        outputs, _ = model.apply(params, batch_stats, batch, False)
        one_hot = jax.nn.one_hot(batch.labels, model.num_classes)
        totals, counts = {}, {}
        for i, m in enumerate(model.modalities):
            weights = one_hot * (batch.valid * batch.available[:, i])[:, None]
            totals[m] = weights.T @ outputs.features[m]
            counts[m] = weights.sum(0)
        return ClassSums(totals, counts)

    return jax.lax.stop_gradient(data.sum(sums))


def class_means(sums: ClassSums) -> Prototypes:
    """totals / counts; a class without samples has no prototype."""
    means, known = {}, {}
    for m, counts in sums.counts.items():
        means[m] = sums.totals[m] / jnp.maximum(counts, 1.0)[:, None]
        known[m] = (counts > 0).astype(jnp.float32)
    return Prototypes(means, known)


def uploaded(sums: ClassSums) -> dict[str, Mean]:
    """What a client sends of its class means: modality -> P_m [C, F] and N_m [C]."""
    means = class_means(sums).means
    return {m: Mean(means[m], counts) for m, counts in sums.counts.items()}


def known_or_old(upload: dict[str, Mean], old: Prototypes) -> Prototypes:
    """The cohort's class means; a class that nobody has keeps its old prototype.

    Args:
      upload: Modality -> the cohort's mean of ``uploaded``.
      old: What was known before.
    """
    means, known = {}, {}
    for m, (mean, counts) in upload.items():
        seen = counts > 0
        means[m] = jnp.where(seen[:, None], mean, old.means[m])
        known[m] = jnp.where(seen, 1.0, old.known[m])
    return Prototypes(means, known)


def distance_logits(features: Array, means: Array, known: Array) -> Array:
    """d[j, c] = -||h_j - P[c]||_2, or ``UNKNOWN_LOGIT`` where P[c] is not known.

    Where h_j and P[c] are equal to within ``RESOLUTION``, the distance is 0 and has no
    gradient.

    Args:
      features: [B, F].
      means: [C, F], constants.
      known: [C].

    Returns:
      [B, C] logits.

    Example:
      >>> import jax.numpy as jnp
      >>> h, p = jnp.array([[3.0, 4.0]]), jnp.zeros((2, 2))
      >>> distance_logits(h, p, jnp.array([1.0, 0.0])).tolist()
      [[-5.0, -1000000000.0]]
    """
    gaps = features[:, None] - jax.lax.stop_gradient(means)[None]
    squares = (gaps**2).sum(-1)
    lengths = jax.lax.stop_gradient((features**2).sum(-1, keepdims=True))
    squares = jnp.where(squares > RESOLUTION**2 * lengths, squares, 0.0)
    distances = jnp.sqrt(squares + DISTANCE_FLOOR)
    return jnp.where(known[None] > 0, -distances, UNKNOWN_LOGIT)


def modality_logits(
    model: Model, features: dict[str, Array], prototypes: Prototypes
) -> dict[str, Array]:
    """``distance_logits`` of every modality, in the model's order."""
    return {
        m: distance_logits(features[m], prototypes.means[m], prototypes.known[m])
        for m in model.modalities
    }


def prototype_loss(logits: Array, labels: Array, known: Array, weights: Array):
    """Mean cross-entropy of distance logits over samples whose class is known.

    Args:
      logits: [B, C] of ``distance_logits``.
      labels: [B] int32.
      known: [C].
      weights: [B], 0 for samples that do not count.

    Returns:
      Scalar, nats; 0 if no sample counts. The mean is over all weighted samples: those
      of unknown classes contribute 0.
    """
    log_probs = jax.nn.log_softmax(logits)
    losses = -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    total = (jnp.where(known[labels] > 0, losses, 0.0) * weights).sum()
    return total / jnp.maximum(weights.sum(), 1.0)


def true_class_scores(logits: Array, labels: Array, weights: Array) -> Array:
    """s = sum_j softmax(logits_j)[y_j] over the weighted samples; no gradient."""
    probs = jax.nn.softmax(jax.lax.stop_gradient(logits))
    picked = jnp.take_along_axis(probs, labels[:, None], axis=-1)[:, 0]
    return (picked * weights).sum()


def strongest(
    scores: dict[str, Array], available: dict[str, Array]
) -> dict[str, Array]:
    """Modality -> 1.0 for the one with the greatest score (the first of equals)."""
    names = list(scores)
    values = jnp.stack([jnp.where(available[m] > 0, scores[m], -1.0) for m in names])
    best = jax.nn.one_hot(values.argmax(), len(names))
    return {m: best[i] for i, m in enumerate(names)}


def pull(
    scores: dict[str, Array],
    available: dict[str, Array],
    coefficient: Coefficient = "switch",
) -> dict[str, Array]:
    """a_m, how strongly a modality is drawn to its prototypes (PMR; methods 7).

    ``switch``: 1 where s_m is below the greatest score, else 0. ``soft``:
    clip(max_k s_k / s_m - 1, 0, 1).

    Example:
      >>> import jax.numpy as jnp
      >>> s = {"a": jnp.array(3.0), "v": jnp.array(2.0)}
      >>> has = {"a": jnp.ones(()), "v": jnp.ones(())}
      >>> {m: float(x) for m, x in pull(s, has, "soft").items()}
      {'a': 0.0, 'v': 0.5}
    """
    owned = [jnp.where(available[m] > 0, scores[m], -jnp.inf) for m in scores]
    best = jnp.stack(owned).max()

    def one(m: str) -> Array:
        if coefficient == "switch":
            lag = (scores[m] < best).astype(jnp.float32)
        else:
            safe = jnp.maximum(scores[m], SCORE_FLOOR)
            lag = jnp.clip(best / safe - 1.0, 0.0, 1.0)
        return lag * available[m]

    return {m: one(m) for m in scores}


def score_ratio(scores: dict[str, Array], weights: Array) -> Sums:
    """Metric: the first modality's score over the last one's, of batches that count."""
    first, *_, last = scores.values()
    counts = (weights.sum() > 0).astype(jnp.float32)
    return {"score_ratio": (counts * first / jnp.maximum(last, SCORE_FLOOR), counts)}


def nearest_accuracy(
    model: Model,
    data: ClientData,
    params: Params,
    batch_stats: Params,
    prototypes: Prototypes,
) -> dict[str, Array]:
    """Share of a client's training samples whose nearest prototype is their class's.

    Returns:
      Modality -> fraction, over the samples that have it; 0 if none has.
    """

    def counts(batch: Batch):
        outputs, _ = model.apply(params, batch_stats, batch, False)
        logits = modality_logits(model, outputs.features, prototypes)
        result = {}
        for i, m in enumerate(model.modalities):
            weights = batch.valid * batch.available[:, i]
            hits = (logits[m].argmax(-1) == batch.labels) * weights
            result[m] = (hits.sum(), weights.sum())
        return result

    return {m: hits / jnp.maximum(n, 1.0) for m, (hits, n) in data.sum(counts).items()}
