"""FedCMI: cross-modal infiltration with class-wise temperatures.

Fan et al., "Balanced Multi-modal Federated Learning via Cross-Modal Infiltration",
arXiv 2401.00894; methods 1. The names below are the paper's: P true-class
probabilities, r their ratio, T temperatures, s / c self- and infiltration projections.

Written for any number of modalities; for two every formula is the published one. Ratios
are taken against the LAST modality the client has, the dominant modality is the one
with the greatest mean ratio (ties go to the later one, as in the public code), and
every weaker modality learns from it.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.federation import Federation
from fedcmi_jax.methods._infiltration import (
    RatioMean,
    argmax_last,
    at_labels,
    class_probabilities,
    class_temperatures,
    distillation_loss,
    mean_ratios,
)
from fedcmi_jax.methods.base import (
    Client,
    Cohort,
    Finished,
    Method,
    check_choice,
    check_not_negative,
    proximal,
)
from fedcmi_jax.methods.compose import chain
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree, Sums

PERSONAL_BLOCKS = ("infiltration_projector", "head")
"""What ``personal_infiltration`` keeps at the client (methods 1.9, D8)."""

Temperature = Literal["class", "weights", "fixed", "none"]
Dominance = Literal["batch_local", "batch_global", "round_global", "server"]
Disagreement = Literal["keep", "neutral"]
Direction = Literal["to_weak", "to_strong", "both"]
Student = Literal["infiltration", "self"]
Teacher = Literal["global", "local"]


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
    """

    teacher: Array
    dominant: Array
    statistics_dominant: Array
    temperatures: Array
    ratios: Array
    ruling_ratios: Array
    multimodal: Array
    active: Array


class Ratios(NamedTuple):
    """Server-side memory of ``dominance='server'``: r-bar [M] of the last cohort."""

    ratios: Array


