"""Data sets: what each view promises, and how bad options are refused."""

import inspect

import numpy as np
import pytest

import fedcmi_jax as fc
from fedcmi_jax.data import REGISTRY, Split, base, check_dataset, load
from fedcmi_jax.data.cg_digits import CLASS_COLORS, colorize
from fedcmi_jax.data.noisy_digits import noisy_view, same_class_partners
from fedcmi_jax.data.raw import digits
from fedcmi_jax.data.raw.digits import digit_splits, split_indices


def rng(seed=0):
    return np.random.default_rng(seed)


def images_in(images):
    return {image.tobytes() for image in images}


def test_digits_are_those_of_scikit_learn(monkeypatch):
    """Read from its file without importing it, or by it where the file is not."""
    direct = digits._digits()
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    for ours, theirs in zip(direct, digits._digits(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["noisy_digits", "cg_digits", "synthetic"])
def test_registered_data_set(name):
    first, again, other = load(name), load(name), load(name, seed=1)
    assert first.name == name
    assert all(p.kind is p.KEYWORD_ONLY for p in _parameters(name).values())
    for split, same, different in zip(
        (first.train, first.test),
        (again.train, again.test),
        (other.train, other.test),
        strict=True,
    ):
        assert split.labels.dtype == np.int32
        assert set(split.labels) == set(range(first.num_classes))
        np.testing.assert_array_equal(split.labels, same.labels)
        for modality in first.modalities:
            values = split.inputs[modality]
            assert values.dtype == np.float32
            assert values.shape[1:] == first.shapes[modality]
            np.testing.assert_array_equal(values, same.inputs[modality])
            assert not np.array_equal(values, different.inputs[modality])


def _parameters(name):
    return inspect.signature(REGISTRY[name]).parameters


def test_load_refuses_unknown_names_and_options():
    with pytest.raises(ValueError, match=r"name='mnits'.*noisy_digits, cg_digits"):
        load("mnits")
    with pytest.raises(
        ValueError, match=r"nois=2\.0.*noise, test_fraction, standardize, seed"
    ):
        load("noisy_digits", nois=2.0)


@pytest.mark.parametrize(
    ("name", "options", "argument"),
    [
        ("noisy_digits", {"noise": -1.0}, "noise=-1.0"),
        ("noisy_digits", {"noise": float("nan")}, "noise=nan"),
        ("noisy_digits", {"test_fraction": 0.0}, "test_fraction=0.0"),
        ("noisy_digits", {"test_fraction": 0.999}, "test_fraction=0.999"),
        ("noisy_digits", {"test_fraction": 0.001}, "test_fraction=0.001"),
        ("noisy_digits", {"seed": -1}, "seed=-1"),
        ("cg_digits", {"color_variance": float("inf")}, "color_variance=inf"),
        ("cg_digits", {"test_fraction": 1.0}, "test_fraction=1.0"),
        ("synthetic", {"modalities": ("a", "a")}, "modalities="),
        ("synthetic", {"modalities": (), "strengths": ()}, "modalities="),
        ("synthetic", {"modalities": ("a", "b", "c")}, "strengths="),
        ("synthetic", {"strengths": (1.0, -1.0)}, "strengths="),
        ("synthetic", {"features": 0}, "features=0"),
        ("synthetic", {"test_samples": 0}, "test_samples=0"),
        ("synthetic", {"num_classes": 0}, "num_classes=0"),
        ("synthetic", {"natural_clients": -1}, "natural_clients=-1"),
        ("synthetic", {"natural_clients": 1001}, r"natural_clients=1001: .*\[0, 1000"),
        ("synthetic", {"seed": -1}, "seed=-1"),
    ],
)
def test_bad_option_is_named_in_one_line(name, options, argument):
    with pytest.raises(ValueError, match="^" + argument) as error:
        load(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([0, 99], np.int32)}, "row 1: label 99"),
        ({"inputs": {"strong": np.zeros((2, 32))}}, "has modalities"),
        ({"labels": np.zeros(0, np.int32)}, "no samples"),
        ({"labels": np.zeros(3, np.int32)}, "2 samples for 3 labels"),
        ({"clients": np.zeros(1, np.int32)}, "1 client ids for 2 labels"),
        ({"labels": np.array([0, 1.5])}, "row 1: label 1.5 is no integer"),
        ({"labels": np.array([0, np.nan])}, "row 1: label nan is no integer"),
        ({"labels": np.array([0, np.inf])}, "row 1: label inf"),
        ({"labels": np.array([0.0, 1.0])}, r"row 0: label 0.0 .*astype\(np.int32\)"),
        ({"labels": np.array([True, False])}, r"bool; .*astype\(np.int32\)"),
        ({"labels": np.array(["cat", "dog"])}, "row 0: label cat .*class_names"),
        ({"labels": np.array(["cat", 1], object)}, "row 0: label cat"),
        ({"labels": np.eye(2, dtype=np.int32)}, r"labels of shape \(2, 2\)"),
    ],
)
def test_check_dataset_refuses_unsound_splits(change, message):
    dataset = load("synthetic", train_samples=2, test_samples=2)
    bad = dataset._replace(test=dataset.test._replace(**change))
    with pytest.raises(ValueError, match=rf"test split.*{message}"):
        check_dataset(bad)


