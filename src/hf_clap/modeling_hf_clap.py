"""Two towers -> pooling -> projection -> similarity."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_hf_clap import HfClapConfig
from .linear import through_onednn
from .losses import LOSSES, caption_groups
from .modeling_cnn14 import HfClapCnn14Model
from .modeling_htsat import HfClapHtsatModel
from .modeling_patch_cnn import HfClapPatchCnnModel
from .projections import (
    AUDIO_PROJECTIONS,
    TEXT_PROJECTIONS,
    ConceptAudioProjection,
    ConceptTextProjection,
    pool_text,
)
from .unpadded_encoder import without_padding

AUDIO_MODELS: dict[str, type[PreTrainedModel]] = {
    model.config_class.model_type: model for model in (HfClapCnn14Model, HfClapHtsatModel, HfClapPatchCnnModel)
}

MAX_LOGIT_SCALE = 100.0  # of the paper (section 3.3), so that training stays stable


@dataclass
class HfClapOutput(ModelOutput):
    """
    Output of `HfClapModel`.

    Args:
        loss: scalar contrastive loss, with `return_loss=True`.
        logits_per_audio: `(clips, texts)`, cosine similarities times the logit scale, plus the logit bias if any.
        logits_per_text: `(texts, clips)`, its transpose (in LAION's checkpoints, at a scale of its own).
        audio_embeds: `(clips, projection_dim)`, L2-normalised.
        text_embeds: `(texts, projection_dim)`, L2-normalised.
        audio_model_output: the audio tower's, before the projection.
        text_model_output: the text tower's, pooled, before the projection.
    """

    loss: torch.Tensor | None = None
    logits_per_audio: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    audio_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class HfClapAudioModelOutput(ModelOutput):
    """`audio_embeds` `(clips, projection_dim)`, L2-normalised, and the audio tower's `last_hidden_state`."""

    audio_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


@dataclass
class HfClapTextModelOutput(ModelOutput):
    """`text_embeds` `(texts, projection_dim)`, L2-normalised, and the text tower's `last_hidden_state`."""

    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


def _text_tower(config: PreTrainedConfig, pooling: str) -> PreTrainedModel:
    """Any transformers text encoder, without a decoder or a pooler that nothing would use."""
    mapping: Any = MODEL_MAPPING
    auto_class: Any = AutoModel
    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:  # of T5 and its like, the encoder alone
        mapping, auto_class = MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModelForTextEncoding
    alone = mapping is not MODEL_MAPPING or not config.is_encoder_decoder
    if type(config) not in mapping or not alone or not hasattr(config, "hidden_size"):
        raise ValueError(
            f"transformers has no text encoder for {config.model_type!r} that runs alone; choose another, such as "
            "roberta, bert, gpt2 or t5."
        )
    accepted = inspect.signature(mapping[type(config)]).parameters
    options = {"add_pooling_layer": pooling == "pooler"} if "add_pooling_layer" in accepted else {}
    return without_padding(through_onednn(in_default_dtype(auto_class, config, **options)))


def in_default_dtype(auto_class: Any, config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    """A new model of that configuration, not in the precision of the checkpoint which the configuration is from."""
    dtype = config.dtype
    model: PreTrainedModel = auto_class.from_config(config, dtype=torch.get_default_dtype(), **options)
    config.dtype = dtype  # `from_config` has written the other one there
    return model


class HfClapPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading for every hf_clap model."""

    config: HfClapConfig
    config_class = HfClapConfig
    base_model_prefix = "hf_clap"
    main_input_name = "input_features"
    input_modalities = ["audio", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ConceptAudioProjection):
            init.zeros_(module.log_weight)
            init.zeros_(module.center)
        elif isinstance(module, ConceptTextProjection):
            init.normal_(module.prototypes)
            init.copy_(module.values, torch.eye(*module.values.shape))
            init.constant_(module.inverse_temperature, 12.0)
        elif isinstance(module, HfClapModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)
            if module.logit_scale_text is not None:
                init.constant_(module.logit_scale_text, self.config.logit_scale_text_value)

    def _build_audio_side(self) -> None:
        config = self.config
        self.audio_model = AUDIO_MODELS[config.audio_config.model_type](config.audio_config)
        self.audio_projection = AUDIO_PROJECTIONS[config.projection](config, config.audio_config.hidden_size)

    def _build_text_side(self) -> None:
        config = self.config
        self.text_model = _text_tower(config.text_config, config.text_pooling)
        self.text_projection = TEXT_PROJECTIONS[config.projection](config, config.text_config.hidden_size)

    def _hear(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None,
        is_longer: torch.Tensor | None,
    ) -> BaseModelOutputWithPooling:
        """The audio tower's output, for whichever tower it is: each takes what it knows."""
        given = {"input_features_mask": input_features_mask, "is_longer": is_longer}
        given = {name: value for name, value in given.items() if value is not None}
        return self.audio_model(input_features, **given)

    def _embed_audio(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        windows_per_clip: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """The tower's output and the embeddings `(clips, projection_dim)`."""
        output = self._hear(input_features, input_features_mask, is_longer)
        embeds = F.normalize(self.audio_projection(output), dim=-1)
        if windows_per_clip is not None:
            embeds = F.normalize(mean_of_windows(embeds, windows_per_clip), dim=-1)
        return output, embeds

    def _embed_text(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """The tower's output, pooled, and the embeddings `(texts, projection_dim)`."""
        self._check_text_length(input_ids.shape[1])
        optional = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        given: dict[str, Any] = {name: value for name, value in optional.items() if value is not None}
        if "use_cache" in inspect.signature(self.text_model.forward).parameters:
            given["use_cache"] = False  # a decoder would keep keys and values for tokens that never come
        hidden = self.text_model(input_ids=input_ids, attention_mask=attention_mask, **given)
        output = BaseModelOutputWithPooling(
            last_hidden_state=hidden.last_hidden_state,
            pooler_output=pool_text(hidden, attention_mask, self.config.text_pooling),
            hidden_states=hidden.hidden_states,
            attentions=hidden.attentions,
        )
        return output, F.normalize(self.text_projection(output), dim=-1)

    def _check_text_length(self, tokens: int) -> None:
        longest = getattr(self.config.text_config, "max_position_embeddings", None)
        if longest is None or longest < 0:  # XLNet has no end
            return
        table = getattr(getattr(self.text_model, "embeddings", None), "position_embeddings", None)
        if getattr(table, "padding_idx", None) is not None:
            longest -= table.padding_idx + 1  # RoBERTa counts its positions from there
        if tokens > longest:
            raise ValueError(
                f"A text of {tokens} tokens does not fit the {longest} positions of the text tower; pass "
                "truncation=True and max_length to the tokenizer."
            )


def bounded(logit_scale: torch.Tensor) -> torch.Tensor:
    """The factor whose logarithm is `logit_scale`, at most 100."""
    return logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)


def mean_of_windows(embeds: torch.Tensor, windows_per_clip: torch.Tensor) -> torch.Tensor:
    """
    Mean over the windows of each clip.

    Args:
        embeds: `(windows, dim)`, clip after clip.
        windows_per_clip: `(clips,)`, which sums to `windows`.

    Returns:
        torch.Tensor: `(clips, dim)`.
    """
    clips = torch.repeat_interleave(windows_per_clip, output_size=len(embeds))
    sums = embeds.new_zeros(len(windows_per_clip), embeds.shape[1]).index_add(0, clips, embeds)
    return sums / windows_per_clip[:, None]


class HfClapModel(HfClapPreTrainedModel):
    """
    CLAP: audio and text in one space (Elizalde et al. 2022, arXiv 2206.04769).

    Example:

    ```python
    >>> import numpy as np
    >>> import hf_clap

    >>> model = hf_clap.HfClapModel.from_pretrained(hf_clap.TINY)
    >>> processor = hf_clap.HfClapProcessor.from_pretrained(hf_clap.TINY)
    >>> tone = np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)
    >>> inputs = processor(text=["a pure tone", "a dog"], audio=tone, sampling_rate=16000)
    >>> model(**inputs).logits_per_audio.argmax().item()
    0

    ```
    """

    def __init__(self, config: HfClapConfig):
        super().__init__(config)
        self._build_audio_side()
        self._build_text_side()
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        bias = config.logit_bias_init_value
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        scale_text = config.logit_scale_text_value
        self.register_buffer("logit_scale_text", None if scale_text is None else torch.tensor(float(scale_text)))
        self.post_init()

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        windows_per_clip: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Embed audio.

        Args:
            input_features: `(windows, 1, frames, mels)`, from the feature extractor.
            input_features_mask: `(windows, frames)`, where the extractor gives one.
            windows_per_clip: `(clips,)`; the embeddings of a clip's windows are averaged.
            is_longer: `(clips, 1)`, from `crop="fusion"`.

        Returns:
            BaseModelOutputWithPooling: `pooler_output` `(clips, projection_dim)`, L2-normalised, and the tower's
            `last_hidden_state` `(windows, steps, hidden)`.
        """
        output, embeds = self._embed_audio(input_features, input_features_mask, windows_per_clip, is_longer)
        return BaseModelOutputWithPooling(last_hidden_state=output.last_hidden_state, pooler_output=embeds)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Embed text.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: `(texts, tokens)`, from the tokenizer.

        Returns:
            BaseModelOutputWithPooling: `pooler_output` `(texts, projection_dim)`, L2-normalised, and the tower's
            `last_hidden_state` `(texts, tokens, hidden)`.
        """
        output, embeds = self._embed_text(input_ids, attention_mask, token_type_ids, position_ids)
        return BaseModelOutputWithPooling(last_hidden_state=output.last_hidden_state, pooler_output=embeds)

    def encode_audio(self, input_features: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """`(clips, projection_dim)`, L2-normalised; arguments as `get_audio_features`."""
        return self.get_audio_features(input_features, **inputs).pooler_output

    def encode_text(self, input_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """`(texts, projection_dim)`, L2-normalised; arguments as `get_text_features`."""
        return self.get_text_features(input_ids, **inputs).pooler_output

    def similarity(self, audio_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Logits `(clips, texts)`: cosine similarities times the logit scale (at most 100), plus the logit bias."""
        return self._logits(audio_embeds @ text_embeds.T, self.logit_scale)

    def _logits(self, cosine: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
        logits = bounded(logit_scale) * cosine
        return logits if self.logit_bias is None else logits + self.logit_bias

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        windows_per_clip: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
        return_loss: bool | None = None,
    ) -> HfClapOutput:
        """
        Compare every clip with every text.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: `(texts, tokens)`, see `get_text_features`.
            input_features, input_features_mask, windows_per_clip, is_longer: see `get_audio_features`.
            return_loss: whether to compute the contrastive loss; clip i then belongs to text i, and to those that read
                the same it is neither near nor far.

        Returns:
            HfClapOutput: logits, embeddings and the towers' outputs.

        Raises:
            ValueError: with `return_loss`, if there are not as many clips as texts.
        """
        audio, audio_embeds = self._embed_audio(input_features, input_features_mask, windows_per_clip, is_longer)
        text, text_embeds = self._embed_text(input_ids, attention_mask, token_type_ids, position_ids)
        cosine = audio_embeds @ text_embeds.T  # (clips, texts)
        logits = self._logits(cosine, self.logit_scale)
        logits_per_text = logits.T
        if self.logit_scale_text is not None:
            logits_per_text = self._logits(cosine.T, self.logit_scale_text)
        loss = None
        if return_loss:
            if logits.shape[0] != logits.shape[1]:
                raise ValueError(
                    f"The loss needs pairs, but there are {logits.shape[0]} clips and {logits.shape[1]} texts; pass "
                    "one caption for each clip."
                )
            loss = LOSSES[self.config.loss](
                audio_embeds,
                text_embeds,
                bounded(self.logit_scale),
                self.logit_bias,
                groups=caption_groups(input_ids, attention_mask),
            )
        return HfClapOutput(
            loss=loss,
            logits_per_audio=logits,
            logits_per_text=logits_per_text,
            audio_embeds=audio_embeds,
            text_embeds=text_embeds,
            audio_model_output=audio,
            text_model_output=text,
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)


class HfClapAudioModelWithProjection(HfClapPreTrainedModel):
    """The audio side of `HfClapModel` alone; loads from the same checkpoint."""

    input_modalities = ["audio"]
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^text_projection\.", r"^logit_(scale|bias)"]

    def __init__(self, config: HfClapConfig):
        super().__init__(config)
        self._build_audio_side()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        windows_per_clip: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
    ) -> HfClapAudioModelOutput:
        """Arguments as `HfClapModel.get_audio_features`."""
        output, embeds = self._embed_audio(input_features, input_features_mask, windows_per_clip, is_longer)
        return HfClapAudioModelOutput(audio_embeds=embeds, last_hidden_state=output.last_hidden_state)


class HfClapTextModelWithProjection(HfClapPreTrainedModel):
    """The text side of `HfClapModel` alone; loads from the same checkpoint."""

    main_input_name = "input_ids"
    input_modalities = ["text"]
    _keys_to_ignore_on_load_unexpected = [r"^audio_model\.", r"^audio_projection\.", r"^logit_(scale|bias)"]

    def __init__(self, config: HfClapConfig):
        super().__init__(config)
        self._build_text_side()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> HfClapTextModelOutput:
        """Arguments as `HfClapModel.get_text_features`."""
        output, embeds = self._embed_text(input_ids, attention_mask, token_type_ids, position_ids)
        return HfClapTextModelOutput(text_embeds=embeds, last_hidden_state=output.last_hidden_state)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)
