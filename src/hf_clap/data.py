"""Streamed audio-caption pairs: rows of any data set that `datasets` reads -> (waveform, caption).

A reader is one loader worker of one process. It reads its own shards, or its own rows of a shard where there are fewer
shards than readers; everything it draws (order, crop, caption) is drawn from the seed and its place in the stream, so
that a few integers say where it is and it can go on from there.
"""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from .pair_columns import Columns, Pair, PairError, read_audio
from .prompts import check_templates
from .rows import count_shards, iter_batches, open_rows, shard_of
from .waveform import AudioError

logger = logging.getLogger(__name__)

Place = tuple[int, int]  # of a row: its shard, by the reader's own order, and its number there
# So many skipped rows, times `max_skipped`, are forgiven before a share can be told.
LEAST_ROWS = 100


def load_pairs(
    source: Any,
    feature_extractor: Any,
    *,
    split: str = "train",
    audio: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    template: str | Sequence[str] = "this is a sound of {}",
    where: Callable[[dict[str, Any]], bool] | None = None,
    training: bool = True,
    buffer_size: int = 1000,
    max_skipped: float = 0.05,
    seed: int = 0,
    streaming: bool = True,
) -> PairStream:
    """
    Audio-caption pairs of a data set, read as they are needed.

    Args:
        source: a Hub id; a folder or a file of Parquet, WebDataset tars, JSON lines or CSV, or of audio with a
            `metadata.csv`; a glob, a list or a URL of such files; or a data set of `datasets`. One of its `take`,
            `skip` or `interleave_datasets` is read by every reader, each of which keeps its own rows.
        feature_extractor: gives the rate in Hz of the waveforms, and the length in seconds that is cropped.
        split: of the source, where it has several.
        audio: column of audio; the one of that type when absent. A column inside another is written `json.wave`.
        caption: column of captions, or of lists of them.
        label: column of labels (text, class indices with names, or lists of either), which make captions by `template`
            for rows that have none. When both are absent: `caption`, `captions`, `text` or `txt`, and `label` or
            `labels`.
        template: with `{}` for the label, once; or several.
        where: of the row as it is stored, audio not decoded: whether it takes part.
        training: endless, shuffled, one caption of a list and one template drawn in each epoch, and longer clips
            cropped at random. Otherwise one pass in the stored order, whole clips, first captions.
        buffer_size: rows that are shuffled together, as they are stored.
        max_skipped: share of rows with unreadable audio or without a caption above which reading stops.
        seed: of everything that is drawn.
        streaming: whether to read from where the data are; otherwise they are downloaded first.

    Returns:
        PairStream: an iterable data set for `PairLoader`, PyTorch's `DataLoader` or a Trainer (with `max_steps`).

    Raises:
        PairError: if a column is missing, or for a source or settings that cannot be used.
        ValueError: for a template that does not say where the label goes.

    Example:

    ```python
    >>> import datasets, hf_clap
    >>> from hf_clap.data import load_pairs

    >>> sounds = [{"array": [0.1] * 800, "sampling_rate": 8000}] * 2
    >>> rows = datasets.IterableDataset.from_generator(
    ...     lambda: ({"audio": sound, "label": label} for sound, label in zip(sounds, ["rain", "a dog"]))
    ... )
    >>> extractor = hf_clap.HfClapFeatureExtractor(sampling_rate=16000)
    >>> [(pair.audio.shape, pair.caption) for pair in load_pairs(rows, extractor, training=False)]
    [((1600,), 'this is a sound of rain'), ((1600,), 'this is a sound of a dog')]

    ```
    """
    templates = check_templates(template)
    rows = open_rows(source, split, streaming)
    columns = Columns.of(rows, audio, caption, label, templates)
    return _SourcePairs(
        rows,
        columns,
        sampling_rate=feature_extractor.sampling_rate,
        # a fused model hears the whole of a long clip at once
        crop_samples=feature_extractor.max_samples if training and feature_extractor.crop != "fusion" else None,
        where=where,
        training=training,
        buffer_size=buffer_size,
        max_skipped=max_skipped,
        seed=seed,
    )


