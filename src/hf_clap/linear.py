"""Linear layers at the speed that a CPU has, which `nn.Linear` misses by half on some."""

import torch
from torch import nn


class Linear(nn.Linear):
    """
    `nn.Linear` that goes through oneDNN where it may: at inference in float32 on a CPU, eagerly and without autocast.
    There PyTorch takes MKL, whose kernels are slower on CPUs of other makers (HTS-AT as a whole gains a tenth to a
    quarter on AMD's). Switching PyTorch over would change the user's process; this changes nothing else.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if _can_use_onednn(hidden, self.weight):
            return torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self.bias, "none", [], "")
        return super().forward(hidden)


def _can_use_onednn(hidden: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and hidden.device.type == weight.device.type == "cpu"
        and hidden.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and HAS_ONEDNN
        and bool(torch.backends.mkldnn.enabled)
    )


# The operator is what torch.compile makes of a linear layer; builds for other processors lack it.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
