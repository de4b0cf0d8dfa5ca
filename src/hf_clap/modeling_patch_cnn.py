"""A small CNN (MobileNetV1, as YAMNet uses it) over overlapping log-mel patches: the bundled checkpoint's tower."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_hf_clap import HfClapPatchCnnConfig
from .linear import Conv2d, conv_relu
from .modeling_audio_tower import HfClapAudioTower

# Patches put through the CNN at a time on a CPU: more leave its cache, fewer pay for repacking the weights (measured).
CPU_PATCHES = 40


@dataclass
class PatchCnnOutput(BaseModelOutputWithPooling):
    """A tower's output, and `step_mask` `(batch, steps)`: true for the steps that hold audio."""

    step_mask: torch.Tensor | None = None


class SameConv2d(Conv2d):
    """3x3 convolution with TensorFlow's SAME padding: with stride 2 and even input it pads at the far side only."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 1):
        super().__init__(in_channels, out_channels, 3, stride, padding=1 if stride == 1 else 0, groups=groups)
        if stride != 1:
            self.padding = "same"  # whoever makes another of this one's settings is told that PyTorch has none

    def kernel(self, hidden: torch.Tensor) -> tuple[torch.Tensor, Any]:
        if self.stride[0] == 1:
            return self.weight, self.padding
        # padded at both sides, a kernel with zeros at its near side reads what SAME does, without a padded copy
        height, width = hidden.shape[-2:]
        return F.pad(self.weight, (1 - width % 2, 0, 1 - height % 2, 0)), (1, 1)


class DepthwiseSeparableConv(GradientCheckpointingLayer):
    """A 3x3 convolution of each channel, then a 1x1 convolution across channels, each with ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.depthwise = SameConv2d(in_channels, in_channels, stride, groups=in_channels)
        self.pointwise = Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return conv_relu(self.pointwise, conv_relu(self.depthwise, hidden))


