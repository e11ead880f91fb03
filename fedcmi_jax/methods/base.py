"""What a federated method is: a record of pure hooks.

Every client hook sees ONE client; the round maps them over the cohort. The few server
hooks (probe, select, merge, conclude) run once per round. The record of defaults is
FedAvg; ``compose.chain`` makes one record of two.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fedcmi_jax.federation import ClientData, Federation
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree, Sums


class Client(NamedTuple):
    """What a hook may see of one client in one round; constant during the round.

    Attributes:
      model: The model's pure functions.
      params: The parameters the client starts from: the global ones, with personal
        blocks put in by ``Method.start``.
      batch_stats: Global BatchNorm statistics.
      shared: The method's server-side extras.
      memory: What the method remembers of this client.
      data: The client's samples, with the modalities it uses in this round.
      round: int32, counted from 0.
      learning_rate: float32.
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
    """One local step as ``Method.grads`` and ``Method.step_end`` see it.

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


class Cohort(NamedTuple):
    """What ``Method.merge`` and ``Method.conclude`` know of the round.

    Attributes:
      model: The model's pure functions.
      federation: The federation.
      ids: [K] int32 client ids.
      use: [K, M] float32, modalities each one trained with.
      accepted: [K] bool, whose updates were finite.
      num_accepted: float32, clients behind the sums.
    """

    model: Model
    federation: Federation
    ids: Array
    use: Array
    accepted: Array
    num_accepted: Array


class Server(NamedTuple):
    """What ``Method.probe`` and ``Method.select`` see, before a round's training.

    Attributes:
      model: The model's pure functions.
      params: Global parameters.
      batch_stats: Global BatchNorm statistics.
      shared: The method's server-side extras.
      memory: The method's per-client memory, leaves [N, ...].
      federation: The federation.
      cohort_size: K.
      round: int32, counted from 0.
      map: ``(fn, ids[n], use[n, M]) -> tree [n, ...]`` with ``fn: (client, key) ->
        tree`` of one client. Dealt to devices as a round's training is.
      train: ``(method, epochs, client, key) -> Finished``, for use inside that ``fn``:
        the client's local training under another method's hooks.
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
    train: Callable[..., "Finished"]


class Finished(NamedTuple):
    """A client's local training, done.

    Attributes:
      params: Its parameters.
      batch_stats: Its BatchNorm statistics.
      num_steps: int32, real optimizer steps taken.
    """

    params: Params
    batch_stats: Params
    num_steps: Array


def default_forward(
    client: Client, params: Params, batch_stats: Params, batch: Batch, context: Any
) -> tuple[Outputs, Params]:
    """The model in training mode: the default of ``Method.forward``."""
    del context
    return client.model.apply(params, batch_stats, batch, True)


