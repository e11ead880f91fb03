"""The client axis: dealing, chunks, devices, and what the compiled program contains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.clients import add_lanes, deal, lanes_of_devices
from fedcmi_jax.experiment import autotune
from fedcmi_jax.placement import client_mesh, own_rows, replicate
from fedcmi_jax.testing.problem import (
    SIZES,
    algorithm,
    assert_close,
    assert_equal,
    federation,
    model,
    plain,
    rounds,
)

METHODS = {
    "fedavg": fc.methods.fedavg(),
    "fedcmi": fc.methods.fedcmi(),
    "personal": fc.methods.fedcmi(personal_infiltration=True),  # has memory
    "scaffold": fc.methods.scaffold(),
    "bmsfed": fc.methods.bmsfed(),  # surveys all clients
}


QUICK = (("scaffold", 2),)
"""Parameters, a memory that is spread, and what the server keeps."""


def net(method):
    """The smallest that the method takes."""
    return model("two_projector" if method.needs_projectors else "classifier")


def compiled(problem, fed, num_rounds=2):
    """As ``rounds``, with the flags of the test."""
    return rounds(problem, fed, num_rounds, step=jax.jit(problem.round))


@pytest.mark.parametrize("cohort", [1, 2, 7, 24])
@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("chunk_size", [1, 4])
def test_deal_gives_everybody_one_place(cohort, devices, chunk_size):
    places = deal(cohort, devices, chunk_size)
    assert places.shape[0] == devices
    assert places.shape[2] == chunk_size
    assert sorted(places[places < cohort].tolist()) == list(range(cohort))


def test_deal_balances_falling_work():
    work = np.sort(np.random.default_rng(0).lognormal(3, 1, 64))[::-1]
    shares = work[deal(64, 2, 1)].sum((1, 2))
    assert shares.max() / shares.min() < 1.05


@pytest.mark.shipped_flags
@pytest.mark.parametrize(
    ("name", "devices"),
    [
        pytest.param(
            name,
            devices,
            marks=() if (name, devices) in QUICK else pytest.mark.slow,
        )
        for name in (*fc.methods.REGISTRY, "personal")
        for devices in ((2, 4, 8) if name == "fedcmi" else (2,))
    ],
)
def test_device_count_changes_no_bit(name, devices):
    """Sums in lanes are those of one device."""
    expected, expected_info = on_devices(name)
    state, info = on_devices(name, devices)
    assert_equal(state, expected)
    assert_equal(info, expected_info)


@pytest.mark.shipped_flags
@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_device_count_changes_no_bit_with_convolutions(devices):
    expected, _ = on_devices("fedcmi", convolutions=True)
    state, _ = on_devices("fedcmi", devices, convolutions=True)
    assert_equal(state, expected)


@functools.lru_cache(2)
def on_devices(name, devices=None, convolutions=False):
    """Two rounds of everybody, fetched from the devices; the last one stays known."""
    method = METHODS["personal"] if name == "personal" else fc.methods.REGISTRY[name]()
    if convolutions:
        data, parts = images()
        encoders = {m: fc.models.convnet(features=8) for m in data.modalities}
        small = fc.models.two_projector(encoders, data.shapes, 4, width=8)
        fed = fc.build_federation(data, parts)
    else:
        small, fed = net(method), federation()
    mesh, size = devices and client_mesh(devices), fed.num_clients
    options = {"clients_per_round": size, "chunk_size": 1 if convolutions else 2}
    problem = algorithm(method, small, mesh=mesh, **options)
    state, info = jax.device_get(plain(compiled(problem, replicate(fed, mesh))))
    return own_rows(state, size), info


@pytest.mark.up_to_rounding
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedcmi", "personal", "bmsfed"])
def test_a_fast_reduction_is_close(name):
    method, mesh = METHODS[name], client_mesh(2)
    expected, expected_info = compiled(algorithm(method, net(method)), federation())
    options = {"mesh": mesh, "chunk_size": 2, "reduction": "fast"}
    problem = algorithm(method, net(method), **options)
    state, info = compiled(problem, replicate(federation(), mesh))
    state = own_rows(state, len(SIZES))
    assert_close(jax.device_get(state.params), expected.params)
    assert_close(jax.device_get(state.memory), expected.memory)
    assert_close(jax.device_get(state.shared), expected.shared)
    assert_close(jax.device_get(info.metrics), expected_info.metrics)
    np.testing.assert_array_equal(info.cohort, expected_info.cohort)
    np.testing.assert_array_equal(info.accepted, expected_info.accepted)


@pytest.mark.parametrize("lanes", [1, 3, 8])
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_every_lane_is_on_one_device(lanes, devices):
    table = lanes_of_devices(lanes, devices)
    assert len(table) == devices
    assert sorted(table[table < lanes].tolist()) == list(range(lanes))
    for device, own in enumerate(table):
        assert set(own[own < lanes] % devices) <= {device}


def test_lanes_are_added_in_a_tree():
    """Neighbours first: 1 is lost beside 1e8, but not beside its neighbour -1e8."""
    totals = jnp.array([1e8, 1.0, -1e8, 0.0, 3.0], jnp.float32)
    assert float(add_lanes(totals)) == 3.0
    assert float(add_lanes(jnp.array([1e8, -1e8, 1.0, 0.0, 3.0]))) == 4.0


def test_too_few_lanes_is_one_line():
    with pytest.raises(ValueError, match="lanes: 4 are too few for 8 devices; give"):
        algorithm(METHODS["fedavg"], mesh=client_mesh(8), lanes=4)


@pytest.mark.shipped_flags
@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaffold", "personal"])
def test_memory_is_spread_over_devices_whatever_their_number(name):
    """Five clients on two devices: three rows each, of which hooks see five."""
    method = METHODS[name]
    options = {"model_": net(method), "clients_per_round": 3}
    expected, _ = compiled(algorithm(method, **options), federation())
    mesh = client_mesh(2)
    problem = algorithm(method, **options, mesh=mesh, rounds_per_call=2)
    fed = replicate(federation(), mesh)
    start = jax.jit(problem.init)(jax.random.key(0), fed)
    state, _ = problem.run(start, fed, 2)
    for leaf in jax.tree.leaves(state.memory):
        assert leaf.addressable_shards[0].data.shape[0] == 3
    assert_equal(own_rows(jax.device_get(plain(state)), len(SIZES)), expected)
    assert all(x.is_deleted() for x in jax.tree.leaves(start.memory))  # donated


@pytest.mark.up_to_rounding
def test_a_rejected_client_is_named_whatever_device_it_was_dealt_to():
    fed = federation()
    bad = int(np.argmax(SIZES))
    begin = int(fed.offsets[bad])
    inputs = {m: x.at[begin].set(jnp.nan) for m, x in fed.inputs.items()}
    fed = dataclasses.replace(fed, inputs=inputs)
    mesh = client_mesh(2)
    method = METHODS["scaffold"]
    problem = algorithm(method, net(method), mesh=mesh, chunk_size=2)
    _, info = compiled(problem, replicate(fed, mesh), 1)
    assert int(info.cohort[np.flatnonzero(~np.asarray(info.accepted))[0]]) == bad
    assert int(info.rejected) == 1


def test_too_many_devices_is_one_line():
    with pytest.raises(ValueError, match=r"devices: 9 is not possible.*give 1 to 8"):
        client_mesh(9)


def images():
    """Forty gray and colour images of four clients."""
    shapes = {"gray": (12, 12, 1), "color": (12, 12, 3)}
    rng = np.random.default_rng(0)

    def split(n):
        inputs = {m: rng.random((n, *s), np.float32) for m, s in shapes.items()}
        return fc.data.Split(inputs, rng.integers(0, 4, n).astype(np.int32))

    data = fc.data.Dataset("images", tuple(shapes), tuple("abcd"), split(40), split(4))
    return data, fc.partition.iid(data.train, 4, rng)


@pytest.fixture(
    scope="module",
    params=["fedavg", pytest.param("fedcmi", marks=pytest.mark.slow)],
)
def program(request):
    """The optimised program of a round on two devices, and what it is compiled from.

    FedAvg on images as vectors, or FedCMI on convolutions.
    """
    data, parts = images()
    fed = fc.build_federation(data, parts)
    if request.param == "fedavg":
        encoders = {m: fc.models.mlp(features=8) for m in data.modalities}
        small = fc.models.classifier(encoders, data.shapes, 4)
    else:
        encoders = {m: fc.models.convnet(features=8) for m in data.modalities}
        small = fc.models.two_projector(encoders, data.shapes, 4, width=8)
    mesh = client_mesh(2)
    problem = algorithm(METHODS[request.param], small, clients_per_round=4, mesh=mesh)
    fed = replicate(fed, mesh)
    state = jax.jit(problem.init)(jax.random.key(0), fed)
    lowered = jax.jit(problem.round).lower(state, fed)
    return lowered.as_text(), lowered.compile().as_text(), fed


def test_program_has_no_float64_and_no_host_callback(program):
    stable_hlo, hlo, _ = program
    for text in (stable_hlo, hlo):
        assert "f64" not in text
        assert "callback" not in text
    assert "infeed" not in hlo
    assert "outfeed" not in hlo


def test_program_reduces_over_devices_once(program):
    """They gather the lanes' sums, and who was accepted; a fast reduction adds once."""
    assert program[1].count(" all-gather(") == 2
    assert program[1].count(" all-reduce(") == 0


