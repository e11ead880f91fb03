"""Two methods at once."""

import dataclasses
from typing import Any

import jax

from fedcmi_jax.methods.base import Method, is_set
from fedcmi_jax.methods.seen import Client, Cohort, Selection, Server
from fedcmi_jax.types import Array, Model, Params, PyTree, Sums

EXCLUSIVE = {
    "forward": "there is one forward pass per step",
    "select": "there is one cohort per round",
    "start": "a client starts from one set of parameters",
    "trained": "a step trains one set of blocks",
    "weight": "a client has one weight in the mean",
    "server_update": "there is one step of the server per round",
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
      ValueError: Both replace the same exclusive hook, or they train with different
        momenta.

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
    owner = {hook: int(is_set(second, hook)) for hook in EXCLUSIVE}
    composed = Chain(first, second, owner)
    has = {h for h in HOOKS if is_set(first, h) or is_set(second, h)}
    if has & {"merge", "server_update"}:
        has.add("finish")  # they take its pair of uploads apart
    hooks = {hook: getattr(composed, hook) for hook in HOOKS if hook in has}
    return Method(
        name=f"{first.name}+{second.name}",
        needs_projectors=first.needs_projectors or second.needs_projectors,
        momentum=wanted.pop() if wanted else first.momentum,
        personal=tuple(dict.fromkeys((*first.personal, *second.personal))),
        **{name: getattr(composed, name) for name in PAIRED} | hooks,
    )


PAIRED = ("init", "begin")
"""Hooks that a chain always has: they make and take apart the pairs."""

HOOKS = (*EXCLUSIVE, "check", "loss", "update", "epoch_end", "finish", "merge")
"""Hooks that a chain has where one of the two has them."""


@dataclasses.dataclass(frozen=True)
class Chain:
    """The hooks of a chain.

    Attributes:
      first: Whose hooks come first.
      second: Whose come second.
      owner: Exclusive hook -> whose it is, 0 or 1.
    """

    first: Method
    second: Method
    owner: dict[str, int]

    @property
    def pair(self) -> tuple[Method, Method]:
        """Both."""
        return self.first, self.second

    def of_owner(self, hook: str) -> tuple[int, Any]:
        """Whose hook it is, and the hook."""
        i = self.owner[hook]
        return i, getattr(self.pair[i], hook)

    def check(self, model: Model, clients_per_round: int) -> None:
        """Both must be defined."""
        for m in self.pair:
            m.check(model, clients_per_round)

    def init(self, model: Model, params: Params, num_clients: int) -> Any:
        """Pairs of server-side states and of memories."""
        states = [m.init(model, params, num_clients) for m in self.pair]
        return tuple(zip(*states, strict=True))

    def select(self, server: Server, key: Array) -> Selection:
        """Its owner chooses; the other's state and memory stay."""
        i, select = self.of_owner("select")
        chosen = select(_server_part(server, i), key)
        return chosen._replace(
            shared=_with(server.shared, i, chosen.shared),
            memory=_with(server.memory, i, chosen.memory),
        )

    def start(self, params: Params, memory: PyTree) -> Params:
        """Its owner's."""
        i, start = self.of_owner("start")
        return start(params, memory[i])

    def begin(self, client: Client, key: Array) -> tuple[PyTree, Sums]:
        """Pairs of contexts; each has a key of its own."""
        keys = jax.random.split(key)
        (a, sums_a), (b, sums_b) = (
            m.begin(_part(client, i), keys[i]) for i, m in enumerate(self.pair)
        )
        return (a, b), sums_a | sums_b

    def forward(self, client, params, batch_stats, batch, context):
        """Its owner's."""
        i, forward = self.of_owner("forward")
        return forward(_part(client, i), params, batch_stats, batch, context[i])

    def loss(self, client, outputs, batch, context):
        """The sum of both."""
        (a, sums_a), (b, sums_b) = (
            m.loss(_part(client, i), outputs, batch, context[i])
            for i, m in enumerate(self.pair)
        )
        return a + b, sums_a | sums_b

    def update(self, client, grads, step, context):
        """The first's gradients pass through the second."""
        keys = jax.random.split(step.key)
        contexts = []
        for i, m in enumerate(self.pair):
            own = step._replace(key=keys[i])
            grads, new = m.update(_part(client, i), grads, own, context[i])
            contexts.append(new)
        return grads, tuple(contexts)

    def trained(self, client: Client, done: Array) -> Params:
        """Its owner's."""
        i, trained = self.of_owner("trained")
        return trained(_part(client, i), done)

    def epoch_end(self, client, params, batch_stats, context):
        """Both, where they have it."""
        return tuple(
            m.epoch_end(_part(client, i), params, batch_stats, context[i])
            if m.epoch_end
            else context[i]
            for i, m in enumerate(self.pair)
        )

    def finish(self, client, local_update, context):
        """Pairs of uploads and of memories."""
        ends = [
            m.finish(_part(client, i), local_update, context[i])
            for i, m in enumerate(self.pair)
        ]
        return tuple(zip(*ends, strict=True))

    def weight(self, client, context):
        """Its owner's."""
        i, weight = self.of_owner("weight")
        return weight(_part(client, i), context[i])

    def merge(self, cohort: Cohort, upload: PyTree) -> tuple[PyTree, PyTree]:
        """Pairs of server-side states and of memories."""
        (shared, memory), (other_shared, other_memory) = (
            m.merge(_part(cohort, i), upload[i]) for i, m in enumerate(self.pair)
        )
        return (shared, other_shared), (memory, other_memory)

    def server_update(self, cohort: Cohort, mean_delta: Params, upload: PyTree):
        """Its owner's; the other's state stays."""
        i, server_update = self.of_owner("server_update")
        params, shared = server_update(_part(cohort, i), mean_delta, upload[i])
        return params, _with(cohort.shared, i, shared)


def _part(view: Any, i: int) -> Any:
    """What one of the two sees of a client or a cohort."""
    return view._replace(shared=view.shared[i], memory=view.memory[i])


def _server_part(server: Server, i: int) -> Server:
    """What one of the two sees of the server."""

    def mapped(fn, ids, participation):
        return server.map(lambda c, key: fn(_part(c, i), key), ids, participation)

    return _part(server, i)._replace(map=mapped)


def _with(pair: tuple, i: int, new: Any) -> tuple:
    """The pair with its part ``i`` replaced."""
    return tuple(new if j == i else old for j, old in enumerate(pair))
