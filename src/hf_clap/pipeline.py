"""Zero-shot audio tagging: audio of any kind and length, labels in plain words -> scores."""

import logging
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice, repeat
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from .derived import Derived
from .embedding import Clip, Embedder, active_adapters, embed_texts, window_and_hop
from .linear import is_slow_on_cpu
from .loading import check_checkpoint, load_model, load_processor
from .modeling_hf_clap import HfClapModel
from .onnx_model import HfClapOnnxModel, OnnxEmbedder
from .processing_hf_clap import HfClapProcessor
from .prompts import DEFAULT_TEMPLATE, check_templates, check_unicode
from .waveform import AudioError, is_batch

logger = logging.getLogger(__name__)

TINY = str(Path(__file__).parent / "checkpoints" / "tiny")
"""The bundled checkpoint: pass it to any `from_pretrained`."""

DEFAULT_WINDOW_S = 2.0

# Label sets whose embeddings are kept between calls.
CACHED_LABEL_SETS = 8

LabelEmbeds = OrderedDict[tuple[tuple[str, ...], tuple[str, ...]], torch.Tensor]  # by labels and templates


class HfClapPipeline:
    """
    Zero-shot audio tagging with a model and its processor; `hf_clap.pipeline()` makes one.

    Args:
        model: on the device and in the dtype to run in, put into evaluation mode; or an exported one.
        processor: the model's.
        batch_size: windows that go through the audio tower at a time.
    """

    def __init__(self, model: HfClapModel | HfClapOnnxModel, processor: HfClapProcessor, batch_size: int = 8):
        check_positive_int("batch_size", batch_size)
        kind: Any = OnnxEmbedder if isinstance(model, HfClapOnnxModel) else Embedder
        self.embedder: Embedder = kind(model, processor, batch_size)
        self._label_embeds: Derived[LabelEmbeds] = Derived()

    @property
    def model(self) -> Any:
        """The model, which hears and reads."""
        return self.embedder.model

    @property
    def processor(self) -> HfClapProcessor:
        """The model's processor."""
        return self.embedder.processor

    @property
    def sampling_rate(self) -> int:
        """The rate that the model hears, in Hz."""
        return self.processor.feature_extractor.sampling_rate

    def __call__(self, audio: Any, candidate_labels: Iterable[str] | str, **options: Any) -> Any:
        """
        Score labels for audio.

        Args:
            audio: a path, URL, bytes, file object, array (with `sampling_rate`), `{"array", "sampling_rate"}` or
                `datasets` audio; or a list of them; or an iterator of them, for which an iterator comes back. An array
                with two axes is one clip, channels first. What is longer than the model's window is heard in
                consecutive windows, whose embeddings are averaged; LAION's fusion models hear it as a whole.
            candidate_labels: the labels, as a list or separated by commas.
            hypothesis_template (`str` or `list[str]`): sentence with `{}` for the label, or several, whose embeddings
                are averaged; `"this is a sound of {}"` when absent.
            top_k (`int`, *optional*): how many labels to return, best first; all when absent.
            threshold (`float` or `"model"`, *optional*): least score to return, in [0, 1]; with `"model"` and
                `multi_label` the checkpoint's own, `config.multi_label_threshold`.
            multi_label (`bool`, defaults to `False`): score each label on its own (sigmoid) instead of against the
                others (softmax).
            return_timestamps (`bool`, defaults to `False`): score window by window.
            window_s (`float`, *optional*): length of these windows, in seconds; 2.0 when absent, and at most the
                model's own window.
            hop_s (`float`, *optional*): seconds from one to the next; `window_s` when absent.
            sampling_rate (`int`, *optional*): rate of arrays, in Hz.
            on_error (`str`, defaults to `"raise"`): with `"return"`, the result of an input that cannot be read is the
                exception, and the others go on.

        Returns:
            list[dict]: `{"label", "score"}` by falling score; with `return_timestamps` each has a `"timestamp"`
            `(start, end)` in seconds, and they come in order of time. A list of such lists for a list of inputs.

        Raises:
            AudioError, OSError: for audio that cannot be used, with a sentence that says what to do.
            ValueError, TypeError: for arguments that cannot be used.

        Example:

        ```python
        >>> import numpy as np
        >>> import hf_clap

        >>> tagger = hf_clap.pipeline()
        >>> noise = np.random.default_rng(0).normal(0, 0.1, 32000)
        >>> tagger(noise, ["white noise", "church bells"], sampling_rate=16000, top_k=1)[0]["label"]
        'white noise'

        ```
        """
        if isinstance(audio, Iterator) and not hasattr(audio, "read"):  # a file object is one input
            return self.iterate(audio, candidate_labels, **options)
        if is_batch(audio):
            return list(self.iterate(audio, candidate_labels, **options))
        return next(iter(self.iterate([audio], candidate_labels, **options)))

    def iterate(
        self,
        inputs: Iterable[Any],
        candidate_labels: Iterable[str] | str,
        *,
        hypothesis_template: str | Sequence[str] = DEFAULT_TEMPLATE,
        top_k: int | None = None,
        threshold: float | str | None = None,
        multi_label: bool = False,
        return_timestamps: bool = False,
        window_s: float | None = None,
        hop_s: float | None = None,
        sampling_rate: int | None = None,
        on_error: str = "raise",
    ) -> Iterator[Any]:
        """
        One result for each input, in order. Inputs are read and heard in parallel, on each core a group of
        `batch_size`; of an iterator two groups for each core are taken in advance. A few windows are held at a time,
        however many and however long the inputs are. Arguments and results as in `__call__`; they are checked at the
        call.
        """
        if isinstance(inputs, (str, bytes, PathLike, Mapping)):
            raise TypeError("iterate takes several inputs; pass a list, or call the pipeline itself with one.")
        if top_k is not None:
            check_positive_int("top_k", top_k)
        least_score = self._least_score(threshold, multi_label)
        if on_error not in ("raise", "return"):
            raise ValueError(f'on_error={on_error!r} is not possible; choose "raise" or "return".')
        labels = _check_labels(candidate_labels)
        if not return_timestamps and (window_s, hop_s) != (None, None):
            raise ValueError(
                "window_s and hop_s are for timestamps; pass return_timestamps=True too, or leave them out."
            )
        window = hop = None
        if return_timestamps:
            extractor = self.processor.feature_extractor
            window_s = min(DEFAULT_WINDOW_S, extractor.max_length_s) if window_s is None else window_s
            window, hop = window_and_hop(extractor, window_s, hop_s)
        self.model.eval()  # somebody may have trained it since
        label_embeds = self._encode_labels(labels, check_templates(hypothesis_template))

        def results() -> Iterator[Any]:
            for clip in self._clips(inputs, sampling_rate, window, hop):
                if clip.error is None:
                    yield self._score(clip, labels, label_embeds, top_k, least_score, multi_label, return_timestamps)
                elif on_error == "raise":
                    raise clip.error
                else:
                    yield clip.error

        return results()

    def _clips(
        self, inputs: Iterable[Any], sampling_rate: int | None, window: int | None, hop: int | None
    ) -> Iterator[Clip]:
        sizes: Iterable[int] = repeat(self.embedder.batch_size)
        if isinstance(inputs, Sequence):  # others may have a length that they cannot say
            if len(inputs) == 1:  # nothing to do in parallel: all cores take part in each step
                yield from self.embedder.group(list(_items(inputs)), sampling_rate, window, hop)
                return
            rounds = math.ceil(len(inputs) / (self.embedder.batch_size * self.embedder.workers))
            count = max(1, rounds * self.embedder.workers)  # of groups, shared out evenly among the cores
            even = [(len(inputs) + index) // count for index in reversed(range(count))]
            sizes = chain(even, sizes)  # there may be more than it says
        failures: list[Exception] = []
        items = _items(inputs) if isinstance(inputs, Sequence) else iter(inputs)
        groups = _groups(items, sizes, failures)
        for clips in self.embedder.windows(groups, sampling_rate, window, hop):
            yield from clips
        if failures:
            raise failures[0]

    def _score(
        self,
        clip: Clip,
        labels: list[str],
        label_embeds: torch.Tensor,
        top_k: int | None,
        least_score: float,
        multi_label: bool,
        return_timestamps: bool,
    ) -> list[dict[str, Any]]:
        with torch.inference_mode():
            embeds = F.normalize(torch.stack(clip.embeds), dim=-1)  # (1 or windows, dim)
            logits = self.model.similarity(embeds.to(label_embeds.device), label_embeds)
            if not logits.isfinite().all():
                raise ValueError("The model gives NaN or infinite scores; check its weights, or choose dtype float32.")
            scores = logits.sigmoid() if multi_label else logits.softmax(dim=-1)
            best, order = scores.topk(min(top_k or len(labels), len(labels)))
        predictions = []
        for row, (row_best, row_order) in enumerate(zip(best.tolist(), order.tolist(), strict=True)):
            for score, index in zip(row_best, row_order, strict=True):
                if score < least_score:
                    continue
                prediction = {"label": labels[index], "score": score}
                if return_timestamps:
                    start, end = clip.spans[row]
                    prediction["timestamp"] = (start / self.sampling_rate, end / self.sampling_rate)
                predictions.append(prediction)
        return predictions

    def _least_score(self, threshold: float | str | None, multi_label: bool) -> float:
        if threshold is None:
            return 0.0
        if threshold == "model":
            own: float | None = self.model.config.multi_label_threshold
            if own is None or not multi_label:
                reason = "the model has none" if multi_label else "the model's is for multi_label=True"
                raise ValueError(f'threshold="model" is not possible, as {reason}; pass a number from 0 to 1.')
            return own
        if not (isinstance(threshold, Real) and not isinstance(threshold, bool) and 0 <= threshold <= 1):
            raise ValueError(f"threshold={threshold!r} is not possible; scores lie between 0 and 1.")
        return float(threshold)

    @torch.inference_mode()
    def _encode_labels(self, labels: list[str], templates: list[str]) -> torch.Tensor:
        """`(labels, dim)` float32, L2-normalised: the mean over templates. Kept for the next call."""
        adapters = active_adapters(self.model) if isinstance(self.model, nn.Module) else []
        kept = self._label_embeds(list(self.model.parameters()), OrderedDict, tuple(adapters))
        key = tuple(labels), tuple(templates)
        if key not in kept:
            embeds = [
                embed_texts(self.model, self.processor, [template.replace("{}", label) for label in labels])
                for template in templates
            ]
            kept[key] = F.normalize(torch.stack(embeds).float().mean(dim=0), dim=-1)
            if len(kept) > CACHED_LABEL_SETS:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]


