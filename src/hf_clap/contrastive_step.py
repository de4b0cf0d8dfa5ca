"""
One training step on a batch that may lie in several processes, and need not fit the device.

The loss contrasts every pair with those of all processes. With a micro-batch size the step is gradient caching (Gao et
al. 2021, arXiv 2101.06983): embed the micro-batches without gradients, take the gradient of the loss with respect to
the embeddings alone, then embed each micro-batch again, with the same random draws, to carry it on to the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .losses import LOSSES, caption_groups
from .modeling_hf_clap import bounded


class _Gather(torch.autograd.Function):
    """Rows of all processes, one after the other; the gradient of a process's rows is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(rows)
        return _gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        first = dist.get_rank() * ctx.rows
        return gradient[first : first + ctx.rows]


def _gather(rows: torch.Tensor) -> torch.Tensor:
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


def loss_of_all(
    audio_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None,
    groups: torch.Tensor,
    loss: str = "softmax",
    chunk_size: int | None = None,
) -> torch.Tensor:
    """
    The contrastive loss of this process's pairs against those of all processes, with gradients for all of them.

    Args:
        audio_embeds, text_embeds: `(pairs, dim)`, L2-normalised, as many in every process.
        logit_scale: factor on the cosine similarities.
        logit_bias: added to them, if any.
        groups: `(pairs,)` int64, see `caption_groups`.
        loss: `softmax` or `sigmoid`.
        chunk_size: see `contrastive_loss`.

    Returns:
        torch.Tensor: scalar. The mean over processes, which is what distributed training makes of their gradients, is
        the loss of the whole batch.
    """
    options: dict[str, Any] = {"groups": groups, "chunk_size": chunk_size}
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        options["groups"] = _gather(groups)
        options["all_text_embeds"] = _Gather.apply(text_embeds)
        if loss == "softmax":  # of the sigmoid loss, each process takes its clips against all texts
            options["all_audio_embeds"] = _Gather.apply(audio_embeds)
        options["offset"] = dist.get_rank() * len(audio_embeds)
    return LOSSES[loss](audio_embeds, text_embeds, logit_scale, logit_bias, **options)


