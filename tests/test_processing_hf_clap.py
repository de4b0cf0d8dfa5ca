import pytest
import torch
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer

import hf_clap
from conftest import noise
from hf_clap import HfClapFeatureExtractor, HfClapProcessor


def test_saved_and_loaded_processor_is_the_same(tmp_path, processor):
    processor.save_pretrained(tmp_path)
    inputs = {"text": ["a dog", "rain on a roof"], "audio": noise(), "sampling_rate": 16000}
    expected = processor(**inputs)
    for loaded in (HfClapProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, HfClapProcessor)
        assert isinstance(loaded.feature_extractor, HfClapFeatureExtractor)
        output = loaded(**inputs)
        assert sorted(output) == sorted(expected)
        assert all(torch.equal(output[name], expected[name]) for name in expected)


def test_parts_load_by_their_auto_classes(processor):
    features = AutoFeatureExtractor.from_pretrained(hf_clap.TINY)(noise(), sampling_rate=16000)["input_features"]
    assert torch.equal(features, processor(audio=noise(), sampling_rate=16000)["input_features"])
    tokenizer = AutoTokenizer.from_pretrained(hf_clap.TINY)
    assert tokenizer("a dog")["input_ids"] == processor.tokenizer("a dog")["input_ids"]


def test_text_options_never_reach_the_audio(processor):
    long_text = " ".join(["word"] * 600)
    output = processor(text=[long_text, "a"], audio=noise(5.0), sampling_rate=16000, max_length=77)
    assert output["input_ids"].shape == (2, 77)
    assert output["input_features_mask"].sum().item() == 498
    assert processor(text=long_text)["input_ids"].shape == (1, 256)


def test_nothing_to_process_is_an_error(processor):
    with pytest.raises(ValueError, match="pass text=…, audio=… or both"):
        processor()
    with pytest.raises(ValueError, match="The list of texts is empty; pass at least one text"):
        processor(text=[])


def test_unknown_option_is_an_error(processor):
    with pytest.raises(TypeError, match="audios"):
        processor(audios=noise())
