"""Recall of clips and captions."""

import numpy as np
import pytest
import torch

from hf_clap import retrieval
from hf_clap.retrieval import retrieval_metrics


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
    assert shifted["audio_to_text_r@1"] == shifted["text_to_audio_r@1"] == 0.0


def test_fewer_candidates_than_the_cutoff():
    assert set(retrieval_metrics(torch.eye(3), torch.eye(3)).values()) == {1.0}
