"""The public CLAP checkpoints -> hf_clap, strictly."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoTokenizer,
    ClapConfig,
    ClapFeatureExtractor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from .checkpoint_card import checkpoint_card
from .checkpoint_config import (
    FUSION_FRONT_END,
    bert_config,
    cnn14_config,
    from_clap_config,
    from_clap_extractor,
    front_end,
    gpt2_config,
    htsat_config,
    roberta_config,
    size,
)
from .checkpoint_file import KINDS, Source, find_checkpoint, read_checkpoint
from .checkpoint_names import LAYOUTS, StateDict
from .configuration_hf_clap import HfClapCaptioningConfig, HfClapConfig, HfClapHtsatConfig
from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .modeling_captioning import HfClapForAudioCaptioning
from .modeling_hf_clap import MAX_LOGIT_SCALE, HfClapModel
from .processing_hf_clap import HfClapProcessor
from .whole_file import new_output, writing

MSCLAP_FRONT_END = {"sampling_rate": 44100, "hop_length": 320, "crop": "windows", "fill": "repeat"}
END_OF_TEXT = "<|endoftext|>"
LOGIT_SCALES = ("logit_scale", "logit_scale_text")
# what weights may be kept in; of others nothing can be computed without their scales
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

LAION_FRONT_END = {
    "sampling_rate": 48000,
    "hop_length": 480,
    "max_length_s": 10.0,
    "crop": "windows",
    "fill": "repeat_pad",
    "int16_rounding": True,
}


def convert_checkpoint(
    source: str | PathLike[str],
    output: str | PathLike[str],
    kind: str,
    tokenizer: str | PathLike[str] | None = None,
) -> Path:
    """
    Convert a peer's checkpoint to a hf_clap folder: weights, configuration, processor, model card. Every weight finds
    its place or stands on the list of what is left behind, and the frozen front end is one that hf_clap computes;
    otherwise it is an error and nothing is written.

    Args:
        source: a file; a folder that holds one under its published name; or a Hub id, such as `microsoft/msclap` or,
            with the file's name, `lukewys/laion_clap/630k-audioset-fusion-best.pt`.
        output: the folder to make.
        kind: `msclap-2022`, `msclap-2023`, `clapcap`, `laion` or `transformers`.
        tokenizer: folder or Hub id of the text tower's tokenizer, with its `config.json` where the tower's attention
            heads are not 64 wide; the published one when absent.

    Returns:
        Path: `output`.

    Raises:
        ValueError: for a checkpoint that does not fit its kind, is damaged, holds code or has an unknown front end,
            and for a tokenizer that does not fit.
        OSError: for files that cannot be found, read or written, and downloads that fail.
    """
    if kind not in KINDS:
        raise ValueError(f"There is no kind {kind!r} of checkpoint; choose one of {', '.join(KINDS)}.")
    with new_output(output, is_file=False) as folder:
        found = find_checkpoint(str(source), kind)
        state = read_checkpoint(found.file, kind)
        default = KINDS[kind].tokenizer or found.repository
        model, processor = CONVERTERS[kind](state, found, str(tokenizer or default))
        card = checkpoint_card(folder.name, kind, found, state, model, processor.feature_extractor)
        with writing(output):
            folder.mkdir()
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(output)


Converted = tuple[PreTrainedModel, HfClapProcessor]


def _convert_msclap_2022(state: StateDict, source: Source, tokenizer: str) -> Converted:
    words = _load_tokenizer(tokenizer, "msclap-2022")
    config = HfClapConfig(
        audio_config=cnn14_config(state, "audio_encoder.base."),
        text_config=bert_config(state, "caption_encoder.base.", _config_beside(tokenizer)),
        text_pooling="cls",
        projection_dim=size(state, "audio_encoder.projection.linear1.weight", 0),
    )
    extractor = front_end(state, "audio_encoder.base.", MSCLAP_FRONT_END | {"max_length_s": 5.0})
    return _fill(HfClapModel(config), state, "msclap-2022"), _processor(extractor, words, config.text_config)


def _convert_msclap_2023(state: StateDict, source: Source, tokenizer: str) -> Converted:
    words = add_end_of_text(_load_tokenizer(tokenizer, "msclap-2023"))
    known = _config_beside(tokenizer)
    config = HfClapConfig(
        audio_config=htsat_config(state, "audio_encoder.base.htsat."),
        text_config=gpt2_config(state, "caption_encoder.base.", known, words.eos_token_id),
        text_pooling="last",
        projection_dim=size(state, "audio_encoder.projection.linear1.weight", 0),
    )
    extractor = front_end(state, "audio_encoder.base.htsat.", MSCLAP_FRONT_END | {"max_length_s": 7.0})
    return _fill(HfClapModel(config), state, "msclap-2023"), _processor(extractor, words, config.text_config)


def _convert_clapcap(state: StateDict, source: Source, tokenizer: str) -> Converted:
    words = add_end_of_text(_load_tokenizer(tokenizer, "clapcap"))
    # As msclap's training wrote the end, its first token (a lone space) is where generation stops (`_generate_beam`).
    ends = words("")["input_ids"]
    text_config = gpt2_config(state, "gpt.transformer.", _config_beside(tokenizer), words.eos_token_id)
    prefix_length = size(state, "clap_project.prefix_const", 0)
    config = HfClapCaptioningConfig(
        audio_config=htsat_config(state, "clap.base.htsat."),
        text_config=text_config,
        projection_dim=size(state, "clap.projection.linear1.weight", 0),
        prefix_length=prefix_length,
        audio_length=size(state, "clap_project.linear.weight", 0) // text_config.hidden_size,
        mapper_layers=sum(name.endswith(".attn.to_queries.weight") for name in state),
        mapper_mlp_ratio=size(state, "clap_project.transformer.layers.0.mlp.fc1.weight", 0) / text_config.hidden_size,
    )
    state.setdefault("gpt.lm_head.weight", state["gpt.transformer.wte.weight"])  # where no tensor is stored twice
    if not torch.equal(state["gpt.transformer.wte.weight"], state["gpt.lm_head.weight"]):
        raise ValueError("gpt.lm_head.weight is not the word embedding, which GPT-2 shares with it; check the file.")
    extractor = front_end(state, "clap.base.htsat.", MSCLAP_FRONT_END | {"max_length_s": 7.0})
    model = _fill(HfClapForAudioCaptioning(config), state, "clapcap")
    model.generation_config = GenerationConfig(  # the defaults of CLAPWrapper.generate_caption
        num_beams=5,
        max_new_tokens=67,
        bos_token_id=words.eos_token_id,
        eos_token_id=ends,
        pad_token_id=words.eos_token_id,
    )
    return model, _processor(extractor, words, text_config)


def _convert_laion(state: StateDict, source: Source, tokenizer: str) -> Converted:
    words = _load_tokenizer(tokenizer, "laion")
    config = HfClapConfig(
        audio_config=htsat_config(state, "audio_branch."),
        text_config=roberta_config(state, "text_branch.", _config_beside(tokenizer)),
        text_pooling="pooler",
        projection="mlp",
        projection_dim=size(state, "audio_projection.0.weight", 0),
        logit_scale_text_value=0.0,
    )
    extractor = front_end(state, "audio_branch.", LAION_FRONT_END)
    if config.audio_config.fusion:  # it hears torchaudio's mel bank, which no weight holds, between the same edges
        extractor = HfClapFeatureExtractor(**(extractor.to_dict() | FUSION_FRONT_END))
    return _fill(HfClapModel(config), state, "laion"), _processor(extractor, words, config.text_config)


def _convert_transformers(state: StateDict, source: Source, tokenizer: str) -> Converted:
    theirs = AutoConfig.from_pretrained(source.repository, trust_remote_code=False)
    if not isinstance(theirs, ClapConfig):
        raise ValueError(f"The config.json of {source.repository} is that of a {theirs.model_type!r}, not of a CLAP.")
    config = from_clap_config(theirs)
    stored = ClapFeatureExtractor.from_pretrained(source.repository)
    extractor = from_clap_extractor(stored, config.audio_config.fusion)
    _check_front_end(extractor, config.audio_config)
    words = _load_tokenizer(tokenizer, "transformers")
    longest = config.text_config.max_position_embeddings - config.text_config.pad_token_id - 1
    words.model_max_length = min(words.model_max_length, longest)
    return _fill(HfClapModel(config), state, "transformers"), _processor(extractor, words, config.text_config)


def _check_front_end(extractor: HfClapFeatureExtractor, tower: HfClapHtsatConfig) -> None:
    frames = extractor.transform.frames_of(extractor.max_samples)
    if extractor.feature_size != tower.num_mel_bins or frames > tower.max_frames:
        raise ValueError(
            f"The feature extractor gives {frames} frames of {extractor.feature_size} mel bins, and the audio tower "
            f"takes at most {tower.max_frames} of {tower.num_mel_bins}; correct preprocessor_config.json."
        )


CONVERTERS: dict[str, Callable[[StateDict, Source, str], Converted]] = {
    "msclap-2022": _convert_msclap_2022,
    "msclap-2023": _convert_msclap_2023,
    "clapcap": _convert_clapcap,
    "laion": _convert_laion,
    "transformers": _convert_transformers,
}


def _fill(model: PreTrainedModel, state: StateDict, kind: str) -> PreTrainedModel:
    """The model with the checkpoint's weights, each in its place and of its shape and precision."""
    expected = model.state_dict()
    converted = LAYOUTS[kind].to_ours(state, expected)
    wrong = [
        f"{LAYOUTS[kind].source_name(name)} is {tuple(tensor.shape)} and not {tuple(expected[name].shape)}"
        for name, tensor in converted.items()
        if tensor.shape != expected[name].shape
    ]
    if wrong:
        raise ValueError(f"{len(wrong)} weights have the wrong shape: {', '.join(wrong[:5])}; check the file.")
    # batches are counted for training alone, and a cast to half precision has no number for many of them
    counts = {name: tensor for name, tensor in converted.items() if name.endswith(".num_batches_tracked")}
    converted |= {name: expected[name] for name, count in counts.items() if not (count.is_meta or count.isfinite())}
    odd = [
        LAYOUTS[kind].source_name(name)
        for name, tensor in converted.items()
        if tensor.is_meta
        or (expected[name].is_floating_point() and tensor.dtype not in PRECISIONS)
        or not tensor.isfinite().all()
    ]
    if odd:
        raise ValueError(f"{len(odd)} weights hold no usable numbers: {', '.join(odd[:5])}; check the file.")
    precisions = {tensor.dtype for tensor in converted.values() if tensor.is_floating_point()}
    if len(precisions) == 1:
        model.to(dtype=precisions.pop())  # type: ignore[call-arg]
    # What the peer computes the model has computed too, and so it has the masks of files made from names and shapes:
    # no Swin has a mask of zeros.
    masks = {name for name in converted if name.endswith(".shift_mask")}
    given = {name: tensor for name, tensor in converted.items() if name not in masks or tensor.any()}
    for name in masks & set(given):
        if (given[name].float() - expected[name].float()).abs().max() > 1:
            raise ValueError(f"{LAYOUTS[kind].source_name(name)} is not the mask of shifted windows; check the file.")
    for name in given.keys() & LOGIT_SCALES:
        if given[name].exp() > MAX_LOGIT_SCALE * 1.001:  # by what float32 has rounded
            raise ValueError(
                f"{LAYOUTS[kind].source_name(name)} is {given[name].item():.4f}, beyond ln 100, where hf_clap's "
                "logits stop as the paper's do; lower it first."
            )
    model.load_state_dict(expected | given)
    return model.eval()


