"""
The Parquet file of a corpus' embeddings, one row for each window of each recording.

It appears when it is complete. What is done meanwhile lies beside it, in a journal, so that a run that was killed goes
on: with the same rows as a run that was not.
"""

import glob
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from filelock import Timeout
from huggingface_hub.utils import WeakFileLock

from .array_cache import ArrayCache
from .whole_file import writing

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError('Indexes of sounds need pyarrow: run `pip install "hf_clap[search]"`.') from error

ROW_GROUP_ROWS = 4096  # so many rows are in memory at a time
JOURNAL_EVERY_S = 1.0
METADATA_KEY = b"hf_clap"


@dataclass(frozen=True)
class IndexInfo:
    """
    What an index was made from.

    Args:
        model: Hub id of the model, or its folder's name.
        revision: its commit, if it is from the Hub.
        space_sha256: `Embedder.space_sha256`, which decides whether embeddings can be compared.
        dim: of an embedding.
        window_s, hop_s: length of a window and seconds from one to the next.
        source: the corpus: the place of what is on this machine, as it was named otherwise.
        recordings, windows: how many there are.
        rows_sha256: of all rows.
    """

    model: str
    revision: str | None
    space_sha256: str
    dim: int
    window_s: float
    hop_s: float
    source: str
    recordings: int = 0
    windows: int = 0
    rows_sha256: str = ""

    @property
    def full_model(self) -> str:
        """The model with its revision, or with the beginning of its hash."""
        return f"{self.model} ({self.revision or self.space_sha256[:12]})"


class EmbeddedRecording(NamedTuple):
    """What becomes of one recording."""

    path: str
    content: str | None  # SHA-256 of the file, if it can be read
    spans: np.ndarray | None = None  # (windows, 2) float64: start and end in seconds
    embeds: np.ndarray | None = None  # (windows, dim) float16, L2-normalised
    error: str | None = None  # why there are none; if this too is absent, the journal has them

    @property
    def key(self) -> str:
        """What it is known by: at another path, or with another content, it is another one."""
        return f"{self.content} {self.path}"


