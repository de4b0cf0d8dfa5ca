import math

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from conftest import tone
from hf_clap import HfClapConfig
from hf_clap.modeling_patch_cnn import PatchCnnOutput
from hf_clap.projections import AUDIO_PROJECTIONS, pool_text


def test_text_is_pooled_by_mask():
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    output = BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden[:, 0] + 100)
    right = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    left = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    assert torch.equal(pool_text(output, right, "cls"), hidden[:, 0])
    assert torch.equal(pool_text(output, left, "cls"), torch.stack([hidden[0, 1], hidden[1, 0]]))
    assert torch.equal(pool_text(output, right, "last"), torch.stack([hidden[0, 2], hidden[1, 3]]))
    assert torch.equal(pool_text(output, left, "last"), hidden[:, 3])
    assert torch.equal(pool_text(output, right, "mean"), torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)]))
    assert torch.equal(pool_text(output, None, "last"), hidden[:, 3])
    assert torch.equal(pool_text(output, right, "pooler"), hidden[:, 0] + 100)


@pytest.mark.parametrize("name", ["residual_mlp", "mlp", "linear"])
def test_projections_in_numpy(name):
    torch.manual_seed(0)
    projection = AUDIO_PROJECTIONS[name](HfClapConfig(projection_dim=5), hidden_size=4).eval()
    weights = {key: value.double().numpy() for key, value in projection.state_dict().items()}
    vector = np.random.default_rng(0).normal(size=(3, 4))
    if name == "linear":
        expected = vector @ weights["linear.weight"].T
    elif name == "mlp":
        hidden = np.maximum(vector @ weights["linear1.weight"].T + weights["linear1.bias"], 0)
        expected = hidden @ weights["linear2.weight"].T + weights["linear2.bias"]
    else:
        hidden = vector @ weights["linear1.weight"].T
        gelu = hidden * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2))) / 2
        total = hidden + gelu @ weights["linear2.weight"].T
        deviation = np.sqrt(total.var(axis=1, keepdims=True) + 1e-5)
        expected = (total - total.mean(axis=1, keepdims=True)) / deviation
    output = BaseModelOutputWithPooling(pooler_output=torch.from_numpy(vector).float())
    assert np.abs(projection(output).detach().numpy() - expected).max() < 1e-6


def test_concept_projection_in_numpy(tiny_model):
    """The bundled checkpoint's bridge, written a second time."""
    config = tiny_model.config
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(1, 4, 1024, generator=generator)
    mask = torch.tensor([[True, True, True, False]])
    weight, bias, log_weight = (
        parameter.detach().double().numpy()
        for parameter in (
            tiny_model.audio_projection.classifier.weight,
            tiny_model.audio_projection.classifier.bias,
            tiny_model.audio_projection.log_weight,
        )
    )
    scores = 1 / (1 + np.exp(-(steps[0, :3].double().numpy() @ weight.T + bias)))
    expected = np.sqrt(scores.max(axis=0) * scores.mean(axis=0)) * np.exp(log_weight)
    expected /= np.linalg.norm(expected)
    expected -= tiny_model.audio_projection.center.detach().double().numpy()
    with torch.inference_mode():
        output = PatchCnnOutput(last_hidden_state=steps, step_mask=mask)
        audio = tiny_model.audio_projection(output)[0].numpy()
    assert np.abs(audio - expected).max() < 1e-6

    text = torch.randn(1, 384, generator=generator)
    prototypes = tiny_model.text_projection.prototypes.detach().double().numpy()
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    similarity = prototypes @ (text[0].double().numpy() / text[0].double().norm().item())
    expected = np.exp(12 * similarity) / np.exp(12 * similarity).sum()
    expected = expected @ tiny_model.text_projection.values.detach().double().numpy()
    with torch.inference_mode():
        output = PatchCnnOutput(pooler_output=text)
        assert np.abs(tiny_model.text_projection(output)[0].numpy() - expected).max() < 1e-6
    assert len(config.concept_labels) == len(expected) == 553


@pytest.mark.parametrize("clip", [np.zeros(32000, np.float32), tone(2.0)], ids=["silence", "tone"])
def test_gradients_are_finite_where_concepts_are_absent(tiny_model, processor, clip):
    """The scores of most concepts are then below the smallest float32."""
    tiny_model.zero_grad()
    tiny_model.encode_audio(**processor(audio=clip, sampling_rate=16000)).sum().backward()
    gradient = tiny_model.audio_projection.classifier.weight.grad
    tiny_model.zero_grad()
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
