"""What a peer's checkpoint says of itself: the sizes of its towers and the front end it was trained with."""

import math
import re
from itertools import product
from typing import Any

import torch
from transformers import (
    BertConfig,
    ClapConfig,
    ClapFeatureExtractor,
    GPT2Config,
    PreTrainedConfig,
    RobertaConfig,
)

from .checkpoint_names import StateDict
from .configuration_hf_clap import HfClapCnn14Config, HfClapConfig, HfClapHtsatConfig
from .feature_extraction_hf_clap import HfClapFeatureExtractor

# Attention heads of bert-base, gpt2 and roberta-base, by width; no tensor shows them.
PUBLISHED_HEADS = {768: 12}

# Of Cnn10 and Cnn14, by the number of their blocks; no tensor shows them.
POOL_SIZES = {4: (2, 2, 2, 2), 6: (2, 2, 2, 2, 2, 1)}

# Mel filter banks are looked for among these: rates and edges in Hz, scale and norm. The published checkpoints have
# 50 to 14000 Hz, Slaney, at 44.1 kHz (msclap 2022), 32 kHz (msclap 2023) and 48 kHz (LAION).
BANK_RATES = (44100, 32000, 48000, 16000)
BANK_F_MIN = (50, 0, 20)
BANK_F_MAX = (14000, 8000, 16000)
BANK_SCALES = (("slaney", "slaney"), ("htk", None))

# Of the largest value: what half precision leaves of a front end, bfloat16 by its own resolution. Other banks are a
# hundred times as far.
FRONT_END_TOLERANCE = 1e-3

# Of LAION's fusion models and transformers' `truncation="fusion"`: torchaudio's bank, librosa's otherwise.
FUSION_FRONT_END = {"mel_scale": "htk", "mel_norm": None, "crop": "fusion"}

# transformers' names for what is done with short clips, and ours.
CLAP_FILLS = {"repeatpad": "repeat_pad", "repeat": "repeat", "pad": "zero"}


def cnn14_config(state: StateDict, prefix: str) -> HfClapCnn14Config:
    """Configuration of the Cnn14 whose weights begin with `prefix`."""
    blocks = _count(state, rf"{re.escape(prefix)}conv_block(\d+)\.conv1\.weight", first=1)
    if blocks not in POOL_SIZES:
        raise ValueError(f"A CNN of {blocks} blocks is none that msclap knows, and no weight shows how they pool.")
    return HfClapCnn14Config(
        num_mel_bins=size(state, f"{prefix}bn0.weight", 0),
        channels=tuple(size(state, f"{prefix}conv_block{block}.conv2.weight", 0) for block in range(1, blocks + 1)),
        pool_sizes=POOL_SIZES[blocks],
        hidden_size=size(state, f"{prefix}fc1.weight", 0),
    )


