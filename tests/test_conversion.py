"""Peers' checkpoints -> hf_clap and back: golden numbers of msclap, parity with transformers, and what is refused."""

import argparse
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    pipeline,
)

import hf_clap
from conftest import noise, tone
from golden import (
    save_bert_tokenizer,
    save_gpt2_tokenizer,
    save_roberta_tokenizer,
    small_state,
    state_dict_of,
)
from hf_clap import HfClapForAudioCaptioning, HfClapModel, HfClapProcessor, convert_back, convert_checkpoint
from hf_clap.checkpoint_names import LAYOUTS, fuse_qkv, split_qkv
from hf_clap.cli import main
from loopback_hub import loopback_hub

SMALL_TOKENIZERS = {
    "msclap-2022": (save_bert_tokenizer, {"hidden_size": 32, "num_attention_heads": 4}),
    "msclap-2023": (save_gpt2_tokenizer, {"n_embd": 32, "n_head": 4}),
}


def from_disk(folder):
    model = HfClapModel.from_pretrained(folder).eval()
    return model, HfClapProcessor.from_pretrained(folder)


def worst(ours, expected):
    return np.abs(np.asarray(ours) - np.asarray(expected)).max()


# --- msclap


@pytest.fixture(scope="module", params=["2022", "2023"])
def small(request, shared, tmp_path_factory):
    """(golden numbers, kind, source file, tokenizer, converted folder) of msclap's own classes at reduced size."""
    kind, folder = f"msclap-{request.param}", tmp_path_factory.mktemp("small")
    golden = np.load(shared / "golden" / f"msclap_{request.param}_small.npz")
    source = folder / f"CLAP_weights_{request.param}.pth"
    torch.save({"model": small_state(golden)}, source)
    save_tokenizer, config = SMALL_TOKENIZERS[kind]
    tokenizer = save_tokenizer(folder / "tokenizer", **config)
    call = ["convert", str(source), str(folder / "out"), "--from", kind, "--tokenizer", str(tokenizer)]
    assert main(call) == 0
    return golden, kind, source, tokenizer, folder / "out"


def test_small_models_are_msclaps(small):
    golden, kind, _, _, folder = small
    model, processor = from_disk(folder)
    extractor = processor.feature_extractor
    texts = {name[5:]: torch.from_numpy(golden[name]) for name in golden.files if name.startswith("text/")}
    lengths = {"3s": "short_3s", "11s": "long_11s"}
    with torch.inference_mode():
        audio = extractor(golden["wave"], sampling_rate=44100, crop="start")
        tower = model.audio_model(audio["input_features"])
        output = model(**audio, **texts)
        assert worst(tower.pooler_output, golden["audio_features"]) < 1e-4
        assert worst(model.audio_projection(tower), golden["audio_embed"]) < 1e-4
        assert worst(model.text_projection(output.text_model_output), golden["text_embed"]) < 1e-4
        assert worst(output.logits_per_audio, golden["similarity"]) < 1e-4
        for seconds, name in lengths.items():
            clip = torch.from_numpy(np.tile(golden["wave"], 3)[: int(seconds[:-1]) * 44100])
            features = extractor.log_mel(clip)[None, None]  # neither filled nor cut
            if (kind, seconds) == ("msclap-2023", "11s"):
                with pytest.raises(ValueError, match="at most 1024 frames"):
                    model.audio_model(features)
            else:
                embed = model.audio_projection(model.audio_model(features))
                assert worst(embed, golden[f"audio_embed_{name}"]) < 1e-4, name


def log_mel_by_convolution(extractor, waveform):
    """The log-mel as torchlibrosa computes it, rounding and all."""
    padded = F.pad(torch.from_numpy(waveform)[None, None], (512, 512), mode="reflect")
    real, imaginary = (F.conv1d(padded, kernel, stride=320)[0] for kernel in extractor.transform.stft_kernels())
    energy = (real.square() + imaginary.square()).T @ extractor.transform.mel_bank()
    return 10 * torch.log10(energy.clamp(min=1e-10))


