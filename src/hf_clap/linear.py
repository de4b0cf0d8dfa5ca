"""Linear layers and convolutions at the speed that a CPU has, which PyTorch misses where it does not compile."""

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from .derived import Derived, is_any_watched, is_plain

# The gradient of so few weights in float32 is left to MKL,
WEIGHTS_FOR_MKL = 2**16

# and all such gradients on CPUs of MKL's own maker, where they take two thirds of oneDNN's time (measured).
IS_INTEL = hasattr(torch.cpu, "get_capabilities") and "Intel" in torch.cpu.get_capabilities().get("cpu_name", "")

# With AVX2, oneDNN's product with GELU in it takes a quarter to a third longer than one after the other (measured).
FUSES_GELU = torch.backends.cpu.get_cpu_capability() != "AVX2"


class Linear(nn.Linear):
    """
    `nn.Linear` that goes through oneDNN where it may: on a CPU, in plain eager execution, in float32 or in bfloat16
    that the CPU has. There PyTorch takes MKL for float32, whose kernels are slower on CPUs of other makers (HTS-AT as
    a whole gains a tenth to a quarter on AMD's). PyTorch's own switch for it would change the user's whole process.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not has_onednn(hidden, self.weight):
            return super().forward(hidden)
        if torch.is_grad_enabled():
            # the view outside, where it may be changed in place, as AdaLoRA and Longformer do with what they get
            rows = _LinearWithGradients.apply(hidden.reshape(-1, hidden.shape[-1]), self.weight, self.bias)
            return rows.view(*hidden.shape[:-1], rows.shape[-1])
        return onednn_linear(hidden, self.weight, self.bias)


class _LinearWithGradients(torch.autograd.Function):
    """
    `F.linear` of `(rows, dim)` in training through oneDNN. It wants one factor of the weights' gradient copied into
    another order, which in float32 is worth it where weights are many (half of MKL's time) and in bfloat16 nowhere.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        wants_input, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(hidden if wants_weight else None, weight if wants_input else None)
        return onednn_linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        is_for_mkl = IS_INTEL and gradient.dtype == torch.float32
        # under gradients it is of a gradient that has one itself
        linear = F.linear if is_for_mkl or torch.is_grad_enabled() else onednn_linear
        weight_gradient = None
        if hidden is not None:
            weights = gradient.shape[1] * hidden.shape[1]
            if gradient.dtype == torch.float32 and weights > WEIGHTS_FOR_MKL and gradient.numel():
                weight_gradient = linear(gradient.T, hidden.T, None)
            else:
                weight_gradient = gradient.T @ hidden
        return (
            None if weight is None else linear(gradient, weight.T, None),
            weight_gradient,
            gradient.sum(dim=0) if ctx.needs_input_grad[2] else None,
        )


def through_onednn(model: nn.Module) -> nn.Module:
    """The model with its plain `nn.Linear` layers as `Linear`: the same parameters under the same names."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model


class Conv2d(nn.Conv2d):
    """
    `nn.Conv2d` through oneDNN where `Linear` is, and with the ReLU after it on request. Where kernels do not overlap
    it is one linear layer at every place, and computed so, with weights packed once: oneDNN's own convolution packs
    1x1 weights anew at each call (a tenth of MobileNetV1's time at 36 patches, a third at 9), and cuts a spectrogram
    in patches at a tenth of the speed.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._packed: Derived[torch.Tensor] = Derived()

    def train(self, mode: bool = True) -> "Conv2d":
        if mode:
            self._packed.clear()  # until the next inference
        super().train(mode)
        return self

    def kernel(self, hidden: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The weights to convolve with, and the padding."""
        return self.weight, self.padding

    def forward(self, hidden: torch.Tensor, relu: bool = False) -> torch.Tensor:
        (weight, padding), stride = self.kernel(hidden), self.stride
        if not is_plain_inference(hidden, weight):
            hidden = F.conv2d(hidden, weight, self.bias, stride, padding, self.dilation, self.groups)
            return F.relu(hidden, inplace=True) if relu else hidden
        then = "relu" if relu else "none"
        is_linear = (weight.shape[2:], padding, self.dilation, self.groups) == (stride, (0, 0), (1, 1), 1)
        fits = hidden.shape[2] >= stride[0] and hidden.shape[3] >= stride[1]
        if is_linear and fits and (hidden.shape[1] == 1 or hidden.is_contiguous(memory_format=torch.channels_last)):
            packed = self._packed((weight,), lambda: pack_weight(weight.flatten(1)))
            return onednn_linear(_patches(hidden, stride), packed, self.bias, then).permute(0, 3, 1, 2)
        return torch.ops.mkldnn._convolution_pointwise(
            hidden, weight, self.bias, padding, stride, self.dilation, self.groups, then, [], ""
        )


def _patches(hidden: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """(batch, channels, height, width) -> (batch, rows, columns, channels * patch), of patches that are whole"""
    rows, columns = hidden.shape[2] // size[0], hidden.shape[3] // size[1]
    hidden = hidden[:, :, : rows * size[0], : columns * size[1]]
    return hidden.unflatten(3, (columns, size[1])).unflatten(2, (rows, size[0])).permute(0, 2, 4, 1, 3, 5).flatten(3)


def conv_relu(conv: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """`relu(conv(hidden))`, in one pass if the convolution is ours: an adapter around it adds to what comes before."""
    if isinstance(conv, Conv2d) and not is_any_watched(conv):
        return conv(hidden, relu=True)
    return F.relu(conv(hidden), inplace=True)


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """A linear layer's weight as oneDNN wants it, a copy; at each call it would pack it anew."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


def onednn_linear(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, then: str = "none"
) -> torch.Tensor:
    """A linear layer, then "none", "relu" or "gelu"; the weight may be one that oneDNN has packed."""
    # as torch.compile does; GELU by the error function, not "tanh"
    if then == "gelu" and not FUSES_GELU:
        return torch.ops.aten.gelu_(onednn_linear(hidden, weight, bias))
    return torch.ops.mkldnn._linear_pointwise.default(hidden, weight, bias, then, [], "none")


def onednn_add_linear(
    residual: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The residual and a linear layer of `hidden`, likewise."""
    return torch.ops.mkldnn._linear_pointwise.binary(hidden, residual, weight, bias, "add")


def is_plain_inference(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN may compute it, and without gradients."""
    return not torch.is_grad_enabled() and has_onednn(hidden, weight)


def has_onednn(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether it is float32, or bfloat16 that this CPU has, computed as written."""
    return (
        is_plain(weight)
        and hidden.dtype == weight.dtype
        and hidden.dtype in ONEDNN_DTYPES
        and bool(torch.backends.mkldnn.enabled)
        and nothing_rewrites(hidden)
    )


def nothing_rewrites(tensor: torch.Tensor) -> bool:
    """Whether operators on it run on a CPU as they are called, in its own precision."""
    return is_eager_on_cpu(tensor) and not torch.is_autocast_enabled("cpu")


def is_eager_on_cpu(tensor: torch.Tensor) -> bool:
    """Whether operators on it run on a CPU one by one: no compiler, tensor class or transform is at work."""
    return (
        type(tensor) is torch.Tensor
        and tensor.is_cpu
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
    )


def is_slow_on_cpu(dtype: torch.dtype) -> bool:
    """
    Whether this CPU does not compute in it, as oneDNN says: then PyTorch converts number by number, and a tower takes
    10 to 20 times as long as in float32 (measured).
    """
    if not ONEDNN_DTYPES:
        return False  # nobody can say
    if dtype == torch.float16:
        return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype not in ONEDNN_DTYPES


def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """What this PyTorch and CPU have oneDNN for, by operators that are not PyTorch's public face."""
    with suppress(AttributeError, RuntimeError, TypeError), torch.no_grad(), torch.device("cpu"):
        hidden, weight, bias = torch.ones(1, 2), torch.tensor([[1.0, 2.0]]), torch.ones(1)
        if nothing_rewrites(hidden) and torch.equal(onednn_linear(hidden, weight, bias), torch.full((1, 1), 4.0)):
            bfloat16 = [torch.bfloat16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []
            return (torch.float32, *bfloat16)
    return ()


ONEDNN_DTYPES = _onednn_dtypes()
