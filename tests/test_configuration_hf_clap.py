import math

import pytest
from transformers import AutoConfig, BertConfig

from hf_clap import (
    HfClapCaptioningConfig,
    HfClapCnn14Config,
    HfClapConfig,
    HfClapHtsatConfig,
    HfClapPatchCnnConfig,
)


def test_defaults_are_clap_2022():
    config = HfClapConfig()
    assert isinstance(config.audio_config, HfClapCnn14Config)
    assert isinstance(config.text_config, BertConfig)
    assert (config.audio_config.hidden_size, config.text_config.hidden_size, config.projection_dim) == (
        2048,
        768,
        1024,
    )
    assert math.exp(config.logit_scale_init_value) == pytest.approx(1 / 0.07)
    assert (config.projection, config.text_pooling) == ("residual_mlp", "cls")


def test_saved_and_loaded_config_is_the_same(tmp_path):
    config = HfClapConfig(
        audio_config=HfClapPatchCnnConfig(stem_channels=8),
        text_config={"model_type": "gpt2", "n_embd": 32},
        text_pooling="last",
        projection="linear",
        projection_dim=3,
        concept_labels=["a", "b", "c"],
        logit_bias_init_value=-3.5,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, HfClapConfig)
    assert isinstance(loaded.audio_config, HfClapPatchCnnConfig)
    assert loaded.text_config.hidden_size == 32
    loaded.name_or_path = config.name_or_path
    assert loaded.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"audio_config": {"model_type": "wavenet"}}, "no tower of model_type 'wavenet'"),
        ({"audio_config": BertConfig()}, "no tower of model_type 'bert'"),
        ({"concept_labels": ["a"], "projection_dim": 2}, "set projection_dim=1"),
        ({"projection_dim": -5}, "projection_dim=-5 is not possible; it must be more than 0"),
        ({"multi_label_threshold": 2.0}, "multi_label_threshold=2.0 is no score; it is from 0 to 1"),
    ],
)
def test_impossible_configs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HfClapConfig(**arguments)


def test_whole_numbers_are_numbers():
    config = HfClapConfig(projection_dropout=0, logit_scale_init_value=3, logit_bias_init_value=-1)
    assert (config.projection_dropout, config.logit_scale_init_value, config.logit_bias_init_value) == (0, 3, -1)


@pytest.mark.parametrize("name", ["text_pooling", "projection"])
def test_unknown_choice_is_refused(name):
    with pytest.raises(Exception, match=name):
        HfClapConfig(**{name: "something"})


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (HfClapHtsatConfig, {"window_size": 0}, "window_size=0 is not possible"),
        (HfClapHtsatConfig, {"num_attention_heads": (0, 1, 1, 1)}, r"num_attention_heads=.* is not possible"),
        (HfClapHtsatConfig, {"patch_embed_dim": 0}, "patch_embed_dim=0 is not possible"),
        (HfClapPatchCnnConfig, {"patch_hop_frames": 0}, "patch_hop_frames=0 is not possible"),
        (HfClapCnn14Config, {"convs_per_block": 0}, "convs_per_block=0 is not possible"),
        (HfClapCaptioningConfig, {"mapper_heads": 0}, "mapper_heads=0 is not possible"),
        (HfClapCaptioningConfig, {"prefix_length": 0}, "prefix_length=0 is not possible"),
        (HfClapCnn14Config, {"num_mel_bins": 7}, "7 mel bins cannot be pooled by 32"),
    ],
)
def test_sizes_that_are_none_are_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_towers_need_one_entry_per_layer():
    with pytest.raises(ValueError, match="one pool size per block"):
        HfClapCnn14Config(channels=(8,))
    with pytest.raises(ValueError, match="one stride per layer"):
        HfClapPatchCnnConfig(strides=(1,))