@pytest.mark.parametrize("year", ["2022", "2023"])
def test_full_size_models_are_msclaps(year, shared, golden_fill, tmp_path, capsys):
    kind = f"msclap-{year}"
    golden = np.load(shared / "golden" / f"msclap_{year}.npz")
    state = state_dict_of(shared / "golden" / f"msclap_{year}_keys.json", golden_fill, golden["melW"])
    torch.save({"model": state}, tmp_path / "weights.pth")
    tokenizer = SMALL_TOKENIZERS[kind][0](tmp_path / "tokenizer")
    main(
        [
            "convert",
            str(tmp_path / "weights.pth"),
            str(tmp_path / "out"),
            "--from",
            kind,
            "--tokenizer",
            str(tokenizer),
        ]
    )
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    model, processor = from_disk(tmp_path / "out")
    seconds = {"2022": 5, "2023": 7}[year]
    waveforms = [golden_fill.waveform(seconds, 44100, seed) for seed in (0, 1, 2)]
    texts = {name: torch.from_numpy(golden[name]).long() for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        audio = processor(audio=waveforms, sampling_rate=44100)
        output = model(**audio, **texts)
    log_mel = audio["input_features"][0].numpy()
    assert log_mel.shape == golden["logmel"].shape
    assert worst(log_mel_by_convolution(processor.feature_extractor, waveforms[0]), golden["logmel"][0]) < 1e-4
    # In dB. msclap's float32 convolution is itself up to 3e-4 dB off the exact transform in a few bins far below the
    # peak, where ours is not; the line above shows that it is no more than that.
    assert worst(log_mel, golden["logmel"]) < 4e-4
    assert (np.abs(log_mel - golden["logmel"]) < 1e-4).mean() > 0.997
    assert worst(output.audio_model_output.pooler_output, golden["pooled"]) < 1e-4
    assert worst(output.audio_embeds, golden["audio_embeds"]) < 1e-4
    assert worst(output.text_embeds, golden["text_embeds"]) < 1e-4
    assert worst(output.logits_per_audio, golden["logits"]) < 1e-4


# --- LAION


HF_RENAMES = (  # of transformers' own conversion script, convert_clap_original_pytorch_to_hf.py, in its own order
    ("text_branch", "text_model"),
    ("audio_branch", "audio_model.audio_encoder"),
    ("attn", "attention.self"),
    ("self.proj", "output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("bn0", "batch_norm"),
)


def laion_as_transformers(state):
    """A LAION state dict under transformers' names, the way its authors renamed it."""
    renamed = {}
    for name, tensor in state.items():
        if re.search(r"attn_mask|relative_position_index|_transform|tscam|head\.|spectrogram|logmel", name):
            continue
        name = re.sub(r"_projection\.(\d)\.", lambda match: f"_projection.linear{int(match[1]) // 2 + 1}.", name)
        for theirs, ours in HF_RENAMES:
            name = name.replace(theirs, ours)
        if ".qkv." in name:
            for role, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[name.replace("qkv", role)] = piece
        else:
            renamed[name] = tensor
    return renamed


@pytest.fixture(scope="module", params=["unfused", "fused"])
def laion(request, shared, golden_fill, tmp_path_factory):
    """(whether fused, their state dict, converted folder) of a full-size LAION checkpoint with seeded weights."""
    fused, folder = request.param == "fused", tmp_path_factory.mktemp("laion")
    keys = shared / "golden" / ("laion_fusion_keys.json" if fused else "laion_keys.json")
    bank = np.load(shared / "golden" / "laion_frontend.npz")["melW"]
    state = state_dict_of(keys, golden_fill, bank)
    published = {f"module.{name}": tensor for name, tensor in state.items()}
    published["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]
    # beside the weights lies what LAION's training kept, numpy's numbers among it
    torch.save({"epoch": np.int64(15), "loss": np.float64(0.5), "name": "x", "state_dict": published}, folder / "w.pt")
    tokenizer = save_roberta_tokenizer(folder / "tokenizer")
    convert_checkpoint(folder / "w.pt", folder / "out", "laion", tokenizer)
    (folder / "w.pt").unlink()
    return fused, state, folder / "out"


def test_laion_embeds_as_transformers(laion):
    fused, state, folder = laion
    model, processor = from_disk(folder)
    config = ClapConfig(
        text_config={"layer_norm_eps": 1e-5},  # roberta-base's, which LAION uses
        audio_config={"enable_fusion": fused, "fusion_type": "aff_2d" if fused else None},
    )
    peer = ClapModel(config).eval()
    missing, unexpected = peer.load_state_dict(laion_as_transformers(state), strict=False)
    assert not unexpected
    assert all(re.search(r"position_ids|token_type_ids|relative_position_index", name) for name in missing)
    clips = [tone(4.0, 48000), noise(25.0, 48000)]
    audio = processor(audio=clips, sampling_rate=48000, crop="fusion" if fused else "center")
    ids = torch.randint(4, 50_000, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    texts = {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}
    assert audio["input_features"].shape == (2, 4 if fused else 1, 1001, 64)
    with torch.inference_mode():
        ours, expected = model(**audio, **texts), peer(**audio, **texts)
    assert worst(ours.audio_embeds, expected.audio_embeds) < 1e-4
    assert worst(ours.text_embeds, expected.text_embeds) < 1e-4
    assert worst(ours.logits_per_audio, expected.logits_per_audio) < 1e-4
    assert worst(ours.logits_per_text, expected.logits_per_text) < 1e-4


def test_laion_to_transformers_runs_there(laion, tmp_path):
    fused, _, folder = laion
    convert_back(folder, tmp_path / "theirs", "transformers")
    peer, processor = (
        ClapModel.from_pretrained(tmp_path / "theirs"),
        ClapProcessor.from_pretrained(tmp_path / "theirs"),
    )
    model, ours = from_disk(folder)
    ours.feature_extractor.int16_rounding = False  # there is none there
    clips = [noise(1.0, 48000), noise(12.0, 48000)]
    # not by the processor's own call, which in transformers 5.10 hands the text's padding to the feature extractor
    inputs = processor.feature_extractor(clips, sampling_rate=48000, return_tensors="pt")
    inputs |= processor.tokenizer(["ab"], return_tensors="pt")
    assert inputs["input_features"].shape == (2, 4 if fused else 1, 1001, 64)
    with torch.inference_mode():
        expected = peer(**inputs).audio_embeds[:1]
        embeds = model.encode_audio(**ours(audio=clips[:1], sampling_rate=48000))
    assert worst(embeds, expected) < 1e-4


def test_laion_front_ends_are_laions(laion, shared):
    fused, _, folder = laion
    extractor = HfClapProcessor.from_pretrained(folder).feature_extractor
    golden = np.load(shared / "golden" / "laion_frontend.npz")
    assert extractor.int16_rounding
    log_mel = extractor(golden["wave"], sampling_rate=48000)["input_features"][0, 0].numpy()
    if not fused:
        assert worst_above(-80, log_mel, golden["logmel_unfused_int16"]) < 1e-2
    extractor.int16_rounding = False
    log_mel = extractor(golden["wave"], sampling_rate=48000)["input_features"][0, 0].numpy()
    assert log_mel.shape == (1001, 64)
    assert worst_above(-80, log_mel, golden["logmel_fusion" if fused else "logmel_unfused"]) < 1e-2
    # trap: five seconds at 44.1 kHz are two repeats, not one and silence
    halves = extractor(noise(5.0, 44100), sampling_rate=44100)["input_features"][0, 0]
    assert torch.allclose(halves[10:490], halves[510:990], atol=0.05)


def worst_above(floor, ours, expected):
    return np.abs(ours - expected)[expected > floor].max()


def test_every_key_of_laion_has_a_place_or_a_reason(laion):
    fused, state, folder = laion
    stored = load_file(folder / "model.safetensors")
    layout = LAYOUTS["laion"]
    mapped = set(layout.to_theirs(stored))
    left = {name for names in layout.left_behind_of(state).values() for name in names}
    assert mapped | left == set(state)
    assert not mapped & left
    # nothing learned is left behind but the AudioSet classifier and LAION's second loss
    learned = {name for name in left if not re.search(r"stft|melW|relative_position_index", name)}
    assert all(re.search(r"tscam_conv|head|_transform", name) for name in learned)
    assert any("fusion_model" in name for name in mapped) == fused
    back = layout.to_theirs(stored)
    learned = [name for name in mapped if not name.endswith(("attn_mask", "num_batches_tracked"))]
    assert all(torch.equal(back[name], state[name]) for name in learned)


def test_laion_text_is_cut_at_77_tokens(laion):
    _, _, folder = laion
    _, processor = from_disk(folder)
    assert processor(text=["a" * 300])["input_ids"].shape == (1, 77)


# --- transformers


@pytest.fixture(scope="module", params=["unfused", "fused"])
def clap(request, tmp_path_factory):
    """(model, folder as transformers saves it, converted folder) of a small random `ClapModel`."""
    fused, folder = request.param == "fused", tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    text = {"vocab_size": 110, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ClapConfig(
        text_config=text | {"intermediate_size": 40, "max_position_embeddings": 60},
        audio_config={
            "patch_embeds_hidden_size": 16,
            "hidden_size": 128,
            "num_attention_heads": [2, 2, 4, 8],
            "depths": [2, 2, 2, 2],
            "enable_fusion": fused,
        },
        projection_dim=24,
    )
    peer = ClapModel(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    peer.logit_scale_a.data.fill_(2.0)
    peer.logit_scale_t.data.fill_(3.0)
    truncation = "fusion" if fused else "rand_trunc"
    extractor = ClapFeatureExtractor(frequency_min=50, truncation=truncation)
    tokenizer_folder = save_roberta_tokenizer(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    peer.save_pretrained(folder / "theirs")
    ClapProcessor(extractor, tokenizer).save_pretrained(folder / "theirs")
    assert main(["convert", str(folder / "theirs"), str(folder / "ours"), "--from", "transformers"]) == 0
    return peer, folder / "theirs", folder / "ours"


def test_transformers_clap_embeds_the_same(clap):
    peer, theirs, folder = clap
    model, processor = from_disk(folder)
    texts = processor(text=["a dog", "rain on a roof", "x" * 80])
    assert texts["input_ids"].shape == (3, 58)  # RoBERTa's positions begin at 2
    audio = ClapFeatureExtractor.from_pretrained(theirs)(
        [noise(3.0, 48000), noise(11.0, 48000)], sampling_rate=48000, return_tensors="pt"
    )
    with torch.inference_mode():
        ours, expected = model(**audio, **texts), peer(**audio, **texts)
    for name in ("audio_embeds", "text_embeds", "logits_per_audio", "logits_per_text"):
        assert worst(ours[name], expected[name]) < 1e-4, name
    # and from the same sound, shorter than a window, where transformers draws no dice
    with torch.inference_mode():
        heard = model.encode_audio(**processor(audio=noise(3.0, 48000), sampling_rate=48000))
        waveform = noise(3.0, 48000)
        features = ClapFeatureExtractor.from_pretrained(theirs)(waveform, sampling_rate=48000, return_tensors="pt")
        features["is_longer"] = torch.tensor([[False]])
        expected = torch.nn.functional.normalize(peer.get_audio_features(**features).pooler_output, dim=-1)
    assert worst(heard, expected) < 1e-4


def test_a_folder_of_something_else_is_refused(clap, tmp_path):
    _, theirs, _ = clap
    shutil.copytree(theirs, tmp_path / "bert")
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is that of a 'bert', not of a CLAP"):
        convert_checkpoint(tmp_path / "bert", tmp_path / "out", "transformers")
    (tmp_path / "bert" / "config.json").unlink()
    with pytest.raises((OSError, ValueError)):
        convert_checkpoint(tmp_path / "bert", tmp_path / "out", "transformers")
    with pytest.raises(ValueError, match="is a 'clap' checkpoint, not a hf_clap one; run `hf-clap convert"):
        convert_back(theirs, tmp_path / "out", "transformers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("suffix", "index"), [("safetensors", "model"), ("bin", "pytorch_model")])
def test_shards_are_one_checkpoint(clap, tmp_path, suffix, index):
    peer, theirs, folder = clap
    shutil.copytree(theirs, tmp_path / "theirs", ignore=shutil.ignore_patterns("*.safetensors"))
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="200KB")
    if suffix == "bin":
        pickle_shards(tmp_path / "theirs")
    shards = sorted((tmp_path / "theirs").glob(f"*.{suffix}"))
    assert len(shards) > 1
    convert_checkpoint(tmp_path / "theirs", tmp_path / "ours", "transformers")
    assert_same_weights(tmp_path / "ours", folder)
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"^{shards[0].name} is damaged, cut short"):
        convert_checkpoint(tmp_path / "theirs", tmp_path / "again", "transformers")
    shards[0].unlink()
    with pytest.raises(OSError, match=shards[0].name):
        convert_checkpoint(tmp_path / "theirs", tmp_path / "again", "transformers")
    (tmp_path / "theirs" / f"{index}.{suffix}.index.json").write_text("{}")
    with pytest.raises(ValueError, match=f"^{index}.{suffix}.index.json is damaged, cut short"):
        convert_checkpoint(tmp_path / "theirs", tmp_path / "again", "transformers")


def pickle_shards(folder):
    """Shards as transformers 4 wrote them."""
    for shard in folder.glob("*.safetensors"):
        torch.save(load_file(shard), shard.with_name(f"pytorch_{shard.stem}.bin"))
        shard.unlink()
    index = (folder / "model.safetensors.index.json").read_text()
    index = index.replace(".safetensors", ".bin").replace("model-", "pytorch_model-")
    (folder / "pytorch_model.bin.index.json").write_text(index)
    (folder / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize("clap", ["unfused"], indirect=True)
@pytest.mark.parametrize(
    ("side", "setting", "needs"),
    [
        ("audio_config", {"layer_norm_eps": 1e-2}, "an HTS-AT whose layer norms have an epsilon of 1e-5"),
        ("text_config", {"is_decoder": True}, "a RoBERTa that is no decoder"),
    ],
)
def test_settings_that_transformers_would_lose_are_refused(clap, tmp_path, side, setting, needs):
    _, _, folder = clap
    shutil.copytree(folder, tmp_path / "ours")
    config = json.loads((folder / "config.json").read_text())
    config[side] |= setting
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"transformers' CLAP needs {needs}, which this checkpoint does not have"):
        convert_back(tmp_path / "ours", tmp_path / "out", "transformers")


@pytest.mark.parametrize("clap", ["unfused"], indirect=True)
def test_a_logit_scale_beyond_the_bound_is_the_bound_there(clap, tmp_path):
    _, _, folder = clap
    model, processor = from_disk(folder)
    model.logit_scale.data.fill_(6.0)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    convert_back(tmp_path / "ours", tmp_path / "theirs", "transformers")
    assert ClapModel.from_pretrained(tmp_path / "theirs").logit_scale_a.exp().item() == pytest.approx(100)


def test_transformers_there_and_back_is_identical(clap, tmp_path):
    peer, theirs, folder = clap
    assert main(["convert", str(folder), str(tmp_path / "back"), "--to", "transformers"]) == 0
    back = ClapModel.from_pretrained(tmp_path / "back")
    expected = peer.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.state_dict().items())
    waveform = noise(3.0, 48000)
    inputs = {"text": ["a dog"], "audio": waveform, "sampling_rate": 48000, "return_tensors": "pt"}
    one, other = (ClapProcessor.from_pretrained(source)(**inputs) for source in (theirs, tmp_path / "back"))
    assert all(torch.equal(one[name], other[name]) for name in ("input_ids", "input_features"))
    # and once more to ours: the same file
    convert_checkpoint(tmp_path / "back", tmp_path / "again", "transformers")
    assert_same_weights(tmp_path / "again", folder)


# --- msclap and back


def test_msclap_2022_there_and_back_is_identical(small, tmp_path):
    _, kind, source, tokenizer, folder = small
    if kind != "msclap-2022":
        with pytest.raises(ValueError, match=r"needs a Cnn14, a BERT as bert-base-uncased, \[CLS\] pooling"):
            convert_back(folder, tmp_path / "back.pth", "msclap-2022")
        assert not list(tmp_path.iterdir())
        return
    assert main(["convert", str(folder), str(tmp_path / "back.pth"), "--to", "msclap-2022"]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    expected = torch.load(source, weights_only=True)["model"]
    missing = set(expected) - set(back)
    assert all(re.search(r"pooler|fc_audioset|position_ids", name) for name in missing)
    assert not set(back) - set(expected)
    for name, tensor in back.items():
        if re.search(r"stft|melW", name):  # computed, not stored
            assert torch.allclose(tensor, expected[name], atol=1e-5), name
        else:
            assert torch.equal(tensor, expected[name]), name
    convert_checkpoint(tmp_path / "back.pth", tmp_path / "again", kind, tokenizer)
    assert_same_weights(tmp_path / "again", folder)
    beyond = HfClapModel.from_pretrained(folder)
    beyond.logit_scale.data.fill_(6.0)
    beyond.save_pretrained(tmp_path / "again")
    convert_back(tmp_path / "again", tmp_path / "bounded.pth", "msclap-2022")
    bounded = torch.load(tmp_path / "bounded.pth", weights_only=True)["model"]["logit_scale"]
    assert bounded.item() == pytest.approx(math.log(100))  # as much as 6.0 counts


def test_no_way_back_for_what_a_peer_cannot_express(tmp_path):
    with pytest.raises(ValueError, match="msclap 2022 needs a Cnn14,"):
        convert_back(hf_clap.TINY, tmp_path / "tiny.pth", "msclap-2022")
    with pytest.raises(ValueError, match=r"transformers' CLAP needs an HTS-AT whose .* of 1e-5, a RoBERTa that is no"):
        convert_back(hf_clap.TINY, tmp_path / "tiny", "transformers")
    halves = tmp_path.parent / f"{tmp_path.name}-half"
    hf_clap.HfClapAudioModelWithProjection.from_pretrained(hf_clap.TINY).save_pretrained(halves)
    HfClapProcessor.from_pretrained(hf_clap.TINY).save_pretrained(halves)
    with pytest.raises(ValueError, match="is a HfClapAudioModelWithProjection, which is no whole CLAP"):
        convert_back(halves, tmp_path / "tiny", "transformers")
    more = shutil.copytree(hf_clap.TINY, tmp_path.parent / f"{tmp_path.name}-more")
    weights = load_file(more / "model.safetensors") | {"text_model.head.weight": torch.ones(2)}
    save_file(weights, more / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        OSError, match=r"has 1 weights more than its config\.json says, such as text_model\.head\.weight"
    ):
        convert_back(more, tmp_path / "tiny", "transformers")
    with pytest.raises(ValueError, match="no way back to 'laion'; choose one of msclap-2022, transformers"):
        convert_back(hf_clap.TINY, tmp_path / "tiny", "laion")
    assert not list(tmp_path.iterdir())


# --- clapcap


@pytest.fixture(scope="module")
def clapcap(shared, tmp_path_factory):
    """(source state dict, source file, tokenizer, converted folder): msclap's small audio side, mapper and GPT-2."""
    folder = tmp_path_factory.mktemp("clapcap")
    golden = np.load(shared / "golden" / "msclap_2023_small.npz")
    audio = {
        name.replace("audio_encoder.", "clap."): tensor
        for name, tensor in small_state(golden).items()
        if name.startswith("audio_encoder.")
    }
    torch.manual_seed(0)
    hidden, layers = 32, 2
    gpt2 = GPT2Config(vocab_size=200, n_embd=hidden, n_layer=2, n_head=4)
    words = GPT2LMHeadModel(gpt2).state_dict()
    shapes = {"linear.weight": (5 * hidden, 24), "linear.bias": (5 * hidden,), "prefix_const": (7, hidden)}
    for layer in range(layers):
        place = f"transformer.layers.{layer}"
        shapes |= {f"{place}.norm{index}.{kind}": (hidden,) for index in (1, 2) for kind in ("weight", "bias")}
        shapes |= {
            f"{place}.attn.to_queries.weight": (hidden, hidden),
            f"{place}.attn.to_keys_values.weight": (2 * hidden, hidden),
            f"{place}.attn.project.weight": (hidden, hidden),
            f"{place}.attn.project.bias": (hidden,),
            f"{place}.mlp.fc1.weight": (2 * hidden, hidden),
            f"{place}.mlp.fc1.bias": (2 * hidden,),
            f"{place}.mlp.fc2.weight": (hidden, 2 * hidden),
            f"{place}.mlp.fc2.bias": (hidden,),
        }
    state = audio | {f"gpt.{name}": tensor * 10 for name, tensor in words.items()}
    state |= {f"clap_project.{name}": torch.randn(shape) * 0.3 for name, shape in shapes.items()}
    state["gpt.transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)  # of old versions of transformers
    torch.save({"model": state}, folder / "weights.pth")
    tokenizer = save_gpt2_tokenizer(folder / "tokenizer", n_embd=hidden, n_head=4)
    convert_checkpoint(folder / "weights.pth", folder / "out", "clapcap", tokenizer)
    return state, folder / "weights.pth", tokenizer, folder / "out"


def test_clapcap_says_what_msclap_would(clapcap, shared):
    state, _, _, folder = clapcap
    golden = np.load(shared / "golden" / "msclap_2023_small.npz")
    model = HfClapForAudioCaptioning.from_pretrained(folder).eval()
    processor = HfClapProcessor.from_pretrained(folder)
    config = model.config
    assert (config.prefix_length, config.audio_length, config.mapper_layers) == (7, 5, 2)
    assert (config.mapper_mlp_ratio, config.text_config.n_head) == (2.0, 4)
    inputs = processor(audio=[golden["wave"], tone(2.0, 44100)], sampling_rate=44100)
    with torch.inference_mode():
        _, embeds = model._embed_audio(**inputs)
    expected = golden["audio_embed"] / np.linalg.norm(golden["audio_embed"])
    assert worst(embeds[:1], expected) < 1e-4
    layers = model.mapper.layers
    name = "clap_project.transformer.layers.1.attn"
    assert torch.equal(layers[1].attention.query.weight, state[f"{name}.to_queries.weight"])
    assert torch.equal(layers[1].attention.key_value.weight, state[f"{name}.to_keys_values.weight"])
    assert torch.equal(model.mapper.prefix_const, state["clap_project.prefix_const"])
    defaults = model.generation_config
    assert (defaults.num_beams, defaults.max_new_tokens) == (5, 67)
    space, end = processor.tokenizer.convert_tokens_to_ids(["Ġ", "<|endoftext|>"])
    assert defaults.eos_token_id == [space, end]  # msclap stops at the first token of " <|endoftext|>"
    said = model.generate(**inputs)
    assert said.shape[0] == 2
    assert torch.equal(said, model.generate(**inputs))
    assert all(isinstance(text, str) for text in processor.batch_decode(said, skip_special_tokens=True))


def test_a_language_model_whose_ends_differ_is_refused(clapcap, tmp_path):
    state, _, tokenizer, _ = clapcap
    torch.save({"model": state | {"gpt.lm_head.weight": state["gpt.lm_head.weight"] + 1}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"lm_head\.weight is not the word embedding"):
        convert_checkpoint(tmp_path / "w.pth", tmp_path / "out", "clapcap", tokenizer)


def test_an_embedding_that_is_stored_once_is_both_ends(clapcap, tmp_path):
    state, _, tokenizer, folder = clapcap
    once = {name: tensor for name, tensor in state.items() if name != "gpt.lm_head.weight"}
    torch.save({"model": once}, tmp_path / "w.pth")
    convert_checkpoint(tmp_path / "w.pth", tmp_path / "out", "clapcap", tokenizer)
    assert_same_weights(tmp_path / "out", folder)


# --- what comes out


def test_the_folder_is_complete_and_every_pipeline_agrees(small, tmp_path):
    _, kind, _, _, folder = small
    clips = [noise(3.0, 44100), tone(25.0, 44100)]  # shorter than a window, and several
    labels = ["a dog", "rain on a tin roof", "beep!"]
    ours = hf_clap.pipeline(folder, device="cpu")(clips, labels, hypothesis_template="{}", sampling_rate=44100)
    stock = pipeline("zero-shot-audio-classification", model=str(folder), device="cpu")
    for clip, expected in zip(clips, ours, strict=True):
        scored = {row["label"]: row["score"] for row in stock(clip, candidate_labels=labels, hypothesis_template="{}")}
        assert {row["label"]: pytest.approx(row["score"], abs=1e-5) for row in expected} == scored
    assert isinstance(AutoModel.from_pretrained(folder), HfClapModel)
    assert isinstance(AutoProcessor.from_pretrained(folder), HfClapProcessor)
    card = (folder / "README.md").read_text()
    assert "license: mit" in card
    assert f"| kind | {kind} |" in card
    assert re.search(r"SHA-256 of the source \| `[0-9a-f]{64}`", card)
    assert "frozen mel filter bank" in card
    assert str(folder.parent) not in card


def test_the_card_claims_no_licence_that_it_cannot_know(small, clap, tmp_path):
    _, kind, source, tokenizer, _ = small
    (tmp_path / "my-finetune.pth").write_bytes(source.read_bytes())
    convert_checkpoint(tmp_path / "my-finetune.pth", tmp_path / "out", kind, tokenizer)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license:" not in card
    assert "| licence | unknown; that of the published weights is mit |" in card
    _, theirs, _ = clap
    for index, (text, licence) in enumerate(
        [("---\nlicense: apache-2.0\n---\n", "apache-2.0"), ("---\nlicense: [a\n---\n", None)]
    ):
        shutil.copytree(theirs, tmp_path / f"theirs{index}")
        (tmp_path / f"theirs{index}" / "README.md").write_text(text)
        convert_checkpoint(tmp_path / f"theirs{index}", tmp_path / f"ours{index}", "transformers")
        card = (tmp_path / f"ours{index}" / "README.md").read_text()
        assert ("license: apache-2.0" in card) == (licence is not None)


def test_settings_beside_the_tokenizer_count(small, tmp_path):
    """What no weight shows comes from the configuration that lies with the tokenizer."""
    _, kind, source, _, _ = small
    save_tokenizer, config = SMALL_TOKENIZERS[kind]
    eps = {"msclap-2022": "layer_norm_eps", "msclap-2023": "layer_norm_epsilon"}[kind]
    tokenizer = save_tokenizer(tmp_path / "tokenizer", **config, **{eps: 1e-3})
    convert_checkpoint(source, tmp_path / "out", kind, tokenizer)
    assert getattr(from_disk(tmp_path / "out")[0].config.text_config, eps) == 1e-3
    if kind == "msclap-2022":
        with pytest.raises(ValueError, match="needs a BERT as bert-base-uncased"):
            convert_back(tmp_path / "out", tmp_path / "back.pth", kind)


def test_fused_models_hear_long_clips_whole(clap):
    _, _, folder = clap
    tagger = hf_clap.pipeline(folder, device="cpu")
    stock = pipeline("zero-shot-audio-classification", model=str(folder), device="cpu")
    labels = ["a dog", "rain", "beep"]
    clips = [noise(3.0, 48000), noise(25.0, 48000, seed=1), tone(11.0, 48000)]
    together = tagger(clips, labels, hypothesis_template="{}", sampling_rate=48000)
    for clip, expected in zip(clips, together, strict=True):
        rows = stock(clip, candidate_labels=labels, hypothesis_template="{}")
        scored = {row["label"]: row["score"] for row in rows}
        assert {row["label"]: pytest.approx(row["score"], abs=1e-5) for row in expected} == scored
    windows = tagger(clips[1], labels, sampling_rate=48000, return_timestamps=True, window_s=10.0, top_k=1)
    assert [row["timestamp"] for row in windows] == [(0.0, 10.0), (10.0, 20.0), (15.0, 25.0)]


def test_gpt2_texts_end_as_msclaps(small):
    _, kind, _, _, folder = small
    processor = HfClapProcessor.from_pretrained(folder)
    if kind == "msclap-2022":
        assert processor(text="x " * 300)["input_ids"].shape == (1, 100)
        assert processor(text="ab")["input_ids"].tolist() == [[2, 5, 32, 3]]  # [CLS] a ##b [SEP]
        return
    end, space = processor.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "Ġ"])
    bang = processor.tokenizer.convert_tokens_to_ids("!")
    inputs = processor(text=["ab", "a!!", "a" * 300])
    # as msclap tokenizes "ab <|endoftext|>"; `!` is a token like any other; what is too long keeps its end
    assert inputs["input_ids"][0, 2:4].tolist() == [space, end]
    assert inputs["input_ids"][1, 1:5].tolist() == [bang, bang, space, end]
    assert inputs["input_ids"].shape == (3, 77)
    assert inputs["input_ids"][2, -2:].tolist() == [space, end]
    assert inputs["attention_mask"].sum(dim=1).tolist() == [4, 5, 77]
    assert processor.tokenizer(["ab"])["input_ids"] == [inputs["input_ids"][0, :4].tolist()]  # the tokenizer by itself


def assert_same_weights(folder, other):
    first, second = (load_file(place / "model.safetensors") for place in (folder, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- what is refused


def changed(name, change):
    """Change one weight; `{audio}` stands for the audio tower's prefix."""
    return lambda state, audio: state | {name.format(audio=audio): change(state[name.format(audio=audio)])}


def without(name):
    return lambda state, audio: {other: t for other, t in state.items() if other != name.format(audio=audio)}


def renamed(old, new):
    return lambda state, _: {name.replace(old, new): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("linear1", "linear3"), "The checkpoint has no audio_encoder.projection.linear1.weight; check"),
        (renamed("layer_norm.bias", "layer_norm.bais"), "2 weights are missing .* and 2 weights are unknown"),
        (without("logit_scale"), r"1 weights are missing \(logit_scale\)"),
        (without("{audio}bn0.running_var"), r"1 weights are missing \(audio_encoder.*bn0.running_var\)"),
        (lambda state, _: state | {"spare.weight": torch.ones(2)}, r"1 weights are unknown \(spare.weight\)"),
        (changed("caption_encoder.projection.linear2.weight", lambda t: t[:-1]), r"linear2.weight is \(23, 24\)"),
        (changed("caption_encoder.projection.linear1.weight", lambda t: t.T), r"linear1.weight is \(32, 24\) and not"),
        (changed("{audio}bn0.weight", lambda t: t[0]), "bn0.weight has the shape"),
        (changed("{audio}logmel_extractor.melW", lambda t: t * 1.01), "filter bank is none that hf_clap knows"),
        (changed("{audio}logmel_extractor.melW", lambda t: t.flip(1)), "filter bank is none that hf_clap knows"),
        (changed("{audio}logmel_extractor.melW", lambda t: t[0]), "melW has the shape .* cannot have"),
        (changed("{audio}logmel_extractor.melW", lambda t: t.long()), "filter bank is none that hf_clap knows"),
        (
            changed("{audio}spectrogram_extractor.stft.conv_real.weight", lambda t: t[0, 0, 0]),
            "real.weight has the shape",
        ),
        (changed("{audio}bn0.running_mean", lambda t: t / 0), "1 weights hold no usable numbers: audio_encoder"),
        (changed("logit_scale", lambda t: t.long()), "1 weights hold no usable numbers: logit_scale"),
        (changed("logit_scale", lambda t: t.to(torch.float8_e4m3fn)), "no usable numbers: logit_scale"),
        (changed("logit_scale", lambda t: t.to("meta")), "1 weights hold no usable numbers: logit_scale"),
        (changed("logit_scale", lambda t: t * 0 + 5), "logit_scale is 5.0000, beyond ln 100, where hf_clap's logits"),
        (lambda state, _: state | {"caption_encoder.logmel_extractor.melW": torch.ones(2)}, "1 weights are unknown"),
        (lambda state, _: state | {1: torch.ones(2)}, "holds something else than weights"),
        (lambda state, _: state | {"spare": torch.ones(2).to_sparse()}, "holds something else than weights"),
        (without("{audio}logmel_extractor.melW"), "has no audio_encoder.*melW"),
        (changed("{audio}spectrogram_extractor.stft.conv_real.weight", lambda t: t * 0.5), "periodic Hann window"),
        (lambda state, _: {"weights": [1, 2, 3]}, "holds something else than weights"),
        (lambda state, _: {"a": torch.ones(2)}, "is not a checkpoint of kind msclap-202.: it has no audio_encoder"),
    ],
)
def test_what_does_not_fit_is_an_error_and_leaves_nothing(small, tmp_path, capsys, change, message):
    _, kind, source, tokenizer, _ = small
    audio = {"msclap-2022": "audio_encoder.base.", "msclap-2023": "audio_encoder.base.htsat."}[kind]
    state = torch.load(source, weights_only=True)["model"]
    torch.save({"model": change(state, audio)}, tmp_path / "weights.pth")
    call = ["convert", str(tmp_path / "weights.pth"), str(tmp_path / "out"), "--from", kind]
    assert main([*call, "--tokenizer", str(tokenizer)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.search(message, output.err), output.err
    assert output.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("small", ["2022"], indirect=True)
def test_a_cnn_whose_pooling_nobody_knows_is_refused(small, tmp_path):
    _, kind, source, tokenizer, _ = small
    state = torch.load(source, weights_only=True)["model"]
    kept = {name: tensor for name, tensor in state.items() if ".conv_block6." not in name}
    torch.save({"model": kept}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="A CNN of 5 blocks is none that msclap knows, and no weight shows how they"):
        convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", kind, tokenizer)


@pytest.mark.parametrize("small", ["2022"], indirect=True)
def test_what_lies_beside_the_weights_is_named(small, tmp_path):
    _, kind, source, tokenizer, _ = small
    state = torch.load(source, weights_only=True)["model"]
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"holds argparse\.Namespace besides weights, .* save its weights alone"):
        convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", kind, tokenizer)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("layers.0.blocks.0.attn.qkv.bias", lambda t: t[0], "3 weights are missing"),
        ("layers.0.blocks.0.attn.qkv.bias", lambda t: t[:2], "3 weights are missing"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", lambda t: t[:0], "which it cannot have"),
        ("layers.0.blocks.1.attn_mask", lambda t: t[0, 0, 0], "attn_mask has the shape"),
        ("layers.0.blocks.1.attn_mask", lambda t: -t, "attn_mask is not the mask of shifted windows"),
        ("patch_embed.proj.weight", lambda t: t[:0], "which it cannot have"),
    ],
)
@pytest.mark.parametrize("small", ["2023"], indirect=True)
def test_damage_to_htsat_is_named(small, tmp_path, name, change, message):
    _, kind, source, tokenizer, _ = small
    state = torch.load(source, weights_only=True)["model"]
    name = f"audio_encoder.base.htsat.{name}"
    torch.save({"model": state | {name: change(state[name])}}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", kind, tokenizer)
    assert not (tmp_path / "out").exists()


def test_numpys_numbers_beside_the_weights_are_read(small, tmp_path):
    _, kind, source, tokenizer, folder = small
    numbers = {"best": np.bool_(True), "loss": np.float16(1), "name": np.str_("best"), "step": np.int64(3)}
    torch.save(torch.load(source, weights_only=True) | numbers, tmp_path / "weights.pth")
    convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", kind, tokenizer)
    assert_same_weights(tmp_path / "out", folder)
    torch.save(torch.load(source, weights_only=True) | {"place": np.complex64(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"holds numpy\.dtypes\.Complex64DType besides weights"):
        convert_checkpoint(tmp_path / "other.pth", tmp_path / "other", kind, tokenizer)


def test_weights_keep_their_precision_whatever_lies_beside_the_tokenizer(small, tmp_path):
    _, kind, source, tokenizer, folder = small
    state = torch.load(source, weights_only=True)["model"]
    torch.save({"model": state | {"logit_scale": state["logit_scale"].double()}}, tmp_path / "weights.pth")
    of_half = shutil.copytree(tokenizer, tmp_path / "tokenizer")
    settings = json.loads((tokenizer / "config.json").read_text())
    (of_half / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", kind, of_half)
    assert_same_weights(tmp_path / "out", folder)


def test_counts_beyond_half_precision_are_of_no_account(small, tmp_path):
    _, kind, source, tokenizer, _ = small
    state = torch.load(source, weights_only=True)["model"]
    state |= {name: torch.tensor(100_000) for name in state if name.endswith("num_batches_tracked")}
    torch.save({"model": {name: tensor.half() for name, tensor in state.items()}}, tmp_path / "weights.pth")
    convert_checkpoint(tmp_path / "weights.pth", tmp_path / "out", kind, tokenizer)
    converted = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in converted.values()} == {torch.float16, torch.int64}
    torch.save({"model": state}, tmp_path / "weights.pth")
    convert_checkpoint(tmp_path / "weights.pth", tmp_path / "whole", kind, tokenizer)
    counts = [
        t for n, t in load_file(tmp_path / "whole" / "model.safetensors").items() if n.endswith("batches_tracked")
    ]
    assert set(map(int, counts)) == {100_000}


class Trojan:
    """What a pickle can do to whoever loads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def broken_files(state, folder):
    torch.save({"model": state, "extra": Trojan(folder / "marker")}, folder / "trojan.pth")
    trojan = {"model": Trojan(folder / "marker")}
    torch.save(trojan, folder / "old trojan.pth", _use_new_zipfile_serialization=False)
    (folder / "bare trojan.pth").write_bytes(pickle.dumps(trojan, protocol=2))
    torch.save({"model": state}, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "cut late.pth").write_bytes(whole[:-100])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_text("this is no checkpoint")
    save_file({"a": torch.ones(1000)}, folder / "whole.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trojan.pth", "besides weights, which may run code, and was not read"),
        ("old trojan.pth", "besides weights, which may run code, and was not read"),
        ("bare trojan.pth", "besides weights, which may run code, and was not read"),
        ("cut.pth", "is damaged, cut short or no checkpoint"),
        ("cut late.pth", "is damaged, cut short or no checkpoint"),
        ("empty.pth", "is damaged, cut short or no checkpoint"),
        ("text.pth", "is damaged, cut short or no checkpoint"),
        ("cut.safetensors", "is damaged, cut short or no checkpoint"),
        ("whole.safetensors", "is not a checkpoint of kind"),
    ],
)
def test_broken_files_are_refused_and_no_code_runs(small, tmp_path, name, message):
    _, kind, source, tokenizer, _ = small
    broken_files(torch.load(source, weights_only=True)["model"], tmp_path)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / name, tmp_path / "out", kind, tokenizer)
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "out").exists()


def test_the_wrong_kind_is_told_the_right_one(small, tmp_path):
    _, kind, source, tokenizer, _ = small
    with pytest.raises(ValueError, match=f"not a checkpoint of kind laion: it looks like {kind}"):
        convert_checkpoint(source, tmp_path / "out", "laion", tokenizer)
    with pytest.raises(ValueError, match="no kind 'msclap' of checkpoint; choose one of msclap-2022,"):
        convert_checkpoint(source, tmp_path / "out", "msclap", tokenizer)


def test_what_is_there_is_never_overwritten(small, tmp_path):
    _, kind, source, tokenizer, _ = small
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="exists already; remove it, or choose another name"):
        convert_checkpoint(source, tmp_path / "out", kind, tokenizer)
    with pytest.raises(FileNotFoundError, match="does not exist; make it, or choose another"):
        convert_checkpoint(source, tmp_path / "no" / "where", kind, tokenizer)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    convert_checkpoint(source, tmp_path / "link", kind, tokenizer)
    assert (tmp_path / "empty" / "config.json").is_file()
    with pytest.raises(FileExistsError, match="exists already"):
        convert_checkpoint(source, ".", kind, tokenizer)
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(FileExistsError, match=r"folder\.pth exists already"):
        convert_back(tmp_path / "empty", tmp_path / "folder.pth", "msclap-2022")


LIMITED = """
import json, resource, sys
from hf_clap.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(max(main(call) for call in json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize("small", ["2022"], indirect=True)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(small, tmp_path):
    _, kind, source, tokenizer, folder = small
    calls = [
        ["convert", str(source), str(tmp_path / "out"), "--from", kind, "--tokenizer", str(tokenizer)],
        ["convert", str(folder), str(tmp_path / "out.pth"), "--to", kind],
    ]
    finished = subprocess.run([sys.executable, "-c", LIMITED, json.dumps(calls)], capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.count("cannot be written") == len(calls)
    assert "Traceback" not in finished.stderr
    assert not list(tmp_path.iterdir())


# by a signal for each of two conversions; what a shell starts in the background would not hear the first
INTERRUPTED = """
import os, signal, sys
import hf_clap.conversion
from hf_clap.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
numbers = [signal.SIGINT, signal.SIGTERM]
hf_clap.conversion.checkpoint_card = lambda *_: os.kill(os.getpid(), numbers.pop(0))
assert main(sys.argv[1:]) == 130
main(sys.argv[1:])
"""


@pytest.mark.parametrize("small", ["2023"], indirect=True)
def test_who_is_interrupted_tidies_up(small, tmp_path):
    _, kind, source, tokenizer, _ = small
    call = ["convert", str(source), str(tmp_path / "out"), "--from", kind, "--tokenizer", str(tokenizer)]
    finished = subprocess.run([sys.executable, "-c", INTERRUPTED, *call], capture_output=True, text=True)
    assert finished.returncode == 143, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not list(tmp_path.iterdir())


def test_tokenizers_that_do_not_fit_are_refused(small, tmp_path):
    _, kind, source, tokenizer, _ = small
    with pytest.raises(OSError, match=r"tokenizer .*nowhere cannot be had .*--tokenizer"):
        convert_checkpoint(source, tmp_path / "out", kind, tmp_path / "nowhere")
    headless = SMALL_TOKENIZERS[kind][0](tmp_path / "headless")
    with pytest.raises(ValueError, match="width 32 may have any number of attention heads"):
        convert_checkpoint(source, tmp_path / "out", kind, headless)
    wordless = shutil.copytree(
        tokenizer, tmp_path / "wordless", ignore=shutil.ignore_patterns("tokenizer.json", "vocab*")
    )
    with pytest.raises(ValueError, match=r"The tokenizer has no vocabulary; add its tokenizer\.json"):
        convert_checkpoint(source, tmp_path / "out", kind, wordless)
    (wordless / "tokenizer.json").write_text("{}")
    with pytest.raises(OSError, match=r"wordless cannot be had \(\w+: .*\); pass a folder"):
        convert_checkpoint(source, tmp_path / "out", kind, wordless)
    damaged = shutil.copytree(tokenizer, tmp_path / "damaged")
    settings = json.loads((tokenizer / "config.json").read_text())
    width = "n_embd" if kind == "msclap-2023" else "hidden_size"
    (damaged / "config.json").write_text(json.dumps(settings | {width: "x"}))
    with pytest.raises(OSError, match=rf"damaged cannot be had \(.*field '{width}'"):
        convert_checkpoint(source, tmp_path / "out", kind, damaged)
    if kind == "msclap-2022":
        AutoTokenizer.from_pretrained(hf_clap.TINY).save_pretrained(tmp_path / "big")
        (tmp_path / "big" / "config.json").write_bytes((tokenizer / "config.json").read_bytes())
        with pytest.raises(ValueError, match="tokenizer has 30522 tokens and the text tower 200"):
            convert_checkpoint(source, tmp_path / "out", kind, tmp_path / "big")
        other = save_roberta_tokenizer(tmp_path / "roberta", hidden_size=32, num_attention_heads=4)
        with pytest.raises(ValueError, match="tokenizer pads with 1 and the text tower with 0"):
            convert_checkpoint(source, tmp_path / "out", kind, other)
    else:
        other = save_bert_tokenizer(tmp_path / "bert", hidden_size=32, num_attention_heads=4)
        with pytest.raises(ValueError, match=r"ends texts with None, not <\|endoftext\|>; pass GPT-2's"):
            convert_checkpoint(source, tmp_path / "out", kind, other)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_may_come_from_transformers_clap(tmp_path):
    ClapConfig(text_config={"hidden_size": 48, "num_attention_heads": 6}).save_pretrained(tmp_path)
    beside = hf_clap.conversion._config_beside(str(tmp_path))
    assert (beside.hidden_size, beside.num_attention_heads) == (48, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"audio_config": {"enable_fusion": True, "fusion_type": "channel_map"}}, "fusion_type='channel_map'"),
        ({"audio_config": {"patch_stride": [2, 2]}}, r"patch_stride=\[2, 2\]"),
        ({"audio_config": {"hidden_act": "relu"}}, "hidden_act='relu'"),
        ({"projection_hidden_act": "gelu"}, "projection_hidden_act='gelu'"),
    ],
)
def test_settings_of_transformers_without_counterpart_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"{message} has no counterpart in hf_clap"):
        hf_clap.checkpoint_config.from_clap_config(ClapConfig(**settings))


def test_a_stride_of_transformers_may_be_one_number():
    config = hf_clap.checkpoint_config.from_clap_config(ClapConfig(audio_config={"patch_stride": 4}))
    assert config.audio_config.patch_size == 4


@pytest.mark.parametrize(
    ("settings", "given"), [({"feature_size": 128}, "1001 frames of 128"), ({"hop_length": 300}, "1601 frames of 64")]
)
def test_a_front_end_that_the_tower_cannot_take_is_refused(settings, given):
    extractor = hf_clap.checkpoint_config.from_clap_extractor(ClapFeatureExtractor(**settings), fusion=True)
    tower = hf_clap.checkpoint_config.from_clap_config(ClapConfig()).audio_config
    with pytest.raises(ValueError, match=f"gives {given} mel bins, and the audio tower takes at most 1024 of 64; cor"):
        hf_clap.conversion._check_front_end(extractor, tower)


def test_front_ends_of_transformers_without_counterpart_are_refused():
    convert = hf_clap.checkpoint_config.from_clap_extractor
    with pytest.raises(ValueError, match="truncation='fusion' has no counterpart"):
        convert(ClapFeatureExtractor(), fusion=False)
    with pytest.raises(ValueError, match="top_db=80 has no counterpart"):
        convert(ClapFeatureExtractor(top_db=80), fusion=True)
    with pytest.raises(ValueError, match="padding='mirror' of the feature extractor is none of repeatpad"):
        convert(ClapFeatureExtractor(padding="mirror"), fusion=True)
    ours = hf_clap.HfClapFeatureExtractor(mel_sampling_rate=32000)
    with pytest.raises(ValueError, match="cannot express mel_sampling_rate"):
        hf_clap.checkpoint_config.to_clap_extractor(ours, fusion=False)


# --- parts


def test_query_key_and_value_are_split_and_fused():
    state = {"a.attn.qkv.weight": torch.arange(12.0).view(6, 2), "a.attn.qkv.bias": torch.arange(6.0)}
    state["b"] = torch.ones(1)
    split = split_qkv(state)
    assert split["a.attn.key.weight"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert split["a.attn.value.bias"].tolist() == [4.0, 5.0]
    assert len(split) == 7
    again = fuse_qkv(split)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize("small", ["2023"], indirect=True)
def test_a_stored_mask_counts_and_an_empty_one_does_not(small, tmp_path):
    """The peers load the masks of shifted windows from the file, and so a file's own are kept."""
    _, kind, source, tokenizer, folder = small
    name = "audio_encoder.base.htsat.layers.0.blocks.1.attn_mask"
    state = torch.load(source, weights_only=True)["model"]
    mask = from_disk(folder)[0].audio_model.stages[0].blocks[1].shift_mask
    assert torch.equal(mask, state[name])
    torch.save({"model": state | {name: torch.zeros_like(mask)}}, tmp_path / "w.pth")
    convert_checkpoint(tmp_path / "w.pth", tmp_path / "out", kind, tokenizer)
    block = from_disk(tmp_path / "out")[0].audio_model.stages[0].blocks[1]
    assert torch.equal(block.shift_mask, block.make_shift_mask())
    assert (block.shift_mask - state[name]).abs().max() < 1  # the same, but for what the golden file adds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(small, tmp_path, dtype):
    _, kind, source, tokenizer, _ = small
    state = torch.load(source, weights_only=True)["model"]
    half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save({"model_state_dict": half}, tmp_path / "w.pth")
    convert_checkpoint(tmp_path / "w.pth", tmp_path / "out", kind, tokenizer)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if "num_batches" not in name} == {dtype}
    assert torch.equal(stored["logit_scale"], half["logit_scale"])


# --- from the Hub


HUB_PROGRAM = """
import sys, hf_clap
kind, tokenizer, *conversions = sys.argv[1:]
for source, output in zip(conversions[::2], conversions[1::2], strict=True):
    hf_clap.convert_checkpoint(source, output, kind, tokenizer or None)
"""


def convert_from_hub(url, home, kind, tokenizer, *conversions):
    """Sources and folders by turns; in a process of its own, as huggingface_hub reads its settings when imported."""
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", HUB_PROGRAM, *map(str, (kind, tokenizer, *conversions))]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("small", ["2022"], indirect=True)
def test_published_files_come_from_the_hub_by_name(small, tmp_path):
    _, kind, source, tokenizer, folder = small
    year = kind.removeprefix("msclap-")
    published = tmp_path / "hub" / "microsoft" / "msclap" / f"CLAP_weights_{year}.pth"
    published.parent.mkdir(parents=True)
    published.write_bytes(source.read_bytes())
    with loopback_hub(tmp_path / "hub") as (url, requests):
        whole = ("microsoft/msclap", tmp_path / "out")
        named = (f"microsoft/msclap/CLAP_weights_{year}.pth", tmp_path / "named")
        missing = ("someone/else", tmp_path / "none")
        finished = convert_from_hub(url, tmp_path / "home", kind, tokenizer, *whole, *named, *missing)
    assert finished.returncode == 1
    assert "someone/else is no file or folder here, and the Hub gave no CLAP_weights" in finished.stderr
    assert ("GET", f"/microsoft/msclap/resolve/main/CLAP_weights_{year}.pth") in requests
    assert not (tmp_path / "none").exists()
    for place in ("out", "named"):
        assert_same_weights(tmp_path / place, folder)
    assert "base_model: microsoft/msclap" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("clap", ["fused"], indirect=True)
def test_a_whole_repository_comes_from_the_hub(clap, tmp_path):
    _, theirs, folder = clap
    published = tmp_path / "hub" / "someone" / "clap"
    published.parent.mkdir(parents=True)
    published.symlink_to(theirs)
    with loopback_hub(tmp_path / "hub") as (url, _):
        finished = convert_from_hub(url, tmp_path / "home", "transformers", "", "someone/clap", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    assert_same_weights(tmp_path / "out", folder)
    one, other = (HfClapProcessor.from_pretrained(place)(text="a dog") for place in (tmp_path / "out", folder))
    assert torch.equal(one["input_ids"], other["input_ids"])
