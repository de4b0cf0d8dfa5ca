"""Waveform -> log-mel spectrogram, in torch: at the speed of a CPU, on any device, with gradients where wanted."""

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from .linear import ONEDNN_DTYPES, nothing_rewrites, onednn_linear
from .waveform import AudioError

# Of the frames that a core transforms at a time: smaller pieces cost more calls, larger ones, such as those of a whole
# batch, leave its cache (4x).
PIECE_BYTES = 2**21


@dataclass(frozen=True)
class LogMel:
    """
    The log-mel spectrogram of a waveform as it is: no crop, no fill.

    Args:
        feature_size, n_fft, win_length, hop_length, center, f_min, f_max, mel_scale, mel_norm, mel_triangles, power,
            log, log_floor: as `HfClapFeatureExtractor` has them.
        mel_sampling_rate: rate that the mel filter bank assumes, in Hz.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap import HfClapFeatureExtractor

    >>> log_mel = HfClapFeatureExtractor().transform
    >>> log_mel.frames_of(44100), log_mel(torch.zeros(44100)).shape
    (138, torch.Size([138, 64]))

    ```
    """

    feature_size: int
    n_fft: int
    win_length: int
    hop_length: int
    center: bool
    f_min: float
    f_max: float
    mel_sampling_rate: int
    mel_scale: str
    mel_norm: str | None
    mel_triangles: str
    power: int
    log: str
    log_floor: float

    def __call__(self, waveform: torch.Tensor) -> torch.Tensor:
        """
        Args:
            waveform: `(samples,)` float32 or float64; at least `least_samples`.

        Returns:
            torch.Tensor: `(frames, mels)`, in dB or as natural logarithm by `log`.

        Raises:
            AudioError: if it is shorter.
        """
        if len(waveform) < self.least_samples:
            raise AudioError(f"{len(waveform)} samples are less than a frame of {self.win_length}; fill the clip.")
        if not _may_be_written(waveform):
            return self._with_gradients(waveform)
        log_mel = waveform.new_empty(self.frames_of(len(waveform)), self.feature_size)
        self._write_in_pieces(waveform, log_mel)
        return log_mel

    def write(self, waveform: torch.Tensor, log_mel: torch.Tensor) -> None:
        """The same into `log_mel` `(frames, mels)`, which may be a part of a batch; gradients pass."""
        if _may_be_written(waveform) and not log_mel.requires_grad:
            self._write_in_pieces(waveform, log_mel)
        else:
            log_mel.copy_(self._with_gradients(waveform))

    def frames_of(self, samples: int) -> int:
        """How many frames a waveform of so many samples has."""
        return 1 + (samples + 2 * self._reflected - self.win_length) // self.hop_length

    @property
    def least_samples(self) -> int:
        """That a waveform must have: reflection takes samples from around the first and the last."""
        return self._reflected + 1 if self.center else self.win_length

    @lru_cache(maxsize=16)  # noqa: B019, by settings, of which there are few
    def constants(self, device: torch.device, dtype: torch.dtype) -> "Constants":
        """The window and the mel filter bank on `device`, computed in float64 and then rounded to `dtype`."""
        mel = mel_filter_bank(
            self.n_fft // 2 + 1,
            self.feature_size,
            self.f_min,
            self.f_max,
            self.mel_sampling_rate,
            norm=self.mel_norm,
            # transformers' name for the HTK scale with straight sides in mel; the two scales differ in the 6th digit
            mel_scale="kaldi" if self.mel_scale == "htk" and self.mel_triangles == "mel" else self.mel_scale,
            triangularize_in_mel_space=self.mel_triangles == "mel",
        )
        # whoever comes first fills the cache; the others may want gradients, and no default device
        with torch.inference_mode(False), torch.device("cpu"):
            window = torch.hann_window(self.win_length, periodic=True, dtype=torch.float64).to(device, dtype)
            filters = torch.from_numpy(mel).to(device, dtype)
            bins = filters.any(dim=1).nonzero()[:, 0].tolist() or [0]
            first_bin, last_bin = bins[0], bins[-1] + 1
            return Constants(window, filters, UsedBins(first_bin, last_bin, filters[first_bin:last_bin].T))

    def mel_bank(self) -> torch.Tensor:
        """The mel filter bank `(n_fft // 2 + 1, mels)`, as torchlibrosa's `melW`."""
        return self.constants(torch.device("cpu"), torch.float32).mel

    def stft_kernels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The windowed Fourier transform as two convolutions `(bins, 1, win_length)`, as torchlibrosa's."""
        bins, samples = torch.arange(self.n_fft // 2 + 1), torch.arange(self.win_length)
        angle = 2 * math.pi * (bins[:, None] * samples % self.n_fft).double() / self.n_fft
        window = self.constants(torch.device("cpu"), torch.float64).window
        real, imaginary = (window * angle.cos()).float(), (-window * angle.sin()).float()
        return real[:, None], imaginary[:, None]

    def _with_gradients(self, waveform: torch.Tensor) -> torch.Tensor:
        window, mel, _ = self.constants(waveform.device, waveform.dtype)
        frames = self._frames(waveform, 0, self.frames_of(len(waveform)))
        with torch.autocast(waveform.device.type, enabled=False):  # powers go beyond half precision
            spectrum = torch.fft.rfft(frames * window, n=self.n_fft)  # (frames, n_fft // 2 + 1)
            if self.power == 1:
                energies = spectrum.abs() @ mel  # its gradient at 0 is 0, where that of a root would be infinite
            else:
                energies = (spectrum.real.square() + spectrum.imag.square()) @ mel
        if self.log == "db":
            return 10 * torch.log10(energies.clamp(min=self.log_floor))
        return torch.log(energies + self.log_floor)

    def _write_in_pieces(self, waveform: torch.Tensor, log_mel: torch.Tensor) -> None:
        """On a CPU, without gradients: in pieces that stay in the cache, and in memory that is used again."""
        window, _, used = self.constants(waveform.device, waveform.dtype)
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

    @property
    def _reflected(self) -> int:
        """Samples that a waveform is reflected by at each end."""
        return self.win_length // 2 if self.center else 0


_memory = threading.local()


def _thread_memory(numbers: int, dtype: torch.dtype) -> torch.Tensor:
    """Of undefined content, for this thread alone, and mostly the same as before: fresh memory is zeroed first."""
    memory: torch.Tensor | None = getattr(_memory, "held", None)
    if memory is None or memory.dtype != dtype or len(memory) < numbers:
        with torch.inference_mode(False):  # else nobody could write to it outside
            _memory.held = memory = torch.empty(numbers, dtype=dtype, device="cpu")
    return memory[:numbers]


def _may_be_written(waveform: torch.Tensor) -> bool:
    """Whether its log-mel may be computed in place: on a CPU, where nobody wants gradients or rewrites operators."""
    return not waveform.requires_grad and nothing_rewrites(waveform)


class UsedBins(NamedTuple):
    """The bins that the mel filter bank uses."""

    first_bin: int
    last_bin: int  # the one after it, as in a slice
    weights: torch.Tensor  # (mels, bins), laid out as its transpose, which oneDNN takes as it is


class Constants(NamedTuple):
    """Of a log-mel: Hann window `(win_length,)`, mel filter bank `(n_fft // 2 + 1, mels)`."""

    window: torch.Tensor
    mel: torch.Tensor
    used: UsedBins
