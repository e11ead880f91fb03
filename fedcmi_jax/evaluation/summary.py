"""What a metrics line says of an evaluation and of training, as plain numbers."""

import numpy as np

from fedcmi_jax.evaluation.metrics import Evaluation
from fedcmi_jax.types import Sums


def class_accuracies(table: np.ndarray) -> np.ndarray:
    """[C] recall of each class; NaN for a class without samples."""
    totals = table.sum(1)
    safe = np.maximum(totals, 1)
    return np.where(totals > 0, np.diagonal(table) / safe, np.nan)


def macro_f1(table: np.ndarray) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN), of classes seen or predicted."""
    hits = np.diagonal(table)
    denominator = table.sum(0) + table.sum(1)
    known = denominator > 0
    scores = 2 * hits[known] / denominator[known]
    return float(scores.mean()) if known.any() else float("nan")


def summarise(evaluation: Evaluation) -> dict[str, float | list[float]]:
    """Reads the metrics off an evaluation; fractions in [0, 1], on the host.

    Returns:
      Every view's accuracy under its name; ``macro_f1``, ``worst_class`` and
      ``per_class`` of the fused logits; ``client_mean``, ``client_std``,
      ``client_min``, ``client_p10``, ``client_median`` and ``client_max`` of the
      clients' accuracies, if there are any; ``personal_mean``... of their own models',
      if they have any; the user's own metrics under their names.
    """
    tables = {name: np.asarray(t) for name, t in evaluation.tables.items()}
    result: dict[str, float | list[float]] = {
        name: float(np.trace(t) / max(t.sum(), 1)) for name, t in tables.items()
    }
    per_class = class_accuracies(tables["acc"])
    result["macro_f1"] = macro_f1(tables["acc"])
    result["worst_class"] = float(np.nanmin(per_class))
    result["per_class"] = [float(a) for a in per_class]
    if evaluation.client_accuracy is not None:
        result |= spread("client", np.asarray(evaluation.client_accuracy))
    if evaluation.personal_accuracy is not None:
        result |= spread("personal", np.asarray(evaluation.personal_accuracy))
    for name, (total, weight) in evaluation.own.items():
        result[name] = float(total) / float(weight) if float(weight) else float("nan")
    return result


def spread(name: str, values: np.ndarray) -> dict[str, float]:
    """How a number spreads over clients: what a metrics line has of it.

    Args:
      name: Prefix of the columns.
      values: [N]; those that are not finite are left out.

    Returns:
      ``{name}_mean``, ``_min``, ``_p10`` (10th percentile), ``_median``, ``_max`` and,
      of two values or more, ``_std``: the sample deviation (n - 1). Nothing of none.

    Example:
      >>> spread("a", np.array([0.0, 1.0, np.nan]))["a_std"]
      0.7071067811865476
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return {}
    result = {
        f"{name}_mean": float(values.mean()),
        f"{name}_min": float(values.min()),
        f"{name}_p10": float(np.quantile(values, 0.1)),
        f"{name}_median": float(np.median(values)),
        f"{name}_max": float(values.max()),
    }
    if values.size > 1:
        result[f"{name}_std"] = float(values.std(ddof=1))
    return result


COUNT_PREFIX = "clients_"
"""Training metrics with this prefix count clients: their sum is reported."""


def read_sums(sums: Sums) -> dict[str, float]:
    """Training metrics on the host: means, or sums for counts of clients.

    A mean over nothing (weight 0) is left out.
    """
    result = {}
    for name, (total, weight) in sums.items():
        if name.startswith(COUNT_PREFIX):
            result[name] = float(total)
        elif float(weight) > 0:
            result[name] = float(total) / float(weight)
    return result
