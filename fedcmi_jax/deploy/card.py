"""How a client introduces itself, and why a server refuses it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedcmi_jax._version import __version__
from fedcmi_jax.deploy.client import Samples, Shapes
from fedcmi_jax.deploy.plan import Plan
from fedcmi_jax.deploy.server import Table
from fedcmi_jax.experiment.arrays import describe

TERMS = ("version", "plan", "arrays")
"""What must be the same on both sides."""


def terms_of(plan: Plan, shapes: Shapes) -> dict[str, str]:
    """Version of the package, digest of the plan, digest of what would be sent."""
    text = repr((describe(shapes.received), describe(shapes.answer)))
    arrays = hashlib.sha256(text.encode()).hexdigest()
    return {"version": __version__, "plan": plan.digest, "arrays": arrays}


def card_of(terms: Mapping[str, str], id: int, samples: Samples) -> dict[str, Any]:
    """A client's card: its terms, its id, and how much of what it has.

    Nothing else about its data leaves it before it trains.
    """
    count = len(samples.labels)
    return {
        **terms,
        "client": id,
        "train": count - samples.num_probe,
        "probe": samples.num_probe,
        "available": [int(x) for x in samples.available],
    }


def with_card(plan: Plan, terms: Mapping[str, str], table: Table, card: Any) -> Table:
    """The table with one client more, or that client's row renewed.

    Args:
      plan: The server's.
      terms: The server's.
      table: What it knows so far.
      card: What the client sent.

    Raises:
      ValueError: One line: the client has other terms, or its numbers cannot be.

    Example:
      >>> from fedcmi_jax.deploy import server
      >>> import fedcmi_jax as fc
      >>> from fedcmi_jax.deploy.plan import Plan
      >>> plan = Plan(fc.config.from_dict({}), 2, ("a",), {}, ("0", "1"))
      >>> terms = {"version": "1", "plan": "p", "arrays": "x"}
      >>> card = terms | {"client": 1, "train": 5, "probe": 0, "available": [1]}
      >>> with_card(plan, terms, server.no_table(plan), card).sizes.tolist()
      [0, 5]
      >>> with_card(plan, terms, server.no_table(plan), card | {"plan": "q"})
      Traceback (most recent call last):
      ValueError: client 1: its plan is q, the server's p
    """
    if not isinstance(card, Mapping):
        raise ValueError("a client sent no card")
    whose = f"client {_short(card.get('client'))}"
    for name in TERMS:
        if card.get(name) != terms[name]:
            raise ValueError(
                f"{whose}: its {name} is {_short(card.get(name))}, the server's "
                f"{_short(terms[name])}"
            )
    names = ("client", "train", "probe", "available")
    values: list[Any] = [card.get(name) for name in names]
    id, train, probe, available = values
    if not _is_count(id) or id >= plan.clients:
        raise ValueError(f"{whose}: there are clients 0 to {plan.clients - 1}")
    if not _is_count(train) or not _is_count(probe) or train < 1:
        raise ValueError(
            f"{whose}: says it has {_short(train)} samples and {_short(probe)} held out"
        )
    is_list = isinstance(available, list) and len(available) == len(plan.modalities)
    known = is_list and all(_is_count(x) and x <= 1 for x in available)
    if not known or not any(available):
        raise ValueError(
            f"{whose}: says {_short(available)} of its modalities; there are "
            f"{len(plan.modalities)}, and it needs one"
        )
    new = Table(*(x.copy() for x in table))
    new.sizes[id], new.probe_sizes[id], new.available[id] = train, probe, available
    return new


def _is_count(value: Any) -> bool:
    limit = np.iinfo(np.int32).max
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def _short(value: Any) -> str:
    """In one line; a digest's first characters are enough to see that two differ."""
    return " ".join(str(value)[:12].split())