def test_check_dataset_names_the_row_that_is_not_finite():
    dataset = load("synthetic", train_samples=4, test_samples=2)
    dataset.train.inputs["weak"][3, 5] = np.nan
    with pytest.raises(ValueError, match="'weak', row 3: value is not finite"):
        check_dataset(dataset)


@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int64, np.uint64])
def test_check_dataset_takes_every_integer_type(integer):
    dataset = load("synthetic", train_samples=4, test_samples=2)
    split = dataset.train._replace(labels=dataset.train.labels.astype(integer))
    changed = dataset._replace(train=split)
    assert check_dataset(changed) is changed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32(1e30), r"magnitude 1e\+30 is above 1.84e\+19, .*rescale"),
        (np.float32(-1e30), r"magnitude 1e\+30"),
        (np.float64(1e300), r"magnitude 1e\+300"),
        (np.float16(np.nan), "not finite"),
        (np.float64(-np.inf), "not finite"),
        (np.int64(2**40), "does not fit int32"),
        (np.uint32(2**31), "does not fit int32"),
    ],
)
def test_check_dataset_refuses_numbers_that_overflow(values, message):
    dataset = load("synthetic", train_samples=4, test_samples=2)
    inputs = np.ones((4, 5), values.dtype)
    inputs[2, 1] = values
    dataset.train.inputs["weak"] = inputs
    with pytest.raises(
        ValueError, match=f"train split, modality 'weak', row 2: .*{message}"
    ):
        check_dataset(dataset)


@pytest.mark.parametrize(
    "values", [np.float16(60000), np.float32(1.8e19), np.int64(-5), np.uint8(255)]
)
def test_check_dataset_takes_numbers_whose_squares_are_finite(values):
    dataset = load("synthetic", train_samples=4, test_samples=2)
    dataset.train.inputs["weak"] = np.full((4, 5), values)
    dataset.test.inputs["weak"] = np.full((2, 5), values)
    assert check_dataset(dataset) is dataset


@pytest.mark.parametrize("label", [1.5, np.nan, 2.0, 99])
def test_labels_are_checked_where_a_data_set_enters_unchecked(label):
    dataset = load("synthetic", train_samples=8, test_samples=2)
    parts = fc.partition.iid(dataset.train, 2, rng())
    federation = fc.build_federation(dataset, parts)
    labels = dataset.train.labels.astype(type(label))
    labels[3] = label
    bad = dataset.train._replace(labels=labels)
    with pytest.raises(ValueError, match="row [03]: label"):
        fc.build_federation(dataset._replace(train=bad), parts)
    encoders = {m: fc.models.mlp(features=2) for m in dataset.modalities}
    model = fc.models.classifier(encoders, dataset.shapes, dataset.num_classes)
    with pytest.raises(ValueError, match="test split, row [03]: label"):
        fc.build_evaluator(model, bad, federation)


@pytest.mark.parametrize("test_fraction", [0.05, 0.2, 0.5, 0.9])
def test_split_is_disjoint_complete_and_stratified(test_fraction):
    labels = rng().integers(0, 7, size=501)
    train, test = split_indices(labels, test_fraction, rng())
    np.testing.assert_array_equal(np.sort(np.r_[train, test]), np.arange(501))
    assert len(test) == np.ceil(501 * test_fraction)
    share = np.bincount(labels) * len(test) / 501
    assert np.abs(np.bincount(labels[test], minlength=7) - share).max() < 1


