from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hf_clap import linear
from hf_clap.linear import (
    ONEDNN_DTYPES,
    WEIGHTS_FOR_MKL,
    Conv2d,
    Linear,
    conv_relu,
    has_onednn,
    is_plain_inference,
    onednn_add_linear,
    onednn_linear,
    pack_weight,
)


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
    assert has_onednn(hidden, weight)
    assert not is_plain_inference(hidden, weight)  # gradients are wanted
    with torch.no_grad():
        assert is_plain_inference(hidden, weight)
        assert not is_plain_inference(hidden.half(), nn.Parameter(weight.half()))
        bfloat16 = is_plain_inference(hidden.bfloat16(), nn.Parameter(weight.bfloat16()))
        assert bfloat16 == torch.ops.mkldnn._is_mkldnn_bf16_supported()
        assert not is_plain_inference(hidden.to("meta"), nn.Parameter(weight.to("meta")))
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_plain_inference(hidden, weight)
            assert layers[0](hidden).dtype == torch.bfloat16


def test_there_is_an_onednn_here():
    """Of PyTorch's builds for x86; without it the benchmark's figures do not hold, and nothing else changes."""
    assert torch.backends.mkldnn.is_available() == (torch.float32 in ONEDNN_DTYPES)


def test_forward_mode_gradients_are_not_lost(layers):
    hidden, tangent = torch.randn(3, 96), torch.randn(3, 96)
    expected = tangent @ layers[0].weight.T
    with torch.no_grad():
        _, derivative = torch.func.jvp(layers[0], (hidden,), (tangent,))
        assert torch.allclose(derivative, expected, atol=1e-5)
        with forward_ad.dual_level():
            output = layers[0](forward_ad.make_dual(hidden, tangent))
            assert torch.allclose(forward_ad.unpack_dual(output).tangent, expected, atol=1e-5)


def test_counters_of_operations_see_it(layers):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layers[0](torch.randn(3, 96))
    assert counter.get_total_flops() == 2 * 3 * 96 * 384


class Doubled(torch.Tensor):
    """A weight that says itself how it is applied, as those of quantization libraries do."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        result = super().__torch_function__(function, types, arguments, options or {})
        return 2 * result if function is F.linear else result


def test_weights_with_a_will_of_their_own_are_obeyed(layers):
    ours, theirs = layers
    ours.bias = theirs.bias = None
    ours.weight = nn.Parameter(ours.weight.detach().as_subclass(Doubled), requires_grad=False)
    hidden = torch.randn(3, 96)
    with torch.no_grad():
        assert torch.allclose(ours(hidden).as_subclass(torch.Tensor), 2 * theirs(hidden), atol=1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (2, 64, 3), (0,)])
@pytest.mark.parametrize("frozen", ["nothing", "weight", "bias", "hidden", "weight and hidden"])
@pytest.mark.parametrize("outputs", [384, WEIGHTS_FOR_MKL // 96 + 1])
@pytest.mark.parametrize("is_intel", [True, False])
def test_gradients_are_those_of_nn_linear(shape, frozen, outputs, is_intel, monkeypatch):
    monkeypatch.setattr(linear, "IS_INTEL", is_intel)
    torch.manual_seed(0)
    layers = Linear(96, outputs), nn.Linear(96, outputs)
    layers[0].load_state_dict(layers[1].state_dict())
    hidden = torch.randn(*shape, 96)
    gradients = []
    for layer in layers:
        leaves = {"weight": layer.weight, "bias": layer.bias, "hidden": hidden.clone().requires_grad_()}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name not in frozen)
        layer(leaves["hidden"]).transpose(0, -1).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves.values()])
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, atol=1e-4)


def test_what_comes_out_in_training_may_be_changed_in_place(layers):
    """As AdaLoRA's layers do, hooks, and Longformer."""
    hidden = torch.randn(2, 3, 96)
    gradients = []
    for layer in layers:
        output = layer(hidden)
        output *= 2.0
        output.view(-1).add_(1.0)
        output.square().sum().backward()
        gradients.append(layer.weight.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-3)


def test_gradients_are_mkls_on_intels_cpus(monkeypatch):
    """Where oneDNN takes up to twice as long for them."""
    cpu = Path("/proc/cpuinfo")
    if cpu.exists() and hasattr(torch.cpu, "get_capabilities"):
        is_intel = "GenuineIntel" in cpu.read_text()
        assert is_intel == linear.IS_INTEL
    layer, hidden = Linear(96, WEIGHTS_FOR_MKL // 96 + 1), torch.randn(5, 96, requires_grad=True)
    found = []
    for is_intel in True, False:
        monkeypatch.setattr(linear, "IS_INTEL", is_intel)
        output = layer(hidden).sum()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            output.backward()
        found.append({event.name for event in profiled.events()})
    through_onednn = "mkldnn::_linear_pointwise"
    assert through_onednn not in found[0]
    assert through_onednn in found[1]


def test_gradients_of_gradients_are_those_of_nn_linear(layers):
    """As penalties on gradients need."""
    hidden = torch.randn(5, 96, requires_grad=True)
    penalties = []
    for layer in layers:
        (gradient,) = torch.autograd.grad(layer(hidden).square().sum(), hidden, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), (hidden, layer.weight)))
    for ours, theirs in zip(*penalties, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3)


def test_frozen_weights_keep_no_input(layers):
    """Activations of a frozen layer under an adapter are not held until the backward pass."""
    layers[0].requires_grad_(False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda t: t):
        layers[0](torch.randn(5, 96, requires_grad=True))
    assert saved == [layers[0].weight.shape]


