"""Waveforms: any numeric form of a clip -> mono float32 at a rate, whole or in windows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

try:
    import soxr
except ImportError:  # this file also travels with checkpoints to places without hf_clap; `resample` says what to do
    soxr = None

MAX_CHANNELS = 8  # 7.1 surround; more rows in an array means that it is not (channels, samples)

# Full scale is 1. Beyond this, squares and their sums leave float32.
MAX_AMPLITUDE = 1e6

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz


class AudioError(ValueError):
    """Audio that cannot be used. The message is one sentence that says what to do."""


def as_waveform(audio: Any) -> torch.Tensor:
    """
    One clip in any numeric form as a mono float32 waveform. Torch input stays on its device and in its graph. Mono
    float32 is not copied: the result shares the input's memory.

    Args:
        audio: numpy array, torch tensor or list of floats, `(samples,)` or channels first `(channels, samples)`, of
            which the channels are averaged. Integers are scaled to [-1, 1]: int16 and int32 by their range, uint8
            around 128. Floats are taken as they are.

    Returns:
        torch.Tensor: `(samples,)` float32.

    Raises:
        AudioError: for no samples, NaN, infinite or masked samples, more than two axes, samples first, or another
            dtype.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clap import as_waveform

    >>> as_waveform(np.array([[16384, 0], [0, 0]], dtype=np.int16))
    tensor([0.2500, 0.0000])

    ```
    """
    if isinstance(audio, np.ma.MaskedArray) and np.ma.is_masked(audio):
        raise AudioError("The array has masked samples; fill them in, as array.filled(0) does.")
    if not isinstance(audio, torch.Tensor):
        try:
            array = np.require(audio, requirements=("C", "W"))  # what torch can share; copied only if it is not so
            audio = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except (TypeError, ValueError) as error:
            raise AudioError(
                f"{type(audio).__name__} is not a waveform; pass a list of floats, a numpy array or a torch tensor "
                "of shape (samples,) or (channels, samples), as hf_clap.load_audio gives it."
            ) from error
    if audio.layout != torch.strided or audio.is_meta:
        raise AudioError("A sparse or meta tensor is not a waveform; pass a dense one, as tensor.to_dense() is.")
    if audio.ndim not in (1, 2):
        raise AudioError(
            f"An array of shape {tuple(audio.shape)} is not a clip; pass (samples,) or (channels, samples), and "
            "several clips as a list of such arrays."
        )
    audio = audio.resolve_neg()  # numpy could not read one that is negative by a flag only
    if audio.numel() == 0:
        raise AudioError("The audio has no samples; pass a clip that is not empty.")
    if audio.ndim == 2 and audio.shape[0] > MAX_CHANNELS:
        raise AudioError(
            f"An array of shape {tuple(audio.shape)} would have {audio.shape[0]} channels; pass (channels, samples), "
            "which is array.T if samples come first, and several clips as a list of arrays."
        )
    waveform = _to_float(audio)
    if waveform.ndim == 2:
        waveform = waveform.mean(dim=0)
    if not _is_in_range(waveform.detach()):
        raise AudioError("The audio has NaN or infinite samples, or some beyond a million; scale it to [-1, 1].")
    return waveform


def _is_in_range(waveform: torch.Tensor) -> bool:
    """Whether all samples are finite and within the greatest amplitude."""
    # no sample is beyond the root of their energy, which takes half the time; NaN is passed on by both
    if torch.dot(waveform, waveform) <= MAX_AMPLITUDE**2:
        return True
    lowest, highest = waveform.aminmax()
    return bool(lowest >= -MAX_AMPLITUDE and highest <= MAX_AMPLITUDE)


def _to_float(audio: torch.Tensor) -> torch.Tensor:
    if audio.is_floating_point():
        return audio.float()
    if audio.dtype in (torch.int16, torch.int32):
        return audio.float() / -float(torch.iinfo(audio.dtype).min)
    if audio.dtype == torch.uint8:
        return (audio.float() - 128) / 128
    raise AudioError(
        f"Samples of dtype {str(audio.dtype).removeprefix('torch.')} have no known scale; convert them to float32 in "
        "[-1, 1], int16, int32 or uint8."
    )


def valid_rate(name: str, rate: Any) -> int:
    """The rate in Hz as an integer; `name` says in the error whose it is."""
    try:
        valid = MIN_RATE <= rate <= MAX_RATE and int(rate) == rate
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise AudioError(
            f"{name} has a sampling rate of {rate!r}; it must be {MIN_RATE} to {MAX_RATE} Hz, an integer."
        )
    return int(rate)


def resample(waveform: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
    """
    Resample with soxr (HQ) on the CPU; gradients stop here.

    Args:
        waveform: `(samples,)` float32.
        from_rate: its rate in Hz.
        to_rate: the rate in Hz to convert to.

    Returns:
        torch.Tensor: `(round(samples * to_rate / from_rate),)` float32, on the input's device. The length is rounded
        because a sample more or less decides whether a clip fits a window (librosa rounds up).

    Raises:
        ImportError: if the rates differ and soxr is not installed.
    """
    if from_rate == to_rate:
        return waveform
    if soxr is None:
        raise ImportError(
            f"Resampling from {from_rate} to {to_rate} Hz needs soxr: run `pip install soxr`, or resample before."
        )
    samples = resampled_length(waveform.shape[-1], from_rate, to_rate)
    resampled = soxr.resample(waveform.detach().cpu().numpy(), from_rate, to_rate)
    return torch.from_numpy(fit_length(resampled, samples)).to(waveform.device)


def resampled_length(samples: int, from_rate: int, to_rate: int) -> int:
    """Samples at `to_rate` of so many at `from_rate` (Hz): rounded, and at least one."""
    return max(1, round(samples * to_rate / from_rate))


def fit_length(waveform: np.ndarray, samples: int) -> np.ndarray:
    """Cut or zero-pad `waveform` at its end to `(samples,)`: soxr may differ by the sample that rounding decides."""
    return np.pad(waveform[:samples], (0, max(0, samples - len(waveform))))


def iter_windows(blocks: Iterable[torch.Tensor], window: int, hop: int) -> Iterator[tuple[int, torch.Tensor]]:
    """
    Cut a clip that arrives in blocks into windows, holding no more than a window and a block at a time.

    Args:
        blocks: consecutive pieces `(samples,)` of one clip.
        window: length of a window, in samples.
        hop: samples from one window to the next.

    Yields:
        tuple[int, torch.Tensor]: the window's first sample and its `(window,)` samples. A clip that is not longer than
        a window is one, as short as it is. The last window is moved back to end with the clip, so that all are full.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap.waveform import iter_windows

    >>> [(start, window.tolist()) for start, window in iter_windows([torch.arange(5)], window=2, hop=2)]
    [(0, [0, 1]), (2, [2, 3]), (3, [3, 4])]

    ```
    """
    held = torch.empty(0, device="cpu")  # samples from `offset` on
    offset = start = 0  # `start` is where the next window begins
    for block in blocks:
        held = torch.cat([held.to(block), block])
        while start + window <= offset + len(held):
            yield start, held[start - offset : start - offset + window]
            start += hop
        # keep what the next window, or a last one moved back, may need
        keep_from = min(start, offset + len(held) - window)
        if keep_from > offset:
            held, offset = held[keep_from - offset :], keep_from
    end = offset + len(held)
    last_end = start - hop + window if start > 0 else 0
    if end > last_end:
        start = max(end - window, 0)
        yield start, held[start - offset :]


def is_batch(audio: Any) -> bool:
    """Whether `audio` is several clips: a list, or a column of `datasets`, of something else than numbers."""
    if not isinstance(audio, Sequence) or isinstance(audio, (str, bytes, bytearray, memoryview)):
        return False
    try:
        return len(audio) == 0 or not isinstance(audio[0], (int, float, np.number))
    except (OSError, RuntimeError, ValueError):  # of a row that `datasets` cannot decode
        return True
