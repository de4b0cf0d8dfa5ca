import pytest
import torch
from torch import nn

from hf_clap.linear import HAS_ONEDNN, Linear, _can_use_onednn


@pytest.fixture
def layers():
    """(ours, PyTorch's) with the same weights."""
    torch.manual_seed(0)
    theirs = nn.Linear(96, 384)
    ours = Linear(96, 384)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("shape", [(96,), (5, 96), (2, 64, 3, 96), (0, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_are_those_of_nn_linear(layers, shape, bias):
    ours, theirs = layers
    if not bias:
        ours.bias = theirs.bias = None
    hidden = torch.randn(shape)
    with torch.inference_mode():
        expected, output = theirs(hidden), ours(hidden)
    assert output.shape == expected.shape
    assert torch.allclose(output, expected, atol=1e-5)


def test_strided_input_is_read_right(layers):
    ours, theirs = layers
    hidden = torch.randn(7, 96, 5).transpose(1, 2)
    with torch.inference_mode():
        assert torch.allclose(ours(hidden), theirs(hidden), atol=1e-5)


def test_where_onednn_may_be_used(layers):
    hidden, weight = torch.randn(3, 96), layers[0].weight
    assert not _can_use_onednn(hidden, weight)  # gradients are wanted
    with torch.no_grad():
        assert _can_use_onednn(hidden, weight) == HAS_ONEDNN
        assert not _can_use_onednn(hidden.half(), weight.half())
        assert not _can_use_onednn(hidden.to("meta"), weight.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not _can_use_onednn(hidden, weight)
            assert layers[0](hidden).dtype == torch.bfloat16


def test_gradients_are_those_of_nn_linear(layers):
    hidden = torch.randn(3, 96)
    for layer in layers:
        layer(hidden).square().sum().backward()
    assert torch.equal(layers[0].weight.grad, layers[1].weight.grad)


def test_compiled_and_exported_graphs_hold_a_plain_linear(layers):
    ours, theirs = layers
    hidden = torch.randn(3, 96)
    with torch.no_grad():
        exported = torch.export.export(ours, (hidden,))
        names = {str(node.target) for node in exported.graph.nodes}
        assert "aten.linear.default" in names
        assert not any("mkldnn" in name for name in names)
        assert torch.allclose(exported.module()(hidden), theirs(hidden), atol=1e-6)
