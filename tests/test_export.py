"""ONNX: the graphs give what the model gives, from the waveform on; what cannot be exported leaves nothing behind."""

import copy
import json
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch

import hf_clap
from conftest import SMALL_TEXT, noise, tone
from hf_clap import export, onnx_model
from hf_clap.cli import main
from hf_clap.onnx_model import AUDIO_GRAPH, TEXT_GRAPH

EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"
TEXTS = ["rain", "a dog that barks at a passing car while the church bells ring", "a siren"]
ATOL = 1e-4

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256}
FULL_WINDOW_MODELS = {
    "cnn14": (
        {"model_type": "hf_clap_cnn14", "channels": (8, 16, 32), "pool_sizes": (2, 2, 2), "hidden_size": 16},
        SMALL_TEXT | {"max_position_embeddings": 256},
        {},
    ),
    "htsat": (
        {
            "model_type": "hf_clap_htsat",
            "patch_embed_dim": 8,
            "depths": (2, 1, 1, 1),
            "num_attention_heads": (1, 1, 2, 2),
        },
        GPT2 | {"bos_token_id": 0, "eos_token_id": 0},
        {"sampling_rate": 48000, "hop_length": 480, "max_length_s": 10.0, "int16_rounding": True},  # as LAION's
    ),
}


@pytest.fixture(scope="module")
def runtime():
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is in the extra `onnx`")


@pytest.fixture(scope="module")
def tiny_folder(runtime, tiny_model, processor, tmp_path_factory):
    return hf_clap.export_onnx(tiny_model, processor, tmp_path_factory.mktemp("onnx") / "tiny")


@pytest.fixture(scope="module")
def tiny_onnx(tiny_folder):
    return hf_clap.HfClapOnnxModel.from_pretrained(tiny_folder)


@pytest.fixture(scope="module", params=list(FULL_WINDOW_MODELS))
def full_window(runtime, request, processor, tmp_path_factory):
    """A small random model with a front end that fills every clip, its processor, and the two exported."""
    audio, text, settings = FULL_WINDOW_MODELS[request.param]
    torch.manual_seed(0)
    config = hf_clap.HfClapConfig(
        audio_config=audio,
        text_config=text | {"vocab_size": len(processor.tokenizer)},
        text_pooling="last" if text["model_type"] == "gpt2" else "cls",
        projection_dim=12,
    )
    tokenizer = copy.deepcopy(processor.tokenizer)
    if text["model_type"] == "gpt2":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    own = hf_clap.HfClapProcessor(hf_clap.HfClapFeatureExtractor(**settings), tokenizer)
    model = hf_clap.HfClapModel(config).eval()
    folder = hf_clap.export_onnx(model, own, tmp_path_factory.mktemp("onnx") / request.param)
    return model, own, hf_clap.HfClapOnnxModel.from_pretrained(folder)


@pytest.fixture
def traced(tiny_folder, monkeypatch):
    """export_onnx of the bundled model without the tracing, which takes seconds: its graphs are there."""

    class Traced:
        def __init__(self, name):
            self.name = name

        def save(self, path):
            shutil.copy(tiny_folder / self.name, path)

    monkeypatch.setattr(export, "_trace_audio", lambda *_: Traced(AUDIO_GRAPH))
    monkeypatch.setattr(export, "_trace_text", lambda *_: Traced(TEXT_GRAPH))


def sounds(samples, rate):
    """Sounds of that many samples as 16-bit files hold them: noise, a tone, a rising one, a click, silence."""
    time = np.arange(samples) / rate
    click = np.zeros(samples)
    click[samples // 3] = 0.9
    made = [
        noise(samples / rate, rate),
        tone(samples / rate, rate),
        0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time),
        click,
        np.zeros(samples),
    ]
    return [torch.from_numpy(np.round(sound * 32767) / 32767).float() for sound in made]


@torch.inference_mode()
def hear(model, processor, waveforms):
    """(waveforms, dim): the embeddings in PyTorch"""
    extractor = processor.feature_extractor
    return torch.cat([model.encode_audio(**extractor(waveform, extractor.sampling_rate)) for waveform in waveforms])


# from the least length, 96 frames, by a sample, a frame and half a patch to the greatest
@pytest.mark.parametrize("samples", [15600, 15601, 15759, 15760, 19440, 23280, 47999, 160000])
def test_the_bundled_model_hears_the_same(tiny_model, processor, tiny_onnx, samples):
    waveforms = sounds(samples, 16000)
    expected = hear(tiny_model, processor, waveforms)
    torch.testing.assert_close(tiny_onnx.encode_audio(waveforms), expected, atol=ATOL, rtol=0)
    one = torch.cat([tiny_onnx.encode_audio([waveform]) for waveform in waveforms])
    torch.testing.assert_close(one, expected, atol=ATOL, rtol=0)


