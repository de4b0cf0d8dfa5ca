"""HTS-AT, a Swin transformer over the log-mel: the audio tower of CLAP 2023 and of LAION's CLAP."""

import math
from itertools import islice

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .attention import HeadsAttention
from .configuration_hf_clap import HfClapHtsatConfig
from .linear import Conv2d, Linear
from .modeling_audio_tower import HfClapAudioTower
from .prepared_stage import StagePreparation
from .stretch import stretch

# What LAION and msclap add to the attention between patches that only the cyclic shift made neighbours.
SHIFT_PENALTY = -100.0

# Of the hidden states that go through a stage at a time on a CPU: the early stages' few weights want to meet a clip or
# two, whose hidden states stay in the cache, the later ones' many weights as many clips as do (measured).
PIECE_BYTES = 3 * 2**19

# Channels of a fused model's input: the whole clip shrunk to a window, and three windows of it.
FUSION_CHANNELS = 4


class FeatureFusion(nn.Module):
    """Attentional feature fusion (Dai et al. 2021, arXiv 2009.14082), as LAION's `clap_module/feature_fusion.py`."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.local_attention = nn.Sequential(*self._layers(channels, channels // reduction))
        self.global_attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), *self._layers(channels, channels // reduction))

    @staticmethod
    def _layers(channels: int, inner: int) -> list[nn.Module]:
        squeeze, expand = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        return [squeeze, nn.BatchNorm2d(inner), nn.ReLU(), expand, nn.BatchNorm2d(channels)]

    def forward(self, whole: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
        total = whole + local  # (clips, channels, height, width)
        if self.training and len(total) == 1:
            total = total.expand(2, -1, -1, -1)  # batch norm has no variance of one value; LAION does the same
        weight = (self.local_attention(total) + self.global_attention(total)).sigmoid()[: len(whole)]
        return 2 * whole * weight + 2 * local * (1 - weight)


class PatchEmbedding(nn.Module):
    """The spectrogram image in patches; for fused models, of the whole clip and of three windows of it."""

    def __init__(self, config: HfClapHtsatConfig):
        super().__init__()
        size, channels = config.patch_size, config.patch_embed_dim
        self.projection = Conv2d(1, channels, size, stride=size)
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        if config.fusion:
            self.local_projection = Conv2d(1, channels, (size, 3 * size), stride=(size, 3 * size))
            self.fusion = FeatureFusion(channels, config.fusion_reduction)

    def forward(self, image: torch.Tensor, is_longer: torch.Tensor | None) -> torch.Tensor:
        """(batch, 1 or 4, height, width) -> (batch, patches, channels)"""
        whole = self.projection(image[:, :1])
        if is_longer is not None and not self.training:
            whole = torch.where(is_longer[:, None, None, None], self._fused(whole, image), whole)
        elif is_longer is not None and is_longer.any():
            # in training the batch norms learn from the clips that are fused, not from all
            longer = is_longer.nonzero()[:, 0]
            whole = whole.index_copy(0, longer, self._fused(whole[longer], image[longer]).to(whole.dtype))
        return self.norm(whole.flatten(2).transpose(1, 2))

    def _fused(self, whole: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """`whole` `(clips, channels, height, width)`, in patches, with the three windows in `image`."""
        windows = self.local_projection(image[:, 1:].flatten(0, 1)[:, None])
        local = windows.unflatten(0, (len(image), -1)).permute(0, 2, 3, 1, 4).flatten(3)  # one after the other in time
        return self.fusion(whole, F.pad(local, (0, whole.shape[-1] - local.shape[-1])))


class WindowAttention(HeadsAttention):
    """Self-attention inside each window, with a learned bias for each relative position."""

    relative_position_index: torch.Tensor

    def __init__(self, config: HfClapHtsatConfig, dim: int, num_heads: int, window_size: int):
        super().__init__(config, dim // num_heads)
        self.window_size = window_size
        self.query = Linear(dim, dim)
        self.key = Linear(dim, dim)
        self.value = Linear(dim, dim)
        self.output = Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", self.make_index(), persistent=False)

    def make_index(self) -> torch.Tensor:
        """(length * length,): the row of the table for each pair of a window's `length` patches."""
        side = torch.arange(self.window_size)
        height, width = torch.meshgrid(side, side, indexing="ij")
        height, width = height.flatten(), width.flatten()
        rows = height[:, None] - height[None] + self.window_size - 1
        columns = width[:, None] - width[None] + self.window_size - 1
        return (rows * (2 * self.window_size - 1) + columns).flatten()

    def position_bias(self, shift_mask: torch.Tensor | None) -> torch.Tensor:
        """(1, windows * heads, length, length): what is added to the scores, where length is patches in a window."""
        length = self.window_size**2
        bias = self.relative_position_bias_table.T.index_select(1, self.relative_position_index)
        bias = bias.unflatten(1, (length, length))
        if shift_mask is not None:
            # e^-100 is a subnormal float32, with which Intel's CPUs multiply 25 times as slowly; e^-200 is 0
            shift_mask = shift_mask.masked_fill(shift_mask < SHIFT_PENALTY / 2, 2 * SHIFT_PENALTY)
            bias = (bias + shift_mask[:, None]).flatten(0, 1)
        return bias[None]

    def forward(self, hidden: torch.Tensor, shift_mask: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            hidden: `(groups, length, windows, dim)`, so that the windows of a group and their heads are one axis
                without a copy, and the bias is the same for every group.
            shift_mask: `(windows, length, length)`, added to the attention scores.

        Returns:
            torch.Tensor: as `hidden`.
        """
        query, key, value = (layer(hidden).flatten(2) for layer in (self.query, self.key, self.value))
        bias = self.position_bias(shift_mask)
        attended = self.attend(query, key, value, bias, self.config.attention_dropout)
        return self.output(attended.reshape(hidden.shape))  # no view, where an exported SDPA has another layout


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): leave a residual branch out, by clip, in training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0:
            return hidden
        keep = torch.rand(len(hidden), *[1] * (hidden.ndim - 1), device=hidden.device) >= self.rate
        return hidden * keep / (1 - self.rate)


class SwinBlock(GradientCheckpointingLayer):
    """Window attention and an MLP, each with a residual; every second block of a stage shifts its windows by half."""

    shift_mask: torch.Tensor | None

    def __init__(self, config: HfClapHtsatConfig, stage: int, shifted: bool, drop_path: float):
        super().__init__()
        dim = config.patch_embed_dim * 2**stage
        self.resolution = config.resolutions[stage]
        self.window_size = min(config.window_size, self.resolution)
        self.shift = self.window_size // 2 if shifted and self.window_size < self.resolution else 0
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = WindowAttention(config, dim, config.num_attention_heads[stage], self.window_size)
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        inner = int(dim * config.mlp_ratio + 1e-6)  # cut off, as the peers do, but not by what a quotient is rounded
        self.linear1, self.linear2 = Linear(dim, inner), Linear(inner, dim)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.drop_path = DropPath(drop_path)
        self.register_buffer("shift_mask", self.make_shift_mask())  # msclap's and LAION's have it, and it counts there

    def window_order(self) -> torch.Tensor:
        """
        (patches,): the place in the image of each patch as the attention takes them.

        A shifted block's windows differ in their mask, so that an image is one group: all first patches of a window,
        then all second ones. In the other blocks each window is a group, and the bias needs no copy for each.
        """
        side, size = self.resolution // self.window_size, self.window_size
        place = torch.arange(self.resolution**2).view(self.resolution, self.resolution)
        place = place.roll((-self.shift, -self.shift), dims=(0, 1)).view(side, size, side, size)
        return place.permute((1, 3, 0, 2) if self.shift else (0, 2, 1, 3)).flatten()

    def make_shift_mask(self) -> torch.Tensor | None:
        """(windows, length, length): a penalty on pairs that the cyclic shift brought together, in shifted blocks."""
        if not self.shift:
            return None
        order, length = self.window_order(), self.window_size**2
        # patches from the image's other end are in a region of their own, in either direction
        row, column = order // self.resolution, order % self.resolution
        region = (2 * (row < self.shift) + (column < self.shift)).view(length, -1).T  # (windows, length)
        apart = region[:, :, None] != region[:, None]
        return torch.where(apart, SHIFT_PENALTY, 0.0).contiguous()  # else it is added number by number

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, patches, dim), in `window_order`"""
        windows = 1 if self.shift_mask is None else len(self.shift_mask)  # in a group
        parted = self.norm1(hidden).view(-1, self.window_size**2, windows, hidden.shape[-1])
        hidden = self._add(hidden, self.attention(parted, self.shift_mask).view(hidden.shape))
        return self._add(hidden, self.linear2(F.gelu(self.linear1(self.norm2(hidden)))))

    def _add(self, residual: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        return residual + self.drop_path(self.dropout(branch))


class PatchMerging(nn.Module):
    """Four neighbouring patches -> one of twice the width."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=eps)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, patches, dim), neighbours one after the other -> (batch, patches / 4, 2 * dim)"""
        batch, patches, dim = hidden.shape
        return self.reduction(self.norm(hidden.view(batch, patches // 4, 4 * dim)))


class SwinStage(nn.Module):
    """Blocks of one resolution, and the step down to the next."""

    orders: torch.Tensor

    def __init__(self, config: HfClapHtsatConfig, stage: int, drop_path: list[float]):
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(config, stage, index % 2 == 1, rate) for index, rate in enumerate(drop_path)
        )
        self.resolution = config.resolutions[stage]
        self.is_last = stage + 1 == len(config.depths)
        dim = config.patch_embed_dim * 2**stage
        self.downsample = nn.Identity() if self.is_last else PatchMerging(dim, config.layer_norm_eps)
        self.register_buffer("orders", self.lay_out(), persistent=False)
        self.preparation = StagePreparation(set(map(type, self.modules())))

    def train(self, mode: bool = True) -> "SwinStage":
        if mode:
            self.preparation.clear()  # until the next inference
        super().train(mode)
        return self

    def lay_out(self) -> torch.Tensor:
        """
        (blocks + 1, patches): where each block's patches are in what comes before it, the image or the block before;
        and at last those of what comes after: the image's, or for the step down four neighbours one after the other.
        """
        image = after = torch.arange(self.resolution**2)
        if not self.is_last:
            after = image.view(self.resolution // 2, 2, -1, 2).permute(0, 2, 3, 1).flatten()
        orders, place = [], image  # of the image's patches in what comes before
        for block in self.blocks:
            order = block.window_order()
            orders.append(place[order])
            place = order.argsort()
        return torch.stack([*orders, place[after]])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, patches, dim) -> the same, or (batch, patches / 4, 2 * dim)"""
        prepared = self.preparation(self, hidden)
        if prepared is not None:
            return prepared(hidden)
        *before, after = self.orders
        for block, order in zip(self.blocks, before, strict=True):
            hidden = block(hidden.index_select(1, order))
        return self.downsample(hidden.index_select(1, after))


class HfClapHtsatModel(HfClapAudioTower):
    """
    HTS-AT (Chen et al. 2022, arXiv 2202.00874) over log-mels in dB, as msclap 2023 and LAION use it: the spectrogram
    is stretched to the length of the image and cut in pieces of time that are laid under each other, so that the
    image is square. With `fusion` also LAION's fusion of long clips (Wu et al. 2023, arXiv 2211.06687, section 3.3).

    Example:

    ```python
    >>> import torch
    >>> from hf_clap import HfClapHtsatConfig, HfClapHtsatModel

    >>> tower = HfClapHtsatModel(HfClapHtsatConfig(patch_embed_dim=8, num_attention_heads=(1, 1, 2, 2))).eval()
    >>> output = tower(torch.zeros(1, 1, 1001, 64))
    >>> output.last_hidden_state.shape, output.pooler_output.shape
    (torch.Size([1, 32, 64]), torch.Size([1, 64]))

    ```
    """

    config: HfClapHtsatConfig
    config_class = HfClapHtsatConfig
    _no_split_modules = ["SwinBlock"]
    _supports_attention_backend = True
    _channels = (1, FUSION_CHANNELS)

    def __init__(self, config: HfClapHtsatConfig):
        super().__init__(config)
        self.input_norm = nn.BatchNorm2d(config.num_mel_bins)
        self.patch_embed = PatchEmbedding(config)
        rates = iter(torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            SwinStage(config, stage, list(islice(rates, depth))) for stage, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, WindowAttention):
            init.trunc_normal_(module.relative_position_bias_table, std=0.02)
            init.copy_(module.relative_position_index, module.make_index())
        elif isinstance(module, SwinBlock) and module.shift_mask is not None:
            init.copy_(module.shift_mask, module.make_shift_mask())
        elif isinstance(module, SwinStage):
            init.copy_(module.orders, module.lay_out())

    def forward(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_features: `(batch, 1, frames, mels)`, or for fused models also `(batch, 4, frames, mels)`: the whole
                clip shrunk to a window, then its three windows. At most `config.max_frames` (1024) frames.
            input_features_mask: not supported, because the published weights know full windows only.
            is_longer: `(batch,)` or `(batch, 1)`: which clips are longer than a window, so that their windows count
                too. It means nothing with one channel.

        Returns:
            BaseModelOutputWithPooling: `last_hidden_state` `(batch, steps, hidden)`, where the 32 steps share the
            clip's time evenly, and `pooler_output` `(batch, hidden)`, their mean.

        Raises:
            ValueError: for masked input, too many frames, or channels that do not fit the model.
            RuntimeError: for a model that was built on `meta` and given weights, but no indices.
        """
        if input_features_mask is not None:
            raise ValueError("HTS-AT takes windows of one length; set the feature extractor's min_length_s to None.")
        input_features = self._checked(input_features, self.input_norm.weight.dtype)
        is_longer = self._check_longer(input_features, is_longer)
        if self.stages[0].orders.is_meta and not input_features.is_meta:
            raise RuntimeError(
                "HTS-AT was built on meta, with indices that no checkpoint holds; load it by from_pretrained, or "
                "build it on the CPU."
            )
        if self._is_watched(input_features):
            steps = self._encode(input_features, is_longer, in_pieces=False)
        elif self.training:  # batch norms learn from all clips at once
            steps = self._encode(input_features, is_longer)
        else:
            steps = self._in_pieces(self._encode, input_features, is_longer)
        return BaseModelOutputWithPooling(last_hidden_state=steps, pooler_output=steps.mean(dim=1))

    def _encode(
        self, input_features: torch.Tensor, is_longer: torch.Tensor | None, in_pieces: bool = True
    ) -> torch.Tensor:
        """(batch, channels, frames, mels) -> (batch, steps, hidden)"""
        normalized = self.input_norm(input_features.transpose(1, 3)).transpose(1, 3)
        hidden = self.patch_embed(self._to_image(normalized), is_longer)  # (batch, patches, dim)
        for stage in self.stages:
            clips = PIECE_BYTES // (hidden.shape[1:].numel() * hidden.element_size())
            hidden = self._in_pieces(stage, hidden, clips=max(1, clips)) if in_pieces else stage(hidden)
        # the image's rows are pieces of time, one under the other, and in each piece the bins of the spectrum
        side = math.isqrt(hidden.shape[1])
        pieces = self.norm(hidden).unflatten(1, (self.config.freq_ratio, -1, side))
        return pieces.mean(dim=2).flatten(1, 2)  # (batch, pieces, bins, side, hidden) -> (batch, steps, hidden)

    def _check_longer(self, input_features: torch.Tensor, is_longer: torch.Tensor | None) -> torch.Tensor | None:
        """`is_longer` as `(batch,)` where it counts."""
        batch, channels, frames, _ = input_features.shape
        if frames > self.config.max_frames:
            raise ValueError(
                f"HTS-AT takes at most {self.config.max_frames} frames and got {frames}; cut the clip in windows, as "
                'the feature extractor does with crop="windows".'
            )
        if channels == 1:
            return None  # nothing to fuse: each clip is a window
        if not self.config.fusion:
            raise ValueError(
                f"Features of {channels} channels do not fit a model without fusion; four channels and is_longer, "
                'from crop="fusion", are for those with it.'
            )
        if is_longer is None:
            raise ValueError("Four channels need is_longer too; pass all that the feature extractor returns.")
        if is_longer.numel() != batch:
            raise ValueError(f"is_longer has {is_longer.numel()} entries for {batch} clips; pass one for each.")
        return is_longer.reshape(batch).bool()

    def _to_image(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames, mels) -> (batch, channels, image_size, image_size)"""
        frames = self.config.max_frames
        if features.shape[2] != frames:
            features = stretch(features, frames)
        pieces = features.unflatten(2, (self.config.freq_ratio, -1))  # (batch, channels, pieces, width, mels)
        return pieces.transpose(3, 4).flatten(2, 3)
