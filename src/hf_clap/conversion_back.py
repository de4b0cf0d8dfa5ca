"""hf_clap's checkpoints -> the peers' own formats, where nothing that makes the embeddings is lost."""

import math
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, ClapModel, ClapProcessor, PreTrainedConfig

from .checkpoint_config import POOL_SIZES, PUBLISHED_HEADS, to_clap_config, to_clap_extractor
from .checkpoint_names import LAYOUTS, StateDict
from .conversion import LOGIT_SCALES, MSCLAP_FRONT_END
from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .loading import check_checkpoint, load_model, load_processor
from .modeling_hf_clap import MAX_LOGIT_SCALE, HfClapModel
from .modeling_htsat import SwinBlock
from .processing_hf_clap import HfClapProcessor
from .whole_file import new_output, writing


def convert_back(source: str | PathLike[str], output: str | PathLike[str], kind: str) -> Path:
    """
    Write a hf_clap checkpoint as a peer's, where nothing that makes its embeddings is lost.

    Args:
        source: folder or Hub id of the hf_clap checkpoint.
        output: for `msclap-2022` a file, to be loaded by `msclap.CLAP(output, version="2022")`; for `transformers` a
            folder, for `ClapModel.from_pretrained`.
        kind: `msclap-2022` or `transformers`. The former lacks what no embedding uses, BERT's pooler and the AudioSet
            classifier; the latter's feature extractor cannot round to 16 bits first, as LAION's own code does.

    Returns:
        Path: `output`.

    Raises:
        ValueError: for a checkpoint that the peer's code cannot express.
        OSError: for files that cannot be read or written.
    """
    if kind not in BACK:
        raise ValueError(f"There is no way back to {kind!r}; choose one of {', '.join(BACK)}.")
    with new_output(output, is_file=kind == "msclap-2022") as path:
        check_checkpoint(str(source))
        BACK[kind](load_model(str(source), strict=True), load_processor(str(source)), path)
    return Path(output)


def _back_to_msclap_2022(model: HfClapModel, processor: HfClapProcessor, path: Path) -> None:
    config, extractor = model.config, processor.feature_extractor
    _require(
        "msclap 2022",
        {
            "a Cnn14": config.audio_config.model_type == "hf_clap_cnn14" and _is_cnn14(config.audio_config),
            "a BERT as bert-base-uncased": config.text_config.model_type == "bert"
            and _is_default_bert(config.text_config),
            "[CLS] pooling": config.text_pooling == "cls",
            "a residual_mlp projection": config.projection == "residual_mlp",
            "one logit scale and no bias": model.logit_bias is None and model.logit_scale_text is None,
            "msclap's front end": _is_front_end(extractor, MSCLAP_FRONT_END | {"max_length_s": 5.0}),
        },
    )
    state = LAYOUTS["msclap-2022"].to_theirs(_bounded(model))
    prefix = "audio_encoder.base."
    real, imaginary = extractor.transform.stft_kernels()
    state[f"{prefix}spectrogram_extractor.stft.conv_real.weight"] = real
    state[f"{prefix}spectrogram_extractor.stft.conv_imag.weight"] = imaginary
    state[f"{prefix}logmel_extractor.melW"] = extractor.transform.mel_bank()
    with writing(path.name):  # its folder is a temporary one
        torch.save({"model": state}, path)


def _is_cnn14(config: PreTrainedConfig) -> bool:
    """Whether what no weight shows is as in msclap's Cnn14."""
    return (config.convs_per_block, config.kernel_size, tuple(config.pool_sizes)) == (2, 3, POOL_SIZES[6])


def _is_default_bert(config: PreTrainedConfig) -> bool:
    """Whether what no weight shows is as in bert-base-uncased."""
    default = BertConfig()
    heads = PUBLISHED_HEADS.get(config.hidden_size, config.num_attention_heads)
    names = ("hidden_act", "layer_norm_eps", "pad_token_id", "is_decoder")
    return config.num_attention_heads == heads and all(getattr(config, n) == getattr(default, n) for n in names)


def _is_front_end(extractor: HfClapFeatureExtractor, settings: dict[str, Any]) -> bool:
    expected = HfClapFeatureExtractor(**(settings | {"crop": extractor.crop})).to_dict()
    return all(extractor.to_dict()[name] == value for name, value in expected.items())


def _back_to_transformers(model: HfClapModel, processor: HfClapProcessor, path: Path) -> None:
    config = model.config
    _require(
        "transformers' CLAP",
        {
            "an HTS-AT whose layer norms have an epsilon of 1e-5": config.audio_config.model_type == "hf_clap_htsat"
            and config.audio_config.layer_norm_eps == 1e-5,
            "a RoBERTa that is no decoder": config.text_config.model_type == "roberta"
            and not config.text_config.is_decoder,
            "pooler pooling": config.text_pooling == "pooler",
            "an mlp projection": config.projection == "mlp",
            "no logit bias": model.logit_bias is None,
            "the masks of shifted windows as they are computed": _has_computed_masks(model),
        },
    )
    extractor = to_clap_extractor(processor.feature_extractor, config.audio_config.fusion)
    theirs = ClapModel(to_clap_config(config))
    theirs.to(dtype=model.dtype)  # type: ignore[call-arg]
    state = LAYOUTS["transformers"].to_theirs(_bounded(model))
    state.setdefault("logit_scale_t", state["logit_scale_a"])
    frozen = {name: tensor for name, tensor in theirs.state_dict().items() if name not in state}
    unfilled = [name for name in frozen if not LAYOUTS["transformers"].why_left_behind(name)]
    if unfilled:
        raise ValueError(f"transformers' CLAP has weights that hf_clap lacks: {', '.join(unfilled[:5])}.")
    theirs.load_state_dict(state | frozen)
    with writing(path.name):
        path.mkdir()
        theirs.save_pretrained(path)
        ClapProcessor(extractor, processor.tokenizer).save_pretrained(path)


def _bounded(model: HfClapModel) -> StateDict:
    """Its weights, with logit scales as large as they count: there nothing bounds them."""
    return {
        name: tensor.clamp(max=math.log(MAX_LOGIT_SCALE)) if name in LOGIT_SCALES else tensor
        for name, tensor in model.state_dict().items()
    }


def _has_computed_masks(model: HfClapModel) -> bool:
    masks = [(block.shift_mask, block.make_shift_mask()) for block in model.modules() if isinstance(block, SwinBlock)]
    return all(
        torch.equal(mask.float(), computed) for mask, computed in masks if mask is not None and computed is not None
    )


def _require(peer: str, conditions: dict[str, bool]) -> None:
    missing = [what for what, is_met in conditions.items() if not is_met]
    if missing:
        raise ValueError(f"{peer} needs {', '.join(missing)}, which this checkpoint does not have.")


BACK: dict[str, Callable[[HfClapModel, HfClapProcessor, Path], None]] = {
    "msclap-2022": _back_to_msclap_2022,
    "transformers": _back_to_transformers,
}
