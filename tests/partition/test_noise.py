"""Noise in labels and inputs: counted, keyed by client, training samples only."""

import re

import numpy as np
import pytest

from fedcmi_jax.experiment.experiment import build
from fedcmi_jax.experiment.split import load_dataset, split
from fedcmi_jax.partition import Partition
from fedcmi_jax.partition.noise import add_feature_noise, add_label_noise
from fedcmi_jax.samples import Split
from tests.test_config import TINY, tiny

C = 5


def rng_of(client):
    return np.random.default_rng([7, client + 1])


def problem(sizes=(40, 10, 0, 25), features=400):
    """Samples in random order, and five more that nobody holds."""
    rng, n = np.random.default_rng(0), sum(sizes)
    inputs = {"x": rng.normal(size=(n + 5, features)).astype(np.float32)}
    labels = rng.integers(0, C, n + 5).astype(np.int32)
    order = rng.permutation(n + 5)[:n]
    return Split(inputs, labels), Partition(order, np.array(sizes))


def by_client(values, parts):
    return np.split(values[parts.order], np.cumsum(parts.sizes)[:-1])


@pytest.mark.parametrize("kind", ["symmetric", "pair"])
def test_the_share_of_each_client_is_wrong(kind):
    data, parts = problem()
    noisy = add_label_noise(data, parts, C, rng_of, fraction=0.3, kind=kind)
    steps = (noisy.labels - data.labels) % C
    wrong = [int((x > 0).sum()) for x in by_client(steps, parts)]
    assert wrong == [12, 3, 0, 8]  # round(0.3 * 25) = 8
    assert (steps > 0).sum() == 23, "a sample that nobody holds has changed"
    assert noisy.labels.dtype == np.int32
    if kind == "pair":
        assert set(steps) == {0, 1}
    else:
        assert set(steps) == set(range(C))


def test_symmetric_noise_is_uniform_over_the_other_classes():
    data = Split({}, np.full(4000, 2, np.int32))
    parts = Partition(np.arange(4000), np.array([4000]))
    noisy = add_label_noise(data, parts, C, rng_of, fraction=1.0)
    counts = np.bincount(noisy.labels, minlength=C)
    assert counts[2] == 0
    # 1,000 of each, three and a half deviations of 27.4.
    assert np.abs(counts[[0, 1, 3, 4]] - 1000).max() < 96


def test_clients_differ_and_some_are_clean():
    data, parts = problem((100,) * 10, features=1)
    options = {"fraction": 0.8, "fraction_min": 0.2, "clients": 0.6}
    noisy = add_label_noise(data, parts, C, rng_of, **options)
    wrong = [int(x.sum()) for x in by_client(noisy.labels != data.labels, parts)]
    assert sum(n == 0 for n in wrong) == 4
    shares = [n for n in wrong if n]
    assert all(20 <= n <= 80 for n in shares)
    assert len(set(shares)) > 3


def test_a_clients_noise_does_not_depend_on_the_others():
    data, parts = problem((30, 20))
    alone = Partition(parts.order[:30], np.array([30]))
    rows = parts.order[:30]
    both = add_label_noise(data, parts, C, rng_of, fraction=0.5)
    one = add_label_noise(data, alone, C, rng_of, fraction=0.5)
    np.testing.assert_array_equal(both.labels[rows], one.labels[rows])
    both = add_feature_noise(data, parts, rng_of, sigma=2.0)
    one = add_feature_noise(data, alone, rng_of, sigma=1.0)
    np.testing.assert_array_equal(both.inputs["x"][rows], one.inputs["x"][rows])


def test_feature_noise_grows_with_the_client():
    data, parts = problem()
    noisy = add_feature_noise(data, parts, rng_of, sigma=0.8)
    assert noisy.inputs["x"].dtype == np.float32
    added = noisy.inputs["x"] - data.inputs["x"]
    clients = by_client(added, parts)
    for i in (0, 1, 3):
        # Of 4,000 numbers and more: a deviation is known to about a percent.
        assert clients[i].std() == pytest.approx(0.8 * (i + 1) / 4, rel=0.05)
        assert abs(clients[i].mean()) < 0.05
    unheld = np.setdiff1d(np.arange(80), parts.order)
    assert not added[unheld].any()