def fedcmi(
    *,
    lam: float = 1.0,
    beta: float = 2.0,
    gamma: float = 2.0,
    mu: float = 0.01,
    temperature: Temperature = "class",
    fixed_temperature: float = 1.0,
    min_temperature: float = 0.1,
    direction: Direction = "to_weak",
    student: Student = "infiltration",
    teacher: Teacher = "global",
    dominance: Dominance = "batch_local",
    on_disagreement: Disagreement = "keep",
    ratio_mean: RatioMean = "arithmetic",
    warmup_rounds: int = 1,
    personal_infiltration: bool = False,
    head_owner_multimodal_only: bool = False,
) -> Method:
    """Cross-modal infiltration (methods 1.3 to 1.6).

    A multimodal client minimises, with d the dominant modality,
      CE(z, y) + beta sum_m CE(g_m(s_m), y)
        + lam sum_{k != d} mean_j H(sg softmax(g_d^G(s_d^G) / T), softmax(g_k(c_k) / T))
    plus mu/2 ||w - w_G||^2; a client with one modality minimises CE(z, y) and the
    proximal term. T = T_k[y_j]. ^G is the round's global model in eval mode: frozen, so
    its logits are computed once per round and gathered by sample, or in every step if
    batches are augmented (the round's statistics are of the stored samples). Where
    samples lack a modality, each term is over the samples that have what it needs and
    at least two modalities; the others give CE(z, y).

    Deviations from the public code, all options: mu is 0.01, not 1.0; temperatures are
    bounded from below by 0.1, not by 0; probabilities are clamped; without class-wise
    temperatures the distillation still happens (there it is silently 0).

    Args:
      lam: Weight lambda of the infiltration loss, >= 0 (public code: 1).
      beta: Weight of the self-projection heads' cross-entropies, >= 0 (public code: 2).
      gamma: Sharpness of the class-wise temperatures, >= 0 (public code: 2).
      mu: Strength of the proximal term, >= 0; 0 switches it off (public code: 1).
      temperature: Class-wise T; one fixed T; none (T = 1); or weights: the fixed T,
        and class c's samples count 1 + gamma ln u_c = 1 / T_c times (methods 1.9, D2).
      fixed_temperature: T of temperature=fixed and weights, > 0 (public code: 1).
      min_temperature: Lower bound of class-wise T, in [0, 1]; 0 is the public code.
      direction: Who learns from whom: every weaker modality from the dominant one,
        every other one from the weakest, or both.
      student: What is distilled into: the infiltration projection c, or the
        self-projection s (an ablation; model.stand_in=zero goes with it).
      teacher: The round's global model, or the local model itself, without gradient
        (an ablation; temperatures stay the global model's).
      dominance: Who decides the direction: the local model per batch, the global model
        per batch, the client's r-bar of the round, or the last cohort's r-bar weighted
        by samples.
      on_disagreement: When that direction is not the one the temperatures describe,
        keep them (public code) or use T = 1.
      ratio_mean: Mean of the per-class ratios (public code: arithmetic).
      warmup_rounds: Rounds before distillation starts (public code: 1).
      personal_infiltration: Keep infiltration projectors and heads at the client, not
        averaged; the evaluated model has their sample-weighted mean.
      head_owner_multimodal_only: Average a head over multimodal clients only, not also
        over clients that never train it.

    Returns:
      A method for a model with projectors.

    Raises:
      ValueError: A coefficient is negative, a temperature is out of range, or an option
        is unknown.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedcmi(lam=0.5, temperature="fixed").name
      'fedcmi'
    """
    check_not_negative(lam=lam, beta=beta, gamma=gamma, mu=mu)
    if not fixed_temperature > 0:
        raise ValueError(
            f"fixed_temperature: {fixed_temperature} is not positive; 1 is no change"
        )
    if not 0 <= min_temperature <= 1:
        raise ValueError(
            f"min_temperature: {min_temperature} is outside [0, 1]; class-wise "
            "temperatures never exceed 1"
        )
    if warmup_rounds < 0:
        raise ValueError(f"warmup_rounds: {warmup_rounds} is negative; give 0 or more")
    check_choice("temperature", temperature, Temperature)
    check_choice("direction", direction, Direction)
    check_choice("student", student, Student)
    check_choice("teacher", teacher, Teacher)
    check_choice("dominance", dominance, Dominance)
    check_choice("on_disagreement", on_disagreement, Disagreement)
    check_choice("ratio_mean", ratio_mean, RatioMean)

    def init_shared(model: Model, params: Params, num_clients: int) -> Ratios:
        del params, num_clients
        return Ratios(jnp.ones(len(model.modalities)))

    def begin(client: Client, key: Array) -> tuple[Context, Sums]:
        del key
        model, data = client.model, client.data

        def self_logits(batch: Batch) -> Array:
            outputs, _ = model.apply(client.params, client.batch_stats, batch, False)
            return _self_logits(model, outputs)

        global_logits = jax.lax.stop_gradient(data.map(self_logits))
        stored = data.stored()
        complete = stored.available.sum(1) == data.available.sum()
        probabilities, present = class_probabilities(
            global_logits, stored.labels, data.measured() * complete, model.num_classes
        )
        ratios = mean_ratios(probabilities, present, data.available, ratio_mean)
        local = argmax_last(jnp.where(data.available > 0, ratios, -jnp.inf))
        ruling = client.shared.ratios if dominance == "server" else ratios
        ruler = argmax_last(jnp.where(data.available > 0, ruling, -jnp.inf))
        if temperature in ("class", "weights"):
            temperatures = class_temperatures(
                probabilities,
                present,
                ratios,
                local,
                gamma=gamma,
                min_temperature=min_temperature,
            )
        else:
            temperatures = jnp.ones_like(probabilities)
            if temperature == "fixed":
                temperatures = jnp.full_like(probabilities, fixed_temperature)
        multimodal = (data.available.sum() >= 2).astype(jnp.float32)
        context = Context(
            teacher=global_logits,
            dominant=ruler,
            statistics_dominant=local,
            temperatures=temperatures,
            ratios=ratios,
            ruling_ratios=ruling,
            multimodal=multimodal,
            active=(client.round >= warmup_rounds).astype(jnp.float32),
        )
        return context, _report(model, context, present, data.available)

    def loss(
        client: Client, outputs: Outputs, batch: Batch, context: Context
    ) -> tuple[Array, Sums]:
        modalities = client.model.modalities
        several = (batch.available.sum(1) >= 2) * context.multimodal
        samples = batch.valid * several
        count = samples.sum()
        self_logits = _self_logits(client.model, outputs)
        if client.augmented:
            seen, _ = client.model.apply(
                client.params, client.batch_stats, batch, False
            )
            global_logits = jax.lax.stop_gradient(_self_logits(client.model, seen))
        else:
            global_logits = context.teacher[batch.positions]
        teaching = jax.lax.stop_gradient(self_logits)
        if teacher == "global":
            teaching = global_logits
        students = outputs.self_logits
        if student == "infiltration":
            students = outputs.infiltration_logits

        log_probs = at_labels(jax.nn.log_softmax(self_logits), batch.labels)
        has = samples[:, None] * batch.available
        head_losses = -(log_probs * has).sum(0) / jnp.maximum(has.sum(0), 1.0)
        head = head_losses.sum()

        strong, weak = _strong_and_weak(
            dominance, context, self_logits, global_logits, batch, client.data.available
        )

        def distil(source: Array) -> Array:
            """Everybody else learns from modality ``source``."""
            teacher_logits = jnp.take(teaching, source, axis=1)
            taught = jnp.take(batch.available, source, axis=1) * samples
            agrees = strong == context.statistics_dominant
            total = jnp.zeros(())
            for k, modality in enumerate(modalities):
                # The temperatures describe the pair (statistics' dominant, other one).
                # If the batch points the other way, the pair is the same: read it at
                # the teaching modality.
                row = jnp.where(k == context.statistics_dominant, source, k)
                by_class = context.temperatures[row]
                if on_disagreement == "neutral" and temperature in ("class", "weights"):
                    by_class = jnp.where(agrees, by_class, 1.0)
                sharpness = by_class[batch.labels]
                emphasis = jnp.ones_like(sharpness)
                if temperature == "weights":
                    emphasis = 1.0 / sharpness
                    sharpness = jnp.full_like(sharpness, fixed_temperature)
                total = total + (k != source) * distillation_loss(
                    teacher_logits,
                    students[modality],
                    sharpness,
                    taught * batch.available[:, k],
                    emphasis,
                )
            return total

        infiltration = jnp.zeros(())
        if direction in ("to_weak", "both"):
            infiltration = infiltration + distil(strong)
        if direction in ("to_strong", "both"):
            infiltration = infiltration + distil(weak)
        infiltration = infiltration * context.active
        sums = {
            "loss_head": (head * count, count),
            "loss_infiltration": (infiltration * count, count * context.active),
        }
        return beta * head + lam * infiltration, sums

    def finish(
        client: Client, finished: Finished, context: Context
    ) -> tuple[PyTree, PyTree]:
        weight = client.data.num_examples * context.multimodal
        upload = (context.ratios * weight, weight)
        return upload, _personal(finished.params) if personal_infiltration else ()

    def merge(shared: Ratios, upload: tuple[Array, Array], cohort: Cohort) -> Ratios:
        del cohort
        total, weight = upload
        mean = total / jnp.maximum(weight, 1.0)
        return Ratios(jnp.where(weight > 0, mean, shared.ratios))

    def owned(weights: Params, available: Array) -> Params:
        if personal_infiltration:
            nobody = {
                kind: jax.tree.map(jnp.zeros_like, weights[kind])
                for kind in PERSONAL_BLOCKS
            }
            return weights | nobody
        if head_owner_multimodal_only:
            multimodal = (available.sum() >= 2).astype(jnp.float32)
            heads = jax.tree.map(lambda w: w * multimodal, weights["head"])
            return weights | {"head": heads}
        return weights

    method = Method(
        name="fedcmi",
        needs_projectors=True,
        init_shared=init_shared,
        begin=begin,
        loss=loss,
        finish=finish,
        merge=merge,
        owned=owned,
    )
    if personal_infiltration:
        method = method._replace(
            init_client=lambda model, params: _personal(params),
            start=lambda params, memory: params | memory,
            deploy=_mean_personal_blocks,
        )
    if isinstance(mu, (int, float)) and mu == 0:
        return method
    return chain(method, proximal(mu))._replace(name="fedcmi")


