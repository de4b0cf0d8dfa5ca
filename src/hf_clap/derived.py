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
        self._kept: tuple[Hashable, list[_Witness], T] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": None}

    def __call__(self, sources: Sequence[torch.Tensor | None], make: Callable[[], T], variant: Hashable = None) -> T:
        """
        Args:
            sources: the tensors that it is made of, always as many.
            make: makes it, without gradients; in a `variant` of which one is kept.
        """
        kept = self._kept  # once, for another thread may make it at the same time
        if kept is None or kept[0] != variant or not all(map(_Witness.is_as_seen, kept[1], sources)):
            with torch.inference_mode(False), torch.no_grad():
                self._kept = kept = variant, [_Witness(source) for source in sources], make()
        return kept[2]

    def clear(self) -> None:
        """Give the memory back."""
        self._kept = None


class _Witness:
    """
    Of a tensor, so that a change shows: by an operator, which torch counts, or by other memory. What is done through
    `.data`, as in merging LoRA, is not counted; it changes most values, and so some of a sample of them.
    """

    def __init__(self, tensor: torch.Tensor | None):
        self.place = _place(tensor)
        if tensor is not None:
            side = SAMPLE ** (1 / max(1, tensor.ndim))
            # a view, whose values are the tensor's own, and what they are now
            self.sample = tensor.detach()[tuple(slice(None, None, max(1, int(size / side))) for size in tensor.shape)]
            self.seen = self.sample.clone()

    def is_as_seen(self, tensor: torch.Tensor | None) -> bool:
        return _place(tensor) == self.place and (tensor is None or torch.equal(self.sample, self.seen))


def _place(tensor: torch.Tensor | None) -> tuple[int, int]:
    """Where its memory is, and how often operators have changed it, which is not counted in inference mode."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
