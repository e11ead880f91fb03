"""AGM in every client: Li et al., ICCV 2023, arXiv 2308.07686; methods 8."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedcmi_jax.choices import check_choice
from fedcmi_jax.methods._checks import (
    check_not_negative,
    check_two_modalities,
    check_window,
)
from fedcmi_jax.methods._samples import complete_samples, in_window
from fedcmi_jax.methods.base import Method
from fedcmi_jax.methods.seen import Client, LocalUpdate, Step
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree, Sums

PROBABILITY_FLOOR = 1e-8
"""True-class probabilities are clamped to at least this (original code)."""

MAX_ADVANTAGE = 10.0
"""tau - r is clamped to at most this before exp (original code)."""

CLIP_NORM = 1.0
"""Global norm of the gradients, once an entry of a fusion weight's exceeds it."""

Sign = Literal["original", "fl_port"]
ScoreState = Literal["persist", "reset"]
Pad = Literal["input", "feature"]


class Scores(NamedTuple):
    """Running means S_m [M] of a client's cross-entropies, and their length."""

    means: Array
    steps: Array


def fedagm(
    *,
    alpha: float = 1.0,
    sign: Sign = "original",
    score_state: ScoreState = "persist",
    pad: Pad = "input",
    pad_grad: bool = True,
    clip: bool = True,
    first_round: int = 0,
    last_round: int | None = None,
) -> Method:
    """Adaptive gradient modulation by Shapley responses of the two modalities.

    On a client with both modalities, 0 in place of what is left out:
      m_a = (f(a, v) - f(0, v) + f(a, 0)) / 2,   m_v = (f(a, v) - f(a, 0) + f(0, v)) / 2
    so m_a + m_v = f(a, v), the logits of the task loss. The gradient that enters m_m is
    multiplied by k_m. With s_m the batch's cross-entropy of m_m and S_m its running
    mean over all the client's steps so far (updated after k is computed):
      k_a = exp(alpha min(exp(S_v - S_a) - exp(s_v - s_a), 10)), symmetric for v
    so the modality that is ahead of its own history is damped. f(a, 0) is computed in
    eval mode. If an entry of the fusion's weight gradient (no bias) exceeds 1 in
    absolute value, all gradients are clipped to a global norm of 1. A client with one
    modality minimises CE(z, y).

    Deviations from the public federated port: modulation goes on to the end (there to
    round 70), S and its length stay with the client (there S is reset every round while
    the length goes on), modalities own their blocks, unimodal clients work, and k is 1
    outside the window. Fusions with several weights are clipped by any of them (there:
    concat, which has one).

    Args:
      alpha: Strength, >= 0; with ``clip=False`` 0 is FedAvg exactly.
      sign: ``fl_port`` swaps both differences, as the public federated port does: the
        opposite effect.
      score_state: ``reset`` forgets S when a round begins, as the port does.
      pad: What is replaced by zero: the modality's input, or its part of the fusion's
        input (two small products instead of two forward passes).
      pad_grad: Whether gradients flow through f(a, 0) and f(0, v).
      clip: Whether to clip gradients as above.
      first_round: First round of the modulation, counted from 0.
      last_round: Last one; None: to the end (public code: 70).

    Returns:
      A method for two modalities.

    Raises:
      ValueError: alpha is negative, an option is unknown, the window is empty, or, when
        the algorithm is built, there are not two modalities.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.methods.fedagm(pad="feature").name
      'fedagm'
    """
    check_not_negative(alpha=alpha)
    check_choice("sign", sign, Sign)
    check_choice("score_state", score_state, ScoreState)
    check_choice("pad", pad, Pad)
    check_window(first_round, last_round)

    def check(model: Model, clients_per_round: int) -> None:
        del clients_per_round
        check_two_modalities("fedagm", model)
        if pad == "feature" and model.fuse is None:
            raise ValueError("pad: feature needs Model.fuse, which is None; use input")

    def init(
        model: Model, params: Params, num_clients: int
    ) -> tuple[tuple[()], Scores]:
        del params, num_clients
        return (), Scores(jnp.zeros(len(model.modalities)), jnp.zeros((), jnp.int32))

    def begin(client: Client, key: Array) -> tuple[Scores, Sums]:
        del key
        means, steps = client.memory
        return Scores(means if score_state == "persist" else 0.0 * means, steps), {}

    def forward(
        client: Client,
        params: Params,
        batch_stats: Params,
        batch: Batch,
        scores: Scores,
    ) -> tuple[Outputs, Params]:
        model = client.model
        outputs, new_stats = model.apply(params, batch_stats, batch, True)
        alone = [
            _alone(model, params, batch_stats, batch, outputs, m, pad)
            for m in model.modalities
        ]
        if not pad_grad:
            alone = jax.lax.stop_gradient(alone)
        a = (outputs.logits - alone[1] + alone[0]) / 2
        v = (outputs.logits - alone[0] + alone[1]) / 2
        weights = complete_samples(client, batch)
        losses = jnp.stack([_cross_entropy(x, batch.labels, weights) for x in (a, v)])
        active = in_window(client.round, first_round, last_round)
        k = jnp.where(active > 0, coefficients(losses, scores.means, alpha, sign), 1.0)
        # Value f(a, v), gradient k_a dm_a + k_v dm_v: the remainder's value is removed.
        remainder = ((k[0] - 1) * a + (k[1] - 1) * v) * weights[:, None]
        logits = outputs.logits + remainder - jax.lax.stop_gradient(remainder)
        return outputs._replace(logits=logits, extra=(losses, weights.sum())), new_stats

    def loss(
        client: Client, outputs: Outputs, batch: Batch, context: Scores
    ) -> tuple[Array, Sums]:
        del client, batch, context
        losses, count = jax.lax.stop_gradient(outputs.extra)
        gap = losses[0] - losses[1]
        return jnp.zeros(()), {"loss_gap": (gap * count, count)}

    def update(
        client: Client, grads: Params, step: Step, context: Scores
    ) -> tuple[Params, Scores]:
        if clip:
            grads = clipped(grads, complete_samples(client, step.batch).any())
        losses, count = step.outputs.extra
        return grads, running(context, losses, count > 0)

    def finish(
        client: Client, local_update: LocalUpdate, context: Scores
    ) -> tuple[PyTree, Scores]:
        del client, local_update
        return (), context

    return Method(
        name="fedagm",
        check=check,
        init=init,
        begin=begin,
        forward=forward,
        loss=loss,
        update=update,
        finish=finish,
    )


