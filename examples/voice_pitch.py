"""How high a voice speaks, by autocorrelation (Boersma 1993): it tells most men's voices from most women's."""

import numpy as np

FRAME_S, HOP_S = 0.064, 0.020
LOWEST_HZ, HIGHEST_HZ = 65, 400
VOICED = 0.5  # autocorrelation of a frame at its period, of 1


def voice_pitch(waveform: np.ndarray, sampling_rate: int) -> float | None:
    """
    The median fundamental frequency of the voiced frames.

    Args:
        waveform: `(samples,)`, mono.
        sampling_rate: in Hz.

    Returns:
        float: in Hz; None if fewer than three frames are voiced.
    """
    length, hop = round(FRAME_S * sampling_rate), round(HOP_S * sampling_rate)
    if len(waveform) < length:
        return None
    frames = np.lib.stride_tricks.sliding_window_view(waveform, length)[::hop].astype(np.float64)
    frames = frames - frames.mean(axis=1, keepdims=True)
    energy = np.square(frames).mean(axis=1)
    frames = frames[energy > 0.1 * np.percentile(energy, 95)] * np.hanning(length)
    # divided by the window's own, so that long periods do not look weaker than they are
    correlation = _autocorrelation(frames) / _autocorrelation(np.hanning(length))
    first = sampling_rate // HIGHEST_HZ
    correlation = correlation[:, first : sampling_rate // LOWEST_HZ]
    pitches = []
    for row in correlation[correlation.max(axis=1, initial=0) > VOICED]:
        is_peak = (row[1:-1] > row[:-2]) & (row[1:-1] >= row[2:]) & (row[1:-1] > 0.85 * row.max())
        if is_peak.any():  # the first is the period, later ones are multiples of it
            pitches.append(sampling_rate / (first + 1 + is_peak.argmax()))
    return float(np.median(pitches)) if len(pitches) >= 3 else None


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """Of each row, 1 at lag 0."""
    length = frames.shape[-1]
    power = np.square(np.abs(np.fft.rfft(frames, 2 * length)))
    correlation = np.fft.irfft(power)[..., :length]
    return correlation / np.maximum(correlation[..., :1], np.finfo(float).tiny)