def htsat_config(state: StateDict, prefix: str) -> HfClapHtsatConfig:
    """Configuration of the HTS-AT whose weights begin with `prefix`, under msclap's and LAION's names."""
    stages = _count(state, rf"{re.escape(prefix)}layers\.(\d+)\.blocks\.0\.norm1\.weight")
    tables = [f"{prefix}layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(stages)]
    dim, mels = size(state, f"{prefix}patch_embed.proj.weight", 0), size(state, f"{prefix}bn0.weight", 0)
    patch_size = size(state, f"{prefix}patch_embed.proj.weight", 2)
    window_size = (math.isqrt(size(state, tables[0], 0)) + 1) // 2
    image_size = 4 * mels  # as in all published ones
    if (mask := f"{prefix}layers.0.blocks.1.attn_mask") in state:
        image_size = math.isqrt(size(state, mask, 0)) * window_size * patch_size
    fusion = f"{prefix}patch_embed.mel_conv2d.weight" in state
    inner = size(state, f"{prefix}patch_embed.fusion_model.local_att.0.weight", 0) if fusion else dim // 4
    return HfClapHtsatConfig(
        num_mel_bins=mels,
        image_size=image_size,
        patch_size=patch_size,
        patch_embed_dim=dim,
        depths=tuple(
            _count(state, rf"{re.escape(prefix)}layers\.{stage}\.blocks\.(\d+)\.norm1\.weight")
            for stage in range(stages)
        ),
        num_attention_heads=tuple(size(state, table, 1) for table in tables),
        window_size=window_size,
        mlp_ratio=size(state, f"{prefix}layers.0.blocks.0.mlp.fc1.weight", 0) / dim,
        fusion=fusion,
        fusion_reduction=dim // inner,
    )


def bert_config(state: StateDict, prefix: str, known: PreTrainedConfig | None) -> BertConfig:
    """Configuration of a BERT, with what no tensor shows from `known`, one that came with its tokenizer."""
    return BertConfig(**_hidden_settings(known, "bert") | _encoder_sizes(state, prefix, known))


def roberta_config(state: StateDict, prefix: str, known: PreTrainedConfig | None) -> RobertaConfig:
    """Configuration of a RoBERTa, with what no tensor shows from `known`, one that came with its tokenizer."""
    settings = {"layer_norm_eps": 1e-5} | _hidden_settings(known, "roberta")  # roberta-base's
    return RobertaConfig(**settings | _encoder_sizes(state, prefix, known))


def _hidden_settings(known: PreTrainedConfig | None, model_type: str) -> dict[str, Any]:
    if known is None or known.model_type != model_type:
        return {}
    return {name: value for name, value in known.to_dict().items() if name != "dtype"}  # of other weights


def _encoder_sizes(state: StateDict, prefix: str, known: PreTrainedConfig | None) -> dict[str, Any]:
    vocab_size, hidden_size = (size(state, f"{prefix}embeddings.word_embeddings.weight", axis) for axis in (0, 1))
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": _count(
            state, rf"{re.escape(prefix)}encoder\.layer\.(\d+)\.attention\.self\.query\.weight"
        ),
        "num_attention_heads": _heads(hidden_size, known),
        "intermediate_size": size(state, f"{prefix}encoder.layer.0.intermediate.dense.weight", 0),
        "max_position_embeddings": size(state, f"{prefix}embeddings.position_embeddings.weight", 0),
        "type_vocab_size": size(state, f"{prefix}embeddings.token_type_embeddings.weight", 0),
    }


def gpt2_config(state: StateDict, prefix: str, known: PreTrainedConfig | None, end_of_text: int) -> GPT2Config:
    """Configuration of a GPT-2, with what no tensor shows from `known`, one that came with its tokenizer."""
    vocab_size, hidden_size = (size(state, f"{prefix}wte.weight", axis) for axis in (0, 1))
    sizes = {
        "vocab_size": vocab_size,
        "n_embd": hidden_size,
        "n_layer": _count(state, rf"{re.escape(prefix)}h\.(\d+)\.ln_1\.weight"),
        "n_head": _heads(hidden_size, known),
        "n_inner": size(state, f"{prefix}h.0.mlp.c_fc.weight", 1),
        "n_positions": size(state, f"{prefix}wpe.weight", 0),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
    return GPT2Config(**_hidden_settings(known, "gpt2") | sizes)


def _heads(hidden_size: int, known: PreTrainedConfig | None) -> int:
    if known is not None and getattr(known, "hidden_size", None) == hidden_size:
        return known.num_attention_heads
    if hidden_size in PUBLISHED_HEADS:
        return PUBLISHED_HEADS[hidden_size]
    raise ValueError(
        f"A text tower of width {hidden_size} may have any number of attention heads, and no weight shows it; put its "
        "config.json into the tokenizer's folder and pass that as tokenizer."
    )


# Fields of HfClapHtsatConfig and of transformers' ClapAudioConfig that mean the same.
HTSAT_FIELDS = {
    "num_mel_bins": "num_mel_bins",
    "image_size": "spec_size",
    "patch_size": "patch_size",
    "patch_embed_dim": "patch_embeds_hidden_size",
    "depths": "depths",
    "num_attention_heads": "num_attention_heads",
    "window_size": "window_size",
    "mlp_ratio": "mlp_ratio",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "drop_path_rate": "drop_path_rate",
    "fusion": "enable_fusion",
    "fusion_reduction": "aff_block_r",
}

# Fields that ClapTextConfig, a copy of RobertaConfig, has kept.
ROBERTA_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)