def _self_logits(model: Model, outputs: Outputs) -> Array:
    """[B, M, C]: the heads' logits of the self-projections."""
    return jnp.stack([outputs.self_logits[m] for m in model.modalities], axis=1)


def _strong_and_weak(
    dominance, context, self_logits, global_logits, batch, available
) -> tuple[Array, Array]:
    """Indices of the dominant and of the weakest modality of this batch.

    By the scores of the batch's complete samples, or by r-bar for the whole round.
    """
    if dominance in ("round_global", "server"):
        lead = jnp.where(available > 0, context.ruling_ratios, jnp.inf)
        weakest = jnp.argmin(lead)
        return context.dominant, weakest
    judge = self_logits if dominance == "batch_local" else global_logits
    probs = jax.nn.softmax(jax.lax.stop_gradient(judge))
    complete = batch.valid * (batch.available.sum(1) == available.sum())
    scores = (at_labels(probs, batch.labels) * complete[:, None]).sum(0)
    strong = argmax_last(jnp.where(available > 0, scores, -1.0))
    return strong, jnp.argmin(jnp.where(available > 0, scores, jnp.inf))


def _report(model: Model, context: Context, present: Array, available: Array) -> Sums:
    multimodal = context.multimodal
    students = available * (jnp.arange(len(available)) != context.statistics_dominant)
    used = students[:, None] * present[None]
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


def _personal(params: Params) -> Params:
    return {kind: params[kind] for kind in PERSONAL_BLOCKS}


def _mean_personal_blocks(
    params: Params, memory: Params, federation: Federation
) -> Params:
    """Global model with the sample-weighted owner mean of the personal blocks."""
    sizes = federation.sizes.astype(jnp.float32)
    mean: Params = {}
    for kind in PERSONAL_BLOCKS:
        mean[kind] = {}
        for i, modality in enumerate(federation.modalities):
            weights = sizes * federation.available[:, i]
            weights = weights / jnp.maximum(weights.sum(), 1.0)
            mean[kind][modality] = jax.tree.map(
                lambda x, w=weights: jnp.tensordot(w, x, axes=1),
                memory[kind][modality],
            )
    return params | mean
