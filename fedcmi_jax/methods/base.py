"""What a federated method is: a record of pure hooks.

Client hooks see ONE client; the round maps them over the cohort. Server hooks (select,
merge, server_update) run once per round. The record of defaults is FedAvg;
``compose.chain`` makes one record of two.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedcmi_jax.methods._checks import check_not_negative
from fedcmi_jax.methods.seen import (
    Client,
    Cohort,
    Kept,
    LocalUpdate,
    Selection,
    Server,
    Step,
)
from fedcmi_jax.types import Array, Batch, Model, Outputs, Params, PyTree, Sums


def default_forward(
    client: Client, params: Params, batch_stats: Params, batch: Batch, context: Any
) -> tuple[Outputs, Params]:
    """The model in training mode: the default of ``Method.forward``."""
    del context
    return client.model.apply(params, batch_stats, batch, True)


def num_examples(client: Client, context: Any) -> Array:
    """n_i: the default of ``Method.weight``."""
    del context
    return client.data.num_examples


class Method(NamedTuple):
    """A federated method as pure hooks; the defaults are FedAvg.

    Attributes:
      name: Registry name.
      needs_projectors: Whether it needs a model with projectors.
      momentum: Of the clients' SGD, unless the user gives an optimizer.
      personal: Kinds of blocks that stay at the client: it starts from its own, they
        are never averaged, and the evaluated model has their sample-weighted mean.
      check: ``(model, clients_per_round) -> None``, raises ``ValueError`` where the
        method is not defined.
      init: ``(model, params, num_clients) -> (Shared, Memory)``: the server-side state,
        and what is remembered of one client across rounds.
      select: ``(server, key) -> Selection``, at the start of a round, or None for
        uniform sampling without replacement. The key depends on seed and round only.
      start: ``(params, memory) -> params``, what a client starts from.
      begin: ``(client, key) -> (Context, Sums)``, once per client and round; the sums
        are reported as metrics.
      forward: ``(client, params, batch_stats, batch, context) -> (Outputs, stats)``.
      loss: ``(client, outputs, batch, context) -> (scalar, Sums)``, ADDED to the task
        cross-entropy of ``outputs.logits``.
      update: ``(client, grads, step, context) -> (grads, Context)``, between autodiff
        and the optimizer.
      trained: ``(client, done) -> weights``, prefix tree of the parameters, 1 for
        blocks that the step after ``done`` steps (int32) may change, or None: all.
      epoch_end: ``(client, params, batch_stats, context) -> Context``, or None.
      finish: ``(client, local_update, context) -> (Upload, Memory)``; an upload is a
        tree of ``Mean`` and ``Sum``.
      weight: ``(client, context) -> float32 or prefix tree of the parameters``, p_i of
        the client in the means of parameters and BatchNorm statistics, sum_i p_i
        own_{i,b} w_i / sum_i p_i own_{i,b} over the accepted clients; default n_i. 0
        takes it out of these means; a client whose weight is negative or not finite is
        not accepted.
      merge: ``(cohort, upload) -> (Shared, Memory)`` with the upload aggregated and the
        memory of all clients [N, ...], at the end of a round.
      server_update: ``(cohort, mean_delta, upload) -> (params, Shared)``, the server's
        step in place of params + mean_delta, or None. Blocks that no accepted client
        owns stay as they are. Runs before ``merge``.
    """

    name: str = "fedavg"
    needs_projectors: bool = False
    momentum: float = 0.9
    personal: tuple[str, ...] = ()
    check: Callable[[Model, int], None] = lambda model, clients_per_round: None
    init: Callable[[Model, Params, int], tuple[PyTree, PyTree]] = (
        lambda model, params, num_clients: ((), ())
    )
    select: Callable[[Server, Array], Selection] | None = None
    start: Callable[[Params, PyTree], Params] = lambda params, memory: params
    begin: Callable[[Client, Array], tuple[PyTree, Sums]] = lambda client, key: ((), {})
    forward: Callable[..., tuple[Outputs, Params]] = default_forward
    loss: Callable[[Client, Outputs, Batch, PyTree], tuple[Array, Sums]] = (
        lambda client, outputs, batch, context: (jnp.zeros(()), {})
    )
    update: Callable[[Client, Params, Step, PyTree], tuple[Params, PyTree]] = (
        lambda client, grads, step, context: (grads, context)
    )
    trained: Callable[[Client, Array], Params] | None = None
    epoch_end: Callable[[Client, Params, Params, PyTree], PyTree] | None = None
    finish: Callable[[Client, LocalUpdate, PyTree], tuple[PyTree, PyTree]] = (
        lambda client, local_update, context: ((), client.memory)
    )
    weight: Callable[[Client, PyTree], Array | Params] = num_examples
    merge: Callable[[Cohort, PyTree], tuple[PyTree, PyTree]] = lambda cohort, upload: (
        cohort.shared,
        cohort.memory,
    )
    server_update: Callable[..., tuple[Params, PyTree]] | None = None


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

    def update(
        client: Client, grads: Params, step: Step, context: PyTree
    ) -> tuple[Params, PyTree]:
        pulled = jax.tree.map(
            lambda g, w, w_global: g + mu * (w - w_global),
            grads,
            step.params,
            client.params,
        )
        return pulled, context

    return Method(name="proximal", update=update)


def is_set(method: Method, hook: str) -> bool:
    """Whether a method has its own hook of that name."""
    return getattr(method, hook) is not Method._field_defaults[hook]


def personal_blocks(method: Method, params: Params) -> Params:
    """Those of the blocks that stay at the client.

    Raises:
      ValueError: The model has no blocks of that kind.
    """
    for kind in method.personal:
        if kind not in params:
            raise ValueError(
                f"personal: the model has no {kind!r} blocks for method "
                f"{method.name!r}; choose from {sorted(params)}"
            )
    return {kind: params[kind] for kind in method.personal}


def has_own_models(method: Method) -> bool:
    """Whether clients have models that differ from the global one."""
    return bool(method.personal) or is_set(method, "start")


def own_model(method: Method, params: Params, kept: Kept) -> Params:
    """What a client starts from, and what it would predict with."""
    return method.start(params | kept.personal, kept.memory)


HOOKS = tuple(
    name
    for name in Method._fields
    if name not in ("name", "needs_projectors", "momentum", "check")
)
"""Names of the hooks, and of ``personal``."""


def hooks(method: Method) -> tuple[str, ...]:
    """The hooks that a method replaces, in the record's order."""
    return tuple(name for name in HOOKS if is_set(method, name))
