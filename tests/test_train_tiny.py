"""How the bundled checkpoint is trained: the parts of `examples/train_tiny.py` that can go wrong."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
AUDIOSET_CLASSES = 521


@pytest.fixture
def train_tiny(monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("train_tiny")


def voice(pitch, seconds=1.0, rate=16000):
    """A buzz with the overtones of a voice, of which the second is the strongest."""
    time = np.arange(int(seconds * rate)) / rate
    return sum(
        level * np.sin(2 * math.pi * pitch * number * time) for number, level in enumerate((0.3, 0.5, 0.2, 0.1), 1)
    ).astype(np.float32)


@pytest.mark.parametrize("pitch", [75.0, 110.0, 147.0, 210.0, 320.0])
def test_pitch_of_a_voice(train_tiny, pitch):
    noise = np.random.default_rng(0).normal(0, 0.02, 16000)
    assert train_tiny.voice_pitch(voice(pitch) + noise, 16000) == pytest.approx(pitch, rel=0.02)


def test_what_has_no_pitch(train_tiny):
    assert train_tiny.voice_pitch(np.random.default_rng(0).normal(size=16000), 16000) is None
    assert train_tiny.voice_pitch(np.zeros(16000, np.float32), 16000) is None
    assert train_tiny.voice_pitch(voice(100, seconds=0.05), 16000) is None


def test_the_bundled_checkpoint_holds_the_thesaurus(train_tiny, tiny_model):
    phrases, values = train_tiny.read_thesaurus(train_tiny.THESAURUS, tiny_model.config.concept_labels)
    stored = tiny_model.text_projection.values.detach()
    assert torch.equal(stored[:AUDIOSET_CLASSES], torch.eye(AUDIOSET_CLASSES, 553))
    assert torch.equal(stored[AUDIOSET_CLASSES:], values.half().float())
    assert len(stored) == tiny_model.config.num_prototypes == AUDIOSET_CLASSES + len(phrases)
    assert values.norm(dim=-1).numpy() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a dog: Dog + Barking", "line 1: there is no concept 'Barking'"),
        ("# comment\n\na dog: Dog\na cat; a dog: Cat*.5", "line 4: 'a dog' is there twice"),
    ],
)
def test_a_wrong_thesaurus_is_refused(train_tiny, tmp_path, lines, message):
    (tmp_path / "thesaurus.txt").write_text(lines)
    with pytest.raises(SystemExit, match=message):
        train_tiny.read_thesaurus(tmp_path / "thesaurus.txt", ["Dog", "Cat"])


def test_a_thesaurus_is_read(train_tiny, tmp_path):
    (tmp_path / "thesaurus.txt").write_text("a dog; puppy: Dog + Bark, yap*.75\n")
    phrases, values = train_tiny.read_thesaurus(tmp_path / "thesaurus.txt", ["Bark, yap", "Dog"])
    assert phrases == ["a dog", "puppy"]
    assert torch.allclose(values, torch.tensor([[0.6, 0.8], [0.6, 0.8]]))


def test_concepts_are_learned_from_clips(train_tiny):
    """Steps that point one way where there is kitchen work of one kind, in two of four steps."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for number in range(40):
        steps = 0.1 * torch.randn(4, 8, generator=generator)
        label, source = [("blender", "kitchen20"), ("juicer", "kitchen20"), ("rain", "nature")][number % 3]
        if source == "kitchen20":
            steps[:2, number % 3] += 1
        clips.append(train_tiny.HeardClip(label, source, str(number), None, [steps[:1], steps[1:]]))
    names, targets, counts = train_tiny.new_concepts(clips)
    assert names[:4] == [*train_tiny.VOICES, "Blender (kitchen)", "Juicer (kitchen)"]
    # both kinds of kitchen work: half for the clips with it, half for those without, and half more for the other kind
    assert counts[:, 2:4].sum(dim=0).tolist() == pytest.approx([1.5, 1.5])
    assert counts[targets].reshape(-1).tolist() == pytest.approx([0.5 / 14] * 14 + [0.5 / 13] * 13, abs=4e-3)
    weight, bias, log_prior = train_tiny.learn_concepts(clips, targets, counts)
    scores = torch.stack([torch.cat(clip.windows) @ weight.T + bias for clip in clips]).sigmoid()[:, :, 2:4]
    pooled = (scores.amax(dim=1) * scores.mean(dim=1)).sqrt()
    in_kitchen = targets[:, 2:4].any(dim=1)
    assert torch.equal(pooled[in_kitchen].argmax(dim=1), targets[in_kitchen][:, 2:4].int().argmax(dim=1))
    assert pooled[targets[:, 2:4]].min() > 2 * pooled[~targets[:, 2:4]].max()
    assert log_prior.exp()[2:4].tolist() == pytest.approx(scores.mean(dim=(0, 1)).tolist(), abs=0.01)


def test_pitch_tells_voices_apart(train_tiny):
    def clip(pitch):
        return train_tiny.HeardClip("a word", "klettres", "1", pitch, [torch.zeros(1, 8)])

    _, targets, counts = train_tiny.new_concepts([clip(110.0), clip(160.0), clip(220.0), clip(None)])
    assert targets[:, :2].tolist() == [[True, False], [False, False], [False, True], [False, False]]
    assert (counts[:, :2] > 0).tolist() == [[True, True], [False, False], [True, True], [False, False]]
