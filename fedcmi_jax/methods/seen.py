"""What hooks see and give: records of one client, one step, the server, a cohort."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from fedcmi_jax.federation import ClientData, Federation
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree


class Client(NamedTuple):
    """What a hook may see of one client in one round; constant during the round.

    Attributes:
      model: The model's pure functions.
      params: The parameters the client starts from: the global ones, with its personal
        blocks in place, or what ``Method.start`` makes of them.
      batch_stats: Global BatchNorm statistics.
      shared: The method's server-side state.
      memory: What the method remembers of this client.
      data: The client's samples, with the modalities it uses in this round.
      round: int32, counted from 0.
      learning_rate: float32.
      num_steps: int32, optimizer steps that it takes in a round's local training.
      augmented: Whether training batches are augmented, so that what was computed on
        stored samples is not what a step's batch gives (static).
      has: [M] float32, modalities that it has, also where ``Method.select`` lets it use
        fewer in this round; None: those that it uses.
    """

    model: Model
    params: Params
    batch_stats: Params
    shared: PyTree
    memory: PyTree
    data: ClientData
    round: Array
    learning_rate: Array
    num_steps: Array
    augmented: bool = False
    has: Array | None = None

    @property
    def own_data(self) -> ClientData:
        """Its samples with all modalities that it has, to measure on."""
        if self.has is None:
            return self.data
        return dataclasses.replace(self.data, available=self.has)

    @property
    def available(self) -> dict[str, Array]:
        """Modality -> float32, 1 if the client uses it in this round."""
        return {m: self.data.available[i] for i, m in enumerate(self.model.modalities)}


class Step(NamedTuple):
    """One local step as ``Method.update`` sees it.

    Attributes:
      params: Parameters before the step.
      outputs: The forward pass.
      batch: The batch.
      key: The step's PRNG key.
    """

    params: Params
    outputs: Outputs
    batch: Batch
    key: Array


class LocalUpdate(NamedTuple):
    """What a client's local training leads to.

    Attributes:
      params: Its parameters.
      batch_stats: Its BatchNorm statistics.
    """

    params: Params
    batch_stats: Params


class Server(NamedTuple):
    """What ``Method.select`` sees, before a round's training.

    Attributes:
      model: The model's pure functions.
      params: Global parameters.
      batch_stats: Global BatchNorm statistics.
      shared: The method's server-side state.
      memory: The method's per-client memory, leaves [N, ...].
      federation: The federation.
      cohort_size: K.
      round: int32, counted from 0.
      map: ``(fn, ids[n], participation[n, M]) -> tree [n, ...]`` with ``fn: (client,
        key) -> tree`` of one client. Dealt to devices as a round's training is.
      train: ``(method, epochs, client, key) -> LocalUpdate``, for use inside that
        ``fn``: the client's local training under another method's hooks.
    """

    model: Model
    params: Params
    batch_stats: Params
    shared: PyTree
    memory: PyTree
    federation: Federation
    cohort_size: int
    round: Array
    map: Callable[..., PyTree]
    train: Callable[..., LocalUpdate]


class Selection(NamedTuple):
    """Who trains in a round, and with what.

    Attributes:
      ids: [K] int32, different client ids.
      participation: [K, M] float32, modalities each one trains with.
      shared: The method's server-side state from now on.
      memory: The method's per-client memory from now on, leaves [N, ...].
    """

    ids: Array
    participation: Array
    shared: PyTree
    memory: PyTree


class Cohort(NamedTuple):
    """What ``Method.merge`` and ``Method.server_update`` see, after the training.

    Attributes:
      model: The model's pure functions.
      federation: The federation.
      params: Global parameters before the round's update.
      shared: The method's server-side state.
      memory: The method's per-client memory, leaves [N, ...]; of the cohort, renewed.
      ids: [K] int32 client ids.
      participation: [K, M] float32, modalities each one trained with.
      accepted: [K] bool, whose updates were finite.
      num_accepted: float32, clients behind the sums.
    """

    model: Model
    federation: Federation
    params: Params
    shared: PyTree
    memory: PyTree
    ids: Array
    participation: Array
    accepted: Array
    num_accepted: Array


class Kept(NamedTuple):
    """What is kept between rounds: of one client, or of all, leaves [N, ...].

    Attributes:
      memory: What the method remembers.
      personal: Blocks that stay at the client.
      residual: What compression dropped of its updates.
    """

    memory: PyTree
    personal: Params
    residual: PyTree = ()
