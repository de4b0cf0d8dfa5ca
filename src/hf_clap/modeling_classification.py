"""Audio -> classes of one's own: CLAP's audio tower under a linear classifier."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .configuration_hf_clap import HfClapConfig
from .modeling_hf_clap import AUDIO_MODELS, HfClapPreTrainedModel, mean_of_windows


class HfClapForAudioClassification(HfClapPreTrainedModel):
    """
    The supervised use of CLAP (Elizalde et al. 2022, arXiv 2206.04769, section 4.3): the audio tower, the mean over a
    clip's windows and a linear classifier, for transformers' `Trainer` and its `audio-classification` pipeline.
    Loads from any `HfClapModel` checkpoint; then only the classifier is new.

    Example:

    ```python
    >>> import numpy as np
    >>> import torch
    >>> import hf_clap

    >>> extractor = hf_clap.HfClapFeatureExtractor.from_pretrained(hf_clap.TINY)
    >>> model = hf_clap.HfClapForAudioClassification.from_pretrained(hf_clap.TINY, num_labels=3)
    >>> clips = [np.zeros(16000, dtype=np.float32), np.zeros(48000, dtype=np.float32)]
    >>> output = model(**extractor(clips, sampling_rate=16000), labels=torch.tensor([0, 2]))
    >>> output.logits.shape, output.loss.shape
    (torch.Size([2, 3]), torch.Size([]))

    ```
    """

    input_modalities = ["audio"]
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^text_projection\.",
        r"^audio_projection\.",
        r"^logit_(scale|bias)",
    ]

    def __init__(self, config: HfClapConfig):
        super().__init__(config)
        self.audio_model = AUDIO_MODELS[config.audio_config.model_type](config.audio_config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.audio_config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        windows_per_clip: torch.Tensor | None = None,
        is_longer: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """
        Classify clips.

        Args:
            input_features, input_features_mask, windows_per_clip, is_longer: as `HfClapModel.get_audio_features`.
            labels: `(clips,)` integers, where -100 does not count, for one label per clip; `(clips, num_labels)`
                floats from 0 to 1 for any number of them.

        Returns:
            SequenceClassifierOutput: `logits` `(clips, num_labels)`; with `labels` also `loss`, the mean
            cross-entropy or the mean binary cross-entropy, as `config.problem_type` says. Where that is `None`, the
            first labels set it by their type, as in transformers' own classifiers, and it is saved with the model.

        Raises:
            ValueError: for labels that do not fit `config.problem_type` and `config.num_labels`, or for regression.
        """
        # no **kwargs: Trainer would take them for a loss that divides by the items of all accumulated batches
        output = self._hear(input_features, input_features_mask, is_longer)
        pooled = output.pooler_output  # (windows, hidden)
        if windows_per_clip is not None:
            pooled = mean_of_windows(pooled, windows_per_clip)  # (clips, hidden)
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self._loss(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        problem = self.config.problem_type
        # num_labels=1 without a problem_type is regression in all of transformers, and its pipeline reads it so
        if problem == "regression" or (problem is None and logits.shape[1] == 1):
            raise ValueError(
                "There is no regression here; give at least two labels, or set "
                'problem_type="multi_label_classification".'
            )
        multi_label = labels.is_floating_point() if problem is None else problem == "multi_label_classification"
        expected = logits.shape if multi_label else logits.shape[:1]
        if labels.shape != expected or (labels.is_floating_point() and not multi_label):
            raise ValueError(
                f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit problem_type={problem!r}; "
                f"pass ({len(logits)},) integers for one label per clip, or ({len(logits)}, {logits.shape[1]}) "
                "floats for any number of them."
            )
        if labels.is_cpu and not torch.compiler.is_compiling():  # elsewhere, asking would wait for the device
            _check_range(labels, logits.shape[1], multi_label)
        if problem is None:
            self.config.problem_type = "multi_label_classification" if multi_label else "single_label_classification"
        if multi_label:
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        return F.cross_entropy(logits, labels.long())


def _check_range(labels: torch.Tensor, num_labels: int, multi_label: bool) -> None:
    if multi_label:
        wanted = "floats from 0 to 1"
        fits = (labels >= 0) & (labels <= 1)
    else:
        wanted = f"classes from 0 to {num_labels - 1}"
        fits = ((labels >= 0) & (labels < num_labels)) | (labels == -100)
    if not fits.all():
        raise ValueError(f"Labels such as {labels[~fits][0].item()} do not fit; pass {wanted}.")
