"""A spectrogram stretched in time by cubic interpolation, as HTS-AT's authors do it by a bicubic one of two axes."""

from functools import lru_cache

import torch
from torch.nn import functional as F

from .linear import nothing_rewrites

CUBIC = -0.75  # the coefficient of the convolution (Keys 1981) that PyTorch and OpenCV use

Tap = tuple[torch.Tensor, torch.Tensor]  # rows, and their weights


def stretch(features: torch.Tensor, frames: int) -> torch.Tensor:
    """
    `torch.nn.functional.interpolate` with `mode="bicubic", align_corners=True` for as many bins as there are, which on
    a CPU takes two to four times as long: it adds up 16 values for each, and 12 of them times zero.

    Args:
        features: `(batch, channels, any frames, bins)`.
        frames: more than one.

    Returns:
        torch.Tensor: `(batch, channels, frames, bins)`; within rounding what `interpolate` gives.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap.stretch import stretch

    >>> ramp = torch.arange(5.0).view(1, 1, 5, 1)
    >>> stretch(ramp, 9)[0, 0, :, 0].tolist()
    [0.0, 0.40625, 1.0, 1.5, 2.0, 2.5, 3.0, 3.59375, 4.0]

    ```
    """
    if not nothing_rewrites(features):
        return F.interpolate(features, (frames, features.shape[3]), mode="bicubic", align_corners=True)
    dtype = torch.promote_types(features.dtype, torch.float32)
    wide = features.to(dtype)
    (rows, weights), *others = _taps(features.shape[2], frames, dtype)
    stretched = wide.index_select(2, rows) * weights
    for rows, weights in others:
        stretched.addcmul_(wide.index_select(2, rows), weights)
    return stretched.to(features.dtype)


@lru_cache(maxsize=16)
def _taps(length: int, frames: int, dtype: torch.dtype) -> list[Tap]:
    """Of `length` frames, the four that lie around each of `frames` places: `(frames,)`, and `(frames, 1)`."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        place = torch.arange(frames, dtype=dtype) * ((length - 1) / (frames - 1))
        first = place.floor()
        after = place - first
        weights = [_far(after + 1), _near(after), _near(1 - after), _far(2 - after)]
        rows = [(first.long() + step).clamp(0, length - 1) for step in (-1, 0, 1, 2)]
        return [(row, weight[:, None]) for row, weight in zip(rows, weights, strict=True)]


def _near(distance: torch.Tensor) -> torch.Tensor:
    """The weight of a frame that is nearer than one."""
    return ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1


def _far(distance: torch.Tensor) -> torch.Tensor:
    """The weight of one whose distance is between one and two."""
    return ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
