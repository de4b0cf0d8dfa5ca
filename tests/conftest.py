"""Fixtures: the bundled checkpoint, loaded once; small random models; the development data where it is there."""

import copy
import importlib.util
import io
import os
import tempfile
from pathlib import Path

# read as OpenMP is loaded: threads of two test processes that wait awake for each other took a third of the time
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # read as huggingface_hub is imported: no test needs the network

import datasets

import hf_clap

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared():
    """The folder of golden numbers and real audio, which is not part of the repository."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("the development data (../shared) are not here")
    return SHARED


@pytest.fixture(scope="session")
def golden_fill(shared):
    """The module that fills a state dict from its names."""
    spec = importlib.util.spec_from_file_location("golden_fill", shared / "golden" / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_tagger():
    return hf_clap.pipeline(device="cpu")


@pytest.fixture(scope="session")
def tiny_model(tiny_tagger):
    return tiny_tagger.model


@pytest.fixture(scope="session")
def processor(tiny_tagger):
    return tiny_tagger.processor


SMALL_TEXT = {
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
SMALL_AUDIO = {
    "hf_clap_cnn14": {"model_type": "hf_clap_cnn14", "channels": (8, 16), "pool_sizes": (2, 2), "hidden_size": 16},
    "hf_clap_htsat": {
        "model_type": "hf_clap_htsat",
        "image_size": 128,
        "patch_embed_dim": 4,
        "depths": (2, 2, 1),
        "num_attention_heads": (1, 2, 4),
        "window_size": 4,
        "drop_path_rate": 0.0,
    },
    "hf_clap_patch_cnn": {
        "model_type": "hf_clap_patch_cnn",
        "stem_channels": 8,
        "channels": (8, 16),
        "strides": (1, 2),
    },
}


@pytest.fixture(params=list(SMALL_AUDIO))
def small_config(request):
    """A model of a few thousand parameters for each audio tower."""
    return hf_clap.HfClapConfig(
        text_config=copy.deepcopy(SMALL_TEXT), audio_config=dict(SMALL_AUDIO[request.param]), projection_dim=12
    )


@pytest.fixture
def small_inputs():
    """Three clips of 200 frames and three texts of 7 tokens, the last one padded."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[2, 4:] = 0
    return {
        "input_features": torch.randn(3, 1, 200, 64, generator=generator),
        "input_ids": torch.randint(1, 60, (3, 7), generator=generator),
        "attention_mask": mask,
    }


@pytest.fixture(scope="session")
def small_checkpoint(processor, tmp_path_factory):
    """A folder with a small model without training, which reads with the bundled tokenizer and has dropout."""
    folder = tmp_path_factory.mktemp("small_checkpoint")
    torch.manual_seed(0)
    text = SMALL_TEXT | {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 256}
    audio = dict(SMALL_AUDIO["hf_clap_patch_cnn"])
    hf_clap.HfClapModel(hf_clap.HfClapConfig(text_config=text, audio_config=audio, projection_dim=12)).save_pretrained(
        folder
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair_shards(tmp_path_factory):
    """A folder of 4 Parquet shards of 16 half-second sounds with captions, as the Hub keeps them."""
    folder = tmp_path_factory.mktemp("pairs")
    features = datasets.Features(
        {"audio": datasets.Audio(), "caption": datasets.Value("string"), "number": datasets.Value("int64")}
    )
    for shard in range(4):
        rows = []
        for number in range(shard * 16, shard * 16 + 16):
            buffer = io.BytesIO()
            waveform = tone(0.5, 16000, 110.0 * 1.06**number) if number % 2 else noise(0.5, 16000, number)
            soundfile.write(buffer, waveform, 16000, format="FLAC")
            caption = f"a tone of pitch {number}" if number % 2 else f"noise number {number}"
            audio = {"bytes": buffer.getvalue(), "path": f"{number}.flac"}
            rows.append({"audio": audio, "caption": caption, "number": number})
        table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, folder / f"train-{shard:05}-of-00004.parquet")
    return folder


def tone(seconds=2.0, rate=16000, frequency=440.0):
    """A sine of amplitude 0.5, float32 (samples,)."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds=2.0, rate=16000, seed=0):
    """White noise of standard deviation 0.1, float32 (samples,)."""
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


@pytest.fixture
def temporary_folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
