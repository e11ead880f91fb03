"""``fedcmi sweep clients``: the same work per client at growing client counts."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from fedcmi_jax.evaluation.summary import summarise
from fedcmi_jax.experiment import timing
from fedcmi_jax.experiment.config import Config
from fedcmi_jax.experiment.experiment import Experiment, build
from fedcmi_jax.experiment.files import naming, replace, write_json
from fedcmi_jax.experiment.hosts import fetch
from fedcmi_jax.experiment.loop import DivergedError, calls
from fedcmi_jax.experiment.training import versions

SAMPLES = 32
"""Training samples per client."""
TEST_SAMPLES = 2_000
"""Test samples; the same at every count."""


def sized(config: Config, clients: int, participation: float) -> Config:
    """The configuration with that many clients, and data to match.

    Args:
      config: Any; its data set must have ``train_samples`` and ``test_samples``.
      clients: N.
      participation: Share of the clients in every round's cohort; at least one.

    Raises:
      ValueError: The count is below 1, the data set's size is fixed, the share is
        outside (0, 1], or several seeds or streamed data are asked for.
    """
    if clients < 1:
        raise ValueError(f"counts: {clients} is below 1; give e.g. 10,100,1000")
    if not 0 < participation <= 1:
        raise ValueError(
            f"participation: {participation} is outside (0, 1]; 1 is everybody"
        )
    if config.seeds > 1:
        raise ValueError(f"seeds: {config.seeds}; a sweep trains one, leave it out")
    if config.stream:
        raise ValueError("stream: a sweep measures resident data; leave it out")
    if not hasattr(config.dataset, "train_samples"):
        raise ValueError(
            f"dataset: the size of {config.dataset.name!r} is fixed; sweep a data set "
            "with train_samples, such as the preset 'synthetic'"
        )
    dataset = dataclasses.replace(
        config.dataset, train_samples=SAMPLES * clients, test_samples=TEST_SAMPLES
    )
    return dataclasses.replace(
        config,
        dataset=dataset,
        clients=clients,
        clients_per_round=max(1, round(participation * clients)),
    )


def measure_one(experiment: Experiment) -> dict[str, Any]:
    """Trains for the configuration's rounds; speed, memory, accuracy.

    Returns:
      One row of the sweep's table.

    Raises:
      DivergedError: No client's update was finite, or the model is not.
    """
    config = experiment.config
    timed = timing.compile_round(
        experiment.algorithm, experiment.federation, experiment.key
    )
    seconds = [timed.round() for _ in range(config.rounds - 1)] or [timed.round()]
    algorithm, federation = experiment.algorithm, experiment.federation
    state = jax.jit(algorithm.init)(experiment.key, federation)
    for call in calls(experiment, state):
        state = call.state
    params, stats = algorithm.deploy(state, federation), state.batch_stats
    metrics = summarise(experiment.evaluate(*fetch((params, stats))))
    per_client = timing.spread([s / config.clients_per_round for s in seconds])
    data = [*jax.tree.leaves(federation.inputs), federation.labels]
    return {
        "clients": config.clients,
        "clients_per_round": config.clients_per_round,
        "seconds_per_client": per_client,
        "compile_seconds": timed.compile_seconds,
        "temp_bytes": timed.temp_bytes,
        "data_bytes": sum(x.nbytes for x in data),
        "memory_bytes": sum(x.nbytes for x in jax.tree.leaves(state.memory)),
        "peak_rss_bytes": timing.peak_rss(),
        "rounds": config.rounds,
        "acc": metrics["acc"],
    }


def sweep_clients(
    config: Config,
    folder: pathlib.Path,
    *,
    counts: Sequence[int],
    participation: float = 1.0,
    mesh: Mesh | None = None,
    spread: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Runs every count, smallest first; writes sweep.json, sweep.md and sweep.png.

    Args:
      config: What to train; data size, clients and cohort are set per count.
      folder: Where to write; must exist.
      counts: Client counts.
      participation: Share of the clients per round.
      mesh: Devices.
      spread: Spread the samples over them.
      log: Receives every line of the table.

    Returns:
      The rows.

    Raises:
      ValueError: See ``sized``.
      DivergedError: Some counts diverged; names them. The others are written.
    """
    configs = [sized(config, n, participation) for n in sorted(counts)]
    lines = [
        "| clients | per round | ms per client (min-max) | compile s | temp MB "
        "| data MB | memory MB | peak RSS MB | acc |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        log(line)
    rows: list[dict[str, Any]] = []
    lost: list[str] = []
    for one in configs:
        try:
            row = measure_one(build(one, mesh, spread=spread))
        except DivergedError as error:
            lost.append(f"{one.clients:,} clients: {error}")
            continue
        rows.append(row)
        lines.append(_line(row))
        log(lines[-1])
        # After every count, so that an interrupted sweep keeps what it has.
        write_json(
            folder / "sweep.json",
            {
                "rows": rows,
                "versions": versions(),
                "participation": participation,
                "devices": mesh.size if mesh else 1,
                "backend": jax.default_backend(),
            },
        )
        replace(folder / "sweep.md", ("\n".join(lines) + "\n").encode())
    if rows:
        draw(rows, folder / "sweep.png")
    if lost:
        raise DivergedError("; ".join(lost))
    return rows


def _line(row: dict[str, Any]) -> str:
    time = row["seconds_per_client"]
    ms = [f"{1e3 * time[k]:.3g}" for k in ("median", "min", "max")]
    sizes = ("temp_bytes", "data_bytes", "memory_bytes", "peak_rss_bytes")
    return (
        f"| {row['clients']:,} | {row['clients_per_round']:,} "
        f"| {ms[0]} ({ms[1]}-{ms[2]}) | {row['compile_seconds']:.2f} | "
        + " | ".join("-" if row[k] is None else f"{row[k] / 1e6:.1f}" for k in sizes)
        + f" | {100 * row['acc']:.1f} % |"
    )


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Seconds per client, memory and accuracy over the number of clients."""
    # Imported for the figure only: what imports this module waits for no matplotlib.
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    counts = [row["clients"] for row in rows]
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    times = [1e3 * row["seconds_per_client"]["median"] for row in rows]
    axes[0].plot(counts, times, "o-")
    axes[0].set(ylabel="ms per client and round", ylim=(0, None))
    for key, label in (
        ("temp_bytes", "program"),
        ("data_bytes", "data"),
        ("memory_bytes", "per-client memory"),
    ):
        values = [(row[key] or 0) / 1e6 for row in rows]
        if any(values):
            axes[1].plot(counts, values, "o-", label=label)
    axes[1].set(ylabel="MB", yscale="log")
    axes[1].legend()
    axes[2].plot(counts, [100 * row["acc"] for row in rows], "o-")
    axes[2].set(ylabel=f"accuracy after {rows[0]['rounds']} rounds (%)")
    for axis in axes:
        axis.set(xlabel="clients", xscale="log")
        axis.grid(alpha=0.3)
    with naming(path):
        figure.savefig(path, dpi=120)
    pyplot.close(figure)
