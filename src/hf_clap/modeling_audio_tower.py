"""What the audio towers share."""

import torch
from transformers import PreTrainedModel


class HfClapAudioTower(PreTrainedModel):
    """Base of the audio towers: `(batch, 1, frames, mels)` in, steps of time and one pooled vector out."""

    base_model_prefix = "audio_model"
    main_input_name = "input_features"
    input_modalities = ["audio"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # a tower without attention is right with any implementation of it

    def _checked(self, input_features: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The features in the tower's precision; a replica of DataParallel has no parameters to ask for it."""
        if input_features.ndim != 4 or input_features.shape[-1] != self.config.num_mel_bins:
            raise ValueError(
                f"Features of shape {tuple(input_features.shape)} do not fit; pass (batch, 1, frames, "
                f"{self.config.num_mel_bins}), as the feature extractor gives them."
            )
        return input_features.to(dtype)
