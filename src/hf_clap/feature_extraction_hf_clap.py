"""Waveform -> log-mel: one feature extractor for the front end of every CLAP, in torch, deterministic unless asked."""

import math
from collections.abc import Iterable
from dataclasses import fields
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import BatchFeature, SequenceFeatureExtractor

from .log_mel import LogMel
from .waveform import AudioError, as_waveform, is_batch, iter_windows, resample, valid_rate

# What transformers itself adds to a feature extractor's JSON.
STORED_BY_TRANSFORMERS = {
    "auto_map",
    "feature_extractor_type",
    "padding_side",
    "processor_class",
    "return_attention_mask",
}

INT16_MAX = 32767


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
            stretch (training; needs a generator), all of it in consecutive `windows`, or LAION's `fusion`: all of it
            shrunk to one window, and one window of its beginning, its middle and its end.
        fill (`str`, defaults to `"repeat"`): how a shorter clip is filled: `repeat` (tiled and cut), `repeat_pad`
            (whole repeats, then zeros) or `zero`.
        int16_rounding (`bool`, defaults to `False`): whether the waveform is first rounded as in a 16-bit file, as
            laion_clap does (`hook.py`). Gradients pass.
        double_precision (`bool`, defaults to `False`): whether the log-mel is computed in float64, as in transformers,
            and then rounded. It takes twice as long, and counts in bins that are 100 dB below a loud tone.
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
        "crop": ("center", "start", "random", "windows", "fusion"),
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
        int16_rounding: bool = False,
        double_precision: bool = False,
        padding_value: float = 0.0,
        **kwargs: Any,
    ):
        if unknown := sorted(name for name in kwargs if name not in STORED_BY_TRANSFORMERS and name[0] != "_"):
            raise TypeError(
                f"HfClapFeatureExtractor has no field {', '.join(unknown)}; see help(HfClapFeatureExtractor)."
            )
        # Trainer's collator would make a mask that no tower takes
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs | {"return_attention_mask": False})
        self.n_fft = n_fft
        self.win_length = n_fft if win_length is None else win_length
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
        self.int16_rounding = int16_rounding
        self.double_precision = double_precision
        for name, allowed in self.choices.items():
            _check_choice(name, getattr(self, name), allowed)
        for name in ("feature_size", "sampling_rate", "n_fft", "win_length", "hop_length"):
            if not (isinstance(getattr(self, name), Integral) and getattr(self, name) > 0):
                raise ValueError(f"{name}={getattr(self, name)!r} is not possible; it must be a whole number above 0.")
        for name in ("max_length_s", "log_floor", "mel_sampling_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value} is not possible; it must be a finite number above 0.")
        if not 0 <= f_min < f_max < math.inf:
            raise ValueError(
                f"f_min={f_min} and f_max={f_max} are not possible; f_max must be above f_min, both in Hz."
            )
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

    @property
    def min_samples(self) -> int:
        """The shortest stretch of audio that the tower hears, in samples; a clip that is shorter is filled."""
        return self.max_samples if self.min_length_s is None else math.ceil(self.min_length_s * self.sampling_rate)

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
            `crop="windows"` also `windows_per_clip` `(clips,)`. Otherwise there is one window for each clip; with
            `crop="fusion"` the features are `(clips, 4, frames, mels)`, and `is_longer` `(clips, 1)` is true for
            clips that are longer than a window.

        Raises:
            AudioError: for clips that cannot be used.
            ValueError: for a missing rate, an unknown crop, a random crop without a generator, or fusion with
                `min_length_s`.
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
        # one clip after the other to the end: what was just read is still in the cache
        waveforms = (self._prepare(clip, sampling_rate) for clip in clips)
        if crop == "fusion":
            features = self._fuse(waveforms)
        else:
            windows: Iterable[list[torch.Tensor]]
            windows = (self._crop(waveform, crop, generator) for waveform in waveforms)
            windows_per_clip = [1] * len(clips)
            if crop == "windows":  # how many there are is only known afterwards
                windows = list(windows)
                windows_per_clip = [len(windows_of_clip) for windows_of_clip in windows]
            features = self._batch(chain.from_iterable(windows), sum(windows_per_clip))
            if crop == "windows":
                device = features["input_features"].device
                features["windows_per_clip"] = torch.tensor(windows_per_clip, device=device)
        features["input_features"] = features["input_features"].float()
        if return_tensors == "np":
            return BatchFeature({name: value.detach().cpu().numpy() for name, value in features.items()})
        return BatchFeature(features)

    def _prepare(self, clip: Any, sampling_rate: int) -> torch.Tensor:
        """(samples,) at the extractor's rate"""
        waveform = resample(as_waveform(clip), sampling_rate, self.sampling_rate)
        if self.int16_rounding:
            rounded = (waveform.clamp(-1, 1) * INT16_MAX).trunc() / INT16_MAX
            waveform = waveform + (rounded - waveform).detach()  # the value of one, the gradient of the other
        return waveform.double() if self.double_precision else waveform

    @property
    def transform(self) -> LogMel:
        """The log-mel spectrogram that its settings describe."""
        settings = {field.name: getattr(self, field.name) for field in fields(LogMel)}
        return LogMel(**settings | {"mel_sampling_rate": self.mel_sampling_rate or self.sampling_rate})

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """
        The log-mel spectrogram of a waveform as it is: no crop, no fill. Differentiable, on any device.

        Args:
            waveform: `(samples,)` float32 or float64 at `sampling_rate`; at least `win_length` samples, or
                `win_length // 2 + 1` with `center`.

        Returns:
            torch.Tensor: `(frames, mels)`, in dB or as natural logarithm by `log`.

        Raises:
            AudioError: if it is shorter.
        """
        return self.transform(waveform)

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

    def _batch(self, windows: Iterable[torch.Tensor], count: int) -> dict[str, torch.Tensor]:
        """Log-mels of so many windows of at most `max_samples`, padded to the frames of a full window and masked."""
        transform = self.transform
        least = transform.least_samples
        if self.min_samples < least:
            name = "max_length_s" if self.min_length_s is None else "min_length_s"
            raise ValueError(f"{name}={getattr(self, name)} is less than a frame; make it {least} samples at least.")
        # Always the frames of a full window, not of the longest clip: every batch has one shape, for stock collators
        # and compiled models alike.
        frames = transform.frames_of(self.max_samples)
        features: Any = None
        held = []
        for number, window in enumerate(windows):
            waveform = self._fill(window, self.min_samples)
            held.append(transform.frames_of(len(waveform)))
            if number == 0:
                features = waveform.new_empty(count, 1, frames, self.feature_size)
            row = features[number, 0]
            transform.write(waveform, row[: held[-1]])
            if held[-1] < frames:
                row[held[-1] :] = self.padding_value
        if self.min_length_s is None:
            return {"input_features": features}
        numbers = torch.arange(frames, device=features.device)
        mask = numbers < torch.tensor(held, device=features.device)[:, None]
        return {"input_features": features, "input_features_mask": mask}

    def _fuse(self, waveforms: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Features for LAION's fusion models (laion_clap, `training/data.py`, get_audio_features), which draws its three
        windows at random; here they come from the middle of each third of the possible places.
        """
        if self.min_length_s is not None:
            raise ValueError('crop="fusion" fills every clip; set min_length_s to None.')
        transform = self.transform
        frames = transform.frames_of(self.max_samples)
        features, is_longer = [], []
        for waveform in waveforms:
            log_mel = transform(self._fill(waveform, self.max_samples))
            is_longer.append(len(log_mel) > frames)
            if len(log_mel) > frames:
                shrunk = F.interpolate(log_mel[None, None], (frames, self.feature_size), mode="bilinear")[0, 0]
                thirds = np.array_split(np.arange(len(log_mel) - frames + 1), 3)
                starts = [int(third[len(third) // 2]) if len(third) else 0 for third in thirds]
                features.append(torch.stack([shrunk, *(log_mel[start : start + frames] for start in starts)]))
            else:
                features.append(log_mel.expand(4, -1, -1))
        device = features[0].device
        return {"input_features": torch.stack(features), "is_longer": torch.tensor(is_longer, device=device)[:, None]}

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
        return F.pad(waveform, (0, samples - len(waveform)))


def _check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not possible; choose one of {', '.join(map(repr, allowed))}.")