def test_digit_splits_depend_on_seed_and_fraction_only():
    (train, _), (test, _) = digit_splits(0.2, seed=3)
    assert (train.min(), train.max()) == (0.0, 1.0)
    assert (len(train), len(test)) == (1437, 360)
    assert not images_in(train) & images_in(test)
    noisy, color = (
        load("noisy_digits", standardize=False, seed=3, noise=0.1),
        load("cg_digits", seed=3),
    )
    np.testing.assert_array_equal(noisy.test.inputs["clean"], test)
    np.testing.assert_array_equal(color.train.inputs["gray"], train)
    other = load("noisy_digits", standardize=False, seed=4).test.inputs["clean"]
    assert images_in(other) != images_in(test)


def test_partners_are_other_samples_of_the_class_drawn_uniformly():
    labels = np.array([2, 0, 2, 0, 2, 2])
    draws = np.array([same_class_partners(labels, rng(s)) for s in range(600)])
    assert (labels[draws] == labels).all()
    assert (draws != np.arange(6)).all()
    of_first = np.bincount(draws[:, 0], minlength=6)
    assert of_first[[2, 4, 5]].min() > 150  # 200 expected of each
    assert of_first.sum() == of_first[[2, 4, 5]].sum()
    with pytest.raises(ValueError, match="class 1 has a single sample"):
        same_class_partners(np.array([0, 1, 0]), rng())


def test_noisy_view_is_the_partner_plus_noise_in_range():
    train = load("noisy_digits", standardize=False, noise=0.0).train
    clean, without_noise = train.inputs["clean"], train.inputs["noisy"]
    by_class = [images_in(clean[train.labels == c]) for c in range(10)]
    assert all(
        view.tobytes() in by_class[c]
        for view, c in zip(without_noise, train.labels, strict=True)
    )
    assert (without_noise != clean).any(axis=(1, 2, 3)).all()

    noise = (
        load("noisy_digits", standardize=False, noise=1.5).train.inputs["noisy"]
        - without_noise
    )
    assert noise.min() > -1e-6
    assert noise.max() < 1.5 + 1e-6
    assert abs(noise.mean() - 0.75) < 0.01


def test_standardisation_uses_the_training_split_only():
    raw = load("noisy_digits", standardize=False)
    scaled = load("noisy_digits")
    for m in raw.modalities:
        train = raw.train.inputs[m]
        assert scaled.train.inputs[m].dtype == np.float32
        assert abs(scaled.train.inputs[m].mean()) < 1e-5
        assert abs(scaled.train.inputs[m].std() - 1) < 1e-5
        expected = (raw.test.inputs[m] - train.mean()) / train.std()
        np.testing.assert_allclose(scaled.test.inputs[m], expected, rtol=1e-5)


def test_noisy_view_stays_within_the_split():
    test = load("noisy_digits", standardize=False, noise=0.0).test
    assert images_in(test.inputs["noisy"]) <= images_in(test.inputs["clean"])


def test_noisy_view_takes_images_of_any_shape():
    view = noisy_view(
        np.zeros((4, 3, 5, 2), np.float32), np.zeros(4, int), rng(), noise=2
    )
    assert view.shape == (4, 3, 5, 2)
    assert view.dtype == np.float32


def nearest_color_accuracy(split):
    """Accuracy of naming the class whose colour is nearest to the image's."""
    color = split.inputs["color"].sum(axis=(1, 2)) / split.inputs["gray"].sum((1, 2))
    distance = np.linalg.norm(color[:, None] - CLASS_COLORS, axis=2)
    return (distance.argmin(axis=1) == split.labels).mean()


def test_color_predicts_in_training_and_misleads_in_test():
    dataset = load("cg_digits")
    assert nearest_color_accuracy(dataset.train) > 0.85
    assert abs(nearest_color_accuracy(dataset.test) - 0.1) < 0.06
    exact = load("cg_digits", color_variance=0.0)
    assert nearest_color_accuracy(exact.train) == 1.0
    used = np.bincount(_color_ids(exact.test), minlength=10)
    assert used.min() > 15  # 36 expected of each