def test_program_never_copies_the_data_set(program):
    _, hlo, fed = program
    for x in fed.inputs.values():
        shape = f"f32[{','.join(map(str, x.shape))}]"
        made = [
            line
            for line in hlo.splitlines()
            if f" = {shape}" in line.replace("{", " {")
            and not any(
                f" {op}(" in line
                for op in ("parameter", "get-tuple-element", "bitcast")
            )
        ]
        assert made == []


def test_teacher_runs_once_per_client_not_per_step():
    """Twice the epochs add the cost of training alone: the teacher is not in it."""
    fed = federation()

    def flops(method, epochs):
        local = fc.LocalTraining(epochs=epochs, batch_size=4)
        problem = algorithm(method, model(), local=local)
        state = jax.eval_shape(problem.init, jax.random.key(0), fed)
        text = jax.jit(problem.round).lower(state, fed).as_text()
        return text.count("dot_general")

    assert flops(fc.methods.fedcmi(), 1) == flops(fc.methods.fedcmi(), 3)


@pytest.mark.slow
def test_autotune_measures_records_and_reuses(tmp_path):
    fed = federation()
    built = []

    def build(size):
        built.append(size)
        return algorithm(fc.methods.fedavg(), model("classifier"), chunk_size=size)

    args = (build, fed, jax.random.key(0), [1, 3])
    size, line = autotune.choose(tmp_path, *args)
    assert size in (1, 3)
    assert built == [1, 3]
    assert "ms" in line
    again, _ = autotune.choose(tmp_path, *args)
    assert again == size
    assert built == [1, 3]
    (tmp_path / autotune.RECORD).write_text('{"chunk_size": 0}')
    with pytest.raises(ValueError, match="holds no chunk size"):
        autotune.choose(tmp_path, *args)


