"""What a federated method is: a record of pure hooks.

Every hook sees ONE client; the round maps them over the cohort. The record of defaults
is FedAvg. ``chain`` composes two records.
"""

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
      data: The client's samples.
      round: int32, counted from 0.
      learning_rate: float32.
    """

    model: Model
    params: Params
    batch_stats: Params
    shared: PyTree
    memory: PyTree
    data: ClientData
    round: Array
    learning_rate: Array


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
    """What ``Method.merge`` knows of the round.

    Attributes:
      num_clients: N.
      num_accepted: float32, clients behind the sums.
    """

    num_clients: int
    num_accepted: Array


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


def _forward(
    client: Client, params: Params, batch_stats: Params, batch: Batch, context: Any
) -> tuple[Outputs, Params]:
    del context
    return client.model.apply(params, batch_stats, batch, True)


class Method(NamedTuple):
    """A federated method as pure hooks; the defaults are FedAvg.

    Attributes:
      name: Registry name.
      needs_projectors: Whether it needs a model with projectors.
      init_shared: ``(model, params) -> Shared``, server-side extras.
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
      deploy: ``(params, memory, federation) -> params``, the model to evaluate.
      select: ``(key, federation, cohort_size) -> (ids[K], use[K, M])``, or None for
        uniform sampling without replacement.
    """

    name: str = "fedavg"
    needs_projectors: bool = False
    init_shared: Callable[[Model, Params], PyTree] = lambda model, params: ()
    init_client: Callable[[Model, Params], PyTree] = lambda model, params: ()
    start: Callable[[Params, PyTree], Params] = lambda params, memory: params
    begin: Callable[[Client, Array], tuple[PyTree, Sums]] = lambda client, key: ((), {})
    forward: Callable[..., tuple[Outputs, Params]] = _forward
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
    deploy: Callable[[Params, PyTree, Federation], Params] = (
        lambda params, memory, federation: params
    )
    select: Callable[[Array, Federation, int], tuple[Array, Array]] | None = None


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


def chain(first: Method, second: Method) -> Method:
    """Both methods at once: losses add, gradients pass through first, then second.

    Contexts, memories, shared states and uploads become pairs. A hook that replaces
    something whole (forward, select) may be set in one of the two.

    Args:
      first: A method.
      second: Another.

    Returns:
      Their composition, named ``first+second``.

    Raises:
      ValueError: Both replace the forward pass or the choice of clients.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.chain(fc.methods.fedcmi(mu=0.0), fc.methods.fedprox(mu=0.1)).name
      'fedcmi+fedprox'
    """
    for hook in ("forward", "select"):
        set_by = [m.name for m in (first, second) if _is_set(m, hook)]
        if len(set_by) == 2:
            raise ValueError(
                f"chain: both {set_by[0]!r} and {set_by[1]!r} replace {hook!r}; "
                "chain methods of which at most one does"
            )
    pair = (first, second)

    def split(client: Client, i: int) -> Client:
        return client._replace(shared=client.shared[i], memory=client.memory[i])

    def start(params: Params, memory: PyTree) -> Params:
        return second.start(first.start(params, memory[0]), memory[1])

    def begin(client: Client, key: Array) -> tuple[PyTree, Sums]:
        keys = jax.random.split(key)
        contexts, sums = zip(
            *(m.begin(split(client, i), keys[i]) for i, m in enumerate(pair)),
            strict=True,
        )
        return contexts, sums[0] | sums[1]

    def forward(client, params, batch_stats, batch, context):
        i = 1 if _is_set(second, "forward") else 0
        return pair[i].forward(split(client, i), params, batch_stats, batch, context[i])

    def loss(client, outputs, batch, context):
        terms, sums = zip(
            *(
                m.loss(split(client, i), outputs, batch, context[i])
                for i, m in enumerate(pair)
            ),
            strict=True,
        )
        return terms[0] + terms[1], sums[0] | sums[1]

    def grads(client, grads, step, context):
        keys = jax.random.split(step.key)
        for i, m in enumerate(pair):
            own_step = step._replace(key=keys[i])
            grads = m.grads(split(client, i), grads, own_step, context[i])
        return grads

    def step_end(client, step, context):
        return tuple(
            m.step_end(split(client, i), step, c) if m.step_end else c
            for i, (m, c) in enumerate(zip(pair, context, strict=True))
        )

    def epoch_end(client, params, batch_stats, context):
        return tuple(
            m.epoch_end(split(client, i), params, batch_stats, c) if m.epoch_end else c
            for i, (m, c) in enumerate(zip(pair, context, strict=True))
        )

    def finish(client, finished, context):
        uploads, memories = zip(
            *(
                m.finish(split(client, i), finished, context[i])
                for i, m in enumerate(pair)
            ),
            strict=True,
        )
        return uploads, memories

    def deploy(params, memory, federation):
        params = first.deploy(params, memory[0], federation)
        return second.deploy(params, memory[1], federation)

    return Method(
        name=f"{first.name}+{second.name}",
        needs_projectors=first.needs_projectors or second.needs_projectors,
        init_shared=lambda *a: tuple(m.init_shared(*a) for m in pair),
        init_client=lambda *a: tuple(m.init_client(*a) for m in pair),
        start=start,
        begin=begin,
        forward=forward
        if _is_set(first, "forward") or _is_set(second, "forward")
        else _forward,
        loss=loss,
        grads=grads,
        step_end=step_end if first.step_end or second.step_end else None,
        epoch_end=epoch_end if first.epoch_end or second.epoch_end else None,
        finish=finish,
        merge=lambda shared, upload, cohort: tuple(
            m.merge(s, u, cohort) for m, s, u in zip(pair, shared, upload, strict=True)
        ),
        owned=lambda weights, a: second.owned(first.owned(weights, a), a),
        deploy=deploy,
        select=first.select or second.select,
    )


def check_not_negative(**values: float | Array) -> None:
    """Refuses negative or NaN coefficients; traced values pass unchecked.

    Raises:
      ValueError: Names the argument, its value and the remedy.
    """
    for name, value in values.items():
        if not isinstance(value, Tracer) and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name}: {value} is not >= 0; give 0 or more")


def _is_set(method: Method, hook: str) -> bool:
    return getattr(method, hook) is not Method._field_defaults[hook]