def contrastive_step(
    model: nn.Module,
    batch: dict[str, Any],
    *,
    micro_batch_size: int | None = None,
    chunk_size: int | None = None,
    backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Tensor:
    """
    Forward and backward of one batch: gradients are added to the parameters', as by `loss.backward()`.

    Batch norms in training mode see one micro-batch at a time, as they see one process's pairs at a time; with them in
    evaluation mode the step equals that of the whole batch.

    Args:
        model: an `HfClapModel`, or a wrapper of one (DDP, FSDP, compiled, with adapters).
        batch: what `PairCollator` gives for clips of one window each; as many pairs in every process. It is moved to
            the model's device one micro-batch at a time.
        micro_batch_size: pairs that are embedded at a time; all of them, in a single pass, when absent.
        chunk_size: rows of the logits that are in memory at a time; all when absent.
        backward: runs a backward pass, such as `accelerator.backward`.
        no_sync: makes a context in which processes do not exchange gradients, such as DDP's `no_sync`.

    Returns:
        torch.Tensor: this process's loss, without gradient.

    Raises:
        ValueError: for a micro-batch size below 1, or if clips of several windows are to be cut into micro-batches.

    Example:

    ```python
    >>> import numpy as np, hf_clap

    >>> model = hf_clap.HfClapModel.from_pretrained(hf_clap.TINY)
    >>> collate = hf_clap.PairCollator(hf_clap.HfClapProcessor.from_pretrained(hf_clap.TINY))
    >>> pairs = [hf_clap.Pair(np.full(16000, level, np.float32), f"level {level}") for level in (0.0, 0.1, 0.2, 0.3)]
    >>> loss = hf_clap.contrastive_step(model, collate(pairs), micro_batch_size=2)
    >>> loss.shape, model.logit_scale.grad is not None
    (torch.Size([]), True)

    ```
    """
    core = unwrapped(model)
    inputs = {name: value for name, value in batch.items() if name != "return_loss"}
    parts = _cut(inputs, micro_batch_size)
    groups = caption_groups(inputs["input_ids"], inputs.get("attention_mask")).to(core.device)

    def loss_of(
        audio_embeds: torch.Tensor, text_embeds: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        # at least in float32: in half precision, logits of thousands of pairs are too coarse to tell them apart
        precision = torch.promote_types(audio_embeds.dtype, torch.float32)
        embeds = audio_embeds.to(precision), text_embeds.to(precision)
        return loss_of_all(*embeds, bounded(scale), bias, groups, core.config.loss, chunk_size)

    if len(parts) == 1:
        embeds_of_all = _embed(model, core, parts[0])
        loss = loss_of(*embeds_of_all, *_scale_and_bias(core))
        backward(loss)
        return loss.detach()

    random_states, embeds = [], []
    with torch.no_grad(), _unmoved_statistics(core):
        for part in parts:
            random_states.append(_random_state(core.device))
            embeds.append(_embed(model, core, part))
    parameters = _scale_and_bias(core)
    leaves: list[Any] = [
        tensor.detach().requires_grad_() for tensor in (*map(torch.cat, zip(*embeds, strict=True)), *parameters)
    ]
    loss = loss_of(*leaves)
    loss.backward()

    first = 0
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with nullcontext() if last else no_sync():
            _set_random_state(random_states[number], core.device)
            tensors = [*_embed(model, core, part)]
            rows = slice(first, first + len(tensors[0]))
            first = rows.stop
            gradients: list[Any] = [leaf.grad[rows] for leaf in leaves[:2]]
            if last:  # once, as wrappers expect of every parameter
                tensors += parameters
                gradients += [leaf.grad for leaf in leaves[2:]]
            # its gradient is that of the loss, since that of the embeddings is known
            carried = [
                (tensor * gradient).sum()
                for tensor, gradient in zip(tensors, gradients, strict=True)
                if gradient is not None  # a bias cancels in the softmax loss
            ]
            backward(torch.stack(carried).sum())
    return loss.detach()


def unwrapped(model: Any) -> Any:
    """The model inside DDP, FSDP or `torch.compile`."""
    while (inner := getattr(model, "module", None) or getattr(model, "_orig_mod", None)) is not None:
        model = inner
    return model


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """
    A parameter that FSDP has divided, put together; others as they are. Its gradient is the mean over the processes,
    as that of the parameters which FSDP itself puts together.
    """
    if not hasattr(parameter, "full_tensor"):
        return parameter
    from torch.distributed.tensor import Partial

    gathered = parameter.full_tensor(grad_placements=[Partial()])
    share = gathered / dist.get_world_size()
    return share + (gathered - share).detach()


def _scale_and_bias(core: Any) -> list[torch.Tensor]:
    return [whole(parameter) for parameter in (core.logit_scale, core.logit_bias) if parameter is not None]


def _cut(inputs: dict[str, torch.Tensor], size: int | None) -> list[dict[str, torch.Tensor]]:
    """The inputs in micro-batches of at most `size` pairs."""
    pairs = len(inputs["input_ids"])
    if size is None or size >= pairs:
        return [inputs]
    if size < 1:
        raise ValueError(f"micro_batch_size={size} is not possible; it must be at least 1.")
    if any(len(value) != pairs for value in inputs.values()):
        raise ValueError(
            "Clips of several windows cannot be cut into micro-batches; crop them to one, as load_pairs does with "
            "training=True."
        )
    cut = {name: value.split(size) for name, value in inputs.items()}
    return [dict(zip(cut, parts, strict=True)) for parts in zip(*cut.values(), strict=True)]


def _embed(model: nn.Module, core: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = model(**{name: value.to(core.device, non_blocking=True) for name, value in inputs.items()})
    return outputs.audio_embeds, outputs.text_embeds


@contextmanager
def _unmoved_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms' running statistics are afterwards what they were: a pair counts once, not once for each pass."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


def _random_state(device: torch.device) -> list[torch.Tensor]:
    """Of the CPU and, where the model is elsewhere, of its device."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(*_named(device)))
    return states


def _set_random_state(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, *_named(device))


def _named(device: torch.device) -> list[torch.device]:
    """A device for functions that ask which; those of MPS, of which there is one, do not."""
    return [] if device.type == "mps" else [device]
