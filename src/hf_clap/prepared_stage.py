"""
A stage of HTS-AT for inference on a CPU: its operators one after the other, with weights as oneDNN wants them. Calling
its modules takes a tenth longer for one clip, and packing weights at each call a seventh of the linear layers' time.
"""

from typing import Any

import torch
from torch import nn

from .attention import by_head
from .derived import ONE_AT_A_TIME, Derived, ModuleState, is_plain
from .linear import Linear, is_plain_inference, onednn_add_linear, onednn_linear, pack_weight

# Float32 weights are kept packed too where a block has so few that they take little memory; and these meet many rows.
# All of them would take 100 MB, more than transformers takes for tagging, and save a fortieth of its time. In bfloat16
# both together take what float32 weights take.
PACKED_BLOCK_WEIGHTS = 2**19

LinearTensors = tuple[torch.Tensor, torch.Tensor | None]  # weight and bias
NormArguments = tuple[Any, ...]  # of torch.layer_norm


class StagePreparation:
    """
    Prepares a `SwinStage`, and anew when anything in it has changed.

    Args:
        parts: classes of modules that it computes what they do; where there is another, modules are called.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap import HfClapHtsatConfig, HfClapHtsatModel

    >>> config = HfClapHtsatConfig(patch_embed_dim=8, num_attention_heads=(1, 1, 2, 2))
    >>> stage, hidden = HfClapHtsatModel(config).eval().stages[3], torch.randn(1, 64, 64)
    >>> expected = stage(hidden)  # by its modules, as gradients are wanted
    >>> with torch.inference_mode():
    ...     prepared = stage.preparation(stage, hidden)
    ...     print(torch.allclose(prepared(hidden), expected, atol=1e-5))
    True

    ```
    """

    def __init__(self, parts: set[type[nn.Module]]) -> None:
        self._parts = parts
        self._seen: _Seen | None = None
        self._prepared: Derived[PreparedStage] = Derived()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_seen": None}

    def __call__(self, stage: Any, hidden: torch.Tensor) -> "PreparedStage | None":
        """
        Args:
            stage: always the same `SwinStage`.
            hidden: what it hears.

        Returns:
            PreparedStage | None: None where its modules must be called: in training or for gradients, with adapters or
            hooks, under a compiler, or on another device.
        """
        weight = next(stage.parameters(), None)  # a replica of DataParallel has none
        if stage.training or weight is None or not is_plain_inference(hidden, weight):
            return None
        seen = self._seen  # once, for another thread may look at the same time
        if seen is None or not seen.is_still(hidden.dtype):
            with ONE_AT_A_TIME:
                seen = self._seen
                if seen is None or not seen.is_still(hidden.dtype):
                    self.clear()
                    self._seen = seen = _Seen(stage, hidden.dtype, self._parts)
        if not seen.is_plain or stage.blocks[0].attention.config._attn_implementation not in ("eager", "sdpa"):
            return None
        epsilons = tuple(norm.eps for norm in seen.norms)
        return self._prepared(seen.sources, lambda: PreparedStage(stage, _packs(stage)), epsilons)

    def clear(self) -> None:
        """Give the memory back."""
        self._seen = None
        self._prepared.clear()


class _Seen:
    """A `SwinStage` as it was when it was prepared."""

    def __init__(self, stage: Any, dtype: torch.dtype, parts: set[type[nn.Module]]):
        self._dtype, self._state = dtype, ModuleState(stage, parts)
        self.is_plain = self._state.is_plain and _is_plain(stage, dtype)  # else its modules must be called
        self.sources, self.norms = (_sources(stage), _norms(stage)) if self.is_plain else ([], [])

    def is_still(self, dtype: torch.dtype) -> bool:
        return self._dtype == dtype and self._state.is_as_seen()


