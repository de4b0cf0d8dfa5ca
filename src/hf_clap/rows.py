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
    if isinstance(source, datasets.Dataset):
        if not len(source):
            raise PairError("The data set has no rows.")
        source = source.to_iterable_dataset(num_shards=min(64, len(source)))
    source = source.with_format(None)
    return source if source.features is None else source.decode(False)


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
