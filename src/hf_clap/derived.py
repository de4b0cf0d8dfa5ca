"""What is made of weights once and kept beside them for inference: folded norms, packed weights, position biases."""

import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import is_
from threading import RLock
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

SAMPLE = 64

# By bytes of a number: what NumPy can read, whatever the numbers are.
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Threads that start together, as the workers of a pipeline do, would each make a copy.
ONE_AT_A_TIME = RLock()
if hasattr(os, "register_at_fork"):  # the thread that holds it is not in the child
    os.register_at_fork(after_in_child=ONE_AT_A_TIME._at_fork_reinit)  # type: ignore[attr-defined]

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
        self._kept: _Kept[T] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": None}

    def __call__(self, sources: Sequence[torch.Tensor | None], make: Callable[[], T], variant: Hashable = None) -> T:
        """
        Args:
            sources: the tensors that it is made of.
            make: makes it, without gradients; in a `variant` of which one is kept.
        """
        kept = self._kept  # once, for another thread may make it at the same time
        if kept is None or not kept.is_of(sources, variant):
            with ONE_AT_A_TIME:
                kept = self._kept
                if kept is None or not kept.is_of(sources, variant):
                    with torch.inference_mode(False), torch.no_grad():
                        self._kept = kept = _Kept(make(), _Witness(sources), variant)
        return kept.value

    def clear(self) -> None:
        """Give the memory back."""
        self._kept = None


def is_plain(weight: torch.Tensor) -> bool:
    """Whether it is numbers in a CPU's memory, and nothing that says itself how it is applied."""
    return type(weight) in (nn.Parameter, torch.Tensor) and weight.is_cpu


@dataclass(frozen=True)
class _Kept(Generic[T]):
    value: T
    witness: "_Witness"
    variant: Hashable

    def is_of(self, sources: Sequence[torch.Tensor | None], variant: Hashable) -> bool:
        return self.variant == variant and self.witness.are_as_seen(sources)


class _Witness:
    """
    Of tensors, so that a change shows: by an operator, which torch counts, or by other memory. What is done through
    `.data`, as in merging LoRA, is not counted; it changes most values, and so some of a sample of them, which is
    taken on a CPU. Of a few values that are written through `.data` nobody is told.
    """

    def __init__(self, tensors: Sequence[torch.Tensor | None]):
        self._state = self._look(tensors)
        self._samples = [_sample(tensor) for tensor in tensors if tensor is not None and _is_readable(tensor)]
        self._values = self._read()

    def are_as_seen(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        # in this order: memory that is not the tensor's any more may be gone
        return self._look(tensors) == self._state and self._read() == self._values

    @staticmethod
    def _look(tensors: Sequence[torch.Tensor | None]) -> list[Any]:
        """Where their memory is, and how often operators have changed it, which is not counted in inference mode."""
        return [
            None if tensor is None else (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
            for tensor in tensors
        ]

    def _read(self) -> list[bytes]:
        return list(map(np.ndarray.tobytes, self._samples))


def _is_readable(tensor: torch.Tensor) -> bool:
    return is_plain(tensor) and tensor.element_size() in INTEGERS


def _sample(tensor: torch.Tensor) -> np.ndarray:
    """Some of its values, as they are in its memory at any time."""
    side = SAMPLE ** (1 / max(1, tensor.ndim))
    sample = tensor.detach()[tuple(slice(None, None, max(1, int(size / side))) for size in tensor.shape)]
    # after `sample.numpy()` FSDP could not resize the memory
    return np.from_dlpack(sample.view(INTEGERS[sample.element_size()]))


def is_any_watched(*modules: nn.Module) -> bool:
    """Whether somebody watches one of them, not those inside, by a hook or in place of `forward`."""
    return hooks_of_all() or any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules
    )


def hooks_of_all() -> bool:
    """Whether somebody watches all modules that there are."""
    module = nn.modules.module
    return bool(module._global_forward_hooks or module._global_forward_pre_hooks)


class ModuleState:
    """
    What a module is made of, so that a change shows: its submodules and their classes, which tensors they have, and
    whether anybody watches one of them, by a hook or in place of `forward`, or one of them alone is in training. Of
    the module itself, which asks in its `forward`, only what it has: it may keep this without keeping itself alive.

    Args:
        module: as it is now.
        parts: classes of modules of which its user computes what they do, without calling them.
    """

    def __init__(self, module: nn.Module, parts: set[type[nn.Module]]):
        whole = list(module.modules())
        self._inside = whole[1:]
        self._types = list(map(type, self._inside))
        self._attributes = list(map(vars, self._inside))
        self._hooks = [hooks for part in self._inside for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        named = [named for part in whole for named in (part._modules, part._parameters, part._buffers)]
        self._named: list[dict[str, Any]] = list(filter(None, named))
        self._seen = list(self._parts())
        self._was_watched = self._is_watched()
        # whether nobody would miss a call of what is inside
        self.is_plain = not self._was_watched and parts.issuperset(self._types)

    def is_as_seen(self) -> bool:
        return (
            self._is_watched() == self._was_watched
            and list(map(type, self._inside)) == self._types
            and sum(map(len, self._named)) == len(self._seen)
            and all(map(is_, self._parts(), self._seen))
        )

    def _parts(self) -> Iterator[nn.Module | torch.Tensor | None]:
        return chain.from_iterable(named.values() for named in self._named)

    def _is_watched(self) -> bool:
        return (
            hooks_of_all()
            or any(self._hooks)
            or any(map(dict.__contains__, self._attributes, repeat("forward")))
            or any(map(dict.get, self._attributes, repeat("training")))  # dropout that draws at inference too
        )
