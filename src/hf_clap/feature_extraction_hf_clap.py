"""Waveform -> log-mel: one feature extractor for the front end of every CLAP, in torch, deterministic unless asked."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank

try:
    import soxr
except ImportError:  # this file also travels with checkpoints to places without hf_clap; `resample` says what to do
    soxr = None

MAX_CHANNELS = 8  # 7.1 surround; more rows in an array means that it is not (channels, samples)

# Full scale is 1. Beyond this, squares and their sums leave float32.
MAX_AMPLITUDE = 1e6

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz

# What transformers itself adds to a feature extractor's JSON.
STORED_BY_TRANSFORMERS = {
    "auto_map",
    "feature_extractor_type",
    "padding_side",
    "processor_class",
    "return_attention_mask",
}

# Frames transformed at a time on a CPU: their spectra then stay in its cache (measured 4x against a whole batch).
CPU_FRAMES = 128


class AudioError(ValueError):
    """Audio that cannot be used. The message is one sentence that says what to do."""


def as_waveform(audio: Any) -> torch.Tensor:
    """
    One clip in any numeric form as a mono float32 waveform. Torch input stays on its device and in its graph.

    Args:
        audio: numpy array, torch tensor or list of floats, `(samples,)` or channels first `(channels, samples)`, of
            which the channels are averaged. Integers are scaled to [-1, 1]: int16 and int32 by their range, uint8
            around 128. Floats are taken as they are.

    Returns:
        torch.Tensor: `(samples,)` float32.

    Raises:
        AudioError: for no samples, NaN or infinite samples, more than two axes, samples first, or another dtype.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clap import as_waveform

    >>> as_waveform(np.array([[16384, 0], [0, 0]], dtype=np.int16))
    tensor([0.2500, 0.0000])

    ```
    """
    if not isinstance(audio, torch.Tensor):
        try:
            array = np.array(audio)
            audio = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except (TypeError, ValueError) as error:
            raise AudioError(
                f"A {type(audio).__name__} is not a waveform; pass a list of floats, a numpy array or a torch tensor "
                "of shape (samples,) or (channels, samples)."
            ) from error
    if audio.ndim not in (1, 2):
        raise AudioError(
            f"An array of shape {tuple(audio.shape)} is not a clip; pass (samples,) or (channels, samples), and "
            "several clips as a list of such arrays."
        )
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
    if not waveform.detach().abs().max() <= MAX_AMPLITUDE:  # also false for NaN
        raise AudioError("The audio has NaN or infinite samples, or some beyond a million; scale it to [-1, 1].")
    return waveform


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
    >>> from hf_clap.feature_extraction_hf_clap import iter_windows

    >>> [(start, window.tolist()) for start, window in iter_windows([torch.arange(5)], window=2, hop=2)]
    [(0, [0, 1]), (2, [2, 3]), (3, [3, 4])]

    ```
    """
    held = torch.empty(0)  # samples from `offset` on
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


class HfClapFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Log-mel spectrograms `(batch, 1, frames, mels)` for the audio towers. A clip's features are the same alone or in
    any batch. The defaults are CLAP 2022's front end (msclap 1.3.4, torchlibrosa 0.1.0).

    Args:
        feature_size (`int`, defaults to 64): mel bins.
        sampling_rate (`int`, defaults to 44100): rate of the waveform, in Hz.
        n_fft (`int`, defaults to 1024): length of the Fourier transform, in samples.
        win_length (`int`, *optional*): length of the Hann window, in samples; `n_fft` when absent.
        hop_length (`int`, defaults to 320): samples from one frame to the next.
        center (`bool`, defaults to `True`): frames are centred on multiples of the hop (the clip is reflected at its
            ends); otherwise they begin there.
        f_min, f_max (`float`, default to 50 and 14000): edges of the mel filter bank, in Hz.
        mel_scale (`str`, defaults to `"slaney"`): `slaney` or `htk`.
        mel_norm (`str`, *optional*, defaults to `"slaney"`): `slaney` (filters of equal area) or `None` (equal
            peak).
        mel_triangles (`str`, defaults to `"hz"`): `hz` if the filters' sides are straight in Hz (librosa), `mel` if on
            the mel scale (TensorFlow).
        mel_sampling_rate (`int`, *optional*): rate that the mel filter bank assumes, in Hz, where it is not the
            waveform's (msclap 2023).
        power (`int`, defaults to 2): 1 for magnitudes, 2 for powers.
        log (`str`, defaults to `"db"`): `db` for 10 log10(max(mel, log_floor)), `ln` for ln(mel + log_floor).
        log_floor (`float`, defaults to 1e-10): see `log`.
        max_length_s (`float`, defaults to 5.0): the longest stretch of audio that the tower sees at once, in seconds.
        min_length_s (`float`, *optional*): the shortest. Clips between the two keep their length and the output has an
            `input_features_mask`; when absent, all clips are filled to `max_length_s`.
        crop (`str`, defaults to `"center"`): what is taken of a longer clip: its `center`, its `start`, a `random`
            stretch (training; needs a generator), or all of it in consecutive `windows`.
        fill (`str`, defaults to `"repeat"`): how a shorter clip is filled: `repeat` (tiled and cut), `repeat_pad`
            (whole repeats, then zeros) or `zero`.
        padding_value (`float`, defaults to 0.0): what the features hold in frames that the mask leaves out.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clap import HfClapFeatureExtractor

    >>> extractor = HfClapFeatureExtractor()
    >>> extractor(np.zeros(44100, dtype=np.float32), sampling_rate=44100)["input_features"].shape
    torch.Size([1, 1, 690, 64])

    ```
    """

    model_input_names = ["input_features"]
    choices = {
        "mel_scale": ("slaney", "htk"),
        "mel_norm": ("slaney", None),
        "mel_triangles": ("hz", "mel"),
        "power": (1, 2),
        "log": ("db", "ln"),
        "crop": ("center", "start", "random", "windows"),
        "fill": ("repeat", "repeat_pad", "zero"),
    }

    def __init__(
        self,
        feature_size: int = 64,
        sampling_rate: int = 44100,
        n_fft: int = 1024,
        win_length: int | None = None,
        hop_length: int = 320,
        center: bool = True,
        f_min: float = 50,
        f_max: float = 14000,
        mel_scale: str = "slaney",
        mel_norm: str | None = "slaney",
        mel_triangles: str = "hz",
        mel_sampling_rate: int | None = None,
        power: int = 2,
        log: str = "db",
        log_floor: float = 1e-10,
        max_length_s: float = 5.0,
        min_length_s: float | None = None,
        crop: str = "center",
        fill: str = "repeat",
        padding_value: float = 0.0,
        **kwargs: Any,
    ):
        if unknown := sorted(name for name in kwargs if name not in STORED_BY_TRANSFORMERS and name[0] != "_"):
            raise TypeError(
                f"HfClapFeatureExtractor has no field {', '.join(unknown)}; see help(HfClapFeatureExtractor)."
            )
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.n_fft = n_fft
        self.win_length = win_length or n_fft
        self.hop_length = hop_length
        self.center = center
        self.f_min = f_min
        self.f_max = f_max
        self.mel_scale = mel_scale
        self.mel_norm = mel_norm
        self.mel_triangles = mel_triangles
        self.mel_sampling_rate = mel_sampling_rate
        self.power = power
        self.log = log
        self.log_floor = log_floor
        self.max_length_s = max_length_s
        self.min_length_s = min_length_s
        self.crop = crop
        self.fill = fill
        for name, allowed in self.choices.items():
            _check_choice(name, getattr(self, name), allowed)
        for name in ("feature_size", "sampling_rate", "n_fft", "win_length", "hop_length", "max_length_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; it must be more than 0.")
        if not 0 < (max_length_s if min_length_s is None else min_length_s) <= max_length_s:
            raise ValueError(
                f"min_length_s={min_length_s} must be more than 0 and at most max_length_s={max_length_s}."
            )
        if self.n_fft < self.win_length:
            raise ValueError(f"win_length={self.win_length} does not fit n_fft={self.n_fft}; raise n_fft.")

    @property
    def max_samples(self) -> int:
        """The longest stretch of audio that the tower sees at once, in samples."""
        return round(self.max_length_s * self.sampling_rate)

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        crop: str | None = None,
        generator: torch.Generator | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Features of one clip or of a list of clips.

        Args:
            audio: a clip, or a list of clips, as `as_waveform` takes them. A two-dimensional array is one clip with
                its channels first.
            sampling_rate: rate of the clips, in Hz. Clips at another rate than the extractor's are resampled.
            crop: overrides the extractor's `crop`.
            generator: draws the position of `crop="random"`.
            return_tensors: `pt` or `np`.

        Returns:
            BatchFeature: `input_features` `(windows, 1, frames, mels)` float32, on the clips' device; with
            `min_length_s` also `input_features_mask` `(windows, frames)`, true where a frame holds audio; with
            `crop="windows"` also `windows_per_clip` `(clips,)`. Otherwise there is one window for each clip.

        Raises:
            AudioError: for clips that cannot be used.
            ValueError: for a missing rate, an unknown crop, or a random crop without a generator.
        """
        crop = self.crop if crop is None else crop
        _check_choice("crop", crop, self.choices["crop"])
        _check_choice("return_tensors", return_tensors, ("pt", "np"))
        if crop == "random" and generator is None:
            raise ValueError(
                'crop="random" needs generator=torch.Generator().manual_seed(…), so that it can be repeated.'
            )
        if sampling_rate is None:
            raise ValueError(
                "The rate of the audio is missing; pass sampling_rate=…, its rate in Hz "
                f"(clips at another rate than {self.sampling_rate} Hz are resampled)."
            )
        sampling_rate = valid_rate("The audio", sampling_rate)
        clips = list(audio) if is_batch(audio) else [audio]
        if not clips:
            raise AudioError("The list of clips is empty; pass at least one clip.")
        windows: list[torch.Tensor] = []
        windows_per_clip: list[int] = []
        for clip in clips:
            waveform = resample(as_waveform(clip), sampling_rate, self.sampling_rate)
            windows_of_clip = self._crop(waveform, crop, generator)
            windows_per_clip.append(len(windows_of_clip))
            windows.extend(windows_of_clip)
        features = self._batch(windows)
        if crop == "windows":
            features["windows_per_clip"] = torch.tensor(windows_per_clip, device=features["input_features"].device)
        if return_tensors == "np":
            return BatchFeature({name: value.detach().cpu().numpy() for name, value in features.items()})
        return BatchFeature(features)

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """
        The log-mel spectrogram of a waveform as it is: no crop, no fill. Differentiable, on any device.

        Args:
            waveform: `(samples,)` float32 or float64 at `sampling_rate`; at least `win_length` samples, or
                `win_length // 2 + 1` with `center`.

        Returns:
            torch.Tensor: `(frames, mels)`, in dB or as natural logarithm by `log`.
        """
        if self.center:
            pad = self.win_length // 2
            waveform = torch.nn.functional.pad(waveform[None], (pad, pad), mode="reflect")[0]
        frames = waveform.unfold(-1, self.win_length, self.hop_length)  # (frames, win_length), a view
        window, mel = self._window_and_mel(waveform.device, waveform.dtype)
        pieces = frames.split(CPU_FRAMES) if waveform.device.type == "cpu" else (frames,)
        return torch.cat([self._log_mel_of_frames(piece, window, mel) for piece in pieces])

    def _log_mel_of_frames(self, frames: torch.Tensor, window: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(frames * window, n=self.n_fft)  # (frames, n_fft // 2 + 1)
        magnitude = spectrum.abs() if self.power == 1 else spectrum.real.square() + spectrum.imag.square()
        energy = magnitude @ mel  # (frames, mels)
        if self.log == "db":
            return 10 * torch.log10(energy.clamp(min=self.log_floor))
        return torch.log(energy + self.log_floor)

    def _window_and_mel(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return _window_and_mel(
            self.win_length,
            self.n_fft,
            self.feature_size,
            self.f_min,
            self.f_max,
            self.mel_sampling_rate or self.sampling_rate,
            self.mel_scale,
            self.mel_norm,
            self.mel_triangles,
            device,
            dtype,
        )

    def _crop(self, waveform: torch.Tensor, crop: str, generator: torch.Generator | None) -> list[torch.Tensor]:
        """The stretches of at most `max_samples` that are taken of a clip."""
        surplus = len(waveform) - self.max_samples
        if surplus <= 0:
            return [waveform]
        if crop == "windows":
            return [window for _, window in iter_windows([waveform], self.max_samples, self.max_samples)]
        if crop == "random":
            start = int(torch.randint(surplus + 1, (1,), generator=generator))
        else:
            start = surplus // 2 if crop == "center" else 0
        return [waveform[start : start + self.max_samples]]

    def _batch(self, windows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Log-mels of windows of at most `max_samples`, padded to the frames of a full window and masked."""
        shortest = self.max_samples if self.min_length_s is None else math.ceil(self.min_length_s * self.sampling_rate)
        log_mels = [self.log_mel(self._fill(window, shortest)) for window in windows]
        if self.min_length_s is None:
            return {"input_features": torch.stack(log_mels)[:, None]}
        # Always the frames of a full window, not of the longest clip: every batch has one shape, for stock collators
        # and compiled models alike.
        frames = self._frames(self.max_samples)
        features = log_mels[0].new_full((len(log_mels), 1, frames, self.feature_size), self.padding_value)
        mask = torch.zeros(len(log_mels), frames, dtype=torch.bool, device=features.device)
        for row, log_mel in enumerate(log_mels):
            features[row, 0, : len(log_mel)] = log_mel
            mask[row, : len(log_mel)] = True
        return {"input_features": features, "input_features_mask": mask}

    def _frames(self, samples: int) -> int:
        return 1 + (samples if self.center else samples - self.win_length) // self.hop_length

    def _fill(self, waveform: torch.Tensor, samples: int) -> torch.Tensor:
        """Fill a clip that is shorter than `samples`."""
        if len(waveform) >= samples:
            return waveform
        repeats = 1
        if self.fill == "repeat":
            repeats = math.ceil(samples / len(waveform))
        elif self.fill == "repeat_pad":
            repeats = samples // len(waveform)
        waveform = waveform.repeat(repeats)[:samples]
        return torch.nn.functional.pad(waveform, (0, samples - len(waveform)))


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not possible; choose one of {', '.join(map(repr, allowed))}.")