def interleave_pairs(streams: Sequence[PairStream], weights: Sequence[float] | None = None) -> PairStream:
    """
    Several streams as one: each pair comes from one of them, drawn by weight (the paper's training set is four).

    Args:
        streams: of one rate, and all for training or none.
        weights: of the draw, of any sum; equal when absent.

    Returns:
        PairStream: endless for training; otherwise it ends with the last of the streams.

    Raises:
        PairError: for streams that do not go together, or weights that are not one positive number for each, of a
            finite sum.
    """
    for stream in streams:
        if not isinstance(stream, PairStream):
            raise PairError(f"A {type(stream).__name__} cannot be interleaved; pass streams of load_pairs.")
    numbers = np.array([1.0] * len(streams) if weights is None else list(weights))
    are_weights = numbers.dtype.kind in "iuf" and len(numbers) == len(streams) and bool((numbers > 0).all())
    if not streams or not are_weights or not sum(numbers.tolist()) < math.inf:
        raise PairError(f"{len(streams)} streams need as many positive weights; there are {numbers.tolist()}.")
    for name in ("sampling_rate", "training"):
        if len({getattr(stream, name) for stream in streams}) > 1:
            raise PairError(f"The streams differ in {name}; load them for one model and one purpose.")
    if any(stream.world_size > 1 for stream in streams):
        raise PairError("Interleave whole streams, and split the result: interleave_pairs(streams).split(rank, …).")
    return _InterleavedPairs(streams, numbers.tolist())


