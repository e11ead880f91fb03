"""Reading sound, pictures and video; the spectrogram against its definition."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from fedcmi_jax.data import raw
from tests.media_files import FPS, STEP, tone, write_image, write_video, write_wav


@pytest.mark.parametrize(("seconds", "windows"), [(3.0, 299), (10.0, 1004)])
@pytest.mark.parametrize("length", [0.5, 3.0, 12.0])
def test_spectrogram_shape_whatever_the_length(seconds, windows, length):
    values = raw.audio.log_spectrogram(tone(length), seconds)
    assert values.shape == raw.audio.spectrogram_shape(seconds) == (257, windows, 1)
    assert values.dtype == np.float32
    assert abs(values.mean()) < 1e-5
    assert abs(values.std() - 1) < 1e-4


def test_spectrogram_bins_by_hand():
    """Three bins from the written-out discrete Fourier transform of their window."""
    rng = np.random.default_rng(0)
    samples = rng.uniform(-1.2, 1.2, 20_000)  # beyond full scale: must be clipped
    ours = raw.audio.log_spectrogram(samples, 3.0)[..., 0]
    clip = np.clip(np.concatenate([samples, samples, samples])[:48_000], -1, 1)

    # Tukey window of 512 (periodic): cosine flanks over a quarter of it.
    n = np.arange(512)
    flank = 0.25 * 512 / 2
    edge = np.minimum(n, 512 - n)
    window = np.where(edge < flank, 0.5 * (1 - np.cos(np.pi * edge / flank)), 1.0)

    def log_power(frequency, place):
        segment = clip[159 * place : 159 * place + 512]
        x = (segment - segment.mean()) * window
        transform = (x * np.exp(-2j * np.pi * frequency * n / 512)).sum()
        one_sided = 1 if frequency in (0, 256) else 2
        power = one_sided * abs(transform) ** 2 / (window**2).sum()
        return np.log(power + 1e-7)

    # Differences of bins, in units of a third, are free of the standardisation.
    bins = [(0, 0), (37, 100), (200, 298), (256, 5)]
    hand = [log_power(*b) for b in bins]
    got = [ours[b] for b in bins]
    ratio = (got[1] - got[0]) / (hand[1] - hand[0])
    for h, g in zip(hand, got, strict=True):
        np.testing.assert_allclose(g - got[0], ratio * (h - hand[0]), atol=1e-4)

    everything = np.array(
        [[log_power(f, p) for p in range(0, 299, 60)] for f in n[:257]]
    )
    np.testing.assert_allclose(
        (everything - everything.mean()) / everything.std(),
        _standardised(ours[:, ::60]),
        atol=1e-3,
    )


def _standardised(values):
    return (values - values.mean()) / values.std()


def test_silence_is_zero_and_finite():
    assert not raw.audio.log_spectrogram(np.zeros(100), 3.0).any()


def test_wav_of_any_kind_is_mono_at_16_khz(tmp_path):
    from scipy.io import wavfile

    expected = tone(0.5)
    write_wav(tmp_path / "a.wav", np.stack([expected * 1.5, expected * 0.5], 1))
    np.testing.assert_allclose(
        raw.audio.read_wav(tmp_path / "a.wav"), expected, atol=1e-4
    )
    for dtype, scale, offset, error in (
        (np.uint8, 2**7, 2**7, 0.01),
        (np.int32, 2**31, 0, 1e-6),
        (np.float32, 1, 0, 1e-6),
    ):
        path = tmp_path / f"{np.dtype(dtype)}.wav"
        wavfile.write(path, 16_000, (expected * scale + offset).astype(dtype))
        np.testing.assert_allclose(raw.audio.read_wav(path), expected, atol=error)
    write_wav(tmp_path / "fast.wav", tone(0.5, rate=44_100), rate=44_100)
    resampled = raw.audio.read_wav(tmp_path / "fast.wav")
    assert len(resampled) == 8000
    np.testing.assert_allclose(resampled[200:-200], expected[200:-200], atol=0.01)


def _damage(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def refused(call, path):
    with pytest.raises(ValueError, match=path.name) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_damaged_wav_is_named(tmp_path, keep):
    path = tmp_path / "a.wav"
    write_wav(path, tone(1.0))
    _damage(path, keep)
    assert "truncated" in refused(lambda: raw.audio.read_wav(path), path)


def test_wav_without_samples_or_with_nan_is_named(tmp_path):
    from scipy.io import wavfile

    path = tmp_path / "empty.wav"
    write_wav(path, np.zeros(0))
    assert "no samples" in refused(lambda: raw.audio.read_wav(path), path)
    path = tmp_path / "nan.wav"
    wavfile.write(path, 16_000, np.array([0, 0, np.nan], np.float32))
    assert "sample 2 is not finite" in refused(lambda: raw.audio.read_wav(path), path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.6])
def test_damaged_image_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(path)
    assert raw.images.read_image(path).size == (32, 32)
    _damage(path, keep)
    assert "unreadable image" in refused(lambda: raw.images.read_image(path), path)


def test_png_with_a_wrong_byte_is_named(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, size=(32, 32))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(content)
    refused(lambda: raw.images.read_image(path), path)


def test_transparent_pixels_are_black(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (2, 2), (200, 100, 50, 0)).save(path)
    assert raw.images.read_image(path).getpixel((0, 0)) == (0, 0, 0)
    Image.new("L", (2, 2), 7).save(path)
    assert raw.images.read_image(path).getpixel((0, 0)) == (7, 7, 7)


def test_scaling_is_that_of_imagenet():
    image = Image.new("RGB", (2, 2), (255, 0, 51))
    values = raw.images.scaled([image], raw.images.IMAGENET)
    assert values.dtype == np.float32
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(values[0, 1, 1], expected, rtol=1e-5)
    np.testing.assert_allclose(
        raw.images.scaled([image], raw.images.HALVES)[0, 0, 0], [1, -1, -0.6], atol=1e-6
    )


def test_square_padding_and_crop_keep_the_middle():
    image = Image.new("RGB", (9, 3), (1, 2, 3))
    square = np.asarray(raw.images.padded_to_square(image))
    assert square.shape == (9, 9, 3)
    assert (square[3:6] == (1, 2, 3)).all()
    assert not square[:3].any()
    assert not square[6:].any()
    crop = np.asarray(raw.images.center_crop(raw.images.padded_to_square(image), 5))
    np.testing.assert_array_equal(crop, square[2:7, 2:7])


def levels(images):
    """Gray level of each image in steps, that is the second it comes from."""
    return [round(np.asarray(image).mean() / STEP) for image in images]


@pytest.mark.parametrize(("suffix", "codec"), [("flv", "flv"), ("mp4", "mpeg4")])
def test_frames_are_one_per_second(tmp_path, suffix, codec):
    path = tmp_path / f"a.{suffix}"
    write_video(path, 5, codec=codec)
    assert levels(raw.video.video_frames(path, 5, fewest=3)) == [0, 1, 2, 3, 4]
    assert levels(raw.video.video_frames(path, 2, fewest=3)) == [1, 3]
    part = raw.video.video_frames(path, 2, fewest=2, start=2, end=4)
    assert levels(part) == [2, 3]
    # Fewer seconds than wanted: even distances.
    part = raw.video.video_frames(path, 4, fewest=4, start=1, end=3)
    assert levels(part) == [1, 1, 2, 2]
    past = raw.video.video_frames(path, 3, fewest=3, start=3, end=60)
    assert levels(past) == [3, 3, 4]
    message = refused(lambda: raw.video.video_frames(path, 1, fewest=1, start=9), path)
    assert "5.0 s of video" in message


def test_a_video_of_one_frame_gives_it_as_often_as_wanted(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, 1 / FPS, codec="mpeg4", sound=False)
    assert levels(raw.video.video_frames(path, 3, fewest=3)) == [0, 0, 0]


def test_sound_of_a_video_is_that_stretch(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, 3, codec="mpeg4", frequency=1000.0)
    part = raw.video.video_audio(path, start=1, end=2)
    assert part.shape == (16_000,)
    power = np.abs(np.fft.rfft(part)) ** 2
    assert power.argmax() == 1000
    assert power[990:1011].sum() > 0.99 * power.sum()
    message = refused(lambda: raw.video.video_audio(path, start=8, end=9), path)
    assert "none after 8" in message


def test_unreadable_video_is_named(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, 1, codec="mpeg4", sound=False)
    assert "no sound" in refused(lambda: raw.video.video_audio(path), path)
    path.write_bytes(b"not a video" * 100)
    for read in (
        lambda: raw.video.video_frames(path, 1, fewest=1),
        lambda: raw.video.video_audio(path),
    ):
        assert "unreadable video" in refused(read, path)
    write_wav(path, tone(0.1))
    assert "no video" in refused(
        lambda: raw.video.video_frames(path, 1, fewest=1), path
    )


def test_truncated_video_is_named(tmp_path):
    path = tmp_path / "a.flv"
    write_video(path, 5, codec="flv")
    _damage(path, 0.002)
    refused(lambda: raw.video.video_frames(path, 3, fewest=3), path)


def test_missing_library_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(raw.images.importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"^PIL: .*pip install 'fedcmi_jax\[media\]'"):
        raw.images.read_image(pathlib.Path("a.png"))
    with pytest.raises(ValueError, match="^av: not installed"):
        raw.video.video_audio(pathlib.Path("a.mp4"))
