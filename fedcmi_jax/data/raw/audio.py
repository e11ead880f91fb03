"""Sound: reading wav files, and the log-spectrogram of methods 0.2."""

import math
import pathlib
import struct
import warnings

import numpy as np

RATE = 16_000
"""Samples per second of everything that becomes a spectrogram (methods 0.2)."""

SEGMENT = 512
"""Samples under one window (methods 0.2), so 257 frequencies."""
OVERLAP = 353
"""Samples shared by neighbouring windows (methods 0.2), so a hop of 159."""
FLOOR = 1e-7
"""Added to the power before the logarithm (methods 0.2)."""

_MIN_DEVIATION = 1e-5  # below it a clip is silence, and scaling amplifies rounding
_FULL_SCALE = {"uint8": 128.0, "int16": 2.0**15, "int32": 2.0**31, "int64": 2.0**63}


def spectrogram_shape(seconds: float) -> tuple[int, int, int]:
    """Shape of ``log_spectrogram`` for that many seconds.

    Args:
      seconds: Length after tiling.

    Returns:
      (frequencies, windows, 1).

    Example:
      >>> spectrogram_shape(3), spectrogram_shape(10)
      ((257, 299, 1), (257, 1004, 1))
    """
    samples = round(seconds * RATE)
    return SEGMENT // 2 + 1, (samples - OVERLAP) // (SEGMENT - OVERLAP), 1


def log_spectrogram(samples: np.ndarray, seconds: float) -> np.ndarray:
    """Standardised log-power spectrogram of a clip brought to one length.

    The clip is repeated until it is long enough, cut, and clipped to [-1, 1]. With the
    one-sided power density S of windows of 512 samples (Tukey, a quarter tapered, mean
    removed) every 159, at scipy's default unit sampling rate,
    ``x = log(S + 1e-7); (x - mean(x)) / std(x)``; silence becomes zeros.

    Args:
      samples: [n] mono, at 16 kHz, full scale 1; n >= 1.
      seconds: Length to bring it to.

    Returns:
      [257, T, 1] float32, T = 299 for 3 s and 1004 for 10 s.

    Example:
      >>> log_spectrogram(np.sin(np.arange(8000) / 5), 3.0).shape
      (257, 299, 1)
    """
    # Here and not at the top: importing scipy's signal package is slow.
    from scipy.signal import spectrogram

    wanted = round(seconds * RATE)
    tiled = np.tile(samples, math.ceil(wanted / len(samples)))[:wanted]
    _, _, power = spectrogram(
        np.clip(tiled, -1.0, 1.0).astype(np.float64), nperseg=SEGMENT, noverlap=OVERLAP
    )
    logs = np.log(np.abs(power) + FLOOR)
    deviation = logs.std()
    if deviation < _MIN_DEVIATION:
        return np.zeros((*logs.shape, 1), np.float32)
    return ((logs - logs.mean()) / deviation).astype(np.float32)[..., None]


def read_wav(path: pathlib.Path) -> np.ndarray:
    """A wav file as mono samples at 16 kHz.

    Args:
      path: PCM or float wav of any rate and number of channels.

    Returns:
      [n] float32 in [-1, 1], n >= 1.

    Raises:
      ValueError: The file is no wav, ends early, or has no samples or one that is not
        finite; names it.
    """
    from scipy.io import wavfile

    with warnings.catch_warnings():
        # scipy warns where a file is shorter than its header says, and of metadata.
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Chunk .* not understood")
        try:
            rate, samples = wavfile.read(path)
        except (ValueError, struct.error, wavfile.WavFileWarning) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{path}: truncated or no wav file ({reason}); replace it"
            ) from None
    full_scale = _FULL_SCALE.get(samples.dtype.name, 1.0)
    samples = samples.astype(np.float32)
    if full_scale == _FULL_SCALE["uint8"]:
        samples -= full_scale
    samples /= full_scale
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if not len(samples):
        raise ValueError(f"{path}: has no samples; replace it")
    if not np.isfinite(samples).all():
        raise ValueError(
            f"{path}: sample {np.flatnonzero(~np.isfinite(samples))[0]} is not finite; "
            "replace it"
        )
    return resampled(samples, rate)


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples brought to 16 kHz by a polyphase filter.

    Args:
      samples: [n] at ``rate``.
      rate: Samples per second.

    Returns:
      About [n * 16000 / rate] float32.

    Example:
      >>> resampled(np.zeros(8000), 8000).shape
      (16000,)
    """
    if rate == RATE:
        return np.asarray(samples, np.float32)
    from scipy.signal import resample_poly

    shared = math.gcd(rate, RATE)
    return resample_poly(samples, RATE // shared, rate // shared).astype(np.float32)
