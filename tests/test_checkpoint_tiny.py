"""The bundled checkpoint: what is in it, what it hears in the example sounds."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import hf_clap

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "audio"
LABELS = "siren, dial tone, ticking clock, rain, church bell, helicopter, bird singing, dog barking, speech, music"


def example(name):
    """An example script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_size_and_precision(tiny_model):
    files = list(Path(hf_clap.TINY).iterdir())
    assert sum(file.stat().st_size for file in files) < 60e6
    assert not [file.name for file in files if file.suffix == ".py"]
    with safe_open(Path(hf_clap.TINY) / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
    assert tiny_model.dtype == torch.float32
    audio_parameters = sum(parameter.numel() for parameter in tiny_model.audio_model.parameters())
    assert audio_parameters == 3_195_456


def test_card_is_the_one_in_model_cards():
    assert (Path(hf_clap.TINY) / "README.md").read_text() == (ROOT / "model_cards" / "tiny.md").read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.flac")), ids=lambda path: path.stem)
def test_example_sounds_are_recognised(tiny_tagger, path):
    if path.stem == "long_scene":
        predictions = tiny_tagger(str(path), LABELS, return_timestamps=True, top_k=1)
        heard = [prediction["label"] for prediction in predictions]
        scene = ["bird singing", "church bell", "ticking clock", "rain", "siren", "helicopter", "dial tone"]
        assert heard == [label for label in scene for _ in range(2)]
    else:
        best, second = tiny_tagger(str(path), LABELS, top_k=2)
        assert best["label"] == path.stem.replace("_", " ")
        assert best["score"] > 0.5 > 2 * second["score"]


def test_the_example_sounds_are_made_by_their_script(tmp_path):
    import soundfile

    example("make_example_sounds").main(["--output", str(tmp_path)])
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in EXAMPLES.iterdir()}
    assert (tmp_path / "metadata.csv").read_text() == (EXAMPLES / "metadata.csv").read_text()
    for file in tmp_path.glob("*.flac"):
        made, rate = soundfile.read(file)
        stored, stored_rate = soundfile.read(EXAMPLES / file.name)
        assert rate == stored_rate == 16000
        assert abs(made - stored).max() < 2 / 2**15


def test_config_names_the_concepts(tiny_model):
    labels = json.loads((Path(hf_clap.TINY) / "config.json").read_text())["concept_labels"]
    assert (len(labels), labels[0], labels[520], labels[-1]) == (553, "Speech", "Field recording", 'The word "nine"')
    assert tiny_model.config.concept_labels == labels
