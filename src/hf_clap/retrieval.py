"""How well clips find their captions and captions their clips."""

import torch

CUTOFFS = (1, 5, 10)
QUERIES = 1024  # whose similarities are in memory at a time


def retrieval_metrics(
    audio_embeds: torch.Tensor, text_embeds: torch.Tensor, groups: torch.Tensor | None = None
) -> dict[str, float]:
    """
    Recall at 1, 5 and 10, both ways: the share of queries with a hit among the first k. A caption that several clips
    have is one candidate for clips, and one query for which each of these clips is a hit.

    Args:
        audio_embeds, text_embeds: `(pairs, dim)`, L2-normalised; row i of one belongs to row i of the other.
        groups: `(pairs,)` integers, equal for equal captions (`caption_groups`); all are different when absent.

    Returns:
        dict: `audio_to_text_r@k` and `text_to_audio_r@k` for k of 1, 5 and 10, between 0 and 1.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap.retrieval import retrieval_metrics

    >>> embeds = torch.eye(20)
    >>> metrics = retrieval_metrics(embeds, embeds.roll(1, dims=0))
    >>> metrics["audio_to_text_r@1"]
    0.0

    ```
    """
    pairs = len(audio_embeds)
    if groups is None:
        groups = torch.arange(pairs, device=audio_embeds.device)
    _, caption = torch.unique(groups, return_inverse=True)  # (pairs,): the number of each pair's caption
    captions = int(caption.max()) + 1
    first = torch.full((captions,), pairs, device=caption.device)
    first = first.scatter_reduce(0, caption, torch.arange(pairs, device=caption.device), "amin")
    text_embeds = text_embeds[first]  # (captions, dim)
    audio_to_text = _recalls(audio_embeds, text_embeds, caption, torch.arange(captions, device=caption.device))
    text_to_audio = _recalls(text_embeds, audio_embeds, torch.arange(captions, device=caption.device), caption)
    return {f"audio_to_text_r@{k}": recall for k, recall in audio_to_text.items()} | {
        f"text_to_audio_r@{k}": recall for k, recall in text_to_audio.items()
    }


def _recalls(
    queries: torch.Tensor, keys: torch.Tensor, query_ids: torch.Tensor, key_ids: torch.Tensor
) -> dict[int, float]:
    """Share of queries with a key of their id among the first k, for each cutoff k."""
    hits = dict.fromkeys(CUTOFFS, 0)
    for some, ids in zip(queries.split(QUERIES), query_ids.split(QUERIES), strict=True):
        ranked = (some @ keys.T).topk(min(max(CUTOFFS), len(keys))).indices  # (queries, 10)
        found = key_ids[ranked] == ids[:, None]
        for k in CUTOFFS:
            hits[k] += int(found[:, :k].any(dim=1).sum())
    return {k: count / len(queries) for k, count in hits.items()}
