"""A model as two ONNX graphs: waveform -> embedding, with the log-mel inside, and tokens -> embedding."""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .feature_extraction_hf_clap import INT16_MAX, HfClapFeatureExtractor
from .modeling_hf_clap import HfClapModel, bounded
from .onnx_model import AUDIO_GRAPH, LOGITS, TEXT_GRAPH, HfClapOnnxModel, import_onnxruntime
from .processing_hf_clap import HfClapProcessor
from .whole_file import new_output, writing

# Batches and lengths of the examples that are traced; 0 and 1 would be taken for constants.
EXAMPLE_BATCH = 2
EXAMPLE_TEXTS = ["a dog barks in the rain", "a siren"]

# What becomes int8. Convolutions stay in float32: onnxruntime has no fast ones in int8 on a CPU. Those of the bundled
# checkpoint would take 4 to 9 times as long, and its embeddings would keep a cosine of 0.89 only.
INT8_OPERATORS = ["MatMul", "Gemm", "Gather"]

# Of the graphs' embeddings with the model's, before int8; a right graph has 1 - 1e-6.
LEAST_COSINE = 0.9999


def export_onnx(
    model: HfClapModel, processor: HfClapProcessor, output: str | PathLike[str], int8: bool = False
) -> Path:
    """
    Export a model for onnxruntime, in float32. The folder holds

    * `audio.onnx`: `waveform` `(batch, samples)` -> `audio_embeds` `(batch, projection_dim)`, L2-normalised. Waveforms
      are mono float32 at the feature extractor's rate, and the log-mel is in the graph. `samples` lies between the
      extractor's `min_samples` and `max_samples`; where these are one number, it is fixed in the graph.
    * `text.onnx`: what the tokenizer gives, `(batch, tokens)` int64 -> `text_embeds` `(batch, projection_dim)`.
    * `onnx_config.json`: `logit_factor` and `logit_bias`; logits are `logit_factor * cosine + logit_bias`.
    * the model's configuration, and the processor.

    Weights of more than 2 GB lie beside their graph. `HfClapOnnxModel` runs such a folder.

    Args:
        model: it is not changed.
        processor: the model's.
        output: the folder to make; it appears when it is complete.
        int8: whether the weights of linear layers and embeddings are stored and multiplied in 8 bits (onnxruntime's
            dynamic quantization). Convolutions and the log-mel stay as they are. A clip's embedding then depends a
            little on its batch, whose activations share a scale.

    Returns:
        Path: `output`.

    Raises:
        ImportError: where the extra `onnx` is not installed.
        TypeError: for another model than a `HfClapModel`, such as one that writes captions.
        ValueError: for a fusion model, or one that cannot be exported exactly.
        OSError: if the folder exists already or cannot be written.

    Example:

    ```python
    import hf_clap

    tagger = hf_clap.pipeline()
    hf_clap.export_onnx(tagger.model, tagger.processor, "tiny-onnx")
    ```
    """
    _check_installed()
    if not isinstance(model, HfClapModel):
        raise TypeError(f"A {type(model).__name__} cannot be exported; export_onnx takes a HfClapModel.")
    if processor.feature_extractor.crop == "fusion":
        raise ValueError(
            'Fusion models (crop="fusion") cannot be exported, because they hear the whole of a long clip; choose a '
            "checkpoint without fusion."
        )
    with new_output(output, is_file=False) as folder:
        model = copy.deepcopy(model).to("cpu", torch.float32).eval()  # type: ignore[arg-type]
        model.set_attn_implementation("eager")  # written out, as in any graph; others differ in what can be traced
        audio = _trace_audio(model, processor.feature_extractor)
        text = _trace_text(model, processor)
        bias = None if model.logit_bias is None else model.logit_bias.item()
        logits = {"logit_factor": bounded(model.logit_scale).item(), "logit_bias": bias or 0.0}
        with writing(output):
            folder.mkdir()
            (folder / LOGITS).write_text(json.dumps(logits, indent=2) + "\n", encoding="utf-8")
            model.config.save_pretrained(folder)
            processor.save_pretrained(folder)
            audio.save(folder / AUDIO_GRAPH)  # weights of more than 2 GB in a file beside it
            text.save(folder / TEXT_GRAPH)
            _check_graphs(folder, model, processor)
            if int8:
                _quantize(folder / AUDIO_GRAPH)
                _quantize(folder / TEXT_GRAPH)
    return Path(output)


