"""fedcmi bench and fedcmi sweep, on tiny problems."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

import fedcmi_jax as fc
from fedcmi_jax.bench import layers, peers, pieces, workloads
from fedcmi_jax.cli.main import main
from fedcmi_jax.experiment import sweep, timing
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.testing.problem import assert_close, poison, rounds


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """The mlp and uneven workloads, small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "PEAK_SIDE", 64)
    for name in ("mlp", "uneven"):
        small = dataclasses.replace(
            workloads.WORKLOADS[name], clients=(3,), chunk_size=2, width=4
        )
        monkeypatch.setitem(workloads.WORKLOADS, name, small)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "entries"),
    [
        (["--method=fedavg"], ["fedavg (two_projector)", "fedavg"]),
        ([], ["fedavg", "fedavg (two_projector)", "fedcmi"]),
    ],
    ids=["fedavg", "default"],
)
def test_bench_prints_a_table_and_stores_it(flags, entries, tiny, capsys):
    flags = [*flags, "--repeats=2", "--devices=1", "--output=out.json"]
    assert main(["bench", *flags]) == 0
    assert f"| mlp | 3 | {entries[-1]} |" in capsys.readouterr().out
    with open("out.json") as file:
        report = json.load(file)
    rows = {row["entry"]: row for row in report["results"]}
    assert set(rows) == set(entries)
    for row in rows.values():
        time = row["seconds_per_round"]
        assert 0 < time["min"] <= time["median"] <= time["max"]
        assert row["seconds_per_client"] == pytest.approx(time["median"] / 3)
        assert row["compile_seconds"] > 0
        assert row["temp_bytes"] > 0
        assert row["flops"] > 0
    if "fedcmi" in rows:
        assert rows["fedcmi"]["ratio_to"] == "fedavg (two_projector)"
    assert report["peak_rss_bytes"] > 0
    assert "jax" in report["versions"]


@pytest.mark.slow
def test_bench_compares_every_method_with_fedavg_on_its_model(tiny):
    args = ["bench", "--method=all", "--devices=1", "--repeats=1", "--output=out.json"]
    assert main(args) == 0
    with open("out.json") as file:
        rows = {row["entry"]: row for row in json.load(file)["results"]}
    for name in set(fc.methods.REGISTRY) - {"fedavg"}:
        assert rows[name]["ratio_to"].startswith("fedavg")


@pytest.mark.slow
def test_bench_pads_the_uneven_workload(tiny):
    args = ["bench", "--workload=uneven", "--method=fedavg", "--devices=1"]
    assert main([*args, "--repeats=1", "--chunk-size=auto"]) == 0
    with open("bench-uneven.json") as file:
        rows = json.load(file)["results"]
    padded = [r for r in rows if r["entry"].endswith("padded to the maximum")]
    assert len(padded) == 2
    assert all("ratio" in row for row in padded)


def test_bench_measures_convolutions_alone(tiny, monkeypatch, capsys):
    few = (
        layers.Layer("small / 2", 2, (6, 5), 3, 4, 3, 2),
        layers.Layer("small stem", 2, (6, 5), 1, 4, 3, first=True),
    )
    monkeypatch.setattr(layers, "LAYERS", few)
    monkeypatch.setattr(layers, "REPEATED_FLOP", 1e4)
    small = pieces.PIECES[0]._replace(start=lambda: jnp.ones((2, 4, 4, 3)))
    monkeypatch.setattr(pieces, "PIECES", (small,))
    cores = []
    monkeypatch.setattr("os.sched_setaffinity", lambda _, c: cores.append(c))
    assert main(["bench", "--workload=layers", "--repeats=2", "--devices=1"]) == 0
    assert [len(c) for c in cores] == [1]
    assert "| small / 2 |" in capsys.readouterr().out
    with open("bench-layers.json") as file:
        *rows, piece = json.load(file)["results"]
    assert [row["entry"] for row in rows] == ["small / 2", "small stem"]
    assert piece["entry"] == small.name
    assert piece["seconds"]["min"] > 0
    outputs = 2 * 3 * 3
    assert rows[0]["flops"] == 3 * 2 * outputs * 9 * 3 * 4
    assert rows[1]["flops"] == 2 * 2 * (2 * 6 * 5) * 9 * 4
    for row in rows:
        assert row["share_of_peak"]["median"] > 0


def test_uneven_sizes_have_the_padding_ratio_asked_for():
    sizes = workloads.lognormal(256)
    assert sizes.min() >= 1
    assert workloads.padding_ratio(sizes) >= 7


