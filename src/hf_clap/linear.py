"""Linear layers at the speed that a CPU has, which `nn.Linear` misses on some."""

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F


class Linear(nn.Linear):
    """
    `nn.Linear` that goes through oneDNN where it may: at inference in float32 on a CPU, in plain eager execution.
    There PyTorch takes MKL, whose kernels are slower on CPUs of other makers (HTS-AT as a whole gains a tenth to a
    quarter on AMD's). PyTorch's own switch for it would change the user's whole process.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if HAS_ONEDNN and _is_plain_inference(hidden, self.weight):
            return _onednn_linear(hidden, self.weight, self.bias)
        return super().forward(hidden)


class Conv2d(nn.Conv2d):
    """
    `nn.Conv2d` whose kernels of 1x1 go through oneDNN, where `Linear` may, as what they are: one linear layer at every
    place. oneDNN's own convolution packs its weights anew at each call (a tenth of MobileNetV1's time at 36 patches, a
    third at 9). For features in channels-last format; others are convolved.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        is_linear = (self.kernel_size, self.stride, self.padding, self.groups) == ((1, 1), (1, 1), (0, 0), 1)
        channels_last = is_linear and hidden.is_contiguous(memory_format=torch.channels_last)
        if HAS_ONEDNN and channels_last and _is_plain_inference(hidden, self.weight):
            places = hidden.permute(0, 2, 3, 1)  # (batch, height, width, channels), a view
            return _onednn_linear(places, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(hidden)


def _onednn_linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")  # as torch.compile does


def _is_plain_inference(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether float32 on a CPU is computed as written, without gradients of any kind."""
    return (
        not torch.is_grad_enabled()
        and type(weight) is nn.Parameter
        and hidden.device.type == weight.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and nothing_rewrites(hidden)
    )


def nothing_rewrites(tensor: torch.Tensor) -> bool:
    """Whether operators on it run as they are called: no autocast, compiler, tensor class or transform is at work."""
    return (
        type(tensor) is torch.Tensor
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def _has_onednn() -> bool:
    """Whether this PyTorch has the operator and the switches in the form used here: they are not its public face."""
    hidden, weight, bias = torch.ones(1, 2), nn.Parameter(torch.tensor([[1.0, 2.0]])), torch.ones(1)
    try:
        with torch.no_grad():
            return _is_plain_inference(hidden, weight) and torch.equal(
                _onednn_linear(hidden, weight, bias), F.linear(hidden, weight, bias)
            )
    except (AttributeError, RuntimeError, TypeError):
        return False


HAS_ONEDNN = _has_onednn()
