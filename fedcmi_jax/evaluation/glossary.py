"""What the names of a run's metrics mean; docs/glossary.md has the same table."""

import re
from typing import NamedTuple


class Term(NamedTuple):
    """A name and what it means.

    Attributes:
      meaning: One line. "Accuracy" is a fraction of samples in [0, 1].
      shown: What the final summary of a run calls it; empty: it does not show it.
    """

    meaning: str
    shown: str = ""


SPREAD = "mean|std|min|p10|median|max"
"""Over clients: mean, sample deviation (n - 1), lowest, 10th percentile, median,
highest. A single client has no deviation."""

PLACEHOLDERS = {"{m}": "(.+)", "{spread}": f"({SPREAD})", "{name}": "(.+)"}
"""What stands in a column's name -> regular expression."""

GLOSSARY: dict[str, Term] = {
    "acc": Term(
        "accuracy on the test split, fused from all modalities that a sample has",
        "test accuracy",
    ),
    "acc_{m}_zero": Term(
        "fused accuracy from one modality, the features of all others zero",
        "alone",
    ),
    "acc_{m}_infiltration": Term(
        "fused accuracy from one modality, its infiltration projection in the place "
        "of the others",
        "with stand-in",
    ),
    "acc_{m}_head": Term(
        "accuracy of one modality's own classifier, without fusion",
        "own head",
    ),
    "acc_{m}_half": Term(
        "accuracy of one modality's own share of the fused logits, the bias shared out"
    ),
    "macro_f1": Term("mean over classes of 2 TP / (2 TP + FP + FN)", "macro F1"),
    "worst_class": Term(
        "lowest recall of a class: the share of its test samples found", "worst class"
    ),
    "per_class": Term("recall of every class on the test split, in class order"),
    "client_{spread}": Term(
        "over clients, test recall weighted by each one's own class shares, with its "
        "own modalities",
        "clients",
    ),
    "personal_{spread}": Term(
        "as for clients, each with its own model; for methods that keep one",
        "own models",
    ),
    "val_{name}": Term(
        "that number on samples of all clients held out of training for choices "
        "(validation_fraction)",
        "validation",
    ),
    "client_test_acc": Term(
        "accuracy on samples that clients kept as their own test sets, each with its "
        "client's modalities (client_test_fraction)",
        "own test samples",
    ),
    "client_test_{spread}": Term(
        "over clients, accuracy on each one's own test set; of its own model, for "
        "methods that keep one"
    ),
    "client_test_per_client": Term(
        "accuracy on each one's own test set, null without a sample, in the order of "
        "the federation's clients: the partition's but for holdout_clients"
    ),
    "holdout_acc": Term(
        "accuracy on the samples of clients that never took part, each with its "
        "client's modalities (holdout_clients)",
        "new clients",
    ),
    "holdout_{spread}": Term(
        "over the clients that never took part, accuracy on each one's samples"
    ),
    "holdout_per_client": Term(
        "accuracy on each one's samples, null without one, in the order of their "
        "numbers in the partition, which summary.json lists as holdout_clients"
    ),
    "seeds": Term("several seeds: the seeds that this line is over"),
    "per_seed": Term(
        "several seeds: every column's value of each seed, in their order"
    ),
    "round": Term("rounds done"),
    "seconds": Term("wall-clock time since the evaluation before, compiling included"),
    "cohort": Term("clients chosen in this round"),
    "rejected": Term("ids of clients whose update was not finite in this round"),
    "set_aside": Term("ids of clients whose update the guard found too long"),
    "skipped": Term(
        "true if the guard, too new to have a measure, dropped the whole round"
    ),
    "blocks_kept": Term("blocks that kept their value: too few owners to aggregate"),
    "bytes_down": Term(
        "bytes that this round's clients received: blocks that they own and that change"
    ),
    "bytes_up": Term("bytes that they sent, compressed where that is on"),
    "lost": Term("systems: clients of this round whose update did not arrive in time"),
    "partial": Term("systems: clients that took fewer steps, for the deadline"),
    "sim_seconds": Term("systems: simulated seconds of all rounds so far"),
    "epsilon": Term(
        "privacy: epsilon of the rounds so far at the run's delta, null without noise",
        "epsilon",
    ),
    "clip": Term("privacy: bound on the length of an update that held in this round"),
    "clipped": Term("privacy: share of the accepted updates that were longer than it"),
    "num_examples": Term("training samples behind this round's accepted updates"),
    "learning_rate": Term("the clients' learning rate in this round"),
    "loss_task": Term("mean cross-entropy of the fused logits over training steps"),
    "loss_head": Term("FedCMI: mean cross-entropy of the self-projections' heads"),
    "loss_infiltration": Term("FedCMI: mean distillation loss of the infiltration"),
    "imbalance": Term("FedCMI: mean r-bar of the first modality against the last"),
    "temperature_mean": Term("FedCMI: mean class-wise temperature T_c of the cohort"),
    "temperature_min": Term("FedCMI: mean of the clients' lowest temperatures"),
    "clients_multimodal": Term("clients of the cohort with several modalities"),
    "clients_dominant_{m}": Term("FedCMI: clients of the cohort whose teacher is m"),
    "loss_contrast": Term("MOON: contrast of features, mean over samples, in nats"),
    "loss_gap": Term("AGM: cross-entropy of the first modality less the second's"),
    "loss_prototype": Term("FedProto: mean distance of features to class prototypes"),
    "score_ratio": Term(
        "PMR, BMSFed: first modality's score of the true class over the last one's"
    ),
}
"""Column of metrics.jsonl -> what it is. {m} is a modality, {spread} one of SPREAD."""

