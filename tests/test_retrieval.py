"""Recall of clips and captions."""

import numpy as np
import pytest
import torch

from hf_clap import retrieval
from hf_clap.retrieval import retrieval_metrics


def precision(relevant):
    """Average precision of the first ten: `relevant` says of each, in order, whether it belongs to the query."""
    found = [sum(relevant[: rank + 1]) / (rank + 1) for rank in range(min(10, len(relevant))) if relevant[rank]]
    return sum(found) / min(10, sum(relevant))


def by_hand(audio, text, groups):
    """The same in plain Python, one query at a time."""
    captions = list(dict.fromkeys(groups))
    text_of = {caption: text[groups.index(caption)] for caption in captions}
    recalls = {}
    for k in (1, 5, 10):
        hits = 0
        for clip, own in zip(audio, groups, strict=True):
            ranked = sorted(captions, key=lambda caption: -float(clip @ text_of[caption]))
            hits += own in ranked[:k]
        recalls[f"audio_to_text_r@{k}"] = hits / len(audio)
        recalls["audio_to_text_map@10"] = np.mean(
            [
                precision([caption == own for caption in sorted(captions, key=lambda c: -float(clip @ text_of[c]))])
                for clip, own in zip(audio, groups, strict=True)
            ]
        )
        recalls["text_to_audio_map@10"] = np.mean(
            [
                precision(
                    [groups[i] == c for i in sorted(range(len(audio)), key=lambda i: -float(audio[i] @ text_of[c]))]
                )
                for c in captions
            ]
        )
        hits = 0
        for caption in captions:
            ranked = sorted(range(len(audio)), key=lambda clip: -float(audio[clip] @ text_of[caption]))
            hits += caption in [groups[clip] for clip in ranked[:k]]
        recalls[f"text_to_audio_r@{k}"] = hits / len(captions)
    return recalls


def test_metrics_are_those_by_hand(monkeypatch):
    monkeypatch.setattr(retrieval, "QUERIES", 7)  # so that there are several pieces
    random = np.random.default_rng(0)
    groups = [int(group) for group in random.integers(0, 25, 40) - 10**12]
    texts = {group: random.normal(size=6) for group in groups}
    text = np.stack([texts[group] for group in groups])
    audio = text + 1.5 * random.normal(size=text.shape)
    metrics = retrieval_metrics(torch.tensor(audio), torch.tensor(text), torch.tensor(groups))
    assert metrics == pytest.approx(by_hand(audio, text, groups), abs=1e-12)
    assert 0 < metrics["audio_to_text_r@1"] < metrics["audio_to_text_r@10"] < 1


def test_perfect_and_shifted_models():
    embeds = torch.eye(30)
    assert set(retrieval_metrics(embeds, embeds).values()) == {1.0}
    shifted = retrieval_metrics(embeds, embeds.roll(1, dims=0))
    assert shifted["audio_to_text_map@10"] < 0.2
    assert shifted["audio_to_text_r@1"] == shifted["text_to_audio_r@1"] == 0.0


def test_fewer_candidates_than_the_cutoff():
    assert set(retrieval_metrics(torch.eye(3), torch.eye(3)).values()) == {1.0}


def test_a_clip_with_several_captions_is_one_candidate():
    """Two clips with three captions each, of which one is both's; the second clip sounds like the first one."""
    clips = torch.tensor([0, 0, 0, 1, 1, 1])
    captions = torch.tensor([0, 1, 2, 2, 3, 4])
    audio = torch.tensor([[1.0, 0.0], [0.9, 0.1]])[clips]
    text = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.8, 0.1], [0.7, 0.0], [0.0, 0.6]])[captions]
    metrics = retrieval_metrics(audio, text, captions, clips)
    # captions 0 and 1 find clip 0, 2 finds either, 3 finds clip 0 first, 4 finds clip 1
    assert metrics["text_to_audio_r@1"] == pytest.approx(4 / 5)
    assert metrics["text_to_audio_map@10"] == pytest.approx((1 + 1 + 1 + 1 / 2 + 1) / 5)
    # clip 0 ranks 0 1 2 3 4, clip 1 ranks 0 1 2 3 4: its own are 3rd, 4th and 5th
    assert metrics["audio_to_text_r@1"] == pytest.approx(1 / 2)
    assert metrics["audio_to_text_map@10"] == pytest.approx((1 + (1 / 3 + 2 / 4 + 3 / 5) / 3) / 2)