class PreparedStage:
    """`(batch, patches, dim)` -> what the `SwinStage` gives, whose weights it has packed or uses as they are."""

    def __init__(self, stage: Any, packs: bool):
        *orders, self.after = stage.orders
        self.blocks = [PreparedBlock(block, order, packs) for block, order in zip(stage.blocks, orders, strict=True)]
        self.merging: tuple[NormArguments, LinearTensors] | None = None
        if not stage.is_last:
            self.merging = _norm(stage.downsample.norm), _linear(stage.downsample.reduction, packs)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        batch, patches, dim = hidden.shape
        for block in self.blocks:
            hidden = block(hidden.index_select(1, block.order).view(-1, dim)).view(batch, patches, dim)
        hidden = hidden.index_select(1, self.after)
        if self.merging is None:
            return hidden
        norm, reduction = self.merging
        return onednn_linear(torch.layer_norm(hidden.view(batch, patches // 4, 4 * dim), *norm), *reduction)


class PreparedBlock:
    """`(batch * patches, dim)`, in the block's order -> what the `SwinBlock` gives."""

    def __init__(self, block: Any, order: torch.Tensor, packs: bool):
        attention = block.attention
        self.order = order
        self.length, self.head_dim = block.window_size**2, attention.head_dim
        self.bias = attention.position_bias(block.shift_mask)[0]
        self.norm1, self.norm2 = _norm(block.norm1), _norm(block.norm2)
        query_key_value = attention.query, attention.key, attention.value
        self.query_key_value = [_linear(layer, packs=False) for layer in query_key_value]
        self.scaling: float | None = self.head_dim**-0.5  # of the queries
        if packs:  # as one product, and scaled
            weights, biases = zip(*self.query_key_value, strict=True)
            weight, bias = (_by_head(tensors, self.scaling, self.head_dim) for tensors in (weights, biases))
            self.query_key_value, self.scaling = [(pack_weight(weight), bias)], None
        self.output, self.linear1, self.linear2 = (
            _linear(layer, packs) for layer in (attention.output, block.linear1, block.linear2)
        )

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = onednn_add_linear(hidden, self.attend(torch.layer_norm(hidden, *self.norm1)), *self.output)
        expanded = onednn_linear(torch.layer_norm(hidden, *self.norm2), *self.linear1, "gelu")
        return onednn_add_linear(hidden, expanded, *self.linear2)

    def attend(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the heads find, before `output`; of `hidden`, after the norm."""
        rows, dim = hidden.shape
        heads = len(self.bias)  # of a group's windows
        query, key, value = self.matrices(hidden, heads)
        scores = query.new_empty(*query.shape[:2], self.length)
        by_head(scores, heads).copy_(self.bias)  # the product comes on top: the bias after it takes a pass more
        if self.scaling is not None:  # not as `alpha`, by which oneDNN may multiply the bias too
            query.mul_(self.scaling)
        scores.baddbmm_(query, key.transpose(1, 2))
        attended = torch.bmm(torch.softmax(scores, dim=-1, out=scores), value)
        return attended.view(-1, heads, self.length, self.head_dim).transpose(1, 2).reshape(rows, dim)

    def matrices(self, hidden: torch.Tensor, heads: int) -> list[torch.Tensor]:
        """Queries, keys and values, each `(batch * heads, length, head_dim)`; of one product by one copy."""
        parts = [onednn_linear(hidden, *layer) for layer in self.query_key_value]
        of_part = 3 // len(parts)
        return [
            matrices
            for part in parts
            for matrices in part.view(-1, self.length, heads, of_part, self.head_dim)
            .permute(3, 0, 2, 1, 4)
            .reshape(of_part, -1, self.length, self.head_dim)
            .unbind()
        ]


def _linears(block: Any) -> list[Any]:
    attention = block.attention
    return [attention.query, attention.key, attention.value, attention.output, block.linear1, block.linear2]


def _all_linears(stage: Any) -> list[Any]:
    layers = [layer for block in stage.blocks for layer in _linears(block)]
    return layers if stage.is_last else [*layers, stage.downsample.reduction]


def _norms(stage: Any) -> list[Any]:
    norms = [norm for block in stage.blocks for norm in (block.norm1, block.norm2)]
    return norms if stage.is_last else [*norms, stage.downsample.norm]


def _is_plain(stage: Any, dtype: torch.dtype) -> bool:
    """Whether oneDNN may take all its weights: none is of another kind, and no adapter in the place of a layer."""
    linears, norms = _all_linears(stage), _norms(stage)
    return (
        all(type(layer) is Linear for layer in linears)
        and all(type(norm) is nn.LayerNorm for norm in norms)
        and all(layer._parameters.keys() == {"weight", "bias"} for layer in linears + norms)  # not mere attributes
        and all(is_plain(weight) and weight.dtype == dtype for weight in stage.parameters())
    )


def _packs(stage: Any) -> bool:
    weights = [layer.weight for layer in _linears(stage.blocks[0])]
    return weights[0].dtype == torch.bfloat16 or sum(weight.numel() for weight in weights) <= PACKED_BLOCK_WEIGHTS


def _sources(stage: Any) -> list[torch.Tensor | None]:
    """What a prepared stage has copies of."""
    sources = []
    for block in stage.blocks:
        sources += [block.attention.relative_position_bias_table, block.shift_mask]
    if _packs(stage):
        sources += [tensor for layer in _all_linears(stage) for tensor in (layer.weight, layer.bias)]
    return sources


def _linear(layer: nn.Linear, packs: bool) -> LinearTensors:
    return pack_weight(layer.weight) if packs else layer.weight, layer.bias


def _by_head(tensors: Any, scaling: float, head_dim: int) -> torch.Tensor:
    """Of scaled query, key and value: those of the first head, those of the second, …"""
    query, key, value = (tensor.detach().unflatten(0, (-1, head_dim)) for tensor in tensors)
    return torch.stack([query * scaling, key, value], dim=1).flatten(0, 2)


def _norm(norm: nn.LayerNorm) -> NormArguments:
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps
