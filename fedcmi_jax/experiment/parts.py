"""Objects of a script in the place of what a configuration names."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedcmi_jax.data.base import Dataset, check_dataset
from fedcmi_jax.evaluation.glossary import is_known
from fedcmi_jax.evaluation.views import Metric
from fedcmi_jax.methods.base import Method
from fedcmi_jax.types import Model

DIGESTED_ROWS = 64
"""Rows of an array, evenly spaced, by which a data set is known again."""


class Parts(NamedTuple):
    """What a script brings; None: what the configuration names.

    A run's folder says which parts were a script's, and goes on with the same only.

    Attributes:
      dataset: ``data.from_arrays`` and the like, in the place of ``config.dataset``.
      encoders: Modality -> flax module, in the place of ``config.encoder``.
      model: In the place of ``config.model`` and encoders.
      method: In the place of ``config.method``.
      metrics: Name -> ``(logits [B, C], labels [B], valid [B]) -> (sum, weight)``: one
        more column each of the metrics lines, and ``val_`` of it with validation.
    """

    dataset: Dataset | None = None
    encoders: Mapping[str, Any] | None = None
    model: Model | None = None
    method: Method | None = None
    metrics: Mapping[str, Metric] | None = None

    @property
    def resume(self) -> str:
        """What goes on with such a run; its folder follows."""
        if not self.names:
            return "fedcmi resume"
        return f"fc.resume with the same {', '.join(self.names)}:"

    def described(self) -> dict[str, str]:
        """Part -> what config.json says of it, to tell it from another.

        Of a data set its name and a digest (labels, shapes, a few rows), of a method
        its name, of metrics theirs; other models do not fit a run's checkpoints.
        """
        found = dict.fromkeys(self.names, "a script's own")
        if self.dataset is not None:
            found["dataset"] = f"{self.dataset.name} {digest(self.dataset)[:16]}"
        if self.method is not None:
            found["method"] = self.method.name
        if self.metrics is not None:
            found["metrics"] = ", ".join(sorted(self.metrics))
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Which parts a script brings.

        Example:
          >>> Parts(encoders={}).names
          ('encoders',)
        """
        given = self._asdict()
        return tuple(name for name in self._fields if given[name] is not None)


def check_parts(parts: Parts) -> None:
    """Refuses parts that exclude each other, or are none.

    Raises:
      ValueError: Names the part and the remedy.

    Example:
      >>> check_parts(Parts(method="fedavg"))
      Traceback (most recent call last):
      ValueError: method: 'fedavg' is no Method; give an object, or its name in the \
configuration
    """
    if parts.model is not None and parts.encoders is not None:
        raise ValueError("encoders: the model has its own; leave one of them out")
    kinds = {"dataset": Dataset, "model": Model, "method": Method}
    for name, kind in kinds.items():
        given = getattr(parts, name)
        if given is not None and not isinstance(given, kind):
            what = repr(given) if isinstance(given, str) else type(given).__name__
            raise ValueError(
                f"{name}: {what} is no {kind.__name__}; give an object, or its name "
                "in the configuration"
            )
    if parts.encoders is not None and not isinstance(parts.encoders, Mapping):
        raise ValueError("encoders: give a dict, modality -> flax module")
    if parts.metrics is not None:
        _check_metrics(parts.metrics)
    if parts.dataset is not None:
        check_dataset(parts.dataset)


def _check_metrics(metrics: Any) -> None:
    """Refuses what is no function per name; the model's programs check its values."""
    if not isinstance(metrics, Mapping) or not all(map(callable, metrics.values())):
        raise ValueError("metrics: give a dict, name -> function")
    for name in metrics:
        if not (isinstance(name, str) and name.isidentifier()):
            raise ValueError(f"metrics: {name!r} is no column's name; give a word")
        if is_known(name):
            raise ValueError(f"metrics: {name!r} is taken; choose another name")


def digest(dataset: Dataset) -> str:
    """SHA-256, in hexadecimal, over labels, shapes, and some rows of every array.

    Who has the samples, what they have, and whether neighbours overlap decide which are
    held out, so these are in it, too.
    """
    found = hashlib.sha256()
    for split in (dataset.train, dataset.test):
        for table in (split.labels, split.clients, split.available):
            if table is not None:
                found.update(np.ascontiguousarray(table).tobytes())
        if split.sequential:
            found.update(b"sequential")
        for x in jax.tree.leaves(split.inputs):
            found.update(f"{x.shape} {x.dtype}".encode())
            rows = np.linspace(0, len(x) - 1, DIGESTED_ROWS).astype(int)
            found.update(np.ascontiguousarray(x[rows]).tobytes())
    return found.hexdigest()


def check_same(
    where: str, recorded: Any, parts: Parts, *, to_read: bool = False
) -> None:
    """Refuses parts that are not those of a run.

    Args:
      where: The run's folder, for the message.
      recorded: ``Parts.described`` of the run, as its config.json has it.
      parts: What is given now.
      to_read: The run is looked at and does not go on: its metrics are not needed.

    Raises:
      ValueError: Others; says what to give.

    Example:
      >>> check_same("runs/a", {"dataset": "arrays 1f"}, Parts())
      Traceback (most recent call last):
      ValueError: runs/a: was trained from a script, with its own dataset; go on from \
Python: fc.resume or fc.load_run with the same dataset=...
    """
    needed, now = dict(recorded or {}), parts.described()
    if to_read:
        needed.pop("metrics", None)
        now.pop("metrics", None)
    if set(needed) == set(now):
        for name, before in needed.items():
            if now[name] != before:
                raise ValueError(
                    f"{where}: was trained with {name} {before}, not {now[name]}; give "
                    "the same, or start a new run"
                )
        return
    if not needed:
        raise ValueError(
            f"{where}: was trained with what its config.json names; leave out "
            f"{', '.join(now)}"
        )
    raise ValueError(
        f"{where}: was trained from a script, with its own {', '.join(needed)}; go on "
        f"from Python: fc.resume or fc.load_run with the same "
        f"{', '.join(f'{name}=...' for name in needed)}"
    )
