"""Local training: optimizer, schedule, order of samples, one client by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedcmi_jax as fc
from fedcmi_jax.federation import ClientData
from fedcmi_jax.local import shuffled_positions
from fedcmi_jax.optimizers import clipped, without_frozen
from fedcmi_jax.testing.problem import (
    SIZES,
    algorithm,
    assert_close,
    assert_equal,
    federation,
    model,
    poison,
    rounds,
)


def client_data(fed, i, batch_size=4):
    return ClientData(
        federation=fed,
        offset=fed.offsets[i],
        num_examples=fed.sizes[i],
        num_probe=fed.probe_sizes[i],
        available=fed.available[i],
        batch_size=batch_size,
        max_batches=jnp.array(3),
    )


def test_sgd_has_torch_momentum_and_decay():
    optimizer = fc.torch_sgd(momentum=0.9, weight_decay=0.1)(jnp.array(0.5))
    w = jnp.array(1.0)
    state = optimizer.init(w)
    # d = 2 + 0.1 = 2.1, w = 1 - 1.05 = -0.05; buf = 0.9 * 2.1 + 2 - 0.005 = 3.885.
    for gradient, expected in ((2.0, -0.05), (2.0, -0.05 - 0.5 * 3.885)):
        update, state = optimizer.update(jnp.array(gradient), state, w)
        w = optax.apply_updates(w, update)
        np.testing.assert_allclose(w, expected, rtol=1e-6)


def test_schedule_is_continuous_by_default():
    rate = fc.linear_decay(1e-3, 1e-4, 80, 180)
    np.testing.assert_allclose(rate(jnp.array(0)), 1e-3)
    np.testing.assert_allclose(rate(jnp.array(80)), 1e-3)
    np.testing.assert_allclose(rate(jnp.array(130)), 5.5e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(jnp.array(180)), 1e-4, rtol=1e-5)


def test_legacy_schedule_jumps():
    rate = fc.linear_decay(1e-3, 1e-4, 80, 180, legacy=True)
    np.testing.assert_allclose(rate(jnp.array(80)), 1e-3)
    np.testing.assert_allclose(rate(jnp.array(81)), 5.95e-4, rtol=1e-3)


@pytest.mark.parametrize("client", range(len(SIZES)))
def test_every_epoch_sees_every_sample_once(client):
    data = client_data(federation(), client)
    order = np.asarray(shuffled_positions(jax.random.key(client), data))
    size = SIZES[client]
    assert sorted(order[:size]) == list(range(size))


def test_order_depends_on_the_key():
    data = client_data(federation(), 2)
    a = shuffled_positions(jax.random.key(0), data)[:12]
    b = shuffled_positions(jax.random.key(1), data)[:12]
    assert (a != b).any()


def test_map_covers_training_and_held_out_samples():
    fed = federation(probe_fraction=0.4)
    data = client_data(fed, 2)
    labels = data.map(lambda batch: batch.labels)
    start = int(fed.offsets[2])
    np.testing.assert_array_equal(labels[:12], fed.labels[start : start + 12])
    assert np.flatnonzero(data.measured()).tolist() == [8, 9, 10, 11]
    assert float(data.stored().valid.sum()) == 8
    whole = client_data(federation(), 2)
    assert float(whole.measured().sum()) == 12


def test_padding_never_looks_at_another_client():
    fed = poison(federation(), 1)
    method = fc.methods.fedcmi()
    local = fc.LocalTraining(epochs=1, batch_size=32)
    _, info = rounds(algorithm(method, local=local), fed, 1)
    accepted, cohort = np.asarray(info.accepted), np.asarray(info.cohort)
    assert cohort[~accepted].tolist() == [1]


@pytest.mark.parametrize("clip", [None, 0.1])
def test_one_client_is_ordinary_training(clip):
    """One client with everything, against a plain loop over its batches."""
    net = model("classifier")
    fed = federation(np.ones((5, 2), bool))
    local = fc.LocalTraining(
        epochs=2, batch_size=4, learning_rate=0.1, shuffle=False, clip_grad_norm=clip
    )

    def only_the_third(server, key):
        ids = jnp.array([2], jnp.int32)
        return fc.methods.Selection(ids, fed.available[ids], (), ())

    method = fc.Method(select=only_the_third)
    problem = algorithm(method, net, local=local, clients_per_round=1)
    start = problem.init(jax.random.key(0), fed)
    state, _ = jax.jit(problem.round)(start, fed)

    optimizer, norms = fc.torch_sgd()(jnp.array(0.1)), []
    params, opt_state = start.params, optimizer.init(start.params)
    offset = int(fed.offsets[2])
    for _ in range(2):
        for b in range(3):
            rows = slice(offset + 4 * b, offset + 4 * b + 4)
            batch = fc.Batch(
                {m: x[rows] for m, x in fed.inputs.items()},
                fed.labels[rows],
                jnp.ones(4),
                jnp.ones((4, 2)),
                jnp.arange(4),
            )

            def loss(params, batch=batch):
                outputs, _ = net.apply(params, start.batch_stats, batch, True)
                return optax.softmax_cross_entropy_with_integer_labels(
                    outputs.logits, batch.labels
                ).mean()

            grads = jax.grad(loss)(params)
            norms.append(
                sum(float((g**2).sum()) for g in jax.tree.leaves(grads)) ** 0.5
            )
            if clip is not None:
                scale = min(1.0, clip / norms[-1])
                grads = jax.tree.map(lambda g, scale=scale: g * scale, grads)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
    assert_close(state.params, params)
    assert clip is None or min(norms) < max(norms) and max(norms) > clip


def test_clipping_comes_before_decay_and_leaves_frozen_arrays_out():
    """||(3, 4)|| = 5 is clipped to 1; decay adds 0.1 w; the frozen 100 is not seen."""
    plain = fc.torch_sgd(momentum=0.0, weight_decay=0.1)
    sgd = clipped(plain, 1.0)(jnp.array(0.5))
    sgd = without_frozen(sgd, {"w": False, "fixed": True})
    w = {"w": jnp.array([1.0, 2.0]), "fixed": jnp.zeros(1)}
    grads = {"w": jnp.array([3.0, 4.0]), "fixed": jnp.array([100.0])}
    step, _ = sgd.update(grads, sgd.init(w), w)
    np.testing.assert_allclose(step["w"], [-0.5 * 0.7, -0.5 * 1.0], rtol=1e-6)


def test_a_norm_that_is_never_reached_changes_no_bit():
    states = []
    for clip in (None, 1e6):
        local = fc.LocalTraining(batch_size=4, learning_rate=0.1, clip_grad_norm=clip)
        problem = algorithm(fc.methods.fedavg(), model("classifier"), local=local)
        states.append(rounds(problem, federation())[0])
    assert_equal(*states)


def test_steps_past_a_clients_last_are_none_when_clipped():
    """Clients of 1 to 12 samples, together and one by one."""
    local = fc.LocalTraining(batch_size=4, learning_rate=0.1, clip_grad_norm=0.1)
    alone, together = (
        rounds(
            algorithm(
                fc.methods.fedavg(), model("classifier"), local=local, chunk_size=size
            ),
            federation(),
        )[0]
        for size in (1, len(SIZES))
    )
    assert_close(alone.params, together.params)


@pytest.mark.parametrize("options", [{"epochs": 0}, {"batch_size": 0}])
def test_bad_sizes_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: 0 is below 1"):
        fc.LocalTraining(**options)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_bad_clipping_is_named(clip):
    with pytest.raises(ValueError, match=f"clip_grad_norm: {clip} is not positive"):
        fc.LocalTraining(clip_grad_norm=clip)


@pytest.mark.parametrize(
    "options",
    [{"clients_per_round": 0}, {"chunk_size": 0}, {"rounds_per_call": 0}],
)
def test_bad_algorithm_sizes_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: 0 is below 1"):
        algorithm(fc.methods.fedavg(), **options)


def test_more_clients_per_round_than_clients():
    problem = algorithm(fc.methods.fedavg(), clients_per_round=6)
    with pytest.raises(ValueError, match="clients_per_round: 6 is more than"):
        problem.init(jax.random.key(0), federation())


def test_federation_of_another_data_set():
    problem = algorithm(fc.methods.fedavg())
    with pytest.raises(ValueError, match="federation: its modalities"):
        problem.init(jax.random.key(0), federation(modalities=("a", "b")))


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_bad_probe_fraction(fraction):
    with pytest.raises(ValueError, match="probe_fraction"):
        federation(probe_fraction=fraction)