def test_padding_to_the_maximum_changes_no_result():
    workload = dataclasses.replace(workloads.WORKLOADS["uneven"], width=4)
    fed = workload.federation(5)
    problem = fc.build_algorithm(
        fc.methods.fedavg(),
        workload.model("classifier"),
        clients_per_round=5,
        local=workload.local(shuffle=False),
    )
    ours, _ = rounds(problem, fed, 1)
    theirs, _ = rounds(problem, workloads.padded_to_longest(fed), 1)
    assert_close(ours.params, theirs.params)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workload=gpt"], "workload: unknown 'gpt'"),
        (["--method=fedsgd"], "method: unknown 'fedsgd'"),
        (["--clients=ten"], "clients: 'ten' is no count"),
        (["--chunk-size=some"], "chunk_size: 'some'"),
        (["--repeats=0"], "repeats: 0 is below 1"),
        (["--against=numpy"], "against: unknown 'numpy'"),
        (["--against=fedjax", "--workload=convnet"], "has no encoder 'convnet'"),
        (["--workloads=mlp"], "did you mean 'workload'?"),
        (["--repeats=few"], "see fedcmi bench --help"),
    ],
)
def test_bench_mistakes_are_one_line(tiny, tmp_path, flags, message, capsys):
    assert main(["bench", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_peer_says_how_to_install_it(tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fedcmi_jax.bench.peers.FOLDER", tmp_path)
    assert main(["bench", "--against=pfl"]) == 2
    error = capsys.readouterr().err
    assert "requirements-pfl.txt" in error
    assert error.count("\n") == 1


def test_peers_are_looked_for_where_the_user_says(tiny, tmp_path, capsys):
    assert not peers.FOLDER.is_absolute()
    assert main(["bench", "--against=pfl", f"--peers={tmp_path / 'mine'}"]) == 2
    assert f"not installed in {tmp_path / 'mine'}" in capsys.readouterr().err


def test_ratios_are_of_pairs():
    assert timing.ratio([1.0, 4.0, 9.0], [1.0, 2.0, 3.0])["median"] == 2.0


def test_flops_are_those_of_the_products():
    workload = dataclasses.replace(workloads.WORKLOADS["mlp"], width=4)
    fed = workload.federation(2)
    flops = timing.training_flops(workload.model("classifier"), fed, epochs=1)
    forward = 2 * (2 * 32 * 64 + 128 * 10)  # two encoders and the fusion
    weights_and_inputs = 2 * forward - 2 * 2 * 32 * 64  # no gradient to the samples
    expected = 64 * (forward + weights_and_inputs)
    assert 0.95 * expected <= flops <= 1.2 * expected


@pytest.mark.slow
def test_sweep_writes_table_and_figure(tmp_path, capsys):
    folder = tmp_path / "sweep"
    flags = ["--counts=4,2", "--participation=0.5", "--rounds=2"]
    assert main(["sweep", "clients", *flags, f"--output={folder}"]) == 0
    rows = json.loads((folder / "sweep.json").read_text())["rows"]
    assert [(r["clients"], r["clients_per_round"]) for r in rows] == [(2, 1), (4, 2)]
    assert (folder / "sweep.md").read_text().count("\n") == 4
    assert (folder / "sweep.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["rounds"], "sweep: unknown 'rounds'"),
        (["clients", "--counts=a"], "give e.g. --counts=10,100"),
        (["clients", "--counts=0"], "counts: 0 is below 1"),
        (["clients", "--participation=2"], "participation: 2.0 is outside (0, 1]"),
        (["clients", "noisy-digits"], "'noisy_digits' is fixed"),
        (["clients", "--seeds=2"], "seeds: 2; a sweep trains one"),
    ],
)
def test_sweep_mistakes_are_one_line(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_count_that_diverges_does_not_exit_0(tmp_path, monkeypatch, capsys):
    def poisoned(config, mesh, spread):
        built = build(config, mesh)
        if config.clients == 4:
            return built
        return built._replace(federation=poison(poison(built.federation, 0), 1))

    monkeypatch.setattr(sweep, "build", poisoned)
    folder = tmp_path / "sweep"
    flags = ["--counts=2,4", "--rounds=1", "--method.name=fedavg", "--devices=1"]
    assert main(["sweep", "clients", *flags, f"--output={folder}"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fedcmi: error: 2 clients: round 1, method fedavg: none")
    rows = json.loads((folder / "sweep.json").read_text())["rows"]
    assert [row["clients"] for row in rows] == [4]
