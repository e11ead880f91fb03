"""Compiling for TPU pods that are not there: fedcmi bench --topology."""

import dataclasses
import json
import math
import os
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import fedcmi_jax as fc
from fedcmi_jax.algorithm import build_algorithm
from fedcmi_jax.bench import hlo, layers, topology, workloads
from fedcmi_jax.cli import bench_topology
from fedcmi_jax.cli.main import main
from fedcmi_jax.models.convolution import convolution

CLIENTS = 64
SAMPLES = 32

TINY = dataclasses.replace(
    workloads.WORKLOADS["mlp"],
    make_encoder=lambda: fc.models.mlp(features=8),
    shapes={"strong": (6,), "weak": (6,)},
    sizes=workloads.equal(SAMPLES),
    width=8,
    batch_size=16,
)
"""Compiles in seconds; its samples are more than the memory of all its clients."""


@pytest.fixture(scope="module")
def pod():
    """Four chips of a TPU v5e."""
    return pod_or_skip("v5e:2x2")


def pod_or_skip(name):
    """The mesh; .ci/run says in FEDCMI_REQUIRE_EXTRAS where nothing may be skipped."""
    try:
        return topology.topology_mesh(name)
    except ValueError as error:
        if "tpu" in os.environ.get("FEDCMI_REQUIRE_EXTRAS", "").split(","):
            raise
        pytest.skip(str(error))


def compiled(method, mesh, clients=CLIENTS, workload=TINY, spread=False, **options):
    """What the compiler says of a method's round in which everybody takes part."""
    entry = workloads.entries((method,))[method]
    algorithm = build_algorithm(
        entry.method,
        workload.model(entry.architecture),
        clients_per_round=clients,
        local=workload.local(),
        mesh=mesh,
        **({"chunk_size": 2} | options),
    )
    federation = workload.shapes_of(clients)
    if spread:
        federation = topology.spread(federation, mesh)
    return topology.compile_round(algorithm, federation, mesh)


def num_params(method):
    architecture = workloads.entries((method,))[method].architecture
    params, _ = jax.eval_shape(TINY.model(architecture).init, jax.random.key(0))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.shipped_flags
@pytest.mark.parametrize("method", fc.methods.REGISTRY)
def test_every_method_compiles_for_a_pod_with_one_sum(method, pod):
    found = compiled(method, pod).collectives
    vectors = [
        int(length)
        for one in found
        if one.kind == "all-reduce"
        for length in re.findall(r"f32\[(\d+)\]", one.shape)
    ]
    assert len([n for n in vectors if n >= num_params(method)]) == 1
    samples = CLIENTS * SAMPLES * math.prod(TINY.shapes["strong"]) * 4
    gathered = [one for one in found if one.kind in ("all-gather", "all-to-all")]
    assert all(one.bytes < samples for one in gathered)


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_an_automatic_reduction_is_the_fast_one_there(pod):
    """The mesh's platform decides, not that of the process."""
    automatic, fast, fixed = (
        hlo.by_kind(compiled("fedavg", pod, reduction=r).collectives)
        for r in ("auto", "fast", "fixed")
    )
    assert automatic == fast
    assert "all-gather" not in fast
    assert "all-gather" in fixed


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_memory_of_clients_per_chip_falls_with_the_chips(pod):
    one = Mesh(pod.devices[:1], pod.axis_names)
    # The clients lie along the lanes of a tile, 128 of them: fewer take as much.
    few, many = (
        compiled("fedper", mesh, clients=1024).argument_bytes for mesh in (one, pod)
    )
    personal = 1024 * (16 * 10 + 10) * 4  # the fusion's weights
    assert few - many > 0.7 * personal


