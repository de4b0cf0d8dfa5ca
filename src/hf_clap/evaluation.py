"""Tasks and a model -> results: zero-shot, probe, fine-tuned, retrieval, as Elizalde et al. 2022 define them."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .array_cache import ArrayCache
from .embedding import Embedder, check_finite
from .metrics import WEIGHTED, bootstrap_interval, chance, classification_metrics, mean_of
from .prompts import Prompts
from .retrieval import mean_metrics, rankings
from .supervised import BATCH_SIZE, EPOCHS, FINETUNE_LEARNING_RATE, HIDDEN_UNITS, PROBE_LEARNING_RATE, finetune, probe
from .task_embedding import EmbeddedTask, sha256_of, versions
from .task_result import TaskResult
from .tasks import TRAIN_AND_TEST

DEALT_FOLDS = 5  # where the data set prescribes none


def evaluate(
    embedded: EmbeddedTask,
    embedder: Embedder,
    setting: str | None = None,
    *,
    prompts: Prompts | None = None,
    layers: int = 1,
    epochs: int = EPOCHS,
    seed: int = 0,
    cache: ArrayCache | None = None,
) -> TaskResult:
    """
    Do a task in a setting.

    Args:
        embedded: the task's clips.
        embedder: the model.
        setting: `zero-shot` (the class whose words are nearest), `probe` (fully connected layers on the frozen tower),
            `finetune` (the tower too) or `retrieval` (captions and clips); the task's usual one when absent.
        prompts: for `zero-shot`; the task's own templates when absent.
        layers: of a probe, 1 or 3.
        epochs: of training.
        seed: of training, of dealing clips out over folds, and of the intervals.
        cache: where a probe's or tower's scores on a fold are kept, so that what was trained is not trained again.

    Returns:
        TaskResult: the value with its interval, and all that it came from. Trained settings give the mean over folds.

    Raises:
        ValueError: for a setting that the task cannot be done in, a fold without clips, or a model that gives NaN or
            infinite embeddings.

    Example:

    ```python
    >>> from functools import partial
    >>> import hf_clap
    >>> from hf_clap.evaluation import evaluate
    >>> from hf_clap.task_data import Clip, TaskData
    >>> from hf_clap.task_embedding import embed_task
    >>> from hf_clap.tasks import Task

    >>> names = ("siren", "rain")
    >>> task = Task("two", "Two sounds", "accuracy", classes=names, folds=())
    >>> clips = [Clip(name, partial(str, f"examples/audio/{name}.flac"), (label,)) for label, name in enumerate(names)]
    >>> embedder = hf_clap.pipeline(device="cpu").embedder
    >>> result = evaluate(embed_task(task, TaskData(tuple(clips), "folder"), embedder), embedder)
    >>> result.value, result.n
    (1.0, 2)

    ```
    """
    task = embedded.task
    setting = setting or task.settings[0]
    if setting not in task.settings:
        raise ValueError(
            f"{task.title} cannot be done in the setting {setting!r}; choose {' or '.join(task.settings)}."
        )
    training = None
    if setting == "retrieval":
        prompts = None
        measured = _retrieve(embedded, embedder, seed)
    elif setting == "zero-shot":
        prompts = prompts or Prompts(task.templates)
        tested = _tested(embedded)
        scores = embedded.embeds[tested] @ class_embeds(task.classes, prompts, embedder).T
        measured = _classify(embedded, scores, tested, {}, seed)
    else:
        prompts = None
        folds, how = _folds(embedded, seed)
        training = {"folds": how, **_recipe(setting, layers, epochs)}
        tested = np.sort(np.concatenate([test for _, test in folds.values()]))
        scores = np.zeros((len(embedded.clips), len(task.classes)))
        for name in tqdm(folds, desc=f"{task.name} {setting}", unit="fold", disable=None):
            scores[folds[name][1]] = _learn(embedded, embedder, setting, *folds[name], training, seed, cache)
        measured = _classify(embedded, scores[tested], tested, {name: test for name, (_, test) in folds.items()}, seed)
    return TaskResult(
        task=task.name,
        title=task.title,
        setting=setting,
        metric=task.metric,
        failed=embedded.failed,
        model=embedder.name,
        model_revision=embedder.revision,
        weights=embedder.weights_sha256,
        prompt=prompts.as_json() if prompts else None,
        seed=seed,
        training=training,
        data=embedded.provenance,
        versions=versions(),
        **measured,
    )


def class_embeds(classes: Sequence[str], prompts: Prompts, embedder: Embedder) -> np.ndarray:
    """`(classes, dim)` float32, L2-normalised: of each class the mean over its texts."""
    texts = [prompts.texts_of(name) for name in classes]
    embeds = _text_embeds([text for of_class in texts for text in of_class], embedder)
    ends = np.cumsum([len(of_class) for of_class in texts])
    means = np.stack([part.mean(axis=0) for part in np.split(embeds, ends[:-1])])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def _text_embeds(texts: Sequence[str], embedder: Embedder) -> np.ndarray:
    embeds = embedder.texts(texts)
    check_finite(embeds, texts)
    return embeds


def _targets(embedded: EmbeddedTask) -> np.ndarray:
    """`(clips, classes)` booleans."""
    targets = np.zeros((len(embedded.clips), len(embedded.task.classes)), dtype=bool)
    for row, clip in enumerate(embedded.clips):
        targets[row, list(clip.labels)] = True
    return targets


def _tested(embedded: EmbeddedTask) -> np.ndarray:
    """Numbers of the clips that zero-shot is tested on: those of the fold `test`, or all where there is none."""
    if embedded.task.folds != TRAIN_AND_TEST or all(clip.fold is None for clip in embedded.clips):
        return np.arange(len(embedded.clips))
    if any(clip.fold is None for clip in embedded.clips):
        raise ValueError(f"{embedded.task.title} needs a fold for each clip or for none; complete the column fold.")
    tested = np.flatnonzero([clip.fold == "test" for clip in embedded.clips])
    if not len(tested):
        raise ValueError(f"The fold test of {embedded.task.title} has no clips that can be read; add some.")
    return tested


def _folds(embedded: EmbeddedTask, seed: int) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], str]:
    """Of each fold the numbers of the clips to learn from and of those to test on, and who made the folds."""
    task = embedded.task
    given = np.array([clip.fold or "" for clip in embedded.clips])
    lacking = given == ""
    if lacking.all() and not task.folds:
        return _deal(embedded, seed), f"{DEALT_FOLDS} at most, dealt out by class and cluster"
    if lacking.any():
        raise ValueError(
            f"{task.title} needs a fold for each clip ({', '.join(task.folds) or 'of your own'}); add the column fold."
        )
    names = list(task.folds) or sorted(set(given.tolist()))
    tests = ["test"] if {*names} & {*TRAIN_AND_TEST} else names  # beside these there may be one to validate on
    for name in dict.fromkeys([*names, *tests]):
        if name not in given:
            raise ValueError(f"Fold {name} of {task.title} has no clips that can be read; add some to it.")
        if (given == name).all():
            raise ValueError(f"All clips of {task.title} are in fold {name}; training needs others too.")
    folds = {name: (np.flatnonzero(given != name), np.flatnonzero(given == name)) for name in tests}
    return folds, "as prescribed" if task.folds else "of the data"


def _deal(embedded: EmbeddedTask, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Folds with the classes in like shares; clips of one cluster, or of one sound, are in one fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    name_of: dict[str, str] = {}  # the first one of a sound that has several
    clusters = [
        clip.cluster or name_of.setdefault(content, clip.name)
        for clip, content in zip(embedded.clips, embedded.contents, strict=True)
    ]
    count = min(DEALT_FOLDS, len(set(clusters)))
    if count < 2:
        raise ValueError(f"The clips of {embedded.task.title} are all of one cluster; training needs at least two.")
    labels = [clip.labels[0] for clip in embedded.clips]
    count = min(count, max(Counter(labels).values()))
    if count < 2:
        raise ValueError(f"Each class of {embedded.task.title} has one clip; training needs at least two of a class.")
    dealer = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # then a fold or two lack it
        dealt = list(dealer.split(np.zeros(len(labels)), labels, clusters))
    # of few clusters that are unlike each other, it may leave a fold without any
    return {str(number): fold for number, fold in enumerate((fold for fold in dealt if len(fold[1])), start=1)}


def _recipe(setting: str, layers: int, epochs: int) -> dict[str, Any]:
    common = {"epochs": epochs, "batch_size": BATCH_SIZE, "optimizer": "Adam"}
    if setting == "finetune":
        return {"layers": 1, **common, "learning_rate": FINETUNE_LEARNING_RATE}
    hidden = {"hidden_units": HIDDEN_UNITS} if layers > 1 else {}
    return {"layers": layers, **hidden, **common, "learning_rate": PROBE_LEARNING_RATE}


def _learn(
    embedded: EmbeddedTask,
    embedder: Embedder,
    setting: str,
    train: np.ndarray,
    test: np.ndarray,
    training: Mapping[str, Any],
    seed: int,
    cache: ArrayCache | None,
) -> np.ndarray:
    """Scores `(test clips, classes)` of what was trained on other clips, from the cache if they are there."""
    targets = _targets(embedded)
    determined_by = {
        "model": embedder.fingerprint,
        "learned": [(embedded.contents[row], np.flatnonzero(targets[row]).tolist()) for row in train],
        "tested": [embedded.contents[row] for row in test],
        "classes": len(embedded.task.classes),
        "setting": setting,
        "training": training,
        "seed": seed,
        "versions": versions(),
    }
    key = f"scores {sha256_of(determined_by)}"
    if cache and (kept := cache.get([key])):
        return kept[key]["scores"]
    if setting == "probe":
        scores = probe(
            embedded.pooled[train],
            targets[train],
            embedded.pooled[test],
            layers=training["layers"],
            epochs=training["epochs"],
            seed=seed,
        )
    else:
        scores = finetune(
            embedder.model,
            embedder.processor.feature_extractor,
            [embedded.clips[row] for row in train],
            targets[train],
            [embedded.clips[row] for row in test],
            epochs=training["epochs"],
            seed=seed,
        )
    if cache:
        cache.put({key: {"scores": scores}})
    return scores


def _classify(
    embedded: EmbeddedTask, scores: np.ndarray, tested: np.ndarray, folds: Mapping[str, np.ndarray], seed: int
) -> dict[str, Any]:
    """What scores `(tested clips, classes)` are worth; metrics are means over folds, if there are any."""
    task, targets = embedded.task, _targets(embedded)[tested]
    overall = classification_metrics(scores, targets, task.classes, task.multi_label)
    rows = [np.searchsorted(tested, fold) for fold in folds.values()] or [np.arange(len(tested))]
    of_folds = [classification_metrics(scores[fold], targets[fold], task.classes, task.multi_label) for fold in rows]
    metrics = {name: float(np.mean([fold.metrics[name] for fold in of_folds])) for name in overall.metrics}
    measures = [(len(fold), WEIGHTED[task.metric](scores[fold], targets[fold])) for fold in rows]
    items = [
        {
            "file": embedded.clips[number].name,
            "label": " | ".join(task.classes[label] for label in embedded.clips[number].labels),
            "predicted": task.classes[best],
        }
        for number, best in zip(tested, scores.argmax(axis=1), strict=True)
    ]
    return {
        "value": metrics[task.metric],
        "ci95": bootstrap_interval(measures, seed, biased=task.metric != "accuracy"),
        "chance": fmean(chance(task.metric, targets[fold]) for fold in rows),
        "n": len(tested),
        "metrics": metrics,
        "per_class": overall.per_class,
        "folds": {name: fold.metrics[task.metric] for name, fold in zip(folds, of_folds, strict=False)},
        "items": items,
    }


def _retrieve(embedded: EmbeddedTask, embedder: Embedder, seed: int) -> dict[str, Any]:
    """How well captions and clips find each other. A caption that several clips have is one."""
    tested = _tested(embedded)
    pairs = [(row, caption) for row in tested for caption in embedded.clips[row].captions]
    clips = torch.tensor([row for row, _ in pairs])
    number = {caption: index for index, caption in enumerate(dict.fromkeys(caption for _, caption in pairs))}
    captions = torch.tensor([number[caption] for _, caption in pairs])
    texts = torch.from_numpy(_text_embeds(list(number), embedder))[captions]
    sounds = torch.from_numpy(embedded.embeds)[clips]
    both_ways = rankings(sounds, texts, captions, clips)
    metrics, found = mean_metrics(both_ways), both_ways["text_to_audio"]
    hits = found.metrics()["r@1"].numpy()
    # clips are drawn, each with its captions: what one of them finds, the others find more often than not
    drawn, clip_of = np.unique(clips[found.first].numpy(), return_inverse=True)
    mean = mean_of(hits)
    return {
        "value": metrics["text_to_audio_r@1"],
        "ci95": bootstrap_interval([(len(drawn), lambda weights: mean(weights[:, clip_of]))], seed),
        "chance": float(found.relevant.double().mean() / len(tested)),
        "n": len(hits),
        "metrics": metrics,
        "per_class": {},
        "folds": {},
        "items": [
            {"query": pairs[row][1], "hit": bool(hit)} for row, hit in zip(found.first.tolist(), hits, strict=True)
        ],
    }
