"""Spectrograms of short recordings, by NumPy."""

import numpy as np

RATE = 8000
"""Samples per second."""

WINDOW, HOP = 400, 200
"""Samples per frame and between frames: 50 ms, half of it overlaps."""

MELS = 32
"""Bands of the mel spectrogram, our choice: the image's size on both axes, about."""

FLOOR = 1e-6
"""Power added before the logarithm: -60 dB of a full-scale sine, so silence is flat."""


def power_spectrogram(audio: np.ndarray) -> np.ndarray:
    """Power of every frequency and frame, a full-scale sine about 1.

    ``P_{f,t} = |2 / sum(w) * sum_i w_i x_{200 t + i} exp(-2 pi j f i / 400)|^2`` with
    the Hann window w and x = audio / 32768; frequency f is 20 f Hz.

    Args:
      audio: [n, samples] int16, at least 400 samples.

    Returns:
      [n, 201, frames] float32, frames = 1 + (samples - 400) // 200.
    """
    window = np.hanning(WINDOW + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(audio, WINDOW, axis=1)[:, ::HOP]
    weights = np.float32(2 / (window.sum() * 32768) * window)
    power = np.abs(np.fft.rfft(frames * weights)) ** 2
    return power.astype(np.float32).swapaxes(1, 2)


def mel_filters() -> np.ndarray:
    """[32, 201] weights of triangular bands, equally wide in mel from 0 to 4 kHz.

    ``mel(f) = 2595 log10(1 + f / 700)``; each band peaks at 1 and reaches 0 at the
    centres of its neighbours.
    """
    frequencies = np.fft.rfftfreq(WINDOW, 1 / RATE)
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    low, center, high = (edges[i : i + MELS, None] for i in range(3))
    rising = (frequencies - low) / (center - low)
    falling = (high - frequencies) / (high - center)
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


def log_stft(audio: np.ndarray) -> np.ndarray:
    """Logarithm of the power spectrogram, [n, samples] -> [n, 201, frames, 1]."""
    return np.log(power_spectrogram(audio) + np.float32(FLOOR))[..., None]


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Logarithm of the power in mel bands, [n, samples] -> [n, 32, frames, 1]."""
    bands = mel_filters() @ power_spectrogram(audio)
    return np.log(bands + np.float32(FLOOR))[..., None]


def fixed_length(recordings: list[np.ndarray], samples: int) -> np.ndarray:
    """Recordings of one length: long ones cut, short ones followed by silence.

    Args:
      recordings: One array [any] each.
      samples: Length of the result.

    Returns:
      [n, samples] int16.

    Example:
      >>> fixed_length([np.array([1, 2, 3]), np.array([4])], 2).tolist()
      [[1, 2], [4, 0]]
    """
    fixed = np.zeros((len(recordings), samples), np.int16)
    for row, recording in zip(fixed, recordings, strict=True):
        kept = recording[:samples]
        row[: len(kept)] = kept
    return fixed
