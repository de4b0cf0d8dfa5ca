"""What is trained, how fast, and the bound of the logit scale."""

import math

import pytest
import torch
from torch import nn

import hf_clap
from hf_clap.optimization import (
    clamp_logit_scale,
    freeze,
    hold_still,
    parameter_groups,
    scalars_to_vectors,
    vectors_to_scalars,
)


@pytest.fixture
def model(small_config):
    return hf_clap.HfClapModel(small_config)


def of_tower(model, tower):
    return {id(parameter) for parameter in getattr(model, tower).parameters()}


def test_every_parameter_is_in_one_group_with_its_towers_rate(model):
    groups = parameter_groups(model, 1e-3, audio_learning_rate=1e-4, text_learning_rate=1e-5, weight_decay=0.1)
    seen = {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) not in seen
            seen[id(parameter)] = group["lr"]
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    for parameter in model.parameters():
        audio, text = (id(parameter) in of_tower(model, f"{tower}_model") for tower in ("audio", "text"))
        assert seen[id(parameter)] == (1e-4 if audio else 1e-5 if text else 1e-3)


def test_frozen_towers_are_in_no_group_and_keep_still(model):
    freeze(model, audio=True)
    grouped = {id(parameter) for group in parameter_groups(model, 1e-3) for parameter in group["params"]}
    assert grouped.isdisjoint(of_tower(model, "audio_model"))
    assert of_tower(model, "text_model") <= grouped
    model.train()
    hold_still(model)
    assert not any(module.training for module in model.audio_model.modules())
    assert model.text_model.training
    assert model.audio_projection.training


def test_frozen_batch_norms_keep_their_statistics(model):
    model.train()
    hold_still(model, freeze_batch_norm=True)
    for module in model.modules():
        assert module.training != isinstance(module, nn.modules.batchnorm._BatchNorm)


@pytest.mark.parametrize(("loss", "trained"), [("softmax", False), ("sigmoid", True)])
def test_a_bias_that_cancels_is_not_trained(small_config, loss, trained):
    """Distributed training would wait for its gradient."""
    small_config.loss, small_config.logit_bias_init_value = loss, -10.0
    model = hf_clap.HfClapModel(small_config)
    freeze(model)
    assert model.logit_bias.requires_grad is trained


def test_logit_scale_is_clamped_at_100(model):
    with torch.no_grad():
        model.logit_scale.fill_(7.0)
    clamp_logit_scale(model)
    assert model.logit_scale.item() == pytest.approx(math.log(100.0))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    clamp_logit_scale(model)
    assert model.logit_scale.item() == 2.0


def test_scalars_become_vectors_and_scalars_again(small_config):
    """FSDP divides no scalars; what is saved has their own shapes."""
    small_config.logit_bias_init_value = -10.0
    model = hf_clap.HfClapModel(small_config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = scalars_to_vectors(model)
    assert sorted(names) == ["logit_bias", "logit_scale"]
    assert all(parameter.ndim > 0 for parameter in model.parameters())
    after = vectors_to_scalars(model.state_dict(), names)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) and after[name].shape == value.shape for name, value in before.items())
