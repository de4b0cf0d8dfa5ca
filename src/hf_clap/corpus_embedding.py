"""
Recordings -> embeddings of their windows.

`read_recordings` is all that comes before the model, `hear_part` is the model, `gather` puts together what became of
each recording. One process does one after the other; the three may also run on different machines, as
`examples/embed_ray.py` has them.
"""

import glob
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from os import PathLike
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from .audio import audio_sha256
from .corpus import Corpus, Recording
from .embedding import BrokenClip, Embedder, WindowBatch, check_finite, iter_batches, window_and_hop
from .feature_extraction_hf_clap import HfClapFeatureExtractor
from .index_file import EmbeddedRecording, IndexInfo, IndexWriter
from .pair_columns import fetch_audio
from .waveform import AudioError

RECORDINGS_TOGETHER = 8  # at least, that are embedded as one, so that a run after a kill has the same batches


@dataclass(frozen=True)
class WindowReader:
    """
    How recordings are read; it can be sent to another process.

    Args:
        extractor: the model's.
        window_input: as `iter_batches` takes it.
        batch_size: windows that are heard together.
        window, hop: in samples at the extractor's rate.
    """

    extractor: HfClapFeatureExtractor
    window_input: Callable[[torch.Tensor, bool], Any]
    batch_size: int
    window: int
    hop: int


class HeardBatch(NamedTuple):
    """What the model makes of a `WindowBatch`."""

    clips: list[int]
    spans: np.ndarray  # (windows, 2) float64, in seconds
    embeds: np.ndarray  # (windows, dim) float16, L2-normalised


Contents = list[str | None]
Part = Contents | WindowBatch | BrokenClip


class Embedded(NamedTuple):
    """What `embed_corpus` has done."""

    output: Path
    recordings: int  # in the index
    windows: int  # in the index
    kept: int  # recordings that had been embedded before
    failed: int  # recordings that could not be read
    failed_file: Path | None  # lists them
    seconds: float


def embed_corpus(
    corpus: Corpus,
    output: str | PathLike[str],
    embedder: Embedder,
    window_s: float | None = None,
    hop_s: float | None = None,
) -> Embedded:
    """
    Embed every window of every recording and write an index, in bounded memory. Shows its progress on stderr.

    Recordings that are in the index already, under the same path and with the same content, are kept and not decoded
    again; so are those that a killed run has done. Those that cannot be read are listed in a file beside the index.

    Args:
        corpus: the recordings.
        output: the Parquet file to make or to bring up to date.
        embedder: the model.
        window_s: length of a window, in seconds; the longest that the model hears at once when absent.
        hop_s: seconds from one window to the next; a window when absent.

    Returns:
        Embedded: what was done.

    Raises:
        ValueError, OSError: as `IndexWriter` and `window_and_hop`, and if not one recording can be read.

    Example:

    ```python
    >>> import tempfile
    >>> import hf_clap
    >>> from hf_clap.corpus import Corpus
    >>> from hf_clap.corpus_embedding import embed_corpus

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     corpus, embedder = Corpus("examples/audio"), hf_clap.pipeline(device="cpu").embedder
    ...     embed_corpus(corpus, folder + "/sounds.parquet", embedder, window_s=4.0).windows
    20

    ```
    """
    reader = window_reader(embedder, window_s, hop_s)
    start = time.monotonic()
    with IndexWriter(output, index_info(corpus, embedder, reader)) as writer:

        def embed(recordings: list[Recording], stopped: Event) -> list[EmbeddedRecording]:
            parts = read_recordings(reader, recordings, writer.known)
            wanted = takewhile(lambda _: not stopped.is_set(), parts)  # nobody waits for the rest of a long recording
            return gather(recordings, (hear_part(embedder, reader, part) for part in wanted))

        groups = embedder.map(embed, groups_of(corpus, embedder.batch_size))
        write_groups(writer, groups, corpus.total)
    return Embedded(
        output=writer.output,
        recordings=writer.recordings,
        windows=writer.windows,
        kept=writer.kept,
        failed=writer.failed,
        failed_file=writer.failed_file if writer.failed else None,
        seconds=time.monotonic() - start,
    )


def window_reader(embedder: Embedder, window_s: float | None = None, hop_s: float | None = None) -> WindowReader:
    """The reader for an embedder; lengths as `embed_corpus` takes them."""
    extractor = embedder.processor.feature_extractor
    window, hop = window_and_hop(extractor, window_s, hop_s)
    return WindowReader(extractor, embedder.window_input, embedder.batch_size, window, hop)


def index_info(corpus: Corpus, embedder: Embedder, reader: WindowReader) -> IndexInfo:
    """What the index of a corpus says that it was made from."""
    rate = reader.extractor.sampling_rate
    return IndexInfo(
        model=embedder.name,
        revision=embedder.revision,
        space_sha256=embedder.space_sha256,
        dim=embedder.model.config.projection_dim,
        window_s=reader.window / rate,
        hop_s=reader.hop / rate,
        source=_source_of(corpus),
    )


def _source_of(corpus: Corpus) -> str:
    """What an index calls its corpus: the same folder from wherever it is named, and another one from nowhere."""
    names = corpus.source if isinstance(corpus.source, (list, tuple)) else [corpus.source]
    places = [type(corpus.source).__name__]
    if all(isinstance(name, (str, PathLike)) for name in names):
        places = [_place_of(name, is_data_set=corpus.folder is None) for name in names]
    return ", ".join(places if corpus.split == "train" else [*places, f"split {corpus.split}"])