WIDE = dataclasses.replace(TINY, shapes={"strong": (128,), "weak": (128,)})


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_spread_samples_are_a_part_on_every_chip(pod):
    options = {"workload": WIDE, "chunk_size": 1}
    whole, part = (compiled("fedavg", pod, spread=s, **options) for s in (False, True))
    samples = CLIENTS * SAMPLES * 2 * 128 * 4
    saved = whole.argument_bytes - part.argument_bytes
    assert saved == pytest.approx(samples * 3 / 4, rel=0.05)
    assert part.temp_bytes < whole.temp_bytes + samples / 4
    gathered = [one for one in part.collectives if one.kind == "all-gather"]
    assert all(one.bytes < samples / CLIENTS for one in gathered)
    assert "all-to-all" in hlo.by_kind(part.collectives)


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_no_chip_gathers_the_memory_of_all_clients(pod):
    found = compiled("scaffold", pod, clients=1024).collectives
    # What a round reports of each client: accepted, set aside, two norms, steps, loss.
    everybody = 1024 * 6 * 4
    gathered = [one for one in found if one.kind in ("all-gather", "all-to-all")]
    assert all(one.bytes <= everybody for one in gathered)
    assert "collective-permute" in hlo.by_kind(found)


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_temporary_memory_of_clients_falls_with_the_chips(pod):
    """So many that it is not on the chips' fast memory, which is not counted."""
    few, many = (
        compiled("scaffold", mesh, 16_384, workloads.WORKLOADS["mlp"]).temp_bytes
        for mesh in (pod, pod_or_skip("v5e:8x8"))
    )
    assert many < few / 4


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_convolutions_are_lowered_for_the_pod(pod):
    """As XLA's own, although the process runs on CPU."""

    def gradients(conv):
        def run(x, w):
            y, vjp = jax.vjp(
                lambda x, w: conv(
                    x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                ),
                x,
                w,
            )
            return vjp(y)

        chip = jax.sharding.SingleDeviceSharding(pod.devices.flat[0])
        args = [
            jax.ShapeDtypeStruct(s, np.float32, sharding=chip)
            for s in ((2, 4, 8, 8, 16), (2, 3, 3, 16, 16))
        ]
        return topology.compiled(jax.jit(jax.vmap(run)).lower(*args)).as_text()

    ours, theirs = map(gradients, (convolution, jax.lax.conv_general_dilated))
    assert hlo.estimated_cycles(ours) == hlo.estimated_cycles(theirs) > 0


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_bench_compiles_for_a_pod(pod, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(workloads.WORKLOADS, "mlp", TINY)
    flags = ["--topology=v5e:2x2", "--clients=8", "--method=fedprox"]
    assert main(["bench", *flags, "--chunk-size=1,2"]) == 0
    assert "| mlp | 8 | fedprox | 2 |" in capsys.readouterr().out
    with open("bench-mlp-v5e-2x2.json") as file:
        report = json.load(file)
    assert report["chips"] == 4
    assert [row["chunk_size"] for row in report["results"]] == [1, 2]
    for row in report["results"]:
        assert row["compile_seconds"] > 0
        assert row["argument_bytes"] > 8 * SAMPLES * 2 * 6 * 4
        assert row["collectives"]["all-reduce"]["count"] >= 1


@pytest.mark.slow
@pytest.mark.shipped_flags
def test_bench_compares_forms_of_a_layer(pod, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    few = (layers.Layer("small stem", 2, (6, 5), 1, 4, 3, first=True),)
    monkeypatch.setattr("fedcmi_jax.bench.layer_cycles.LAYERS", few)
    assert main(["bench", "--topology=v5e:2x2", "--workload=layers"]) == 0
    assert "| small stem |" in capsys.readouterr().out
    with open("bench-layers-v5e-2x2.json") as file:
        (row,) = json.load(file)["results"]
    assert set(row["cycles"]) == {"in turn", "grouped", "unrolled", "patches"}
    assert min(row["cycles"].values()) > 0


@pytest.mark.slow
def test_an_unknown_topology_is_one_line(pod, capsys):
    assert main(["bench", "--topology=v5e:3x3"]) == 2
    error = capsys.readouterr().err
    assert "topology: libtpu cannot make 'v5e:3x3'" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--against=torch"], "against: does not go with --topology"),
        (["--repeats=3"], "repeats: does not go with --topology"),
        (["--devices=2"], "devices: does not go with --topology"),
        (["--chunk-size=auto"], "chunk_size: 'auto'; with --topology"),
        (["--chunk-size=8,some"], "chunk_size: '8,some'; with --topology"),
        (["--workload=gpt"], "workload: unknown 'gpt'"),
        (["--method=fedsgd"], "method: unknown 'fedsgd'"),
        ([], "pip install 'fedcmi_jax[tpu]'"),
    ],
)
def test_mistakes_are_one_line(flags, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(topology, "find_spec", lambda _: None)
    assert main(["bench", "--topology=v5e:2x2", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mlp", "uneven", "convnet"])
def test_shapes_stand_for_the_federation(name):
    workload = workloads.WORKLOADS[name]
    made = workload.federation(3)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), made)
    found = jax.tree.map(lambda x: (x.shape, x.dtype), workload.shapes_of(3))
    assert found == expected


TEXT = """
%body (x: f32[8]) -> f32[8] {
  %sum = (f32[4]{0:T(1024)S(1)}, bf16[2,3]{1,0}) all-reduce(%a, %b), channel_id=1
  %started = (f32[2]{0}, f32[8]{0}) all-gather-start(%c), dimensions={0}
  %done = f32[8]{0} all-gather-done(%started)
  ROOT %moved = pred[5]{0} collective-permute(%d), channel_id=3
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %a = f32[8] fusion(%x), backend_config={"estimated_cycles":"40"}
  ROOT %b = f32[8] copy(%a), backend_config={"estimated_cycles":"2"}
}
"""


def test_collectives_are_read_from_the_text():
    found = hlo.collectives(TEXT)
    assert [(one.kind, one.bytes) for one in found] == [
        ("all-reduce", 4 * 4 + 6 * 2),
        ("all-gather", 8 * 4),
        ("collective-permute", 5),
    ]


def test_cycles_are_those_of_the_main_computation():
    assert hlo.estimated_cycles(TEXT) == 42
    loop = TEXT.replace("f32[8] copy(%a)", "f32[8]{0} while(%a), body=%body")
    with pytest.raises(ValueError, match="has a loop"):
        hlo.estimated_cycles(loop)


def test_what_does_not_fit_is_a_line_of_the_table():
    row = {"workload": "mlp", "clients": 8, "entry": "fedavg", "chunk_size": 1}
    line = bench_topology._line(row | {"does_not_fit": "HBM is full"})
    assert "| HBM is full |" in line
    assert line.count("|") == bench_topology._HEADER.splitlines()[0].count("|")
