"""One evaluation for every method (methods 0.8): confusion counts, then metrics.

Every view of the model (fused, one modality with the others zero, one modality with its
own stand-ins, one modality's head) is a [C, C] table of counts: row true class, column
prediction. Tables add over batches, so metrics combine exactly; a (sum, weight) pair is
read off a table at the end.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.data.base import Split
from fedcmi_jax.federation import Federation
from fedcmi_jax.types import Array, Batch, Model, Params, Sums

Tables = dict[str, Array]
"""View name -> [C, C] float32 counts."""


class Evaluation(NamedTuple):
    """What one evaluation yields.

    Attributes:
      tables: View -> confusion counts. Views: ``acc`` (fused logits, all modalities),
        ``acc_{m}_zero`` (fused, other modalities zero), and in a model with projectors
        ``acc_{m}_infiltration`` (fused, the other modalities' places taken by m's
        infiltration projection) and ``acc_{m}_head`` (head on the self-projection).
      client_accuracy: [N], see ``client_accuracies``.
    """

    tables: Tables
    client_accuracy: Array


def build_evaluator(
    model: Model,
    split: Split,
    federation: Federation,
    *,
    batch_size: int = 256,
    stream: bool = False,
) -> Callable[[Params, Params], Evaluation]:
    """Puts a test split on the device and returns the compiled evaluation.

    Args:
      model: The model.
      split: Test samples.
      federation: Supplies each client's classes and modalities.
      batch_size: Samples per forward pass; no effect on results.
      stream: Leave the split on the host and send it batch by batch; same results.

    Returns:
      ``(params, batch_stats) -> Evaluation``, jitted.
    """
    distinct, which = np.unique(
        np.asarray(federation.available), axis=0, return_inverse=True
    )
    patterns = jnp.asarray(distinct, jnp.float32)
    pattern_of = jnp.asarray(which.reshape(-1), jnp.int32)
    class_counts = client_class_counts(federation, model.num_classes)

    def count(params: Params, batch_stats: Params, batch: Any) -> Tables:
        return _tables(model, params, batch_stats, patterns, *batch)

    def finish(tables: Tables) -> Evaluation:
        views = {name: table for name, table in tables.items() if name != "patterns"}
        by_client = tables["patterns"][pattern_of]
        return Evaluation(views, client_accuracies(by_client, class_counts))

    host_batches = functools.partial(_batches, split, model.modalities, batch_size)
    if stream:
        return _streamed(jax.jit(count), jax.jit(finish), host_batches)
    batches = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *host_batches())

    @jax.jit
    def evaluate(params: Params, batch_stats: Params) -> Evaluation:
        tables = jax.lax.map(lambda batch: count(params, batch_stats, batch), batches)
        return finish(jax.tree.map(lambda x: x.sum(0), tables))

    return evaluate


def client_class_counts(federation: Federation, num_classes: int) -> Array:
    """[N, C] float32: training samples of each class at each client."""
    owner = np.repeat(
        np.arange(federation.num_clients),
        np.asarray(federation.sizes + federation.probe_sizes),
    )
    counts = np.zeros((federation.num_clients, num_classes), np.float32)
    np.add.at(counts, (owner, np.asarray(federation.labels)), 1.0)
    return jnp.asarray(counts)


def client_accuracies(tables: Array, class_counts: Array) -> Array:
    """Expected test accuracy of each client under its own classes and modalities.

    sum_c p_i(c) recall_i(c): recall on the whole test split, of the fused logits with
    only the client's modalities, weighted by the client's own label shares p_i. It is
    what one would measure on test splits dealt like the training split, without the
    noise of dealing them.

    Args:
      tables: [N, C, C] confusion counts under each client's modalities.
      class_counts: [N, C].

    Returns:
      [N] fractions; classes without test samples are left out, and a client that has
      no other class gets NaN.
    """
    totals = tables.sum(-1)
    recall = jnp.diagonal(tables, axis1=-2, axis2=-1) / jnp.maximum(totals, 1.0)
    weights = class_counts * (totals > 0)
    mass = weights.sum(-1)
    accuracy = (recall * weights).sum(-1) / jnp.maximum(mass, 1.0)
    return jnp.where(mass > 0, accuracy, jnp.nan)


def accuracy(table: Array) -> tuple[Array, Array]:
    """(correct, samples) of a confusion table [C, C]."""
    return jnp.trace(table), table.sum()


def class_accuracies(table: np.ndarray) -> np.ndarray:
    """[C] recall of each class; NaN for a class without samples."""
    totals = table.sum(1)
    safe = np.maximum(totals, 1)
    return np.where(totals > 0, np.diagonal(table) / safe, np.nan)


def macro_f1(table: np.ndarray) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN), of classes seen or predicted."""
    hits = np.diagonal(table)
    denominator = table.sum(0) + table.sum(1)
    known = denominator > 0
    scores = 2 * hits[known] / denominator[known]
    return float(scores.mean()) if known.any() else float("nan")


