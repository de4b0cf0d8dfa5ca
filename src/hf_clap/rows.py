"""Any source of rows -> a data set of `datasets`, read where it lies, with audio as it is stored."""

import os
from collections.abc import Iterator
from typing import Any

from .pair_columns import DAMAGED, PairError

# What `load_dataset` calls the readers of single files.
BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
}
READ_ROWS = 16  # that are taken from a file at a time


def open_rows(source: Any, split: str, streaming: bool = True) -> Any:
    """A new `datasets.IterableDataset` with audio as it is stored; arguments and errors as of `load_pairs`."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError('Data sets need datasets: run `pip install "hf_clap[train]"`.') from error
    if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        if split not in source:
            raise PairError(f"There is no split {split}; pass split=… with one of {', '.join(map(str, source))}.")
        source = source[split]
    elif not isinstance(source, (datasets.Dataset, datasets.IterableDataset)):
        files = source if isinstance(source, (list, tuple)) else [source]
        for file in files:
            if not isinstance(file, (str, os.PathLike)):
                raise PairError(
                    f"A {type(file).__name__} is no source of rows; name files, or make rows a data set with "
                    "datasets.Dataset.from_list."
                )
        names = [str(file) for file in files]
        if not all(names):
            raise PairError("An empty name is no source of rows; name a data set, a folder or files.")
        endings = {
            next((builder for suffix, builder in BUILDERS.items() if name.lower().endswith(suffix)), None)
            for name in names
        }
        if endings == {None} and len(names) == 1:
            source = datasets.load_dataset(names[0], split=split, streaming=streaming)
        elif len(endings) == 1 and None not in endings:
            if split != "train":  # which `datasets` calls what has none
                raise PairError(f"Files are of no split; name those of {split!r} alone, and leave out split.")
            try:
                source = datasets.load_dataset(*endings, data_files=names, split=split, streaming=streaming)
            except DAMAGED as error:
                raise _damaged(", ".join(names), error) from error
        else:
            raise PairError(
                f"{source!r} are not files of one kind; pass files that all end with one of {', '.join(BUILDERS)}."
            )
    if isinstance(source, datasets.Dataset) and source.format["type"] == "custom":
        raise PairError("Transforms on the fly (with_transform) are not read; use the data set's map.")
    source = source.with_format(None)
    if isinstance(source, datasets.Dataset):
        if not len(source):
            raise PairError("The data set has no rows.")
        source = source.to_iterable_dataset(num_shards=min(64, len(source)))
    return source if source.features is None else source.decode(False)


def count_shards(rows: Any) -> int:
    """
    In how many shards rows of `open_rows` may be read. Where `take`, `skip` or `interleave_datasets` has a part in
    them, one: of shards `datasets` would take a few rows each, which are others than of the whole.
    """
    from datasets import iterable_dataset as parts

    whole_only = (
        parts.TakeExamplesIterable,
        parts.SkipExamplesIterable,
        parts.CyclingMultiSourcesExamplesIterable,
    )
    pending = [rows._ex_iterable]  # there is no other way to know
    while pending:
        part = pending.pop()
        if isinstance(part, whole_only):
            return 1
        pending += [part.ex_iterable] if hasattr(part, "ex_iterable") else getattr(part, "ex_iterables", [])
    return rows.num_shards


def shard_of(rows: Any, shards: int, index: int) -> Any:
    """A new data set of the rows of one shard of so many, by `count_shards`."""
    # `shard(1, 0)` does not always leave rows as they are
    return rows.with_format(None) if shards == 1 else rows.shard(num_shards=shards, index=index, contiguous=False)


def iter_batches(rows: Any) -> Iterator[dict[str, Any]]:
    """
    Rows of `open_rows`, some at a time: each column's values.

    Raises:
        PairError: where an archive is damaged.
    """
    rows.info.features = None  # to make what is stored of these types, datasets asks for torchcodec
    try:
        yield from rows.iter(batch_size=READ_ROWS)
    except DAMAGED as error:
        raise _damaged("A file of the data set", error) from error


def _damaged(name: str, error: Exception) -> PairError:
    return PairError(f"{name} is damaged ({str(error) or type(error).__name__}); copy or download it again.")
