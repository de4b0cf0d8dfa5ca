"""Batches of streamed pairs, with a state to go on from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from .data import PairStream, skipped_in
from .pair_columns import Pair, PairError


class PairLoader(DataLoader):
    """
    Batches of pairs, read by workers ahead of the training, with a state to go on from: that of the batches which have
    been handed out, not of those read ahead.

    Args:
        pairs: the stream, already `split` where there are several processes.
        batch_size: pairs in a batch, of this process. Streams for training give full batches only.
        collate_fn: makes a batch of a list of pairs, such as `PairCollator`.
        num_workers: processes that read, decode and compute features; none when 0.
        options: further arguments of `DataLoader`.

    Example:

    ```python
    loader = PairLoader(load_pairs("user/sounds", processor.feature_extractor), 64, PairCollator(processor), 4)
    for batch in loader:
        ...
        torch.save(loader.state_dict(), "loader.pt")
    ```
    """

    def __init__(
        self, pairs: PairStream, batch_size: int, collate_fn: Callable[..., Any], num_workers: int = 0, **options: Any
    ):
        if options.get("persistent_workers"):
            raise PairError("persistent_workers=True would keep workers that know nothing of a state; leave it out.")
        super().__init__(
            pairs,
            batch_size=batch_size,
            collate_fn=_CollateWithState(collate_fn, pairs),
            num_workers=num_workers,
            drop_last=pairs.training,
            generator=torch.Generator(),  # otherwise each iteration would take a number from the global one
            **options,
        )
        self.pairs = pairs
        self._states: list[dict[str, Any]] | None = None  # of the workers, in the order of their turns
        self._resume: list[dict[str, Any]] | None = None  # those that the next iteration goes on from

    def _start(self) -> list[dict[str, Any]]:
        workers = max(1, self.num_workers)
        readers = self.pairs.world_size * workers
        return [self.pairs.first_state(worker) | {"readers": readers} for worker in range(workers)]

    def state_dict(self) -> dict[str, Any]:
        """Where the batches handed out so far end, for each worker: a few numbers."""
        return {"workers": copy.deepcopy(self._start() if self._states is None else self._states)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Let the next iteration go on after the batch with which `state` was taken.

        Raises:
            PairError: with that iteration, if the state is that of other numbers of workers or processes, or of a
                stream in another order.
        """
        self._states = self._resume = copy.deepcopy(state["workers"])

    def set_epoch(self, epoch: int) -> None:
        """See `PairStream.set_epoch`; a state that was loaded comes first."""
        self.pairs.set_epoch(epoch)

    @property
    def skipped(self) -> dict[str, int]:
        """`rows` read so far, and how many of them had unusable `audio` or no `caption`; of this process."""
        return skipped_in(self.state_dict()["workers"])

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        states = self._resume or self._start()
        self.pairs.load_state_dict(states)
        batches = super().__iter__()
        self._resume = None
        self.pairs.forget_state()  # the workers have it
        return self._unwrap(batches, states)

    def _unwrap(self, batches: Iterator[Any], states: list[dict[str, Any]]) -> Iterator[Any]:
        self._states = states
        for state, batch in batches:
            # Workers take turns. Who has just been heard goes to the end of the line, so that after a resume the one
            # at its head is the first again.
            self._states = [*(other for other in self._states if other["worker"] != state["worker"]), state]
            yield batch
        if self.pairs.training:
            raise PairError(
                f"Process {self.pairs.rank} of {self.pairs.world_size} has no full batch of {self.batch_size} pairs; "
                "use fewer processes or loader workers, a smaller batch, more data, or a `where` that leaves more."
            )


class _CollateWithState:
    """A batch and the state of the stream after it, seen from the worker that reads it."""

    def __init__(self, collate_fn: Callable[..., Any], pairs: PairStream):
        self.collate_fn = collate_fn
        self.pairs = pairs

    def __call__(self, rows: list[Pair]) -> tuple[dict[str, Any], Any]:
        worker = get_worker_info()
        stream: Any = self.pairs if worker is None else worker.dataset
        return stream.state_dict(), self.collate_fn(rows)
