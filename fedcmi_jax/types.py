"""Array aliases, the shape legend, and the records every module speaks in.

Shape legend, used in every docstring of the package:

==  ==========================================================================
N   clients in the federation
K   clients in one round's cohort (``clients_per_round``)
M   modalities, in the order of ``Model.modalities``
B   samples in a batch (padded; ``Batch.valid`` marks the real ones)
C   classes
F   features of an encoder, D features of a projector
L   samples of the longest client of the federation
==  ==========================================================================

Symbols follow methods of Fan et al., arXiv 2401.00894: ``h`` encoder features, ``s``
self-projection, ``c`` infiltration-projection, ``z`` fused logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any

Params = dict[str, Any]
"""Blocks: ``{kind: {modality: tree}}`` for owned kinds, ``{kind: tree}`` for shared."""

Sums = dict[str, tuple[Array, Array]]
"""Metrics as mergeable (weighted sum, weight) pairs."""


class Batch(NamedTuple):
    """A padded batch of one client's samples.

    Attributes:
      inputs: Modality name -> [B, ...] float32, or int32 token ids, or a tree of such
        arrays.
      labels: [B] int32 in [0, C).
      valid: [B] float32, 1 for a real sample and 0 for padding.
      available: [B, M] float32, 1 where the sample's modality may be looked at.
      positions: [B] int32, place of each sample among the client's own samples.
      key: PRNG key of the model's random numbers (Dropout) in a training step; None in
        evaluation, and where ``Model.needs_key`` is false.
    """

    inputs: dict[str, PyTree]
    labels: Array
    valid: Array
    available: Array
    positions: Array
    key: Array | None = None


class Outputs(NamedTuple):
    """What one forward pass yields.

    Attributes:
      logits: [B, C] fused logits z, missing modalities replaced.
      features: Modality -> [B, F], encoder outputs h.
      parts: Modality -> [B, D], what fusion reads where the modality is present
        (self-projection s, or h in a model without projectors).
      self_logits: Modality -> [B, C], head of the self-projection; ``{}`` in a model
        without projectors.
      infiltration: Modality -> [B, D], infiltration-projection c; ``{}`` likewise.
      infiltration_logits: Modality -> [B, C], head of c; ``{}`` likewise.
      extra: What a method's own ``forward`` adds for its later hooks.
    """

    logits: Array
    features: dict[str, Array] = {}  # noqa: RUF012 (nobody writes into them)
    parts: dict[str, Array] = {}  # noqa: RUF012
    self_logits: dict[str, Array] = {}  # noqa: RUF012
    infiltration: dict[str, Array] = {}  # noqa: RUF012
    infiltration_logits: dict[str, Array] = {}  # noqa: RUF012
    extra: PyTree = ()


class Frozen(NamedTuple):
    """Which leaves of a model nothing ever changes, known before anything is compiled.

    Attributes:
      params: Prefix tree of the parameters, of bool; False: nothing.
      batch_stats: The same for BatchNorm statistics.
    """

    params: PyTree = False
    batch_stats: PyTree = False


def owned_by_all(available: Array) -> Params:
    """The default of ``Model.owned``; ``models.whole.complete`` does better."""
    del available
    return jnp.ones(())  # type: ignore[return-value]


class Model(NamedTuple):
    """A multimodal classifier as pure functions over a dict of parameter blocks.

    The first four are enough: without the others, a method or a view that needs one of
    them is refused or left out.

    Attributes:
      modalities: Names, in the order of every [.., M] array.
      num_classes: C.
      init: ``key -> (params, batch_stats)``.
      apply: ``(params, batch_stats, batch, train) -> (Outputs, batch_stats)``. With
        ``train=True`` BatchNorm uses and updates the batch's statistics. ``train`` may
        be ``{block: bool}``, see ``models.modes.awake``.
      has_projectors: Whether it has self- and infiltration projectors and heads.
      fuse: ``(params, parts) -> logits``, the fused classifier on its own; None: there
        is none, so no view of one modality with the others zero.
      shares: ``(params, parts) -> {modality: [B, C]}``, each modality's own share of
        the fused logits (they add up to them), biases shared out; None where fusion
        does not separate (film, gated).
      widths: Modality -> F, width of its encoder features; None: it shows none.
      owned: ``available[M] -> prefix tree of params`` with 1.0 where a client with
        these modalities shares in the block's average; by default, by the blocks'
        names (``models.whole``).
      trained: The same for blocks that its local training may change; as ``owned``.
      needs_key: Whether ``apply`` draws random numbers in training, from ``batch.key``.
      loss: ``(logits [B, C], labels [B]) -> [B]``, the task loss of samples; None:
        cross-entropy in nats.
      frozen: What no training changes; ``models.frozen``.
    """

    modalities: tuple[str, ...]
    num_classes: int
    init: Callable[[Array], tuple[Params, Params]]
    apply: Callable[..., tuple[Outputs, Params]]
    has_projectors: bool = False
    fuse: Callable[[Params, dict[str, Array]], Array] | None = None
    shares: Callable[[Params, dict[str, Array]], dict[str, Array]] | None = None
    widths: dict[str, int] | None = None
    owned: Callable[[Array], Params] = owned_by_all
    trained: Callable[[Array], Params] = owned_by_all
    needs_key: bool = False
    loss: Callable[[Array, Array], Array] | None = None
    frozen: Frozen = Frozen()


class Mean(NamedTuple):
    """A part of an upload that is averaged: sum_i weight_i value_i / sum_i weight_i.

    Attributes:
      value: An array or a tree of arrays. In ``merge``: the cohort's mean, 0 where the
        weight is 0.
      weight: float32; its axes are the first ones of every array. In ``merge``: the
        cohort's total.
    """

    value: PyTree
    weight: Array


class Sum(NamedTuple):
    """A part of an upload that is added up over the accepted clients.

    Attributes:
      value: An array or a tree of arrays. In ``merge``: the cohort's sum.
    """

    value: PyTree


class FederationState(NamedTuple):
    """Everything a federation needs to go on; a checkpoint is exactly this.

    Attributes:
      params: Global parameters.
      batch_stats: Global BatchNorm statistics.
      shared: The method's server-side extras.
      memory: The method's per-client memory, every leaf stacked [N, ...].
      personal: Blocks that stay at their client, stacked likewise; {} without any.
      server_optimizer: State of the server optimizer.
      round: int32 scalar, rounds done.
      key: PRNG key of the seed; named streams are folded out of it.
      guard: ``guard.Guard``, lengths of earlier updates.
      aggregator: What a robust aggregator remembers; () without any.
      privacy: The clipping bound, where it adapts; else ().
      residual: What compression dropped of clients' updates, stacked [N, ...]; () where
        they do not keep it.
      clock: float32, simulated seconds so far; () where no time passes.
    """

    params: Params
    batch_stats: Params
    shared: PyTree
    memory: PyTree
    personal: Params
    server_optimizer: PyTree
    round: Array
    key: Array
    guard: PyTree = ()
    aggregator: PyTree = ()
    privacy: PyTree = ()
    residual: PyTree = ()
    clock: PyTree = ()


class Start(NamedTuple):
    """What a federation starts from instead of what is drawn, or a part of it.

    Attributes:
      params: Some leaves of the parameters, in their places.
      batch_stats: Some of the BatchNorm statistics.
    """

    params: Params
    batch_stats: Params


class RoundInfo(NamedTuple):
    """What a round reports (device arrays).

    Attributes:
      cohort: [K] int32 client ids, longest first; N marks padding.
      accepted: [K] bool, False for padding, for a client whose update was not finite,
        or its weight in the mean not finite or negative, and for one that the guard
        set aside.
      rejected: int32, clients whose update arrived and was not accepted.
      set_aside: [K] bool, clients whose update the guard found too long.
      skipped: bool, whether the guard, still without a measure, dropped the round.
      blocks_kept: int32, blocks with too few accepted owners for the aggregator, which
        therefore keep their value, of parameters and statistics.
      client_loss: [K] float32, each one's mean task loss over its local steps, in nats.
      num_examples: float32, training samples behind the accepted updates.
      learning_rate: float32, the round's client learning rate.
      metrics: Training metrics of the accepted clients.
      privacy: ``privacy.Clipping``; () without.
      systems: ``systems.Clock``; () without.
    """

    cohort: Array
    accepted: Array
    rejected: Array
    set_aside: Array
    skipped: Array
    blocks_kept: Array
    client_loss: Array
    num_examples: Array
    learning_rate: Array
    metrics: Sums
    privacy: PyTree = ()
    systems: PyTree = ()
