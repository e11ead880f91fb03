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
import numpy as np

Array = jax.Array
PyTree = Any

Params = dict[str, Any]
"""Blocks: ``{kind: {modality: tree}}`` for owned kinds, ``{kind: tree}`` for shared."""

Sums = dict[str, tuple[Array, Array]]
"""Metrics as mergeable (weighted sum, weight) pairs."""


class Split(NamedTuple):
    """Samples of one split, on the host.

    Attributes:
      inputs: Modality name -> [n, ...] float32, or int32 for token ids; images are
        [n, height, width, channel]. An array may be a memory map of a file.
      labels: [n] int32 in [0, C).
      clients: [n] int32 natural client ids (speaker, volunteer...), or None.
      available: [n, M] bool, which modalities a sample has, in the data set's order;
        what it lacks may hold any number that ``check_dataset`` takes. None: all.
      sequential: Neighbouring rows of a client overlap in content, as sliding windows
        over one recording do; ``holdout.take_share`` then takes runs of them.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    clients: np.ndarray | None = None
    available: np.ndarray | None = None
    sequential: bool = False

    @property
    def size(self) -> int:
        """Number of samples n."""
        return len(self.labels)


class Batch(NamedTuple):
    """A padded batch of one client's samples.

    Attributes:
      inputs: Modality name -> [B, ...] float32, or int32 token ids.
      labels: [B] int32 in [0, C).
      valid: [B] float32, 1 for a real sample and 0 for padding.
      available: [B, M] float32, 1 where the sample's modality may be looked at.
      positions: [B] int32, place of each sample among the client's own samples.
    """

    inputs: dict[str, Array]
    labels: Array
    valid: Array
    available: Array
    positions: Array


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
    features: dict[str, Array]
    parts: dict[str, Array]
    self_logits: dict[str, Array]
    infiltration: dict[str, Array]
    infiltration_logits: dict[str, Array]
    extra: PyTree = ()


class Model(NamedTuple):
    """A multimodal classifier as pure functions over a dict of parameter blocks.

    Attributes:
      modalities: Names, in the order of every [.., M] array.
      num_classes: C.
      has_projectors: Whether it has self- and infiltration projectors and heads.
      init: ``key -> (params, batch_stats)``.
      apply: ``(params, batch_stats, batch, train) -> (Outputs, batch_stats)``. With
        ``train=True`` BatchNorm uses and updates the batch's statistics.
      fuse: ``(params, parts) -> logits``, the fused classifier on its own.
      shares: ``(params, parts) -> {modality: [B, C]}``, each modality's own share of
        the fused logits (they add up to them), biases shared out; None where fusion
        does not separate (film, gated).
      widths: Modality -> F, width of its encoder features.
      owned: ``available[M] -> prefix tree of params`` with 1.0 where a client with
        these modalities shares in the block's average.
      trained: The same for blocks that its local training may change.
    """

    modalities: tuple[str, ...]
    num_classes: int
    has_projectors: bool
    init: Callable[[Array], tuple[Params, Params]]
    apply: Callable[..., tuple[Outputs, Params]]
    fuse: Callable[[Params, dict[str, Array]], Array]
    shares: Callable[[Params, dict[str, Array]], dict[str, Array]] | None
    widths: dict[str, int]
    owned: Callable[[Array], Params]
    trained: Callable[[Array], Params]


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
    """

    params: Params
    batch_stats: Params
    shared: PyTree
    memory: PyTree
    personal: Params
    server_optimizer: PyTree
    round: Array
    key: Array


class RoundInfo(NamedTuple):
    """What a round reports (device arrays).

    Attributes:
      cohort: [K] int32 client ids, longest first; N marks padding.
      accepted: [K] bool, False for padding and for a client whose update was not
        finite, or its weight in the mean not finite or negative.
      rejected: int32, clients that were not accepted.
      num_examples: float32, training samples behind the accepted updates.
      learning_rate: float32, the round's client learning rate.
      metrics: Training metrics of the accepted clients.
    """

    cohort: Array
    accepted: Array
    rejected: Array
    num_examples: Array
    learning_rate: Array
    metrics: Sums