class PairStream(IterableDataset, ABC):
    """
    Pairs in a stream; made by `load_pairs` and `interleave_pairs`.

    In a process of several, `split` gives its part; inside a `DataLoader` each worker reads its own part of that. No
    pair is read twice in an epoch and none is left out.
    """

    def __init__(self, sampling_rate: int, training: bool, seed: int):
        self.sampling_rate = sampling_rate
        self.training = training
        self.seed = seed
        self.rank, self.world_size = 0, 1
        self._epoch = 0
        self._resume: list[dict[str, Any]] | None = None
        self._state: dict[str, Any] | None = None

    def split(self, rank: int, world_size: int) -> PairStream:
        """
        The part of one process of several; the parts of all processes are the whole.

        Raises:
            PairError: if there is no such process, or for a part: in training, what is in it differs from epoch to
                epoch, so that it is of no use but to read all pairs together with the others.
        """
        if not 0 <= rank < world_size:
            raise PairError(f"There is no process {rank} among {world_size}; they count from 0.")
        if self.world_size > 1:
            raise PairError(
                "The stream is split already; pass the whole one, of which each process reads its part, and hold rows "
                "out with `where`."
            )
        part = copy.copy(self)
        part.rank, part.world_size, part._state = rank, world_size, None
        return part

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration begins with; epochs differ in their order, crops and captions."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration in this process is: a few numbers."""
        return copy.deepcopy(self.first_state(0) if self._state is None else self._state)

    def load_state_dict(self, state: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Let the next iteration go on after the pair with which `state` was taken; for loader workers, a list."""
        self._resume = copy.deepcopy(state) if isinstance(state, list) else [copy.deepcopy(state)]
        self._state = self._resume[0]

    def forget_state(self) -> None:
        """Let the next iteration begin at the start again."""
        self._resume = None

    @property
    def skipped(self) -> dict[str, int]:
        """`rows` read so far in this process, and how many of them had unusable `audio` or no `caption`."""
        return skipped_in([self.state_dict()])

    def __iter__(self) -> Iterator[Pair]:
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        readers = self.world_size * workers
        state = self.first_state(index)
        if self._resume is not None:
            if len(self._resume) != workers:
                raise PairError(
                    f"The state is that of {len(self._resume)} loader workers; go on with as many, not {workers}."
                )
            state = self._resume[index]
        self.forget_state()
        if state.get("readers", readers) != readers:
            raise PairError(
                f"The state is that of {state['readers']} readers (processes times loader workers); go on with as "
                f"many, not {readers}."
            )
        for name, has in self.order().items():
            if (had := state["order"].get(name)) != has:
                raise PairError(
                    f"The state is that of a stream whose {name} was {had}, and here it is {has}; go on with the same."
                )
        self._state = state
        return self._iterate(self.rank * workers + state["worker"], readers, state)

    def _iterate(self, reader: int, readers: int, state: dict[str, Any]) -> Iterator[Pair]:
        order = self.order()
        for pair, after in self.pairs_from(reader, readers, state):
            self._state = {**after, "worker": state["worker"], "readers": readers, "order": order}
            yield pair

    def first_state(self, worker: int) -> dict[str, Any]:
        """The state before the first pair, of one loader worker, with what the order depends on."""
        return {**self.start(worker), "order": self.order()}

    @abstractmethod
    def order(self) -> dict[str, Any]:
        """What the order of the pairs depends on: a state leads to its place in no other order."""

    @abstractmethod
    def start(self, worker: int) -> dict[str, Any]:
        """The place before the first pair, of one loader worker."""

    @abstractmethod
    def pairs_from(self, reader: int, readers: int, state: dict[str, Any]) -> Iterator[tuple[Pair, dict[str, Any]]]:
        """The pairs of one reader of several after `state`, each with the state after it."""


class _SourcePairs(PairStream):
    """Pairs of one source."""

    def __init__(
        self,
        rows: Any,
        columns: Columns,
        *,
        sampling_rate: int,
        crop_samples: int | None,
        where: Callable[[dict[str, Any]], bool] | None,
        training: bool,
        buffer_size: int,
        max_skipped: float,
        seed: int,
    ):
        super().__init__(sampling_rate, training, seed)
        if buffer_size < 1 or not 0 <= max_skipped <= 1:
            raise PairError("buffer_size must be at least 1, and max_skipped a share between 0 and 1.")
        self.rows, self.shards = rows, count_shards(rows)
        self.columns = columns
        self.crop_samples = crop_samples
        self.where = where
        self.buffer_size = buffer_size if training else 1
        self.max_skipped = max_skipped

    def order(self) -> dict[str, Any]:
        drawn = {"seed": int(self.seed), "buffer_size": int(self.buffer_size)} if self.training else {}
        shards = {"number of shards": self.shards}
        return {"number of streams": 1, "training": bool(self.training), **drawn, **shards}

    def start(self, worker: int) -> dict[str, Any]:
        place = {"epoch": self._epoch, "shard": 0, "row": 0, "taken": 0, "index": 0}
        return place | {"worker": worker, "skipped": {"rows": 0, "audio": 0, "caption": 0}}

    def pairs_from(self, reader: int, readers: int, state: dict[str, Any]) -> Iterator[tuple[Pair, dict[str, Any]]]:
        epoch, taken, index = state["epoch"], state["taken"], state["index"]
        place, skipped = (state["shard"], state["row"]), dict(state["skipped"])
        held, after = None, state  # a pair waits for the next one, so that the last one's state counts all rows
        vain: set[int] = set()  # shards that were read since the last pair
        while True:
            whole, first_index, pairs = (*place, taken) == (0, 0, 0), index, 0
            for block in self._blocks(reader, readers, epoch, place):
                start = block[0][0]
                order: Any = range(len(block))
                if self.training:
                    order = np.random.default_rng([self.seed, reader, epoch, *start]).permutation(len(block))
                for number in order[taken:]:
                    random = np.random.default_rng([self.seed, reader, epoch, index])
                    pair = self._pair(block[number][1], skipped, random)
                    taken, index = taken + 1, index + 1
                    after = {"epoch": epoch, "shard": start[0], "row": start[1], "taken": taken, "index": index}
                    after["skipped"] = dict(skipped)
                    if pair is not None:
                        if held is not None:
                            yield held
                        held, pairs = (pair, after), pairs + 1
                block.clear()  # before the next one is filled
                taken = 0
            if pairs:
                vain.clear()
            elif whole and index > first_index:
                vain.update(self._shards_of(reader, readers, epoch))
                # of several readers one may have nothing but broken rows: in training for an epoch
                if len(vain) == self.shards if self.training else not self._has_pairs():
                    raise PairError(f"{_share(skipped)}, and not one can be used; mend the data.")
            if not self.training or (whole and index == first_index and not self._has_rows(reader, readers)):
                if held is not None:
                    yield held[0], after
                return
            epoch, place = epoch + 1, (0, 0)

    def _blocks(self, reader: int, readers: int, epoch: int, place: Place) -> Iterator[list[tuple[Place, Any]]]:
        """
        The reader's rows of an epoch from a place on, each with its own, in blocks of `buffer_size`. A block is
        filled, shuffled and emptied before the next one, so that the place of its first row is all there is to
        remember of it.
        """
        rows = self._rows_of(self._shards_of(reader, readers, epoch), _share_of(reader, readers, self.shards), place)
        return iter(lambda: list(islice(rows, self.buffer_size)), [])

    def _shards_of(self, reader: int, readers: int, epoch: int) -> Sequence[int]:
        """The reader's shards, in its order."""
        shards = self.shards
        order: Any = range(shards)
        if self.training:
            order = np.random.default_rng([self.seed, epoch]).permutation(shards)
        return order[reader::readers] if shards >= readers else order[reader % shards :][:1]

    def _has_rows(self, reader: int, readers: int) -> bool:
        """Whether a reader that had no row in one epoch may have some in another, when its shards are others."""
        shards = self.shards
        rows = self._rows_of(range(shards), _share_of(reader, readers, shards), (0, 0))
        return next(rows, None) is not None

    def _has_pairs(self) -> bool:
        """Whether any row can be used, of whatever reader."""
        skipped, random = {"rows": 0, "audio": 0, "caption": 0}, np.random.default_rng(0)
        rows = self._rows_of(range(self.shards), (0, 1), (0, 0))
        return any(self._pair(row, skipped, random) is not None for _, row in rows)

    def _rows_of(self, own: Sequence[int], share: tuple[int, int], place: Place) -> Iterator[tuple[Place, Any]]:
        """The rows of the shards `own` that fall to one (which, of how many) that share them, from a place on."""
        which, sharers = share
        for shard in range(place[0], len(own)):
            stored = shard_of(self.rows, self.shards, int(own[shard]))
            number = -1
            # and not `for row in stored`, which would share the rows among loader workers by a rule of its own
            for batch in iter_batches(stored):
                for values in zip(*batch.values(), strict=True):
                    number += 1
                    if number % sharers != which or (shard == place[0] and number < place[1]):
                        continue
                    row = dict(zip(batch, values, strict=True))
                    if self.where is None or self.where(row):
                        yield (shard, number), row

    def _pair(self, row: dict[str, Any], skipped: dict[str, int], random: np.random.Generator) -> Pair | None:
        skipped["rows"] += 1
        caption = self.columns.caption_of(row, random if self.training else None)
        if not caption:
            self._skip(skipped, "caption", f"A row has no text in {self.columns.of_text()}")
            return None
        try:
            audio = read_audio(self.columns.audio_of(row), self.sampling_rate, self.crop_samples, random)
        except (AudioError, FileNotFoundError) as error:
            self._skip(skipped, "audio", str(error).rstrip("."))
            return None
        return Pair(audio, caption)

    def _skip(self, skipped: dict[str, int], reason: str, message: str) -> None:
        skipped[reason] += 1
        if skipped[reason] == 1:
            logger.warning("%s; it is skipped, and further ones are only counted.", message)
        left_out = skipped["audio"] + skipped["caption"]
        if left_out > self.max_skipped * max(skipped["rows"], LEAST_ROWS):
            raise PairError(
                f"{_share(skipped)}; the last one: {message}. Mend the data, or raise max_skipped={self.max_skipped}."
            )


class _InterleavedPairs(PairStream):
    """Several streams as one."""

    def __init__(self, streams: Sequence[PairStream], weights: Sequence[float]):
        super().__init__(streams[0].sampling_rate, streams[0].training, streams[0].seed)
        self.streams = list(streams)
        self.weights = np.array(weights, dtype=np.float64)

    def set_epoch(self, epoch: int) -> None:
        self.streams = [copy.copy(stream) for stream in self.streams]  # other parts of a split hold the same ones
        for stream in self.streams:
            stream.set_epoch(epoch)

    def order(self) -> dict[str, Any]:
        orders = enumerate(stream.order() for stream in self.streams)
        of_streams = {f"{name} (stream {at})": value for at, order in orders for name, value in order.items()}
        own = {"number of streams": len(self.streams), "seed": int(self.seed), "weights": self.weights.tolist()}
        return own | of_streams

    def start(self, worker: int) -> dict[str, Any]:
        return {"worker": worker, "index": 0, "streams": [stream.start(worker) for stream in self.streams]}

    def pairs_from(self, reader: int, readers: int, state: dict[str, Any]) -> Iterator[tuple[Pair, dict[str, Any]]]:
        states, index = list(state["streams"]), state["index"]
        running = [
            stream.pairs_from(reader, readers, of_stream)
            for stream, of_stream in zip(self.streams, states, strict=True)
        ]
        weights = np.where([of_stream.get("ended", False) for of_stream in states], 0.0, self.weights)
        while weights.any():
            draw = np.random.default_rng([self.seed, reader, index, len(states)])
            chosen = int(draw.choice(len(weights), p=weights / weights.sum()))
            index += 1
            try:
                pair, states[chosen] = next(running[chosen], (None, {**states[chosen], "ended": True}))
            except PairError as error:
                raise PairError(f"Stream {chosen} of those interleaved: {error}") from error
            if pair is None and self.training:
                raise PairError(
                    f"Stream {chosen} of those interleaved has no pairs for reader {reader} of {readers} (processes "
                    "times loader workers); use fewer, more data, or a `where` that leaves more."
                )
            if pair is None:
                weights[chosen] = 0.0
            else:
                yield pair, {"index": index, "streams": list(states)}


def _share_of(reader: int, readers: int, shards: int) -> tuple[int, int]:
    """(which, of how many) a reader is among those of its shard."""
    return (0, 1) if shards >= readers else (reader // shards, len(range(reader % shards, readers, shards)))


def _share(skipped: dict[str, int]) -> str:
    return (
        f"Of {skipped['rows']} rows, {skipped['audio']} have audio that cannot be used and {skipped['caption']} have "
        "no caption"
    )


def skipped_in(states: Sequence[dict[str, Any]]) -> dict[str, int]:
    """`rows` read, and how many of them had unusable `audio` or no `caption`, added up over states of streams."""
    parts = [state["skipped"] if "skipped" in state else skipped_in(state["streams"]) for state in states]
    return {reason: sum(part[reason] for part in parts) for reason in ("rows", "audio", "caption")}
