"""Accuracy of clients on samples of their own, each under its own modalities."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.data.base import Split
from fedcmi_jax.evaluation.summary import spread
from fedcmi_jax.evaluation.views import batches_of
from fedcmi_jax.partition.holdout import Held
from fedcmi_jax.types import Array, Batch, Model, Params, PyTree

Personal = Callable[[Params, PyTree], Params]
"""``Method.start`` of a method with personal models."""


class ClientHits(NamedTuple):
    """How a model does on the clients' own samples.

    Attributes:
      correct: [N] float32, samples of each client that it gets right.
      total: [N] float32, samples of each client.
    """

    correct: Array
    total: Array


def build_client_program(
    model: Model, personal: Personal | None = None
) -> Callable[..., Array]:
    """Compiles nothing yet: the function that testers of a model can share.

    Args:
      model: The model.
      personal: See ``build_client_tester``.

    Returns:
      ``(batch, owners[B], available[N, M], params, batch_stats, memory) -> [N]``, how
      many samples of each client the batch has right; jitted.
    """

    def hits(
        batch: tuple,
        owners: Array,
        available: Array,
        params: Params,
        batch_stats: Params,
        memory: PyTree,
    ) -> Array:
        inputs, labels, valid, present = batch
        if personal is not None:  # a batch is then one client's
            own = jax.tree.map(lambda x: x[owners[0]], memory)
            params = personal(params, own)
        rows = present * available[owners]
        batch = Batch(inputs, labels, valid, rows, jnp.arange(len(labels)))
        logits = model.apply(params, batch_stats, batch, False)[0].logits
        right = (logits.argmax(-1) == labels) * valid
        return jnp.zeros(len(available)).at[owners].add(right)

    return jax.jit(hits)


def build_client_tester(
    model: Model,
    split: Split,
    held: Held,
    available: np.ndarray,
    *,
    batch_size: int = 256,
    personal: Personal | None = None,
    program: Callable[..., Array] | None = None,
) -> Callable[..., ClientHits]:
    """Tests clients on their own samples, which stay on the host between evaluations.

    Args:
      model: The model.
      split: Has the samples.
      held: Which of them, and whose.
      available: [N, M] table of who has what; a sample is looked at with its client's
        modalities.
      batch_size: Samples per forward pass at most; no effect on results.
      personal: ``(params, memory of one client) -> params``: every client is tested
        with its own model; None: all with the one given.
      program: Of ``build_client_program`` with the same model and ``personal``; None:
        a new one.

    Returns:
      ``(params, batch_stats, memory=None) -> ClientHits``; with ``personal`` the memory
      [N, ...] of all clients is needed.

    Example:
      >>> import fedcmi_jax as fc
      >>> data = fc.data.load("synthetic", train_samples=6, test_samples=6)
      >>> encoders = {m: fc.models.mlp(features=4) for m in data.modalities}
      >>> model = fc.models.classifier(encoders, data.shapes, 10)
      >>> held = Held(np.arange(6), np.array([0, 0, 0, 0, 1, 1]))
      >>> test = build_client_tester(model, data.test, held, np.ones((2, 2)))
      >>> test(*model.init(jax.random.key(0))).total.tolist()
      [4.0, 2.0]
    """
    program = program or build_client_program(model, personal)
    num_clients = len(available)
    table = jnp.asarray(available, jnp.float32)
    counts = np.bincount(held.clients, minlength=num_clients)
    groups = [np.arange(len(held.rows))]
    if personal is not None:
        groups = [np.flatnonzero(held.clients == i) for i in np.flatnonzero(counts)]
    size = min(batch_size, max(map(len, groups)))
    chunks = [g[i : i + size] for g in groups for i in range(0, len(g), size)]
    total = jnp.asarray(counts, jnp.float32)

    def batches() -> Iterator:
        rows = [held.rows[chunk] for chunk in chunks]
        of_clients = (held.clients[chunk] for chunk in chunks)
        made = batches_of(split, rows, model.modalities, size)
        for batch, owners in zip(made, of_clients, strict=True):
            # Padding repeats the owner, with ``valid`` 0.
            yield batch, np.pad(owners, (0, size - len(owners)), mode="edge")

    def test(params: Params, batch_stats: Params, memory: PyTree = None) -> ClientHits:
        correct = jnp.zeros(num_clients)
        for batch, owners in batches():
            hits = program(batch, owners, table, params, batch_stats, memory)
            correct = jax.block_until_ready(correct) + hits
        return ClientHits(correct, total)

    return test


def summarise_clients(name: str, hits: ClientHits) -> dict[str, Any]:
    """Accuracy pooled, of every client, and how it spreads over them, on the host.

    Args:
      name: Prefix of the columns.
      hits: Of a client tester.

    Returns:
      ``{name}_acc``, of all samples together; ``{name}_per_client``, [N], None for a
      client without a sample; and ``summary.spread`` over those that have one.

    Example:
      >>> hits = ClientHits(jnp.array([3.0, 0.0, 0.0]), jnp.array([4.0, 1.0, 0.0]))
      >>> summary = summarise_clients("holdout", hits)
      >>> summary["holdout_acc"], summary["holdout_mean"]
      (0.6, 0.375)
      >>> summary["holdout_per_client"]
      [0.75, 0.0, None]
    """
    correct, total = (np.asarray(x, np.float64) for x in hits)
    own = correct / np.maximum(total, 1)
    has = total > 0
    return {
        f"{name}_acc": float(correct.sum() / max(total.sum(), 1)),
        f"{name}_per_client": [
            float(a) if h else None for a, h in zip(own, has, strict=True)
        ],
    } | spread(name, own[has])
