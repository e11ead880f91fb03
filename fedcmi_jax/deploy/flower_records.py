"""What travels, as Flower's records: arrays, metrics, settings; nothing is pickled."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, RecordDict

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"
"""Names of the records of a message."""

REFUSED = "refused"
"""Entry of the settings with which a client refuses: one line that says why."""


def array_record(arrays: Mapping[str, np.ndarray]) -> "ArrayRecord":
    """Arrays as a record of Flower."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(np.asarray(x)) for name, x in arrays.items()})


def arrays_of(content: "RecordDict") -> dict[str, np.ndarray]:
    """The arrays of a message.

    Raises:
      ValueError: There are none, or one cannot be read; names it.
    """
    if ARRAYS not in content.array_records:
        raise ValueError("the message has no arrays")
    found = {}
    for name, array in content.array_records[ARRAYS].items():
        try:
            found[name] = array.numpy()
        except Exception as error:  # whatever NumPy makes of bytes from elsewhere
            what = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"array {name} cannot be read: {what}") from None
        if not isinstance(found[name], np.ndarray):
            raise ValueError(f"array {name} is no array")
    return found


def of_order(record: "ArrayRecord", run: str, accepted: int) -> "RecordDict":
    """What a client is told for a round, or at the end."""
    from flwr.app import ConfigRecord, RecordDict

    config = ConfigRecord({"run": run, "accepted": accepted})
    return RecordDict({ARRAYS: record, CONFIG: config})


def order(content: "RecordDict") -> tuple[dict[str, np.ndarray], str, int]:
    """The inverse of ``of_order``: arrays, name of the run, last accepted round.

    Raises:
      ValueError: Something is missing.
    """
    config = content.config_records.get(CONFIG, {})
    run, accepted = config.get("run"), config.get("accepted")
    if not isinstance(run, str) or not isinstance(accepted, int):
        raise ValueError("the message does not say which run it is of")
    return arrays_of(content), run, accepted


def of_card(card: Mapping[str, Any]) -> "RecordDict":
    """A client's card."""
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({CONFIG: ConfigRecord(dict(card))})


def card(content: "RecordDict") -> dict[str, Any]:
    """The inverse of ``of_card``.

    Raises:
      ValueError: The client refused; its reason.
    """
    config = dict(content.config_records.get(CONFIG, {}))
    if REFUSED in config:
        raise ValueError(" ".join(str(config[REFUSED]).split()))
    return config


def of_answer(
    arrays: Mapping[str, np.ndarray], metrics: Mapping[str, Any]
) -> "RecordDict":
    """What a client sends after its training."""
    from flwr.app import MetricRecord, RecordDict

    record = MetricRecord(dict(metrics))
    return RecordDict({ARRAYS: array_record(arrays), METRICS: record})


def answer(content: "RecordDict") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The inverse of ``of_answer``.

    Raises:
      ValueError: The client refused, or there is no answer in it.
    """
    card(content)
    return arrays_of(content), dict(content.metric_records.get(METRICS, {}))


def of_refusal(reason: str) -> "RecordDict":
    """Why a client does not do what it was asked."""
    return of_card({REFUSED: reason})


def nothing() -> "RecordDict":
    """Done."""
    return of_card({})
