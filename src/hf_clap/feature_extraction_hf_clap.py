"""Waveform -> log-mel: one feature extractor for the front end of every CLAP, in torch, deterministic unless asked."""

import math
import threading
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain, pairwise
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from .linear import ONEDNN_DTYPES, nothing_rewrites, onednn_linear
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

# Of the frames that a core transforms at a time: smaller pieces cost more calls, larger ones, such as those of a whole
# batch, leave its cache (4x).
PIECE_BYTES = 2**21


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

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """
        The log-mel spectrogram of a waveform as it is: no crop, no fill. Differentiable, on any device.

        Args:
            waveform: `(samples,)` float32 or float64 at `sampling_rate`; at least `win_length` samples, or
                `win_length // 2 + 1` with `center`.

        Returns:
            torch.Tensor: `(frames, mels)`, in dB or as natural logarithm by `log`.
        """
        frames = self._frame_count(len(waveform))
        if len(waveform) < self._least_samples:
            raise AudioError(f"{len(waveform)} samples are less than a frame of {self.win_length}; fill the clip.")
        if _may_be_written(waveform):
            log_mel = waveform.new_empty(frames, self.feature_size)
            self._write_log_mel(waveform, log_mel)
            return log_mel
        with torch.autocast(waveform.device.type, enabled=False):  # powers go beyond half precision
            energies = self._energies(waveform)
        if self.log == "db":
            return 10 * torch.log10(energies.clamp(min=self.log_floor))
        return torch.log(energies + self.log_floor)

    def _energies(self, waveform: torch.Tensor) -> torch.Tensor:
        """(samples,) -> (frames, mels), with gradients"""
        window, mel, _ = self.front_end(waveform.device, waveform.dtype)
        frames = self._frames(waveform, 0, self._frame_count(len(waveform)))
        spectrum = torch.fft.rfft(frames * window, n=self.n_fft)  # (frames, n_fft // 2 + 1)
        if self.power == 1:
            return spectrum.abs() @ mel  # its gradient at 0 is 0, where that of a root would be infinite
        return (spectrum.real.square() + spectrum.imag.square()) @ mel

    def _write_log_mel(self, waveform: torch.Tensor, log_mel: torch.Tensor) -> None:
        """
        The same on a CPU, without gradients, into `log_mel` `(frames, mels)`: in pieces that stay in the cache, and in
        memory that is used again.
        """
        window, _, used = self.front_end(waveform.device, waveform.dtype)
        product = onednn_linear if waveform.dtype in ONEDNN_DTYPES else F.linear
        frames, piece_bytes = log_mel.shape[0], PIECE_BYTES * torch.get_num_threads()
        pieces = log_mel.tensor_split(math.ceil(frames * self.n_fft * waveform.element_size() / piece_bytes))
        bins = used.last_bin - used.first_bin
        # for the windowed frames and, once these are transformed, for the magnitudes
        buffer = _thread_memory(pieces[0].shape[0] * self.n_fft, waveform.dtype)
        edges = self._edges(frames)
        start = 0
        for piece in pieces:
            frames = piece.shape[0]
            cuts = [start, *(edge for edge in edges if start < edge < start + frames), start + frames]
            windowed = buffer[: frames * self.n_fft].view(frames, -1)
            if self.n_fft > self.win_length:
                windowed[:, self.win_length :] = 0
            for begin, end in pairwise(cuts):
                rows = windowed[begin - start : end - start, : self.win_length]
                torch.mul(self._frames(waveform, begin, end), window, out=rows)
            spectrum = torch.fft.rfft(windowed)
            squares = torch.view_as_real(spectrum)[:, used.first_bin : used.last_bin].square_()  # (frames, bins, 2)
            magnitude = torch.add(squares[..., 0], squares[..., 1], out=buffer[: frames * bins].view(frames, -1))
            if self.power == 1:
                magnitude.sqrt_()
            energies = product(magnitude, used.weights, None)
            if self.log == "db":
                torch.clamp(energies, min=self.log_floor, out=piece)
            else:
                torch.add(energies, self.log_floor, out=piece)
            start += frames
        if self.log == "db":
            log_mel.log10_().mul_(10)
        else:
            log_mel.log_()

    def _frames(self, waveform: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Frames `start` to `stop`, `(frames, win_length)`: a view, but for the ends of a clip that are reflected."""
        first = start * self.hop_length - self._reflected
        last = (stop - 1) * self.hop_length + self.win_length - self._reflected
        samples = waveform.shape[0]
        before, after = max(-first, 0), max(last - samples, 0)
        if before or after:
            # a sample more than is reflected, as reflection goes around one
            lowest, highest = max(min(first, samples - 1 - after), 0), max(last, before + 1)
            stretch = F.pad(waveform[None, lowest:highest], (before, after), mode="reflect")[0]
            stretch = stretch[first - lowest + before :][: last - first]
        else:
            stretch = waveform[first:last]
        return stretch.unfold(-1, self.win_length, self.hop_length)

    def _edges(self, frames: int) -> tuple[int, ...]:
        """Where, among so many frames, those that are reflected part from the others, so that only they are copied."""
        reaching = math.ceil(self._reflected / self.hop_length)
        return (reaching, frames - reaching) if frames > 2 * reaching else ()

    def _frame_count(self, samples: int) -> int:
        return 1 + (samples + 2 * self._reflected - self.win_length) // self.hop_length

    @property
    def _least_samples(self) -> int:
        """That a clip must have: reflection takes samples from around the first and the last."""
        return self._reflected + 1 if self.center else self.win_length

    @property
    def _reflected(self) -> int:
        """Samples that a clip is reflected by at each end."""
        return self.win_length // 2 if self.center else 0

    def front_end(self, device: torch.device, dtype: torch.dtype) -> "FrontEnd":
        """The window and the mel filter bank, as tensors on `device`."""
        return _front_end(
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

    def _batch(self, windows: Iterable[torch.Tensor], count: int) -> dict[str, torch.Tensor]:
        """Log-mels of so many windows of at most `max_samples`, padded to the frames of a full window and masked."""
        if self.min_samples < self._least_samples:
            name = "max_length_s" if self.min_length_s is None else "min_length_s"
            raise ValueError(
                f"{name}={getattr(self, name)} is less than a frame; make it {self._least_samples} samples at least."
            )
        # Always the frames of a full window, not of the longest clip: every batch has one shape, for stock collators
        # and compiled models alike.
        frames = self._frame_count(self.max_samples)
        features = torch.empty(0)
        held = []
        for number, window in enumerate(windows):
            waveform = self._fill(window, self.min_samples)
            held.append(self._frame_count(len(waveform)))
            if number == 0:
                features = waveform.new_empty(count, 1, frames, self.feature_size)
            row = features[number, 0]
            if _may_be_written(waveform):
                self._write_log_mel(waveform, row[: held[-1]])
            else:
                row[: held[-1]] = self.log_mel(waveform)
            if held[-1] < frames:
                row[held[-1] :] = self.padding_value
        if self.min_length_s is None:
            return {"input_features": features}
        mask = torch.arange(frames) < torch.tensor(held)[:, None]
        return {"input_features": features, "input_features_mask": mask.to(features.device)}

    def _fuse(self, waveforms: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Features for LAION's fusion models (laion_clap, `training/data.py`, get_audio_features), which draws its three
        windows at random; here they come from the middle of each third of the possible places.
        """
        if self.min_length_s is not None:
            raise ValueError('crop="fusion" fills every clip; set min_length_s to None.')
        frames = self._frame_count(self.max_samples)
        features, is_longer = [], []
        for waveform in waveforms:
            log_mel = self.log_mel(self._fill(waveform, self.max_samples))
            is_longer.append(len(log_mel) > frames)
            if len(log_mel) > frames:
                shrunk = F.interpolate(log_mel[None, None], (frames, self.feature_size), mode="bilinear")[0, 0]
                thirds = torch.arange(len(log_mel) - frames + 1).tensor_split(3)
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


_memory = threading.local()


def _thread_memory(numbers: int, dtype: torch.dtype) -> torch.Tensor:
    """Of undefined content, for this thread alone, and mostly the same as before: fresh memory is zeroed first."""
    memory: torch.Tensor | None = getattr(_memory, "held", None)
    if memory is None or memory.dtype != dtype or len(memory) < numbers:
        with torch.inference_mode(False):  # else nobody could write to it outside
            _memory.held = memory = torch.empty(numbers, dtype=dtype)
    return memory[:numbers]


def _may_be_written(waveform: torch.Tensor) -> bool:
    """Whether its log-mel may be computed in place: on a CPU, where nobody wants gradients or rewrites operators."""
    return not waveform.requires_grad and nothing_rewrites(waveform)


class UsedBins(NamedTuple):
    """The bins that the mel filter bank uses."""

    first_bin: int
    last_bin: int  # the one after it, as in a slice
    weights: torch.Tensor  # (mels, bins), laid out as its transpose, which oneDNN takes as it is


class FrontEnd(NamedTuple):
    """The constants of a log-mel: Hann window `(win_length,)`, mel filter bank `(n_fft // 2 + 1, mels)`."""

    window: torch.Tensor
    mel: torch.Tensor
    used: UsedBins


@lru_cache(maxsize=16)
def _front_end(
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
) -> FrontEnd:
    """Computed in float64, then rounded to `dtype`."""
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
        window = torch.hann_window(win_length, periodic=True, dtype=torch.float64).to(device, dtype)
        filters = torch.from_numpy(mel).to(device, dtype)
        bins = filters.any(dim=1).nonzero()[:, 0].tolist() or [0]
        first_bin, last_bin = bins[0], bins[-1] + 1
        return FrontEnd(window, filters, UsedBins(first_bin, last_bin, filters[first_bin:last_bin].T))
