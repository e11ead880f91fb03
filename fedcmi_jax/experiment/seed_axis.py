"""Several seeds at once: their axis in a program, and their metrics in one record."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedcmi_jax.algorithm import FederatedAlgorithm
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.types import FederationState, PyTree

_AXES: Any = FederationState(*(0, 0, 0, 0, 0, 0, None, 0, 0, 0, 0, 0, 0))  # type: ignore[arg-type]
"""Where a state of several seeds has their axis; the round is common to all."""

OWN_NAMES = ("round", "rejected", "set_aside", "skipped")
"""Fields of a metrics line that have no mean."""


def seed_keys(first: int, count: int) -> jax.Array:
    """[count] PRNG keys of the seeds first, first + 1...

    Raises:
      ValueError: count is below 1.

    Example:
      >>> seed_keys(3, 2).shape
      (2,)
    """
    if count < 1:
        raise ValueError(f"seeds: {count} is below 1; give at least 1")
    return jnp.stack([jax.random.key(first + i) for i in range(count)])


def over_seeds(algorithm: FederatedAlgorithm) -> FederatedAlgorithm:
    """The algorithm of several seeds at once, on one federation (``vmap``).

    Args:
      algorithm: Of one seed, on one device.

    Returns:
      ``init`` takes keys [S] and gives a state with leaves [S, ...], but for the round;
      ``round`` and ``run`` take such a state and give infos [S, ...] and
      [rounds_per_call, S, ...]. ``deploy`` is that of one seed's state (``one_seed``).

    Example:
      >>> import jax, numpy as np, fedcmi_jax as fc
      >>> data = fc.data.load("synthetic", train_samples=64, test_samples=16)
      >>> parts = fc.partition.iid(data.train, 4, np.random.default_rng(0))
      >>> federation = fc.build_federation(data, parts)
      >>> encoders = {m: fc.models.mlp(features=8) for m in data.modalities}
      >>> model = fc.models.classifier(encoders, data.shapes, 10)
      >>> algorithm = over_seeds(
      ...     fc.build_algorithm(fc.methods.fedavg(), model, clients_per_round=2))
      >>> algorithm.init(seed_keys(0, 3), federation).key.shape
      (3,)
    """

    def mapped(fn: Callable, info_axis: int) -> Callable:
        def call(state: FederationState, *args: Any) -> Any:
            axes = (_AXES, *(None for _ in args))
            return jax.vmap(fn, in_axes=axes, out_axes=(_AXES, info_axis))(state, *args)

        return call

    def init(keys: jax.Array, *args: Any) -> FederationState:
        axes = (0, *(None for _ in args))
        return jax.vmap(algorithm.init, in_axes=axes, out_axes=_AXES)(keys, *args)

    return algorithm._replace(
        init=init,
        round=mapped(algorithm.round, 0),
        run=jax.jit(mapped(algorithm.run, 1), donate_argnums=0),
    )


def one_seed(states: FederationState, i: int) -> FederationState:
    """The state of the i-th seed."""
    rounds = jnp.broadcast_to(states.round, len(states.key))
    return jax.tree.map(lambda x: x[i], states._replace(round=rounds))


def by_seed(config: Config, tree: Any, pick: Callable[[Any, int], Any]) -> dict:
    """Seed -> its part of a program's result: all of it, unless seeds are mapped.

    Args:
      config: The run's.
      tree: The result.
      pick: ``(tree, i) -> the part of the i-th seed``, where seeds are mapped.

    Example:
      >>> from fedcmi_jax.experiment.config import from_dict
      >>> mapped = from_dict({"seed": 3, "seeds": 2, "map_seeds": True})
      >>> by_seed(mapped, [0.5, 0.75], lambda values, i: values[i])
      {3: 0.5, 4: 0.75}
    """
    if not config.map_seeds:
        return {config.seed: tree}
    return {config.seed + i: pick(tree, i) for i in range(config.seeds)}


def pool(records: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics of several seeds in one record.

    Args:
      records: Seed -> its metrics of one round.

    Returns:
      ``seeds``, which they are; every metric's mean over them; under ``NAME_std`` the
      sample standard deviation (n - 1; None with one seed); under ``per_seed`` the
      values, NAME -> [S], None where a seed lacks it. Lists are taken elementwise,
      those of clients too, which are the same clients only where the seeds share a
      partition; lists of different lengths have no mean.

    Example:
      >>> record = pool({0: {"acc": 0.5}, 1: {"acc": 0.75}})
      >>> record["acc"], round(record["acc_std"], 4), record["per_seed"]["acc"]
      (0.625, 0.1768, [0.5, 0.75])
    """
    rows = list(records.values())
    names = {name: None for row in rows for name in row if name not in OWN_NAMES}
    values = {name: [row.get(name) for row in rows] for name in names}
    result: dict[str, Any] = {"seeds": list(records)}
    for name, column in values.items():
        mean, deviation = _moments(column)
        result |= {name: mean, f"{name}_std": deviation}
    return result | {"per_seed": values}


def summary_fields(
    own: Mapping[int, Mapping[str, Any]], fixed_partition: bool
) -> dict[str, Any]:
    """What the summary of several seeds has beside the fields of any summary.

    Args:
      own: Seed -> its summary.
      fixed_partition: ``config.shares_partition``.

    Returns:
      ``seeds``, which they are; ``fixed_partition``; ``per_seed``, seed -> its end.
    """
    names = ("rounds", "stopped_early", "final", "best", "holdout_clients")
    return {
        "seeds": list(own),
        "fixed_partition": fixed_partition,
        "per_seed": {
            n: {name: s[name] for name in names if name in s} for n, s in own.items()
        },
    }


def split_summary(summary: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The summary of mapped seeds for each of them.

    Args:
      summary: ``final`` and ``best`` are lines of ``pool`` with their ``round``; None
        for ``best`` where there is none.

    Returns:
      Seed -> the same with its own values.

    Example:
      >>> line = {"round": 5} | pool({3: {"acc": 0.5}, 4: {"acc": 0.75}})
      >>> split_summary({"rounds": 5, "final": line, "best": None})[4]
      {'rounds': 5, 'final': {'round': 5, 'acc': 0.75}, 'best': None}
    """

    def own(line: Mapping[str, Any] | None, i: int) -> dict[str, Any] | None:
        if line is None:
            return None
        values = {name: column[i] for name, column in line["per_seed"].items()}
        return {"round": line["round"]} | values

    return {
        seed: {**summary} | {name: own(summary[name], i) for name in ("final", "best")}
        for i, seed in enumerate(summary["final"]["seeds"])
    }


def _moments(column: list[Any]) -> tuple[PyTree, PyTree]:
    """Mean and sample deviation; None where a seed lacks the value."""
    lengths = {len(value) if isinstance(value, list) else -1 for value in column}
    if any(value is None for value in column) or len(lengths) > 1:
        return None, None
    array = np.array(column, np.float64)  # None within a list becomes NaN
    mean = array.mean(0).tolist()
    return mean, array.std(0, ddof=1).tolist() if len(column) > 1 else None
