"""Views of a model on a batch of samples, as tables of counts.

Every view (fused, one modality with the others zero, one modality with its own
stand-ins, one modality's head) is a [C, C] table: row true class, column prediction.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.data.base import Split
from fedcmi_jax.types import Array, Batch

Tables = dict[str, Any]
"""View name -> [C, C] float32 counts."""

OWN = "own"
"""Key of a user's own metrics, name -> (sum, weight), beside the tables."""

Metric = Callable[[Array, Array, Array], tuple[Array, Array]]
"""``(logits [B, C], labels [B], valid [B]) -> (sum, weight)``: the sums over all
batches, divided, are the metric."""


def batches_of(
    split: Split,
    chunks: Sequence[np.ndarray],
    modalities: tuple[str, ...],
    batch_size: int,
) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]]:
    """Samples of a split, read a batch at a time.

    Args:
      split: The samples.
      chunks: Rows of each batch, at most B.
      modalities: M names.
      batch_size: B.

    Yields:
      inputs, labels [B], valid [B] and present [B, M]; rows past the chunk are zero.
    """
    for rows in chunks:

        def padded(x: np.ndarray) -> np.ndarray:
            tail = np.zeros((batch_size - len(x), *x.shape[1:]), x.dtype)
            return np.concatenate([x, tail])

        inputs = {
            m: jax.tree.map(lambda x, r=rows: padded(x[r]), split.inputs[m])
            for m in modalities
        }
        labels = split.labels[rows].astype(np.int32)
        valid = np.ones(len(rows), np.float32)
        present = np.ones((len(rows), len(modalities)), np.float32)
        if split.available is not None:
            present = np.asarray(split.available[rows], np.float32)
        yield inputs, padded(labels), padded(valid), padded(present)


def fused_table(
    model, params, batch_stats, available, inputs, labels, valid, present
) -> Array:
    """[C, C] counts of the fused logits under one set of modalities."""
    rows = present * available[None]
    batch = Batch(inputs, labels, valid, rows, jnp.arange(len(labels)))
    logits = model.apply(params, batch_stats, batch, False)[0].logits
    return confusion(logits, labels, valid)


def confusion(logits: Array, labels: Array, weights: Array) -> Array:
    """[C, C] weighted counts, row true class, column prediction."""
    num_classes = logits.shape[-1]
    truth = jax.nn.one_hot(labels, num_classes) * weights[:, None]
    return truth.T @ jax.nn.one_hot(logits.argmax(-1), num_classes)


def view_tables(
    model, metrics, params, batch_stats, patterns, inputs, labels, valid, present
) -> Tables:
    """Counts of every view on one batch, and own metrics; ``patterns`` [P, M] or None.

    ``metrics``: name -> ``Metric``, of the fused logits.
    """
    num_modalities = len(model.modalities)

    def forward(available: Array):
        rows = present * available[None]
        batch = Batch(inputs, labels, valid, rows, jnp.arange(len(labels)))
        return model.apply(params, batch_stats, batch, False)[0]

    def count(logits: Array, weights: Array = valid) -> Array:
        return confusion(logits, labels, weights)

    full = forward(jnp.ones(num_modalities))
    tables: Tables = {"acc": count(full.logits)}
    if metrics:
        tables[OWN] = {
            name: metric(full.logits, labels, valid) for name, metric in metrics.items()
        }
    halves = model.shares(params, full.parts) if model.shares else {}
    for i, m in enumerate(model.modalities):
        has = valid * present[:, i]
        alone = {
            k: part if k == m else jnp.zeros_like(part)
            for k, part in full.parts.items()
        }
        if model.fuse is not None:
            tables[f"acc_{m}_zero"] = count(model.fuse(params, alone), has)
        if m in halves:
            tables[f"acc_{m}_half"] = count(halves[m], has)
        if model.has_projectors:
            only = jnp.zeros(num_modalities).at[i].set(1.0)
            tables[f"acc_{m}_infiltration"] = count(forward(only).logits, has)
            tables[f"acc_{m}_head"] = count(full.self_logits[m], has)
    if patterns is not None:
        batch = (inputs, labels, valid, present)
        tables["patterns"] = jnp.stack(
            [fused_table(model, params, batch_stats, p, *batch) for p in patterns]
        )
    return tables