class IndexWriter:
    """
    Writes an index. Use it as a context: the file takes the place of the one before when the context ends well;
    otherwise what was done is kept for the next run.

    Args:
        output: the Parquet file to make. If it is there, recordings in it that have not changed are kept.
        info: what it is made from.

    Raises:
        ValueError: if the file that is there was made from something else, or the name does not end with `.parquet`.
        OSError: if its folder does not exist, if it is no index, or if another process writes it.
    """

    def __init__(self, output: str | PathLike[str], info: IndexInfo):
        # where it is a link, what it leads to is written
        self.output, self.info = Path(os.path.realpath(output) if os.path.islink(output) else output), info
        self.recordings = self.windows = self.kept = self.failed = 0
        if self.output.suffix != ".parquet":
            raise ValueError(f"{self.output} is not the name of an index; let it end with .parquet.")
        if not self.output.parent.is_dir():
            raise FileNotFoundError(f"The folder of {self.output} does not exist; make it, or choose another.")
        self._schema = schema_of(info.dim)
        self._pending: dict[str, Mapping[str, np.ndarray]] = {}
        self._rows: list[Any] = []  # recordings whose embeddings are here
        self._digest = hashlib.sha256()

    @property
    def failed_file(self) -> Path:
        """Lists recordings that could not be read, `path` and `error`, one JSON object a line; absent if all could."""
        return self.output.with_suffix(".failed.jsonl")

    def __enter__(self) -> "IndexWriter":
        with ExitStack() as stack:
            lock = self._beside("lock")
            try:
                stack.enter_context(WeakFileLock(lock, timeout=0.1))
            except Timeout as error:
                raise OSError(f"Another process writes {self.output}; wait for it, or choose another name.") from error
            before = read_info(self.output) if self.output.exists() else None
            if before:
                self._check(before)
            # of another model or window, the journal's entries are of no use
            settings = f"{self.info.space_sha256} {self.info.window_s} {self.info.hop_s}"
            self._journal = ArrayCache(self._beside(f"{hashlib.sha256(settings.encode()).hexdigest()[:12]}.journal"))
            if before:
                self._journal_index()
            self._failures = stack.enter_context(self._beside("failed").open("w", encoding="utf-8"))
            self._parquet = stack.enter_context(
                pq.ParquetWriter(
                    self._beside("rows"),
                    self._schema,
                    compression={name: "zstd" for name in self._schema.names if name != "embedding"}
                    | {"embedding.list.element": "none"},  # noise, to a compressor
                    use_dictionary=["path", "content", "model", "revision"],
                    write_statistics=False,
                    write_page_checksum=True,
                )
            )
            self._written = time.monotonic()
            self._stack = stack.pop_all()
        return self

    def known(self, keys: Iterable[str]) -> set[str]:
        """Keys of recordings that need not be embedded again; may be asked in any thread."""
        return self._journal.having(keys)

    def all_known(self) -> set[str]:
        """All such keys, for other machines."""
        return self._journal.all_keys()

    def add(self, group: Sequence[EmbeddedRecording]) -> None:
        """The next recordings of the corpus, which were embedded together: a later run finds all of them or none."""
        readable: list[Any] = [recording for recording in group if recording.error is None]
        kept = self._journal.get(recording.key for recording in readable if recording.spans is None)
        for recording in readable:
            if recording.spans is None:
                self.kept += 1
                recording = recording._replace(**kept[recording.key])
            else:
                self._pending[recording.key] = _as_entry(recording)
            self.recordings += 1
            self.windows += len(recording.spans)
            self._rows.append(recording)
        for recording in group:
            if recording.error is not None:
                self.failed += 1
                self._failures.write(json.dumps({"path": recording.path, "error": recording.error}) + "\n")
        if time.monotonic() - self._written > JOURNAL_EVERY_S:
            self._write_journal()
        if sum(len(recording.spans) for recording in self._rows) >= ROW_GROUP_ROWS:
            self._write_rows()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:  # which gives back the lock last of all
            if kind is not None:
                self._give_up()
                return
            try:
                with writing(self.output):
                    self._finish()
            except BaseException:
                self._give_up()
                raise

    def _finish(self) -> None:
        self._write_journal()
        self._write_rows()
        counted = {"recordings": self.recordings, "windows": self.windows, "rows_sha256": self._digest.hexdigest()}
        self._parquet.add_key_value_metadata({METADATA_KEY: json.dumps(asdict(self.info) | counted)})
        self._parquet.close()
        self._failures.close()
        os.replace(self._beside("rows"), self.output)
        if self.failed:
            os.replace(self._beside("failed"), self.failed_file)
        else:
            self.failed_file.unlink(missing_ok=True)
            self._beside("failed").unlink()
        for journal in self.output.parent.glob(f".{glob.escape(self.output.name)}.????????????.journal"):
            journal.unlink()

    def _give_up(self) -> None:
        """Leave the journal alone, from which a later run goes on."""
        for name, file in (("rows", self._parquet), ("failed", self._failures)):
            with suppress(OSError):  # of a full disk, which is the error already
                file.close()  # Windows removes no open file, and no other gives its room back
            self._beside(name).unlink(missing_ok=True)
        self._write_journal()  # for which there is room now, if there was none
        if not self._journal.all_keys():
            self._journal.path.unlink(missing_ok=True)

    def _beside(self, name: str) -> Path:
        return self.output.with_name(f".{self.output.name}.{name}")

    def _check(self, before: IndexInfo) -> None:
        """That an index which is there may be replaced: it took long to make."""
        names = {"space_sha256": "model", "window_s": "window_s", "hop_s": "hop_s", "source": "source"}
        for field, name in names.items():
            if getattr(before, field) != getattr(self.info, field):
                had, has = (getattr(info, "full_model" if name == "model" else field) for info in (before, self.info))
                raise ValueError(
                    f"{self.output} was made with {name}={had}, and this is {has}; choose another name, or delete the "
                    "file."
                )

    def _journal_index(self) -> None:
        """Put the index that is there into the journal."""
        entries: dict[str, Mapping[str, np.ndarray]] = {}
        for recording in iter_index(self.output):
            entries[recording.key] = _as_entry(recording)
            if len(entries) >= 256:
                self._journal.put(entries)
                entries.clear()
        self._journal.put(entries)

    def _write_journal(self) -> None:
        if self._pending:
            self._journal.put(self._pending)
            self._pending.clear()
        self._written = time.monotonic()

    def _write_rows(self) -> None:
        if not self._rows:
            return
        paths = [recording.path for recording in self._rows for _ in recording.spans]
        contents = [recording.content for recording in self._rows for _ in recording.spans]
        windows = len(paths)
        spans = np.concatenate([recording.spans for recording in self._rows])
        embeds = np.concatenate([recording.embeds for recording in self._rows])
        for part in ("\0".join(paths).encode(), spans.data, embeds.data, "".join(contents).encode()):
            self._digest.update(part)
        embedding = self._schema.field("embedding").type
        columns = [
            pa.array(paths),
            pa.array(np.ascontiguousarray(spans[:, 0])),
            pa.array(np.ascontiguousarray(spans[:, 1])),
            pa.FixedSizeListArray.from_arrays(pa.array(embeds.reshape(-1)), type=embedding),
            pa.array(contents),
            pa.array([self.info.model] * windows),
            pa.array([self.info.revision] * windows, pa.string()),
        ]
        self._parquet.write_table(pa.table(columns, schema=self._schema), row_group_size=windows)
        self._rows.clear()


