"""What FedCMI computes of a batch, and what a client knows during a round."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.methods._fedcmi_options import Dominance, Options
from fedcmi_jax.methods._fedcmi_view import View
from fedcmi_jax.methods._infiltration import (
    argmax_last,
    at_labels,
    class_temperatures,
    distillation_loss,
)
from fedcmi_jax.methods._signals import feature_loss, gap, knows_better
from fedcmi_jax.types import Array, Batch, Model, Sums


class Context(NamedTuple):
    """One client's distillation set-up, constant during the round.

    Attributes:
      teacher: [L, M, C] logits of the global model's self-projections, eval mode.
      dominant: int32, the modality that rules the round (by r-bar or the server).
      statistics_dominant: int32, the modality whose lead the temperatures describe.
      temperatures: [M, C], T of each weaker modality as a student; with
        temperature=weights 1 / T weighs the samples instead.
      ratios: [M], r-bar of each modality against the client's last one.
      ruling_ratios: [M], those that ``dominant`` comes from: these, or the server's.
      multimodal: float32, 1 if the client has at least two modalities.
      active: float32, 1 once the warm-up is over.
      lessons: ``View.lessons`` of the client's samples, [L, M, ...], or None.
      softness: The calibration's T by which logits and lessons are divided, or None.
      gates: [M, M, C], 1 where the first modality may teach the second one class c, or
        None: everywhere.
    """

    teacher: Array
    dominant: Array
    statistics_dominant: Array
    temperatures: Array
    ratios: Array
    ruling_ratios: Array
    multimodal: Array
    active: Array
    lessons: Array | None = None
    softness: View | None = None
    gates: Array | None = None


def temperatures(
    options: Options, probabilities: Array, held: Array, ratios: Array, leader: Array
) -> Array:
    """[M, C], T of every modality as a student of the leader."""
    if options.is_class_wise:
        return class_temperatures(
            probabilities,
            held,
            ratios,
            leader,
            gamma=options.gamma,
            min_temperature=options.min_temperature,
        )
    one = options.fixed_temperature if options.temperature == "fixed" else 1.0
    return jnp.full_like(probabilities, one)


def head_loss(logits: Array, batch: Batch, samples: Array) -> Array:
    """sum_m CE(g_m(s_m), y), each a mean over the samples that have m.

    Args:
      logits: [B, M, C] of the self-projections.
      batch: The batch.
      samples: [B], 1 for samples that count.
    """
    log_probs = at_labels(jax.nn.log_softmax(logits), batch.labels)
    has = samples[:, None] * batch.available
    return (-(log_probs * has).sum(0) / jnp.maximum(has.sum(0), 1.0)).sum()


def infiltration_loss(
    options: Options,
    context: Context,
    batch: Batch,
    samples: Array,
    teaching: View,
    students: Array,
    agrees: Array,
    source: Array,
) -> Array:
    """sum_{k != d} H(softmax(z_d / T), softmax(c_k / T)): everybody learns from d.

    Args:
      options: The method's.
      context: The client's.
      batch: The batch.
      samples: [B], 1 for samples that count.
      teaching: What may teach.
      students: [B, M, C] logits that may learn, or [B, M, D] features.
      agrees: bool, whether the batch's dominant modality is the statistics'.
      source: int32, d, who teaches.
    """
    lessons = teaching.logits if teaching.lessons is None else teaching.lessons
    teacher = jnp.take(lessons, source, axis=1) if options.one_teaches_all else None
    taught = jnp.take(batch.available, source, axis=1) * samples
    total = jnp.zeros(())
    for k in range(students.shape[1]):
        # The temperatures describe the pair (statistics' dominant, other one). If the
        # batch points the other way, the pair is the same: read it at the source.
        row = jnp.where(k == context.statistics_dominant, source, k)
        by_class = context.temperatures[row]
        if options.on_disagreement == "neutral" and options.is_class_wise:
            by_class = jnp.where(agrees, by_class, 1.0)
        temperature = by_class[batch.labels]
        emphasis = jnp.ones_like(temperature)
        if options.temperature == "weights":
            emphasis = 1.0 / temperature
            temperature = jnp.full_like(temperature, options.fixed_temperature)
        lesson = lessons[:, k] if teacher is None else teacher
        if options.gate != "none":
            emphasis = emphasis * gate(options, context, batch, teaching, source, k)
        weights = taught * batch.available[:, k]
        learns = k != source
        if options.level == "features":
            emphasis = emphasis / temperature
            loss = feature_loss(lesson, students[:, k], weights, emphasis)
        else:
            loss = distillation_loss(
                lesson, students[:, k], temperature, weights, emphasis
            )
        if options.lam_scale == "gap":
            loss = loss * gap(context.ratios, source)[k]
        total = total + learns * loss
    return total


def gate(
    options: Options,
    context: Context,
    batch: Batch,
    teaching: View,
    source: Array,
    k: int,
) -> Array:
    """[B], 1 for samples whose teacher is better than modality k; ``options.gate``."""
    if options.gate == "class":
        assert context.gates is not None
        return context.gates[source, k][batch.labels]
    teacher = jnp.take(teaching.logits, source, axis=1)
    if not options.one_teaches_all:
        assert teaching.lessons is not None
        teacher = teaching.lessons[:, k]
    return knows_better(teacher, teaching.logits[:, k], batch.labels)


def strong_and_weak(
    dominance: Dominance,
    context: Context,
    own_logits: Array,
    frozen: Array,
    batch: Batch,
    available: Array,
) -> tuple[Array, Array]:
    """Indices of the dominant and of the weakest modality of this batch.

    By the scores of the batch's complete samples, or by r-bar for the whole round.
    """
    if dominance in ("round_global", "server"):
        lead = jnp.where(available > 0, context.ruling_ratios, jnp.inf)
        return context.dominant, jnp.argmin(lead)
    judge = own_logits if dominance == "batch_local" else frozen
    probs = jax.nn.softmax(jax.lax.stop_gradient(judge))
    complete = batch.valid * (batch.available.sum(1) == available.sum())
    scores = (at_labels(probs, batch.labels) * complete[:, None]).sum(0)
    strong = argmax_last(jnp.where(available > 0, scores, -1.0))
    return strong, jnp.argmin(jnp.where(available > 0, scores, jnp.inf))


def report(model: Model, context: Context, held: Array, available: Array) -> Sums:
    """The client's imbalance, temperatures and dominant modality, as metrics."""
    multimodal = context.multimodal
    students = available * (jnp.arange(len(available)) != context.statistics_dominant)
    used = students[:, None] * held[None]
    lowest = jnp.where(used > 0, context.temperatures, jnp.inf).min()
    count = used.sum() * multimodal
    has_any = multimodal * (used.sum() > 0)
    sums = {
        "imbalance": (context.ratios[0] * multimodal, multimodal),
        "temperature_mean": ((context.temperatures * used).sum() * multimodal, count),
        "temperature_min": (jnp.where(has_any > 0, lowest, 0.0), has_any),
        "clients_multimodal": (multimodal, jnp.ones(())),
    }
    for i, modality in enumerate(model.modalities):
        rules = multimodal * (context.dominant == i)
        sums[f"clients_dominant_{modality}"] = (rules, jnp.ones(()))
    return sums
