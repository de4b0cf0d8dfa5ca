"""Feature extractor and tokenizer in one object."""

from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin


class HfClapProcessor(ProcessorMixin):
    """
    Prepares text and audio for `HfClapModel`.

    Args:
        feature_extractor (`HfClapFeatureExtractor`): for `audio`.
        tokenizer (`PreTrainedTokenizerBase`): for `text`.

    Raises:
        ValueError: for a tokenizer with special tokens alone, to which all texts are the same.

    Example:

    ```python
    >>> import numpy as np
    >>> import hf_clap

    >>> processor = hf_clap.HfClapProcessor.from_pretrained(hf_clap.TINY)
    >>> inputs = processor(text=["a dog", "rain"], audio=np.zeros(8000), sampling_rate=16000)
    >>> sorted(inputs)
    ['attention_mask', 'input_features', 'input_features_mask', 'input_ids', 'token_type_ids', 'windows_per_clip']

    ```
    """

    def __init__(self, feature_extractor: Any, tokenizer: Any):
        super().__init__(feature_extractor, tokenizer)
        if tokenizer is not None and len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("The tokenizer has no vocabulary; add its tokenizer.json to the folder that it is from.")

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        crop: str | None = None,
        generator: torch.Generator | None = None,
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """
        Tokenize text, extract features of audio, or both. Text options never reach the feature extractor.

        Args:
            text: one text or a list of texts.
            audio: one clip or a list of clips, as `HfClapFeatureExtractor` takes them.
            sampling_rate: rate of the clips, in Hz.
            crop: overrides the feature extractor's `crop`.
            generator: draws the position of `crop="random"`.
            padding: of the text, as in transformers' tokenizers.
            truncation: whether longer text is cut to `max_length` tokens.
            max_length: in tokens; the tokenizer's own limit when absent.
            return_tensors: `pt` or `np`.

        Returns:
            BatchFeature: the tokenizer's fields for `text`, the feature extractor's for `audio`.

        Raises:
            ValueError: if both are missing or there are no texts, or what the feature extractor raises.
        """
        if text is None and audio is None:
            raise ValueError("There is nothing to process; pass text=…, audio=… or both.")
        fields: dict[str, Any] = {}
        if text is not None:
            if not isinstance(text, str) and len(text) == 0:
                raise ValueError("The list of texts is empty; pass at least one text.")
            fields |= self.tokenizer(
                text, padding=padding, truncation=truncation, max_length=max_length, return_tensors=return_tensors
            )
        if audio is not None:
            fields |= self.feature_extractor(
                audio, sampling_rate=sampling_rate, crop=crop, generator=generator, return_tensors=return_tensors
            )
        return BatchFeature(fields)