# Fields of HfClapFeatureExtractor and of ClapFeatureExtractor that mean the same.
EXTRACTOR_FIELDS = {
    "feature_size": "feature_size",
    "sampling_rate": "sampling_rate",
    "n_fft": "fft_window_size",
    "hop_length": "hop_length",
    "f_min": "frequency_min",
    "f_max": "frequency_max",
    "max_length_s": "max_length_s",
}


def from_clap_config(theirs: ClapConfig) -> HfClapConfig:
    """transformers' configuration as ours; what ours cannot say is an error."""
    audio: Any = theirs.audio_config
    text: Any = theirs.text_config
    patch_size = audio.patch_size if isinstance(audio.patch_size, int) else audio.patch_size[0]
    fixed = {
        "hidden_act": "gelu",
        "flatten_patch_embeds": True,
        "enable_patch_layer_norm": True,
        "patch_embed_input_channels": 1,
        "qkv_bias": True,
        "layer_norm_eps": 1e-5,
    }
    for name, value in fixed.items():
        _check_setting(f"audio_config.{name}", getattr(audio, name), value)
    stride = audio.patch_stride
    stride = [stride, stride] if isinstance(stride, int) else list(stride)
    _check_setting("audio_config.patch_stride", stride, [patch_size] * 2)
    _check_setting("projection_hidden_act", theirs.projection_hidden_act, "relu")
    if audio.enable_fusion and audio.fusion_type is not None:
        _check_setting("audio_config.fusion_type", audio.fusion_type, "aff_2d")
    fields = {ours: getattr(audio, name) for ours, name in HTSAT_FIELDS.items()}
    audio_config = HfClapHtsatConfig(**(fields | {"patch_size": patch_size}))
    _check_setting("audio_config.hidden_size", audio.hidden_size, audio_config.hidden_size)
    return HfClapConfig(
        audio_config=audio_config,
        text_config=RobertaConfig(**{name: getattr(text, name) for name in ROBERTA_FIELDS}),
        text_pooling="pooler",
        projection="mlp",
        projection_dim=theirs.projection_dim,
        logit_scale_text_value=0.0,  # the weights say which
    )


def to_clap_config(ours: HfClapConfig) -> ClapConfig:
    """The configuration of an HTS-AT and RoBERTa CLAP as transformers'."""
    audio, text = ours.audio_config, ours.text_config
    return ClapConfig(
        audio_config={
            **{name: getattr(audio, own) for own, name in HTSAT_FIELDS.items()},
            "patch_stride": [audio.patch_size] * 2,
            "hidden_size": audio.hidden_size,
            "num_hidden_layers": len(audio.depths),
            "layer_norm_eps": audio.layer_norm_eps,
            "fusion_type": "aff_2d" if audio.fusion else None,
        },
        text_config={name: getattr(text, name) for name in ROBERTA_FIELDS},
        projection_dim=ours.projection_dim,
    )


def from_clap_extractor(theirs: ClapFeatureExtractor, fusion: bool) -> HfClapFeatureExtractor:
    """transformers' feature extractor as ours; `fusion` says whether the model has it."""
    _check_setting("top_db", theirs.top_db, None)
    _check_setting("truncation", theirs.truncation, "fusion" if fusion else "rand_trunc")
    if theirs.padding not in CLAP_FILLS:
        raise ValueError(f"padding={theirs.padding!r} of the feature extractor is none of {', '.join(CLAP_FILLS)}.")
    fields = {own: getattr(theirs, name) for own, name in EXTRACTOR_FIELDS.items()}
    kind = FUSION_FRONT_END if fusion else {"crop": "windows"}
    return HfClapFeatureExtractor(**fields, **kind, fill=CLAP_FILLS[theirs.padding])


def to_clap_extractor(ours: HfClapFeatureExtractor, fusion: bool) -> ClapFeatureExtractor:
    """Our feature extractor as transformers', which has no rounding to 16 bits."""
    fields = {name: getattr(ours, own) for own, name in EXTRACTOR_FIELDS.items()}
    if ours.max_length_s != int(ours.max_length_s):
        raise ValueError(f"transformers' CLAP cannot express max_length_s={ours.max_length_s}, whole seconds only.")
    theirs = ClapFeatureExtractor(
        **fields | {"max_length_s": int(ours.max_length_s)},
        truncation="fusion" if fusion else "rand_trunc",
        padding=next(name for name, fill in CLAP_FILLS.items() if fill == ours.fill),
    )
    again = from_clap_extractor(theirs, fusion).to_dict() | {"int16_rounding": ours.int16_rounding, "crop": ours.crop}
    lost = sorted(name for name, value in again.items() if getattr(ours, name, value) != value)
    if lost:
        raise ValueError(f"transformers' CLAP cannot express {', '.join(lost)} of the feature extractor.")
    return theirs


