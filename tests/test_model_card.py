"""The card of a trained checkpoint: the Hub can read its metadata, its code runs, and its figures are those given."""

import copy
import re
import sys

import numpy as np
import pytest
import soundfile
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.errors import HFValidationError

import hf_clap
from conftest import SMALL_AUDIO, SMALL_TEXT, tone
from hf_clap.model_card import training_card, write_card

AUDIO = SMALL_AUDIO["hf_clap_patch_cnn"]
RESULT = {
    "dataset_type": "ashraq/esc50",
    "dataset_name": "ESC-50",
    "metric_type": "accuracy",
    "metric_value": 0.8912345678,
}


def small_model(name, processor):
    """An untrained model of each class that has a card, with the vocabulary of the bundled tokenizer."""
    torch.manual_seed(0)
    size = len(processor.tokenizer)
    if name == "HfClapForAudioCaptioning":
        gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": size}
        config = hf_clap.HfClapCaptioningConfig(
            text_config=gpt2 | {"bos_token_id": 0, "eos_token_id": 0},
            audio_config=dict(AUDIO),
            projection_dim=12,
            mapper_layers=1,
        )
        return hf_clap.HfClapForAudioCaptioning(config).eval()
    text = copy.deepcopy(SMALL_TEXT) | {"vocab_size": size}
    config = hf_clap.HfClapConfig(text_config=text, audio_config=dict(AUDIO), projection_dim=12)
    if name == "HfClapForAudioClassification":
        config.id2label = {0: "dog", 1: "rain", 2: "bell"}
    return getattr(hf_clap, name)(config).eval()


@pytest.fixture(scope="module")
def model(processor):
    return small_model("HfClapModel", processor)


@pytest.mark.parametrize(
    ("name", "pipeline_tag", "about"),
    [
        ("HfClapModel", "zero-shot-audio-classification", "| shared space | 12 dimensions"),
        ("HfClapForAudioClassification", "audio-classification", "| classes | 3: dog, rain, bell |"),
        ("HfClapForAudioCaptioning", None, "| text decoder | `gpt2`"),
    ],
)
def test_its_code_runs_as_it_stands(name, pipeline_tag, about, processor, tmp_path, monkeypatch, capsys):
    model = small_model(name, processor)
    if name == "HfClapForAudioCaptioning":
        model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path / "mine")
    processor.save_pretrained(tmp_path / "mine")
    card = training_card("./mine", model, processor.feature_extractor)
    assert card.data.pipeline_tag == pipeline_tag
    assert about in card.text
    monkeypatch.chdir(tmp_path)
    soundfile.write("sound.wav", tone(2.0), 16000)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    capsys.readouterr()
    exec(code, {})
    printed = capsys.readouterr().out
    assert "score" in printed if pipeline_tag else printed


def test_the_metadata_read_back(model, processor, tmp_path):
    results = [
        RESULT | {"dataset_config": "fold1", "dataset_split": "test", "metric_name": "top-1"},
        EvalResult("text-to-audio-retrieval", "d0rj/audiocaps", "AudioCaps", "recall_at_1", 34.5),
    ]
    card = training_card(
        "user/clap-esc",
        model,
        processor.feature_extractor,
        results=results,
        settings={"learning rate": 1e-05, "data": "a|b\nc", "seed": 7},
        base_model="user/clap",
        datasets="ashraq/esc50",  # as well as a list of them
        license="mit",
    )
    path = write_card(tmp_path, card)
    data = ModelCard.load(path).data
    assert data.to_dict() == card.data.to_dict()
    assert (data.license, data.base_model, data.datasets) == ("mit", "user/clap", ["ashraq/esc50"])
    assert (data.library_name, data.model_name) == ("hf_clap", "clap-esc")
    assert data.eval_results[0] == EvalResult(**results[0], task_type="zero-shot-audio-classification")
    assert data.eval_results[1] == results[1]
    text = path.read_text()
    assert "| ESC-50 (fold1, test) | zero-shot-audio-classification | top-1 | 0.8912345678 |" in text
    assert "| AudioCaps | text-to-audio-retrieval | recall_at_1 | 34.5 |" in text
    assert "| learning rate | 1e-05 |\n| data | a\\|b c |\n| seed | 7 |" in text
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"| parameters | {millions:.1f} million |" in text
    assert "| audio tower | `hf_clap_patch_cnn`, " in text
    assert "| text tower | `bert`, " in text
    assert "16000 Hz, windows of 10.0 s" in text
    assert f"hf_clap {hf_clap.__version__}, torch {torch.__version__}, transformers {transformers.__version__}" in text


def test_what_is_not_known_is_left_out(model, processor):
    card = training_card("clap", model, processor.feature_extractor)
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert not {"## Results", "## Training", "licen"} & set(re.findall("## Results|## Training|licen", card.content))


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(3), torch.tensor(0.25), "20.0 ± 1.2"])
def test_values_of_any_library_are_plain_in_the_metadata(value, model, processor, tmp_path):
    results = [RESULT | {"metric_value": value}]
    path = write_card(tmp_path, training_card("clap", model, processor.feature_extractor, results=results))
    assert ModelCard.load(path).data.eval_results[0].metric_value == value
    assert "!!python" not in path.read_text()


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), None, [0.5]])
def test_a_value_that_is_none_is_refused(value, model, processor):
    with pytest.raises(ValueError, match=r"The value of accuracy is .*; give a finite number"):
        training_card("clap", model, processor.feature_extractor, results=[RESULT | {"metric_value": value}])


def test_fields_that_a_result_does_not_have_are_refused(model, processor):
    with pytest.raises(TypeError, match="metric_valeu"):
        training_card("clap", model, processor.feature_extractor, results=[RESULT | {"metric_valeu": 1}])
    with pytest.raises(TypeError, match="dataset_name"):
        training_card("clap", model, processor.feature_extractor, results=[{"metric_type": "a", "metric_value": 1}])


def test_a_folder_is_no_base_model(model, processor):
    with pytest.raises(HFValidationError):
        training_card("clap", model, processor.feature_extractor, base_model=hf_clap.TINY)


def test_a_model_without_a_task_has_no_card(model, processor):
    with pytest.raises(ValueError, match="no card for HfClapHtsatModel; give a model that is HfClapModel or"):
        training_card("clap", hf_clap.HfClapHtsatModel(hf_clap.HfClapHtsatConfig()), processor.feature_extractor)


def test_a_card_replaces_the_old_one_or_leaves_it(tmp_path):
    (tmp_path / "README.md").write_text("old")
    new = ModelCard("---\nlicense: mit\n---\n# new")
    write_card(tmp_path, new)
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == str(new)
    with pytest.raises(OSError, match=r"README.md cannot be written \(.*\); see that there is room"):
        write_card(tmp_path / "README.md", new)
    assert (tmp_path / "README.md").read_text() == str(new)


def test_the_version_is_that_of_the_running_code(model, processor, monkeypatch):
    monkeypatch.setattr(sys.modules["hf_clap"], "__version__", "9.9.9")
    assert "hf_clap 9.9.9" in training_card("clap", model, processor.feature_extractor).text
