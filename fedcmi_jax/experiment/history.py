"""The metrics of several seeds over their rounds, without a run folder."""

import dataclasses
from collections.abc import Iterable, Iterator

from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.experiment import Experiment, build, measure
from fedcmi_jax.experiment.initial import initial_state
from fedcmi_jax.experiment.loop import DivergedError, calls
from fedcmi_jax.experiment.resume import is_due
from fedcmi_jax.experiment.seeds import alone
from fedcmi_jax.experiment.sharing import Shared


def histories(
    config: Config, seeds: Iterable[int], every: int
) -> list[list[dict[str, float]]]:
    """Metrics of several seeds without a run folder; programs are shared as in a run.

    Args:
      config: What to train, to its last round; ``seeds``, ``eval_every``,
        ``early_stop_rounds`` and the like have no effect.
      seeds: The seeds.
      every: Rounds between evaluations; the last round is evaluated, too.

    Returns:
      For every seed the numbers of ``experiment.measure`` and ``round``, in order.

    Raises:
      DivergedError: A seed did; names it.

    Example:
      >>> from fedcmi_jax.experiment.config import from_dict
      >>> data = {"name": "synthetic", "train_samples": 200, "test_samples": 20}
      >>> method = {"name": "fedavg"}
      >>> config = from_dict({"dataset": data, "method": method, "rounds": 2})
      >>> [[line["round"] for line in seed] for seed in histories(config, [0, 1], 1)]
      [[1, 2], [1, 2]]
    """
    found, shared = [], Shared()
    for seed in seeds:
        one = dataclasses.replace(
            alone(config, seed), eval_every=every, rounds_per_call=None
        )
        experiment = build(one, shared=shared)
        try:
            found.append(list(_history(experiment)))
        except DivergedError as error:
            raise DivergedError(f"seed {seed}: {error}") from None
    return found


def _history(experiment: Experiment) -> Iterator[dict[str, float]]:
    """Metrics at the evaluated rounds of one seed."""
    config, state = experiment.config, initial_state(experiment)
    for call in calls(experiment, state):
        if is_due(config.eval_every, call.round, config.rounds):
            metrics = measure(experiment, call.state)
            yield {"round": call.round} | {
                name: x for name, x in metrics.items() if isinstance(x, float)
            }
