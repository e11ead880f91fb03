"""Two methods at once."""

import jax

from fedcmi_jax.methods.base import (
    Client,
    Method,
    Server,
    default_forward,
    is_set,
)
from fedcmi_jax.types import Array, Model, Params, PyTree, Sums

EXCLUSIVE = {
    "forward": "there is one forward pass per step",
    "select": "there is one cohort per round",
    "start": "a client starts from one set of parameters",
}
"""Hooks that only one of two chained methods may replace, and why."""


def chain(first: Method, second: Method) -> Method:
    """Both methods at once: losses add, gradients pass through first, then second.

    Contexts, memories, shared states and uploads become pairs. A hook that replaces
    something whole (``EXCLUSIVE``) may be set in one of the two.

    Args:
      first: A method.
      second: Another.

    Returns:
      Their composition, named ``first+second``.

    Raises:
      ValueError: Both replace the forward pass, the choice of clients, their start or
        who owns what, or they train with different momenta.

    Example:
      >>> import fedcmi_jax as fc
      >>> fc.chain(fc.methods.fedcmi(mu=0.0), fc.methods.fedprox(mu=0.1)).name
      'fedcmi+fedprox'
    """
    pair = (first, second)
    for hook, why in EXCLUSIVE.items():
        if is_set(first, hook) and is_set(second, hook):
            raise ValueError(
                f"chain: both {first.name!r} and {second.name!r} replace {hook!r} "
                f"({why}); chain methods of which at most one does"
            )
    wanted = {m.momentum for m in pair if is_set(m, "momentum")}
    if len(wanted) > 1:
        raise ValueError(
            f"chain: {first.name!r} trains with momentum {first.momentum}, "
            f"{second.name!r} with {second.momentum}; give both the same"
        )

    def split(client: Client, i: int) -> Client:
        return client._replace(shared=client.shared[i], memory=client.memory[i])

    def check(model: Model, clients_per_round: int) -> None:
        for m in pair:
            m.check(model, clients_per_round)

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
        i = 1 if is_set(second, "forward") else 0
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

    def part(server: Server, i: int) -> Server:
        def mapped(fn, ids, use):
            return server.map(lambda client, key: fn(split(client, i), key), ids, use)

        return server._replace(
            shared=server.shared[i], memory=server.memory[i], map=mapped
        )

    def probe(server, key):
        keys = jax.random.split(key)
        results = [
            m.probe(part(server, i), keys[i])
            if m.probe
            else (server.shared[i], server.memory[i])
            for i, m in enumerate(pair)
        ]
        return tuple(zip(*results, strict=True))

    def select(server, key):
        i = 1 if second.select else 0
        return pair[i].select(part(server, i), key)

    def conclude(shared, memory, cohort):
        results = [
            m.conclude(shared[i], memory[i], cohort)
            if m.conclude
            else (shared[i], memory[i])
            for i, m in enumerate(pair)
        ]
        return tuple(zip(*results, strict=True))

    def deploy(params, memory, federation):
        params = first.deploy(params, memory[0], federation)
        return second.deploy(params, memory[1], federation)

    return Method(
        name=f"{first.name}+{second.name}",
        needs_projectors=first.needs_projectors or second.needs_projectors,
        momentum=wanted.pop() if wanted else first.momentum,
        check=check,
        parts=tuple(part for m in pair for part in (m.parts or (m,))),
        init_shared=lambda *a: tuple(m.init_shared(*a) for m in pair),
        init_client=lambda *a: tuple(m.init_client(*a) for m in pair),
        start=start
        if is_set(first, "start") or is_set(second, "start")
        else Method._field_defaults["start"],
        begin=begin,
        forward=forward
        if is_set(first, "forward") or is_set(second, "forward")
        else default_forward,
        loss=loss,
        grads=grads,
        step_end=step_end if first.step_end or second.step_end else None,
        epoch_end=epoch_end if first.epoch_end or second.epoch_end else None,
        finish=finish,
        merge=lambda shared, upload, cohort: tuple(
            m.merge(s, u, cohort) for m, s, u in zip(pair, shared, upload, strict=True)
        ),
        owned=lambda weights, a: second.owned(first.owned(weights, a), a),
        probe=probe if first.probe or second.probe else None,
        select=select if first.select or second.select else None,
        conclude=conclude if first.conclude or second.conclude else None,
        deploy=deploy,
    )
