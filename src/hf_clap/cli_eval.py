"""`hf-clap eval` and `hf-clap card`: the benchmark from the shell."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from tqdm import tqdm

from .array_cache import DEFAULT_FOLDER, ArrayCache
from .benchmark_card import benchmark_card
from .cli_options import add_batch_size, add_model, at_least_one, file_to_write
from .comparison import ALPHA, OF_CLASSES, compare
from .embedding import Embedder
from .loading import load_model, load_processor
from .model_card import write_card
from .pipeline import pipeline
from .prompts import SWEEP, Prompts, read_descriptions
from .supervised import EPOCHS
from .task_data import TaskData, find_folders, load_task
from .task_result import TaskResult, read_results, results_as_json, write_results
from .tasks import SETTINGS, TASKS, Task, find_task

HEADER = f"{'task':18} {'setting':10} {'metric':17} {'value':>6}  {'95 %':15} {'chance':>6} {'n':>5}  prompt"

# options that a comparison has a use for
OF_A_COMPARISON = ("compare", "format", "run", "task")


def add_eval(commands: Any) -> None:
    """Add `eval` to the parser's commands."""
    parser = commands.add_parser(
        "eval",
        help="run a model on the benchmark",
        description="Run a model on the benchmark, or compare two runs. Embeddings are kept, so that a second run, or "
        "one after a break, goes on where the first one was.",
    )
    parser.set_defaults(run=partial(run_eval, parser=parser))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", action="append", metavar="NAME", help="a task (may be given several times), or all")
    what.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"), help="two results, with a paired test")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data-dir", type=Path, help="local copy of the task: audio files and a metadata.csv")
    data.add_argument("--data-root", type=Path, help="folder of such folders, named as the tasks")
    add_model(parser)
    parser.add_argument(
        "--setting",
        action="append",
        choices=SETTINGS,
        help="may be given several times (default: zero-shot, or retrieval where there are captions)",
    )
    parser.add_argument(
        "--template",
        action="append",
        help="sentence with {} for the class, several for an ensemble (default: the task's)",
    )
    parser.add_argument("--descriptions", type=Path, metavar="JSON", help='{"class": ["other words for it", …], …}')
    parser.add_argument(
        "--prompt-sweep", action="store_true", help="zero-shot with each --template (default: seven) and all of them"
    )
    parser.add_argument("--layers", type=int, choices=(1, 3), default=1, help="of a probe (default: 1)")
    parser.add_argument(
        "--epochs", type=at_least_one, default=EPOCHS, help=f"of training (default: {EPOCHS}, as the paper)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of training, dealt folds and intervals (default: 0)")
    parser.add_argument("--output", type=file_to_write, metavar="JSON", help="file for the results")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="folder for pictures of confusions and classes")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_FOLDER, help=f"(default: {DEFAULT_FOLDER})")
    add_batch_size(parser)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of what is printed")


def add_card(commands: Any) -> None:
    """Add `card` to the parser's commands."""
    parser = commands.add_parser(
        "card",
        help="write a model card with results",
        description="Write results into the model card of a checkpoint: a table beside published numbers, and the "
        "metadata that the Hub reads. What else the card says stays.",
    )
    parser.set_defaults(run=run_card)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="folder of the checkpoint")
    parser.add_argument("--results", nargs="+", required=True, metavar="JSON", help="what `hf-clap eval` wrote")


def run_card(options: argparse.Namespace) -> int:
    """Write a card; returns the exit code."""
    results = read_results(options.results)
    card = benchmark_card(options.model, results)
    _check_origin(results[0], options.model)  # they are of one model
    print(write_card(options.model, card))
    return 0


def _check_origin(result: TaskResult, folder: Path) -> None:
    """A ValueError where a result is not of the folder's weights and settings, in whatever precision."""
    source = str(folder)
    models = (load_model(source, dtype=dtype) for dtype in ("auto", "float32", "bfloat16", "float16"))
    processor = load_processor(source)
    if all(Embedder(model, processor).weights_sha256 != result.weights for model in models):
        raise ValueError(
            f"The results are of {result.model} with the weights {result.weights[:16]}, and {folder} has others; run "
            "`hf-clap eval` with it, and name what that writes."
        )


