"""Find the moments of a corpus that sound like words, or like another sound."""

import glob
import os
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .index_file import IndexInfo, embeds_of, open_index, undamaged
from .pipeline import HfClapPipeline, check_positive_int, pipeline
from .prompts import check_unicode
from .whole_file import whole_file

try:
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError('Indexes of sounds need pyarrow: run `pip install "hf_clap[search]"`.') from error

EXACT_WINDOWS = 1_000_000  # up to so many are searched one by one
READ_ROWS = 8192
SCORED_AT_ONCE = 16384  # windows whose float32 embeddings are in memory at a time
LISTS_READ = 64  # for a query
TRAINED_ON = 40  # windows for each list


class SoundIndex:
    """
    The embeddings of a corpus, which `hf-clap embed` wrote, to be searched by words or by sound.

    Args:
        index: the Parquet file.
        model: folder or Hub id of the model that it was made with, or a pipeline with it; the bundled one when absent.
        approximate: whether to search through FAISS (extra `search`), which is quick in millions of windows and may
            miss some. Its own file lies beside the index; it is made when it is missing, and read as it is needed
            (memory-mapped). When absent, that is so with more than a million windows.

    Raises:
        OSError: if there is no such index.
        ValueError: if it was made with another model or revision.
        ImportError: if it shall be approximate and FAISS is not installed.

    Example:

    ```python
    >>> import tempfile
    >>> import hf_clap
    >>> from hf_clap.corpus import Corpus
    >>> from hf_clap.corpus_embedding import embed_corpus

    >>> tagger = hf_clap.pipeline(device="cpu")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = embed_corpus(Corpus("examples/audio"), folder + "/sounds.parquet", tagger.embedder, window_s=4.0)
    ...     index = hf_clap.SoundIndex(done.output, tagger)
    >>> index.search("an ambulance with its siren on", top_k=2)
    [{'path': 'long_scene.flac', 'timestamp': (16.0, 20.0), 'score': 0.609},
     {'path': 'siren.flac', 'timestamp': (0.0, 4.0), 'score': 0.605}]
    >>> index.search(audio="examples/audio/rain.flac", top_k=2)[1]["path"]
    'long_scene.flac'

    ```
    """

    def __init__(
        self,
        index: str | PathLike[str],
        model: str | HfClapPipeline | None = None,
        approximate: bool | None = None,
    ):
        self.path = Path(index)
        with open_index(index) as (file, self.info):
            tagger = model if isinstance(model, HfClapPipeline) else pipeline(model)
            self.embedder = tagger.embedder
            self._check_model()
            with undamaged(index):
                self._rows = file.read(["path", "start", "end"])
            self.approximate = self.info.windows > EXACT_WINDOWS if approximate is None else approximate
            if self.approximate:
                self._faiss = _open_faiss(self.path, file, self.info)
            else:
                with undamaged(index):
                    self._embeds = _read_embeds(file, self.info)

    def __len__(self) -> int:
        return self.info.windows

    def search(self, text: str | None = None, top_k: int = 10, *, audio: Any = None) -> list[dict[str, Any]]:
        """
        The moments that are most like a text or a sound.

        Args:
            text: what to listen for, in plain words.
            top_k: how many moments.
            audio: a sound instead of words, as `load_audio` takes it; the mean of its windows is looked for.

        Returns:
            list[dict]: `path` in the corpus, `timestamp` `(start, end)` in seconds and `score` (cosine similarity), by
            falling score. Of windows of a recording that overlap, the best is there.

        Raises:
            ValueError, TypeError: for no query, two, or one that is empty.
            AudioError, OSError: for audio that cannot be used.
        """
        check_positive_int("top_k", top_k)
        query = self.embed_query(text, audio)
        overlapping = self.info.hop_s < self.info.window_s
        wanted = min(top_k * (4 if overlapping else 1), len(self))
        while True:
            scores, rows = self.nearest(query[None], wanted)
            moments = self._moments(scores[0], rows[0])
            if len(moments) >= top_k or wanted == len(self) or rows[0, -1] < 0:
                return moments[:top_k]
            wanted = min(wanted * 4, len(self))

    def embed_query(self, text: str | None = None, audio: Any = None) -> np.ndarray:
        """`(dim,)` float32: the embedding of a text or a sound; arguments and errors as of `search`."""
        if (text is None) == (audio is None):
            raise ValueError("Search for a text or for audio; pass one of both.")
        if text is not None:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{text!r} is nothing to search for; pass words, such as 'a dog barking'.")
            check_unicode("Query", [text])
            return self.embedder.texts([text])[0]
        [[result]] = self.embedder.clips([[audio]])
        if isinstance(result, Exception):
            raise result
        return result.embed

    def nearest(self, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            queries: `(queries, dim)` float32, L2-normalised.
            top_k: how many windows for each.

        Returns:
            tuple: scores `(queries, top_k)` float32, by falling score, and rows of the index `(queries, top_k)`.
        """
        if self.approximate:
            return self._faiss.search(np.ascontiguousarray(queries, dtype=np.float32), top_k)
        wanted = torch.from_numpy(queries)
        best, place = wanted.new_empty(len(queries), 0), wanted.new_empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self._embeds), SCORED_AT_ONCE):
            scores = wanted @ self._embeds[start : start + SCORED_AT_ONCE].float().T
            values, columns = scores.topk(min(top_k, scores.shape[1]))
            best = torch.cat([best, values], dim=1)
            place = torch.cat([place, columns + start], dim=1)
            best, order = best.sort(dim=1, descending=True, stable=True)
            best, place = best[:, :top_k], place.gather(1, order[:, :top_k])
        return best.numpy(), place.numpy()

    def _check_model(self) -> None:
        if self.embedder.space_sha256 != self.info.space_sha256:
            used = self.embedder.revision or self.embedder.space_sha256[:12]
            raise ValueError(
                f"{self.path} was made with {self.info.full_model}, and this is {self.embedder.name} ({used}), whose "
                "embeddings cannot be compared with it; choose that model, or embed the corpus again."
            )

    def _moments(self, scores: np.ndarray, rows: np.ndarray) -> list[dict[str, Any]]:
        """Rows as moments, without those that overlap a better one of the same recording."""
        found: list[dict[str, Any]] = []
        taken: dict[str, list[tuple[float, float]]] = {}
        for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
            if row < 0:  # FAISS has looked through its lists and found no more
                break
            path, start, end = (column[row].as_py() for column in self._rows.columns)
            spans = taken.setdefault(path, [])
            if all(end <= other_start or start >= other_end for other_start, other_end in spans):
                spans.append((start, end))
                score = max(-1.0, min(score, 1.0))  # embeddings in float16 are not quite of length 1
                found.append({"path": path, "timestamp": (start, end), "score": score})
        return found


def _read_embeds(file: pq.ParquetFile, info: IndexInfo) -> torch.Tensor:
    """`(windows, dim)` float16."""
    embeds = np.empty((info.windows, info.dim), np.float16)
    start = 0
    for batch in file.iter_batches(READ_ROWS, columns=["embedding"]):
        embeds[start : start + len(batch)] = embeds_of(batch)
        start += len(batch)
    return torch.from_numpy(embeds)


def _open_faiss(index: Path, file: pq.ParquetFile, info: IndexInfo) -> Any:
    """The FAISS index of these rows, memory-mapped; it is made first when it is missing."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError('Approximate search needs FAISS: run `pip install "hf_clap[search]"`.') from error
    place = index.with_name(f"{index.stem}.{info.rows_sha256[:12]}.faiss")
    if not place.exists():
        with undamaged(index):
            built = _build_faiss(file, info.dim, info.windows)
        try:
            with whole_file(place) as unfinished:
                faiss.write_index(built, str(unfinished))
        except RuntimeError as error:  # FAISS has no other
            raise OSError(
                f"{place} cannot be written; make room there, or search without --approximate (approximate=False)."
            ) from error
        for old in set(index.parent.glob(f"{glob.escape(index.stem)}.????????????.faiss")) - {place}:
            old.unlink()  # of rows that the index had before
    damaged = f"{place} is damaged; delete it, and the next search makes it again."
    flags = 0 if os.name == "nt" else faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY  # FAISS cannot map it on Windows
    try:
        mapped: Any = faiss.read_index(str(place), flags)
    except RuntimeError as error:
        raise OSError(damaged) from error
    if (mapped.ntotal, mapped.d) != (info.windows, info.dim):
        raise OSError(damaged)
    mapped.nprobe = LISTS_READ
    return mapped


def _build_faiss(file: pq.ParquetFile, dim: int, windows: int) -> Any:
    """
    Lists of windows that are near each other, of which a query reads some. They hold the float16 of the index, so that
    scores are exact and only a neighbour in a list that is not read can be missed.
    """
    import faiss

    lists = max(1, min(round(4 * windows**0.5), windows // TRAINED_ON))  # as FAISS' guidelines have it
    quantizer = faiss.IndexFlatIP(dim)
    built = faiss.IndexIVFScalarQuantizer(
        quantizer, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    built.cp.spherical = True
    chosen = np.sort(np.random.default_rng(0).choice(windows, min(windows, lists * TRAINED_ON), replace=False))
    sample, start = [], 0
    for batch in file.iter_batches(READ_ROWS, columns=["embedding"]):
        inside = chosen[(chosen >= start) & (chosen < start + len(batch))] - start
        sample.append(embeds_of(batch)[inside].astype(np.float32))
        start += len(batch)
    built.train(np.concatenate(sample))
    with tqdm(total=windows, desc="indexing", unit="window", disable=None) as progress:
        for batch in file.iter_batches(READ_ROWS, columns=["embedding"]):
            built.add(embeds_of(batch).astype(np.float32))
            progress.update(len(batch))
    return built