def _place_of(name: str | PathLike[str], is_data_set: bool) -> str:
    is_here = os.path.exists(name) or glob.glob(os.fspath(name))
    # a sound that comes to a folder of shards makes it one of recordings, which is another source
    kind = "rows in " if is_data_set and os.path.isdir(name) else ""
    return kind + Path(os.path.abspath(name) if is_here else name).as_posix()


def groups_of(corpus: Iterable[Recording], batch_size: int) -> Iterator[list[Recording]]:
    """Recordings that are embedded together."""
    recordings = iter(corpus)
    return iter(lambda: list(islice(recordings, max(batch_size, RECORDINGS_TOGETHER))), [])


def read_recordings(
    reader: WindowReader, recordings: Sequence[Recording], known: Callable[[list[str]], set[str]]
) -> Iterator[Part]:
    """
    Read recordings that belong together, but those that are known already.

    Args:
        reader: how.
        recordings: the group.
        known: of keys of recordings (`EmbeddedRecording.key`), those that need not be embedded again.

    Yields:
        The SHA-256 of each, then windows of those that are not known, and why some cannot be read.
    """
    contents: Contents = []
    broken = []
    for number, recording in enumerate(recordings):
        try:
            recording.path.encode()
            contents.append(audio_sha256(fetch_audio(recording.audio)))
        except (OSError, ValueError) as error:
            contents.append(None)
            broken.append(BrokenClip(number, _why(recording, error)))
    yield contents
    yield from broken
    keys = [
        EmbeddedRecording(recording.path, content).key for recording, content in zip(recordings, contents, strict=True)
    ]
    done = known([key for key, content in zip(keys, contents, strict=True) if content])
    missing = [number for number, key in enumerate(keys) if contents[number] and key not in done]
    sources = [lambda recording=recordings[number]: fetch_audio(recording.audio) for number in missing]
    for part in iter_batches(
        reader.extractor, reader.window_input, sources, reader.batch_size, None, reader.window, reader.hop
    ):
        if isinstance(part, BrokenClip):
            yield BrokenClip(missing[part.clip], part.error)
        else:
            yield part._replace(clips=[missing[clip] for clip in part.clips])


def hear_part(embedder: Embedder, reader: WindowReader, part: Part) -> Contents | HeardBatch | BrokenClip:
    """A part of `read_recordings` with embeddings in the place of windows."""
    if not isinstance(part, WindowBatch):
        return part
    _, embeds = embedder.hear(part.inputs)
    spans = np.array(part.spans, dtype=np.float64) / reader.extractor.sampling_rate
    return HeardBatch(part.clips, spans, embeds.numpy().astype(np.float16))


def gather(
    recordings: Sequence[Recording], parts: Iterable[Contents | HeardBatch | BrokenClip]
) -> list[EmbeddedRecording]:
    """What became of each recording, from the parts of their group."""
    contents: Contents = []
    errors: dict[int, str] = {}
    heard: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for part in parts:
        if isinstance(part, BrokenClip):
            errors[part.clip] = str(part.error)
        elif isinstance(part, HeardBatch):
            for clip, span, embed in zip(part.clips, part.spans, part.embeds, strict=True):
                heard.setdefault(clip, []).append((span, embed))
        else:
            contents = part
    results = []
    for number, (recording, content) in enumerate(zip(recordings, contents, strict=True)):
        if number in errors:
            results.append(EmbeddedRecording(recording.path, content, error=errors[number]))
        elif number in heard:
            spans, embeds = (np.stack(values) for values in zip(*heard[number], strict=True))
            check_finite(embeds.reshape(1, -1), [recording.path])
            results.append(EmbeddedRecording(recording.path, content, spans, embeds))
        else:
            results.append(EmbeddedRecording(recording.path, content))
    return results


def write_groups(writer: IndexWriter, groups: Iterable[list[EmbeddedRecording]], total: int | None) -> None:
    """
    Hand groups to a writer, in order, with a progress bar on stderr.

    Raises:
        ValueError: if there are recordings and not one can be read.
    """
    first_error = None
    with tqdm(total=total, desc="embedding", unit="clip", disable=None) as progress:
        for group in groups:
            writer.add(group)
            for recording in group:
                if recording.error is not None:
                    first_error = first_error or recording.error
                    tqdm.write(f"{recording.path}: {recording.error}", file=sys.stderr)
            progress.set_postfix(kept=writer.kept, failed=writer.failed, refresh=False)
            progress.update(len(group))
    if not writer.recordings:
        raise ValueError(f"Not one recording can be read; the first says: {first_error or 'there are none'}")


def _why(recording: Recording, error: Exception) -> Exception:
    """A sentence for what could not even be opened."""
    if isinstance(error, UnicodeEncodeError):
        return AudioError(f"The name {recording.path!r} is not text; rename the file.")
    if isinstance(error, OSError):
        file = str(error.filename or recording.path)  # in a data set, what the row names
        name = recording.path if file.endswith(recording.path) else f"{recording.path} ({file})"
        return AudioError(f"{name} cannot be opened ({error.strerror}); check the file.")
    if not isinstance(error, AudioError):  # such as for a name with a zero in it
        return AudioError(f"{recording.path!r} cannot be opened ({error}); check the row.")
    return error