def run_eval(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Measure or compare; returns the exit code: 1 if a clip could not be read or a task not be done."""
    if options.compare:
        return _compare(options, parser)
    _check(options)
    if options.plots:
        from .plot import plot_classes  # noqa: F401, matplotlib is an extra: say so before the work, not after it

        _make_folder(options.plots)
    several = _several(options)
    tasks = list(_with_settings(options))
    if not tasks:
        raise ValueError(f"No task can be done as {' or '.join(options.setting)}; choose another --setting.")
    failed = options.task != ["all"] and len(tasks) < len(set(options.task))
    data = {task.name: load_task(task, folders) for task, folders, _ in tasks if folders}  # errors precede the work
    embedder = pipeline(
        options.model, device=options.device, dtype=options.dtype, batch_size=options.batch_size
    ).embedder
    cache = ArrayCache(options.cache_dir / f"{embedder.fingerprint[:16]}.sqlite")
    results: list[TaskResult] = []
    for task, _, settings in tasks:
        try:
            for result in _results(task, data.get(task.name), embedder, cache, settings, options):
                results.append(result)
                if options.format == "table":  # line by line, as they come
                    tqdm.write("\n".join([HEADER] * (len(results) == 1) + [_row(result)]))
        except (ValueError, OSError) as error:
            if not several:
                raise
            failed = True
            tqdm.write(f"hf-clap: {task.name}: {error}", file=sys.stderr)
    if not results:
        raise ValueError("No task could be done; see above.")
    for task_name, clips in {result.task: result.failed for result in results}.items():
        for clip in clips:
            failed = True
            tqdm.write(f"hf-clap: {task_name}: {clip['file']} is left out: {clip['error']}", file=sys.stderr)
    if options.output:
        write_results(results, options.output)
    if options.format == "json":
        print(results_as_json(results))
    if options.plots:
        for number, result in enumerate(results):
            _plot(options.plots, f"-{number}" if options.prompt_sweep else "", result)
    return 1 if failed else 0


def _several(options: argparse.Namespace) -> bool:
    return len(options.task) > 1 or options.task == ["all"]


def _check(options: argparse.Namespace) -> None:
    """What can be wrong about the options themselves."""
    if options.plots and options.plots.exists() and not options.plots.is_dir():
        raise ValueError(f"{options.plots} is a file; name a folder for --plots.")
    if "all" in options.task and len(options.task) > 1:
        raise ValueError("--task all is all of them; leave the others out.")
    if options.data_dir and _several(options):
        raise ValueError("--data-dir is the folder of one task; use --data-root for several.")
    if options.descriptions and _several(options):
        raise ValueError("--descriptions is for the classes of one task; name it with --task.")
    if options.prompt_sweep and options.setting not in (None, ["zero-shot"]):
        raise ValueError("--prompt-sweep is zero-shot; leave --setting out.")
    settings = options.setting or []
    if options.layers != 1 and "probe" not in settings:
        raise ValueError("--layers is for --setting probe; leave it out.")
    if options.epochs != EPOCHS and not {"probe", "finetune"} & set(settings):
        raise ValueError("--epochs is for --setting probe and finetune; leave it out.")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed {options.seed} is not possible; choose one from 0 to {2**32 - 1}.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):  # a folder that is there may be somebody else's
            pass
    except OSError as error:
        raise OSError(f"Nothing can be written to {folder} ({error.strerror}); choose another for --plots.") from error


def _with_settings(options: argparse.Namespace) -> Iterator[tuple[Task, Sequence[Path], Sequence[str]]]:
    """Tasks with their folders and the settings to do them in: of several tasks, each in those that it can."""
    chosen = []
    for task, folders in _find_tasks(options):
        usual = ["zero-shot"] if options.prompt_sweep else [task.settings[0]]
        wanted = list(dict.fromkeys(options.setting or usual))
        chosen.append((task, folders, wanted, [setting for setting in wanted if setting in task.settings]))
    if not any("zero-shot" in settings for *_, settings in chosen):
        for name in ("template", "descriptions", "prompt_sweep"):
            if getattr(options, name):
                raise ValueError(f"--{name.replace('_', '-')} is for zero-shot, with classes; leave it out.")
    for task, folders, wanted, settings in chosen:
        unfit = " and ".join(setting for setting in wanted if setting not in settings)
        if not unfit or (settings and _several(options)):
            yield task, folders, settings
        elif not _several(options):
            usable = " or ".join(task.settings)
            raise ValueError(f"{task.title} cannot be done in the setting {unfit}; choose {usable}.")
        elif options.task != ["all"]:
            print(f"hf-clap: {task.name} is left out: it cannot be done as {unfit}", file=sys.stderr)


def _find_tasks(options: argparse.Namespace) -> Iterator[tuple[Task, Sequence[Path]]]:
    """Tasks with their local folders, or none where the data come from the Hub."""
    everything = options.task == ["all"]
    tasks = TASKS.values() if everything else [find_task(name) for name in dict.fromkeys(options.task)]
    if options.data_dir:
        yield from ((task, [options.data_dir]) for task in tasks)
        return
    if options.data_root and not options.data_root.is_dir():
        raise ValueError(f"{options.data_root} is not a folder; name the one that holds the tasks' folders.")
    found = False
    for task in tasks:
        folders = find_folders(task, options.data_root) if options.data_root else []
        if everything and not (folders if options.data_root else task.hub):
            continue
        if options.data_root and not folders:
            names = " and ".join(task.folders or (task.name,))
            raise ValueError(f"{options.data_root} has no folder {names}; add it, or leave {task.name} out.")
        found = True
        yield task, folders
    if not found:
        raise ValueError(f"{options.data_root} has no folder with the name of a task: {', '.join(TASKS)}.")


def _results(
    task: Task,
    data: TaskData | None,
    embedder: Embedder,
    cache: ArrayCache,
    settings: Sequence[str],
    options: argparse.Namespace,
) -> Iterator[TaskResult]:
    from .evaluation import evaluate  # scikit-learn is an extra
    from .task_embedding import embed_task

    training = {"layers": options.layers, "epochs": options.epochs, "seed": options.seed, "cache": cache}
    all_prompts = list(_prompts(task, options)) if "zero-shot" in settings else []  # errors come before the work
    embedded = embed_task(task, data or load_task(task), embedder, cache)
    for setting in settings:
        for prompts in all_prompts if setting == "zero-shot" else [None]:
            yield evaluate(embedded, embedder, setting, prompts=prompts, **training)


def _prompts(task: Task, options: argparse.Namespace) -> Iterator[Prompts]:
    """The task's own, those of the options, or those of a sweep one by one and all together."""
    descriptions = read_descriptions(options.descriptions, task.classes) if options.descriptions else {}
    if options.prompt_sweep:
        templates = tuple(dict.fromkeys(options.template or (*SWEEP, *task.templates)))
        if descriptions:
            yield from (Prompts((template,)) for template in templates)
        yield from (Prompts((template,), descriptions) for template in templates)
        if len(templates) > 1:
            yield Prompts(templates, descriptions)
    else:
        yield Prompts(tuple(options.template or task.templates), descriptions)


def _row(result: TaskResult) -> str:
    low, high = result.ci95
    return (
        f"{result.task:<18} {result.setting:<10} {result.metric:<17} {result.value:6.4f}  {low:.4f} - {high:.4f} "
        f"{result.chance:6.3f} {result.n:5}  {prompt_in_words(result)}".rstrip()
    )


def _plot(folder: Path, number: str, result: TaskResult) -> None:
    """The classes of a result as bars and, where each clip has one, what they were taken for."""
    from .plot import plot_classes, plot_confusion

    if not result.per_class:
        return
    name = f"{result.task}-{result.setting}{number}"
    metric = OF_CLASSES.get(result.metric, "f1")
    values = {label: row[metric] for label, row in result.per_class.items()}
    title = f"{result.title}, {result.setting}: {result.metric} {result.value:.3f}"
    plot_classes(folder / f"{name}-classes.png", title, values, metric.replace("_", " "))
    if result.metric == "accuracy":
        true, predicted = ([item[key] for item in result.items] for key in ("label", "predicted"))
        classes = sorted({*true, *predicted})
        counts = np.zeros((len(classes), len(classes)), dtype=int)
        np.add.at(counts, tuple(np.searchsorted(classes, labels) for labels in (true, predicted)), 1)
        plot_confusion(folder / f"{name}-confusion.png", title, classes, counts)


def prompt_in_words(result: TaskResult) -> str:
    """Templates, and whether descriptions stand in them."""
    if result.prompt is None:
        return ""
    described = " (descriptions)" if "descriptions" in result.prompt else ""
    return " + ".join(result.prompt["templates"]) + described


def _compare(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    changed = [name for name, value in vars(options).items() if value != parser.get_default(name)]
    if given := [name for name in changed if name not in OF_A_COMPARISON]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"--compare reads two results and prints, with --format; leave out {names}.")
    first, second = (read_results([file]) for file in options.compare)
    comparisons = compare(first, second)
    if options.format == "json":
        keep = ("model", "setting", "prompt", "value", "ci95")
        documents = []
        for comparison in comparisons:
            sides = {
                side: {name: getattr(result, name) for name in keep}
                for side, result in (("first", comparison.first), ("second", comparison.second))
            }
            rest = {name: getattr(comparison, name) for name in ("difference", "n", "test", "p_value")}
            documents.append({"task": comparison.first.task, "metric": comparison.first.metric, **sides, **rest})
        print(json.dumps(documents, indent=1))
        return 0
    print(f"first: {options.compare[0]}, second: {options.compare[1]}")
    print(f"{'task':<18} {'metric':<17} {'first':>7} {'second':>7} {'change':>8} {'n':>5} {'p':>8}  test")
    for comparison in comparisons:
        verdict = "significant" if comparison.p_value < ALPHA else "may be chance"
        print(
            f"{comparison.first.task:<18} {comparison.first.metric:<17} {comparison.first.value:7.4f} "
            f"{comparison.second.value:7.4f} {comparison.difference:+8.4f} {comparison.n:5} {comparison.p_value:8.2g}"
            f"  {comparison.test}: {verdict}"
        )
    return 0
