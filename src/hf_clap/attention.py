"""Attention through transformers' attention interface: SDPA by default, eager and others by `attn_implementation`."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .linear import is_eager_on_cpu


class HeadsAttention(nn.Module):
    """
    Base of attention modules: how heads attend to each other's positions.

    Args:
        config: whose `_attn_implementation` chooses the implementation.
        head_dim: width of a head.
    """

    is_causal = False

    def __init__(self, config: PreTrainedConfig, head_dim: int):
        super().__init__()
        self.config = config
        self.head_dim = head_dim

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None = None,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """
        Args:
            query, key, value: `(batch, length, heads * head_dim)`; any shape that can be viewed so.
            bias: `(1 or batch, heads, length, length)`, added to the scores.
            dropout: of the attention weights, in training.

        Returns:
            torch.Tensor: `(batch, length, heads, head_dim)`.
        """
        shape = (*query.shape[:2], query.shape[2] // self.head_dim, self.head_dim)
        query, key, value = (heads.view(shape).transpose(1, 2) for heads in (query, key, value))
        implementation = self.config._attn_implementation
        if implementation == "sdpa" and is_eager_on_cpu(query):
            implementation = "eager"  # products of matrices: PyTorch's kernel for CPUs takes half as long again
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = dropout if self.training else 0.0
        bias = None if bias is None else bias.to(query.dtype)
        return attention(self, query, key, value, bias, dropout=dropout, scaling=self.head_dim**-0.5)[0]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, with the arguments of transformers' interface; heads before positions."""
    heads = query.shape[1]
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    if key.dtype == torch.bfloat16:
        key = key.contiguous()  # else oneDNN's product copies it number by number
    unused_sum = query.new_empty(1, 1, 1)  # times beta=0: the product is scaled without a pass of its own
    scores = by_head(torch.baddbmm(unused_sum, query, key.transpose(1, 2), beta=0, alpha=scaling), heads)
    if attention_mask is not None:
        # in place it has a gradient that copies all scores twice
        scores = scores + attention_mask if scores.requires_grad else scores.add_(attention_mask)
    in_place = is_eager_on_cpu(scores) and not scores.requires_grad
    weights = torch.softmax(scores, dim=-1, out=scores if in_place else None)  # float32 inside, whatever the precision
    weights = F.dropout(weights, dropout, module.training)
    attended = by_head(torch.bmm(weights.flatten(0, 1), value), heads)
    return attended.transpose(1, 2).contiguous(), weights


def by_head(matrices: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch * heads, …) -> (batch, heads, …)"""
    return matrices.view(-1, heads, *matrices.shape[1:])
