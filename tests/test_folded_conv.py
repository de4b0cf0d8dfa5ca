"""Convolution, batch norm and ReLU as one operator: the same values, and nothing stale."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from hf_clap import HfClapCnn14Config, HfClapCnn14Model
from hf_clap.folded_conv import FoldedConv


@pytest.fixture
def pair():
    """A convolution and a norm that has seen something."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
    norm(conv(torch.randn(4, 8, 9, 9)) * 3 + 1)
    norm.weight.data.uniform_(-2, 2)
    norm.bias.data.uniform_(-1, 1)
    return conv, norm.eval()


@pytest.fixture
def tower():
    torch.manual_seed(0)
    tower = HfClapCnn14Model(HfClapCnn14Config(channels=(8, 16), pool_sizes=(2, 2), hidden_size=12))
    tower(torch.randn(4, 1, 64, 64) * 20 - 40)  # the norms see something
    return tower.eval()


def plain(hidden, conv, norm):
    return norm(conv(hidden)).relu()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 5, 7), (3, 8, 1, 1), (3, 8, 64, 16)])
def test_values_are_those_of_the_modules(pair, bias, affine, shape):
    conv, norm = pair
    if bias:
        conv.bias = nn.Parameter(torch.randn(16))
    if not affine:
        norm = nn.BatchNorm2d(16, affine=False).eval()
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    hidden = torch.randn(shape)
    with torch.inference_mode():
        expected = plain(hidden, conv, norm)
        output = FoldedConv()(hidden, conv, norm)
    assert expected.max() > 0.5
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(output, expected, atol=1e-5)


def test_every_change_is_seen(pair):
    conv, norm = pair
    folded, hidden = FoldedConv(), torch.randn(2, 8, 6, 6)
    changes = [
        lambda: conv.weight.data.mul_(2),
        lambda: norm.load_state_dict({**norm.state_dict(), "running_mean": torch.ones(16)}),
        lambda: setattr(norm, "bias", nn.Parameter(torch.full((16,), 0.3))),
        lambda: norm.running_var.add_(1),
        lambda: setattr(norm, "eps", 0.5),
    ]
    with torch.no_grad():
        before = folded(hidden, conv, norm)
        for change in changes:
            change()
            after = folded(hidden, conv, norm)
            assert not torch.allclose(after, before, atol=1e-3)
            assert torch.allclose(after, plain(hidden, conv, norm), atol=1e-5)
            before = after


def test_weights_made_in_inference_mode(pair):
    """They count no versions."""
    with torch.inference_mode():
        conv, norm = (copy.deepcopy(module) for module in pair)
        hidden = torch.randn(2, 8, 6, 6)
        assert torch.allclose(FoldedConv()(hidden, conv, norm), plain(hidden, conv, norm), atol=1e-5)


# Peak memory of folding, in copies of the weights. The first, small one loads what the second needs too.
COPIES = """
from pathlib import Path
import torch
from torch import nn
from hf_clap.folded_conv import FoldedConv

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def fold(channels, outputs):
    conv, norm = nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs).eval()
    before = peak()
    FoldedConv()(torch.zeros(1, channels, 2, 2), conv, norm)
    return (peak() - before) / (4 * conv.weight.numel())

with torch.inference_mode():
    fold(8, 8)
    print(fold(1024, 2048))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
def test_folding_takes_the_memory_of_two_copies():
    """What is kept and what it is packed from: of Cnn14's last convolution they are 151 MB each."""
    program = subprocess.run([sys.executable, "-c", COPIES], check=True, capture_output=True, text=True)
    assert float(program.stdout) == pytest.approx(2, abs=0.2)


def test_where_it_is_possible(pair):
    conv, norm = pair
    hidden = torch.randn(2, 8, 6, 6)
    assert not FoldedConv.is_possible(hidden, conv, norm)  # gradients are wanted
    with torch.no_grad():
        assert FoldedConv.is_possible(hidden, conv, norm)
        assert not FoldedConv.is_possible(hidden, conv, norm.train())
        norm.eval()
        with conv.register_forward_hook(lambda module, inputs, output: None):
            assert not FoldedConv.is_possible(hidden, conv, norm)
        with nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None):
            assert not FoldedConv.is_possible(hidden, conv, norm)
        norm.forward = lambda hidden: 2 * hidden
        assert not FoldedConv.is_possible(hidden, conv, norm)
        del norm.forward
        assert FoldedConv.is_possible(hidden, conv, norm)
        assert not FoldedConv.is_possible(hidden, nn.utils.parametrizations.weight_norm(conv), norm)


def test_a_norm_of_another_kind_is_called():
    tower = HfClapCnn14Model(HfClapCnn14Config(channels=(8, 16), pool_sizes=(2, 2), hidden_size=12))
    for block in tower.eval().blocks:
        block.norms = nn.ModuleList(nn.Identity() for _ in block.norms)
    features = torch.randn(1, 1, 100, 64)
    expected = tower(features).pooler_output.detach()
    with torch.no_grad():
        assert torch.allclose(tower(features).pooler_output, expected, atol=1e-6)


def test_a_tower_folds_and_can_do_without(tower):
    features = torch.randn(6, 1, 64, 64) * 20 - 40
    names = list(tower.state_dict())
    with torch.inference_mode():
        folded = tower(features)
        assert all(conv._folded._kept is not None for block in tower.blocks for conv in block.folded)
        tower.fold_norms(False)
        assert all(conv._folded._kept is None for block in tower.blocks for conv in block.folded)
        plain = tower(features)
    assert list(tower.state_dict()) == names
    for name in ("last_hidden_state", "pooler_output"):
        assert plain[name].abs().max() > 0.1
        assert torch.allclose(folded[name], plain[name], atol=1e-5)


def test_training_gives_it_back_and_a_copy_has_its_own(tower):
    features = torch.randn(2, 1, 64, 64) * 20 - 40
    with torch.inference_mode():
        expected = tower(features).pooler_output
        clone = copy.deepcopy(tower)
        clone.blocks[0].convs[0].weight.mul_(2)
        assert not torch.allclose(clone(features).pooler_output, expected, atol=1e-3)
    tower.train()
    assert all(conv._folded._kept is None for block in tower.blocks for conv in block.folded)
    tower(features).pooler_output.sum().backward()
    assert tower.blocks[0].convs[0].weight.grad.abs().max() > 0
    with torch.inference_mode():
        moved = tower.eval()(features).pooler_output  # the norms have learnt
    assert not torch.allclose(moved, expected, atol=1e-4)


def test_a_clip_is_the_same_in_any_batch(tower):
    features = torch.randn(9, 1, 64, 64) * 20 - 40
    with torch.inference_mode():
        together = tower(features).pooler_output
        for index in (0, 4, 8):
            assert torch.allclose(together[index], tower(features[index : index + 1]).pooler_output[0], atol=1e-6)
