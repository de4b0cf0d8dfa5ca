"""What a pair is, and where in a row of a data set its audio and its caption are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

CAPTION_COLUMNS = ("caption", "captions", "text", "txt")
LABEL_COLUMNS = ("label", "labels")


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
        columns = list(features if features is not None else next(iter(rows.take(1)), {}))
        for wanted in (audio, caption, label):
            if wanted is not None and wanted.split(".")[0] not in columns:
                raise PairError(f"There is no column {wanted}; there are {', '.join(columns) or 'none'}.")
        if audio is None:
            typed = [name for name in columns if features and type(features[name]).__name__ == "Audio"]
            typed = typed or [name for name in columns if name == "audio"]
            if len(typed) != 1:
                raise PairError(f"Which column is the audio? Pass audio=… with one of {', '.join(typed or columns)}.")
            audio = typed[0]
        if caption is None and label is None:
            caption = next((name for name in CAPTION_COLUMNS if name in columns), None)
            label = next((name for name in LABEL_COLUMNS if name in columns), None)
            if caption is None and label is None:
                raise PairError(f"Which column is the caption? Pass caption=… or label=… of {', '.join(columns)}.")
        of_label: Any = features[label] if features and label in features else None
        of_label = getattr(of_label, "feature", of_label)  # of a list, its elements
        return cls(audio, caption, label, getattr(of_label, "names", None), templates)

    def audio_of(self, row: dict[str, Any]) -> Any:
        return _value(row, self.audio)

    def caption_of(self, row: dict[str, Any], random: np.random.Generator | None) -> str:
        """The caption, drawn if there is a choice and a generator; empty if there is none."""
        captions = [] if self.caption is None else _texts(_value(row, self.caption))
        if captions:
            return _one_of(captions, random)
        labels = [] if self.label is None else _texts(_value(row, self.label), self.label_names)
        return _one_of(self.templates, random).format(", ".join(labels)) if labels else ""


def _one_of(texts: list[str], random: np.random.Generator | None) -> str:
    return texts[0 if random is None or len(texts) == 1 else int(random.integers(len(texts)))]


def _value(row: Any, path: str) -> Any:
    """The value of a column, or of one inside another: `json.caption`."""
    for name in path.split("."):
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def _texts(value: Any, names: list[str] | None = None) -> list[str]:
    """A cell's texts that are not empty; class indices become their names."""
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = []
    for each in values:
        if names is not None and isinstance(each, int) and 0 <= each < len(names):
            each = names[each]
        if isinstance(each, str) and each.strip():
            texts.append(each.strip())
    return texts
