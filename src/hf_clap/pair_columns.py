"""What a pair is, where in a row of a data set its audio and its caption are, and how that audio is read."""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .audio import copy_stream, iter_audio, stretch_of
from .waveform import AudioError

CAPTION_COLUMNS = ("caption", "captions", "text", "txt")
LABEL_COLUMNS = ("label", "labels")
# A longer clip is read twice, for its length and up to the place that is drawn, so that it is never whole in memory.
LONG_CLIP_S = 120.0
# What archives that are damaged or cut raise beside OSError and ValueError.
DAMAGED = (EOFError, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class Pair(NamedTuple):
    """`audio` `(samples,)` float32 at the feature extractor's rate, and its `caption`."""

    audio: np.ndarray
    caption: str


class PairError(ValueError):
    """Data that cannot be trained on."""


class Columns(NamedTuple):
    """Where in a row the audio and the caption are."""

    audio: str
    caption: str | None
    label: str | None
    label_names: list[str] | None
    templates: list[str]

    @classmethod
    def of(cls, rows: Any, audio: str | None, caption: str | None, label: str | None, templates: list[str]) -> Columns:
        """The columns that are asked for, or those of the usual types and names."""
        features = rows.features
        columns = _columns(rows)
        for wanted in (audio, caption, label):
            if wanted is not None and wanted.split(".")[0] not in columns:
                raise PairError(f"There is no column {wanted}; there are {', '.join(columns) or 'none'}.")
        audio = audio_column(rows) if audio is None else audio
        if caption is None and label is None:
            caption = next((name for name in CAPTION_COLUMNS if name in columns), None)
            label = next((name for name in LABEL_COLUMNS if name in columns), None)
            if caption is None and label is None:
                raise PairError(f"Which column is the caption? Pass caption=… or label=… of {', '.join(columns)}.")
        of_label: Any = features[label] if features and label in features else None
        of_label = getattr(of_label, "feature", of_label)  # of a list, its elements
        names = getattr(of_label, "names", None)
        if caption is None and names is None and "int" in str(getattr(of_label, "dtype", "")):
            raise PairError(
                f"The column {label} holds numbers without names; map it to text, or cast it to ClassLabel."
            )
        return cls(audio, caption, label, names, templates)

    def audio_of(self, row: dict[str, Any]) -> Any:
        return _value(row, self.audio)

    def caption_of(self, row: dict[str, Any], random: np.random.Generator | None) -> str:
        """The caption, drawn if there is a choice and a generator; empty if there is none."""
        captions = [] if self.caption is None else _texts(_value(row, self.caption))
        if captions:
            return _one_of(captions, random)
        labels = [] if self.label is None else _texts(_value(row, self.label), self.label_names)
        return _one_of(self.templates, random).replace("{}", ", ".join(labels)) if labels else ""

    def of_text(self) -> str:
        """The columns that captions come from, for messages."""
        return " or ".join(name for name in (self.caption, self.label) if name is not None)


def audio_column(rows: Any) -> str:
    """
    The column of audio of a data set: the one of that type, or else of that name.

    Raises:
        PairError: if there is none, or several.
    """
    columns = _columns(rows)
    typed = [name for name in columns if rows.features and type(rows.features[name]).__name__ == "Audio"]
    typed = typed or [name for name in columns if name == "audio"]
    if len(typed) != 1:
        raise PairError(f"Which column is the audio? Pass audio=… with one of {', '.join(typed or columns)}.")
    return typed[0]


def _columns(rows: Any) -> list[str]:
    """Names of the columns; where the data set does not know them, those of its first row."""
    return list(rows.features if rows.features is not None else next(iter(rows.take(1)), {}))


def _one_of(texts: list[str], random: np.random.Generator | None) -> str:
    return texts[0 if random is None or len(texts) == 1 else int(random.integers(len(texts)))]


def _value(row: Any, path: str) -> Any:
    """The value of a column, or of one inside another: `json.caption`."""
    for name in path.split("."):
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def _texts(value: Any, names: list[str] | None = None) -> list[str]:
    """A cell's texts that are not empty; class indices become their names."""
    value = _plain(value)
    texts = []
    for each in map(_plain, value if isinstance(value, (list, tuple)) else [value]):
        if names is not None and isinstance(each, int) and 0 <= each < len(names):
            each = names[each]
        if isinstance(each, str) and each.strip():
            texts.append(each.strip())
    return texts


def _plain(value: Any) -> Any:
    """Of an array or a tensor, the numbers, texts or lists that it holds; others as they are."""
    return value.tolist() if hasattr(value, "tolist") else value


def read_audio(source: Any, sampling_rate: int, crop_samples: int | None, random: np.random.Generator) -> np.ndarray:
    """
    `(samples,)` float32 at `sampling_rate` in Hz: a clip, or `crop_samples` of it from a place that is drawn.

    Raises:
        AudioError, FileNotFoundError: for audio that cannot be read.
    """
    source = fetch_audio(source)
    long = max(LONG_CLIP_S * sampling_rate, crop_samples or 0)  # samples
    kept, samples = [], 0
    for block in iter_audio(source, sampling_rate):
        samples += len(block)
        if crop_samples is None or samples <= long:
            kept.append(block)
    if crop_samples is None or samples <= crop_samples:
        return np.concatenate(kept)
    start = int(random.integers(samples - crop_samples + 1))
    if samples <= long:
        return np.concatenate(kept)[start : start + crop_samples].copy()  # a view would keep the whole clip
    return stretch_of(iter_audio(source, sampling_rate), start, crop_samples)


def _remote_path(source: Any) -> str | None:
    """Where audio is that is in an archive or on a server, as `datasets` write it: zip://a.wav::a.zip, hf://…"""
    if isinstance(source, Mapping) and all(source.get(key) is None for key in ("bytes", "array", "raw")):
        source = source.get("path")
    remote = isinstance(source, str) and "://" in source and not source.startswith(("http://", "https://"))
    return source if remote else None


def fetch_audio(source: Any) -> Any:
    """
    A row's audio, as `datasets` store it; if it is in an archive or on a server, with its bytes.

    Raises:
        AudioError: if it cannot be read there.
    """
    path = _remote_path(source)
    if path is None:
        return source
    import fsspec  # comes with datasets

    name, whole = path.split("::")[0].rpartition("/")[2], io.BytesIO()  # the rest may hold a password
    try:
        with fsspec.open(path, "rb") as file:
            copy_stream(name, file.read, whole)
    except AudioError:
        raise
    except (OSError, ValueError, RuntimeError, *DAMAGED) as error:  # the third where it is encrypted
        raise AudioError(f"{name} cannot be read where it lies ({type(error).__name__}).") from error
    return {"bytes": whole.getvalue(), "path": path}
