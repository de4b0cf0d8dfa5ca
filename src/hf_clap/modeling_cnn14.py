"""Cnn14, the audio tower of CLAP 2022 (PANNs, Kong et al. 2019, arXiv 1912.10211), with time kept."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_hf_clap import HfClapCnn14Config
from .folded_conv import FoldedConv
from .modeling_audio_tower import HfClapAudioTower


class Cnn14Block(GradientCheckpointingLayer):
    """Convolutions with batch norm and ReLU, average pooling, dropout."""

    def __init__(self, config: HfClapCnn14Config, in_channels: int, out_channels: int, pool_size: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(
                in_channels if index == 0 else out_channels,
                out_channels,
                config.kernel_size,
                padding=config.kernel_size // 2,
                bias=False,
            )
            for index in range(config.convs_per_block)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(out_channels) for _ in range(config.convs_per_block))
        self.pool_size = pool_size
        self.dropout = nn.Dropout(config.block_dropout)
        self.folds_norms = True
        self.folded = [FoldedConv() for _ in self.convs]

    def fold_norms(self, fold: bool) -> None:
        self.folds_norms = fold
        for folded in self.folded:
            folded.clear()

    def train(self, mode: bool = True) -> "Cnn14Block":
        if mode:
            self.fold_norms(self.folds_norms)  # at the next inference anew
        return super().train(mode)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for conv, norm, folded in zip(self.convs, self.norms, self.folded, strict=True):
            if self.folds_norms and folded.is_possible(hidden, conv, norm):
                hidden = folded(hidden, conv, norm)
            else:
                with _counted_once(norm):
                    hidden = F.relu(norm(conv(hidden)))
        return self.dropout(F.avg_pool2d(hidden, self.pool_size))


@contextmanager
def _counted_once(norm: nn.Module) -> Iterator[None]:
    """Running statistics stay when gradient checkpointing computes a batch again, in a backward pass."""
    if torch.compiler.is_compiling() or not norm.training or torch._C._current_graph_task_id() == -1:
        yield
        return
    held = dict(norm._buffers)  # in the graph, so that they cannot be set back in place
    norm._buffers.update({name: buffer if buffer is None else buffer.clone() for name, buffer in held.items()})
    try:
        yield
    finally:
        norm._buffers.update(held)


class HfClapCnn14Model(HfClapAudioTower):
    """
    Cnn14 over log-mels in dB. Also Cnn6 and Cnn10, by configuration.

    At inference on a CPU the batch norms are folded into the convolutions, in copies of their weights that training
    gives back; `fold_norms(False)` does without.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap import HfClapCnn14Config, HfClapCnn14Model

    >>> tower = HfClapCnn14Model(HfClapCnn14Config(channels=(8, 16), pool_sizes=(2, 2), hidden_size=12)).eval()
    >>> output = tower(torch.zeros(1, 1, 100, 64))
    >>> output.last_hidden_state.shape, output.pooler_output.shape
    (torch.Size([1, 25, 12]), torch.Size([1, 12]))

    ```
    """

    config: HfClapCnn14Config
    config_class = HfClapCnn14Config
    _no_split_modules = ["Cnn14Block"]

    def __init__(self, config: HfClapCnn14Config):
        super().__init__(config)
        self.input_norm = nn.BatchNorm2d(config.num_mel_bins)
        self.blocks = nn.ModuleList(
            Cnn14Block(config, in_channels, out_channels, pool_size)
            for in_channels, out_channels, pool_size in zip(
                [1, *config.channels[:-1]], config.channels, config.pool_sizes, strict=True
            )
        )
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.linear = nn.Linear(config.channels[-1], config.hidden_size)
        self.post_init()

    def fold_norms(self, fold: bool = True) -> None:
        """Whether batch norms are folded into convolutions at inference on a CPU; without, nothing is kept for it."""
        for block in self.blocks:
            block.fold_norms(fold)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            init.xavier_uniform_(module.weight)  # as PANNs does (`pytorch/models.py`, init_layer)

    def forward(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_features: `(batch, 1, frames, mels)`, windows of one length.
            input_features_mask: not supported, because the published weights know fixed windows only.

        Returns:
            BaseModelOutputWithPooling: `last_hidden_state` `(batch, steps, hidden)`, where a step is as many frames as
            the product of the pool sizes (32), and `pooler_output` `(batch, hidden)`.

        Raises:
            ValueError: for masked input, or clips too short for the poolings.
        """
        if input_features_mask is not None:
            raise ValueError("Cnn14 takes windows of one length; set the feature extractor's min_length_s to None.")
        input_features = self._checked(input_features, self.input_norm.weight.dtype)
        shortest = math.prod(self.config.pool_sizes)
        if input_features.shape[2] < shortest:
            raise ValueError(
                f"Cnn14 needs at least {shortest} frames and got {input_features.shape[2]}; fill the clip, as the "
                "feature extractor does."
            )
        if self.training or self._is_watched(input_features):  # batch norms learn from all clips at once
            steps = self._encode(input_features)
        else:
            steps = self._in_pieces(self._encode, input_features)
        pooled = steps.amax(dim=1) + steps.mean(dim=1)  # (batch, channels)
        return BaseModelOutputWithPooling(last_hidden_state=self._embed(steps), pooler_output=self._embed(pooled))

    def _encode(self, input_features: torch.Tensor) -> torch.Tensor:
        """(batch, 1, frames, mels) -> (batch, steps, channels)"""
        normalized = self.input_norm(input_features.transpose(1, 3))  # (batch, mels, frames, 1)
        # channels last in its strides too, so that the convolutions keep it
        hidden = normalized[..., 0].transpose(1, 2).contiguous()[..., None].permute(0, 3, 1, 2)
        for block in self.blocks:
            hidden = block(hidden)  # (batch, channels, steps, bins)
        return hidden.mean(dim=3).transpose(1, 2)

    def _embed(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, channels) -> (…, hidden)"""
        return self.dropout(F.relu(self.linear(self.dropout(hidden))))