def pipeline(
    model: str | PathLike[str] | HfClapModel | None = None,
    processor: HfClapProcessor | None = None,
    *,
    device: str | int | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    batch_size: int = 8,
    revision: str | None = None,
    backend: str = "torch",
) -> HfClapPipeline:
    """
    A zero-shot audio tagging pipeline.

    Args:
        model: folder or Hub id of a hf_clap checkpoint, or a model; the bundled checkpoint when absent.
        processor: needed with a model object; otherwise the checkpoint's.
        device: such as `"cuda"`, `"mps"` or `"cpu"`. When absent, a checkpoint goes to a CUDA GPU if there is one, and
            a model object stays where it is.
        dtype: such as `"bfloat16"`; what the checkpoint or model has when absent. A warning says so where the CPU has
            no arithmetic for it.
        batch_size: windows that go through the audio tower at a time.
        revision: of a Hub checkpoint: branch, tag or commit.
        backend: `torch`, or `onnx` for what `export_onnx` wrote, which onnxruntime runs on the CPU (extra `onnx`).

    Returns:
        HfClapPipeline: call it with audio and labels.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if it is not a hf_clap checkpoint, or a model comes without its processor or with a revision.
        ImportError: for `onnx`, where onnxruntime is not installed.

    Example:

    ```python
    >>> import hf_clap

    >>> hf_clap.pipeline(device="cpu").sampling_rate
    16000

    ```
    """
    if backend not in ("torch", "onnx"):
        raise ValueError(f'backend={backend!r} is not possible; choose "torch" or "onnx".')
    if backend == "onnx":
        if not isinstance(model, (str, PathLike)) or dtype is not None or device not in (None, -1, "cpu"):
            raise ValueError(
                'backend="onnx" takes a folder or Hub id of what `hf-clap export` wrote, as it is, on the CPU; leave '
                "out device and dtype."
            )
        exported = HfClapOnnxModel.from_pretrained(model, revision)
        processor = processor or load_processor(str(model), revision or "main")
        return HfClapPipeline(exported, processor, batch_size)
    if isinstance(model, nn.Module) and hasattr(model, "get_base_model"):  # peft's, with adapters in its layers
        model = cast(Any, model).get_base_model()
    if isinstance(model, HfClapModel):
        if processor is None:
            raise ValueError("A model object needs its processor; pass processor=HfClapProcessor.from_pretrained(…).")
        if revision is not None:
            raise ValueError("A model object has no revision to choose; pass its Hub id, or leave revision out.")
        loaded: Any = model if dtype is None else cast(Any, model).to(_as_dtype(dtype))
    else:
        if model is not None and not (isinstance(model, (str, PathLike)) and str(model)):
            what = f"A {type(model).__name__}" if str(model) else "An empty name"
            raise TypeError(f"{what} is not a model; pass a folder, a Hub id or a HfClapModel.")
        source = TINY if model is None else str(model)
        revision = revision or "main"
        check_checkpoint(source, revision)
        processor = processor or load_processor(source, revision)
        loaded = load_model(source, revision, "auto" if dtype is None else _as_dtype(dtype))
        if device is None and torch.cuda.is_available():
            device = "cuda"
    if device is not None:
        loaded = loaded.to(_as_device(device))
    if loaded.device.type == "cpu" and is_slow_on_cpu(loaded.dtype):
        name = str(loaded.dtype).removeprefix("torch.")
        logger.warning("This CPU has no %s arithmetic and takes many times as long; choose dtype float32.", name)
    return HfClapPipeline(loaded, processor, batch_size)


