"""Scores of clips and what they should have been -> accuracy, mAP, macro F1, recall, with intervals and chance."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

try:
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support
except ImportError as error:
    raise ImportError('The benchmark needs scikit-learn: run `pip install "hf_clap[eval]"`.') from error

RESAMPLES = 1000  # of the bootstrap
RESAMPLES_AT_A_TIME = 50  # so that the weights of 20,000 clips are 8 MB


# A metric over clips that count several times: weights (draws, clips) -> values (draws,). With weights of one they are
# scikit-learn's; that many weights at once is what scikit-learn cannot do.
Weighted = Callable[[np.ndarray], np.ndarray]


class Measured(NamedTuple):
    """What one set of predictions is worth."""

    metrics: dict[str, float]  # every metric by its name, between 0 and 1
    per_class: dict[str, dict[str, float]]  # of the classes that occur


def classification_metrics(
    scores: np.ndarray, targets: np.ndarray, classes: Sequence[str], multi_label: bool
) -> Measured:
    """
    What scikit-learn makes of predictions. Classes without a clip do not count, and are not in the result.

    Args:
        scores: `(clips, classes)`; the higher, the more likely. The best class of each clip is what is predicted.
        targets: `(clips, classes)` booleans.
        classes: names.
        multi_label: whether clips may have several classes: then mAP and macro F1, else accuracy, macro F1 and recall
            (the mean over classes, also called balanced accuracy).

    Returns:
        Measured: the metrics, and for every class its `recall`, `precision`, `f1`, `clips` and, where several classes
        are possible, `average_precision`.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clap.metrics import classification_metrics

    >>> scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    >>> targets = np.eye(2, dtype=bool)[[0, 1, 1, 0]]
    >>> classification_metrics(scores, targets, ["dog", "rain"], multi_label=False).metrics["accuracy"]
    0.75

    ```
    """
    predicted = best_class(scores)
    present = np.flatnonzero(targets.any(axis=0))
    one_more = ((0, 0), (0, 1))  # an empty class: scikit-learn takes a single column for yes and no
    precision, recall, f1, clips = precision_recall_fscore_support(
        np.pad(targets, one_more), np.pad(predicted, one_more), labels=present, average=None, zero_division=0.0
    )
    columns = {"recall": recall, "precision": precision, "f1": f1, "clips": clips}
    metrics = {"macro F1": f1.mean()}
    if multi_label:
        precisions = [average_precision_score(targets[:, index], scores[:, index]) for index in present]
        columns["average_precision"] = np.array(precisions)
        metrics = {"mAP": np.mean(precisions), **metrics}
    else:
        hits = (predicted & targets).any(axis=1)
        metrics = {"accuracy": hits.mean(), **metrics, "recall": recall.mean()}
    names = (classes[index] for index in present.tolist())
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return Measured(
        {name: float(value) for name, value in metrics.items()},
        {name: dict(zip(columns, row, strict=True)) for name, row in zip(names, rows, strict=True)},
    )


def best_class(scores: np.ndarray) -> np.ndarray:
    """`(clips, classes)` booleans: the class with the highest score, the first of those that are equal."""
    return np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]


def chance(metric: str, targets: np.ndarray) -> float:
    """
    What scores that know nothing are expected to get.

    Args:
        metric: `accuracy`, `recall`, `macro F1` or `mAP`.
        targets: `(clips, classes)` booleans.

    Returns:
        float: for `accuracy` and `recall` one in the number of classes; for `mAP` the expected average precision of a
        random order (Bestgen 2015, "Exact expected average precision of the random baseline"); for `macro F1` twice
        precision (a class's share) times recall (one in the number of classes) over their sum.
    """
    clips, classes = targets.shape
    if metric in ("accuracy", "recall"):
        return 1 / classes
    positive = targets.sum(axis=0)
    positive = positive[positive > 0]
    if metric == "macro F1":
        share = positive / clips
        return float(np.mean(2 * share / classes / (share + 1 / classes)))
    harmonic = np.sum(1 / np.arange(1, clips + 1))
    return float(np.mean((harmonic + (positive - 1) / max(clips - 1, 1) * (clips - harmonic)) / clips))


class Reliability(NamedTuple):
    """How far scores can be taken for probabilities, in bins of equal width."""

    error: float  # the expected calibration error: the mean over scores of |score - share that is right| in their bins
    score: np.ndarray  # (bins,) mean in each; NaN in bins without scores
    share: np.ndarray  # (bins,) of what is right
    predictions: np.ndarray  # (bins,) how many they are


def reliability(scores: np.ndarray, right: np.ndarray, bins: int = 10) -> Reliability:
    """
    Compare scores with how often they are right (Guo et al. 2017, section 2).

    Args:
        scores: `(predictions,)`, between 0 and 1.
        right: `(predictions,)` booleans.
        bins: of equal width, from 0 to 1.

    Returns:
        Reliability: the expected calibration error and what a reliability diagram shows.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clap.metrics import reliability

    >>> round(reliability(np.array([0.9, 0.9, 0.2, 0.2]), np.array([True, False, False, False])).error, 3)
    0.3

    ```
    """
    index = np.minimum((scores * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, scores, bins) / count
        share = np.bincount(index, right, bins) / count
    error = float(np.nansum(count * np.abs(mean - share)) / count.sum())
    return Reliability(error, mean, share, count)


def bootstrap_interval(
    measures: Sequence[tuple[int, Weighted]], seed: int, biased: bool = False
) -> tuple[float, float]:
    """
    The 95 % interval of a metric over other draws of as many clips from where these came (percentile bootstrap).

    Args:
        measures: for each fold the number of its clips and the metric; clips are drawn within folds, and the folds'
            values averaged.
        seed: of the draws.
        biased: for a metric that is not a mean over clips: the interval is then moved by the metric's value minus the
            mean of the draws, within 0 and 1. A clip that is drawn twice ranks beside itself, which makes the mAP of
            draws higher than that of clips.

    Returns:
        tuple[float, float]: its ends.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_clap.metrics import bootstrap_interval, mean_of

    >>> hits = np.arange(400) < 380  # 0.95 of 400: the normal approximation says 0.929 to 0.971
    >>> low, high = bootstrap_interval([(400, mean_of(hits))], seed=0)
    >>> round(low, 2), round(high, 2)
    (0.93, 0.97)

    ```
    """
    random = np.random.default_rng(seed)
    values: list[np.ndarray] = []
    for _ in range(RESAMPLES // RESAMPLES_AT_A_TIME):
        drawn = [
            measure(random.multinomial(clips, np.full(clips, 1 / clips), RESAMPLES_AT_A_TIME))
            for clips, measure in measures
        ]
        values.append(np.mean(drawn, axis=0))
    draws = np.concatenate(values)
    low, high = np.quantile(draws, [0.025, 0.975])
    if biased:
        value = np.mean([measure(np.ones((1, clips)))[0] for clips, measure in measures])
        low, high = np.clip(np.array([low, high]) + value - draws.mean(), 0, 1)
    return float(low), float(high)


def mean_of(values: np.ndarray) -> Weighted:
    """The mean of a value `(clips,)` that each clip, or query, has on its own."""
    return lambda weights: weights @ values / weights.sum(axis=1)


def _accuracy(scores: np.ndarray, targets: np.ndarray) -> Weighted:
    return mean_of((best_class(scores) & targets).any(axis=1))


def _recall(scores: np.ndarray, targets: np.ndarray) -> Weighted:
    hits = best_class(scores) & targets

    def measure(weights: np.ndarray) -> np.ndarray:
        clips = weights @ targets  # (draws, classes)
        return _mean_of_present(weights @ hits, clips, clips)

    return measure


def _macro_f1(scores: np.ndarray, targets: np.ndarray) -> Weighted:
    predicted = best_class(scores)

    def measure(weights: np.ndarray) -> np.ndarray:
        clips = weights @ targets  # (draws, classes)
        return _mean_of_present(2 * (weights @ (predicted & targets)), clips + weights @ predicted, clips)

    return measure


def _mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> Weighted:
    def measure(weights: np.ndarray) -> np.ndarray:
        precisions, clips = np.zeros((2, len(weights), scores.shape[1]))
        for index in np.flatnonzero(targets.any(axis=0)):
            order = np.argsort(-scores[:, index], kind="stable")
            ends = np.flatnonzero(np.diff(scores[order, index], append=np.nan))  # of clips with equal scores
            found = np.cumsum(weights[:, order] * targets[order, index], axis=1)[:, ends]  # (draws, thresholds)
            precision = found / np.maximum(np.cumsum(weights[:, order], axis=1)[:, ends], 1)
            clips[:, index] = found[:, -1]
            precisions[:, index] = (np.diff(found, axis=1, prepend=0) * precision).sum(axis=1)
        return _mean_of_present(precisions, clips, clips)

    return measure


def _mean_of_present(numerator: np.ndarray, denominator: np.ndarray, clips: np.ndarray) -> np.ndarray:
    """The mean of quotients `(draws, classes)` over the classes that a draw has clips of."""
    quotients = numerator / np.maximum(denominator, 1)
    return (quotients * (clips > 0)).sum(axis=1) / (clips > 0).sum(axis=1)


WEIGHTED: Mapping[str, Callable[[np.ndarray, np.ndarray], Weighted]] = {
    "accuracy": _accuracy,
    "recall": _recall,
    "macro F1": _macro_f1,
    "mAP": _mean_average_precision,
}
