"""Pairs -> a batch for the model."""

from collections.abc import Sequence
from typing import Any

from .pair_columns import Pair


class PairCollator:
    """
    Makes a batch of audio-caption pairs; for `PairLoader`, PyTorch's `DataLoader` and transformers' `Trainer`.

    Args:
        processor: the model's `HfClapProcessor`.

    Raises:
        TypeError: for what has no feature extractor.

    Example:

    ```python
    >>> import numpy as np, hf_clap
    >>> from hf_clap import Pair

    >>> collate = hf_clap.PairCollator(hf_clap.HfClapProcessor.from_pretrained(hf_clap.TINY))
    >>> batch = collate([Pair(np.zeros(16000, np.float32), "silence"), Pair(np.ones(16000, np.float32), "a constant")])
    >>> batch["input_features"].shape, batch["return_loss"]
    (torch.Size([2, 1, 998, 64]), True)

    ```
    """

    def __init__(self, processor: Any):
        if not hasattr(processor, "feature_extractor"):
            raise TypeError(f"A {type(processor).__name__} makes no batches; pass the model's HfClapProcessor.")
        self.processor = processor

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """
        Args:
            pairs: waveforms at the feature extractor's rate and their captions.

        Returns:
            dict: what the processor gives, and `return_loss`: Trainer evaluates the loss of a model without labels
            only where the batch asks for it.

        Raises:
            TypeError: for what are not pairs.
        """
        if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise TypeError(f"A {type(pairs[0]).__name__} is not a Pair; read the data with load_pairs.")
        waveforms, captions = zip(*pairs, strict=True)
        extractor = self.processor.feature_extractor
        crop = "center" if extractor.crop == "random" else None  # a stream for training has drawn the place
        batch = self.processor(
            text=list(captions), audio=list(waveforms), sampling_rate=extractor.sampling_rate, crop=crop
        )
        return {**batch, "return_loss": True}
