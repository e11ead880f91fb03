"""What several methods share: losses of samples, which samples and rounds count."""

from typing import Any

import jax
import jax.numpy as jnp

from fedcmi_jax.methods.seen import Client
from fedcmi_jax.types import Array, Batch, Model


def cross_entropies(logits: Array, labels: Array) -> Array:
    """[B], -log softmax(z)[y] in nats; logits [B, C], labels [B]."""
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]


def task_losses(model: Model, logits: Array, labels: Array) -> Array:
    """[B], the loss that the model is trained on; logits [B, C], labels [B]."""
    return (model.loss or cross_entropies)(logits, labels)


def uniform(client: Client, context: Any) -> Array:
    """``Method.weight`` of a mean in which all with training samples count alike."""
    del context
    return jnp.minimum(client.data.num_examples, 1).astype(jnp.float32)


def mean_loss(client: Client) -> Array:
    """F_i: mean task loss of the client's training samples.

    Under the parameters that it starts from, in eval mode.
    """

    def losses(batch: Batch) -> tuple[Array, Array]:
        outputs, _ = client.model.apply(client.params, client.batch_stats, batch, False)
        own = task_losses(client.model, outputs.logits, batch.labels)
        return (own * batch.valid).sum(), batch.valid.sum()

    total, count = client.data.sum(losses)
    return total / jnp.maximum(count, 1.0)


def complete_samples(client: Client, batch: Batch) -> Array:
    """[B], 1 for real samples with all modalities of a client that has several."""
    available = client.data.available
    complete = (batch.available.sum(1) == available.sum()) & (available.sum() >= 2)
    return batch.valid * complete


def in_window(round: Array, first_round: int, last_round: int | None) -> Array:
    """1.0 in rounds first..last (from 0, both included; None: the end), else 0.0."""
    inside = round >= first_round
    if last_round is not None:
        inside &= round <= last_round
    return inside.astype(jnp.float32)
