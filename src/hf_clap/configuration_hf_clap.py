"""Configurations: one per audio tower, and `HfClapConfig` that joins an audio and a text tower."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, PreTrainedConfig


@strict
class HfClapCnn14Config(PreTrainedConfig):
    r"""
    Configuration of the PANNs CNN tower (Kong et al. 2019, arXiv 1912.10211), the audio tower of CLAP 2022.
    The defaults are Cnn14; Cnn10 and Cnn6 have fewer blocks, and Cnn6 one convolution of 5x5 in each.

    Args:
        num_mel_bins (`int`, defaults to 64): mel bins of the input.
        channels (`tuple[int, ...]`): output channels of each convolution block.
        hidden_size (`int`, defaults to 2048): width of the last linear layer, and so of the output.
        pool_sizes (`tuple[int, ...]`): side of the average pooling after each block, as many as `channels`.
        convs_per_block (`int`, defaults to 2): convolutions in a block.
        kernel_size (`int`, defaults to 3): side of their kernels.
        block_dropout (`float`, defaults to 0.2): dropout after each block, in training.
        hidden_dropout (`float`, defaults to 0.5): dropout around the last linear layer, in training.

    Raises:
        ValueError: for sizes that do not fit together, or are not above 0.

    Example:

    ```python
    >>> from hf_clap import HfClapCnn14Config

    >>> widths = {"channels": (64, 128, 256, 512), "pool_sizes": (2, 2, 2, 2), "hidden_size": 512}
    >>> cnn10 = HfClapCnn14Config(**widths)
    >>> cnn6 = HfClapCnn14Config(**widths, convs_per_block=1, kernel_size=5)

    ```
    """

    model_type = "hf_clap_cnn14"
    base_config_key = "audio_config"

    num_mel_bins: int = 64
    channels: list[int] | tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    hidden_size: int = 2048
    pool_sizes: list[int] | tuple[int, ...] = (2, 2, 2, 2, 2, 1)
    convs_per_block: int = 2
    kernel_size: int = 3
    block_dropout: float | int = 0.2
    hidden_dropout: float | int = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if len(self.channels) != len(self.pool_sizes):
            raise ValueError(
                f"channels and pool_sizes describe the same blocks, but have {len(self.channels)} and "
                f"{len(self.pool_sizes)} entries; give one pool size per block."
            )
        _check_positive(self, "num_mel_bins", "channels", "pool_sizes", "convs_per_block", "kernel_size")
        if self.num_mel_bins < math.prod(self.pool_sizes):
            raise ValueError(
                f"{self.num_mel_bins} mel bins cannot be pooled by {math.prod(self.pool_sizes)} in all; give more of "
                "them, or smaller pool_sizes."
            )


@strict
class HfClapHtsatConfig(PreTrainedConfig):
    r"""
    Configuration of HTS-AT (Chen et al. 2022, arXiv 2202.00874), a Swin transformer over the log-mel: the audio tower
    of CLAP 2023 and of LAION's CLAP. The defaults are HTS-AT tiny; LAION's larger models have 128 channels and depths
    (2, 2, 12, 2).

    Args:
        num_mel_bins (`int`, defaults to 64): mel bins of the input.
        image_size (`int`, defaults to 256): side of the square that the spectrogram is folded into.
        patch_size (`int`, defaults to 4): side of a patch.
        patch_embed_dim (`int`, defaults to 96): channels of the first stage; each further stage has twice as many.
        depths (`tuple[int, ...]`): blocks in each stage.
        num_attention_heads (`tuple[int, ...]`): attention heads in each stage, as many as `depths`.
        window_size (`int`, defaults to 8): side of an attention window, in patches.
        mlp_ratio (`float`, defaults to 4.0): width of the MLPs over that of the stage.
        hidden_dropout (`float`, defaults to 0.0): dropout after attention and MLP, in training.
        attention_dropout (`float`, defaults to 0.0): dropout of the attention weights, in training.
        drop_path_rate (`float`, defaults to 0.1): stochastic depth of the last block, in training; it grows from 0.
        layer_norm_eps (`float`, defaults to 1e-5): of every layer norm.
        fusion (`bool`, defaults to `False`): whether the model hears three windows of a long clip beside its whole
            (LAION's `aff_2d`).
        fusion_reduction (`int`, defaults to 4): by which the fusion's attention narrows its channels.

    Raises:
        ValueError: for sizes that do not fit each other.
    """

    model_type = "hf_clap_htsat"
    base_config_key = "audio_config"

    num_mel_bins: int = 64
    image_size: int = 256
    patch_size: int = 4
    patch_embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_attention_heads: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    mlp_ratio: float | int = 4.0
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.1
    layer_norm_eps: float = 1e-5
    fusion: bool = False
    fusion_reduction: int = 4

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if len(self.depths) != len(self.num_attention_heads):
            raise ValueError(
                f"depths and num_attention_heads describe the same stages, but have {len(self.depths)} and "
                f"{len(self.num_attention_heads)} entries; give one number of heads per stage."
            )
        sizes = "num_mel_bins", "image_size", "patch_size", "patch_embed_dim", "window_size"
        _check_positive(self, *sizes, "mlp_ratio", "num_attention_heads", "fusion_reduction")
        if self.image_size % self.num_mel_bins:
            raise ValueError(
                f"A spectrogram of {self.num_mel_bins} mel bins cannot be folded into {self.image_size} rows; make "
                "image_size a multiple of num_mel_bins."
            )
        if min(self.depths, default=0) < 1:
            raise ValueError(f"depths={self.depths} leaves a stage without a block; give each stage at least one.")
        last = self.patch_size * 2 ** (len(self.depths) - 1)
        resolutions = self.resolutions
        if self.image_size % last or any(side > self.window_size and side % self.window_size for side in resolutions):
            raise ValueError(
                f"Stages of {resolutions} patches a side do not divide into windows of {self.window_size}; make "
                "image_size a multiple of patch_size * window_size * 2 ** (stages - 1)."
            )
        if resolutions[-1] % self.freq_ratio:
            raise ValueError(
                f"The {resolutions[-1]} rows of the last stage do not divide into the {self.freq_ratio} pieces of "
                "time; use fewer stages or more mel bins."
            )
        for stage, heads in enumerate(self.num_attention_heads):
            if self.patch_embed_dim * 2**stage % heads:
                raise ValueError(
                    f"{heads} heads do not divide the {self.patch_embed_dim * 2**stage} channels of stage {stage}; "
                    "change num_attention_heads or patch_embed_dim."
                )

    @property
    def hidden_size(self) -> int:
        return self.patch_embed_dim * 2 ** (len(self.depths) - 1)

    @property
    def resolutions(self) -> list[int]:
        """Side of the image in each stage, in patches."""
        return [self.image_size // self.patch_size // 2**stage for stage in range(len(self.depths))]

    @property
    def freq_ratio(self) -> int:
        """Pieces of time that are laid under each other to make the image square."""
        return self.image_size // self.num_mel_bins

    @property
    def max_frames(self) -> int:
        """The longest input, in frames."""
        return self.image_size * self.freq_ratio


@strict
class HfClapPatchCnnConfig(PreTrainedConfig):
    r"""
    Configuration of the patch CNN tower: MobileNetV1 (Howard et al. 2017, arXiv 1704.04861) over overlapping log-mel
    patches, as YAMNet uses it. The defaults are YAMNet's.

    Args:
        num_mel_bins (`int`, defaults to 64): mel bins of the input.
        patch_frames (`int`, defaults to 96): frames in a patch (0.96 s at a hop of 10 ms).
        patch_hop_frames (`int`, defaults to 48): frames from one patch to the next.
        stem_channels (`int`, defaults to 32): output channels of the first convolution.
        channels (`tuple[int, ...]`): output channels of each depthwise-separable convolution; the last one is the
            hidden size.
        strides (`tuple[int, ...]`): stride of each, as many as `channels`.

    Raises:
        ValueError: for sizes that do not fit together, or are not above 0.

    Example:

    ```python
    >>> from hf_clap import HfClapPatchCnnConfig

    >>> HfClapPatchCnnConfig(channels=(64, 128, 256), strides=(1, 2, 2)).hidden_size
    256

    ```
    """

    model_type = "hf_clap_patch_cnn"
    base_config_key = "audio_config"

    num_mel_bins: int = 64
    patch_frames: int = 96
    patch_hop_frames: int = 48
    stem_channels: int = 32
    channels: list[int] | tuple[int, ...] = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    strides: list[int] | tuple[int, ...] = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if len(self.channels) != len(self.strides):
            raise ValueError(
                f"channels and strides describe the same layers, but have {len(self.channels)} and "
                f"{len(self.strides)} entries; give one stride per layer."
            )
        _check_positive(
            self, "num_mel_bins", "patch_frames", "patch_hop_frames", "stem_channels", "channels", "strides"
        )

    @property
    def hidden_size(self) -> int:
        return self.channels[-1]


AUDIO_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    config.model_type: config for config in (HfClapCnn14Config, HfClapHtsatConfig, HfClapPatchCnnConfig)
}


@strict
class HfClapConfig(PreTrainedConfig):
    r"""
    Configuration of a CLAP model: an audio tower, a text tower and a projection of each into one space.
    The defaults are CLAP 2022 (Elizalde et al., arXiv 2206.04769): Cnn14, BERT [CLS], 1024 dimensions.

    Args:
        text_config (`PreTrainedConfig` or `dict`): any transformers text encoder; BERT base when absent.
        audio_config (`PreTrainedConfig` or `dict`): one of hf_clap's audio towers, named by its `model_type`; Cnn14
            when absent.
        projection_dim (`int`, defaults to 1024): dimensions of the joint space.
        projection (`str`, defaults to `"residual_mlp"`): `residual_mlp` (msclap), `mlp` (LAION), `linear` or
            `concept` (the joint space is a bank of named concepts, see `ConceptAudioProjection`).
        projection_dropout (`float`, defaults to 0.5): dropout inside `residual_mlp`, in training.
        text_pooling (`str`, defaults to `"cls"`): `cls`, `mean`, `last` (token, by the attention mask) or `pooler`.
        logit_scale_init_value (`float`, defaults to ln(1 / 0.07)): initial logarithm of the logit scale.
        logit_bias_init_value (`float`, *optional*): initial bias of the logits; without it the model has none.
        logit_scale_text_value (`float`, *optional*): logarithm of a logit scale for `logits_per_text` alone, where it
            has one of its own, as LAION's and transformers' checkpoints do. It is kept as it is: training here has
            one scale for both directions.
        loss (`str`, defaults to `"softmax"`): what `return_loss=True` computes, `softmax` or `sigmoid`, which wants a
            `logit_bias_init_value` too (-10 in its paper).
        concept_labels (`list[str]`, *optional*): the names of the `concept` projection's dimensions.
        multi_label_threshold (`float`, *optional*): the score, in [0, 1], from which the pipeline takes a label to be
            present where it is called with `multi_label=True, threshold="model"`.
        num_prototypes (`int`, *optional*): texts of known meaning in the `concept` projection, `projection_dim` by
            default.
        classifier_dropout (`float`, defaults to 0.0): dropout before the classifier of `HfClapForAudioClassification`,
            in training.

    Raises:
        ValueError: for an audio tower that hf_clap does not know, or concept labels that do not match the dimensions.

    Example:

    ```python
    >>> from hf_clap import HfClapConfig

    >>> config = HfClapConfig(audio_config={"model_type": "hf_clap_patch_cnn"}, projection_dim=512)
    >>> config.audio_config.hidden_size
    1024

    ```
    """

    model_type = "hf_clap"
    sub_configs = {"text_config": PreTrainedConfig, "audio_config": PreTrainedConfig}

    text_config: Any = None
    audio_config: Any = None
    projection_dim: int = 1024
    projection: Literal["residual_mlp", "mlp", "linear", "concept"] = "residual_mlp"
    projection_dropout: float | int = 0.5
    text_pooling: Literal["cls", "mean", "last", "pooler"] = "cls"
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    logit_bias_init_value: float | int | None = None
    logit_scale_text_value: float | int | None = None
    loss: Literal["softmax", "sigmoid"] = "softmax"
    concept_labels: list[str] | None = None
    multi_label_threshold: float | int | None = None
    num_prototypes: int | None = None
    classifier_dropout: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = _sub_config(self.text_config, CONFIG_MAPPING, default="bert")
        self.audio_config = _sub_config(self.audio_config, AUDIO_CONFIGS, default="hf_clap_cnn14")
        super().__post_init__(**kwargs)
        _check_positive(self, "projection_dim")
        if self.concept_labels is not None and len(self.concept_labels) != self.projection_dim:
            raise ValueError(
                f"{len(self.concept_labels)} concept_labels name the {self.projection_dim} dimensions of the joint "
                f"space; set projection_dim={len(self.concept_labels)}."
            )
        if self.multi_label_threshold is not None and not 0 <= self.multi_label_threshold <= 1:
            raise ValueError(f"multi_label_threshold={self.multi_label_threshold} is no score; it is from 0 to 1.")


@strict
class HfClapCaptioningConfig(PreTrainedConfig):
    r"""
    Configuration of clapcap (Deshmukh et al. 2023, "Training audio captioning models without audio", arXiv
    2309.07372), as msclap publishes it: the audio side of a CLAP, a mapper from its embedding to a prefix, and a
    language model that continues it. The defaults are `clapcap_weights_2023.pth`.

    Args:
        text_config (`PreTrainedConfig` or `dict`): any transformers causal language model; GPT-2 when absent.
        audio_config (`PreTrainedConfig` or `dict`): one of hf_clap's audio towers; HTS-AT when absent.
        projection_dim, projection, projection_dropout: as `HfClapConfig`.
        prefix_length (`int`, defaults to 40): vectors that the language model is given.
        audio_length (`int`, defaults to 40): vectors that the audio embedding is spread over inside the mapper.
        mapper_layers (`int`, defaults to 8): its transformer layers.
        mapper_heads (`int`, defaults to 8): attention heads in each.
        mapper_mlp_ratio (`float`, defaults to 2.0): width of their MLPs over that of the language model.

    Raises:
        ValueError: for an unknown tower, or sizes that do not fit together or are not above 0.

    Example:

    ```python
    >>> from hf_clap import HfClapCaptioningConfig

    >>> HfClapCaptioningConfig(text_config={"model_type": "gpt2", "n_embd": 512}).text_config.hidden_size
    512

    ```
    """

    model_type = "hf_clap_captioning"
    sub_configs = {"text_config": PreTrainedConfig, "audio_config": PreTrainedConfig}

    text_config: Any = None
    audio_config: Any = None
    projection_dim: int = 1024
    projection: Literal["residual_mlp", "mlp", "linear"] = "residual_mlp"
    projection_dropout: float | int = 0.5
    prefix_length: int = 40
    audio_length: int = 40
    mapper_layers: int = 8
    mapper_heads: int = 8
    mapper_mlp_ratio: float | int = 2.0

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = _sub_config(self.text_config, CONFIG_MAPPING, default="gpt2")
        self.audio_config = _sub_config(self.audio_config, AUDIO_CONFIGS, default="hf_clap_htsat")
        super().__post_init__(**kwargs)
        sizes = "projection_dim", "prefix_length", "audio_length", "mapper_layers", "mapper_heads", "mapper_mlp_ratio"
        _check_positive(self, *sizes)
        if self.text_config.hidden_size % self.mapper_heads:
            raise ValueError(
                f"{self.mapper_heads} heads do not divide the language model's width of "
                f"{self.text_config.hidden_size}; change mapper_heads."
            )


def _check_positive(config: PreTrainedConfig, *names: str) -> None:
    """That these numbers, or all of those in a list, are more than 0."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, (list, tuple)) else [value], default=0) <= 0:
            raise ValueError(f"{name}={value} is not possible; it must be more than 0.")


def _sub_config(config: dict[str, Any] | PreTrainedConfig | None, known: Any, default: str) -> PreTrainedConfig:
    """A tower's configuration object from whatever `config.json` or the caller holds."""
    values = {"model_type": config.model_type} if isinstance(config, PreTrainedConfig) else dict(config or {})
    model_type = values.pop("model_type", default)
    if model_type not in known:
        raise ValueError(f"There is no tower of model_type {model_type!r}; choose one of {', '.join(sorted(known))}.")
    return config if isinstance(config, PreTrainedConfig) else known[model_type](**values)
