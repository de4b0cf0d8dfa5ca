"""BERT's and RoBERTa's layers at inference on a CPU: real tokens alone, and no operator that can be spared."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import GELUActivation
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert import modeling_bert as bert
from transformers.models.roberta import modeling_roberta as roberta

from .derived import ModuleState, is_plain
from .linear import Linear, is_plain_inference, onednn_add_linear, onednn_linear

# What layers are made of where `_read` computes what they do.
PARTS = {nn.ModuleList, Linear, GELUActivation, nn.LayerNorm, nn.Dropout} | {
    getattr(module, f"{name}{part}")
    for module, name in ((bert, "Bert"), (roberta, "Roberta"))
    for part in ("Layer", "Attention", "SelfAttention", "SelfOutput", "Intermediate", "Output")
}


class UnpaddedEncoder(nn.Module):
    """
    An encoder of transformers' that leaves padding out, as ModernBERT does (Warner et al. 2024, arXiv 2412.13663,
    section 2.1.2), and adds GELU and the residual within the linear layers before them: at inference on a CPU, where
    there are no adapters or hooks, of texts that begin with a real token. The hidden states of padding are then 0.

    Example:

    ```python
    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from hf_clap.linear import through_onednn
    >>> from hf_clap.unpadded_encoder import without_padding

    >>> config = BertConfig(vocab_size=9, hidden_size=24, num_attention_heads=2, intermediate_size=8)
    >>> tower, words = BertModel(config).eval(), torch.tensor([[5, 6, 7], [8, 0, 0]])
    >>> with torch.no_grad():
    ...     expected = tower(words, attention_mask=words.ne(0)).pooler_output
    ...     pooled = without_padding(through_onednn(tower))(words, attention_mask=words.ne(0)).pooler_output
    >>> torch.allclose(pooled, expected, atol=1e-6)
    True

    ```
    """

    layer: nn.ModuleList
    plainness: "Plainness"

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *others: Any, **options: Any
    ) -> Any:
        """As in transformers."""
        is_real = None
        # positions are in the hidden states already
        asked = [*others, *(value for name, value in options.items() if name != "position_ids")]
        asks_more = any(value is not None and value is not False for value in asked)
        if not asks_more and self.plainness(self, hidden_states):
            is_real = _real_tokens(hidden_states, attention_mask)
        if is_real is None:
            return super().forward(hidden_states, attention_mask, *others, **options)
        places = is_real.flatten().nonzero()[:, 0]  # of the real tokens
        rows = hidden_states.flatten(0, 1).index_select(0, places)
        row_of_token = is_real.flatten().cumsum(0).sub_(1)  # padding, which is masked, has that of the token before it
        for layer in self.layer:
            rows = _read(layer, rows, is_real, places, row_of_token)
        padded = rows.new_zeros(len(row_of_token), rows.shape[1]).index_copy_(0, places, rows)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=padded.view(hidden_states.shape))


class UnpaddedBertEncoder(UnpaddedEncoder, bert.BertEncoder):
    """BERT's."""


class UnpaddedRobertaEncoder(UnpaddedEncoder, roberta.RobertaEncoder):
    """RoBERTa's."""


UNPADDED: dict[type[nn.Module], type[UnpaddedEncoder]] = {
    bert.BertEncoder: UnpaddedBertEncoder,
    roberta.RobertaEncoder: UnpaddedRobertaEncoder,
}


def without_padding(tower: nn.Module) -> nn.Module:
    """
    The text tower, which went `through_onednn`, with an `UnpaddedEncoder` where it has one of BERT's or RoBERTa's: the
    same parameters.
    """
    encoder: Any = getattr(tower, "encoder", None)
    if type(encoder) in UNPADDED:
        encoder.__class__ = UNPADDED[type(encoder)]
        encoder.plainness = Plainness()
    return tower


class Plainness:
    """Whether an encoder computes what `_read` does; found out anew when anything in it has changed."""

    def __init__(self) -> None:
        self._found: tuple[ModuleState, bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_found": None}  # a copy has modules of its own

    def __call__(self, encoder: Any, hidden: torch.Tensor) -> bool:
        if encoder.training:
            self._found = None  # it holds weights that may not be the encoder's any more
            return False
        weight = next(encoder.parameters(), None)  # a replica of DataParallel has none
        if weight is None or encoder.config._attn_implementation != "sdpa" or not is_plain_inference(hidden, weight):
            return False
        found = self._found  # once, for another thread may look at the same time
        if found is None or not found[0].is_as_seen():
            state = ModuleState(encoder, PARTS)
            self._found = found = state, state.is_plain and all(map(_is_plain, encoder.layer))
        return found[1]


def _is_plain(layer: Any) -> bool:
    heads, ends = layer.attention.self, (layer.attention.output, layer.output)
    linears = [heads.query, heads.key, heads.value, layer.intermediate.dense, *(end.dense for end in ends)]
    return (
        not layer.is_decoder
        and type(layer.intermediate.intermediate_act_fn) is GELUActivation
        and all(type(linear) is Linear for linear in linears)
        and all(type(end.LayerNorm) is nn.LayerNorm for end in ends)
        and all(is_plain(weight) and weight.dtype == heads.query.weight.dtype for weight in layer.parameters())
    )


def _real_tokens(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """(texts, tokens) as bool, of SDPA's mask (texts, 1, tokens, tokens); None if that is another than of padding."""
    texts, tokens = hidden.shape[:2]
    if mask is None:
        return hidden.new_ones((texts, tokens), dtype=torch.bool)
    if mask.dtype != torch.bool or mask.shape != (texts, 1, tokens, tokens):
        return None
    is_real = mask[:, 0, 0]
    # the pooler takes the first token, whatever it is
    is_of_padding = is_real[:, 0].all() and (mask == mask[:, :, :1]).all()
    return is_real if is_of_padding else None


def _read(
    layer: Any, rows: torch.Tensor, is_real: torch.Tensor, places: torch.Tensor, row_of_token: torch.Tensor
) -> torch.Tensor:
    """A layer over the rows of real tokens, `(real tokens, dim)`."""
    heads = layer.attention.self
    query, key, value = (
        onednn_linear(rows, linear.weight, linear.bias)
        .index_select(0, row_of_token)
        .view(*is_real.shape, -1, heads.attention_head_size)
        .transpose(1, 2)
        for linear in (heads.query, heads.key, heads.value)
    )
    mask = is_real[:, None, None].expand(-1, -1, is_real.shape[1], -1)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=heads.scaling)
    attended = attended.transpose(1, 2).reshape(len(row_of_token), -1).index_select(0, places)
    rows = _add(rows, attended, layer.attention.output)
    dense = layer.intermediate.dense
    return _add(rows, onednn_linear(rows, dense.weight, dense.bias, "gelu"), layer.output)


def _add(residual: torch.Tensor, rows: torch.Tensor, end: Any) -> torch.Tensor:
    """The end of a branch: its linear layer, the residual, and the norm."""
    return end.LayerNorm(onednn_add_linear(residual, rows, end.dense.weight, end.dense.bias))