def test_recordings_of_all_lengths_come_back_in_order(tiny_model, processor, tiny_onnx):
    files = sorted(EXAMPLES.glob("*.flac"))
    recordings = [torch.from_numpy(hf_clap.load_audio(file, sampling_rate=16000))[:160000] for file in files]
    short = [recording[1000 : 1000 + 321 * index] for index, recording in enumerate(recordings, start=1)]
    waveforms = [clip for pair in zip(recordings, short, strict=True) for clip in pair] + recordings
    assert len(waveforms) > 2 * onnx_model.BATCH_SIZE
    embeds = tiny_onnx.encode_audio(waveforms)
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds, hear(tiny_model, processor, waveforms), atol=ATOL, rtol=0)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)))


def test_a_tone_at_full_scale_is_as_near_to_float64_as_in_pytorch(tiny_model, processor, tiny_onnx):
    """Bins 100 dB below a pure tone hold what float32 rounds, in PyTorch's transform and in the graph's."""
    loud = torch.from_numpy(2 * tone(2.0, 16000, 3000.0))
    settings = processor.feature_extractor.to_dict() | {"double_precision": True}
    exact = hf_clap.HfClapProcessor(hf_clap.HfClapFeatureExtractor(**settings), processor.tokenizer)
    expected = hear(tiny_model, exact, [loud])
    error = (tiny_onnx.encode_audio([loud]) - expected).abs().max()
    assert error < max(3e-4, (hear(tiny_model, processor, [loud]) - expected).abs().max())


def test_full_window_models_hear_the_same(full_window):
    model, processor, exported = full_window
    extractor = processor.feature_extractor
    longest = extractor.max_samples
    waveforms = sounds(longest, extractor.sampling_rate) + [sound[:30000] for sound in sounds(longest, 48000)[:2]]
    expected = hear(model, processor, waveforms)
    torch.testing.assert_close(exported.encode_audio(waveforms), expected, atol=ATOL, rtol=0)
    torch.testing.assert_close(exported.encode_audio(waveforms[:1]), expected[:1], atol=ATOL, rtol=0)
    assert exported._audio.get_inputs()[0].shape == ["batch", longest]  # what is not filled is refused, not misheard