def schema_of(dim: int) -> Any:
    """The columns of an index."""
    return pa.schema(
        [
            ("path", pa.string()),
            ("start", pa.float64()),  # seconds
            ("end", pa.float64()),
            ("embedding", pa.list_(pa.field("element", pa.float16(), nullable=False), dim)),
            ("content", pa.string()),  # SHA-256 of the file
            ("model", pa.string()),
            ("revision", pa.string()),
        ]
    )


def read_info(index: str | PathLike[str]) -> IndexInfo:
    """What an index was made from; errors as of `open_index`."""
    with open_index(index) as (_, info):
        return info


@contextmanager
def open_index(index: str | PathLike[str]) -> Iterator[tuple[pq.ParquetFile, IndexInfo]]:
    """
    An index, open, and what it was made from: of one moment, also while `hf-clap embed` puts another in its place.

    Raises:
        OSError: if there is no such file, or it is no index.
    """
    if Path(index).is_dir():
        raise IsADirectoryError(f"{index} is a folder; name the file in it that `hf-clap embed` wrote.")
    if not Path(index).is_file():
        raise FileNotFoundError(f"{index} does not exist; make it with `hf-clap embed SOURCE -o {index}`.")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(pq.ParquetFile(index, page_checksum_verification=True))
            info = IndexInfo(**json.loads(file.metadata.metadata[METADATA_KEY]))
            if (file.metadata.num_rows, file.schema_arrow) != (info.windows, schema_of(info.dim)):
                raise KeyError("rows")
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise OSError(
                f"{index} is not an index that `hf-clap embed` wrote; name one, or delete the file."
            ) from error
        yield file, info


@contextmanager
def undamaged(index: str | PathLike[str]) -> Iterator[None]:
    """
    Around reading rows of an index.

    Raises:
        OSError: if they are damaged, which a checksum of each page tells.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise OSError(f"{index} is damaged ({reason}); delete it and embed the corpus again.") from error


def iter_index(index: str | PathLike[str]) -> Iterator[EmbeddedRecording]:
    """The recordings of an index, in order; few are in memory at a time."""
    with open_index(index) as (file, _), undamaged(index):
        rows = (row for batch in file.iter_batches(ROW_GROUP_ROWS) for row in _rows_of(batch))
        for (path, content), windows in itertools.groupby(rows, key=lambda row: row[:2]):
            spans, embeds = zip(*((span, embed) for _, _, span, embed in windows), strict=True)
            yield EmbeddedRecording(path, content, np.stack(spans), np.stack(embeds))


def embeds_of(batch: Any) -> np.ndarray:
    """`(rows, dim)` float16: the embeddings of rows of an index, not copied."""
    column = batch.column("embedding")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def _rows_of(batch: Any) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    spans = np.stack([batch.column("start").to_numpy(), batch.column("end").to_numpy()], axis=1)
    paths, contents = batch.column("path").to_pylist(), batch.column("content").to_pylist()
    return zip(paths, contents, spans, embeds_of(batch), strict=True)


def _as_entry(recording: EmbeddedRecording) -> dict[str, Any]:
    """For the journal."""
    return {"spans": recording.spans, "embeds": recording.embeds}