class LogMelGraph(nn.Module):
    """
    `HfClapFeatureExtractor.log_mel` of a batch, without an operator for the Fourier transform: its window and sines
    are the kernels of a convolution, for the bins that the mel filter bank uses. In float32, also where the extractor
    computes in float64.
    """

    kernels: torch.Tensor
    mel: torch.Tensor

    def __init__(self, extractor: HfClapFeatureExtractor):
        super().__init__()
        self.extractor = extractor
        mel = extractor.transform.mel_bank()
        used = mel.any(dim=1)
        self.register_buffer("kernels", torch.cat([kernels[used] for kernels in extractor.transform.stft_kernels()]))
        self.register_buffer("mel", mel[used])

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """(batch, samples) -> (batch, 1, frames, mels)"""
        extractor = self.extractor
        if extractor.int16_rounding:
            waveform = (waveform.clamp(-1, 1) * INT16_MAX).trunc() / INT16_MAX
        waveform = waveform[:, None]
        if extractor.center:
            half = extractor.win_length // 2
            waveform = F.pad(waveform, (half, half), mode="reflect")
        spectrum = F.conv1d(waveform, self.kernels, stride=extractor.hop_length)  # (batch, 2 * bins, frames)
        real, imaginary = spectrum.chunk(2, dim=1)
        magnitudes = real.square() + imaginary.square()
        if extractor.power == 1:
            magnitudes = magnitudes.sqrt()
        energies = (magnitudes.transpose(1, 2) @ self.mel)[:, None]
        if extractor.log == "db":
            return 10 * torch.log10(energies.clamp(min=extractor.log_floor))
        return torch.log(energies + extractor.log_floor)


class AudioGraph(nn.Module):
    """waveform (batch, samples) -> (batch, projection_dim)"""

    def __init__(self, model: HfClapModel, extractor: HfClapFeatureExtractor):
        super().__init__()
        self.front_end = LogMelGraph(extractor)
        self.model = model

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        return self.model.encode_audio(self.front_end(waveform))


class TextGraph(nn.Module):
    """tokens (batch, tokens) -> (batch, projection_dim)"""

    def __init__(self, model: HfClapModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        optional = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model.encode_text(input_ids, attention_mask=attention_mask, **optional)


def _trace_audio(model: HfClapModel, extractor: HfClapFeatureExtractor) -> Any:
    shortest, longest = extractor.min_samples, extractor.max_samples
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(EXAMPLE_BATCH, (shortest + longest) // 2, generator=generator) / 10
    with torch.inference_mode():  # what does not go together is then told by the tower, in a sentence
        model.encode_audio(**extractor(list(waveform), extractor.sampling_rate, crop="start"))
    axes = {0: torch.export.Dim("batch")}
    if shortest < longest:
        axes[1] = torch.export.Dim("samples", min=shortest, max=longest)
    return _trace(AudioGraph(model, extractor), {"waveform": waveform}, {"waveform": axes}, "audio_embeds")


def _trace_text(model: HfClapModel, processor: HfClapProcessor) -> Any:
    tokens = dict(processor(text=EXAMPLE_TEXTS))
    # how many tokens there may be is left to the exporter to find, because each text tower keeps it elsewhere
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    return _trace(TextGraph(model), tokens, dict.fromkeys(tokens, axes), "text_embeds")


def _trace(graph: nn.Module, inputs: dict[str, torch.Tensor], axes: dict[str, Any], result: str) -> Any:
    try:
        with _quietly():
            return torch.onnx.export(
                graph.eval(),
                kwargs=inputs,
                dynamic_shapes=axes,
                input_names=list(inputs),
                output_names=[result],
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"PyTorch cannot export this model's {result} ({reason}).") from error


def _check_graphs(folder: Path, model: HfClapModel, processor: HfClapProcessor) -> None:
    """See that the graphs give the model's embeddings, for another batch and length than they were traced on."""
    extractor = processor.feature_extractor
    waveform = torch.randn(extractor.min_samples, generator=torch.Generator().manual_seed(1)) / 10
    tokens = processor(text=EXAMPLE_TEXTS[1])
    exported = HfClapOnnxModel(folder)
    with torch.inference_mode():
        pairs = (
            (exported.encode_audio([waveform]), model.encode_audio(**extractor(waveform, extractor.sampling_rate))),
            (exported.encode_text(**tokens), model.encode_text(**tokens)),
        )
    least = min((ours * theirs).sum().item() for ours, theirs in pairs)
    if not least > LEAST_COSINE:
        raise ValueError(f"The exported graphs give other embeddings than the model (cosine {least:.4f}).")


def _quantize(path: Path) -> None:
    """Replace a graph by one with weights in int8. What belongs to the log-mel stays exact."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path)
    # the exporter has optimised it already, and so it need not be asked for in a warning
    onnx.helper.set_model_props(graph, {"onnx.quant.pre_process": "onnxruntime.quant"})
    front_end = [node.name for node in graph.graph.node if any(name.startswith("front_end.") for name in node.input)]
    parts = list(path.parent.glob(f"{path.name}*"))
    for part in parts:
        part.unlink()
    quantize_dynamic(
        graph,
        path,
        op_types_to_quantize=INT8_OPERATORS,
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=front_end,
        use_external_data_format=len(parts) > 1,
    )


def _check_installed() -> None:
    """Say what is missing before the work, not after it."""
    import_onnxruntime()
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'Export to ONNX needs {error.name}: run `pip install "hf_clap[onnx]"`.') from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says about torchvision, axis names and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
