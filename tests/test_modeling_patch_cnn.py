import numpy as np
import pytest
import torch
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


def test_patches_start_every_48_frames_and_the_last_ends_with_the_clip(tower):
    mask = torch.zeros(3, 250)
    for row, frames in enumerate((96, 150, 240)):
        mask[row, :frames] = 1
    starts, step_mask = tower._patch_starts(torch.zeros(3, 1, 250, 64), mask)
    assert [row[real].tolist() for row, real in zip(starts, step_mask, strict=True)] == [
        [0],
        [0, 48, 54],
        [0, 48, 96, 144],
    ]


def test_masked_frames_change_nothing(tower):
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 1, 300, 64, generator=generator)
    mask = torch.zeros(2, 300, dtype=torch.bool)
    mask[0, :130], mask[1, :300] = True, True
    with torch.inference_mode():
        together = tower(features, mask)
        alone = tower(features[:1, :, :130])
    assert together.step_mask.sum(dim=1).tolist() == [2, 6]
    assert torch.allclose(together.pooler_output[:1], alone.pooler_output, atol=1e-6)
    assert together.last_hidden_state[0, 2:].abs().max() == 0
    expected = together.last_hidden_state[1].mean(dim=0)
    assert torch.allclose(together.pooler_output[1], expected, atol=1e-6)


def test_a_clip_shorter_than_a_patch_is_refused(tower):
    with pytest.raises(ValueError, match="at least 96 frames of audio and got 95"):
        tower(torch.zeros(1, 1, 95, 64))


def test_gradients_reach_the_first_layer():
    tower = HfClapPatchCnnModel(HfClapPatchCnnConfig(stem_channels=4, channels=(4,), strides=(1,)))
    tower(torch.randn(1, 1, 100, 64)).pooler_output.sum().backward()
    assert F.relu(tower.stem.weight.grad.abs()).sum() > 0
