"""Contrastive loss: a pure function of embeddings."""

import torch
from torch.nn import functional as F


def contrastive_loss(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
) -> torch.Tensor:
    """
    Symmetric softmax loss of CLAP (Elizalde et al. 2022, section 2): the mean of the cross-entropies audio -> text and
    text -> audio, where row i of one side belongs to row i of the other.

    Args:
        audio_embeds: `(pairs, dim)`, L2-normalised.
        text_embeds: `(pairs, dim)`, L2-normalised.
        logit_scale: factor on the cosine similarities (not its logarithm).

    Returns:
        torch.Tensor: scalar; log(pairs) where all embeddings are equal.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap import contrastive_loss

    >>> round(contrastive_loss(torch.eye(4), torch.eye(4), logit_scale=1.0).item(), 4)
    0.7437

    ```
    """
    logits = logit_scale * audio_embeds @ text_embeds.T  # (audio, text)
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
