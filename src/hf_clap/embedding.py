"""Sounds and words -> embeddings, many at a time: what tagging, the benchmark and search share."""

import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BatchFeature

from .audio import iter_audio
from .derived import Derived
from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .freed_memory import keep_freed_memory
from .modeling_hf_clap import HfClapModel
from .processing_hf_clap import HfClapProcessor
from .waveform import AudioError, iter_windows

TEXT_BATCH_SIZE = 32  # more are padded more, fewer pack the weights more often (measured)
# settings that say where a model is from, and those that saving it adds
ORIGIN = ("_name_or_path", "_commit_hash", "transformers_version", "auto_map")
SAVED_AS = ("architectures", "dtype", "processor_class")
# of an extractor, as digests have it: another value would make indexes useless, and means nothing
OF_NO_ACCOUNT = {"return_attention_mask": True}

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class Clip:
    """What a model makes of one clip, window by window; or in all, which takes the same memory at any length."""

    in_all: bool
    spans: list[tuple[int, int]] = field(default_factory=list)  # of each window, in samples at the model's rate
    pooled: list[torch.Tensor] = field(default_factory=list)  # of each window, or the sum over them
    embeds: list[torch.Tensor] = field(default_factory=list)  # likewise
    windows: int = 0
    error: Exception | None = None  # why there is nothing

    def add(self, span: tuple[int, int], pooled: torch.Tensor, embed: torch.Tensor) -> None:
        self.windows += 1
        if self.in_all and self.windows > 1:
            self.pooled[0] = self.pooled[0] + pooled
            self.embeds[0] = self.embeds[0] + embed
            return
        self.pooled.append(pooled)
        self.embeds.append(embed)
        if not self.in_all:
            self.spans.append(span)


class WindowBatch(NamedTuple):
    """Windows of several clips that are heard together."""

    clips: list[int]  # whose each window is, by place
    spans: list[tuple[int, int]]  # in samples at the model's rate
    inputs: list[Any]  # what `Embedder.hear` takes of each


class BrokenClip(NamedTuple):
    """A clip that cannot be read to its end, and why."""

    clip: int
    error: Exception


class ClipEmbedding(NamedTuple):
    """What a model makes of one clip: means over its windows."""

    pooled: np.ndarray  # (hidden_size,) float32, what the audio tower gives
    embed: np.ndarray  # (projection_dim,) float32, L2-normalised, in the space that audio and text share


