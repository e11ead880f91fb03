"""The data sets made of TFDS builders, on small files of the official layouts."""

import numpy as np
import pytest

from fedcmi_jax import data
from fedcmi_jax.data.catalog import CATALOG
from fedcmi_jax.data.cg_digits import CLASS_COLORS
from fedcmi_jax.data.spectrogram import (
    FLOOR,
    fixed_length,
    log_mel,
    log_stft,
    mel_filters,
    power_spectrogram,
)
from fedcmi_jax.data.tfds import fsdd, mnist
from fedcmi_jax.data.tfds.av_mnist import pair_by_class
from tests.raw_files import (
    TAKES,
    TEST_PER_CLASS,
    TRAIN_PER_CLASS,
    state_checksums,
    write_fsdd,
    write_hapt,
    write_mnist,
)

NAMES = ("noisy_mnist", "cg_mnist", "av_mnist", "hapt")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """Small sets, prepared once; the tests below find them by the variable."""
    raw = tmp_path_factory.mktemp("raw")
    write_mnist(raw)
    write_fsdd(raw)
    write_hapt(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDCMI_DATA_ROOT", str(tmp_path_factory.mktemp("root")))
        state_checksums(raw, patch)
        for name in NAMES:
            data.load(name, manual_dir=str(raw))
        yield raw


pytestmark = pytest.mark.usefixtures("small_files")


def mnist_files(raw):
    return {name: raw / name for names in mnist.FILES.values() for name in names}


@pytest.mark.parametrize("name", NAMES)
def test_loaders_keep_the_promises_of_the_catalogue(name):
    loaded, entry = data.load(name), CATALOG[name]
    assert loaded.name == name
    assert loaded.modalities == entry.modalities
    assert loaded.num_classes == entry.classes
    for split in (loaded.train, loaded.test):
        assert split.labels.dtype == np.int32
        assert (split.clients is not None) == bool(entry.clients)
        for modality in loaded.modalities:
            assert split.inputs[modality].dtype == np.float32
    again = data.load(name)
    for modality in loaded.modalities:
        np.testing.assert_array_equal(
            loaded.train.inputs[modality], again.train.inputs[modality]
        )


@pytest.mark.parametrize("name", ["noisy_mnist", "cg_mnist", "av_mnist"])
def test_subsets_are_stratified_and_seeded(name):
    options = {"train_samples": 20, "test_samples": 20}
    first, again, other = (data.load(name, **options, seed=seed) for seed in (3, 3, 4))
    assert np.bincount(first.train.labels).tolist() == [2] * 10
    assert np.bincount(first.test.labels).tolist() == [2] * 10
    modality = first.modalities[0]
    chosen = first.train.inputs[modality]
    np.testing.assert_array_equal(chosen, again.train.inputs[modality])
    assert not np.array_equal(chosen, other.train.inputs[modality])
    for options, part in (
        ({"train_samples": 0}, "train_samples=0"),
        ({"train_samples": 81}, r"train_samples=81: must lie in \[1, 80\]"),
        ({"test_samples": 41}, "test_samples=41"),
        ({"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(ValueError, match=f"^{part}"):
            data.load(name, **options)


def test_noisy_mnist_views(small_files):
    exact = data.load("noisy_mnist", standardize=False, noise=0.0)
    images, labels = mnist.read_mnist(mnist_files(small_files), "train")
    np.testing.assert_array_equal(exact.train.inputs["clean"], images / np.float32(255))
    np.testing.assert_array_equal(exact.train.labels, labels)
    for view, c in zip(exact.train.inputs["noisy"], exact.train.labels, strict=True):
        same = exact.train.inputs["clean"][exact.train.labels == c]
        assert (same == view).all(axis=(1, 2, 3)).any()
    scaled = data.load("noisy_mnist")
    assert abs(scaled.train.inputs["noisy"].mean()) < 1e-5
    with pytest.raises(ValueError, match=r"^noise=-1"):
        data.load("noisy_mnist", noise=-1.0)


def test_cg_mnist_color_is_gray_times_one_color(small_files):
    loaded = data.load("cg_mnist")
    for split in (loaded.train, loaded.test):
        gray, color = split.inputs["gray"], split.inputs["color"]
        brightest = gray.reshape(len(gray), -1).argmax(axis=1)
        rows = np.arange(len(gray))
        tint = color.reshape(len(gray), -1, 3)[rows, brightest]
        tint = tint / gray.reshape(len(gray), -1)[rows, brightest, None]
        expected = gray * tint[:, None, None]
        np.testing.assert_allclose(color, expected, atol=1.5 / 255)
        assert tint.max() < 1.01
    images, _ = mnist.read_mnist(mnist_files(small_files), "test")
    np.testing.assert_array_equal(loaded.test.inputs["gray"], images / np.float32(255))


def test_av_mnist_pairs_image_and_sound_of_a_class(small_files):
    loaded = data.load("av_mnist", standardize=False)
    recordings = fsdd.read_recordings(small_files / fsdd.FILE)
    assert len(recordings) == 10 * len(fsdd.SPEAKERS) * TAKES
    sounds = log_mel(fixed_length([r.audio for r in recordings], 6000))
    assert sounds.shape[1:] == (32, 29, 1) == loaded.shapes["audio"]
    for split, in_test, count in (
        (loaded.train, False, TRAIN_PER_CLASS),
        (loaded.test, True, TEST_PER_CLASS),
    ):
        assert split.size == 10 * count
        for audio, label, speaker in zip(
            split.inputs["audio"], split.labels, split.clients, strict=True
        ):
            (i,) = np.flatnonzero((sounds == audio).all(axis=(1, 2, 3)))
            assert (recordings[i].digit, recordings[i].speaker) == (label, speaker)
            assert (recordings[i].take < fsdd.TEST_TAKES) == in_test
    stft = data.load("av_mnist", spectrogram="log_stft", train_samples=10)
    assert stft.shapes["audio"] == (201, 29, 1)
    with pytest.raises(ValueError, match="spectrogram: unknown 'mel'; choose from"):
        data.load("av_mnist", spectrogram="mel")


def test_hapt_normalisation_and_clients():
    plain, train, window = (
        data.load("hapt", normalize=how) for how in ("none", "train", "window")
    )
    assert plain.train.clients.tolist() == [1] * 4
    assert plain.test.clients.tolist() == [2] * 3
    assert plain.class_names[5] == "laying"
    for loaded in (plain, train, window):  # half of every window is in its neighbour
        assert loaded.train.sequential
        assert loaded.test.sequential
    for m in plain.modalities:
        values = plain.train.inputs[m]
        mean, deviation = values.mean((0, 1)), values.std((0, 1))
        for scaled, raw in ((train.train, plain.train), (train.test, plain.test)):
            expected = (raw.inputs[m] - mean) / deviation
            np.testing.assert_allclose(scaled.inputs[m], expected, rtol=1e-4, atol=1e-5)
        per_window = window.test.inputs[m]
        np.testing.assert_allclose(per_window.mean(1), 0, atol=1e-4)
        np.testing.assert_allclose(per_window.std(1), 1, rtol=1e-4)
    with pytest.raises(ValueError, match="normalize: unknown 'z'; choose from"):
        data.load("hapt", normalize="z")


def test_power_of_a_sine_is_in_its_bin():
    """100 Hz is bin 5; at half of full scale its power is 1/4."""
    t = np.arange(1000) / 8000
    audio = np.rint(0.5 * 32768 * np.sin(2 * np.pi * 100 * t)).astype(np.int16)
    power = power_spectrogram(audio[None])[0]
    assert power.shape == (201, 4)
    np.testing.assert_allclose(power[5], 0.25, rtol=1e-3)
    np.testing.assert_allclose(power[4], 0.0625, rtol=1e-2)  # Hann: half the amplitude
    assert power[8:].max() < 1e-6


def test_a_bin_by_hand():
    audio = np.random.default_rng(0).integers(-5000, 5000, 800).astype(np.int16)
    i = np.arange(400)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * i / 400)
    x = audio[200:600] / 32768 * hann  # frame 1
    value = abs((x * np.exp(-2j * np.pi * 37 * i / 400)).sum() * 2 / hann.sum()) ** 2
    log = log_stft(audio[None])
    assert log.shape == (1, 201, 3, 1)
    np.testing.assert_allclose(log[0, 37, 1, 0], np.log(value + FLOOR), rtol=1e-4)
    bands = mel_filters() @ power_spectrogram(audio[None])[0]
    np.testing.assert_allclose(
        log_mel(audio[None])[0, :, :, 0], np.log(bands + FLOOR), rtol=1e-5
    )


def test_mel_bands_overlap_to_one():
    filters = mel_filters()
    assert filters.shape == (32, 201)
    assert (filters.max(axis=1) > 0.5).all()
    peaks = filters.argmax(axis=1)
    assert (np.diff(peaks) > 0).all()
    between = filters[:, peaks[0] + 1 : peaks[-1]].sum(axis=0)
    np.testing.assert_allclose(between, 1, atol=1e-5)


def test_silence_is_the_floor():
    silent = log_mel(np.zeros((1, 6000), np.int16))
    np.testing.assert_allclose(silent, np.log(FLOOR), rtol=1e-6)


def test_pairing_uses_every_item_about_equally():
    labels = np.random.default_rng(0).integers(0, 3, 1000)
    classes = np.repeat([0, 1, 2], 7)
    partners = pair_by_class(labels, classes, np.random.default_rng(1))
    assert (classes[partners] == labels).all()
    for c in range(3):
        used = np.bincount(partners[labels == c], minlength=21)[classes == c]
        assert used.max() - used.min() <= 1
    with pytest.raises(ValueError, match="class 2: .* nothing to pair"):
        pair_by_class(labels, classes[:14], np.random.default_rng(1))


def test_colors_of_the_builder_are_those_of_cg_digits():
    loaded = data.load("cg_mnist")
    gray, color = (loaded.train.inputs[m] for m in ("gray", "color"))
    tint = color.sum(axis=(1, 2)) / gray.sum(axis=(1, 2))
    error = tint - CLASS_COLORS[loaded.train.labels]
    assert np.abs(error).mean() < 0.2  # the jitter's deviation is 0.17
