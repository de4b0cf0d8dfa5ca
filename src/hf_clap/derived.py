"""What is made of weights once and kept beside them for inference: folded norms, packed weights, position biases."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch

SAMPLE = 64

T = TypeVar("T")


class Derived(Generic[T]):
    """
    Keeps what a function makes of tensors, until `clear` or until one of the tensors changes. It is never saved or
    copied: a copy of a module has tensors of its own, and oneDNN's layouts cannot be copied.

    Example:

    ```python
    >>> import torch
    >>> from hf_clap.derived import Derived

    >>> weight, doubled = torch.ones(2), Derived()
    >>> doubled([weight], lambda: 2 * weight)
    tensor([2., 2.])
    >>> doubled([weight.mul_(3)], lambda: 2 * weight)
    tensor([6., 6.])

    ```
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, T] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": None}

    def __call__(self, sources: Sequence[torch.Tensor | None], make: Callable[[], T], variant: Hashable = None) -> T:
        """
        Args:
            sources: the tensors that it is made of.
            make: makes it, without gradients; in a `variant` of which one is kept.
        """
        state = (variant, [_state(source) for source in sources])
        kept = self._kept  # once, for another thread may make it at the same time
        if kept is None or kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = kept = state, make()
        return kept[1]

    def clear(self) -> None:
        """Give the memory back."""
        self._kept = None


def _state(tensor: torch.Tensor | None) -> tuple[int, int, list[float]]:
    """
    Of a tensor, so that a change shows: by an operator, which torch counts, or by other memory. What is done through
    `.data`, as in merging LoRA, is not counted; it changes most values, and so some of a sample of them.
    """
    if tensor is None:
        return 0, 0, []
    version = 0 if tensor.is_inference() else tensor._version
    sample = tensor.detach().flatten()[:: max(1, tensor.numel() // SAMPLE)]
    return tensor.data_ptr(), version, sample.tolist()
