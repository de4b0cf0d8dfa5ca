"""Contrastive losses: pure functions of embeddings, which know no processes."""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

HASH_BASE = 6364136223846793005  # a multiplier of Knuth's for 64 bits


def contrastive_loss(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float | None = None,
    offset: int = 0,
    *,
    all_audio_embeds: torch.Tensor | None = None,
    all_text_embeds: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """
    Symmetric softmax loss of CLAP (Elizalde et al. 2022, section 2): the mean of the cross-entropies audio -> text and
    text -> audio, where row i of one side belongs to row i of the other.

    Args:
        audio_embeds: `(pairs, dim)`, L2-normalised.
        text_embeds: `(pairs, dim)`, L2-normalised.
        logit_scale: factor on the cosine similarities (not its logarithm).
        logit_bias: changes nothing here, as a constant cancels in a softmax; it is for `sigmoid_loss`.
        offset: where these pairs begin among all pairs.
        all_audio_embeds, all_text_embeds: `(all pairs, dim)`, gathered from all processes, to contrast these pairs
            with; the pairs themselves when absent. The mean of all processes' losses is that of the whole batch.
        groups: `(all pairs,)` integers; pairs of one group, such as those with the same caption, are not contrasted.
        chunk_size: rows whose logits are in memory at a time, which are computed anew in the backward pass; all when
            absent.

    Returns:
        torch.Tensor: scalar; log(all pairs) where all embeddings are equal.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap import contrastive_loss

    >>> round(contrastive_loss(torch.eye(4), torch.eye(4), logit_scale=1.0).item(), 4)
    0.7437

    ```
    """
    _check_pairs(audio_embeds, text_embeds)
    all_text_embeds = text_embeds if all_text_embeds is None else all_text_embeds
    all_audio_embeds = audio_embeds if all_audio_embeds is None else all_audio_embeds

    def cross_entropy(queries: torch.Tensor, keys: torch.Tensor, first: int) -> torch.Tensor:
        logits = logit_scale * queries @ keys.T  # (queries, keys)
        targets = first + torch.arange(len(queries), device=queries.device)
        if groups is not None:
            logits = logits.masked_fill(_twins(groups, targets), -torch.inf)
        return F.cross_entropy(logits, targets, reduction="sum")

    audio_to_text = _in_chunks(cross_entropy, audio_embeds, all_text_embeds, offset, chunk_size)
    text_to_audio = _in_chunks(cross_entropy, text_embeds, all_audio_embeds, offset, chunk_size)
    return (audio_to_text + text_to_audio) / 2


def sigmoid_loss(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float | None = None,
    offset: int = 0,
    *,
    all_audio_embeds: torch.Tensor | None = None,
    all_text_embeds: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """
    Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343, algorithm 1): each clip and text is judged by
    itself, +1 for a pair and -1 otherwise. Arguments as `contrastive_loss`; `all_audio_embeds` is not needed, because
    each clip meets each text once.

    Returns:
        torch.Tensor: scalar; all pairs times log(2) where logits are 0.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap import sigmoid_loss

    >>> round(sigmoid_loss(torch.zeros(4, 2), torch.zeros(4, 2), logit_scale=1.0).item(), 4)
    2.7726

    ```
    """
    _check_pairs(audio_embeds, text_embeds)
    keys = text_embeds if all_text_embeds is None else all_text_embeds

    def judge(queries: torch.Tensor, keys: torch.Tensor, first: int) -> torch.Tensor:
        logits = logit_scale * queries @ keys.T + (0.0 if logit_bias is None else logit_bias)
        targets = first + torch.arange(len(queries), device=queries.device)
        losses = -F.logsigmoid(torch.where(_own(targets, len(keys)), logits, -logits))
        return (losses if groups is None else losses.masked_fill(_twins(groups, targets), 0.0)).sum()

    return _in_chunks(judge, audio_embeds, keys, offset, chunk_size)


def caption_groups(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Captions as `groups` of the losses: equal ones have equal numbers, in whatever batch or process they are.

    Args:
        input_ids: `(texts, tokens)`.
        attention_mask: `(texts, tokens)`, 1 for real tokens, which come first; all of them when absent.

    Returns:
        torch.Tensor: `(texts,)` int64, a polynomial hash of the tokens modulo 2^64.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap.losses import caption_groups

    >>> groups = caption_groups(torch.tensor([[5, 7], [7, 5], [5, 7]]))
    >>> (groups[:, None] == groups).tolist()
    [[True, False, True], [False, True, False], [True, False, True]]

    ```
    """
    powers, power = [], 1
    for _ in range(input_ids.shape[1]):
        power = power * HASH_BASE % 2**64
        powers.append(power - 2**64 if power >= 2**63 else power)  # as a signed integer
    tokens = input_ids + 1  # so that a token 0 is not as if it were none
    if attention_mask is not None:
        tokens = tokens * attention_mask.to(tokens.dtype)
    return (tokens.long() * torch.tensor(powers, device=tokens.device)).sum(dim=1)


def _check_pairs(audio_embeds: torch.Tensor, text_embeds: torch.Tensor) -> None:
    if len(audio_embeds) != len(text_embeds):
        raise ValueError(f"{len(audio_embeds)} clips and {len(text_embeds)} texts are not pairs; pass as many.")


def _twins(groups: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(queries, keys): true where a key is of the query's group and not its own."""
    return (groups[targets][:, None] == groups) & ~_own(targets, len(groups))


def _own(targets: torch.Tensor, keys: int) -> torch.Tensor:
    """(queries, keys): true where a key is the query's own."""
    return targets[:, None] == torch.arange(keys, device=targets.device)


def _in_chunks(
    loss: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    queries: torch.Tensor,
    keys: torch.Tensor,
    offset: int,
    chunk_size: int | None,
) -> torch.Tensor:
    """The mean over queries of a loss that sums over them; a chunk's logits are made anew for its gradient."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} is not possible; it must be at least 1.")
    if not 0 <= offset <= len(keys) - len(queries):
        raise ValueError(
            f"{len(queries)} pairs from {offset} on are not among {len(keys)}; pass the place of these pairs among "
            "all as offset."
        )
    if chunk_size is None:
        return loss(queries, keys, offset) / len(queries)
    total = queries.new_zeros(())
    for first in range(0, len(queries), chunk_size):
        chunk = queries[first : first + chunk_size]
        total = total + checkpoint(loss, chunk, keys, offset + first, use_reentrant=False)
    return total / len(queries)


LOSSES = {"softmax": contrastive_loss, "sigmoid": sigmoid_loss}
