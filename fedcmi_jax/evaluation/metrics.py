"""One evaluation for every method (methods 0.8): confusion counts, then metrics.

The tables of `views` add over batches, so metrics combine exactly; a (sum, weight) pair
is read off a table at the end.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.data.base import Split, check_labels
from fedcmi_jax.evaluation.views import (
    OWN,
    Metric,
    Tables,
    batches_of,
    fused_table,
    view_tables,
)
from fedcmi_jax.federation import Federation
from fedcmi_jax.types import Array, Model, Params, PyTree, Sums

TAKEN = ("acc", "macro_f1", "worst_class", "per_class", "client", "personal", "val_")
"""How the names of other columns begin."""


class Evaluation(NamedTuple):
    """What one evaluation yields.

    Attributes:
      tables: View -> confusion counts. Views: ``acc`` (fused logits, all modalities
        that a sample has); over the samples with modality m: ``acc_{m}_zero`` (fused,
        other modalities zero), ``acc_{m}_half`` (m's own share of the logits, the bias
        shared out; where fusion is a sum), and in a model with projectors
        ``acc_{m}_infiltration`` (fused, the other modalities' places taken by m's
        infiltration projection) and ``acc_{m}_head`` (head on the self-projection).
      client_accuracy: [N], see ``client_accuracies``; None without a federation.
      personal_accuracy: The same of every client's own model, for methods that keep
        one; else None.
      own: Name -> (sum, weight), metrics of the user's own.
    """

    tables: Tables
    client_accuracy: Array | None = None
    personal_accuracy: Array | None = None
    own: Sums = {}  # noqa: RUF012 (nobody writes into it)


class ClientView(NamedTuple):
    """What an evaluation knows of the clients.

    Attributes:
      patterns: [P, M] float32, the distinct sets of modalities that clients have.
      pattern_of: [N] int32, each client's place in them.
      class_counts: [N, C] float32, see ``client_class_counts``.
    """

    patterns: Array
    pattern_of: Array
    class_counts: Array


class Programs(NamedTuple):
    """The compiled functions of an evaluation; data are arguments, not constants.

    So one compilation serves all federations of one model and equal shapes.

    Attributes:
      whole: ``(batches, clients, params, batch_stats, memory) -> Evaluation`` with
        all batches stacked.
      one_batch: ``(batch, clients, params, batch_stats, memory) -> Tables`` of one.
      finish: ``(tables, clients) -> Evaluation`` of the sum of them.
    """

    whole: Callable[..., Evaluation]
    one_batch: Callable[..., Tables]
    finish: Callable[..., Evaluation]


def build_programs(
    model: Model,
    personal: Callable[[Params, PyTree], Params] | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Programs:
    """Compiles nothing yet: the functions that evaluators of a model can share.

    Args:
      model: The model.
      personal: See ``build_evaluator``.
      metrics: See ``build_evaluator``.

    Returns:
      The jitted functions.

    Raises:
      ValueError: A metric has the name of another column, or gives no pair of numbers.
    """
    for name, metric in (metrics or {}).items():
        if name.startswith(TAKEN):
            raise ValueError(f"metrics: {name!r} is taken; begin with another word")
        _check_metric(name, metric, model.num_classes)

    def count(
        batch: PyTree,
        clients: ClientView | None,
        params: Params,
        batch_stats: Params,
        memory: PyTree,
    ) -> Tables:
        patterns = None if clients is None else clients.patterns
        tables = view_tables(model, metrics, params, batch_stats, patterns, *batch)
        if clients is not None and personal is not None and memory is not None:

            def one_client(client):
                own, pattern = client
                own_params = personal(params, own)
                return fused_table(model, own_params, batch_stats, pattern, *batch)

            own = (memory, clients.patterns[clients.pattern_of])
            tables["personal"] = jax.lax.map(one_client, own)
        return tables

    def finish(tables: Tables, clients: ClientView | None) -> Evaluation:
        tables = dict(tables)
        sums = tables.pop(OWN, {})
        if clients is None:
            return Evaluation(tables, own=sums)
        by_client = tables.pop("patterns")[clients.pattern_of]
        own = tables.pop("personal", None)
        return Evaluation(
            tables,
            client_accuracies(by_client, clients.class_counts),
            None if own is None else client_accuracies(own, clients.class_counts),
            sums,
        )

    def whole(batches: PyTree, clients: ClientView | None, *state) -> Evaluation:
        tables = jax.lax.map(lambda batch: count(batch, clients, *state), batches)
        return finish(jax.tree.map(lambda x: x.sum(0), tables), clients)

    return Programs(jax.jit(whole), jax.jit(count), jax.jit(finish))


def build_evaluator(
    model: Model,
    split: Split,
    federation: Federation | None,
    *,
    rows: np.ndarray | None = None,
    batch_size: int = 256,
    personal: Callable[[Params, PyTree], Params] | None = None,
    stream: bool = False,
    programs: Programs | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Callable[..., Evaluation]:
    """Puts a test split on the device and returns the compiled evaluation.

    Args:
      model: The model.
      split: Test samples.
      federation: Supplies each client's classes and modalities; None: no accuracies of
        clients.
      rows: [v] rows of the split to test on; None: all.
      batch_size: Samples per forward pass; no effect on results.
      personal: ``Method.start`` of a method with personal models, ``(params, memory of
        one client) -> params``; every client's model is then tested, one by one.
      stream: Leave the split on the host and send it batch by batch; same results.
      programs: Of ``build_programs`` with the same model, ``personal`` and ``metrics``,
        to share their compilation; None: new ones.
      metrics: Name -> ``(logits [B, C], labels [B], valid [B]) -> (sum, weight)`` of
        one's own, of the fused logits; ``summarise`` has the quotients.

    Returns:
      ``(params, batch_stats, memory=None) -> Evaluation``; without the memory
      [N, ...] of all clients personal models are left out.

    Raises:
      ValueError: A label of the split is no integer in [0, C), or a metric has the
        name of another column or gives no pair of numbers.
    """
    check_labels(split.labels, model.num_classes, "test split")
    programs = programs or build_programs(model, personal, metrics)
    clients = None
    if federation is not None:
        distinct, which = np.unique(
            np.asarray(federation.available), axis=0, return_inverse=True
        )
        clients = ClientView(
            jnp.asarray(distinct, jnp.float32),
            jnp.asarray(which.reshape(-1), jnp.int32),
            client_class_counts(federation, model.num_classes),
        )
    if rows is None:
        rows = np.arange(split.size)
    size = min(batch_size, len(rows))
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    host_batches = functools.partial(batches_of, split, chunks, model.modalities, size)
    if stream:
        return _streamed(programs, clients, host_batches)
    batches = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *host_batches())

    def evaluate(
        params: Params, batch_stats: Params, memory: PyTree = None
    ) -> Evaluation:
        return programs.whole(batches, clients, params, batch_stats, memory)

    return evaluate


def _check_metric(name: str, metric: Metric, num_classes: int) -> None:
    logits, labels = jnp.zeros((2, num_classes)), jnp.zeros(2, jnp.int32)
    try:
        found = jax.eval_shape(metric, logits, labels, jnp.ones(2))
    except Exception as error:  # whatever a user's function raises
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"metrics: {name!r} cannot be traced ({why}); give a function of logits, "
            "labels and valid, in jax.numpy"
        ) from error
    is_pair = isinstance(found, tuple | list) and len(found) == 2
    if not is_pair or any(getattr(x, "shape", None) != () for x in found):
        raise ValueError(
            f"metrics: {name!r} gives {jax.tree.map(lambda x: x.shape, found)} as "
            "shapes; give a pair of numbers, (sum over samples, weight)"
        )


def client_class_counts(federation: Federation, num_classes: int) -> Array:
    """[N, C] float32: training samples of each class at each client."""
    owner = np.repeat(
        np.arange(federation.num_clients),
        np.asarray(federation.sizes + federation.probe_sizes),
    )
    counts = np.zeros((federation.num_clients, num_classes), np.float32)
    if not federation.labels.is_fully_addressable:
        raise ValueError(
            "federation: its samples are spread over processes; give build_evaluator "
            "streaming.build_skeleton's"
        )
    labels = np.asarray(federation.labels)[: len(owner)]  # spread ones are padded
    np.add.at(counts, (owner, labels), 1.0)
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


def _streamed(
    programs: Programs,
    clients: ClientView | None,
    batches: Callable[[], Iterator],
) -> Callable[..., Evaluation]:
    """Evaluation by a loop on the host; at most two batches are on the device."""

    def evaluate(
        params: Params, batch_stats: Params, memory: PyTree = None
    ) -> Evaluation:
        remaining = batches()
        state = (clients, params, batch_stats, memory)
        total = programs.one_batch(next(remaining), *state)
        for batch in remaining:
            tables = programs.one_batch(batch, *state)
            total = jax.tree.map(jnp.add, jax.block_until_ready(total), tables)
        return programs.finish(total, clients)

    return evaluate
