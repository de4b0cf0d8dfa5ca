import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import MobileNetV1Config, MobileNetV1Model

from hf_clap import HfClapPatchCnnConfig, HfClapPatchCnnModel


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    return HfClapPatchCnnModel(HfClapPatchCnnConfig()).eval()


def test_a_patch_is_transformers_mobilenet(tower):
    """Same weights, same patches: transformers' MobileNetV1 with TensorFlow padding and its norms made neutral."""
    peer = MobileNetV1Model(MobileNetV1Config(num_channels=1, hidden_act="relu")).eval()
    ours = [tower.stem] + [conv for layer in tower.layers for conv in (layer.depthwise, layer.pointwise)]
    for theirs, conv in zip([peer.conv_stem, *peer.layer], ours, strict=True):
        theirs.convolution.weight.data = conv.weight.data
        theirs.normalization.weight.data.fill_(np.sqrt(1 + theirs.normalization.eps))
        theirs.normalization.bias.data = conv.bias.data
    generator = torch.Generator().manual_seed(1)
    for frames in (96, 97):  # odd sizes pad on both sides
        patches = torch.randn(3, 1, frames, 64, generator=generator)
        with torch.inference_mode():
            expected = peer(patches).pooler_output
            assert torch.allclose(tower._encode(patches), expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("count", [1, 2, 19, 41])
def test_a_patch_is_the_same_in_any_number_of_them_to_the_bit(tower, count):
    patches = torch.randn(41, 1, 96, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        assert torch.equal(tower._encode(patches[:count]), tower._encode(patches)[:count])


def test_patches_are_spread_over_the_whole_clip(tower):
    frames = torch.arange(96, 999)
    starts, step_mask = tower._patch_starts(frames, 998)
    patches = {int(n): row[real] for n, row, real in zip(frames, starts, step_mask, strict=True)}
    assert patches[96].tolist() == [0]
    assert patches[97].tolist() == [0, 1]
    assert patches[240].tolist() == [0, 48, 96, 144]
    assert patches[498].tolist() == [0, 50, 100, 150, 201, 251, 301, 351, 402]
    for length, row in patches.items():
        assert row[0] == 0
        assert row[-1] == length - 96
        if length >= 192:  # every 48 frames, give or take a quarter
            assert 36 <= row.diff().min() <= row.diff().max() <= 60


def test_masked_frames_change_nothing(tower):
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 1, 300, 64, generator=generator)
    mask = torch.zeros(2, 300, dtype=torch.bool)
    mask[0, :130], mask[1, :300] = True, True
    with torch.inference_mode():
        together = tower(features, mask)
        alone = tower(features[:1, :, :130])
    assert together.step_mask.sum(dim=1).tolist() == [2, 5]
    assert torch.allclose(together.pooler_output[:1], alone.pooler_output, atol=1e-6)
    assert together.last_hidden_state[0, 2:].abs().max() == 0
    expected = together.last_hidden_state[1].mean(dim=0)
    assert torch.allclose(together.pooler_output[1], expected, atol=1e-6)


@pytest.mark.parametrize("frames", [96, 97, 240, 998])
def test_without_a_mask_all_frames_count(tower, frames):
    features = torch.randn(2, 1, frames, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        outputs = [tower(features), tower(features, torch.ones(2, frames, dtype=torch.bool))]
    for name in ("last_hidden_state", "pooler_output", "step_mask"):
        assert torch.equal(*(output[name] for output in outputs))


def test_a_clip_shorter_than_a_patch_is_refused(tower):
    with pytest.raises(ValueError, match="at least 96 frames of audio and got 95"):
        tower(torch.zeros(1, 1, 95, 64))


@pytest.mark.parametrize("shape", [(2, 201), (1, 200)])
def test_a_mask_of_another_shape_is_refused(tower, shape):
    expected = rf"^A mask of shape \({shape[0]}, {shape[1]}\) does not fit features of 2 clips of 200 frames; pass "
    with pytest.raises(ValueError, match=expected):
        tower(torch.zeros(2, 1, 200, 64), torch.ones(shape, dtype=torch.bool))


def test_a_mask_counts_frames_in_any_precision(tower):
    features = torch.randn(1, 1, 400, 64)
    masks = [(torch.arange(400) < 391)[None].to(dtype) for dtype in (torch.bool, torch.int64, torch.bfloat16)]
    expected, *others = [tower(features, mask).pooler_output for mask in masks]
    assert all(torch.equal(other, expected) for other in others)


@pytest.mark.parametrize("mask", [None, torch.ones(0, 100, dtype=torch.bool)])
def test_no_clips_are_no_embeddings(tower, mask):
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            output = tower(torch.zeros(0, 1, 100, 64), mask)
        assert output.pooler_output.shape == (0, tower.config.hidden_size)


def test_a_convolution_cannot_be_made_anew_with_other_edges(tower):
    """As tools that quantize do, from what it says of itself."""
    for conv in tower.modules():
        if isinstance(conv, nn.Conv2d):
            settings = {"stride": conv.stride, "padding": conv.padding, "groups": conv.groups}
            if conv.stride == (1, 1):
                again = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, **settings)
                again.load_state_dict(conv.state_dict())
                hidden = torch.randn(2, conv.in_channels, 6, 6)
                assert torch.allclose(again(hidden), conv(hidden), atol=1e-5)
            else:
                with pytest.raises(ValueError, match="not supported for strided convolutions"):
                    nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, **settings)


def test_gradients_reach_the_first_layer():
    tower = HfClapPatchCnnModel(HfClapPatchCnnConfig(stem_channels=4, channels=(4,), strides=(1,)))
    tower(torch.randn(1, 1, 100, 64)).pooler_output.sum().backward()
    assert F.relu(tower.stem.weight.grad.abs()).sum() > 0