def iter_waveforms(
    extractor: HfClapFeatureExtractor,
    source: Any,
    source_rate: int | None = None,
    window: int | None = None,
    hop: int | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """
    Windows of one clip, so that a recording of any length takes bounded memory.

    Args:
        extractor: the model's.
        source: audio as `load_audio` takes it.
        source_rate: of an array, in Hz.
        window: length of a window in samples at the extractor's rate; its longest when absent. LAION's fusion models
            then hear the clip as a whole.
        hop: samples from one window to the next; a window when absent.

    Yields:
        tuple: first sample of the window, and its `(samples,)` at the extractor's rate.

    Raises:
        AudioError, OSError: as `iter_audio`.
    """
    blocks = map(torch.from_numpy, iter_audio(source, extractor.sampling_rate, source_rate))
    if window is None and extractor.crop == "fusion":  # it is in memory until its features are made
        yield 0, torch.cat(list(blocks))
    else:
        window = window or extractor.max_samples
        yield from iter_windows(blocks, window, hop or window)


def window_features(extractor: HfClapFeatureExtractor, waveform: torch.Tensor, as_whole: bool) -> BatchFeature:
    """What a model hears of a window, a batch of one. Fusion hears the clip `as_whole`."""
    crop = "fusion" if as_whole and extractor.crop == "fusion" else "start"
    return extractor(waveform, extractor.sampling_rate, crop=crop)


def iter_batches(
    extractor: HfClapFeatureExtractor,
    window_input: Callable[[torch.Tensor, bool], Any],
    sources: Sequence[Any],
    batch_size: int,
    source_rate: int | None = None,
    window: int | None = None,
    hop: int | None = None,
) -> Iterator[WindowBatch | BrokenClip]:
    """
    Read clips: all that comes before the model, which may be elsewhere.

    Args:
        extractor: the model's.
        window_input: makes of a waveform, and of whether it is a clip as a whole, what the model takes.
        sources: of each clip, audio as `load_audio` takes it, or a function without arguments that fetches it.
        batch_size: windows that are heard together.
        source_rate, window, hop: as `iter_waveforms` takes them.

    Yields:
        WindowBatch | BrokenClip: windows in the order of the clips. Those of a broken clip that were read before are
        among them.
    """
    batch = WindowBatch([], [], [])
    for number, source in enumerate(sources):
        try:
            audio = source() if callable(source) else source
            for start, waveform in iter_waveforms(extractor, audio, source_rate, window, hop):
                batch.inputs.append(window_input(waveform, window is None))  # first, for it may refuse the waveform
                batch.clips.append(number)
                batch.spans.append((start, start + len(waveform)))
                if len(batch.clips) == batch_size:
                    yield batch
                    batch = WindowBatch([], [], [])
        except (AudioError, OSError) as error:
            yield BrokenClip(number, error)
    if batch.clips:
        yield batch


def window_and_hop(extractor: HfClapFeatureExtractor, window_s: float | None, hop_s: float | None) -> tuple[int, int]:
    """
    Args:
        extractor: the model's.
        window_s: length of a window, in seconds; the longest that the model hears at once when absent.
        hop_s: seconds from one window to the next; a window when absent.

    Returns:
        tuple[int, int]: both in samples at the extractor's rate.

    Raises:
        ValueError: for lengths that are not possible.
    """
    longest_s = extractor.max_length_s
    window_s = longest_s if window_s is None else window_s
    hop_s = window_s if hop_s is None else hop_s
    if not (isinstance(window_s, Real) and 0 < window_s <= longest_s):
        raise ValueError(
            f"window_s={window_s!r} is not possible; it must be more than 0, and the model hears at most {longest_s} "
            "s at once."
        )
    if not (isinstance(hop_s, Real) and 0 < hop_s <= window_s):
        raise ValueError(f"hop_s={hop_s!r} is not possible; it must be more than 0 and at most window_s={window_s}.")
    rate = extractor.sampling_rate
    return max(1, round(window_s * rate)), max(1, round(hop_s * rate))


@torch.inference_mode()
def embed_texts(model: HfClapModel, processor: HfClapProcessor, texts: Sequence[str]) -> torch.Tensor:
    """`(texts, dim)`, L2-normalised. Batches of like length, so that little of them is padding."""
    tokens = processor(text=list(texts))  # padded to the longest of all
    mask = tokens["attention_mask"]
    order = mask.sum(dim=1).argsort(stable=True)
    embeds = []
    for batch in order.split(TEXT_BATCH_SIZE):
        columns = mask[batch].any(dim=0)
        used = {name: field[batch][:, columns].to(model.device) for name, field in tokens.items()}
        embeds.append(model.encode_text(**used))
    return torch.cat(embeds)[order.argsort().to(model.device)]


def check_finite(embeds: np.ndarray, names: Sequence[str]) -> None:
    """Raises a ValueError that says of which clips or texts the embeddings `(names, dim)` are not finite."""
    bad = [name for name, embed in zip(names, embeds, strict=True) if not np.isfinite(embed).all()]
    if bad:
        raise ValueError(
            f"The model gives NaN or infinite embeddings for {bad[0]}{', …' if len(bad) > 1 else ''}; check its "
            "weights, or choose dtype float32."
        )


def active_adapters(model: nn.Module) -> list[str]:
    """How adapters of peft take part in the model, layer by layer; nothing without any."""
    return [
        f"{layer.active_adapters} {layer.disable_adapters} {layer.merged_adapters} {getattr(layer, 'scaling', None)}"
        for layer in model.modules()
        if "merged_adapters" in vars(layer)  # `hasattr` takes ten times as long where there is none
    ]


class Embedder:
    """
    A model and its processor, which embed clips in parallel: each worker decodes, makes features and runs the audio
    tower on one core, so that no core waits for another. What comes out depends on the groups alone, not on the number
    of workers.

    Args:
        model: on the device and in the dtype to run in. It is put into evaluation mode.
        processor: the model's.
        batch_size: windows that go through the audio tower at a time, in each worker.
        workers: threads; as many as torch uses when absent.

    Example:

    ```python
    >>> import hf_clap
    >>> from hf_clap.embedding import Embedder

    >>> tagger = hf_clap.pipeline(device="cpu")
    >>> embedder = Embedder(tagger.model, tagger.processor)
    >>> [[siren, missing]] = embedder.clips([["examples/audio/siren.flac", "examples/audio/none.flac"]])
    >>> siren.pooled.shape, siren.embed.shape, type(missing).__name__
    ((1024,), (553,), 'FileNotFoundError')

    ```
    """

    def __init__(
        self, model: HfClapModel, processor: HfClapProcessor, batch_size: int = 8, workers: int | None = None
    ):
        self.model = model.eval()
        self.processor = processor
        self.batch_size = batch_size
        self.workers = workers or torch.get_num_threads()
        self._device_lock = Lock()
        self._digests: defaultdict[tuple[str, torch.dtype | None], Derived[str]] = defaultdict(Derived)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_device_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _device_lock=Lock())

    @property
    def name(self) -> str:
        """Hub id of the model, or the name of its folder."""
        source = str(getattr(self.model.config, "_name_or_path", ""))
        return Path(source).resolve().name if Path(source).is_dir() else source or type(self.model).__name__

    @property
    def revision(self) -> str | None:
        """The commit on the Hub that the model is from, if it is from there."""
        return getattr(self.model.config, "_commit_hash", None)

    @property
    def weights_sha256(self) -> str:
        """Of all weights, the configuration and the feature extractor's settings."""
        return self._sha256("")

    @property
    def space_sha256(self) -> str:
        """Of what must be equal for embeddings to be compared: of all weights in bfloat16, so that it is the same for
        a checkpoint in float32 and in bfloat16, the configuration and the feature extractor's settings."""
        return self._sha256("", torch.bfloat16)

    @property
    def fingerprint(self) -> str:
        """Of what decides how clips are embedded: the audio side's weights, both settings, and the device's kind."""
        return self._sha256("audio_") + f" {self.model.device.type} {self.batch_size}"

    def _sha256(self, prefix: str, dtype: torch.dtype | None = None) -> str:
        """Of weights whose names begin so, as they are or in a dtype, and the settings."""
        without = ORIGIN if dtype is None else ORIGIN + SAVED_AS
        of_extractor = self.processor.feature_extractor.to_dict() | OF_NO_ACCOUNT
        settings = [
            json.dumps(_without(without, settings), sort_keys=True, default=str)
            for settings in (self.model.config.to_diff_dict(), of_extractor)
        ] + active_adapters(self.model)
        weights = {name: tensor for name, tensor in self.model.state_dict().items() if name.startswith(prefix)}
        return self._digests[prefix, dtype](
            list(weights.values()), lambda: _digest(settings, weights, dtype), (*settings, *weights)
        )

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """`(texts, dim)` float32, L2-normalised."""
        return embed_texts(self.model, self.processor, texts).float().cpu().numpy()

    def clips(self, groups: Iterable[Sequence[Any]]) -> Iterator[list[ClipEmbedding | Exception]]:
        """
        Embed clips.

        Args:
            groups: of clips that are embedded together: each clip is audio as `load_audio` takes it, or a function
                without arguments that fetches it, which is called in a worker.

        Yields:
            list: for each group, in order, the embedding of each clip, or the `AudioError` or `OSError` that says why
            there is none.
        """
        for clips in self.windows(groups):
            yield [
                clip.error
                or ClipEmbedding((clip.pooled[0] / clip.windows).numpy(), F.normalize(clip.embeds[0], dim=-1).numpy())
                for clip in clips
            ]

    def windows(
        self,
        groups: Iterable[Sequence[Any]],
        source_rate: int | None = None,
        window: int | None = None,
        hop: int | None = None,
    ) -> Iterator[list[Clip]]:
        """
        Embed the windows of clips.

        Args:
            groups: as `clips` takes them. Two groups for each worker are read ahead.
            source_rate, window, hop: as `iter_waveforms` takes them; with a window each one's embedding is kept,
                otherwise their sum.

        Yields:
            list[Clip]: for each group, in order.
        """
        yield from self.map(lambda group, stopped: self.group(group, source_rate, window, hop, stopped), groups)

    def map(self, function: Callable[[T, Event], R], items: Iterable[T]) -> Iterator[R]:
        """
        Run a function in the workers, each of which computes on one core.

        Args:
            function: of an item and an event; once this is set nobody waits for the result.
            items: two for each worker are taken in advance.

        Yields:
            what the function returns of each item, in order.
        """
        threads = torch.get_num_threads()
        stopped = Event()
        waiting: deque[Future[R]] = deque()
        with ThreadPoolExecutor(self.workers, initializer=_start_worker) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(function, item, stopped))
                    while len(waiting) > 2 * self.workers or (waiting and waiting[0].done()):
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                stopped.set()
                for future in waiting:
                    future.cancel()
                torch.set_num_threads(threads)  # else threads that start later would take over the workers' one

    @property
    def window_input(self) -> Callable[[torch.Tensor, bool], Any]:
        """Makes of a waveform, and of whether it is a clip as a whole, what `hear` takes."""
        return partial(window_features, self.processor.feature_extractor)

    @torch.inference_mode()
    def hear(self, windows: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The tower's `(windows, hidden_size)` and the embeddings `(windows, dim)`: float32, on the CPU."""
        model: Any = self.model
        # another device than the CPU takes one batch at a time, for its memory's sake
        with nullcontext() if model.device.type == "cpu" else self._device_lock:
            features = {name: torch.cat([window[name] for window in windows]).to(model.device) for name in windows[0]}
            output, embeds = model._embed_audio(**features)
            return output.pooler_output.float().cpu(), embeds.float().cpu()

    @torch.inference_mode()
    def group(
        self,
        sources: Sequence[Any],
        source_rate: int | None = None,
        window: int | None = None,
        hop: int | None = None,
        stopped: Event | None = None,
    ) -> list[Clip]:
        """The clips of one group, embedded in this thread; arguments as of `windows`. Nobody waits once `stopped`."""
        clips = [Clip(in_all=window is None) for _ in sources]
        extractor = self.processor.feature_extractor
        for part in iter_batches(extractor, self.window_input, sources, self.batch_size, source_rate, window, hop):
            if stopped and stopped.is_set():
                return []
            if isinstance(part, BrokenClip):
                clips[part.clip].error = part.error
            else:
                for clip, *values in zip(part.clips, part.spans, *self.hear(part.inputs), strict=True):
                    clips[clip].add(*values)
        return clips


def _start_worker() -> None:
    """A thread that computes on one core, and keeps the memory that it has."""
    torch.set_num_threads(1)
    keep_freed_memory()


def _digest(settings: list[str], weights: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> str:
    """SHA-256 of settings, and of weights as they are or in a dtype."""
    digest = hashlib.sha256()
    for setting in settings:
        digest.update(setting.encode())
    for name, tensor in weights.items():
        tensor = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        # after `.numpy()` FSDP could not resize the memory
        digest.update(np.from_dlpack(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)).data)
    return digest.hexdigest()


def _without(names: Sequence[str], settings: Any) -> Any:
    """Settings, and settings inside them, without those of these names."""
    if not isinstance(settings, dict):
        return settings
    return {name: _without(names, value) for name, value in settings.items() if name not in names}
