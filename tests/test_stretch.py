"""Cubic interpolation of frames against PyTorch's bicubic one."""

import pytest
import torch
from torch.nn import functional as F

from hf_clap.stretch import stretch


def interpolate(features, frames):
    return F.interpolate(features, (frames, features.shape[3]), mode="bicubic", align_corners=True)


@pytest.mark.parametrize("length", [1, 2, 3, 500, 1001, 1024, 1500])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_is_pytorchs(length, dtype, tolerance):
    features = torch.randn(3, 4, length, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    with torch.inference_mode():
        stretched = stretch(features, 1024)
    assert stretched.dtype == dtype
    torch.testing.assert_close(stretched, interpolate(features, 1024), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("length", [3, 500, 1001])
def test_in_bfloat16_it_is_rounded_once(length):
    features = torch.randn(3, 1, length, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    stretched, exact = stretch(features, 1024), interpolate(features.float(), 1024)
    torch.testing.assert_close(stretched.float(), exact, atol=1e-5, rtol=2**-8)


def test_half_way_between_frames():
    impulse = torch.zeros(1, 1, 9, 1)
    impulse[0, 0, 4] = 1
    expected = [0.0, -0.09375, 0.0, 0.59375, 1.0, 0.59375, 0.0, -0.09375, 0.0]  # a / 8 and 1/2 - a / 8, of a = -3/4
    assert stretch(impulse, 17)[0, 0, 4:13, 0].tolist() == expected


def test_gradients_are_pytorchs():
    features = torch.randn(2, 1, 10, 3, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        stretch(features, 16)  # what it keeps serves gradients too
    weight = torch.randn(2, 1, 16, 3, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad((function(features, 16) * weight).sum(), features)[0]
        for function in (stretch, interpolate)
    )
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda features: stretch(features, 16), features)


def test_other_layouts_are_the_same():
    features = torch.randn(2, 4, 50, 8)
    for other in (features.to(memory_format=torch.channels_last), features.transpose(2, 3).contiguous().mT):
        assert torch.equal(stretch(other, 64), stretch(features, 64))
