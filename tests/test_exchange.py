"""Samples spread over devices: the same bits, a part of the bytes."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.assembly import build_federation
from fedcmi_jax.cli.main import main
from fedcmi_jax.evaluation.metrics import client_class_counts
from fedcmi_jax.experiment import config as configs
from fedcmi_jax.experiment import training
from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.placement import client_mesh, replicate
from fedcmi_jax.testing import problem as problems
from fedcmi_jax.testing.problem import (
    AVAILABLE,
    NUM_CLASSES,
    SIZES,
    algorithm,
    dataset,
    parts,
)
from tests.test_clients import net
from tests.test_config import TINY
from tests.test_launch import TRAIN, free_port, metrics

# Bits on several devices are to be equal as they are shipped.
pytestmark = pytest.mark.shipped_flags

DEVICES = 8


def federations(mesh, probe_fraction=0.2):
    """Everywhere, and spread; some samples lack a modality, some are held out."""
    rng = np.random.default_rng(0)
    first = rng.random(sum(SIZES)) < 0.7
    present = np.stack([first, ~first | (rng.random(len(first)) < 0.5)], axis=1)
    data = dataset()
    data = data._replace(train=data.train._replace(available=present))
    options = {"probe_fraction": probe_fraction}
    everybody = np.ones_like(AVAILABLE, bool)
    whole = build_federation(data, parts(), everybody, **options)
    spread = build_federation(data, parts(), everybody, **options, mesh=mesh)
    return replicate(whole, mesh), spread


@pytest.mark.parametrize(
    ("name", "devices", "chunk_size"),
    [
        pytest.param("fedavg", 2, 2, marks=pytest.mark.slow),
        pytest.param("scaffold", DEVICES, 1, marks=pytest.mark.slow),
        pytest.param("fedcmi", 3, 2, marks=pytest.mark.slow),
        pytest.param("bmsfed", 2, 1, marks=pytest.mark.slow),  # surveys all clients
    ],
)
def test_where_samples_lie_changes_no_bit(name, devices, chunk_size):
    mesh, method = client_mesh(devices), fc.methods.REGISTRY[name]()
    problem = algorithm(method, net(method), mesh=mesh, chunk_size=chunk_size)
    whole, spread = federations(mesh)
    step = jax.jit(problem.round)
    expected, expected_info = problems.rounds(problem, whole, step=step)
    state, info = problems.rounds(problem, spread, step=step)
    problems.assert_equal(jax.device_get(problems.plain(state)), expected)
    problems.assert_equal(info, expected_info)


@pytest.mark.slow
def test_a_compiled_run_takes_its_own_result():
    """BMSFed's distances would be left in columns, a half at each device."""
    mesh, clients = client_mesh(2), 4
    data = fc.data.load("synthetic", train_samples=16, test_samples=8, features=4)
    encoders = {m: fc.models.mlp(features=4) for m in data.modalities}
    small = fc.models.classifier(encoders, data.shapes, data.num_classes)
    options = {"clients_per_round": clients, "mesh": mesh, "chunk_size": 1}
    problem = algorithm(fc.methods.bmsfed(), small, **options)
    split = fc.partition.iid(data.train, clients, np.random.default_rng(0))
    whole = replicate(build_federation(data, split), mesh)
    state = jax.jit(problem.init)(jax.random.key(0), whole)
    program = problem.run.lower(state, whole, np.int32(1)).compile()
    for _ in range(2):
        state, _ = program(state, whole, np.int32(1))
    assert state.round == 2


