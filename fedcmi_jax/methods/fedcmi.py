"""FedCMI: cross-modal infiltration with class-wise temperatures.

Fan et al., "Balanced Multi-modal Federated Learning via Cross-Modal Infiltration",
arXiv 2401.00894; methods 1. The names below are the paper's: P true-class
probabilities, r their ratio, T temperatures, s / c self- and infiltration projections.

Written for any number of modalities; for two every formula is the published one. Ratios
are taken against the LAST modality the client has, the dominant modality is the one
with the greatest mean ratio (ties go to the later one, as in the public code), and
every weaker modality learns from it.
"""

import functools

import jax
import jax.numpy as jnp

from fedcmi_jax.methods._fedcmi_batch import (
    Context,
    head_loss,
    infiltration_loss,
    report,
    strong_and_weak,
    temperatures,
)
from fedcmi_jax.methods._fedcmi_options import (
    Direction,
    Disagreement,
    Dominance,
    Options,
    Student,
    Teacher,
    Temperature,
    check_model,
)
from fedcmi_jax.methods._fedcmi_server import finish, init, merge, multimodal_heads
from fedcmi_jax.methods._fedcmi_view import (
    View,
    calibration,
    global_view,
    learners,
    self_logits,
    softened,
    stacked,
    teacher_gates,
)
from fedcmi_jax.methods._infiltration import (
    RatioMean,
    argmax_last,
    class_probabilities,
    mean_ratios,
)
from fedcmi_jax.methods._signals import Calibration, Gate, LamScale, Level
from fedcmi_jax.methods.base import Method, proximal
from fedcmi_jax.methods.compose import chain
from fedcmi_jax.methods.seen import Client
from fedcmi_jax.types import Array, Batch, Outputs, Sums

PERSONAL_BLOCKS = ("infiltration_projector", "head")
"""What ``personal_infiltration`` keeps at the client (methods 1.9, D8)."""


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
    gate: Gate = "none",
    lam_scale: LamScale = "none",
    calibration: Calibration = "none",
    level: Level = "logits",
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
        (an ablation; temperatures stay the global model's). Ours (methods 1.10): the
        global model's fused logits z, or z without the student's own share of it.
      dominance: Who decides the direction: the local model per batch, the global model
        per batch, the client's r-bar of the round, or the last cohort's r-bar weighted
        by samples.
      on_disagreement: When that direction is not the one the temperatures describe,
        keep them (public code) or use T = 1.
      ratio_mean: Mean of the per-class ratios (public code: arithmetic).
      gate: Ours (methods 1.10): distil only samples, or classes, whose true class the
        global model's teacher gives more probability than its student.
      lam_scale: Ours: gap takes lambda times clip(ln(r-bar_d / r-bar_k), 0, 1).
      calibration: Ours: temperature divides the global model's logits, per modality
        and client, by the T in [1, 10] that fits the measured samples best; in need of
        held-out ones (``probe_fraction``).
      level: Ours: features pulls c_k itself towards s_d^G, by 1 - cos, 1 / T times.
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
    options = Options(**locals())
    method = Method(
        name="fedcmi",
        needs_projectors=True,
        personal=PERSONAL_BLOCKS if personal_infiltration else (),
        check=functools.partial(check_model, options),
        init=init,
        begin=functools.partial(begin, options),
        loss=functools.partial(loss, options),
    )
    if dominance == "server":  # nothing else reads the cohort's r-bar
        method = method._replace(finish=finish, merge=merge)
    if head_owner_multimodal_only:
        method = method._replace(weight=multimodal_heads)
    if isinstance(mu, (int, float)) and mu == 0:
        return method
    return chain(method, proximal(mu))._replace(name="fedcmi")


def begin(options: Options, client: Client, key: Array) -> tuple[Context, Sums]:
    """The global model's view of the client: teacher, ratios, dominance, T."""
    del key
    data, available = client.data, client.data.available
    view = jax.lax.stop_gradient(data.map(lambda b: global_view(options, client, b)))
    stored = data.stored()
    complete = stored.available.sum(1) == available.sum()
    weights = data.measured() * complete
    softness = None
    if options.calibration != "none":
        softness = calibration(view, stored.labels, weights, options.level)
        view = softened(view, softness)
    probabilities, held = class_probabilities(
        view.logits, stored.labels, weights, client.model.num_classes
    )
    gates = None
    if options.gate == "class":
        gates = teacher_gates(
            options, view, probabilities, held, stored.labels, weights
        )
    ratios = mean_ratios(probabilities, held, available, options.ratio_mean)
    leader = argmax_last(jnp.where(available > 0, ratios, -jnp.inf))
    ruling = client.shared.ratios if options.dominance == "server" else ratios
    context = Context(
        teacher=view.logits,
        dominant=argmax_last(jnp.where(available > 0, ruling, -jnp.inf)),
        statistics_dominant=leader,
        temperatures=temperatures(options, probabilities, held, ratios, leader),
        ratios=ratios,
        ruling_ratios=ruling,
        multimodal=(available.sum() >= 2).astype(jnp.float32),
        active=(client.round >= options.warmup_rounds).astype(jnp.float32),
        lessons=view.lessons,
        softness=softness,
        gates=gates,
    )
    return context, report(client.model, context, held, available)


def loss(
    options: Options, client: Client, outputs: Outputs, batch: Batch, context: Context
) -> tuple[Array, Sums]:
    """beta sum_m CE(g_m(s_m), y) + lam sum_k distillation of k, of a batch."""
    several = (batch.available.sum(1) >= 2) * context.multimodal
    samples = batch.valid * several
    count = samples.sum()
    own_logits = self_logits(client.model, outputs)
    if client.augmented:
        frozen = jax.lax.stop_gradient(global_view(options, client, batch))
        if context.softness is not None:
            frozen = softened(frozen, context.softness)
    else:
        frozen = View(context.teacher, context.lessons).at(batch.positions)

    head = head_loss(own_logits, batch, samples)
    strong, weak = strong_and_weak(
        options.dominance,
        context,
        own_logits,
        frozen.logits,
        batch,
        client.data.available,
    )
    teaching = View(jax.lax.stop_gradient(own_logits))
    if options.teacher != "local":
        teaching = frozen
    students = stacked(client.model, learners(options, outputs))
    agrees = strong == context.statistics_dominant
    distil = functools.partial(
        infiltration_loss, options, context, batch, samples, teaching, students, agrees
    )
    infiltration = jnp.zeros(())
    if options.direction in ("to_weak", "both"):
        infiltration = infiltration + distil(strong)
    if options.direction in ("to_strong", "both"):
        infiltration = infiltration + distil(weak)
    infiltration = infiltration * context.active
    sums = {
        "loss_head": (head * count, count),
        "loss_infiltration": (infiltration * count, count * context.active),
    }
    return options.beta * head + options.lam * infiltration, sums
