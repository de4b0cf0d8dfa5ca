"""The clips of a task, from a folder or from the Hub: where their sound is, what they are, in which fold."""

import csv
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from .tasks import TRAIN_AND_TEST, HubData, Task, plain_label

SEPARATOR = "|"  # between the labels of a clip that may have several, and between its captions


@dataclass(frozen=True)
class Clip:
    """
    One clip of a task.

    Args:
        name: that tells it from the task's other clips.
        audio: fetches it, as `load_audio` takes it.
        labels: its classes, as numbers of `task.classes`.
        captions: that belong to it.
        fold: that it is in, if there are any.
        cluster: what it shares with clips of the same recording or speaker, where that is known.
    """

    name: str
    audio: Callable[[], Any]
    labels: tuple[int, ...] = ()
    captions: tuple[str, ...] = ()
    fold: str | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class TaskData:
    """The clips of a task and where they are from: a Hub id, or `folder`, and the Hub's revision."""

    clips: tuple[Clip, ...]
    source: str
    revision: str | None = None


def load_task(task: Task, folders: Sequence[str | PathLike[str]] = ()) -> TaskData:
    """
    The clips of a task.

    Args:
        task: of the benchmark, or one of your own.
        folders: local copies, read as one: audio files and a `metadata.csv` with the columns `file_name`, `label`
            (several with `|` between them where the task allows it) and, as the task needs them, `fold`, `caption`
            (several with `|` between them) and `cluster`. The Hub's copy, at the pinned revision, when absent.

    Returns:
        TaskData: in the order of the data.

    Raises:
        ValueError: for a column that is missing or there twice, a label or a fold that the task does not have, a file
            named twice, or no clips at all.
        OSError: if there is no such folder, or the Hub cannot be reached.

    Example:

    ```python
    >>> import csv, pathlib, tempfile
    >>> from hf_clap.task_data import load_task
    >>> from hf_clap.tasks import TASKS

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "metadata.csv").write_text("file_name,label,fold\\nwoof.wav,Dog,1\\n")
    ...     [clip] = load_task(TASKS["esc10"], [folder]).clips
    >>> clip.name, clip.labels, clip.fold
    ('woof.wav', (0,), '1')

    ```
    """
    rows = _from_folders(task, [Path(folder) for folder in folders]) if folders else _from_hub(task)
    clips = list(rows)
    if not clips:
        raise ValueError(f"There are no clips of {task.name}; check {' and '.join(map(str, folders)) or 'the task'}.")
    names = set()
    for clip in clips:
        name = os.path.normpath(clip.name)
        if name in names:
            raise ValueError(f"{name} is there twice among the clips of {task.name}; name each file once.")
        names.add(name)
    if folders:
        return TaskData(tuple(clips), "folder")
    assert task.hub is not None
    return TaskData(tuple(clips), task.hub.path, task.hub.revision)


def find_folders(task: Task, root: str | PathLike[str]) -> list[Path]:
    """The folders of a task below `root`, or none if one of them is not there."""
    folders = [Path(root) / name for name in task.folders or (task.name,)]
    return folders if all(folder.is_dir() for folder in folders) else []


def _from_folders(task: Task, folders: Sequence[Path]) -> Iterator[Clip]:
    numbers = _numbers(task)
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is no folder; name the one that it is in, with a metadata.csv.")
        metadata = folder / "metadata.csv"
        try:
            with metadata.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, strict=True)
                rows = list(reader)
                columns = reader.fieldnames or []
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} has no metadata.csv; name a folder of {task.title} with the columns file_name and "
                f"{'label' if task.classes else 'caption'} in it."
            ) from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{metadata} cannot be read as CSV in UTF-8 ({error}); write it again.") from error
        if not columns:
            raise ValueError(f"{metadata} is empty; write a row for each clip of {task.title}.")
        for column in ("file_name", "label" if task.classes else "caption"):
            if column not in columns:
                raise ValueError(
                    f"{metadata} has no column {column!r} but {', '.join(map(repr, columns))}; rename the one that "
                    f"{task.title} needs."
                )
        for column in filter(None, columns):  # spreadsheets may end in several without a name
            if columns.count(column) > 1:
                raise ValueError(f"{metadata} has the column {column!r} twice; leave one of them out.")
        for line, row in enumerate(rows, start=2):
            if not row["file_name"]:
                raise ValueError(f"{metadata}: row {line} names no file; fill in file_name.")
            place = f"{metadata}: row {line}"
            if any(row.pop(None, [])):
                raise ValueError(f"{place} has more cells than there are columns; put what has a comma in quotes.")
            path = folder / row["file_name"]
            if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
                raise ValueError(f"{place} names a pipe or a device, which may never end; name a file.")
            name = row["file_name"] if len(folders) == 1 else f"{folder.name}/{row['file_name']}"
            yield _clip(
                task,
                numbers,
                place,
                name,
                audio=partial(str, path),
                labels=_split(row.get("label")) if task.multi_label else [row.get("label") or ""],
                captions=_split(row.get("caption")),
                fold=_fold(task, (row.get("fold") or "").strip()),
                cluster=row.get("cluster") or None,
            )


