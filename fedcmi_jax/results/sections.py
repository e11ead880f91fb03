"""The sections of a report; each is left out where its data are not there."""

import re
from collections.abc import Callable, Iterator, Sequence

from fedcmi_jax.evaluation.glossary import explain, is_share
from fedcmi_jax.results import (
    class_figures,
    each_client,
    figures,
    provenance,
    tables,
)
from fedcmi_jax.results.blocks import Block, Code, Section, Table, Text
from fedcmi_jax.results.collect import MEASURE, Entry, Results, columns_of, last
from fedcmi_jax.results.comparison import (
    MOST_TOGETHER,
    Difference,
    Group,
    Pairing,
    differences,
    groups,
)
from fedcmi_jax.results.curves import modalities
from fedcmi_jax.results.drawing import looks
from fedcmi_jax.results.labels import text
from fedcmi_jax.results.partitions import Dealt, partition_section
from fedcmi_jax.results.statistics import moments

WHY_T = (
    "Intervals are t intervals: mean ± t s / √n of the n differences, seed by seed, "
    "with t of n - 1 degrees of freedom. n is the number of seeds, not of samples or "
    "clients. They assume that the differences are about normal; percentile bootstraps "
    "of so few seeds would leave zero out too often. With 2 or 3 seeds only large "
    "differences stand out. p is of the t test that the mean difference is 0, and is "
    "adjusted by Holm's rule for the number of rows of its table."
)


MOST_SENTENCES = 3
"""Differences that are said in words, too."""


class Context:
    """What the sections are made from.

    Args:
      results: The entries.
      pairs: Who is compared with whom.
      target: Accuracy for the tables of cost; None: each baseline's final mean.
      dealt: The partitions of the entries.
    """

    def __init__(
        self,
        results: Results,
        pairs: Pairing,
        target: float | None,
        dealt: Sequence[Dealt],
    ):
        self.results, self.pairs, self.target = results, pairs, target
        self.dealt = dealt
        self.trained = tuple(e for e in results.entries if e.seeds)
        self.groups = groups(results._replace(entries=self.trained), pairs)
        self.looks = self._looks()
        self.modalities = modalities(self.trained)

    def _looks(self) -> dict[str, dict]:
        """One look per value on the baseline's axis where there are several groups."""
        axis = self.pairs.axis
        if len(self.groups) < 2 or axis is None:
            return looks([entry.label for entry in self.trained])
        names = {e.label: text(e.values.get(axis)) for e in self.trained}
        kinds = list(dict.fromkeys(names.values()))
        if len(kinds) < max(len(group.entries) for group in self.groups):
            found = (looks([e.label for e in group.entries]) for group in self.groups)
            return {label: look for group in found for label, look in group.items()}
        own = looks(kinds)
        return {label: own[kind] for label, kind in names.items()}


def sections(context: Context) -> list[Section]:
    """All sections that have something in them, in order."""
    makers: Sequence[tuple[str, Callable[[Context], Iterator[Block]]]] = (
        ("Results", _results),
        (f"Differences to {context.pairs.name}", _differences),
        ("Accuracy over rounds", _rounds),
        ("Classes", _classes),
        ("Imbalance, dominance and temperatures", _imbalance),
        ("Clients", _clients),
        ("Who holds what", _partition),
        ("Rounds, seconds and bytes", _cost),
        ("Machine, versions and commands", _provenance),
        ("What the names mean", _names),
    )
    found = (Section(title, list(make(context))) for title, make in makers)
    return [section for section in found if section.blocks]


def _results(context: Context) -> Iterator[Block]:
    for line in provenance.warnings(context.results.entries):
        yield Text(line, is_warning=True)
    if not context.trained:
        yield Text("Nothing has been evaluated yet.", is_warning=True)
        return
    what = _head(context.results.measure, tables.measures(context.trained))
    found = _compared(context, context.results.measure)
    for difference in found if len(found) <= MOST_SENTENCES else ():
        yield Text(headline(difference, what))
    column = context.results.measure
    for entries in _by_modalities(context):
        extra = [] if column in tables.measures(entries) else [column]
        yield tables.final(context.results._replace(entries=entries), extra)
    if (chosen := tables.best(context.results)) is not None:
        yield chosen


def _by_modalities(context: Context) -> list[tuple[Entry, ...]]:
    """The trained entries by their modalities, whose columns a table has in common."""
    found: dict[tuple[str, ...], list[Entry]] = {}
    for entry in context.trained:
        found.setdefault(tuple(modalities([entry])), []).append(entry)
    return [tuple(entries) for entries in found.values()]


