"""clapcap: a language model says what CLAP's audio side hears."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import can_return_tuple

from .attention import HeadsAttention
from .configuration_hf_clap import HfClapCaptioningConfig
from .modeling_hf_clap import HfClapPreTrainedModel, in_default_dtype

DEFAULT_NEW_TOKENS = 20  # of transformers' `generate`


class MapperAttention(HeadsAttention):
    """Self-attention with keys and values from one matrix, as msclap's `models/mapper.py`."""

    def __init__(self, config: HfClapCaptioningConfig, dim: int):
        super().__init__(config, dim // config.mapper_heads)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.output = nn.Linear(dim, dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        key, value = (half.contiguous() for half in self.key_value(hidden).chunk(2, dim=-1))
        return self.output(self.attend(self.query(hidden), key, value).flatten(2))


class MapperLayer(nn.Module):
    """Attention and a ReLU MLP, each with a norm before and a residual."""

    def __init__(self, config: HfClapCaptioningConfig, dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = MapperAttention(config, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, round(dim * config.mapper_mlp_ratio))
        self.linear2 = nn.Linear(round(dim * config.mapper_mlp_ratio), dim)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attention(self.norm1(hidden))
        return hidden + self.linear2(F.relu(self.linear1(self.norm2(hidden))))


class PrefixMapper(nn.Module):
    """An audio embedding, spread over some vectors, and learned constants go through a transformer: the prefix."""

    def __init__(self, config: HfClapCaptioningConfig):
        super().__init__()
        dim = config.text_config.hidden_size
        self.linear = nn.Linear(config.projection_dim, config.audio_length * dim)
        self.prefix_const = nn.Parameter(torch.empty(config.prefix_length, dim))
        self.layers = nn.ModuleList(MapperLayer(config, dim) for _ in range(config.mapper_layers))

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        """(clips, projection_dim) -> (clips, prefix_length, hidden)"""
        prefix_length, dim = self.prefix_const.shape
        audio = self.linear(embeds).view(len(embeds), -1, dim)
        hidden = torch.cat([audio, self.prefix_const.expand(len(embeds), -1, -1)], dim=1)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden[:, -prefix_length:]


class HfClapForAudioCaptioning(HfClapPreTrainedModel, GenerationMixin):
    """
    Audio -> text, as msclap's `ClapCaptionModel` (`models/mapper.py`).

    Example:

    ```python
    >>> import torch
    >>> from hf_clap import HfClapCaptioningConfig, HfClapForAudioCaptioning

    >>> config = HfClapCaptioningConfig(
    ...     text_config={"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50},
    ...     audio_config={"model_type": "hf_clap_htsat", "patch_embed_dim": 8, "num_attention_heads": (1, 1, 2, 2)},
    ...     projection_dim=8, mapper_layers=1,
    ... )
    >>> model = HfClapForAudioCaptioning(config).eval()
    >>> model.generate(input_features=torch.zeros(2, 1, 1001, 64), max_new_tokens=5, eos_token_id=None).shape
    torch.Size([2, 5])

    ```
    """

    config: HfClapCaptioningConfig  # type: ignore[assignment]
    config_class = HfClapCaptioningConfig  # type: ignore[assignment]
    input_modalities = ["audio"]
    _supports_flash_attn = False  # the window attention has a bias

    def __init__(self, config: HfClapCaptioningConfig):
        super().__init__(config)
        self._build_audio_side()
        self.mapper = PrefixMapper(config)
        self.decoder = in_default_dtype(AutoModelForCausalLM, config.text_config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PrefixMapper):
            init.normal_(module.prefix_const)

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        windows_per_clip: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
    ) -> CausalLMOutput:
        """
        Score captions, for training.

        Args:
            input_features, input_features_mask, windows_per_clip, is_longer: as `HfClapModel.get_audio_features`.
            input_ids, attention_mask: `(clips, tokens)`, from the tokenizer: one caption for each clip.
            labels: `(clips, tokens)`, which may be `input_ids`; -100, and what `attention_mask` leaves out, does not
                count.

        Returns:
            CausalLMOutput: `logits` `(clips, tokens, vocabulary)`, where those at a position are for its own token;
            with `labels` also `loss`, the mean cross-entropy of a token.

        Raises:
            ValueError: for captions that are longer than the decoder has positions.
        """
        _, audio_embeds = self._embed_audio(input_features, input_features_mask, windows_per_clip, is_longer)
        prefix = self.mapper(audio_embeds)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self._check_length(input_ids.shape[1])
        embeds = torch.cat([prefix, self.get_input_embeddings()(input_ids)], dim=1)
        mask = torch.cat([attention_mask.new_ones(prefix.shape[:2]), attention_mask], dim=1)
        output = self.decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        logits = output.logits[:, prefix.shape[1] - 1 : -1]  # the last vector of the prefix foretells the first token
        loss = None
        if labels is not None:
            labels = labels.masked_fill(attention_mask == 0, -100)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def generate(
        self,
        input_features: torch.Tensor,
        generation_config: GenerationConfig | None = None,
        input_features_mask: torch.Tensor | None = None,
        windows_per_clip: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
        **generate_options: Any,
    ) -> Any:
        """
        Caption clips.

        Args:
            input_features, input_features_mask, windows_per_clip, is_longer: as `HfClapModel.get_audio_features`.
            generation_config: the model's own when absent. A converted clapcap has msclap's: 5 beams, at most 67
                tokens.
            generate_options: of transformers' `generate`, such as `num_beams`, `do_sample` or `max_new_tokens`.
                `max_length` and `min_length` are of captions too. What a batch holds of captions (`input_ids`,
                `attention_mask`, `labels`) is left out.

        Returns:
            torch.Tensor: `(clips, tokens)`, for `processor.batch_decode(…, skip_special_tokens=True)`; or what
            `return_dict_in_generate` asks for. Beams are searched as transformers does, which ranks finished captions
            otherwise than msclap's own search (`CLAPWrapper._generate_beam`), so that some captions differ from its.

        Raises:
            ValueError: for captions that are longer than the decoder has positions.
        """
        _, audio_embeds = self._embed_audio(input_features, input_features_mask, windows_per_clip, is_longer)
        prefix = self.mapper(audio_embeds)
        generation_config = copy.deepcopy(generation_config or self.generation_config)
        for new, whole in (("min_new_tokens", "min_length"), ("max_new_tokens", "max_length")):
            # the decoder would count what it hears of the audio too
            if getattr(generation_config, new) is None:
                setattr(generation_config, new, getattr(generation_config, whole))
            setattr(generation_config, whole, None)
            if (length := generate_options.pop(whole, None)) is not None and generate_options.get(new) is None:
                generate_options[new] = length
        others = generation_config.update(**generate_options)
        for name in ("input_ids", "attention_mask", "labels"):
            others.pop(name, None)
        self._check_length((generation_config.max_new_tokens or DEFAULT_NEW_TOKENS) - 1)  # the last one is not heard
        mask = torch.ones(prefix.shape[:2], dtype=torch.long, device=prefix.device)
        return self.decoder.generate(
            inputs_embeds=prefix, attention_mask=mask, generation_config=generation_config, **others
        )

    def _check_length(self, tokens: int) -> None:
        """That so many tokens and the prefix have a position each, where positions are in a table."""
        longest = getattr(self.config.text_config, "max_position_embeddings", None)
        in_a_table = getattr(self.config.text_config, "rope_parameters", None) is None
        prefix_length = self.config.prefix_length
        if in_a_table and longest is not None and 0 <= longest < prefix_length + tokens:
            raise ValueError(
                f"The caption does not fit the {longest} positions of the decoder, of which the audio takes "
                f"{prefix_length}; shorten it (max_new_tokens)."
            )

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.decoder.set_output_embeddings(value)
