"""Streaming: the resident results bit for bit, with the cohort's samples alone."""

import dataclasses
import functools
import signal

import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax import methods, streaming
from fedcmi_jax.cli.main import main
from fedcmi_jax.evaluation import metrics as evaluation
from fedcmi_jax.evaluation import summary
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment import training
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.files import read_json
from fedcmi_jax.placement import client_mesh, replicate
from fedcmi_jax.testing import problem as problems
from fedcmi_jax.testing.problem import MODALITIES
from tests.test_config import TINY
from tests.test_run import At, assert_same_run, metrics, newest, start

# Resumed runs and those on several devices are to be equal as they are shipped.
pytestmark = pytest.mark.shipped_flags

# Clients of very different sizes, with samples held out; evaluations and checkpoints
# that do not divide each other.
UNEVEN = {
    "partition": {"name": "dirichlet", "alpha": 0.5},
    "probe_fraction": 0.2,
    "missing_fraction": 0.3,
    "rounds": 7,
    "eval_every": 3,
    "checkpoint_every": 2,
    "local": {"epochs": 1, "batch_size": 4},
}


@functools.cache
def experiment(stream, method="fedavg", chunk_size=1, devices=None):
    values = TINY | UNEVEN | {"stream": stream, "chunk_size": chunk_size}
    values |= {"method": {"name": method}}
    mesh = client_mesh(devices) if devices else None
    return build(configs.from_dict(values), mesh)


def trained(built, folder):
    training.train(built, start(built, folder))
    return folder


@pytest.mark.parametrize(
    ("method", "chunk_size"),
    [
        pytest.param("fedavg", 1, marks=pytest.mark.slow),
        pytest.param("fedcmi", 2, marks=pytest.mark.slow),
    ],
)
def test_streamed_runs_equal_resident_ones(method, chunk_size, tmp_path):
    resident, streamed = (experiment(s, method, chunk_size) for s in (False, True))
    reference = trained(resident, tmp_path / "resident")
    folder = trained(streamed, tmp_path / "streamed")
    assert metrics(folder) == metrics(reference)
    ours, theirs = newest(folder, streamed).state, newest(reference, resident).state
    problems.assert_equal(ours, theirs)
    assert streamed.algorithm.run._cache_size() == 1


@pytest.mark.slow
def test_several_devices(tmp_path):
    resident, streamed = (experiment(s, devices=2) for s in (False, True))
    reference = training.train(resident, start(resident, tmp_path / "resident"))
    summary = training.train(streamed, start(streamed, tmp_path / "streamed"))
    problems.assert_equal(summary.state, reference.state)
    federation = streamed.federation_at(0)
    assert all(x.sharding.is_fully_replicated for x in federation.inputs.values())
    assert len(federation.labels.devices()) == 2


@pytest.mark.slow
def test_interrupted_resumed_and_reported(tmp_path):
    resident, streamed = experiment(False), experiment(True)
    reference = trained(resident, tmp_path / "resident")
    folder = start(streamed, tmp_path / "streamed")
    with pytest.raises(training.Interrupted):
        training.train(
            streamed, folder, [At(3, lambda: signal.raise_signal(signal.SIGINT))]
        )
    assert newest(folder, streamed).round == 3
    again, observer = build(streamed.config), At()  # as a new process would
    training.train(again, folder, [observer])
    assert_same_run(folder, reference, again)
    assert observer.notes[-1].startswith("streamed 4 cohorts of 0.0 MB in ")
    report = read_json(folder / training.SUMMARY)["stream"]
    assert report["rounds"] == 4
    assert report["cohort_bytes"] == again.stream.cohort_bytes


def uneven_stream(**options):
    """A stream over the problem of 9, 5, 12, 7 and 1 samples, cohorts of two."""
    dataset = problems.dataset()
    parts = fc.partition.Partition(
        np.random.default_rng(0).permutation(sum(problems.SIZES)),
        np.array(problems.SIZES),
    )
    skeleton = streaming.build_skeleton(dataset, parts, np.array(problems.AVAILABLE))
    key = jax.random.key(3)
    made = streaming.CohortStream(dataset, parts, skeleton, key, 2, **options)
    return made, fc.build_federation(dataset, parts, np.array(problems.AVAILABLE))


def samples_of(federation, client):
    start, size = int(federation.offsets[client]), int(federation.sizes[client])
    arrays = (*(federation.inputs[m] for m in MODALITIES), federation.labels)
    return [np.asarray(x[start : start + size]) for x in arrays]


