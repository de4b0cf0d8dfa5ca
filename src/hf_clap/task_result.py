"""One measurement with all that it came from, as JSON."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from os import PathLike
from pathlib import Path
from typing import Any

from .tasks import METRICS, SETTINGS
from .whole_file import whole_file


@dataclass(frozen=True)
class TaskResult:
    """
    What a model got on a task in a setting.

    Args:
        task, title: of the row.
        setting: one of `hf_clap.tasks.SETTINGS`.
        metric: that counts.
        value: of it, between 0 and 1.
        ci95: ends of its 95 % bootstrap interval.
        chance: what guessing is expected to get on these clips.
        n: clips that it is over; for retrieval, queries.
        metrics: all that were computed, by name.
        per_class: for each class that occurs its metrics and number of clips.
        folds: value of each fold, where there are several.
        items: for each clip its `file`, `label` and what was `predicted`, or for each query whether it `hit`: what
            `compare` needs.
        failed: clips that could not be read, each with its `file` and `error`. They are not among `n`.
        model: Hub id or name of the folder.
        model_revision: on the Hub, where it is from there.
        weights: SHA-256 of the model's weights and settings.
        prompt: templates, and descriptions of classes; None where no words are used.
        seed: of everything that is drawn.
        training: how the probe or the tower was trained.
        data: where the clips are from, the revision, and the SHA-256 of all clips and labels.
        versions: of the packages that have a part in it.
    """

    task: str
    title: str
    setting: str
    metric: str
    value: float
    ci95: tuple[float, float]
    chance: float
    n: int
    metrics: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]
    folds: Mapping[str, float]
    items: Sequence[Mapping[str, Any]]
    failed: Sequence[Mapping[str, str]]
    model: str
    model_revision: str | None
    weights: str
    prompt: Mapping[str, Any] | None
    seed: int
    training: Mapping[str, Any] | None
    data: Mapping[str, Any]
    versions: Mapping[str, str]


def write_results(results: Sequence[TaskResult], output: str | PathLike[str]) -> None:
    """Write one result as a JSON object, several as a list. The file appears when it is complete."""
    with whole_file(Path(output)) as unfinished:
        unfinished.write_text(results_as_json(results) + "\n", encoding="utf-8")


def results_as_json(results: Sequence[TaskResult]) -> str:
    """One result as an object, several as a list, an item a line."""
    documents = [_as_json(result) for result in results]
    return documents[0] if len(documents) == 1 else "[\n" + ",\n".join(documents) + "\n]"


def read_results(files: Iterable[str | PathLike[str]]) -> list[TaskResult]:
    """
    What `write_results` wrote, of several files in their order.

    Raises:
        ValueError: if a file is not such JSON.
    """
    results = []
    for file in files:
        try:
            document = json.loads(Path(file).read_text(encoding="utf-8"))
            for fields in document if document and isinstance(document, list) else [document]:
                results.append(_as_result(fields))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{file} holds no results ({error}); name a file that `hf-clap eval` wrote.") from error
    return results


def _as_result(fields: Any) -> TaskResult:
    """Raises one of the errors above where something is missing that cards and comparisons need."""
    low, high = fields["ci95"]
    result = TaskResult(**fields | {"ci95": (low, high)})
    if result.setting not in SETTINGS or result.metric not in METRICS:
        raise ValueError(f"nothing is measured as {result.setting} by {result.metric}")
    if not all(map(math.isfinite, (result.value, low, high, result.chance))):
        raise ValueError("it has numbers that are none")
    for mapping in (result.versions, result.training or {}, *result.per_class.values()):
        mapping.items()
    templates = [] if result.prompt is None else result.prompt["templates"]
    "".join([result.title, result.model, result.weights, *templates])
    itemgetter("source", "revision", "sha256")(result.data)
    of_item = itemgetter(*(("query", "hit") if result.setting == "retrieval" else ("file", "label", "predicted")))
    for item in result.items:
        of_item(item)
    for clip in result.failed:
        itemgetter("file", "error")(clip)
    return result


def _as_json(result: TaskResult) -> str:
    """Fields line by line, and so are items and classes: what people may want to read or `diff`."""
    lines = []
    for name, value in dataclasses.asdict(result).items():
        text = json.dumps(value, ensure_ascii=False)
        if value and name in ("items", "failed"):
            text = "[\n  " + ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n ]"
        elif value and name == "per_class":
            rows = (f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(row)}" for key, row in value.items())
            text = "{\n  " + ",\n  ".join(rows) + "\n }"
        lines.append(f' "{name}": {text}')
    return "{\n" + ",\n".join(lines) + "\n}"
