"""What is made of weights once and kept beside them for inference: folded norms, packed weights, position biases."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import chain, repeat
from operator import is_
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import nn

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
        self._kept: tuple[Hashable, list[_Seen | None], T] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": None}

    def __call__(self, sources: Sequence[torch.Tensor | None], make: Callable[[], T], variant: Hashable = None) -> T:
        """
        Args:
            sources: the tensors that it is made of, always as many.
            make: makes it, without gradients; in a `variant` of which one is kept.
        """
        kept = self._kept  # once, for another thread may make it at the same time
        if kept is None or kept[0] != variant or not all(map(_is_as_seen, kept[1], sources)):
            with torch.inference_mode(False), torch.no_grad():
                self._kept = kept = variant, [_see(source) for source in sources], make()
        return kept[2]

    def clear(self) -> None:
        """Give the memory back."""
        self._kept = None


class _Seen(NamedTuple):
    """
    Of a tensor, so that a change shows: by an operator, which torch counts, or by other memory. What is done through
    `.data`, as in merging LoRA, is not counted; it changes most values, and so some of a sample of them.
    """

    place: int  # of its memory
    version: int
    sample: torch.Tensor  # a view, whose values are the tensor's own
    values: torch.Tensor  # of the sample, as they were seen


def _see(tensor: torch.Tensor | None) -> _Seen | None:
    if tensor is None:
        return None
    side = SAMPLE ** (1 / max(1, tensor.ndim))
    sample = tensor.detach()[tuple(slice(None, None, max(1, int(size / side))) for size in tensor.shape)]
    return _Seen(tensor.data_ptr(), _version(tensor), sample, sample.clone())


def _is_as_seen(seen: _Seen | None, tensor: torch.Tensor | None) -> bool:
    if seen is None or tensor is None:
        return seen is tensor
    place, version, sample, values = seen
    return tensor.data_ptr() == place and _version(tensor) == version and torch.equal(sample, values)


def _version(tensor: torch.Tensor) -> int:
    """How often operators have changed it, which is not counted in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


class ModuleState:
    """
    What a module is made of, so that a change shows: its submodules and their classes, which tensors they have, and
    whether anybody watches them, by a hook or in place of `forward`.

    Args:
        module: as it is now.
    """

    def __init__(self, module: nn.Module):
        self._modules = list(module.modules())
        self._types = list(map(type, self._modules))
        self._attributes = list(map(vars, self._modules))
        self._hooks = [hooks for part in self._modules for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        named = [named for part in self._modules for named in (part._modules, part._parameters, part._buffers)]
        self._named = list(filter(None, named))
        self._seen = list(self._parts())
        self.is_watched = self._is_watched()

    def is_as_seen(self) -> bool:
        return (
            self._is_watched() == self.is_watched
            and list(map(type, self._modules)) == self._types
            and sum(map(len, self._named)) == len(self._seen)
            and all(map(is_, self._parts(), self._seen))
        )

    def _parts(self) -> Iterator[nn.Module | torch.Tensor | None]:
        return chain.from_iterable(map(dict.values, self._named))

    def _is_watched(self) -> bool:
        return any(self._hooks) or any(map(dict.__contains__, self._attributes, repeat("forward")))