def clipped(grads: Params, applies: Array) -> Params:
    """All gradients at a global norm of 1 if one of the fusion's weights exceeds 1."""
    matrices = [g for g in jax.tree.leaves(grads["fusion"]) if g.ndim > 1]
    largest = jnp.stack([jnp.abs(g).max() for g in matrices]).max()
    norm = jnp.maximum(optax.tree.norm(grads), CLIP_NORM)
    scale = jnp.where((largest > CLIP_NORM) & applies, CLIP_NORM / norm, 1.0)
    return optax.tree.scale(scale, grads)


def running(scores: Scores, losses: Array, counts: Array) -> Scores:
    """S and its length with one more batch, if that batch counts."""
    steps = scores.steps + 1
    means = scores.means + (losses - scores.means) / steps
    return Scores(
        jnp.where(counts, means, scores.means), jnp.where(counts, steps, scores.steps)
    )


def coefficients(
    losses: Array, means: Array, alpha: float | Array, sign: Sign = "original"
) -> Array:
    """k [2] of a batch's losses s [2] and the running means S [2] before it.

    Example:
      >>> import jax.numpy as jnp
      >>> k = coefficients(jnp.array([0.5, 1.0]), jnp.array([1.0, 1.0]), 1.0)
      >>> [round(float(x), 4) for x in k]  # exp(1 - e^.5), exp(1 - e^-.5)
      [0.5227, 1.4821]
    """
    direction = 1.0 if sign == "original" else -1.0
    ahead = jnp.exp(direction * (losses[::-1] - losses))
    usual = jnp.exp(direction * (means[::-1] - means))
    return jnp.exp(alpha * jnp.minimum(usual - ahead, MAX_ADVANTAGE))


def _alone(model, params, batch_stats, batch, outputs, keep, pad) -> Array:
    """Fused logits with zeros for every other modality than ``keep``."""
    if pad == "feature":
        parts = {
            m: x if m == keep else jnp.zeros_like(x) for m, x in outputs.parts.items()
        }
        assert model.fuse is not None  # noqa: S101 (refused by check)
        return model.fuse(params, parts)
    inputs = {
        m: x if m == keep else jax.tree.map(jnp.zeros_like, x)
        for m, x in batch.inputs.items()
    }
    padded = batch._replace(inputs=inputs)
    return model.apply(params, batch_stats, padded, False)[0].logits


def _cross_entropy(logits: Array, labels: Array, weights: Array) -> Array:
    probs = jax.nn.softmax(jax.lax.stop_gradient(logits))
    picked = jnp.take_along_axis(probs, labels[:, None], axis=-1)[:, 0]
    losses = -jnp.log(jnp.maximum(picked, PROBABILITY_FLOOR))
    return (losses * weights).sum() / jnp.maximum(weights.sum(), 1.0)
