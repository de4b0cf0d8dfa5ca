"""The peers' names of weights and ours: pure functions from names and state dicts to the same."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

StateDict = dict[str, torch.Tensor]
Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Part:
    """One part of a model: our prefix, theirs, and rules (regular expressions) from our names below it to theirs."""

    ours: str
    theirs: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Layout:
    """
    How a family of checkpoints names its weights.

    Args:
        parts: of the model; the first whose prefix fits names a weight.
        left_behind: regular expressions of their names that have no place here, with the reason.
        fused_qkv: whether query, key and value of HTS-AT are one matrix there.
        computed: regular expression of our names that have no counterpart, because the peer computes them.
    """

    parts: tuple[Part, ...]
    left_behind: Mapping[str, str]
    fused_qkv: bool = False
    computed: str | None = None

    def source_name(self, name: str) -> str:
        """Their name for one of our weights."""
        for part in self.parts:
            if name.startswith(part.ours):
                rest = name.removeprefix(part.ours)
                for pattern, replacement in part.rules:
                    rest = re.sub(pattern, replacement, rest)
                return part.theirs + rest
        raise KeyError(name)

    def is_computed(self, name: str) -> bool:
        return self.computed is not None and re.fullmatch(self.computed, name) is not None

    def why_left_behind(self, source_name: str) -> str | None:
        """The reason why one of their names is left behind, if it is."""
        reasons = (reason for pattern, reason in self.left_behind.items() if re.fullmatch(pattern, source_name))
        return next(reasons, None)

    def left_behind_of(self, source_names: Iterable[str]) -> dict[str, list[str]]:
        """Which of their names are left behind, by the reason."""
        found: dict[str, list[str]] = {}
        for name in source_names:
            if reason := self.why_left_behind(name):
                found.setdefault(reason, []).append(name)
        return found

    def to_ours(self, state: StateDict, names: Iterable[str]) -> StateDict:
        """
        Their state dict under our names, without what is computed.

        Args:
            state: theirs.
            names: all of ours, as the model that is to be filled has them.

        Raises:
            ValueError: if one of ours has no counterpart, or one of theirs has no use and is not on the list.
        """
        if self.fused_qkv:
            state = split_qkv(state)
        sources = {name: self.source_name(name) for name in names if not self.is_computed(name)}
        missing = sorted(set(sources.values()) - set(state))
        unexpected = sorted(name for name in set(state) - set(sources.values()) if not self.why_left_behind(name))
        if missing or unexpected:
            raise ValueError(
                "The checkpoint does not fit its kind: "
                + " and ".join(
                    f"{len(some)} weights are {what} ({_listed(some)})"
                    for what, some in (("missing", missing), ("unknown", unexpected))
                    if some
                )
                + "; check the file and the kind of checkpoint."
            )
        return {name: state[source] for name, source in sources.items()}

    def to_theirs(self, state: StateDict) -> StateDict:
        """Our state dict under their names, without what is computed."""
        renamed = {self.source_name(name): tensor for name, tensor in state.items() if not self.is_computed(name)}
        return fuse_qkv(renamed) if self.fused_qkv else renamed


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def split_qkv(state: StateDict) -> StateDict:
    """`*.attn.qkv.*` as `*.attn.query.*`, `*.attn.key.*` and `*.attn.value.*`; what has no thirds stays."""
    split: StateDict = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name and tensor.ndim and len(tensor) % 3 == 0:
            for role, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                split[name.replace(".qkv.", f".{role}.")] = piece
        else:
            split[name] = tensor
    return split


def fuse_qkv(state: StateDict) -> StateDict:
    """Undoes `split_qkv`."""
    fused: StateDict = {}
    for name, tensor in state.items():
        if ".attn.query." in name:
            pieces = [state[name.replace(".query.", f".{role}.")] for role in ("query", "key", "value")]
            fused[name.replace(".query.", ".qkv.")] = torch.cat(pieces)
        elif not re.search(r"\.attn\.(key|value)\.", name):
            fused[name] = tensor
    return fused


CNN14_LAYERS = {"conv": "conv", "norm": "bn"}

CNN14_RULES: tuple[Rule, ...] = (
    (r"^input_norm\.", "bn0."),
    (r"^linear\.", "fc1."),
    (
        r"^blocks\.(\d+)\.(conv|norm)s\.(\d+)\.",
        lambda m: f"conv_block{int(m[1]) + 1}.{CNN14_LAYERS[m[2]]}{int(m[3]) + 1}.",
    ),
)

PATCH_AND_STAGE_RULES: tuple[Rule, ...] = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^patch_embed\.local_projection\.", "patch_embed.mel_conv2d."),
    (r"^patch_embed\.fusion\.(local|global)_attention\.", r"patch_embed.fusion_model.\1_att."),
    (r"^stages\.", "layers."),
)

HTSAT_RULES: tuple[Rule, ...] = (
    (r"^input_norm\.", "bn0."),
    *PATCH_AND_STAGE_RULES,
    (r"\.shift_mask$", ".attn_mask"),
    (r"\.attention\.output\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.linear(\d)\.", r".mlp.fc\1."),
)

TRANSFORMERS_HTSAT_RULES: tuple[Rule, ...] = (
    (r"^input_norm\.", "batch_norm."),
    *PATCH_AND_STAGE_RULES,
    (r"\.attention\.output\.", ".attention.output.dense."),
    (r"\.attention\.(?!output)", ".attention.self."),
    (r"\.linear1\.", ".intermediate.dense."),
    (r"\.linear2\.", ".output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)

MAPPER_RULES: tuple[Rule, ...] = (
    (r"^layers\.(\d+)\.attention\.query\.", r"transformer.layers.\1.attn.to_queries."),
    (r"^layers\.(\d+)\.attention\.key_value\.", r"transformer.layers.\1.attn.to_keys_values."),
    (r"^layers\.(\d+)\.attention\.output\.", r"transformer.layers.\1.attn.project."),
    (r"^layers\.(\d+)\.linear(\d)\.", r"transformer.layers.\1.mlp.fc\2."),
    (r"^layers\.(\d+)\.norm", r"transformer.layers.\1.norm"),
)


def _audio_left_behind(prefix: str) -> dict[str, str]:
    return {
        rf"{prefix}\.spectrogram_extractor\.stft\.conv_(real|imag)\.weight": "frozen Fourier transform, checked",
        rf"{prefix}\.logmel_extractor\.melW": "frozen mel filter bank, read into the feature extractor",
        rf"{prefix}\.(fc_audioset|tscam_conv|head)\.(weight|bias)": "AudioSet classifier, not part of CLAP",
        rf"{prefix}\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index": FROM_SIZES,
    }


def _bert_left_behind(prefix: str) -> dict[str, str]:
    return {rf"{prefix}\.embeddings\.(position_ids|token_type_ids)": "0, 1, 2, … and zeros"}


def _gpt2_left_behind(prefix: str) -> dict[str, str]:
    return {rf"{prefix}\.h\.\d+\.attn\.(bias|masked_bias)": "the causal mask of old versions of transformers"}


FROM_SIZES = "follows from the size of the windows"

_MSCLAP_TEXT = (
    Part("audio_projection.", "audio_encoder.projection."),
    Part("text_model.", "caption_encoder.base."),
    Part("text_projection.", "caption_encoder.projection."),
    Part("logit_scale", "logit_scale"),
)

LAYOUTS: dict[str, Layout] = {
    "msclap-2022": Layout(
        (Part("audio_model.", "audio_encoder.base.", CNN14_RULES), *_MSCLAP_TEXT),
        _audio_left_behind(r"audio_encoder\.base")
        | _bert_left_behind(r"caption_encoder\.base")
        | {r"caption_encoder\.base\.pooler\.dense\.(weight|bias)": "unused: the text's vector is that of [CLS]"},
    ),
    "msclap-2023": Layout(
        (Part("audio_model.", "audio_encoder.base.htsat.", HTSAT_RULES), *_MSCLAP_TEXT),
        _audio_left_behind(r"audio_encoder\.base\.htsat") | _gpt2_left_behind(r"caption_encoder\.base"),
        fused_qkv=True,
    ),
    "clapcap": Layout(
        (
            Part("audio_model.", "clap.base.htsat.", HTSAT_RULES),
            Part("audio_projection.", "clap.projection."),
            Part("mapper.", "clap_project.", MAPPER_RULES),
            Part("decoder.", "gpt."),
        ),
        _audio_left_behind(r"clap\.base\.htsat") | _gpt2_left_behind(r"gpt\.transformer"),
        fused_qkv=True,
    ),
    "laion": Layout(
        (
            Part("audio_model.", "audio_branch.", HTSAT_RULES),
            Part("audio_projection.", "audio_projection.", ((r"^linear1\.", "0."), (r"^linear2\.", "2."))),
            Part("text_model.", "text_branch."),
            Part("text_projection.", "text_projection.", ((r"^linear1\.", "0."), (r"^linear2\.", "2."))),
            Part("logit_scale_text", "logit_scale_t"),
            Part("logit_scale", "logit_scale_a"),
        ),
        _audio_left_behind("audio_branch")
        | _bert_left_behind("text_branch")
        | {r"(audio|text)_transform\.sequential\.\d\.(weight|bias)": "of LAION's second loss; no embedding uses it"},
        fused_qkv=True,
    ),
    "transformers": Layout(
        (
            Part("audio_model.", "audio_model.audio_encoder.", TRANSFORMERS_HTSAT_RULES),
            Part("audio_projection.", "audio_projection."),
            Part("text_model.", "text_model."),
            Part("text_projection.", "text_projection."),
            Part("logit_scale_text", "logit_scale_t"),
            Part("logit_scale", "logit_scale_a"),
        ),
        _bert_left_behind("text_model")
        | {r"audio_model\.audio_encoder\..*\.attention\.self\.relative_position_index": FROM_SIZES},
        computed=r"audio_model\..*\.shift_mask",
    ),
}
