"""A pushed checkpoint in a process that has no hf_clap: only its own files and transformers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import SMALL_AUDIO, noise
from hf_clap import (
    TINY,
    HfClapCaptioningConfig,
    HfClapForAudioCaptioning,
    HfClapForAudioClassification,
    HfClapModel,
)

PROGRAM = """
import json, sys
sys.modules["hf_clap"] = None  # as if it were not installed: any import of it fails
import numpy as np, torch
from transformers import AutoModel, AutoProcessor, pipeline

folder, clip = sys.argv[1:]
waveform = np.load(clip)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.inference_mode():
    output = model(**processor(text=["a dog", "white noise"], audio=waveform, sampling_rate=16000))
tagger = pipeline("zero-shot-audio-classification", model=folder, trust_remote_code=True, device="cpu")
scores = tagger(waveform, candidate_labels=["a dog", "white noise"], hypothesis_template="{}")
print(json.dumps({
    "classes": [type(model).__name__, type(processor).__name__, type(processor.feature_extractor).__name__],
    "modules": [type(model).__module__, type(processor).__module__],
    "logits": output.logits_per_audio.tolist(),
    "scores": scores,
}))
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory, tiny_model, processor):
    """What `push_to_hub` would upload."""
    folder = tmp_path_factory.mktemp("pushed") / "someones-clap"
    tiny_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def printed_by(program, *words, tmp_path):
    """What a program without hf_clap prints at its end, whose `module` is one that came with the checkpoint."""
    finished = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["module"].startswith("transformers_modules.")
    return result


def test_every_file_of_the_model_travels(pushed):
    assert {file.name for file in pushed.glob("*.py")} == {
        "attention.py",
        "configuration_hf_clap.py",
        "derived.py",
        "feature_extraction_hf_clap.py",
        "folded_conv.py",
        "freed_memory.py",
        "linear.py",
        "log_mel.py",
        "losses.py",
        "modeling_audio_tower.py",
        "modeling_cnn14.py",
        "modeling_hf_clap.py",
        "modeling_htsat.py",
        "modeling_patch_cnn.py",
        "prepared_stage.py",
        "processing_hf_clap.py",
        "projections.py",
        "stretch.py",
        "unpadded_encoder.py",
        "waveform.py",
    }


def test_loads_without_hf_clap(pushed, tmp_path, tiny_model, processor, tiny_tagger):
    waveform = noise(3.0)
    np.save(tmp_path / "clip.npy", waveform)
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(pushed), str(tmp_path / "clip.npy")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout.splitlines()[-1])
    assert result["classes"] == ["HfClapModel", "HfClapProcessor", "HfClapFeatureExtractor"]
    assert all(module.startswith("transformers_modules.") for module in result["modules"])
    assert isinstance(tiny_model, HfClapModel)
    ours = tiny_tagger(waveform, ["a dog", "white noise"], hypothesis_template="{}", sampling_rate=16000)
    for expected, scored in zip(ours, result["scores"], strict=True):
        assert scored["label"] == expected["label"]
        assert scored["score"] == pytest.approx(expected["score"], abs=1e-5)
    inputs = processor(text=["a dog", "white noise"], audio=waveform, sampling_rate=16000)
    assert result["logits"][0] == pytest.approx(tiny_model(**inputs).logits_per_audio[0].tolist(), abs=1e-5)


CAPTIONING_PROGRAM = """
import json, sys
sys.modules["hf_clap"] = None
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
features = torch.linspace(-60, 0, 200 * 64).view(1, 1, 200, 64)
said = model.generate(features, max_new_tokens=5, eos_token_id=None).tolist()
print(json.dumps({"module": type(model).__module__, "said": said}))
"""


def test_captioning_loads_without_hf_clap(tmp_path):
    """And with it HTS-AT, which the bundled checkpoint does not have."""
    torch.manual_seed(0)
    gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50}
    config = HfClapCaptioningConfig(
        text_config=gpt2 | {"bos_token_id": 0, "eos_token_id": 0},
        audio_config=dict(SMALL_AUDIO["hf_clap_htsat"]),
        projection_dim=12,
        mapper_layers=1,
    )
    model = HfClapForAudioCaptioning(config).eval()
    model.save_pretrained(tmp_path / "someones-clapcap")
    result = printed_by(CAPTIONING_PROGRAM, str(tmp_path / "someones-clapcap"), tmp_path=tmp_path)
    features = torch.linspace(-60, 0, 200 * 64).view(1, 1, 200, 64)
    assert result["said"] == model.generate(features, max_new_tokens=5, eos_token_id=None).tolist()


CLASSIFICATION_PROGRAM = """
import json, sys
sys.modules["hf_clap"] = None
import numpy as np
from transformers import AutoModelForAudioClassification, pipeline

folder, clip = sys.argv[1:]
model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
classifier = pipeline("audio-classification", model=folder, trust_remote_code=True, device="cpu")
found = classifier({"array": np.load(clip), "sampling_rate": 16000})
print(json.dumps({"module": type(model).__module__, "found": {entry["label"]: entry["score"] for entry in found}}))
"""


def test_classification_loads_without_hf_clap(tmp_path, processor):
    torch.manual_seed(0)
    names = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    model = HfClapForAudioClassification.from_pretrained(TINY, **names)
    folder = tmp_path / "someones-classifier"
    model.save_pretrained(folder)
    processor.feature_extractor.save_pretrained(folder)
    waveform = noise(3.0)
    np.save(tmp_path / "clip.npy", waveform)
    result = printed_by(CLASSIFICATION_PROGRAM, str(folder), str(tmp_path / "clip.npy"), tmp_path=tmp_path)
    inputs = processor.feature_extractor(waveform, sampling_rate=16000)
    with torch.inference_mode():
        scores = model(**inputs).logits[0].softmax(dim=0).tolist()
    assert result["found"] == pytest.approx(dict(zip("ab", scores, strict=True)), abs=1e-5)
