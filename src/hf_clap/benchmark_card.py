"""Results -> the part of a model card that shows them, beside published numbers, with metadata that the Hub reads."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoFeatureExtractor, AutoModel
from yaml import YAMLError

from .checkpoint_file import KINDS
from .model_card import table, training_card
from .task_result import TaskResult
from .tasks import TASKS, Published, Task

START, END = "<!-- results of hf-clap eval -->", "<!-- end of results -->"

# What the Hub calls them.
TASK_TYPES = {
    "zero-shot": "zero-shot-audio-classification",
    "probe": "audio-classification",
    "finetune": "audio-classification",
    "retrieval": "audio-text-retrieval",
}
METRIC_TYPES = {
    "accuracy": "accuracy",
    "mAP": "map",
    "macro F1": "f1",
    "recall": "recall",
    "text_to_audio_r@1": "recall_at_1",
    "audio_to_text_r@1": "recall_at_1",
}

# The public checkpoints: what is converted -> what others call the model that they measured.
MEASURED_AS = {
    "msclap-2022": "CLAP 2022",
    "msclap-2023": "CLAP 2023",
    "clapcap": None,
    "laion": "LAION-CLAP",
    "transformers": "LAION-CLAP",
}


def benchmark_card(folder: str | PathLike[str], results: Sequence[TaskResult]) -> ModelCard:
    """
    The card of a checkpoint with results in it. They take the place of those that were there between the same marks,
    or come at the end; the rest of the card stays. A checkpoint without a card gets one. The model-index has the first
    of several results of a task in a setting, such as those of a prompt sweep.

    Args:
        folder: of the checkpoint.
        results: of `evaluate`.

    Returns:
        ModelCard: text and metadata, with a model-index; `write_card` puts it into the folder.

    Raises:
        ValueError: if there are no results, one is given twice, or they are of several models; if the card cannot be
            read, or has one of the marks without the other.
        OSError: if the folder holds no checkpoint.
    """
    folder = Path(folder)
    if not results:
        raise ValueError("There are no results; give those of at least one task.")
    _check(results)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint; name a folder that save_pretrained has written.")
    if (folder / "README.md").is_file():
        card: Any = _read_card(folder / "README.md")
    else:
        model = AutoModel.from_pretrained(folder)
        card = training_card(folder.resolve().name, model, AutoFeatureExtractor.from_pretrained(folder))
    line_end = "\r\n" if str(card).startswith("---\r\n") else "\n"
    card.text = card.text.replace("\r\n", "\n")
    part = "\n".join([START, *results_table(results), *_notes(results), END])
    marks = card.text.count(START), card.text.count(END)
    before, _, rest = card.text.partition(START)
    replaced, ended, after = rest.partition(END)
    if marks == (1, 1) and ended:
        card.text = before + part + after
    elif marks != (0, 0):
        raise ValueError(
            f"{folder / 'README.md'} must have {START} and {END} once each, around the results; put them there, "
            "or remove both."
        )
    else:
        card.text = f"{card.text.rstrip()}\n\n## Benchmark\n\n{part}\n"
    title = re.search(r"^# (.+)$", card.text, flags=re.MULTILINE)
    ours: dict[Any, EvalResult] = {}
    for number in map(_as_eval_result, results):
        ours.setdefault(_key(number), number)
    others = [
        number
        for number in card.data.eval_results or []
        if _key(number) not in ours and not _has_row(replaced, number)
    ]
    card.data.model_name = card.data.model_name or (title.group(1).rstrip() if title else folder.resolve().name)
    card.data.eval_results = [*others, *ours.values()]
    card.text = card.text.replace("\n", line_end)
    return card


def results_table(results: Sequence[TaskResult]) -> list[str]:
    """
    The lines of a Markdown table, a result each, with what others have published for the same task and setting. Where
    several are of one task and setting, each says its prompt or training.

    Args:
        results: of `evaluate`.
    """
    header = ["task", "setting", "metric", "value", "95 % interval", "chance", "clips or queries", "published"]
    rows = []
    count = Counter((result.task, result.setting) for result in results)
    for result in results:
        low, high = result.ci95
        setting = result.setting
        if count[result.task, setting] > 1:
            setting = _training(result) or ", ".join(filter(None, (setting, _prompt(result))))
        others = [
            f"{number.model} {number.value:.3f}"
            for number in (TASKS[result.task].published if result.task in TASKS else ())
            if (number.setting, number.metric) == (result.setting, result.metric)
        ]
        value, interval = f"**{result.value:.3f}**", f"{low:.3f} - {high:.3f}"
        measured = [result.title, setting, result.metric, value, interval, f"{result.chance:.3f}", result.n]
        rows.append([*measured, ", ".join(others)])
    if not any(row[-1] for row in rows):
        return table(header[:-1], (row[:-1] for row in rows))
    return table(header, rows)


def published_card(kind: str) -> ModelCard:
    """
    The card of a public checkpoint that `hf-clap convert` brings here: what it is, how to convert it, and what others
    have measured of it; nothing in it was measured here.

    Args:
        kind: one of `hf_clap.checkpoint_file.KINDS`.

    Returns:
        ModelCard: text and metadata, with a model-index that names the sources.
    """
    checkpoint, model = KINDS[kind], MEASURED_AS[kind]
    numbers = [
        (task, number)
        for task in TASKS.values()
        for number in task.published
        if model and number.model.startswith(model)
    ]
    paper = f"https://arxiv.org/abs/{checkpoint.paper}"
    indexed: dict[Any, EvalResult] = {}  # a model-index has one number for a task and setting
    for task, number in numbers:
        indexed.setdefault((task.name, number.setting, number.metric), _of_others(task, number))
    data = ModelCardData(
        license=checkpoint.licence,
        library_name="hf_clap",
        pipeline_tag=None if kind == "clapcap" else "zero-shot-audio-classification",
        tags=["audio", "clap", f"arxiv:{checkpoint.paper}"],
        base_model=checkpoint.repository,
        model_name=kind if numbers else None,
        eval_results=list(indexed.values()) or None,
    )
    rows = {
        "paper": f"[arXiv {checkpoint.paper}]({paper})",
        "weights": f"[{checkpoint.repository}](https://huggingface.co/{checkpoint.repository}): "
        + ", ".join(f"`{file}`" for file in checkpoint.files)
        if checkpoint.repository
        else "any `ClapModel` of transformers, such as [laion/clap-htsat-unfused]"
        "(https://huggingface.co/laion/clap-htsat-unfused)",
        "licence of the weights": checkpoint.licence or "that of the source",
        "tokenizer": checkpoint.tokenizer or "the source's own",
    }
    source = checkpoint.repository or "laion/clap-htsat-unfused"
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {kind}\n",
        "A public CLAP (contrastive language-audio pretraining) checkpoint, as hf_clap converts it.\n",
        *table(("", ""), rows.items()),
        f"\n```bash\nhf-clap convert {source} {kind} --from {kind}\n```",
    ]
    if numbers:
        cells = (
            (task.title, number.setting, number.metric, f"{number.value:.3f}", number.source)
            for task, number in numbers
        )
        lines += [
            "\n## What others have measured\n",
            "hf_clap has not measured this checkpoint; `hf-clap eval --task all --model MODEL` does.\n",
            *table(("task", "setting", "metric", "value", "source"), cells),
        ]
    return ModelCard("\n".join([*lines, ""]))


def _check(results: Sequence[TaskResult]) -> None:
    for number, result in enumerate(results):
        if result in results[:number]:
            raise ValueError(f"A result of {result.title} ({result.setting}) is given twice; name each file once.")
    models = {result.weights: f"{result.model} {result.weights[:16]}" for result in results}
    if len(models) > 1:
        raise ValueError(f"The results are of several models ({', '.join(models.values())}); write a card for each.")


def _read_card(file: Path) -> ModelCard:
    try:
        return ModelCard.load(file, ignore_metadata_errors=False)
    except (ValueError, TypeError, KeyError, AttributeError, YAMLError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]  # it may be several lines, or sentences
        raise ValueError(f"{file} cannot be read as a model card in UTF-8 ({reason}); correct it.") from error


def _key(result: EvalResult) -> tuple[str, str, str | None]:
    """What a model-index has one number for."""
    return result.dataset_name, result.task_type, result.metric_name


def _has_row(part: str, result: EvalResult) -> bool:
    """Whether the table in what this command has written before holds a result."""
    metric, _, setting = str(result.metric_name).removesuffix(")").partition(" (")  # as `_as_eval_result` has it
    begin, end = table([result.dataset_name, setting], ())[0].removesuffix(" |"), table([metric], ())[0]
    return any(line.startswith((f"{begin} |", f"{begin}, ")) and end in line for line in part.splitlines())


def _notes(results: Sequence[TaskResult]) -> list[str]:
    """What a table cannot say: words, training, clips that are missing, versions."""
    lines = [""]
    for heading, setting_of in (("Prompts", _prompt), ("Training", _training)):
        tasks_of: dict[str, list[str]] = {}
        for result in results:
            if text := setting_of(result):
                tasks_of.setdefault(text, []).append(result.title)
        if tasks_of:
            lines += [f"{heading}:", "", *(f"- {text}: {'; '.join(tasks)}" for text, tasks in tasks_of.items()), ""]
    if failed := {f"{result.title}: {_name_of(clip['file'])}": None for result in results for clip in result.failed}:
        lines += ["Clips that could not be read:", "", *(f"- {entry}" for entry in failed), ""]
    for result in results:
        packages = ", ".join(f"{package} {number}" for package, number in result.versions.items())
        made = f"Weights `{result.weights[:16]}`, seed {result.seed}; {packages}."
        if made not in lines:
            lines.append(made)
    return lines


def _name_of(file: str) -> str:
    """A clip's file; folders of a machine are nobody's business."""
    return os.path.basename(file) if os.path.isabs(file) else file


def _prompt(result: TaskResult) -> str:
    if result.prompt is None:
        return ""
    described = " with descriptions" if "descriptions" in result.prompt else ""
    return ", ".join(f"`{template}`" for template in result.prompt["templates"]) + described


def _training(result: TaskResult) -> str:
    if result.training is None:
        return ""
    return f"{result.setting}, " + ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in result.training.items()
    )


def _as_eval_result(result: TaskResult) -> EvalResult:
    on_hub = result.data["revision"] is not None
    fields: dict[str, Any] = {"dataset_revision": result.data["revision"]} if on_hub else {}
    return EvalResult(
        task_type=TASK_TYPES[result.setting],
        dataset_type=result.data["source"] if on_hub else result.task,
        dataset_name=result.title,
        metric_type=METRIC_TYPES[result.metric],
        metric_name=f"{result.metric} ({result.setting})",
        metric_value=result.value,
        **fields,
    )


def _of_others(task: Task, number: Published) -> EvalResult:
    paper = re.search(r"\d{4}\.\d{5}", number.source)
    return EvalResult(
        task_type=TASK_TYPES[number.setting],
        dataset_type=task.hub.path if task.hub else task.name,
        dataset_name=task.title,
        metric_type=METRIC_TYPES[number.metric],
        metric_name=f"{number.metric} ({number.setting})",
        metric_value=number.value,
        source_name=number.source if paper else None,  # the Hub takes no name without a link
        source_url=f"https://arxiv.org/abs/{paper.group()}" if paper else None,
    )