def _items(inputs: Sequence[Any]) -> Iterator[Any]:
    """
    One after the other; in the place of one that cannot be had, such as a row that `datasets` cannot decode, a
    function that says so when it is called. The others can be had all the same.
    """
    if isinstance(inputs, (list, tuple)):
        yield from inputs
        return
    for number in range(len(inputs)):
        try:
            yield inputs[number]
        except IndexError:
            return
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            yield partial(_refuse, f"Input {number} cannot be read ({reason}); mend it, or leave it out.")


def _refuse(sentence: str) -> Any:
    raise AudioError(sentence)


def _groups(inputs: Iterator[Any], sizes: Iterable[int], failures: list[Exception]) -> Iterator[list[Any]]:
    """The inputs in groups. Where their source fails, what it gave before is heard; its error is kept for later."""
    for size in sizes:
        group: list[Any] = []
        try:
            group.extend(islice(inputs, size))
        except Exception as error:  # of any kind, as the source is the user's
            failures.append(error)
        if group:
            yield group
        if failures or not group:
            return


def _as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if resolved not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype={dtype!r} is not possible; choose float32, bfloat16 or float16.")
    return resolved


def _as_device(device: str | int | torch.device) -> torch.device:
    try:
        resolved = torch.device("cpu" if device == -1 else device)  # -1 is transformers' word for it
        torch.empty(0, device=resolved)
    except (AssertionError, RuntimeError) as error:  # how torch says that it was built without the device
        raise ValueError(
            f"device={device!r} is not possible on this machine; choose another, such as 'cpu'."
        ) from error
    return resolved


def check_positive_int(name: str, value: Any) -> None:
    """A ValueError that names the argument where it is no whole number of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} is not possible; pass a whole number of at least 1.")


def _check_labels(labels: Iterable[str] | str) -> list[str]:
    if isinstance(labels, str):
        labels = labels.split(",")
    labels = list(labels) if isinstance(labels, Iterable) else [labels]
    if not all(isinstance(label, str) for label in labels):
        raise TypeError("Labels must be words; pass candidate_labels as a list of str.")
    check_unicode("Label", labels)
    labels = [label.strip() for label in labels]
    if not labels:
        raise ValueError('There are no labels; pass at least one, such as candidate_labels=["dog", "rain"].')
    if "" in labels:
        raise ValueError(f"Label {labels.index('') + 1} of {len(labels)} is empty; remove it or give it a name.")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"Label {twice!r} is there twice; pass each label once.")
    return labels