@pytest.mark.slow
def test_a_device_holds_its_part_and_a_chunk():
    """Its share of the samples; beside them at most two chunks more than without."""
    mesh, per_client, clients = client_mesh(DEVICES), 64, 16
    data = fc.data.load(
        "synthetic", train_samples=clients * per_client, test_samples=8, features=256
    )
    split = fc.partition.iid(data.train, clients, np.random.default_rng(0))
    encoders = {m: fc.models.mlp(features=4) for m in data.modalities}
    small = fc.models.classifier(encoders, data.shapes, data.num_classes)
    problem = algorithm(
        fc.methods.fedavg(), small, clients_per_round=clients, mesh=mesh, chunk_size=2
    )
    spread = build_federation(data, split, mesh=mesh)
    whole = replicate(build_federation(data, split), mesh)

    def program(fed):
        state = jax.eval_shape(problem.init, jax.random.key(0), fed)
        return jax.jit(problem.round).lower(state, fed).compile()

    def of_samples(fed):
        arrays = [*fed.inputs.values(), fed.labels]
        return sum(x.addressable_shards[0].data.nbytes for x in arrays)

    compiled = program(spread)
    assert of_samples(spread) == of_samples(whole) // DEVICES
    held, everything = (p.memory_analysis() for p in (compiled, program(whole)))
    saved = of_samples(whole) - of_samples(spread)
    arguments = everything.argument_size_in_bytes - held.argument_size_in_bytes
    assert arguments == saved
    chunk = 2 * of_samples(whole) // clients
    extra = held.temp_size_in_bytes - everything.temp_size_in_bytes
    assert extra <= 2 * chunk
    # They travel, and nothing gathers all of them.
    assert " all-to-all(" in compiled.as_text()
    gathered = [x for x in compiled.as_text().splitlines() if " all-gather(" in x]
    assert not any("256]" in line for line in gathered)


def test_a_federation_of_another_mesh_is_refused_in_one_line():
    _, spread = federations(client_mesh(4))
    problem = algorithm(fc.methods.fedavg(), mesh=client_mesh(2))
    with pytest.raises(ValueError, match="spread over 4 devices, the algorithm runs"):
        problem.init(jax.random.key(0), spread)


def in_processes(*arguments):
    """What ``tests.spread_process`` prints, one process per argument list."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "tests.spread_process"]
    started = [
        subprocess.Popen(
            [*command, *a], env=environment, stdout=subprocess.PIPE, text=True
        )
        for a in arguments
    ]
    outputs = [p.communicate(timeout=240)[0] for p in started]
    assert all(p.returncode == 0 for p in started)
    return [json.loads(x.splitlines()[-1]) for x in outputs]


def test_clients_classes_are_counted_wherever_samples_lie():
    whole, spread = federations(client_mesh(2))
    counts = [client_class_counts(fed, NUM_CLASSES) for fed in (whole, spread)]
    np.testing.assert_array_equal(*counts)


@pytest.mark.slow
def test_each_process_reads_its_part_only():
    where = f"localhost:{free_port()}"
    first, second = in_processes([where, "0"], [where, "1"])
    alone = in_processes([])[0]
    for one, other, everything in zip(
        first["rows"], second["rows"], alone["rows"], strict=True
    ):
        assert sorted(one + other) == everything
        assert len(one) == -(-len(everything) // 2)
    assert first["digest"] == second["digest"] == alone["digest"]


def test_one_device_has_nothing_to_spread_over(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*TRAIN, "--spread-samples", "--devices=1"]) == 2
    error = capsys.readouterr().err
    assert "spread_samples: there is one device" in error
    assert error.count("\n") == 1
    assert main([*TRAIN, "--spread-samples", "--devices=2", "--stream"]) == 2
    assert "spread_samples: stream keeps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_the_same_wherever_its_samples_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, flags in {
        "whole": ["--devices=1"],
        "spread": ["--devices=3", "--spread-samples"],
    }.items():
        assert main([*TRAIN, "--rounds=6", f"--output={name}", *flags]) == 0
    assert metrics(tmp_path / "spread") == metrics(tmp_path / "whole")


class Notes(fc.Callback):
    def __init__(self):
        self.seen = []

    def note(self, text):
        self.seen.append(text)


@pytest.mark.slow
def test_a_run_of_padded_memory_finds_its_best_round_again(tmp_path):
    """Five clients on three devices: six rows there, five in every checkpoint."""
    values = {"rounds": 4, "checkpoint_every": 1, "validation_fraction": 0.2}
    values |= {"clients": 5, "method": {"name": "scaffold"}}
    built = build(configs.from_dict(TINY | values), client_mesh(3))
    training.write_config(tmp_path, built.config)
    whole = training.train(built, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "4")
    (tmp_path / "summary.json").unlink()
    notes = Notes()
    again = training.train(built, tmp_path, [notes])
    assert notes.seen == []
    problems.assert_equal(again.state, whole.state)