def test_candidates_fit_a_devices_share():
    assert max(autotune.candidates(10, client_mesh(4))) <= 3
    assert autotune.candidates(1, client_mesh(8)) == [1]


@pytest.mark.up_to_rounding
@pytest.mark.slow
def test_coefficients_can_be_mapped():
    """lambda, mu and the learning rate as arrays: one program for a grid."""
    fed = federation()

    def loss(lam, mu, rate):
        local = fc.LocalTraining(epochs=1, batch_size=4, learning_rate=rate)
        method = fc.methods.fedcmi(lam=lam, mu=mu, warmup_rounds=0)
        problem = algorithm(method, model(), local=local)
        state, _ = problem.round(problem.init(jax.random.key(0), fed), fed)
        return state.params

    grid = jnp.array([0.5, 1.0]), jnp.array([0.0, 0.1]), jnp.array([0.1, 0.01])
    mapped, single = jax.jit(jax.vmap(loss))(*grid), jax.jit(loss)
    for i in range(2):
        alone = single(*(x[i] for x in grid))
        assert_close(jax.tree.map(lambda x, i=i: x[i], mapped), alone)


@pytest.mark.up_to_rounding
@pytest.mark.slow
def test_mixed_precision_keeps_float32_where_it_counts():
    net = fc.models.mixed_precision(model())
    fed = federation()
    exact, _ = rounds(algorithm(fc.methods.fedcmi()), fed)
    short, info = rounds(algorithm(fc.methods.fedcmi(), net), fed)
    for leaf in jax.tree.leaves((short.params, info.metrics)):
        assert leaf.dtype == jnp.float32
    assert_close(short.params, exact.params, rtol=0.2, atol=0.05)
    with pytest.raises(AssertionError):
        assert_close(short.params, exact.params)