def is_batch(audio: Any) -> bool:
    """Whether `audio` is several clips: a list, or a column of `datasets`, of something else than numbers."""
    if not isinstance(audio, Sequence) or isinstance(audio, (str, bytes, bytearray, memoryview)):
        return False
    return len(audio) == 0 or not isinstance(audio[0], (int, float, np.number))


@lru_cache(maxsize=16)
def _window_and_mel(
    win_length: int,
    n_fft: int,
    feature_size: int,
    f_min: float,
    f_max: float,
    sampling_rate: int,
    mel_scale: str,
    mel_norm: str | None,
    mel_triangles: str,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hann window `(win_length,)` and mel filter bank `(n_fft // 2 + 1, mels)`, computed in float64."""
    mel = mel_filter_bank(
        n_fft // 2 + 1,
        feature_size,
        f_min,
        f_max,
        sampling_rate,
        norm=mel_norm,
        # transformers' name for the HTK scale with straight sides in mel; the two scales differ in the 6th digit
        mel_scale="kaldi" if mel_scale == "htk" and mel_triangles == "mel" else mel_scale,
        triangularize_in_mel_space=mel_triangles == "mel",
    )
    with torch.inference_mode(False):  # whoever comes first fills the cache; the others may want gradients
        window = torch.hann_window(win_length, periodic=True, dtype=torch.float64)
        return window.to(device, dtype), torch.from_numpy(mel).to(device, dtype)