def test_token_ids_have_no_noise():
    data, parts = problem()
    words = data._replace(inputs={"w": np.zeros((80, 2), np.int32)})
    with pytest.raises(ValueError, match="feature_noise: modality 'w' is of token ids"):
        add_feature_noise(words, parts, rng_of, sigma=0.1)
    both = words._replace(inputs={"t": words.inputs | data.inputs})
    with pytest.raises(ValueError, match="modality 't', 'w' is of token ids"):
        add_feature_noise(both, parts, rng_of, sigma=0.1)


def test_arrays_of_one_modality_are_as_noisy_as_of_several():
    data, parts = problem()
    two = data.inputs | {"y": data.inputs["x"][:, :2]}
    flat = add_feature_noise(data._replace(inputs=two), parts, rng_of, sigma=0.1)
    tree = add_feature_noise(data._replace(inputs={"t": two}), parts, rng_of, sigma=0.1)
    for name, x in flat.inputs.items():
        np.testing.assert_array_equal(tree.inputs["t"][name], x)


HELD = {"validation_fraction": 0.2, "client_test_fraction": 0.2, "holdout_clients": 1}


def test_only_training_samples_are_noisy():
    off = tiny(**HELD)
    data = load_dataset(off.dataset, print)
    before = split(off, data)
    on = tiny(**HELD, label_noise=0.5, feature_noise=1.0)
    after = split(on, data)
    np.testing.assert_array_equal(before.partition.order, after.partition.order)
    held = np.setdiff1d(np.arange(data.train.size), after.partition.order)
    assert len(held) > 10
    ours, theirs = after.dataset.train, data.train
    np.testing.assert_array_equal(ours.labels[held], theirs.labels[held])
    rows = after.partition.order
    wrong = by_client(ours.labels != theirs.labels, after.partition)
    assert [int(x.sum()) for x in wrong] == [round(len(x) / 2) for x in wrong]
    for m in data.modalities:
        np.testing.assert_array_equal(ours.inputs[m][held], theirs.inputs[m][held])
        assert (ours.inputs[m][rows] != theirs.inputs[m][rows]).any(axis=1).all()
    assert after.dataset.test is data.test
    assert before.dataset.train is data.train, "off must change nothing"


def test_the_federation_trains_on_it_and_the_seed_decides():
    quiet = {"dataset": TINY["dataset"], "partition": {"name": "iid"}}
    clean = build(tiny(**quiet)).federation
    noisy = build(tiny(**quiet, label_noise=0.4)).federation
    again = build(tiny(**quiet, label_noise=0.4)).federation
    wrong = np.asarray(clean.labels != noisy.labels)
    assert wrong.sum() == 4 * 6  # 40 % of 15 samples at 4 clients
    np.testing.assert_array_equal(noisy.labels, again.labels)
    other = build(tiny(**quiet, label_noise=0.4, seed=1, fixed_partition=True))
    np.testing.assert_array_equal(noisy.labels, other.federation.labels)


def test_a_stream_sends_the_same_noise():
    values = {"label_noise": 0.4, "feature_noise": 1.0, "method": {"name": "fedavg"}}
    held = build(tiny(**values)).federation
    sent = build(tiny(**values, stream=True, clients_per_round=4)).federation_at(0)

    def rows(federation):  # with their labels, in an order of their own
        return np.unique(
            np.column_stack([federation.labels, *federation.inputs.values()]), axis=0
        )

    assert len(rows(held)) == 60
    np.testing.assert_array_equal(rows(held), rows(sent))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_noise": 1.5}, "label_noise: 1.5 is outside [0, 1]"),
        ({"label_noise": float("nan")}, "label_noise: nan is not finite"),
        ({"noisy_clients": -0.1}, "noisy_clients: -0.1 is outside"),
        ({"label_noise": 0.2, "label_noise_min": 0.3}, "outside [0, 0.2]"),
        ({"label_noise_kind": "lazy"}, "label_noise_kind: unknown 'lazy'"),
        ({"feature_noise": -1.0}, "feature_noise: -1.0 must be finite"),
        ({"feature_noise": float("inf")}, "feature_noise: inf is not finite"),
    ],
)
def test_impossible_noise_is_one_line(values, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        build(tiny(**values))
    assert "\n" not in str(error.value)