def test_the_device_holds_the_cohort_and_no_more():
    stream, resident = uneven_stream()
    assert stream.capacity == 12 + 9
    assert stream.cohort_bytes == 21 * (2 * 4 * problems.FEATURES + 4)
    cohorts = []
    for round in range(8):
        federation = stream.federation(round)
        ids = stream.cohort(round)
        assert len(set(ids.tolist())) == 2
        cohorts.append(tuple(ids.tolist()))
        assert all(len(x) == 21 for x in federation.inputs.values())
        for client in ids:
            for ours, theirs in zip(
                samples_of(federation, client),
                samples_of(resident, client),
                strict=True,
            ):
                np.testing.assert_array_equal(ours, theirs)
        for name in ("sizes", "probe_sizes", "available"):
            ours, theirs = getattr(federation, name), getattr(resident, name)
            np.testing.assert_array_equal(ours, theirs)
        assert federation.max_size == resident.max_size
    assert len(set(cohorts)) > 1


def test_the_cohort_is_the_one_the_round_draws():
    built = experiment(True)
    state = jax.jit(built.algorithm.init)(built.key, built.federation)
    for round in range(4):
        federation = built.federation_at(round)
        state, info = built.algorithm.run(state, federation, np.int32(1))
        assert set(info.cohort[0].tolist()) == set(built.stream.cohort(round).tolist())


@pytest.mark.parametrize("prefetch", [True, False])
def test_any_order_of_rounds(prefetch):
    stream, _ = uneven_stream(prefetch=prefetch)
    in_order = {round: stream.federation(round) for round in range(4)}
    for round in (2, 0, 3, 3, 1):
        problems.assert_equal(stream.federation(round), in_order[round])
    report = stream.report()
    assert report["rounds"] == 9
    assert report["prepare_seconds"] > 0
    assert report["wait_seconds"] > 0


def test_memory_mapped_samples(tmp_path):
    stream, _ = uneven_stream()
    dataset = problems.dataset()
    mapped = {}
    for m, x in dataset.train.inputs.items():
        np.save(tmp_path / f"{m}.npy", x)
        mapped[m] = np.load(tmp_path / f"{m}.npy", mmap_mode="r")
    parts = fc.partition.Partition(stream._order, stream._sizes)
    dataset = dataset._replace(train=dataset.train._replace(inputs=mapped))
    skeleton = streaming.build_skeleton(dataset, parts, np.array(problems.AVAILABLE))
    other = streaming.CohortStream(dataset, parts, skeleton, jax.random.key(3), 2)
    for round in range(3):
        problems.assert_equal(stream.federation(round), other.federation(round))


def test_what_goes_wrong_in_the_thread_reaches_the_caller(monkeypatch):
    stream, _ = uneven_stream()
    stream.federation(0)

    def fail(ids):
        raise OSError("the disk is gone")

    monkeypatch.setattr(stream, "_prepare", fail)
    stream.federation(1)  # was under way
    with pytest.raises(OSError, match="the disk is gone"):
        stream.federation(2)


@pytest.mark.slow
def test_the_chunk_size_can_be_tuned(tmp_path):
    values = configs.to_dict(experiment(True).config)
    built = build(configs.from_dict(values | {"chunk_size": "auto"}))
    observer = At()
    training.train(built, start(built, tmp_path / "run"), [observer])
    assert any("chunk size" in note for note in observer.notes)


@pytest.mark.parametrize("batch_size", [7, 20, 1000])
def test_streamed_evaluation_equals_resident(batch_size):
    net, data, federation = problems.model(), problems.dataset(), problems.federation()
    params, stats = net.init(jax.random.key(1))
    results = [
        fc.build_evaluator(
            net, data.test, federation, batch_size=batch_size, stream=stream
        )(params, stats)
        for stream in (False, True)
    ]
    problems.assert_equal(*results)
    assert summary.summarise(results[1])["acc"] > 0


def test_what_streaming_cannot_do_is_refused(tmp_path, monkeypatch, capsys):
    def chosen(*, mu: float = 0.0):
        """Chooses the first clients.

        Args:
          mu: Unused.
        """
        return methods.Method(name="chosen", select=lambda *args: None)

    monkeypatch.setitem(configs.REGISTRIES["method"], "chosen", chosen)
    values = TINY | {"stream": True, "method": {"name": "chosen"}}
    with pytest.raises(ValueError, match="stream: method 'chosen' looks at clients"):
        build(configs.from_dict(values))
    monkeypatch.chdir(tmp_path)
    for argv, message in (
        (["train", "synthetic", "--stream", "--rounds-per-call=2"], "rounds_per_call"),
        (["train", "synthetic", "--stream", "--seeds=2", "--map-seeds"], "map_seeds"),
        (["sweep", "clients", "--stream"], "stream: a sweep"),
    ):
        assert main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert list(tmp_path.iterdir()) == []


def test_skeletons_are_small_and_enough():
    stream, resident = uneven_stream()
    skeleton = stream._skeleton
    assert all(x.size == 0 for x in skeleton.inputs.values())
    counts = [evaluation.client_class_counts(f, 4) for f in (skeleton, resident)]
    np.testing.assert_array_equal(*counts)
    mesh = client_mesh(2)
    placed = replicate(skeleton, mesh)
    assert dataclasses.replace(placed).num_clients == 5