def _check_setting(name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise ValueError(f"{name}={value!r} has no counterpart in hf_clap, which knows {expected!r} only.")


def front_end(state: StateDict, prefix: str, settings: dict[str, Any]) -> HfClapFeatureExtractor:
    """
    The front end that is frozen in a checkpoint.

    Args:
        state: theirs, under their names.
        prefix: of the tower.
        settings: what no tensor shows: rate of the waveform, hop length, length of a window, crop and fill.

    Raises:
        ValueError: for a Fourier transform or mel filter bank that hf_clap does not know.
    """
    bank = _tensor(state, f"{prefix}logmel_extractor.melW", 2)
    kernels = [
        _tensor(state, f"{prefix}spectrogram_extractor.stft.conv_{part}.weight", 3) for part in ("real", "imag")
    ]
    floats = [tensor.dtype for tensor in (bank, *kernels) if tensor.is_floating_point()]
    tolerance = max([FRONT_END_TOLERANCE, *(torch.finfo(dtype).eps for dtype in floats)])
    bank, kernels = bank.float(), [kernel.float() for kernel in kernels]
    extractor = HfClapFeatureExtractor(feature_size=bank.shape[1], n_fft=kernels[0].shape[-1], **settings)
    for kernel, expected in zip(kernels, extractor.transform.stft_kernels(), strict=True):
        if kernel.shape != expected.shape or not torch.allclose(kernel, expected, atol=tolerance):
            raise ValueError(
                "The checkpoint's Fourier transform is not that of a periodic Hann window; hf_clap has no other."
            )
    for rate, f_min, f_max, (scale, norm) in product(BANK_RATES, BANK_F_MIN, BANK_F_MAX, BANK_SCALES):
        if f_max <= rate / 2:
            other = None if rate == extractor.sampling_rate else rate
            fields = {"mel_sampling_rate": other, "f_min": f_min, "f_max": f_max, "mel_scale": scale, "mel_norm": norm}
            candidate = HfClapFeatureExtractor(**(extractor.to_dict() | fields))
            expected = candidate.transform.mel_bank()
            if bank.shape == expected.shape and (bank - expected).abs().max() <= tolerance * expected.max():
                return candidate
    raise ValueError(
        "The checkpoint's mel filter bank is none that hf_clap knows (librosa's or torchaudio's, "
        f"{', '.join(map(str, BANK_F_MIN))} to {', '.join(map(str, BANK_F_MAX))} Hz, at "
        f"{', '.join(map(str, BANK_RATES))} Hz); the embeddings would be wrong."
    )


def _tensor(state: StateDict, name: str, axes: int) -> torch.Tensor:
    """The weight of that name, which must have so many axes or more, and something in it."""
    if name not in state:
        raise ValueError(f"The checkpoint has no {name}; check the file and the kind of checkpoint.")
    if state[name].ndim < axes or state[name].numel() == 0:
        shape = tuple(state[name].shape)
        raise ValueError(f"{name} has the shape {shape}, which it cannot have; the checkpoint is damaged.")
    return state[name]


def size(state: StateDict, name: str, axis: int) -> int:
    """Of a weight along an axis; a ValueError where there is no such weight."""
    return _tensor(state, name, axis + 1).shape[axis]


def _count(state: StateDict, pattern: str, first: int = 0) -> int:
    """How many consecutive numbers from `first` stand in names of this pattern."""
    numbers = {int(match[1]) for match in (re.fullmatch(pattern, name) for name in state) if match}
    count = 0
    while first + count in numbers:
        count += 1
    if count == 0:
        example = re.sub(r"\\(.)", r"\1", pattern.replace(r"(\d+)", str(first)))
        raise ValueError(f"The checkpoint has no weight {example}; check the kind of checkpoint.")
    return count