def test_full_window_models_read_the_same(full_window):
    model, processor, exported = full_window
    for texts in (TEXTS, TEXTS[:1]):
        tokens = processor(text=texts)
        with torch.inference_mode():
            torch.testing.assert_close(exported.encode_text(**tokens), model.encode_text(**tokens), atol=ATOL, rtol=0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("padding", [True, "max_length"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_read_the_same(tiny_model, processor, tiny_onnx, count, padding, side):
    processor = copy.deepcopy(processor)
    processor.tokenizer.padding_side = side
    tokens = processor(text=TEXTS[:count], padding=padding)
    with torch.inference_mode():
        expected = tiny_model.encode_text(**tokens)
    torch.testing.assert_close(tiny_onnx.encode_text(**tokens), expected, atol=ATOL, rtol=0)


def test_tokens_alone_are_all_real(tiny_model, processor, tiny_onnx):
    tokens = processor(text=["a dog"])["input_ids"]
    with torch.inference_mode():
        torch.testing.assert_close(tiny_onnx.encode_text(tokens), tiny_model.encode_text(tokens), atol=ATOL, rtol=0)


def test_logits_are_the_models(tiny_model, processor, tiny_onnx):
    audio_embeds = tiny_onnx.encode_audio(sounds(32000, 16000))
    text_embeds = tiny_onnx.encode_text(**processor(text=TEXTS))
    with torch.inference_mode():
        expected = tiny_model.similarity(audio_embeds, text_embeds)
    torch.testing.assert_close(tiny_onnx.similarity(audio_embeds, text_embeds), expected, atol=1e-6, rtol=0)
    assert tiny_model.logit_bias is not None


def test_the_folder_is_complete(tiny_folder, tiny_model, processor, tiny_onnx):
    names = {path.name for path in tiny_folder.iterdir() if path.suffix != ".py"}
    saved = {"config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == saved | {"audio.onnx", "text.onnx", "onnx_config.json"}
    assert tiny_onnx.config.projection_dim == tiny_model.config.projection_dim
    again = hf_clap.HfClapProcessor.from_pretrained(tiny_folder)
    assert again.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    assert again(text=["a dog"])["input_ids"].tolist() == processor(text=["a dog"])["input_ids"].tolist()
    assert [node.shape for node in tiny_onnx._audio.get_inputs()] == [["batch", "samples"]]


def test_a_folder_on_the_hub(tiny_folder, tmp_path, monkeypatch):
    def download(repo_id, revision, allow_patterns):
        assert (repo_id, revision) == ("user/tiny-onnx", "v1")
        for path in tiny_folder.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, tmp_path)
        return str(tmp_path)

    monkeypatch.setattr(onnx_model, "snapshot_download", download)
    hf_clap.HfClapOnnxModel.from_pretrained("user/tiny-onnx", revision="v1")
    hf_clap.HfClapProcessor.from_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))


def test_the_command_line(traced, tmp_path, capfd):
    output = tmp_path / "out"
    assert main(["export", str(output), "--format", "onnx"]) == 0
    printed = capfd.readouterr()
    sizes = [f"{name} {(output / name).stat().st_size / 1e6:.1f} MB" for name in (AUDIO_GRAPH, TEXT_GRAPH)]
    assert printed.out == f"{output}: {', '.join(sizes)}\n"
    assert printed.err == "exporting the bundled checkpoint, which takes a moment\n"
    assert main(["export", str(output), "--format", "onnx"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error == f"hf-clap: {output} exists already; remove it, or choose another name."
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_int8_is_near(traced, tiny_onnx, processor, tmp_path, capfd):
    """Measured: cosines of 0.9999 for sounds, of 0.979 to 0.9998 for texts, in 41 MB instead of 112."""
    folder = tmp_path / "int8"
    assert main(["export", str(folder), "--format", "onnx", "--int8"]) == 0
    assert capfd.readouterr().err.count("\n") == 1
    assert sum(path.stat().st_size for path in folder.glob("*.onnx*")) < 42e6
    small = hf_clap.HfClapOnnxModel.from_pretrained(folder)
    waveforms, tokens = sounds(32000, 16000), processor(text=[*TEXTS, "church bells", "a dog"])
    audio = (small.encode_audio(waveforms) * tiny_onnx.encode_audio(waveforms)).sum(dim=-1)
    text = (small.encode_text(**tokens) * tiny_onnx.encode_text(**tokens)).sum(dim=-1)
    assert (audio.min() > 0.999, text.min() > 0.97) == (True, True), (audio, text)
    assert text.max() < 1 - 1e-6  # it is another model


def test_the_model_stays_as_it_was(traced, tiny_model, processor, tmp_path):
    implementation = tiny_model.config._attn_implementation
    model = copy.deepcopy(tiny_model).to(torch.bfloat16).train()
    with pytest.raises(ValueError, match="other embeddings"):  # these weights are rounded, and the graphs' are not
        export.export_onnx(model, processor, tmp_path / "out")
    assert (model.dtype, model.training) == (torch.bfloat16, True)
    assert model.config._attn_implementation == implementation != "eager"


def test_graphs_that_are_not_the_models_are_no_export(traced, tiny_model, processor, tmp_path):
    other = copy.deepcopy(tiny_model)
    other.audio_projection.classifier.weight.data.neg_()
    with pytest.raises(ValueError, match="The exported graphs give other embeddings than the model"):
        export.export_onnx(other, processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_export_that_breaks_off_leaves_nothing(traced, tiny_model, processor, tmp_path, monkeypatch, error):
    def fail(*_):
        assert len(list(tmp_path.iterdir())) == 1  # under a name of its own
        assert not (tmp_path / "out").exists()
        raise error

    monkeypatch.setattr(export, "_quantize", fail)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        export.export_onnx(tiny_model, processor, tmp_path / "out", int8=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(runtime, tiny_model, processor, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="exists already; remove it, or choose another name"):
        hf_clap.export_onnx(tiny_model, processor, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_fusion_and_captioning_models_are_refused(runtime, tiny_model, processor, tmp_path):
    fusion = hf_clap.HfClapProcessor(hf_clap.HfClapFeatureExtractor(crop="fusion"), processor.tokenizer)
    with pytest.raises(ValueError, match="Fusion models"):
        hf_clap.export_onnx(tiny_model, fusion, tmp_path / "out")
    with pytest.raises(TypeError, match="A HfClapForAudioCaptioning cannot be exported"):
        hf_clap.export_onnx(object.__new__(hf_clap.HfClapForAudioCaptioning), processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_front_end_that_does_not_fit_is_the_towers_own_error(runtime, tiny_model, processor, tmp_path):
    extractor = hf_clap.HfClapFeatureExtractor(feature_size=32)
    with pytest.raises(ValueError, match=r"Features of shape .* do not fit"):
        hf_clap.export_onnx(tiny_model, hf_clap.HfClapProcessor(extractor, processor.tokenizer), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnxruntime", "onnxscript"])
def test_without_the_extra_it_says_what_to_install(runtime, tiny_model, processor, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'need(s)? {name}: run `pip install "hf_clap\[onnx\]"`'):
        hf_clap.export_onnx(tiny_model, processor, tmp_path / "out")
    if name == "onnxruntime":
        with pytest.raises(ImportError, match=r'pip install "hf_clap\[onnx\]"'):
            hf_clap.HfClapOnnxModel.from_pretrained("anything/at-all")


def test_folders_that_cannot_be_loaded(tiny_folder, tmp_path):
    with pytest.raises(OSError, match=r"lacks audio\.onnx, text\.onnx, onnx_config\.json"):
        hf_clap.HfClapOnnxModel.from_pretrained(hf_clap.TINY)
    with pytest.raises(OSError, match="neither a folder with an exported model in it nor a model on the Hub"):
        hf_clap.HfClapOnnxModel.from_pretrained("no/such-model")
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / TEXT_GRAPH).write_bytes((tiny_folder / TEXT_GRAPH).read_bytes()[:100000])
    with pytest.raises(OSError, match="is damaged"):
        hf_clap.HfClapOnnxModel.from_pretrained(tmp_path)
    shutil.copy(tiny_folder / TEXT_GRAPH, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(OSError, match=r"JSON file of '.*' is damaged|tokenizer"):
        hf_clap.pipeline(tmp_path, backend="onnx")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(OSError, match=r"has no vocabulary; add its tokenizer\.json"):
        hf_clap.pipeline(tmp_path, backend="onnx")
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=r"lacks config\.json; make it with `hf-clap export`"):
        hf_clap.pipeline(tmp_path, backend="onnx")
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "onnx_config.json").write_text(json.dumps({}))
    with pytest.raises(OSError, match="is damaged"):
        hf_clap.HfClapOnnxModel.from_pretrained(tmp_path)


def test_the_pipeline_tags_as_with_pytorch(tiny_folder, tiny_tagger, tmp_path, capsys):
    exported = hf_clap.pipeline(tiny_folder, backend="onnx")
    files = sorted(str(path) for path in EXAMPLES.glob("*.flac"))
    sounds = [*files, {"array": noise(25.0), "sampling_rate": 16000}, {"array": noise(0.3), "sampling_rate": 16000}]
    labels = ["siren", "rain", "white noise", "church bells"]
    for options in ({}, {"return_timestamps": True}, {"multi_label": True}):
        pairs = zip(exported(sounds, labels, **options), tiny_tagger(sounds, labels, **options), strict=True)
        for ours, expected in pairs:
            assert [row.get("timestamp") for row in ours] == [row.get("timestamp") for row in expected]
            scores = [
                {(row["label"], row.get("timestamp")): row["score"] for row in rows} for rows in (ours, expected)
            ]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert main(["tag", files[0], "--labels", "siren, rain", "--model", str(tiny_folder), "--backend", "onnx"]) == 0
    assert "siren" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (None, {"backend": "onnx"}, "takes a folder or Hub id"),
        (hf_clap.TINY, {"backend": "onnx", "dtype": "bfloat16"}, "leave out device and dtype"),
        (hf_clap.TINY, {"backend": "onnx", "device": "cuda"}, "leave out device and dtype"),
        (hf_clap.TINY, {"backend": "onnx"}, r"lacks audio\.onnx, text\.onnx, onnx_config\.json"),
        (None, {"backend": "tf"}, 'choose "torch" or "onnx"'),
    ],
)
def test_backends_that_are_not_possible(runtime, model, options, message):
    with pytest.raises((ValueError, OSError), match=message):
        hf_clap.pipeline(model, **options)


def test_an_exported_model_is_for_tagging_alone(tiny_folder):
    embedder = hf_clap.pipeline(tiny_folder, backend="onnx").embedder
    for digest in ("fingerprint", "space_sha256", "weights_sha256"):
        with pytest.raises(
            TypeError, match="An exported model is for tagging; embed, search and evaluate with what it"
        ):
            getattr(embedder, digest)


def test_waveforms_that_cannot_be_used(tiny_onnx):
    with pytest.raises(hf_clap.AudioError, match="160001 samples is longer than the 160000"):
        tiny_onnx.encode_audio([torch.zeros(160001)])
    with pytest.raises(hf_clap.AudioError, match="no samples"):
        tiny_onnx.encode_audio([torch.zeros(0)])
    assert tiny_onnx.encode_audio([]).shape == (0, 553)