def _color_ids(split):
    peak = split.inputs["color"].max(axis=(1, 2))
    return np.linalg.norm(peak[:, None] - CLASS_COLORS, axis=2).argmin(axis=1)


def test_class_colors_are_well_apart():
    distance = np.linalg.norm(CLASS_COLORS[:, None] - CLASS_COLORS, axis=2)
    assert distance[~np.eye(10, dtype=bool)].min() > 0.7


def test_colorize_draws_one_clipped_color_per_image():
    images = rng().random((2000, 2, 2, 1), dtype=np.float32) + 0.1
    colors = np.full((1, 3), 0.5, np.float32)
    view = colorize(images, np.zeros(2000, int), rng(), variance=0.03, colors=colors)
    color = view / images
    per_image = np.broadcast_to(color[:, :1, :1], color.shape)
    np.testing.assert_allclose(color, per_image, rtol=1e-5)
    assert color.min() >= 0
    assert color.max() <= 1 + 1e-6
    assert abs(color[:, 0, 0].var() - 0.03) < 0.003
    assert view.dtype == np.float32


def test_synthetic_means_have_the_strength_and_noise_is_unit():
    dataset = load(
        "synthetic",
        modalities=("a", "b", "none"),
        strengths=(3.0, 1.0, 0.0),
        num_classes=4,
        features=8,
        train_samples=40_001,
        test_samples=10,
    )
    assert dataset.class_names == ("0", "1", "2", "3")
    labels = dataset.train.labels
    counts = np.bincount(labels)
    assert counts.max() - counts.min() <= 1
    assert (np.diff(labels) != 0).any()
    for modality, strength in zip(("a", "b", "none"), (3.0, 1.0, 0.0), strict=True):
        values = dataset.train.inputs[modality]
        means = np.array([values[labels == c].mean(axis=0) for c in range(4)])
        np.testing.assert_allclose(np.linalg.norm(means, axis=1), strength, atol=0.06)
        np.testing.assert_allclose((values - means[labels]).std(axis=0), 1, atol=0.02)
    # Both splits share the class means, or nothing could be learnt.
    nearest = np.linalg.norm(
        dataset.test.inputs["a"][:, None]
        - [dataset.train.inputs["a"][labels == c].mean(axis=0) for c in range(4)],
        axis=2,
    ).argmin(axis=1)
    assert (nearest == dataset.test.labels).mean() >= 0.7


def test_split_size():
    assert Split({}, np.zeros(3, np.int32)).size == 3


def test_synthetic_natural_clients_share_the_samples_at_random():
    plain, shared = load("synthetic"), load("synthetic", natural_clients=7)
    np.testing.assert_array_equal(plain.train.labels, shared.train.labels)
    assert plain.train.clients is None
    for split in (shared.train, shared.test):
        counts = np.bincount(split.clients)
        assert len(counts) == 7
        assert counts.max() - counts.min() <= 1
    classes = np.bincount(shared.train.labels[shared.train.clients == 0], minlength=10)
    assert classes.min() > 0


def test_check_dataset_looks_at_large_arrays_piece_by_piece(monkeypatch):
    dataset = load("synthetic", train_samples=100, test_samples=2, features=8)
    dataset.train.inputs["weak"][77, 5] = np.inf
    row_bytes = 8 * 4
    monkeypatch.setattr(base, "_CHECKED_BYTES", 10 * row_bytes)
    looked_at = []

    class Spy(np.ndarray):
        def __getitem__(self, rows):
            if isinstance(rows, slice):
                looked_at.append((rows.start, rows.stop))
            return np.asarray(self)[rows]

    for name, values in dataset.train.inputs.items():
        dataset.train.inputs[name] = values.view(Spy)
    with pytest.raises(ValueError, match="train split, modality 'weak', row 77"):
        check_dataset(dataset)
    pieces = [(i, i + 10) for i in range(0, 100, 10)]
    assert looked_at == pieces + pieces[:8]  # each piece once, until the bad one


def test_check_dataset_takes_token_ids():
    dataset = load("synthetic", train_samples=4, test_samples=2)
    for split in (dataset.train, dataset.test):
        split.inputs["weak"] = np.ones((split.size, 5), np.int32)
    assert check_dataset(dataset) is dataset
