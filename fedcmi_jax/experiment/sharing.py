"""What experiments of one process have in common, so that it is made only once.

Data sets, models, algorithms and evaluations are kept by what they depend on. JAX
compiles a function object once for equal shapes: cells of a sweep that differ in the
seed, the partition or noise, and have one algorithm object, compile nothing anew.
"""

import dataclasses
import json
from collections.abc import Callable, Hashable
from typing import Any

import jax

from fedcmi_jax.data.base import Dataset
from fedcmi_jax.experiment.config import Config, to_dict
from fedcmi_jax.memory import mappings_used

OF_DATA = (
    *("dataset", "partition", "clients", "holdout_clients", "fixed_partition"),
    *("multimodal_fraction", "modalities", "missing_fraction", "feature_noise"),
    *("label_noise", "label_noise_kind", "label_noise_min", "noisy_clients"),
    *("probe_fraction", "validation_fraction", "client_test_fraction"),
)
"""Fields that only say which samples, of which shapes, clients have. An algorithm has
samples as arguments; of the data set it knows ``signature``."""

OF_RUN = (
    *("seed", "seeds", "init_from", "early_stop_rounds", "checkpoint_every"),
    *("log_clients", "imports", "output", "preset"),
)
"""Fields that say what a run starts from, when it ends and what it leaves."""


CROWDED = 0.5
"""Share of a process's memory mappings from which on compiled programs are forgotten;
the other half is for those of the run that begins."""


class Shared:
    """Objects by what they depend on, made when they are first asked for.

    Example:
      >>> shared = Shared()
      >>> shared.get("model", 64, lambda: [64]) is shared.get("model", 64, list)
      True
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Hashable], Any] = {}

    def get(self, kind: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """The object of this kind and key; made by ``make`` if there is none yet."""
        if (kind, key) not in self._kept:
            self._kept[kind, key] = make()
        return self._kept[kind, key]

    def make_room(self) -> None:
        """Forgets everything, and JAX its programs, where the process has too many.

        What is needed again is made again, to the same bits: from JAX's cache on disk
        if there is one.
        """
        if mappings_used() > CROWDED:
            self._kept.clear()
            jax.clear_caches()


def signature(dataset: Dataset) -> Hashable:
    """All that a model depends on of a data set.

    Example:
      >>> import fedcmi_jax as fc
      >>> small, large = (fc.data.load("synthetic", train_samples=n) for n in (20, 40))
      >>> signature(small) == signature(large)
      True
    """
    leaves, structure = jax.tree.flatten(dict(dataset.shapes))
    arrays = tuple((str(shape), shape.dtype.name) for shape in leaves)
    return dataset.modalities, dataset.num_classes, arrays, structure


def model_key(config: Config, needs_projectors: bool) -> str:
    """All that a model depends on of a configuration.

    Args:
      config: The configuration.
      needs_projectors: ``Method.needs_projectors``.
    """
    values = to_dict(config)
    names = ("encoder", "encoder_names", "model", "freeze")
    return json.dumps([needs_projectors, *(values[name] for name in names)])


def algorithm_key(config: Config, rounds_per_call: int) -> str:
    """All that a compiled round depends on of a configuration, but for its rate scale.

    Args:
      config: The configuration.
      rounds_per_call: ``experiment.rounds_per_call``.

    Example:
      >>> from fedcmi_jax.experiment.config import from_dict
      >>> one, other = (from_dict({"partition": {"alpha": a}}) for a in (0.1, 5.0))
      >>> algorithm_key(one, 1) == algorithm_key(other, 1)
      True
      >>> algorithm_key(one, 1) == algorithm_key(from_dict({"lanes": 4}), 1)
      False
    """
    usual = Config()
    ignored = {name: getattr(usual, name) for name in (*OF_DATA, *OF_RUN)}
    if config.local.learning_rate_min is None:
        ignored["rounds"] = usual.rounds
    if config.map_seeds:
        ignored["seeds"] = config.seeds
    known = dataclasses.replace(
        config, **ignored, rounds_per_call=rounds_per_call, eval_every=usual.eval_every
    )
    return json.dumps(to_dict(known))