def summarise(evaluation: Evaluation) -> dict[str, float | list[float]]:
    """Reads the metrics off an evaluation; fractions in [0, 1], on the host.

    Returns:
      Every view's accuracy under its name; ``macro_f1``, ``worst_class`` and
      ``per_class`` of the fused logits; ``client_mean``, ``client_std``,
      ``client_min``, ``client_p10``, ``client_median`` and ``client_max`` of the
      clients' accuracies.
    """
    tables = {name: np.asarray(t) for name, t in evaluation.tables.items()}
    result: dict[str, float | list[float]] = {
        name: float(np.trace(t) / max(t.sum(), 1)) for name, t in tables.items()
    }
    per_class = class_accuracies(tables["acc"])
    result["macro_f1"] = macro_f1(tables["acc"])
    result["worst_class"] = float(np.nanmin(per_class))
    result["per_class"] = [float(a) for a in per_class]
    clients = np.asarray(evaluation.client_accuracy)
    clients = clients[np.isfinite(clients)]
    if clients.size:
        result |= {
            "client_mean": float(clients.mean()),
            "client_std": float(clients.std()),
            "client_min": float(clients.min()),
            "client_p10": float(np.quantile(clients, 0.1)),
            "client_median": float(np.median(clients)),
            "client_max": float(clients.max()),
        }
    return result


COUNT_PREFIX = "clients_"
"""Training metrics with this prefix count clients: their sum is reported."""


def read_sums(sums: Sums) -> dict[str, float]:
    """Training metrics on the host: means, or sums for counts of clients.

    A mean over nothing (weight 0) is left out.
    """
    result = {}
    for name, (total, weight) in sums.items():
        if name.startswith(COUNT_PREFIX):
            result[name] = float(total)
        elif float(weight) > 0:
            result[name] = float(total) / float(weight)
    return result


def _batches(split: Split, modalities: tuple[str, ...], batch_size: int) -> Iterator:
    """Test samples as (inputs, labels, valid) of B rows, the last ones padding."""
    batch_size = min(batch_size, split.size)
    for start in range(0, split.size, batch_size):
        rows = slice(start, start + batch_size)
        labels = split.labels[rows].astype(np.int32)

        def padded(x: np.ndarray) -> np.ndarray:
            tail = np.zeros((batch_size - len(x), *x.shape[1:]), x.dtype)
            return np.concatenate([x, tail])

        inputs = {m: padded(split.inputs[m][rows]) for m in modalities}
        yield inputs, padded(labels), padded(np.ones(len(labels), np.float32))


def _streamed(
    count: Callable[..., Tables],
    finish: Callable[[Tables], Evaluation],
    batches: Callable[[], Iterator],
) -> Callable[[Params, Params], Evaluation]:
    """Evaluation by a loop on the host; at most two batches are on the device."""

    def evaluate(params: Params, batch_stats: Params) -> Evaluation:
        remaining = batches()
        total = count(params, batch_stats, next(remaining))
        for batch in remaining:
            tables = count(params, batch_stats, batch)
            total = jax.tree.map(jnp.add, jax.block_until_ready(total), tables)
        return finish(total)

    return evaluate


def _tables(model, params, batch_stats, patterns, inputs, labels, valid) -> Tables:
    """Confusion counts of every view on one batch; ``patterns`` [P, C, C]."""
    num_modalities = len(model.modalities)

    def forward(available: Array):
        rows = jnp.broadcast_to(available[None], (len(labels), num_modalities))
        batch = Batch(inputs, labels, valid, rows, jnp.arange(len(labels)))
        return model.apply(params, batch_stats, batch, False)[0]

    def count(logits: Array) -> Array:
        truth = jax.nn.one_hot(labels, model.num_classes) * valid[:, None]
        return truth.T @ jax.nn.one_hot(logits.argmax(-1), model.num_classes)

    full = forward(jnp.ones(num_modalities))
    tables = {"acc": count(full.logits)}
    for i, m in enumerate(model.modalities):
        alone = {
            k: part if k == m else jnp.zeros_like(part)
            for k, part in full.parts.items()
        }
        tables[f"acc_{m}_zero"] = count(model.fuse(params, alone))
        if model.has_projectors:
            only = jnp.zeros(num_modalities).at[i].set(1.0)
            tables[f"acc_{m}_infiltration"] = count(forward(only).logits)
            tables[f"acc_{m}_head"] = count(full.self_logits[m])
    tables["patterns"] = jnp.stack([count(forward(p).logits) for p in patterns])
    return tables
