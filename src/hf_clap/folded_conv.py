"""A convolution with the batch norm and the ReLU after it as one operator, for inference on a CPU."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from .derived import Derived, is_any_watched
from .linear import is_plain_inference, onednn_linear, pack_weight

# Height times width up to which a convolution is one product of matrices over copies of each place's surroundings:
# oneDNN's own is slow on small images with many channels (half to a fifth of the speed at 21 x 2 with 2048).
FEW_PLACES = 200


class Folded(NamedTuple):
    """What a convolution and its norm come to."""

    weight: torch.Tensor  # laid out as oneDNN wants it, so that it is not packed anew at each call
    bias: torch.Tensor


class FoldedConv:
    """
    Computes `relu(norm(conv(hidden)))` in one pass, with a norm that does not learn: its scale goes into the
    convolution's weights and its shift into a bias. Both modules stay as they are; what is folded is kept beside them
    until `clear`, or until one of their tensors changes, and is never saved or copied.

    Example:

    ```python
    >>> import torch
    >>> from torch import nn
    >>> from hf_clap.folded_conv import FoldedConv

    >>> conv, norm = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8).eval()
    >>> hidden = torch.ones(1, 1, 5, 5)
    >>> with torch.inference_mode():
    ...     folded = FoldedConv()(hidden, conv, norm)
    ...     print(torch.allclose(folded, norm(conv(hidden)).relu(), atol=1e-6))
    True

    ```
    """

    def __init__(self) -> None:
        self._folded: Derived[Folded] = Derived()

    @staticmethod
    def is_possible(hidden: torch.Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
        """Whether nothing would miss the two modules' own steps: gradients, a norm that learns, hooks, compilers."""
        return (
            type(conv) is nn.Conv2d
            and type(norm) is nn.BatchNorm2d
            and is_plain_inference(hidden, conv.weight)
            and not norm.training
            and norm.track_running_stats
            and isinstance(conv.padding, tuple)
            and conv.padding_mode == "zeros"
            and not is_any_watched(conv, norm)
        )

    def __call__(self, hidden: torch.Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> torch.Tensor:
        """(batch, channels, height, width) -> (batch, out_channels, …), channels last; where it `is_possible`."""
        height, width = hidden.shape[2:]
        is_dense = (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
        as_product = is_dense and height * width <= FEW_PLACES
        folded = self._folded(
            (conv.weight, norm.running_mean, norm.running_var, norm.weight, norm.bias),
            lambda: _fold(conv, norm, as_product),
            (as_product, norm.eps),
        )
        if as_product:
            return _product(hidden, folded, conv)
        return torch.ops.mkldnn._convolution_pointwise(
            hidden.contiguous(memory_format=torch.channels_last),
            folded.weight,
            folded.bias,
            *_places(conv),
            "relu",
            [],
            "",
        )

    def clear(self) -> None:
        """Give the memory back."""
        self._folded.clear()


def _product(hidden: torch.Tensor, folded: Folded, conv: nn.Conv2d) -> torch.Tensor:
    """The convolution as a linear layer over the pixels around each place, channels last."""
    padding: Any = conv.padding  # not a word, see is_possible
    vertical, horizontal = padding
    padded = F.pad(hidden.permute(0, 2, 3, 1), (0, 0, horizontal, horizontal, vertical, vertical))
    around = padded.unfold(1, conv.kernel_size[0], 1).unfold(2, conv.kernel_size[1], 1)
    around = around.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (batch, height, width, kernel height * width * channels)
    return onednn_linear(around, folded.weight, folded.bias, "relu").permute(0, 3, 1, 2)


def _places(conv: nn.Conv2d) -> tuple[Any, ...]:
    return conv.padding, conv.stride, conv.dilation, conv.groups


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d, as_product: bool) -> Folded:
    """Weight and bias, computed in float32."""
    mean, variance = (
        statistic.float() for statistic in (norm.running_mean, norm.running_var) if statistic is not None
    )
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.float()
    bias = -mean * scale
    if norm.affine:
        bias = bias + norm.bias.float()
    if conv.bias is not None:
        bias = bias + conv.bias.float() * scale
    dtype = conv.weight.dtype
    weight = (conv.weight.float() * scale[:, None, None, None]).to(dtype)
    if as_product:  # under one name, so that there is never a copy more than needed
        weight = weight.permute(0, 2, 3, 1).flatten(1)
        packed = pack_weight(weight)
    else:
        weight = weight.to_mkldnn()
        packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(weight, *_places(conv))
    return Folded(packed, bias.to(dtype))