def _fold(task: Task, name: str) -> str | None:
    """As the task writes it, whatever the upper case; those that it does not prescribe are the data's own."""
    prescribed = {fold.casefold(): fold for fold in task.folds or TRAIN_AND_TEST}
    return prescribed.get(name.casefold(), name) or None


def _from_hub(task: Task) -> Iterator[Clip]:
    if task.hub is None:
        raise ValueError(
            f"{task.title} is not on the Hub in a form that can be pinned; {task.obtain} Then name its folder with "
            "--data-dir."
        )
    try:
        import datasets
    except ImportError as error:
        raise ImportError('Data from the Hub need datasets: run `pip install "hf_clap[eval]"`.') from error
    hub, numbers = task.hub, _numbers(task)
    for split, fold_of_split in hub.splits.items():
        try:
            rows = datasets.load_dataset(hub.path, hub.config, split=split, revision=hub.revision)
        except (OSError, ValueError) as error:
            raise OSError(
                f"{hub.path} cannot be read from the Hub ({error}); check the network, or get the data ("
                f"{task.obtain}) and name their folder with --data-dir."
            ) from error
        label = hub.label if task.classes else None
        for column in (hub.audio, label, None if task.classes else hub.caption, hub.fold, hub.clip):
            if column is not None and column not in rows.column_names:
                raise ValueError(
                    f"{hub.path} has no column {column!r} but {', '.join(map(repr, rows.column_names))}; correct the "
                    f"row of {task.name}."
                )
        rows = rows.cast_column(hub.audio, datasets.Audio(decode=False))
        names = _class_names(rows.features[label]) if label else None
        for number, row in _one_for_each_clip(rows.remove_columns(hub.audio), hub):
            labels = _texts(row[label], names) if label else []
            if hub.skip_other_labels and not (labels and all(plain_label(name) in numbers for name in labels)):
                continue
            name = f"{split}/{number}"
            yield _clip(
                task,
                numbers,
                f"{hub.path}: {name}",
                name,
                audio=partial(_cell, rows, number, hub.audio),
                labels=labels,
                captions=_texts(row[hub.caption]) if hub.caption else [],
                fold=str(row[hub.fold]) if hub.fold and row[hub.fold] is not None else fold_of_split,
                cluster=None,
            )


def _one_for_each_clip(rows: Iterable[dict[str, Any]], hub: HubData) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers; where several are of one clip, the first of them, with the captions of all."""
    if hub.clip is None or hub.caption is None:
        yield from enumerate(rows)
        return
    clips: dict[Any, tuple[int, dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        _, first = clips.setdefault(row[hub.clip], (number, row | {hub.caption: []}))
        first[hub.caption] += _texts(row[hub.caption])
    yield from clips.values()


def _clip(
    task: Task,
    numbers: Mapping[str, int],
    place: str,
    name: str,
    *,
    audio: Callable[[], Any],
    labels: Sequence[str],
    captions: Sequence[str],
    fold: str | None,
    cluster: str | None,
) -> Clip:
    """One row, checked; `place` is what messages call it."""
    if task.classes and not labels:
        raise ValueError(f"{place} has no label; give each clip of {task.title} one.")
    if not task.classes and not captions:
        raise ValueError(f"{place} has no caption; give each clip of {task.title} at least one.")
    if fold is not None and task.folds and fold not in task.folds:
        raise ValueError(
            f"{place} is in fold {fold!r}, but {task.title} has {', '.join(task.folds)}; correct the fold."
        )
    for label in labels if task.classes else ():
        if plain_label(label) not in numbers:
            near = difflib.get_close_matches(plain_label(label), numbers, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(task.classes)}."
            raise ValueError(f"{place} is labelled {label!r}, which is no class of {task.title}; {advice}")
    classes = tuple(dict.fromkeys(numbers[plain_label(label)] for label in labels)) if task.classes else ()
    return Clip(name, audio, classes, tuple(captions), fold, cluster)


def _numbers(task: Task) -> dict[str, int]:
    """Number of the class by every way to write it."""
    known = {plain_label(name): number for number, name in enumerate(task.classes)}
    return known | {plain_label(alias): known[plain_label(name)] for alias, name in task.labels.items()}


def _split(cell: str | None) -> list[str]:
    return [part.strip() for part in (cell or "").split(SEPARATOR) if part.strip()]


def _texts(value: Any, names: Sequence[str] | None = None) -> list[str]:
    """The texts in a cell: one or several, or the names of numbered classes."""
    values = value if isinstance(value, list) else [value]
    if names is not None:  # -1 is `datasets`' number for no class
        values = [(names[part] if part >= 0 else None) if isinstance(part, int) else part for part in values]
    return [str(part) for part in values if part is not None and part != ""]


def _class_names(feature: Any) -> Sequence[str] | None:
    """Of a column of numbered classes, or of lists of them."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _cell(rows: Any, number: int, column: str) -> Mapping[str, Any]:
    return rows[number][column]
