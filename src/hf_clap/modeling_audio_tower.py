"""What the audio towers share."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from .derived import is_any_watched
from .freed_memory import keep_freed_memory
from .linear import nothing_rewrites

# Clips that go through a tower at a time on a CPU: what lies between its layers then stays in the cache (measured).
CPU_CLIPS = 4


class HfClapAudioTower(PreTrainedModel):
    """Base of the audio towers: `(batch, 1, frames, mels)` in, steps of time and one pooled vector out."""

    base_model_prefix = "audio_model"
    main_input_name = "input_features"
    input_modalities = ["audio"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # a tower without attention is right with any implementation of it
    _channels: tuple[int, ...] = (1,)  # that its input may have

    def _checked(self, input_features: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The features in the tower's precision; a replica of DataParallel has no parameters to ask for it."""
        fits = input_features.ndim == 4 and input_features.shape[1] in self._channels
        if not fits or input_features.shape[3] != self.config.num_mel_bins:
            raise ValueError(
                f"Features of shape {tuple(input_features.shape)} do not fit; pass (batch, 1, frames, "
                f"{self.config.num_mel_bins}), as the feature extractor gives them."
            )
        return input_features.to(dtype)

    def _is_watched(self, input_features: torch.Tensor) -> bool:
        """Whether hooks inside, which expect all clips, look at what would go through in pieces."""
        if not nothing_rewrites(input_features) or len(input_features) == 1:
            return False
        _, *inside = self.modules()
        return is_any_watched(*inside)

    @staticmethod
    def _in_pieces(
        encode: Callable[..., torch.Tensor],
        hidden: torch.Tensor,
        *others: torch.Tensor | None,
        clips: int = CPU_CLIPS,
    ) -> torch.Tensor:
        """`encode` of inputs that have an entry for each clip, on a CPU for so many clips at a time."""
        if not nothing_rewrites(hidden):
            return encode(hidden, *others)
        keep_freed_memory()
        if len(hidden) <= clips:
            return encode(hidden, *others)
        pieces = [None if other is None else other.split(clips) for other in others]
        return torch.cat(
            [
                encode(part, *(None if piece is None else piece[index] for piece in pieces))
                for index, part in enumerate(hidden.split(clips))
            ]
        )
