"""The partitions of a report: who holds what, dealt again from the configurations."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fedcmi_jax.data.tfds import as_prepared
from fedcmi_jax.experiment.config import from_dict
from fedcmi_jax.results.blocks import Block, Text
from fedcmi_jax.results.collect import Entry
from fedcmi_jax.results.drawing import figure
from fedcmi_jax.results.holdings import Holdings, holdings
from fedcmi_jax.results.holdings_figure import figure_of

MOST_PARTITIONS = 4
"""Partitions that are drawn; of more, the first ones."""

DEALT_BY = (
    *("dataset", "partition", "clients", "multimodal_fraction", "modalities"),
    *("missing_fraction", "label_noise", "label_noise_kind", "label_noise_min"),
    *("noisy_clients", "validation_fraction", "client_test_fraction"),
    *("holdout_clients", "fixed_partition", "map_seeds", "seed"),
)
"""Fields that say who holds what."""


class Dealt(NamedTuple):
    """A partition of some entries.

    Attributes:
      label: The first of them.
      labels: All of them.
      seed: Whose partition it is.
      found: Who holds what; None: see ``refusal``.
      refusal: Why it could not be dealt again.
    """

    label: str
    labels: tuple[str, ...]
    seed: int
    found: Holdings | None
    refusal: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; () where they are not known."""
        return self.found.class_names if self.found is not None else ()


def deal(entries: Sequence[Entry]) -> list[Dealt]:
    """Deals the samples of every entry's first seed again, as training did.

    Entries of the same data and partition share one. What cannot be dealt, such as data
    that are not here, has a line that says why.

    Args:
      entries: The entries.
    """
    found: list[tuple[Any, list[Entry]]] = []
    for entry in entries:
        key = {name: entry.config.get(name) for name in DEALT_BY}
        key["parts"] = _parts(entry)
        for other, own in found:
            if other == key:
                own.append(entry)
                break
        else:
            found.append((key, [entry]))
    return [_deal(own) for _, own in found[:MOST_PARTITIONS]]


def _parts(entry: Entry) -> str:
    parts = entry.record.get("parts")
    return str(parts.get("dataset", "")) if isinstance(parts, dict) else ""


def _deal(entries: Sequence[Entry]) -> Dealt:
    first = entries[0]
    labels, seed = tuple(e.label for e in entries), min(first.planned)
    if _parts(first):
        return Dealt(first.label, labels, seed, None, "the data are a script's own")
    try:
        config = from_dict(first.config)
        config = dataclasses.replace(
            config,
            seed=seed,
            seeds=1,
            map_seeds=False,
            fixed_partition=config.fixed_partition or config.map_seeds,
        )
        with as_prepared():  # a report downloads nothing
            return Dealt(first.label, labels, seed, holdings(config))
    except (ValueError, OSError, AttributeError, TypeError) as error:
        return Dealt(first.label, labels, seed, None, " ".join(str(error).split()))


def partition_section(dealt: Sequence[Dealt]) -> Iterator[Block]:
    """A heat map of each partition, or a line on why there is none.

    Args:
      dealt: The partitions.
    """
    for i, one in enumerate(dealt, 1):
        whose = "" if len(dealt) == 1 else f" ({', '.join(one.labels)})"
        if one.found is None:
            yield Text(f"The partition{whose} cannot be shown: {one.refusal}")
            continue
        found = one.found
        yield figure(
            f"partition-{i}",
            f"Seed {one.seed}{whose}: training samples of every class at every client, "
            "and which modalities it has. Other seeds deal anew unless "
            "fixed_partition says otherwise.",
            f"Heat map of {len(found.counts)} clients and {len(found.class_names)} "
            "classes.",
            functools.partial(figure_of, found),
        )
