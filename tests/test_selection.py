"""Methods that choose clients: hand-worked numbers and properties."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.federation import ClientData
from fedcmi_jax.methods._facility_location import distances, greedy
from fedcmi_jax.methods.seen import LocalUpdate
from fedcmi_jax.testing.problem import (
    SIZES,
    algorithm,
    assert_close,
    compiled,
    federation,
    model,
    rounds,
)

bmsfed = importlib.import_module("fedcmi_jax.methods.bmsfed")
power_of_choice = importlib.import_module("fedcmi_jax.methods.power_of_choice")

BOTH, FIRST, SECOND = (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)


@functools.cache
def client(i, use=None):
    """Client i of the problem before its training; ``use``: what it trains with."""
    fed, net = federation(), model("classifier")
    params, batch_stats = net.init(jax.random.key(0))
    data = ClientData(
        federation=fed,
        offset=fed.offsets[i],
        num_examples=fed.sizes[i],
        num_probe=fed.probe_sizes[i],
        available=fed.available[i] if use is None else jnp.array(use),
        batch_size=4,
        max_batches=jnp.int32(3),
    )
    last = {m: jnp.full(x.shape, 7.0) for m, x in flat_encoders(params).items()}
    memory = bmsfed.Memory(last, last, jnp.array(100.0))
    return fc.methods.Client(
        net,
        params,
        batch_stats,
        None,
        memory,
        data,
        jnp.array(0),
        jnp.array(0.1),
        num_steps=3,
        has=fed.available[i],
    )


def flat_encoders(params):
    return {m: bmsfed.flat(x) for m, x in params["encoder"].items()}


# --- Power-of-Choice ------------------------------------------------------------------


def test_powd_picks_the_greatest_losses():
    """By hand: losses of all clients, computed directly, the two greatest train."""
    net, fed = model("classifier"), federation(np.ones((5, 2), bool))
    problem = algorithm(
        fc.methods.power_of_choice(candidates=5), net, clients_per_round=2
    )
    start = problem.init(jax.random.key(0), fed)
    _, info = jax.jit(problem.round)(start, fed)
    losses = []
    for offset, size in zip(fed.offsets.tolist(), SIZES, strict=True):
        rows = slice(offset, offset + size)
        batch = fc.Batch(
            {m: x[rows] for m, x in fed.inputs.items()},
            fed.labels[rows],
            jnp.ones(size),
            jnp.ones((size, 2)),
            jnp.arange(size),
        )
        logits = net.apply(start.params, start.batch_stats, batch, False)[0].logits
        log_probs = jax.nn.log_softmax(logits)
        losses.append(-float(log_probs[jnp.arange(size), batch.labels].mean()))
    expected = np.argsort(losses)[-2:]
    assert set(info.cohort.tolist()) == set(expected.tolist())


def test_powd_candidates_are_drawn_by_size():
    powd = power_of_choice
    sizes = jnp.array([1, 1, 98])
    draws = [
        powd.candidate_clients(jax.random.key(i), sizes, 1, "by_size").item()
        for i in range(200)
    ]
    # Client 2 has 98 % of the samples; 3 standard deviations of 200 draws are 3 %.
    assert np.mean(np.array(draws) == 2) > 0.95
    both = powd.candidate_clients(jax.random.key(0), sizes, 3, "by_size")
    assert sorted(both.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    "average", ["uniform", pytest.param("by_size", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_powd_averages_by_hand(average):
    """All of d = K candidates are chosen, whatever their losses are."""
    net, fed = model("classifier"), federation(np.ones((5, 2), bool))
    alone = algorithm(
        fc.Method(
            init=lambda *_: (jnp.zeros(1, jnp.int32), ()),
            select=lambda server, key: fc.methods.Selection(
                server.shared, fed.available[server.shared], server.shared, ()
            ),
        ),
        net,
        clients_per_round=1,
    )
    start = alone.init(jax.random.key(0), fed)
    method = fc.methods.power_of_choice(candidates=2, draw="uniform", average=average)
    state, info = rounds(algorithm(method, net, clients_per_round=2), fed, 1)
    p = np.array(SIZES)[info.cohort] if average == "by_size" else np.ones(2)
    first, second = (
        compiled(alone)(start._replace(shared=i[None]), fed)[0].params
        for i in info.cohort
    )
    p = p / p.sum()
    mean = jax.tree.map(lambda a, b: p[0] * a + p[1] * b, first, second)
    assert_close(state.params, mean)


def test_powd_a_client_without_samples_has_no_weight():
    weight = fc.methods.power_of_choice().weight
    nobody = client(0)._replace(
        data=dataclasses.replace(client(0).data, num_examples=0)
    )
    assert float(weight(nobody, ())) == 0.0
    assert float(weight(client(0), ())) == 1.0


def test_powd_refuses_too_few_candidates():
    with pytest.raises(ValueError, match="candidates: 2 is fewer"):
        algorithm(fc.methods.power_of_choice(candidates=2), clients_per_round=3)


# --- BMSFed ---------------------------------------------------------------------------


def line(positions):
    x = jnp.array(positions)[:, None]
    return distances(x, x)


def spread(positions, key, cohort_size, threshold=1.0):
    """The greedy cohort of balanced clients on a line."""
    table, n = line(positions), len(positions)
    return greedy(
        key,
        table,
        table,
        table,
        jnp.ones(n),
        jnp.ones(n),
        jnp.ones((n, 2)),
        cohort_size=cohort_size,
        threshold=threshold,
    )


def test_bmsfed_greedy_order_on_five_clients():
    """Clients on a line at 0, 2, 3, 5, 10; the pool is everybody."""
    ids, use = spread([0.0, 2.0, 3.0, 5.0, 10.0], jax.random.key(0), 5)
    # Sums of distances: 20, 14, 13, 15, 30: client 2. Then adding 0 leaves 10, 2 leaves
    # 11, 5 leaves 9, 10 leaves 3 + 1 + 0 + 2 + 0 = 6: client 4. Then 0 leaves 3, 2 and
    # 5 leave 4: client 0. Then 2 leaves 2, 5 leaves 1: client 3.
    assert ids.tolist() == [2, 4, 0, 3, 1]
    np.testing.assert_array_equal(use, np.ones((5, 2)))


def test_bmsfed_ties_go_to_nobody_in_particular():
    """20 equal clients in 400 draws of 5: 100 draws each, with a deviation of 9."""
    keys = jax.random.split(jax.random.key(0), 400)
    ids, _ = jax.vmap(lambda key: spread([0.0] * 20, key, 5))(keys)
    assert all(len(set(cohort)) == 5 for cohort in ids.tolist())
    picks = np.bincount(np.asarray(ids).ravel(), minlength=20)
    assert 60 < picks.min() <= picks.max() < 140


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_distances_do_not_feel_a_common_offset(offset):
    rng = np.random.default_rng(0)
    # Multiples of 2^-14, which float32 holds exactly at either offset.
    x = np.round(rng.normal(size=(3, 50)) * 8).astype(np.float64) / 2**14
    y = np.concatenate([x[:1], np.round(rng.normal(size=(2, 50)) * 8) / 2**14])
    expected = np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    ours = distances(jnp.float32(x + offset), jnp.float32(y + offset))
    assert 1e-3 < expected.max() < 1e-2
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert float(ours[0, 0]) == 0.0


def test_bmsfed_restricts_unbalanced_clients_to_the_weak_modality():
    """Where the first modality leads, client 1 beyond theta, it trains the second."""
    joint = line([0.0, 1.0, 2.0])
    weak = line([9.0, 0.0, -9.0])  # client 1 covers the others best
    balances = jnp.array([1.0, 3.0, 1.0])
    ids, use = greedy(
        jax.random.key(0),
        joint,
        joint,
        weak,
        balances,
        jnp.ones(3),
        jnp.ones((3, 2)),
        cohort_size=1,
        threshold=2.0,
    )
    assert ids.tolist() == [1]
    np.testing.assert_array_equal(use, [[0, 1]])
    mirrored, other = greedy(
        jax.random.key(0),
        joint,
        weak,
        joint,
        1 / balances,
        jnp.ones(3),
        jnp.ones((3, 2)),
        cohort_size=1,
        threshold=2.0,
    )
    assert mirrored.tolist() == [1]
    np.testing.assert_array_equal(other, [[1, 0]])
    free, both = greedy(
        jax.random.key(0),
        joint,
        joint,
        weak,
        balances,
        jnp.ones(3),
        jnp.ones((3, 2)),
        cohort_size=1,
        threshold=jnp.inf,
    )
    assert free.tolist() == [1]
    np.testing.assert_array_equal(both, [[1, 1]])


def test_bmsfed_surveys_everybody_once():
    fed, net = federation(), model("classifier")
    problem = algorithm(fc.methods.bmsfed(threshold=1.0), net, clients_per_round=2)
    first, _ = rounds(problem, fed, 1)
    assert float(first.shared.probed) == 1.0
    norms = sum(jnp.abs(x).sum(1) for x in first.memory.single.values())
    assert bool((norms > 0).all())  # also those outside the cohort, with a real rate
    table = first.shared.distances
    assert_close(table, table.T)
    np.testing.assert_array_equal(jnp.diagonal(table), 0)
    # Nobody coincides with anybody: unimodal clients' G_i is [G_a, 0] or [0, G_v].
    assert (np.asarray(table)[~np.eye(len(SIZES), dtype=bool)] > 0).all()


def trained(i, use):
    """Client i, and its training with ``use`` (here any other parameters will do)."""
    before = client(i, use)
    other, batch_stats = before.model.init(jax.random.key(1))
    encoders = {
        m: other["encoder"][m] if uses else before.params["encoder"][m]
        for m, uses in zip(before.model.modalities, use, strict=True)
    }
    return before, LocalUpdate(other | {"encoder": encoders}, batch_stats)


def accuracies_by_hand(i, params, batch_stats):
    """Modality -> share of client i's samples next to their own class's mean."""
    seen, fed = client(i), federation()
    rows = slice(int(fed.offsets[i]), int(fed.offsets[i] + fed.sizes[i]))
    labels = np.asarray(fed.labels[rows])
    n = len(labels)
    batch = fc.Batch(
        {m: x[rows] for m, x in fed.inputs.items()},
        fed.labels[rows],
        jnp.ones(n),
        jnp.ones((n, 2)),
        jnp.arange(n),
    )
    features = seen.model.apply(params, batch_stats, batch, False)[0].features
    result = {}
    for m, h in features.items():
        h = np.asarray(h)
        means = np.full((seen.model.num_classes, h.shape[1]), np.inf)
        for c in set(labels.tolist()):
            means[c] = h[labels == c].mean(0)
        nearest = np.linalg.norm(h[:, None] - means[None], axis=-1).argmin(1)
        result[m] = (nearest == labels).mean()
    return result


@pytest.mark.parametrize("use", [BOTH, FIRST, SECOND])
def test_bmsfed_measures_b_of_restricted_clients_too(use):
    before, ended = trained(2, use)
    sums, memory = bmsfed.report(before, ended, stale=False)
    accuracies = accuracies_by_hand(2, *ended)
    first, second = (accuracies[m] for m in before.model.modalities)
    np.testing.assert_allclose(memory.balance, first / second, rtol=1e-6)
    assert float(memory.balance) != float(before.memory.balance)
    # Pbar: its samples count with all modalities that it has.
    for m in before.model.modalities:
        assert float(sums[m].weight.sum()) == SIZES[2]


@pytest.mark.parametrize(("i", "use"), [(1, FIRST), (3, SECOND)])
def test_bmsfed_unimodal_clients_have_b_one_and_half_a_g(i, use):
    before, ended = trained(i, use)
    sums, memory = bmsfed.report(before, ended, stale=False)
    assert float(memory.balance) == 1.0
    for m, uses in zip(before.model.modalities, use, strict=True):
        update = bmsfed.flat(before.params["encoder"][m]) - bmsfed.flat(
            ended.params["encoder"][m]
        )
        assert bool((update != 0).any()) == bool(uses)
        np.testing.assert_array_equal(memory.both[m], update)
        np.testing.assert_array_equal(memory.single[m], update if uses else 7.0)
        assert float(sums[m].weight.sum()) == (SIZES[i] if uses else 0)


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("use", [BOTH, FIRST, SECOND])
def test_bmsfed_which_updates_a_training_replaces(use, stale):
    """All that it has: G_i, and G_{i,m} unless stale. One of two: its G_{i,m} alone."""
    before, ended = trained(2, use)
    both, single = bmsfed.updates(before, ended, stale)
    for m, uses in zip(before.model.modalities, use, strict=True):
        new = flat_encoders(before.params)[m] - flat_encoders(ended.params)[m]
        renewed = uses and not (stale and use == BOTH)
        np.testing.assert_array_equal(both[m], new if use == BOTH else 7.0)
        np.testing.assert_array_equal(single[m], new if renewed else 7.0)


@pytest.mark.up_to_rounding
@pytest.mark.slow
def test_bmsfed_a_restricted_client_can_be_set_free():
    """Everybody trains twice; b = 100 everywhere at first, far beyond theta."""
    fed = federation(np.ones((5, 2), bool))
    method = fc.methods.bmsfed(threshold=13.0)  # b <= n_i <= 12
    problem = algorithm(method, model("classifier"))
    start = problem.init(jax.random.key(0), fed)
    start = start._replace(
        shared=start.shared._replace(probed=jnp.ones(())),  # no survey
        memory=start.memory._replace(balance=jnp.full(5, 100.0)),
    )
    first, _ = compiled(problem)(start, fed)
    second, _ = compiled(problem)(first, fed)

    def renewed(a, b):
        """Whether G_i changed: only where both modalities were trained."""
        changed = [(x != y).any(1) for x, y in zip(a.values(), b.values(), strict=True)]
        return np.stack(changed).any(0)

    assert not renewed(start.memory.both, first.memory.both).any()
    assert bool((first.memory.balance <= 12.0).all())
    assert renewed(first.memory.both, second.memory.both).all()


def used(method, table, balances):
    """Client -> modalities it is to train with, where all are chosen and b_i is given.

    The balance in the clients' memory, and what is measured of them in the round.
    """
    n, net, fed = len(SIZES), model("classifier"), federation(table)
    params, batch_stats = net.init(jax.random.key(0))
    shared, own = method.init(net, params, n)
    memory = jax.tree.map(lambda x: jnp.tile(x[None], (n,) + (1,) * x.ndim), own)
    b = jnp.array(balances, jnp.float32)

    def mapped(fn, ids, participation):
        if fn is bmsfed.measure:
            return b[ids]
        # The survey: traced, but not run, for it has been done.
        sums = bmsfed.ClassSums(*bmsfed.no_prototypes(net))
        return jax.tree.map(lambda x: jnp.zeros((n, *x.shape)), sums), memory

    server = fc.methods.Server(
        net,
        params,
        batch_stats,
        shared=shared._replace(probed=jnp.ones(())),
        memory=memory._replace(balance=b),
        federation=fed,
        cohort_size=n,
        round=jnp.array(0),
        map=mapped,
        train=None,
    )
    ids, use, _, _ = method.select(server, jax.random.key(0))
    return dict(zip(ids.tolist(), use.tolist(), strict=True))


def test_bmsfed_submodular_restricts_nobody():
    table, far = np.ones((5, 2), bool), [100.0] * 5
    free = used(fc.methods.bmsfed(selection="submodular"), table, far)
    assert free == {i: [1, 1] for i in range(5)}
    balanced = used(fc.methods.bmsfed(threshold=1.0), table, far)
    assert balanced == {i: [0, 1] for i in range(5)}


def test_bmsfed_drop_threshold_by_hand():
    """Beyond 2 or below 1/2 the stronger modality is left out; else nothing is."""
    method = fc.methods.bmsfed(selection="uniform", drop_threshold=2.0)
    has = federation().available
    use = used(method, has, [2.5, 1.0, 0.4, 1.0, 1.9])
    has = has.tolist()
    assert use == {0: [0, 1], 1: has[1], 2: [1, 0], 3: has[3], 4: [1, 1]}


@pytest.mark.parametrize("use", [BOTH, FIRST, SECOND])
def test_bmsfed_dropping_leaves_a_modality(use):
    """What is measured before a drop is 1 for a client that has one modality left."""
    before = client(2, use)
    b = float(bmsfed.measure(before, None))
    accuracies = accuracies_by_hand(2, before.params, before.batch_stats)
    first, second = (accuracies[m] for m in before.model.modalities)
    assert b == pytest.approx(first / second if use == BOTH else 1.0, rel=1e-6)
    left = np.array(use) * np.asarray(bmsfed.kept(jnp.array([b]), 1.0))
    assert left.sum() >= 1


@pytest.mark.up_to_rounding
@pytest.mark.slow
def test_bmsfed_chooses_all_kinds_of_clients():
    """20 clients, half of them bimodal, 5 per round, 60 rounds."""
    n, rounds = 20, 60
    data = fc.data.load("synthetic", train_samples=200, test_samples=10, features=6)
    rng = np.random.default_rng(0)
    table = fc.partition.allocate_modalities(n, 2, rng, multimodal_fraction=0.5)
    fed = fc.build_federation(data, fc.partition.iid(data.train, n, rng), table)
    encoders = {m: fc.models.mlp(features=4) for m in data.modalities}
    problem = fc.build_algorithm(
        fc.methods.bmsfed(threshold=1.0),
        fc.models.classifier(encoders, data.shapes, 10),
        clients_per_round=5,
        local=fc.LocalTraining(batch_size=10, learning_rate=0.05),
        rounds_per_call=rounds,
    )
    state = problem.init(jax.random.key(0), fed)
    _, info = problem.run(state, fed, rounds)
    picks = np.bincount(np.asarray(info.cohort).ravel(), minlength=n)
    assert picks.min() >= 1
    kinds = np.asarray(fed.available) @ [1, 2]
    shares = np.array([picks[kinds == k].mean() for k in (1, 2, 3)]) / picks.mean()
    assert 0.4 < shares.min() <= shares.max() < 1.4