def headline(found: Difference, what: str) -> str:
    """A difference in a sentence.

    Args:
      found: The difference.
      what: The measure in words.

    Example:
      >>> from fedcmi_jax.results.statistics import paired
      >>> pair = paired([0.5, 0.6, 0.7], [0.4, 0.5, 0.5])
      >>> headline(Difference("a", "b", "acc", (0, 1, 2), pair), "accuracy")
      'a less b: +13.3 points of accuracy, 95 % t interval -1.0 to +27.7 over 3 \
seeds; zero is in it.'
    """
    head = f"{found.entry} less {found.baseline}"
    pair = found.paired
    if pair is None:
        return f"{head}: no finished seed in common, so no paired difference."
    points = "points of " if is_share(found.column) else ""
    head += f": {tables.points(pair.mean, found.column)} {points}{what}"
    if pair.low is None or pair.high is None:
        return f"{head}; one finished seed in common, so no interval."
    where = "in it" if pair.low <= 0 <= pair.high else "outside"
    low, high = (tables.points(end, found.column) for end in (pair.low, pair.high))
    return (
        f"{head}, 95 % t interval {low} to {high} over {pair.n} seeds; zero is {where}."
    )


def _compared(context: Context, column: str) -> list[Difference]:
    return differences(context.trained, context.pairs, column)


def _differences(context: Context) -> Iterator[Block]:
    column = context.results.measure
    found = _compared(context, column)
    if not found:
        return
    yield Text(WHY_T)
    heads = tables.measures(context.trained)
    yield tables.compared(found, _head(column, heads))
    yield figures.intervals(
        "differences",
        f"{_head(column, heads)}: mean difference to the baseline with its 95 % t "
        "interval.",
        f"Differences of {len(found)} entries to their baseline; the table above has "
        "the numbers.",
        found,
        context.looks,
    )
    for name in ("acc", *(f"acc_{m}_zero" for m in context.modalities)):
        if name != column:
            own = [d for d in _compared(context, name) if d.paired]
            if own:
                yield tables.compared(own, _head(name, heads))


def _head(column: str, heads: dict[str, str]) -> str:
    """A measure in words."""
    if column == "acc":
        return "fused accuracy"
    if column.startswith("acc_") and column in heads:
        return f"accuracy of {heads[column]}"
    return heads.get(column, column)


def _rounds(context: Context) -> Iterator[Block]:
    for i, group in enumerate(context.groups, 1):
        alone = modalities(group.entries)
        panels = [("acc", "fused"), *((f"acc_{m}_zero", f"{m} alone") for m in alone)]
        yield figures.over_rounds(
            f"rounds-{i}",
            f"{_titled(group)}Test accuracy, fused and of one modality alone: mean "
            "over the seeds, with a band of one sample deviation.",
            f"Accuracy over rounds of {_listed(group)}.",
            group.entries,
            panels,
            context.looks,
            scale=100,
            unit="accuracy (%)",
        )


def _titled(group: Group) -> str:
    return f"{group.title}. " if group.title else ""


def _listed(group: Group) -> str:
    return ", ".join(entry.label for entry in group.entries)


def _classes(context: Context) -> Iterator[Block]:
    names = {d.label: d.class_names for d in context.dealt if d.class_names}
    for i, group in enumerate(context.groups, 1):
        by_count: dict[int, list[Entry]] = {}
        for entry in group.entries:
            table = class_figures.class_recalls(entry)
            if table is not None:
                by_count.setdefault(table.shape[1], []).append(entry)
        for count, entries in by_count.items():
            known = next((names[e.label] for e in entries if e.label in names), ())
            called = (
                list(known) if len(known) == count else list(map(str, range(count)))
            )
            yield class_figures.per_class(
                f"classes-{i}" if len(by_count) == 1 else f"classes-{i}-{count}",
                f"{_titled(group)}Recall of every class on the test split at the last "
                "round: mean over the seeds, with a line of one sample deviation.",
                f"Recall of {count} classes; the table has the numbers.",
                entries,
                called,
                context.looks,
            )
            yield tables.per_class(entries, called)


IMBALANCE = {
    "imbalance": "imbalance (r-bar)",
    "temperature_mean": "mean temperature",
    "temperature_min": "lowest temperature",
}
"""Column -> title of its panel."""