SHARES = (
    *("acc", "acc_{m}_zero", "acc_{m}_infiltration", "acc_{m}_head", "acc_{m}_half"),
    *("macro_f1", "worst_class", "per_class", "client_{spread}", "personal_{spread}"),
    *("client_test_acc", "client_test_{spread}", "client_test_per_client"),
    *("holdout_acc", "holdout_{spread}", "holdout_per_client", "clipped"),
)
"""Names of accuracies, recalls, F1 and other shares, in [0, 1]; val_{name} is what
{name} is."""

NO_RESULTS = (
    *("per_class", "client_test_per_client", "holdout_per_client", "seeds", "per_seed"),
    *("round", "seconds", "cohort", "rejected", "set_aside", "skipped", "blocks_kept"),
)
"""Names of lists, and of what says how a run went and not how good its model is."""


def explain(column: str) -> Term:
    """Looks a column up.

    Args:
      column: A name in a line of metrics.jsonl.

    Returns:
      What it is.

    Raises:
      ValueError: The table does not have it.

    Example:
      >>> explain("acc_audio_zero").shown
      'alone'
    """
    return GLOSSARY[_name(column)]


def _name(column: str) -> str:
    """The name in ``GLOSSARY`` that a column has."""
    if column in GLOSSARY:  # a name in full comes before one with a place to fill
        return column
    for pattern in GLOSSARY:
        expression = re.escape(pattern)
        for place, filling in PLACEHOLDERS.items():
            expression = expression.replace(re.escape(place), filling)
        if re.fullmatch(expression, column):
            return pattern
    raise ValueError(f"column: {column!r} is not explained; add it to GLOSSARY")


def is_known(column: str) -> bool:
    """Whether the table has a column.

    Example:
      >>> is_known("acc_audio_zero"), is_known("hits")
      (True, False)
    """
    try:
        return _name(column) in GLOSSARY
    except ValueError:
        return False


def is_share(column: str) -> bool:
    """Whether a column's values are shares, which reports show in per cent.

    Args:
      column: A name in a line of metrics.jsonl; one that the table does not have is
        taken for no share.

    Example:
      >>> is_share("val_acc"), is_share("client_min"), is_share("loss_task")
      (True, True, False)
    """
    column = column.removeprefix("val_")
    return is_known(column) and _name(column) in SHARES


def is_result(column: str) -> bool:
    """Whether a column is a number by which methods can be compared.

    Raises:
      ValueError: The table does not have it.

    Example:
      >>> is_result("val_macro_f1"), is_result("seconds"), is_result("val_per_class")
      (True, False, False)
    """
    explain(column)
    return _name(column.removeprefix("val_")) not in NO_RESULTS
