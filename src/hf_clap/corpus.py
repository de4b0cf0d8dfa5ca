"""A corpus: the recordings of a folder or a data set, one after the other, however many there are."""

import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from .pair_columns import audio_column
from .rows import iter_batches, open_rows

AUDIO_SUFFIXES = {
    ".3gp",
    ".aac",
    ".aif",
    ".aifc",
    ".aiff",
    ".asf",
    ".au",
    ".caf",
    ".flac",
    ".m4a",
    ".m4b",
    ".mka",
    ".mkv",
    ".mov",
    ".mp2",
    ".mp3",
    ".mp4",
    ".oga",
    ".ogg",
    ".opus",
    ".w64",
    ".wav",
    ".weba",
    ".webm",
    ".wma",
}  # of recordings; other files are data sets


class Recording(NamedTuple):
    """One recording of a corpus."""

    # in the folder, with / between folders; in a data set the row's number, and / and its name if it has one
    path: str
    audio: Any  # as `load_audio` takes it, or as `datasets` store it


class Corpus:
    """
    Recordings in a fixed order; each iteration goes through all of them.

    Args:
        source: a folder, which is searched through for audio files; one audio file; or what `load_pairs` takes: a Hub
            id, Parquet shards, WebDataset tars or a data set of `datasets`, which are streamed.
        split: of a data set.

    Raises:
        ValueError: for a split of what has none.
        OSError: if there is no such source, or no audio in it; while it is read, if there are fewer recordings than at
            first.
        ImportError: for a data set, where `datasets` is not installed.

    Example:

    ```python
    >>> from hf_clap.corpus import Corpus

    >>> corpus = Corpus("examples/audio")
    >>> corpus.total, next(iter(corpus)).path
    (8, 'bird_singing.flac')

    ```
    """

    def __init__(self, source: Any, split: str = "train"):
        self.source, self.split = source, split
        self.folder: Path | None = None  # where paths of files begin
        self.total: int | None = None  # recordings, where that is known
        if isinstance(source, str) and not source:
            raise ValueError("An empty name is no source of sounds; pass a folder, a file or a data set.")
        named = Path(source) if isinstance(source, (str, PathLike)) else None
        if named is not None and named.is_dir() and next(iter_audio_files(named), None):
            self.folder = named
        elif named is not None and named.is_file() and named.suffix.lower() in AUDIO_SUFFIXES:
            self.folder = named.parent
        if self.folder is None:
            self._rows, self._column, self.total = _open_data_set(source, split)
        elif split != "train":
            raise ValueError(f"{source} holds sounds as files, which have no splits; leave out split={split!r}.")
        else:
            self.total = sum(1 for _ in self)

    def __iter__(self) -> Iterator[Recording]:
        if self.folder is None:
            yield from self._from_rows()
        else:
            named, count = Path(self.source), 0
            for path in iter_audio_files(named) if named.is_dir() else [str(named)]:
                count += 1
                yield Recording(Path(path).relative_to(self.folder).as_posix(), path)
            if self.total and count < self.total:  # as when a disk is taken away: an index would lose the others
                raise OSError(
                    f"{self.source} had {self.total} recordings, and now it has {count}; look where the others are, "
                    "and run it again."
                )

    def _from_rows(self) -> Iterator[Recording]:
        for number, audio in enumerate(audio for batch in iter_batches(self._rows) for audio in batch[self._column]):
            path = (audio.get("path") if isinstance(audio, dict) else None) or ""
            inside = path.partition("::")[0] if "://" in path else path  # of an archive: zip://a.wav::sounds.zip
            yield Recording(f"{number}/{os.path.basename(inside)}" if path else str(number), audio)


def iter_audio_files(folder: str | PathLike[str]) -> Iterator[str]:
    """
    Paths of the audio files in a folder and those in it, by name: folder after folder, so that few are in memory.
    Links are followed; a folder with several names is read once.

    Raises:
        OSError: if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError) or error.filename == os.fspath(folder):
            raise error  # otherwise it has gone since its name was read, as a file may

    read = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in read:
            folders.clear()
            continue
        read.add(real)
        folders.sort()
        for path in (os.path.join(place, name) for name in sorted(files)):
            if os.path.splitext(path)[1].lower() in AUDIO_SUFFIXES and os.path.isfile(path):
                yield path


def _open_data_set(source: Any, split: str) -> tuple[Any, str, int | None]:
    """Rows as they are stored, the column of audio, and how many rows there are, if that is known."""
    known = getattr(source, "num_rows", None)
    try:
        rows = open_rows(source, split)
        column = audio_column(rows)
    except (ValueError, OSError) as error:
        name = repr(str(source)) if isinstance(source, (str, PathLike)) else f"The {type(source).__name__}"
        raise OSError(
            f"{name} is neither a folder with audio files in it nor a data set of sounds "
            f"({str(error).rstrip('.')}); check the name."
        ) from error
    if known is None and rows.info.splits and split in rows.info.splits:
        known = rows.info.splits[split].num_examples
    return rows, column, known or None
