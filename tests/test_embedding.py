"""Embedding clips in parallel: the same numbers as one by one, whatever the workers, and errors in their place."""

import numpy as np
import pytest
import soundfile
import torch

import hf_clap
from conftest import noise, tone
from hf_clap import embedding
from hf_clap.embedding import TEXT_BATCH_SIZE, Embedder, embed_texts


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sounds of half a second to 25 s, at several rates, one of them stereo."""
    folder = tmp_path_factory.mktemp("sounds")
    waveforms = {
        "short": (tone(0.5, 16000), 16000),
        "five": (noise(5, 44100, 1), 44100),
        "long": (noise(25, 16000, 2), 16000),
        "stereo": (np.stack([tone(3, 48000), noise(3, 48000, 3)], axis=1), 48000),
        "other": (tone(2, 8000, 300.0), 8000),
    }
    for name, (waveform, rate) in waveforms.items():
        soundfile.write(folder / f"{name}.wav", waveform, rate)
    return [str(folder / f"{name}.wav") for name in waveforms]


def test_equal_to_the_model_clip_by_clip(tiny_model, processor, files):
    [embeddings] = Embedder(tiny_model, processor).clips([files])
    for file, (pooled, embed) in zip(files, embeddings, strict=True):
        waveform = hf_clap.load_audio(file, 16000)
        features = processor.feature_extractor(waveform, sampling_rate=16000, crop="windows")
        with torch.inference_mode():
            expected = tiny_model.encode_audio(**features)[0].numpy()
            windows = tiny_model.audio_model(features["input_features"], features["input_features_mask"]).pooler_output
        assert np.abs(embed - expected).max() < 1e-6
        assert np.abs(pooled - windows.mean(dim=0).numpy()).max() < 1e-5
        assert np.linalg.norm(embed) == pytest.approx(1.0, abs=1e-6)


def test_the_number_of_workers_does_not_change_a_bit(tiny_model, processor, files):
    groups = [files[:2], files[2:], files[1:4]]
    runs = [list(Embedder(tiny_model, processor, workers=workers).clips(groups)) for workers in (1, 2, 5)]
    for run in runs[1:]:
        for group, expected in zip(run, runs[0], strict=True):
            for clip, same in zip(group, expected, strict=True):
                assert np.array_equal(clip.pooled, same.pooled)
                assert np.array_equal(clip.embed, same.embed)


def test_windows_of_a_long_clip_go_through_in_batches(tiny_model, processor, files):
    """25 s are three windows; with a batch size of 2 they are not all in one batch."""
    [[whole]] = Embedder(tiny_model, processor, batch_size=8).clips([[files[2]]])
    [[parts]] = Embedder(tiny_model, processor, batch_size=2).clips([[files[2]]])
    assert np.abs(whole.embed - parts.embed).max() < 1e-6


def test_an_error_stays_with_its_clip(tiny_model, processor, files, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"not audio at all")

    def missing():
        raise FileNotFoundError("it is gone")

    [[first, second, third, fourth]] = Embedder(tiny_model, processor).clips(
        [[files[0], str(broken), missing, files[1]]]
    )
    [[alone], [other]] = Embedder(tiny_model, processor).clips([[files[0]], [files[1]]])
    assert str(second) == "broken.wav is not an audio file that can be read; convert it to WAV or FLAC."
    assert str(third) == "it is gone"
    for clip, expected in ((first, alone), (fourth, other)):
        assert np.abs(clip.embed - expected.embed).max() < 1e-6


def test_what_is_no_fault_of_a_clip_is_raised(tiny_model, processor, files):
    def wrong():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        list(Embedder(tiny_model, processor).clips([[files[0]], [wrong], [files[1]]]))
    assert torch.get_num_threads() == 2


def test_threads_of_torch_stay_as_they_are(tiny_model, processor, files):
    clips = Embedder(tiny_model, processor).clips([[file] for file in files])
    next(clips)
    clips.close()  # half-way
    assert torch.get_num_threads() == 2
    with embedding.ThreadPoolExecutor(1) as pool:  # and threads that start later have as many
        assert pool.submit(torch.get_num_threads).result() == 2


def test_groups_are_read_as_they_are_needed(tiny_model, processor, files):
    """A corpus of any size takes bounded memory."""
    asked = 0

    def groups():
        nonlocal asked
        for _ in range(40):
            asked += 1
            yield [files[0]]

    clips = Embedder(tiny_model, processor, workers=2).clips(groups())
    next(clips)
    assert asked <= 6
    assert sum(1 for _ in clips) == 39


def test_texts_are_in_order_whatever_their_length(tiny_model, processor):
    texts = [("rain " * (1 + 7 * number % 23)).strip() for number in range(130)]
    embeds = embed_texts(tiny_model, processor, texts)
    for index in (0, 64, 77, 129):
        assert torch.allclose(embeds[index], embed_texts(tiny_model, processor, [texts[index]])[0], atol=1e-6)


def test_texts_are_heard_with_those_of_as_many_tokens(tiny_model, processor, monkeypatch):
    """Letters say little of tokens: "a a a a" has more of them than "motorcycle"."""
    texts = ["a a a a a a", "motorcycle"] * TEXT_BATCH_SIZE
    shapes, encode_text = [], tiny_model.encode_text

    def spy(input_ids, **inputs):
        shapes.append(tuple(input_ids.shape))
        return encode_text(input_ids, **inputs)

    monkeypatch.setattr(tiny_model, "encode_text", spy)
    embeds = embed_texts(tiny_model, processor, texts)
    assert shapes == [(TEXT_BATCH_SIZE, 3), (TEXT_BATCH_SIZE, 8)]  # with [CLS] and [SEP]
    for kind in range(2):
        assert torch.equal(embeds[kind::2], embeds[kind].expand(TEXT_BATCH_SIZE, -1))


def test_fingerprint_is_of_what_decides(small_checkpoint, tmp_path):
    def fingerprints(change=lambda model: None, batch_size=8):
        tagger = hf_clap.pipeline(small_checkpoint, device="cpu")
        change(tagger.model)
        embedder = Embedder(tagger.model, tagger.processor, batch_size)
        return embedder.fingerprint, embedder.weights_sha256

    audio, everything = fingerprints()
    assert fingerprints() == (audio, everything)
    assert len(everything) == 64
    tagger = hf_clap.pipeline(small_checkpoint, device="cpu")
    tagger.model.save_pretrained(tmp_path)  # elsewhere
    tagger.processor.save_pretrained(tmp_path)
    moved = hf_clap.pipeline(tmp_path, device="cpu")
    assert Embedder(moved.model, moved.processor).fingerprint == audio

    def of_audio(model):
        next(model.audio_model.parameters()).data[0] += 1e-3

    def of_text(model):
        next(model.text_model.parameters()).data[0] += 1e-3

    assert fingerprints(of_audio)[0] != audio
    assert fingerprints(of_text)[0] == audio
    assert fingerprints(of_text)[1] != everything
    assert fingerprints(batch_size=4)[0] != audio  # the last digits may differ


def test_fingerprints_follow_the_model(small_checkpoint):
    tagger = hf_clap.pipeline(small_checkpoint, device="cpu")
    names = ("fingerprint", "weights_sha256", "space_sha256")
    before = [getattr(tagger.embedder, name) for name in names]
    weights = {name: tensor.clone() for name, tensor in tagger.model.state_dict().items()}
    with torch.no_grad():
        next(tagger.model.audio_model.parameters()).mul_(1.1)
    changed = [getattr(tagger.embedder, name) for name in names]
    fresh = Embedder(tagger.model, tagger.processor)
    assert changed == [getattr(fresh, name) for name in names]
    assert not set(changed) & set(before)
    tagger.model.load_state_dict(weights)
    assert [getattr(tagger.embedder, name) for name in names] == before


def test_name_of_the_model(tiny_model, processor, monkeypatch):
    assert Embedder(tiny_model, processor).name == "tiny"
    monkeypatch.chdir(hf_clap.TINY)
    monkeypatch.setattr(tiny_model.config, "_name_or_path", ".")
    assert Embedder(tiny_model, processor).name == "tiny"
    assert Embedder(tiny_model, processor).revision is None