def _imbalance(context: Context) -> Iterator[Block]:
    found = [group.entries for group in context.groups]
    measured = [e for e in context.trained if last(e, "imbalance")]
    own = context.looks
    if len(context.groups) > 1 and len(measured) <= MOST_TOGETHER:
        found, own = [tuple(measured)], looks([e.label for e in measured])
    for i, group in enumerate(found, 1):
        entries = [e for e in group if e in measured]
        if not entries:
            continue
        columns = columns_of(entries)
        panels = [(c, title) for c, title in IMBALANCE.items() if c in columns]
        dominant = (re.fullmatch("clients_dominant_(.+)", c) for c in columns)
        panels += [(m[0], f"clients led by {m[1]}") for m in dominant if m]
        yield figures.over_rounds(
            f"imbalance-{i}",
            "r-bar: mean imbalance ratio of the first modality against the last, 1 in "
            "balance. Temperatures: class-wise, of the "
            "cohort. Led by: clients of the cohort whose teacher is that modality.",
            "Imbalance ratio, temperatures and dominant modalities over rounds.",
            entries,
            panels,
            own,
        )


CLIENTS = {
    "client": "Expected accuracy of every client: test recall weighted by its own "
    "class shares, with its own modalities.",
    "personal": "Accuracy of the clients' own models.",
    "client_test": "Accuracy on each client's own test samples.",
    "holdout": "Accuracy of clients that never took part.",
}
"""Prefix of columns -> what they are."""


def _clients(context: Context) -> Iterator[Block]:
    for prefix, meaning in CLIENTS.items():
        columns = [f"{prefix}_{ending}" for ending in figures.SPREAD]
        entries = [e for e in context.trained if all(last(e, c) for c in columns)]
        if not entries:
            continue
        yield Text(f"{meaning} At the last round.")
        yield figures.client_spread(
            f"clients-{prefix}".replace("_", "-"),
            "How accuracy spreads over the clients, mean over the seeds; thick: "
            "between the 10th percentile and the highest.",
            "Spread of accuracy over clients; the table has the numbers.",
            entries,
            prefix,
            context.looks,
        )
        yield tables.clients(entries, prefix)
        every = each_client.distribution(
            f"each-{prefix}".replace("_", "-"),
            "Distribution of accuracy over the clients, of all seeds together.",
            "Share of clients with at most an accuracy, a line for each entry.",
            entries,
            prefix,
            context.looks,
        )
        if every is not None:
            yield every


def _partition(context: Context) -> Iterator[Block]:
    yield from partition_section(context.dealt)


def _cost(context: Context) -> Iterator[Block]:
    measure = context.results.measure
    column = measure if is_share(measure) else MEASURE  # only shares have a target
    targets = {e.label: _target(context, e, column) for e in context.trained}
    known = {label: target for label, target in targets.items() if target is not None}
    if known:
        whose = "the given target"
        if context.target is None:
            whose = "the final mean of the entry's baseline"
        yield Text(
            f"When {_head(column, tables.measures(context.trained))} first reached "
            f"{whose}. Seconds are wall-clock time of training and evaluation on the "
            "machines below, compiling included, so they compare only runs of one "
            "machine. Bytes are those received and sent by the clients of all cohorts, "
            "uncompressed."
        )
        yield tables.to_accuracy(context.trained, column, known)
    if (found := tables.cost(context.trained)) is not None:
        yield found


def _target(context: Context, entry: Entry, column: str) -> float | None:
    if context.target is not None:
        return context.target
    other = context.pairs.of.get(entry.label) or entry
    values = list(last(other, column).values())
    return moments(values)[0] if values else None


def _provenance(context: Context) -> Iterator[Block]:
    entries = context.results.entries
    yield provenance.machines(entries)
    yield Text("Trained with:")
    if context.results.sources:
        yield Code("\n".join(source.strip() for source in context.results.sources))
    else:
        yield Code("\n".join(provenance.how(entry) for entry in entries))
    if commands := provenance.resume_commands(entries):
        yield Text("Unfinished runs go on with:")
        yield Code("\n".join(commands))


def _names(context: Context) -> Iterator[Block]:
    heads = tables.measures(context.trained)
    present = set(columns_of(context.trained))
    rows = [
        [head, column, explain(column).meaning]
        for column, head in heads.items()
        if column in present
    ]
    if rows:
        yield Table("The measures of this report.", ["", "column", "meaning"], rows)
