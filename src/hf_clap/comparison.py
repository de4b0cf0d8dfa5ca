"""Two results on the same clips: how far apart they are, and whether that is chance."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .task_result import TaskResult

ALPHA = 0.05  # below which a difference is called significant
# Metrics that are means of values of classes, and what these are called in a result.
OF_CLASSES = {"mAP": "average_precision", "macro F1": "f1", "recall": "recall"}


class Comparison(NamedTuple):
    """
    Two measurements side by side.

    Args:
        first, second: the results.
        difference: of their values, second minus first.
        n: clips, queries or classes that the test is over.
        test: its name.
        p_value: of a difference this large if there were none.
    """

    first: TaskResult
    second: TaskResult
    difference: float
    n: int
    test: str
    p_value: float


def compare(first: Sequence[TaskResult], second: Sequence[TaskResult]) -> list[Comparison]:
    """
    Pair the results of two runs and test each pair: outcomes of clips and queries with McNemar's exact test, values of
    classes (mAP, macro F1, recall) with Wilcoxon's signed-rank test, both two-sided.

    Args:
        first, second: of two models, or of two ways to do a task. A single result each is one pair whatever its
            setting and prompt; else those with the same task, setting and, where that is not enough, prompt belong
            together, and those without a partner are left out.

    Returns:
        list[Comparison]: a pair each.

    Raises:
        ValueError: if no pair belongs together, or two were measured on other data or by another metric.
    """
    pairs = [(first[0], second[0])] if len(first) == len(second) == 1 else _pairs(first, second)
    if not pairs:
        raise ValueError("The files have no task in the same setting in common; compare results of the same tasks.")
    return [_compare(*pair) for pair in pairs]


def _pairs(first: Sequence[TaskResult], second: Sequence[TaskResult]) -> list[tuple[TaskResult, TaskResult]]:
    def alike(one: TaskResult, results: Sequence[TaskResult]) -> list[TaskResult]:
        return [other for other in results if (other.task, other.setting) == (one.task, one.setting)]

    pairs = []
    for one in first:
        partners = alike(one, second)
        if len(partners) > 1 or len(alike(one, first)) > 1:
            partners = [other for other in partners if other.prompt == one.prompt]
        if len(partners) == 1:
            pairs.append((one, partners[0]))
    return pairs


def _compare(first: TaskResult, second: TaskResult) -> Comparison:
    try:
        from scipy.stats import binomtest, wilcoxon
    except ImportError as error:
        raise ImportError('Comparisons need scipy: run `pip install "hf_clap[eval]"`.') from error
    if (first.task, first.metric) != (second.task, second.metric):
        raise ValueError(
            f"{first.metric} of {first.task} and {second.metric} of {second.task} cannot be compared; choose results "
            "of one task."
        )
    if first.data["sha256"] != second.data["sha256"]:
        raise ValueError(
            f"The two results on {first.task} are of different data (SHA-256 {first.data['sha256'][:8]} and "
            f"{second.data['sha256'][:8]}); run both on the same folder or revision."
        )
    of_first, of_second = _units(first), _units(second)
    common = [name for name in of_first if name in of_second]
    if not common:
        raise ValueError(f"The two results on {first.task} have no clip in common; run both on the same clips.")
    differences = [of_second[name] - of_first[name] for name in common]
    changed = [difference for difference in differences if difference]
    if not changed:
        test, p_value = "none needed", 1.0
    elif first.metric not in OF_CLASSES:  # outcomes
        better = sum(difference > 0 for difference in changed)
        test, p_value = "McNemar, exact", binomtest(better, len(changed)).pvalue
    else:
        test, p_value = "Wilcoxon signed-rank", wilcoxon(differences).pvalue
    return Comparison(first, second, second.value - first.value, len(common), test, float(p_value))


def _units(result: TaskResult) -> Mapping[str, float]:
    """What the metric is the mean of: outcomes of clips or queries, or values of classes."""
    if result.metric == "accuracy":
        return {item["file"]: float(item["label"] == item["predicted"]) for item in result.items}
    if result.metric.startswith("text_to_audio"):
        return {item["query"]: float(item["hit"]) for item in result.items}
    name = OF_CLASSES[result.metric]
    return {label: row[name] for label, row in result.per_class.items()}