class Method(NamedTuple):
    """A federated method as pure hooks; the defaults are FedAvg.

    Attributes:
      name: Registry name.
      needs_projectors: Whether it needs a model with projectors.
      momentum: Of the clients' SGD, unless the user gives an optimizer.
      check: ``(model, clients_per_round) -> None``, raises ``ValueError`` where the
        method is not defined.
      parts: The methods a chain is made of.
      init_shared: ``(model, params, num_clients) -> Shared``, server-side extras.
      init_client: ``(model, params) -> Memory``, remembered per client across rounds.
      start: ``(params, memory) -> params``, puts a client's personal blocks in.
      begin: ``(client, key) -> (Context, Sums)``, once per client and round; the sums
        are reported as metrics.
      forward: ``(client, params, batch_stats, batch, context) -> (Outputs, stats)``.
      loss: ``(client, outputs, batch, context) -> (scalar, Sums)``, ADDED to the task
        cross-entropy of ``outputs.logits``.
      grads: ``(client, grads, step, context) -> grads``, between autodiff and the
        optimizer.
      step_end: ``(client, step, context) -> Context``, or None.
      epoch_end: ``(client, params, batch_stats, context) -> Context``, or None.
      finish: ``(client, finished, context) -> (Upload, Memory)``; uploads are summed
        over the accepted clients as they stream by.
      merge: ``(shared, upload, cohort) -> Shared``.
      owned: ``(weights, available[M]) -> weights``, changes who shares in the average
        of which block (prefix tree of the parameters).
      weight: ``client -> float32``, p_i of the client in the means of parameters and
        BatchNorm statistics, sum_i p_i own_{i,b} w_i / sum_i p_i own_{i,b} over the
        accepted clients; default n_i. 0 takes it out of these means; a client whose
        weight is negative or not finite is not accepted. Uploads are weighted by
        ``finish``.
      probe: ``(server, key) -> (Shared, Memory)``, at the start of a round, or None.
      select: ``(server, key) -> (ids[K], use[K, M])``, or None for uniform sampling
        without replacement. The key depends on seed and round only.
      conclude: ``(shared, memory, cohort) -> (Shared, Memory)`` with the memory of all
        clients [N, ...], at the end of a round, or None.
      deploy: ``(params, memory, federation) -> params``, the model to evaluate.
    """

    name: str = "fedavg"
    needs_projectors: bool = False
    momentum: float = 0.9
    check: Callable[[Model, int], None] = lambda model, clients_per_round: None
    parts: tuple["Method", ...] = ()
    init_shared: Callable[[Model, Params, int], PyTree] = lambda model, params, n: ()
    init_client: Callable[[Model, Params], PyTree] = lambda model, params: ()
    start: Callable[[Params, PyTree], Params] = lambda params, memory: params
    begin: Callable[[Client, Array], tuple[PyTree, Sums]] = lambda client, key: ((), {})
    forward: Callable[..., tuple[Outputs, Params]] = default_forward
    loss: Callable[[Client, Outputs, Batch, PyTree], tuple[Array, Sums]] = (
        lambda client, outputs, batch, context: (jnp.zeros(()), {})
    )
    grads: Callable[[Client, Params, Step, PyTree], Params] = (
        lambda client, grads, step, context: grads
    )
    step_end: Callable[[Client, Step, PyTree], PyTree] | None = None
    epoch_end: Callable[[Client, Params, Params, PyTree], PyTree] | None = None
    finish: Callable[[Client, Finished, PyTree], tuple[PyTree, PyTree]] = (
        lambda client, finished, context: ((), client.memory)
    )
    merge: Callable[[PyTree, PyTree, Cohort], PyTree] = lambda shared, upload, cohort: (
        shared
    )
    owned: Callable[[Params, Array], Params] = lambda weights, available: weights
    weight: Callable[[Client], Array] = lambda client: client.data.num_examples
    probe: Callable[[Server, Array], tuple[PyTree, PyTree]] | None = None
    select: Callable[[Server, Array], tuple[Array, Array]] | None = None
    conclude: Callable[[PyTree, PyTree, Cohort], tuple[PyTree, PyTree]] | None = None
    deploy: Callable[[Params, PyTree, Federation], Params] = (
        lambda params, memory, federation: params
    )


FEDAVG = Method()
"""The record of defaults."""


def proximal(mu: float | Array) -> Method:
    """g <- g + mu (w - w_G), the gradient of mu/2 ||w - w_G||^2 (methods 3).

    Args:
      mu: Strength, >= 0; may be a traced scalar.

    Returns:
      A method to be used alone (FedProx) or in a ``chain``.

    Raises:
      ValueError: mu is negative.
    """
    check_not_negative(mu=mu)

    def grads(client: Client, grads: Params, step: Step, context: PyTree) -> Params:
        del context
        return jax.tree.map(
            lambda g, w, w_global: g + mu * (w - w_global),
            grads,
            step.params,
            client.params,
        )

    return Method(name="proximal", grads=grads)


def check_not_negative(**values: float | Array) -> None:
    """Refuses negative or NaN coefficients; traced values pass unchecked.

    Raises:
      ValueError: Names the argument, its value and the remedy.
    """
    for name, value in values.items():
        if not isinstance(value, Tracer) and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name}: {value} is not >= 0; give 0 or more")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuses a value that is none of a ``Literal``'s.

    Raises:
      ValueError: Names the argument, its value and the choices.
    """
    if value not in choices.__args__:
        raise ValueError(
            f"{name}: unknown {value!r}; choose from {list(choices.__args__)}"
        )


def check_window(first_round: int, last_round: int | None) -> None:
    """Refuses an empty window of rounds; ``last_round`` None is the run's last.

    Raises:
      ValueError: Names the argument, its value and the remedy.
    """
    if first_round < 0:
        raise ValueError(f"first_round: {first_round} is negative; give 0 or more")
    if last_round is not None and last_round < first_round:
        raise ValueError(
            f"last_round: {last_round} comes before first_round {first_round}; give "
            f"at least {first_round}, or None for the end"
        )


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


def is_set(method: Method, hook: str) -> bool:
    """Whether a method has its own hook of that name."""
    return getattr(method, hook) is not Method._field_defaults[hook]


HOOKS = tuple(
    name
    for name in Method._fields
    if name not in ("name", "needs_projectors", "momentum", "check", "parts")
)
"""Names of the hooks."""


def hooks(method: Method) -> tuple[str, ...]:
    """The hooks that a method, or a part of it, replaces, in the record's order."""
    parts = method.parts or (method,)
    return tuple(name for name in HOOKS if any(is_set(m, name) for m in parts))