def _config_beside(tokenizer: str) -> PreTrainedConfig | None:
    """The configuration of the text tower in the tokenizer's folder or repository, if it is there."""
    try:
        config = AutoConfig.from_pretrained(tokenizer, trust_remote_code=False)
        return config.get_text_config()  # a CLAP's has the tower's in it
    except (OSError, ValueError):
        return None


def _load_tokenizer(tokenizer: str, kind: str) -> Any:
    try:
        words = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    except Exception as error:  # of any kind, at files that are not what it expects
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise OSError(
            f"The tokenizer {tokenizer} cannot be had ({reason}); pass a folder that holds it as tokenizer "
            "(--tokenizer)."
        ) from error
    words.model_max_length = KINDS[kind].max_tokens or words.model_max_length
    words.padding_side = "right"
    return words


def _processor(extractor: HfClapFeatureExtractor, words: Any, text_config: PreTrainedConfig) -> HfClapProcessor:
    processor = HfClapProcessor(extractor, words)  # which sees that there are words
    if len(words) > text_config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(words)} tokens and the text tower {text_config.vocab_size}; pass the tokenizer "
            "that the checkpoint was trained with."
        )
    if text_config.model_type != "gpt2" and words.pad_token_id != text_config.pad_token_id:
        raise ValueError(
            f"The tokenizer pads with {words.pad_token_id} and the text tower with {text_config.pad_token_id}; pass "
            "the tokenizer that the checkpoint was trained with."
        )
    return processor


def add_end_of_text(tokenizer: Any) -> Any:
    """
    A GPT-2 tokenizer that ends each text as msclap 2023 does (`CLAPWrapper.preprocess_text`, which appends
    `" <|endoftext|>"`), also when a long text is truncated, and pads with the same token, which the mask leaves out.

    Args:
        tokenizer: of GPT-2; it is changed.

    Returns:
        `tokenizer`.

    Raises:
        ValueError: for a tokenizer that is not GPT-2's.
    """
    if tokenizer.eos_token != END_OF_TEXT:
        raise ValueError(f"The tokenizer ends texts with {tokenizer.eos_token}, not {END_OF_TEXT}; pass GPT-2's.")
    ids = tokenizer(f" {END_OF_TEXT}", add_special_tokens=False)["input_ids"]
    suffix = tokenizer.convert_ids_to_tokens(ids)
    template = " ".join(["$A", *(f"{token}:0" for token in suffix)])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=list(zip(suffix, ids, strict=True))
    )
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
