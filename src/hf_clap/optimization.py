"""What is trained and how fast: frozen towers, learning rates of each part, and the bound of the logit scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .modeling_hf_clap import MAX_LOGIT_SCALE


def freeze(model: Any, audio: bool = False, text: bool = False) -> None:
    """
    Take towers out of training, and what has no effect on the loss: the logit bias, which cancels in a softmax loss
    (distributed training waits for the gradient of every parameter that could have one).

    Args:
        model: an `HfClapModel`.
        audio, text: whether to freeze that tower. Its projection is trained on.
    """
    for tower, frozen in ((model.audio_model, audio), (model.text_model, text)):
        if frozen:
            tower.requires_grad_(False)
    if model.config.loss == "softmax" and model.logit_bias is not None:
        model.logit_bias.requires_grad_(False)


def scalars_to_vectors(model: nn.Module) -> list[str]:
    """
    Give the logit scale and other scalars the shape `(1,)`, in place: FSDP refuses to divide scalars. Call it before
    the model is wrapped.

    Returns:
        list: their names, for `vectors_to_scalars` of the state dict that is saved.
    """
    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    for name in scalars:
        module, _, attribute = name.rpartition(".")
        parameter = model.get_parameter(name)
        vector = nn.Parameter(parameter.data.reshape(1), requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(module), attribute, vector)
    return scalars


def vectors_to_scalars(state: dict[str, torch.Tensor], scalars: list[str]) -> dict[str, torch.Tensor]:
    """A state dict with the shapes that it had before `scalars_to_vectors`, which has given their names."""
    return {name: value.reshape(()) if name in scalars else value for name, value in state.items()}


def hold_still(model: Any, freeze_batch_norm: bool = False) -> None:
    """
    Put what must not move into evaluation mode; call it after every `model.train()`.

    Args:
        model: an `HfClapModel`.
        freeze_batch_norm: whether all batch norms use the statistics of the checkpoint; those that are not trained,
            as of frozen towers and beside adapters, do so in any case. Frozen towers have no dropout.
    """
    for tower in (model.audio_model, model.text_model):
        if not any(parameter.requires_grad for parameter in tower.parameters()):
            tower.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # adapters are saved without what lies beside them, and so it must stay as it is
            is_frozen = {parameter.requires_grad for parameter in module.parameters()} == {False}
            if freeze_batch_norm or is_frozen:
                module.eval()


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    *,
    audio_learning_rate: float | None = None,
    text_learning_rate: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """
    The trained parameters as groups for an optimizer.

    Args:
        model: an `HfClapModel`, or a wrapper of one.
        learning_rate: of the projections and the logit scale.
        audio_learning_rate, text_learning_rate: of the towers; `learning_rate` when absent.
        weight_decay: of matrices and convolutions; biases, norms and scalars have none.

    Returns:
        list: groups with `params`, `lr` and `weight_decay`; those that would be empty are left out.

    Example:

    ```python
    >>> import hf_clap
    >>> from hf_clap.optimization import parameter_groups

    >>> model = hf_clap.HfClapModel.from_pretrained(hf_clap.TINY)
    >>> [(group["lr"], group["weight_decay"]) for group in parameter_groups(model, 1e-3, audio_learning_rate=1e-4)]
    [(0.001, 0.0), (0.0001, 0.0)]

    ```
    """
    rates = {"audio_model.": audio_learning_rate, "text_model.": text_learning_rate}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            given = (rate for tower, rate in rates.items() if tower in name and rate is not None)
            rate = next(given, learning_rate)
            decay = weight_decay if parameter.ndim > 1 else 0.0
            group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


@torch.no_grad()
def clamp_logit_scale(model: Any) -> None:
    """
    Keep exp(logit_scale) at 100 or below (paper, section 3.3); call it after every optimizer step. The forward pass
    clamps too, but a scale that has passed the bound has no gradient that would bring it back.
    """
    model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
