"""
Measure the bundled checkpoint for its card: what each ingredient of its training is worth, and what scores mean.

    pip install -e ".[dev]"
    python examples/evaluate_tiny.py --start work/start --data-root EVAL [--also "NAME=FOLDER" …]
    python examples/make_model_cards.py

`--start` is the untrained checkpoint that `train_tiny.py` leaves in its working folder, `--data-root` the folder of
the evaluation sets, `--also` another checkpoint that the table shall show. Each ingredient is also taken out of the
finished checkpoint. Writes `model_cards/tiny_training.json` and `model_cards/tiny_reliability.png`.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hf_clap import TINY, HfClapModel, HfClapProcessor
from hf_clap.embedding import Embedder
from hf_clap.evaluation import class_embeds, evaluate
from hf_clap.metrics import reliability
from hf_clap.plot import plot_reliability
from hf_clap.prompts import Prompts
from hf_clap.task_data import find_folders, load_task
from hf_clap.task_embedding import EmbeddedTask, embed_task
from hf_clap.task_result import TaskResult
from hf_clap.tasks import TASKS
from hf_clap.whole_file import whole_file

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
BUNDLED = "all three: the bundled checkpoint"
AUDIOSET_CLASSES = 521  # of YAMNet: the concepts that the start has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--also", action="append", default=[], metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    tasks = {
        task.name: load_task(task, folders)
        for task in TASKS.values()
        if "zero-shot" in task.settings
        and task.metric == "accuracy"
        and (folders := find_folders(task, arguments.data_root))
    }
    models = {
        "untrained": HfClapModel.from_pretrained(arguments.start),
        "center": bundled_without("concepts", "thesaurus"),
        "center, thesaurus": bundled_without("concepts"),
        "center, new concepts": bundled_without("thesaurus"),
        "thesaurus, new concepts": bundled_without("center"),
        BUNDLED: bundled_without(),
    }
    for also in arguments.also:
        name, _, folder = also.partition("=")
        models[name] = HfClapModel.from_pretrained(folder)

    processor = HfClapProcessor.from_pretrained(TINY)
    table, curves, errors, failures = {}, {}, {}, []
    for name, model in models.items():
        embedder = Embedder(model, processor)
        embedded = {task: embed_task(TASKS[task], data, embedder) for task, data in tasks.items()}
        results = {task: evaluate(clips, embedder, "zero-shot") for task, clips in embedded.items()}
        table[name] = {task: result.value for task, result in results.items()}
        print(name, {task: round(value, 3) for task, value in table[name].items()})
        if title := {"untrained": "untrained", BUNDLED: "trained"}.get(name):
            each = {task: calibration(clips, embedder) for task, clips in embedded.items()}
            kinds = zip(("against each other", "each on its own"), zip(*each.values(), strict=True), strict=True)
            for kind, pairs in kinds:
                curves[f"{title}, labels {kind}"] = reliability(*map(np.concatenate, zip(*pairs, strict=True)))
            failures = [failure for result in results.values() for failure in worst_classes(result)]
            errors[title] = {task: [reliability(*pair).error for pair in pairs] for task, pairs in each.items()}
    plot_reliability(CARDS / "tiny_reliability.png", curves)
    measured = {
        "accuracy": table,
        "calibration_error": {title: curve.error for title, curve in curves.items()},
        "calibration_error_by_task": errors,
        "failures": failures,
    }
    with whole_file(CARDS / "tiny_training.json") as unfinished:
        unfinished.write_text(json.dumps(measured, indent=2) + "\n")


@torch.no_grad()
def bundled_without(*ingredients: str) -> HfClapModel:
    """The bundled checkpoint without some of what training has added."""
    model = HfClapModel.from_pretrained(TINY)
    audio, text = model.audio_projection, model.text_projection
    if "center" in ingredients:
        audio.center.zero_()
    if "thesaurus" in ingredients:  # but the names of new concepts
        is_new = text.values[:, AUDIOSET_CLASSES:].sum(dim=1) > 0
        text.values[is_new, :AUDIOSET_CLASSES] = 0
        kept = is_new | (torch.arange(len(is_new)) < AUDIOSET_CLASSES)
        text.values, text.prototypes = nn.Parameter(text.values[kept]), nn.Parameter(text.prototypes[kept])
    if "concepts" in ingredients:
        audio.log_weight[AUDIOSET_CLASSES:] = -torch.inf
        audio.center[AUDIOSET_CLASSES:] = 0
        text.values[:, AUDIOSET_CLASSES:] = 0
        kept = text.values.any(dim=1)
        text.values, text.prototypes = nn.Parameter(text.values[kept]), nn.Parameter(text.prototypes[kept])
    return model


def worst_classes(result: TaskResult) -> list[dict]:
    """Classes of which more clips are taken for one other class than are recognised."""
    failures = []
    for name, measured in result.per_class.items():
        predicted = Counter(item["predicted"] for item in result.items if item["label"] == name)
        (other, count) = predicted.most_common(1)[0]
        if other != name:
            row = {"task": result.title, "class": name, "taken_for": other, "clips": count}
            failures.append(row | {"recognised": predicted[name], "of": measured["clips"]})
    return failures


def calibration(
    clips: EmbeddedTask, embedder: Embedder
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Scores and whether they are right: of the best label of each clip (softmax), and of all of them (sigmoid)."""
    embeds = class_embeds(clips.task.classes, Prompts(clips.task.templates), embedder)
    with torch.no_grad():
        logits = embedder.model.similarity(torch.from_numpy(clips.embeds), torch.from_numpy(embeds))
    labels = np.array([clip.labels[0] for clip in clips.clips])
    best, predicted = (values.numpy() for values in logits.softmax(dim=-1).max(dim=-1))
    return (best, predicted == labels), (
        logits.sigmoid().numpy().ravel(),
        np.eye(len(clips.task.classes), dtype=bool)[labels].ravel(),
    )


if __name__ == "__main__":
    main()