def test_compiled_and_exported_graphs_hold_a_plain_linear(layers):
    ours, theirs = layers
    hidden = torch.randn(3, 96)
    with torch.no_grad():
        exported = torch.export.export(ours, (hidden,))
        names = {str(node.target) for node in exported.graph.nodes}
        assert "aten.linear.default" in names
        assert not any("mkldnn" in name for name in names)
        assert torch.allclose(exported.module()(hidden), theirs(hidden), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 96, 6, 4), (5, 96, 1, 1), (2, 96, 1, 7), (0, 96, 3, 2)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1}, {"groups": 4}, {"kernel_size": 3}])
def test_convolutions_are_those_of_nn_conv2d(size, bias, memory_format, options):
    torch.manual_seed(0)
    options = {"kernel_size": 1, "padding": 1 if "kernel_size" in options else 0} | options
    theirs = nn.Conv2d(96, 128, bias=bias, **options)
    ours = Conv2d(96, 128, bias=bias, **options)
    ours.load_state_dict(theirs.state_dict())
    hidden = torch.randn(size).contiguous(memory_format=memory_format)
    with torch.inference_mode():
        expected, output = theirs(hidden), ours(hidden)
        rectified = conv_relu(ours, hidden)
    assert output.shape == expected.shape
    assert torch.allclose(output, expected, atol=1e-5)
    assert torch.allclose(rectified, expected.relu(), atol=1e-5)
    conv_relu(ours, hidden).square().sum().backward()
    theirs(hidden).relu().square().sum().backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("size", [(2, 1, 12, 12), (1, 1, 13, 15), (0, 1, 8, 8), (2, 1, 5, 3), (3, 2, 8, 12)])
@pytest.mark.parametrize("kernel_size", [(4, 4), (4, 12), (1, 3)])
@pytest.mark.parametrize("dtype", ONEDNN_DTYPES)
def test_patches_are_those_of_nn_conv2d(size, kernel_size, dtype):
    """Kernels that do not overlap: what is left over at the end of the image is not heard."""
    torch.manual_seed(0)
    theirs = nn.Conv2d(size[1], 6, kernel_size, stride=kernel_size).to(dtype)
    ours = Conv2d(size[1], 6, kernel_size, stride=kernel_size).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    hidden = torch.randn(size).transpose(2, 3).to(dtype).contiguous().transpose(2, 3)
    if size[2] < kernel_size[0] or size[3] < kernel_size[1]:
        with pytest.raises(RuntimeError), torch.inference_mode():
            ours(hidden)
        return
    with torch.inference_mode():
        expected, output = theirs(hidden), ours(hidden)
    assert output.shape == expected.shape
    assert torch.allclose(output, expected, atol=0.02 if dtype == torch.bfloat16 else 1e-6)


def test_packed_kernels_are_of_the_weights_as_they_are():
    torch.manual_seed(0)
    conv, hidden = Conv2d(96, 128, 1), torch.randn(2, 96, 3, 3).contiguous(memory_format=torch.channels_last)
    for change in (lambda: None, lambda: conv.weight.data.mul_(2), lambda: conv.weight.data.__setitem__(0, 1.0)):
        change()
        with torch.inference_mode():
            assert torch.allclose(conv(hidden), nn.Conv2d.forward(conv, hidden), atol=1e-5)
    assert conv._packed._kept
    assert not conv.train()._packed._kept  # their memory is given back


def test_relu_comes_after_what_is_around_a_convolution():
    """An adapter adds to what the convolution gives, and a hook sees that, not what is left of it after the ReLU."""
    torch.manual_seed(0)
    conv, hidden = Conv2d(4, 6, 1), torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    seen = []
    with torch.inference_mode():
        around = nn.Sequential(conv, nn.Hardtanh(-5, 0.1))
        assert torch.allclose(conv_relu(around, hidden), around(hidden).relu(), atol=1e-6)
        with conv.register_forward_hook(lambda module, inputs, output: seen.append(output.min().item())):
            conv_relu(conv, hidden)
    assert seen[0] < 0


@pytest.mark.parametrize("shape", [(96,), (5, 96), (2, 64, 3, 96), (0, 96)])
@pytest.mark.parametrize("dtype", ONEDNN_DTYPES)
def test_packed_weights_give_the_same(layers, shape, dtype):
    weight, bias = (tensor.detach().to(dtype) for tensor in (layers[0].weight, layers[0].bias))
    hidden = torch.randn(shape).to(dtype)
    output = onednn_linear(hidden, pack_weight(weight), bias)
    expected = F.linear(hidden.double(), weight.double(), bias.double())
    assert output.shape == expected.shape
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-6  # half a step of bfloat16's 8 bits
    assert torch.allclose(output.double(), expected, rtol=tolerance, atol=2e-6)


@pytest.mark.parametrize("fuses_gelu", [True, False])
@pytest.mark.parametrize("dtype", ONEDNN_DTYPES)
def test_gelu_and_residual_give_the_same_in_one_pass(layers, dtype, fuses_gelu, monkeypatch):
    monkeypatch.setattr(linear, "FUSES_GELU", fuses_gelu)
    weight, bias = (tensor.detach().to(dtype) for tensor in (layers[0].weight, layers[0].bias))
    hidden, residual = torch.randn(5, 96).to(dtype), torch.randn(5, 384).to(dtype)
    kept = hidden.clone(), residual.clone()
    with torch.no_grad():
        activated = onednn_linear(hidden, weight, bias, "gelu")
        total = onednn_add_linear(residual, hidden, weight, bias)
        plain = onednn_linear(hidden, weight, bias).double()
    atol = 0.02 if dtype == torch.bfloat16 else 1e-6
    assert torch.allclose(activated.double(), F.gelu(plain), atol=atol)
    assert torch.allclose(total.double(), residual.double() + plain, atol=atol)
    assert torch.equal(hidden, kept[0])
    assert torch.equal(residual, kept[1])