class HfClapPatchCnnModel(HfClapAudioTower):
    """
    MobileNetV1 over patches of a log-mel of any length; only patches that hold audio are computed.

    The convolutions have biases and no batch norms: YAMNet's public weights come with the norms folded in. Otherwise
    it is transformers' `MobileNetV1Model` with `tf_padding`, which takes 1.6 to 2.7 times as long on a CPU.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap import HfClapPatchCnnConfig, HfClapPatchCnnModel

    >>> tower = HfClapPatchCnnModel(HfClapPatchCnnConfig(channels=(8, 16), strides=(1, 2))).eval()
    >>> output = tower(torch.zeros(1, 1, 200, 64))
    >>> output.last_hidden_state.shape, output.pooler_output.shape
    (torch.Size([1, 3, 16]), torch.Size([1, 16]))

    ```
    """

    config: HfClapPatchCnnConfig
    config_class = HfClapPatchCnnConfig
    _no_split_modules = ["DepthwiseSeparableConv"]

    def __init__(self, config: HfClapPatchCnnConfig):
        super().__init__(config)
        self.stem = SameConv2d(1, config.stem_channels, stride=2)
        self.layers = nn.ModuleList(
            DepthwiseSeparableConv(in_channels, out_channels, stride)
            for in_channels, out_channels, stride in zip(
                [config.stem_channels, *config.channels[:-1]], config.channels, config.strides, strict=True
            )
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):  # there are no norms that would make up for transformers' small weights
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None) -> PatchCnnOutput:
        """
        Args:
            input_features: `(batch, 1, frames, mels)`.
            input_features_mask: `(batch, frames)`, true for the frames that hold audio, which come first.

        Returns:
            PatchCnnOutput: `last_hidden_state` `(batch, steps, hidden)`, where a step is a patch, zeros where a clip
            has fewer of them than another; `pooler_output` `(batch, hidden)`, their mean; and `step_mask`.

        Raises:
            ValueError: for clips shorter than a patch.
        """
        input_features = self._checked(input_features, self.stem.weight.dtype)
        batch, _, frames, mels = input_features.shape
        if input_features_mask is not None and input_features_mask.shape != (batch, frames):
            raise ValueError(
                f"A mask of shape {tuple(input_features_mask.shape)} does not fit features of {batch} clips of "
                f"{frames} frames; pass (batch, frames), as the feature extractor gives it."
            )
        patch_frames = self.config.patch_frames
        if input_features_mask is None or not batch:
            # the dtype is said for ONNX: exporters before PyTorch 2.13's take a count for a float
            lengths = torch.full((batch,), frames, dtype=torch.long, device=input_features.device)
            shortest = longest = frames  # known without looking, so that a compiler need not stop here
        else:
            lengths = input_features_mask.bool().sum(dim=1)
            shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < patch_frames:
            raise ValueError(
                f"The patch CNN needs at least {patch_frames} frames of audio and got {shortest}; fill the clip, as "
                "the feature extractor does up to its min_length_s."
            )
        starts, step_mask = self._patch_starts(lengths, longest)
        clip_starts = torch.arange(batch, device=starts.device)[:, None] * frames
        first_frames = starts + clip_starts  # (batch, steps), counted through the batch
        if input_features_mask is not None:
            first_frames = first_frames[step_mask]  # (all patches,)
        rows = first_frames.reshape(-1, 1) + torch.arange(patch_frames, device=starts.device)
        patches = input_features.reshape(-1, mels).index_select(0, rows.flatten())
        hidden = self._encode(patches.view(-1, 1, patch_frames, mels))  # (all patches, hidden)
        if input_features_mask is None:
            last_hidden_state = hidden.view(*step_mask.shape, hidden.shape[-1])
        else:
            last_hidden_state = hidden.new_zeros(*step_mask.shape, hidden.shape[-1])
            last_hidden_state[step_mask] = hidden
        pooled = last_hidden_state.sum(dim=1) / step_mask.sum(dim=1, keepdim=True)
        return PatchCnnOutput(last_hidden_state=last_hidden_state, pooler_output=pooled, step_mask=step_mask)

    def _patch_starts(self, lengths: torch.Tensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        First frame of every patch `(batch, steps)` and which of them are real. They are spread evenly from the clip's
        start to its end, as near to the hop as that allows, so that every frame is heard without inventing any.

        Args:
            lengths: `(batch,)`, frames of each clip.
            longest: the most of them.
        """
        patch, hop = self.config.patch_frames, self.config.patch_hop_frames
        last = (lengths - patch)[:, None]  # where the last patch starts
        intervals = torch.maximum((2 * last + hop) // (2 * hop), (last > 0).long())  # last / hop, rounded
        most = max((2 * (longest - patch) + hop) // (2 * hop), int(longest > patch))
        steps = torch.arange(most + 1, device=lengths.device)
        step_mask = steps <= intervals
        return torch.where(step_mask, steps * last // intervals.clamp(min=1), 0), step_mask

    def _encode(self, patches: torch.Tensor) -> torch.Tensor:
        """(patches, 1, patch_frames, mels) -> (patches, hidden)"""
        if patches.device.type != "cpu" or torch.compiler.is_compiling() or self._is_watched(patches):
            return self._encode_piece(patches)
        if len(patches) == 1:
            # oneDNN convolves a batch of one by another path, with other last digits; two or more agree to the bit,
            # and so a clip has the same embedding alone and in any batch. They are copies, for a view that repeats one
            # takes another path too where there is no AVX-512.
            return self._encode_piece(patches.repeat(2, 1, 1, 1))[:1]
        pieces = patches.tensor_split(math.ceil(len(patches) / CPU_PATCHES) or 1)
        return torch.cat([self._encode_piece(piece) for piece in pieces])

    def _encode_piece(self, patches: torch.Tensor) -> torch.Tensor:
        # channels last: 1.3 to 1.6 times as fast. The layers keep it; that the one channel comes last must be in its
        # strides, where it makes no difference to the values.
        hidden = conv_relu(self.stem, patches[:, 0, :, :, None].permute(0, 3, 1, 2))
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.mean(dim=(2, 3))
