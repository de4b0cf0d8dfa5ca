"""A checkpoint's model and processor, or one sentence that says why not, before transformers says it in twenty."""

from json import JSONDecodeError
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig

from .configuration_hf_clap import HfClapCaptioningConfig, HfClapConfig
from .modeling_hf_clap import HfClapModel
from .onnx_model import AUDIO_GRAPH
from .processing_hf_clap import HfClapProcessor

# What is done with models that are not whole.
ADVICE = {
    "HfClapForAudioClassification": 'transformers\' pipeline("audio-classification") takes it',
    "HfClapAudioModelWithProjection": "load it by its own class, or choose the model that it is of",
    "HfClapTextModelWithProjection": "load it by its own class, or choose the model that it is of",
}


def check_checkpoint(source: str, revision: str = "main") -> None:
    """
    See that there is a whole CLAP model.

    Args:
        source: folder or Hub id.
        revision: of the Hub: branch, tag or commit.

    Raises:
        OSError: if there is no checkpoint.
        ValueError: if it is of something else.
    """
    if Path(source, AUDIO_GRAPH).is_file() and not any(Path(source).glob("model*.safetensors")):
        raise ValueError(f"{source!r} is exported to ONNX; tag with the backend onnx, or name what it was made from.")
    if Path(source, "adapter_config.json").is_file() and not Path(source, "config.json").is_file():
        raise ValueError(
            f"{source!r} holds adapters; load it by HfClapModel.from_pretrained, save it again after merging them "
            "(peft's merge_and_unload), with its processor."
        )
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (StrictDataclassError, OSError, ValueError, KeyError) as error:
        # transformers has a ValueError for a folder without one too
        if Path(source, "config.json").is_file() or not (isinstance(error, OSError) or Path(source).is_dir()):
            reason = str(error.__cause__ or error).partition("\n")[0].rstrip(".")
            raise ValueError(f"The config.json of {source!r} cannot be used ({reason}); correct it.") from error
        raise OSError(
            f"{source!r} is neither a folder with a checkpoint in it nor a model on the Hub within reach"
            f"{'' if revision == 'main' else f' at the revision {revision!r}'}; check the name and the network."
        ) from error
    if not isinstance(config, HfClapConfig):
        advice = {
            "clap": "run `hf-clap convert SOURCE OUT --from transformers` and choose OUT",
            HfClapCaptioningConfig.model_type: "captions come from HfClapForAudioCaptioning",
        }.get(config.model_type, "choose a model of type hf_clap")
        raise ValueError(f"{source!r} is a {config.model_type!r} checkpoint, not a hf_clap one; {advice}.")
    for architecture in set(config.architectures or ()) & set(ADVICE):
        raise ValueError(f"{source!r} is a {architecture}, which is no whole CLAP; {ADVICE[architecture]}.")


def load_processor(source: str, revision: str = "main") -> HfClapProcessor:
    """
    Args:
        source, revision: as `check_checkpoint` takes them.

    Raises:
        OSError: if its files are missing or damaged, or no tokenizer can be made of them.
    """
    try:
        processor: HfClapProcessor = HfClapProcessor.from_pretrained(source, revision=revision)
    except JSONDecodeError as error:
        raise OSError(f"A JSON file of {source!r} is damaged ({error}); download or save it again.") from error
    except ValueError as error:
        reason = str(error).partition("\n")[0].rstrip(".: ")
        raise OSError(f"The processor of {source!r} cannot be loaded ({reason}); save it there again.") from error
    return processor


def load_model(
    source: str, revision: str = "main", dtype: str | torch.dtype = "auto", strict: bool = False
) -> HfClapModel:
    """
    Args:
        source, revision: as `check_checkpoint` takes them.
        dtype: to load in; the checkpoint's own when `auto`.
        strict: whether weights are refused too that its configuration has no place for, as those of a subclass.

    Raises:
        OSError: if its weights are missing, damaged, not all there or others than its configuration says.
    """
    load: Any = HfClapModel.from_pretrained
    try:
        model, loading = load(
            source, revision=revision, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except SafetensorError as error:
        raise OSError(f"The weights of {source!r} are damaged ({error}); download or save them again.") from error
    if odd := sorted(loading["mismatched_keys"]):
        name, found, expected = odd[0]
        raise OSError(
            f"{len(odd)} weights of {source!r} are of other shapes than its config.json says, such as {name} with "
            f"{tuple(found)} for {tuple(expected)}; download or save the whole of it again."
        )
    if missing := sorted(loading["missing_keys"]):
        raise OSError(
            f"{source!r} lacks {len(missing)} weights of a whole model, such as {missing[0]}; is it one side?"
        )
    if strict and (unexpected := sorted(loading["unexpected_keys"])):
        raise OSError(
            f"{source!r} has {len(unexpected)} weights more than its config.json says, such as {unexpected[0]}; see "
            "that both belong together."
        )
    return model
