"""An exported model in onnxruntime: the same embeddings and logits, without the model in PyTorch."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME

from .configuration_hf_clap import HfClapConfig
from .embedding import Embedder
from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .waveform import AudioError, as_waveform

AUDIO_GRAPH, TEXT_GRAPH, LOGITS = "audio.onnx", "text.onnx", "onnx_config.json"

# Waveforms that go through the audio graph at a time; more are no faster on a CPU.
BATCH_SIZE = 8


def import_onnxruntime() -> Any:
    """onnxruntime, or an error that says how to get it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('ONNX models need onnxruntime: run `pip install "hf_clap[onnx]"`.') from error
    return onnxruntime


class HfClapOnnxModel:
    """
    A model that `export_onnx` wrote, on the CPU. `HfClapProcessor.from_pretrained` of the same folder tokenizes for
    it; waveforms it takes as they are.

    Args:
        folder: that `export_onnx` wrote.

    Raises:
        ImportError: where onnxruntime is not installed.
        OSError: if a file of it is missing or damaged.

    Example, after `hf-clap export tiny-onnx --format onnx`:

    ```python
    import hf_clap

    model = hf_clap.HfClapOnnxModel.from_pretrained("tiny-onnx")
    processor = hf_clap.HfClapProcessor.from_pretrained("tiny-onnx")
    siren = hf_clap.load_audio("siren.flac", sampling_rate=processor.feature_extractor.sampling_rate)
    texts = model.encode_text(**processor(text=["rain", "a siren"]))
    model.similarity(model.encode_audio([siren]), texts)
    ```
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | PathLike[str]):
        folder = Path(folder)
        onnxruntime = import_onnxruntime()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.use_deterministic_compute = True
        files = (AUDIO_GRAPH, TEXT_GRAPH, LOGITS, CONFIG_NAME, PROCESSOR_NAME)
        if missing := [name for name in files if not (folder / name).is_file()]:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; make it with `hf-clap export`.")
        self.config: HfClapConfig = HfClapConfig.from_pretrained(folder)
        self.feature_extractor = HfClapFeatureExtractor.from_pretrained(folder)
        try:
            self._audio, self._text = (
                onnxruntime.InferenceSession(folder / name, settings, providers=["CPUExecutionProvider"])
                for name in (AUDIO_GRAPH, TEXT_GRAPH)
            )
            logits = json.loads((folder / LOGITS).read_text(encoding="utf-8"))
            self._factor, self._bias = float(logits["logit_factor"]), float(logits["logit_bias"])
        except Exception as error:  # onnxruntime's own errors have no base but this
            raise OSError(f"{folder} is damaged ({str(error).splitlines()[0]}); export the model again.") from error

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], revision: str | None = None) -> "HfClapOnnxModel":
        """
        Args:
            source: folder, or Hub id of one.
            revision: on the Hub: branch, tag or commit.

        Raises:
            ImportError: where onnxruntime is not installed.
            OSError: if there is no such model.
        """
        import_onnxruntime()
        if Path(source).is_dir():
            return cls(source)
        try:
            folder = snapshot_download(str(source), revision=revision, allow_patterns=["*.onnx*", "*.json"])
        except (OSError, ValueError) as error:
            raise OSError(
                f"{str(source)!r} is neither a folder with an exported model in it nor a model on the Hub within "
                "reach; check the name and the network."
            ) from error
        return cls(folder)

    def encode_audio(self, waveforms: Sequence[Any]) -> torch.Tensor:
        """
        Args:
            waveforms: tensors or arrays `(samples,)`, as `as_waveform` takes them, at the feature extractor's rate and
                at most its `max_samples` long. Those shorter than its `min_samples` are filled as it does.

        Returns:
            torch.Tensor: `(waveforms, projection_dim)` float32, L2-normalised.

        Raises:
            AudioError: for waveforms that cannot be used.
        """
        shortest, longest = self.feature_extractor.min_samples, self.feature_extractor.max_samples
        places = defaultdict(list)
        filled = []
        for place, waveform in enumerate(waveforms):
            waveform = as_waveform(waveform)
            if len(waveform) > longest:
                raise AudioError(
                    f"A waveform of {len(waveform)} samples is longer than the {longest} that the model hears at "
                    "once; cut it in windows, as hf_clap.waveform.iter_windows does."
                )
            filled.append(self.feature_extractor._fill(waveform.detach().cpu(), shortest))
            places[len(filled[-1])].append(place)
        embeds = torch.empty(len(filled), self.config.projection_dim, device="cpu")
        for alike in places.values():  # of one length
            for start in range(0, len(alike), BATCH_SIZE):
                batch = alike[start : start + BATCH_SIZE]
                inputs = {"waveform": torch.stack([filled[place] for place in batch]).numpy()}
                embeds[batch] = torch.from_numpy(self._audio.run(None, inputs)[0])
        return embeds

    def encode_text(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            input_ids, attention_mask, token_type_ids: `(texts, tokens)`, from the tokenizer. Without a mask all tokens
                are real; without types all are 0.

        Returns:
            torch.Tensor: `(texts, projection_dim)` float32, L2-normalised.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        names = [node.name for node in self._text.get_inputs()]
        inputs = {name: given[name].detach().cpu().long().numpy() for name in names}
        return torch.from_numpy(self._text.run(None, inputs)[0])

    def eval(self) -> "HfClapOnnxModel":
        """Itself: it does nothing but inference."""
        return self

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """None: they are in the graphs."""
        return iter(())

    def similarity(self, audio_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Logits `(clips, texts)`, as `HfClapModel.similarity`."""
        return self._factor * (audio_embeds @ text_embeds.T) + self._bias


class OnnxEmbedder(Embedder):
    """An `Embedder` with a `HfClapOnnxModel`, whose graph makes the features. It has no tower's output to give."""

    model: Any

    @property
    def window_input(self) -> Callable[[torch.Tensor, bool], torch.Tensor]:
        return lambda waveform, as_whole: waveform

    def _sha256(self, prefix: str, dtype: torch.dtype | None = None) -> str:
        raise TypeError("An exported model is for tagging; embed, search and evaluate with what it was made from.")

    def hear(self, windows: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings, twice."""
        embeds = self.model.encode_audio(windows)
        return embeds, embeds
