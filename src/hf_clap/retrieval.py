"""How well clips find their captions and captions their clips."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

CUTOFFS = (1, 5, 10)
QUERIES = 1024  # whose similarities are in memory at a time


class Ranking(NamedTuple):
    """What some queries find."""

    first: torch.Tensor  # (queries,): the row that each query was first in
    hits: torch.Tensor  # (queries, 10) booleans: whether what comes 1st, 2nd … 10th belongs to the query
    relevant: torch.Tensor  # (queries,): how much there is that belongs to it

    def metrics(self) -> dict[str, torch.Tensor]:
        """
        `r@1`, `r@5`, `r@10`, whether something that belongs to the query is among the first k, and `map@10`, the
        average precision of the first ten. Each is `(queries,)` float64; the metric is the mean.
        """
        hits = self.hits.double()
        ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
        precision = (hits * hits.cumsum(dim=1) / ranks).sum(dim=1)
        return {f"r@{k}": hits[:, :k].amax(dim=1) for k in CUTOFFS} | {
            f"map@{max(CUTOFFS)}": precision / self.relevant.clamp(max=max(CUTOFFS))
        }


def rankings(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    captions: torch.Tensor | None = None,
    clips: torch.Tensor | None = None,
) -> dict[str, Ranking]:
    """
    What clips find among captions, and captions among clips.

    Args:
        audio_embeds, text_embeds: `(pairs, dim)`, L2-normalised; row i of one belongs to row i of the other.
        captions: `(pairs,)` integers, equal for equal captions (`caption_groups`): a caption of several clips is one
            candidate, and one query to which each of these clips belongs. All are different when absent.
        clips: `(pairs,)` integers, equal for rows of the same clip, which has several captions then. All are different
            when absent.

    Returns:
        dict: `audio_to_text` and `text_to_audio`.
    """
    every = torch.arange(len(audio_embeds), device=audio_embeds.device)
    first_clip, clip = _first_of(every if clips is None else clips)
    first_caption, caption = _first_of(every if captions is None else captions)
    audio_embeds, text_embeds = audio_embeds[first_clip], text_embeds[first_caption]
    return {
        "audio_to_text": _rank(audio_embeds, text_embeds, first_clip, clip, caption),
        "text_to_audio": _rank(text_embeds, audio_embeds, first_caption, caption, clip),
    }


def retrieval_metrics(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    captions: torch.Tensor | None = None,
    clips: torch.Tensor | None = None,
) -> dict[str, float]:
    """
    Recall at 1, 5 and 10 (the share of queries with a hit among the first k) and mAP at 10, both ways.

    Args:
        audio_embeds, text_embeds, captions, clips: as `rankings` takes them.

    Returns:
        dict: `audio_to_text_r@k` and `text_to_audio_r@k` for k of 1, 5 and 10, `audio_to_text_map@10` and
        `text_to_audio_map@10`, between 0 and 1.

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
    return mean_metrics(rankings(audio_embeds, text_embeds, captions, clips))


def mean_metrics(found: Mapping[str, Ranking]) -> dict[str, float]:
    """The same of what `rankings` has found."""
    return {
        f"{direction}_{name}": values.mean().item()
        for direction, ranking in found.items()
        for name, values in ranking.metrics().items()
    }


def _first_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The row where each id comes first, `(different ids,)`, and the number of each row's id, `(rows,)`."""
    _, number = torch.unique(ids, return_inverse=True)
    rows = torch.arange(len(ids), device=ids.device)
    first = torch.full((int(number.max()) + 1,), len(ids), device=ids.device)
    return first.scatter_reduce(0, number, rows, "amin"), number


def _rank(
    queries: torch.Tensor, keys: torch.Tensor, first: torch.Tensor, query_of: torch.Tensor, key_of: torch.Tensor
) -> Ranking:
    """Row i of `query_of` and `key_of`, both `(pairs,)`, names a query and a key that belong together."""
    belong = torch.unique(query_of * len(keys) + key_of)
    hits = torch.zeros(len(queries), max(CUTOFFS), dtype=torch.bool, device=queries.device)
    for start in range(0, len(queries), QUERIES):
        ranked = (queries[start : start + QUERIES] @ keys.T).topk(min(max(CUTOFFS), len(keys))).indices
        row = torch.arange(start, start + len(ranked), device=queries.device)[:, None]
        hits[start : start + QUERIES, : ranked.shape[1]] = torch.isin(row * len(keys) + ranked, belong)
    return Ranking(first, hits, torch.bincount(belong // len(keys), minlength=len(queries)))
