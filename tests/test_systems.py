"""Clients that are away, slow or lost, and the time that a round would take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax import compression, privacy, systems
from fedcmi_jax.experiment.client_log import read_clients
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.loop import calls, records
from fedcmi_jax.experiment.traffic import traffic_by_client, uploaded
from fedcmi_jax.systems import Outcome, Table, simulated
from fedcmi_jax.testing import problem as small
from fedcmi_jax.testing.problem import (
    AVAILABLE,
    SIZES,
    algorithm,
    all_equal,
    assert_equal,
    federation,
    model,
    rounds,
)

KEY = jax.random.key(0)


def after(effects, num_rounds=2, method="fedavg"):
    """State and info under these effects."""
    made = fc.methods.REGISTRY[method]()
    made = algorithm(made, model("classifier"), systems=effects)
    return rounds(made, federation(), num_rounds)


def with_table(effects=simulated(), **arrays):  # noqa: B008 (immutable)
    """The effects with a table of these arrays."""
    table = Table(**{name: np.asarray(x, np.float32) for name, x in arrays.items()})
    return effects._replace(table=table)


def test_clients_that_are_fast_and_there_change_nothing():
    assert_equal(after(simulated())[0].params, after(None)[0].params)


def test_a_clients_seconds_by_hand():
    """10 steps of 0.5 s and 4 s of network; 6 steps by a deadline of 7.2 s."""
    run = functools.partial(
        systems.outcome, key=KEY, steps=jnp.array(10), seconds_per_step=0.5,
        network_seconds=4.0,
    )  # fmt: skip
    free = run(simulated(), possible=systems.MOST_STEPS)
    assert float(free.seconds) == 9
    assert bool(free.returned)
    assert not free.partial
    limited = simulated(deadline=7.2)
    possible = systems.most_steps(limited, 8.0, 1e3, 4e3, 4)
    assert int(possible) == 6
    part = run(limited, possible=possible)
    assert float(part.seconds) == 7
    assert bool(part.partial)
    assert bool(part.returned)
    assert not run(simulated(deadline=7.2, late="drop"), possible=possible).returned
    # Not even a step, and not even the network.
    for deadline in (4.4, 3.0):
        limited = simulated(deadline=deadline)
        possible = systems.most_steps(limited, 8.0, 1e3, 4e3, 4)
        assert int(possible) == 0
        assert not run(limited, possible=possible).returned


def test_a_round_lasts_as_long_as_its_last_client_or_to_the_deadline():
    outcomes = Outcome(
        jnp.array([True, True, False, True]),
        jnp.array([3.0, 5.0, 9.0, 100.0]),
        jnp.array([True, False, True, True]),
    )
    real = jnp.array([True, True, True, False])
    found = systems.clock(simulated(), jnp.float32(10), outcomes, real)
    assert float(found.seconds) == 15
    assert int(found.partial) == 1
    found = systems.clock(simulated(deadline=7.0), jnp.float32(10), outcomes, real)
    assert float(found.seconds) == 17
    assert found.returned.tolist() == [True, True, False, False]


def test_dropout_has_its_rate():
    run = functools.partial(
        systems.outcome, simulated(dropout=0.3), steps=jnp.array(1),
        possible=jnp.array(1), seconds_per_step=1.0, network_seconds=1.0,
    )  # fmt: skip
    came = jax.vmap(lambda key: run(key).returned)(jax.random.split(KEY, 3000))
    assert abs(float(came.mean()) - 0.7) < 0.03


def test_who_is_there_follows_rates_and_traces():
    rates = with_table(available=[0.0, 1.0, 0.5])
    keys = jax.random.split(KEY, 2000)
    there = jax.vmap(lambda key: systems.present(rates, key, 0, 3))(keys).mean(0)
    np.testing.assert_allclose(there, [0, 1, 0.5], atol=0.04)
    trace = with_table(available=[[1, 0, 0], [0, 1, 1]])
    for round, expected in enumerate([[1, 0, 0], [0, 1, 1], [1, 0, 0]]):
        found = systems.present(trace, KEY, jnp.int32(round), 3)
        np.testing.assert_array_equal(found, np.array(expected) > 0)


def test_speeds_are_log_normal_about_their_median():
    effects = simulated(samples_per_second=50.0, speed_spread=0.5)
    speed, bandwidth = systems.speeds(effects, KEY, 5000)
    assert abs(float(jnp.median(speed)) / 50 - 1) < 0.05
    assert abs(float(jnp.log(speed).std()) - 0.5) < 0.02
    np.testing.assert_array_equal(bandwidth, np.full(5000, 1e6, np.float32))


@pytest.mark.slow
def test_a_trace_decides_who_is_drawn():
    """Clients 1 and 3 in even rounds, nobody but 4 in odd ones; three places."""
    trace = with_table(available=[[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]])
    made = algorithm(
        fc.methods.fedavg(), model("classifier"), systems=trace, clients_per_round=3
    )
    for num_rounds, expected in ((1, {1, 3, 5}), (2, {4, 5})):
        state, info = rounds(made, federation(), num_rounds)
        assert set(info.cohort.tolist()) == expected
        assert int(info.accepted.sum()) == len(expected) - 1
        assert int(info.rejected) == 0
    assert int(state.round) == 2


@pytest.mark.slow
def test_partial_work_is_the_first_steps_of_whole_work():
    """The first client may take three steps only, which SCAFFOLD must know."""
    speed = np.full(5, 1e6)
    speed[0] = 3.5 * 4  # a step of 4 samples per 4/14 s
    slow = with_table(
        simulated(deadline=1.0, bytes_per_second=1e12), samples_per_second=speed
    )
    made = algorithm(fc.methods.scaffold(), model("classifier"), systems=slow)
    state, info = rounds(made, federation(), 1)
    place = info.cohort.tolist().index(0)
    assert bool(info.systems.returned[place])
    assert int(info.systems.partial) == 1
    np.testing.assert_allclose(info.systems.seconds, 3 * 4 / 14, rtol=1e-3)
    # Its 9 samples are three steps: one of its two epochs.
    assert float(info.metrics["loss_task"][1]) == 2 * sum(SIZES) - SIZES[0]
    assert not all_equal(state.params, after(None, 1, "scaffold")[0].params)


@pytest.mark.slow
def test_whoever_is_lost_keeps_its_memory_and_is_no_rejection():
    effects = simulated(dropout=0.5)
    state, info = after(effects, 1, "scaffold")
    lost = [
        int(c)
        for c, back in zip(info.cohort, info.systems.returned, strict=True)
        if not back
    ]
    assert 0 < len(lost) < 5
    assert int(info.rejected) == 0
    np.testing.assert_array_equal(info.accepted, info.systems.returned)
    for row in range(5):
        moved = any(x[row].any() for x in jax.tree.leaves(state.memory))
        assert moved == (row not in lost)


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_bytes_in_a_round_are_those_of_the_table(name):
    """The same by both counts, with what is compressed and what is sent beside it."""
    method, net = getattr(fc.methods, name)(), model("classifier")
    less = compression.top_k(share=0.1)
    table = traffic_by_client(method, net, small.dataset(), np.array(AVAILABLE), less)
    down, up = (sum(part.values()) for part in table)
    params, stats = net.init(KEY)
    upload = uploaded(method, net, small.dataset())
    for client, has in enumerate(AVAILABLE):
        owned = net.owned(jnp.asarray(has, jnp.float32))
        found = systems.traffic(owned, params, stats, upload, less)
        assert (float(found[0]), float(found[1])) == (down[client], up[client])


@pytest.mark.slow
def test_a_run_has_its_seconds_and_losses(tmp_path):
    values = {
        "dataset": {"name": "synthetic", "train_samples": 200, "test_samples": 40},
        "encoder": {"features": 8},
        "method": {"name": "fedavg"},
        "rounds": 4,
        "local": {"epochs": 1},
        "log_clients": "cohort",
        "systems": {"name": "simulated", "dropout": 0.4, "speed_spread": 1.0},
    }
    history = fc.train(fc.config.from_dict(values), output=tmp_path / "run")
    seconds = history.column("sim_seconds")
    assert (np.diff(seconds) >= 0).all()
    assert seconds[-1] > 0
    assert 0 < history.column("lost").sum() < 20
    full = history.column("bytes_down").sum()
    assert 0 < history.column("bytes_up").sum() < full
    log = read_clients(tmp_path / "run/clients.jsonl")
    assert [len(line["lost"]) for line in log[1:]] == history.column("lost").tolist()
    assert not any("rejected" in line for line in history.records)


EVERYTHING = {
    "dataset": {"name": "synthetic", "train_samples": 200, "test_samples": 40},
    "encoder": {"features": 8},
    "method": {"name": "moon"},
    "rounds": 4,
    "local": {"epochs": 1},
    "checkpoint_every": 2,
    "systems": {"name": "simulated", "dropout": 0.3, "deadline": 0.05},
    "compression": {"name": "top_k", "share": 0.1, "bits": 8},
    "privacy": {"name": "gaussian", "noise_multiplier": 0.0, "quantile": 0.5},
}
"""All that the state holds of these sections."""


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_a_run_that_goes_on_ends_with_the_same_bits(tmp_path):
    whole = fc.train(fc.config.from_dict(EVERYTHING), output=tmp_path / "whole")
    short = fc.config.from_dict(EVERYTHING | {"rounds": 2})
    fc.train(short, output=tmp_path / "short")
    path = tmp_path / "short/config.json"
    path.write_text(path.read_text().replace('"rounds": 2', '"rounds": 4'))
    again = fc.resume(tmp_path / "short")
    assert_equal(again.params, whole.params)
    for one, two in zip(again.records, whole.records, strict=True):
        assert one | {"seconds": 0} == two | {"seconds": 0}
    assert whole.column("clip")[-1] != 0.1
    assert whole.column("sim_seconds")[-1] > 0


@pytest.mark.slow
def test_mapped_seeds_have_their_own():
    def final(**changes):
        made = build(fc.config.from_dict(EVERYTHING | changes))
        state = made.algorithm.init(made.key, made.federation)
        return [line for call in calls(made, state) for line in records(made, call)][-1]

    line = final(seeds=2, map_seeds=True)
    alone = [final(seed=n, fixed_partition=True) for n in (0, 1)]
    for name in ("clip", "lost", "bytes_up", "sim_seconds"):
        own = [one[name] for one in alone]
        np.testing.assert_allclose(line["per_seed"][name], own, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simulated(dropout=1.0), r"dropout: 1.0 is outside \[0, 1\)"),
        (lambda: simulated(available=0.0), r"available: 0.0 is outside \(0, 1\]"),
        (lambda: simulated(deadline=0.0), "deadline: 0.0 is not a positive number"),
        (lambda: simulated(speed_spread=-1.0), "speed_spread: -1.0 is not a number"),
        (lambda: simulated(late="never"), "late: unknown 'never'"),
        (lambda: simulated(table="no.npz"), "table: there is no no.npz"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"speed": np.ones(3)}, "'speed' is none of"),
        ({"available": np.array([0.5, 1.5])}, "available: 1.5 of client 1 cannot be"),
        ({"available": np.full((2, 3), 0.5)}, "available: 0.5 of client 0 cannot be"),
        ({"bytes_per_second": np.array([1, 0])}, "second: 0 of client 1 cannot be"),
        ({"samples_per_second": np.ones((2, 2))}, "of shape .2, 2.; give numbers, one"),
    ],
)
def test_bad_tables_are_refused_by_name(arrays, message, tmp_path):
    path = tmp_path / "clients.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        simulated(table=str(path))


def test_a_table_is_read_and_checked_against_the_federation(tmp_path):
    path = tmp_path / "clients.npz"
    np.savez(path, available=np.ones((2, 3), bool), bytes_per_second=np.ones(3))
    effects = simulated(table=str(path))
    assert effects.limits_choice
    made = algorithm(fc.methods.fedavg(), model("classifier"), systems=effects)
    with pytest.raises(ValueError, match="table: bytes_per_second is of 3 clients, th"):
        made.init(KEY, federation())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (fc.methods.power_of_choice(), {}, "a method that chooses its cohort draws"),
        (
            fc.methods.fedavg(),
            {"privacy": privacy.gaussian(noise_multiplier=1.0)},
            "privacy draws from all clients",
        ),
    ],
)
def test_nobody_is_away_where_a_draw_counts_on_all(method, options, message):
    with pytest.raises(ValueError, match=message):
        algorithm(method, systems=simulated(available=0.5), **options)
