"""Metrics equal scikit-learn's and those by hand; chance equals simulation; intervals the normal approximation."""

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_score, recall_score

from hf_clap import metrics
from hf_clap.metrics import (
    WEIGHTED,
    best_class,
    bootstrap_interval,
    chance,
    classification_metrics,
    mean_of,
    reliability,
)

CLASSES = ["dog", "rain", "wind", "siren", "bell", "never"]


def predictions(multi_label, clips=60, seed=0):
    """Scores of one decimal, so that many are equal, and targets that never hold the last class."""
    random = np.random.default_rng(seed)
    targets = np.eye(6, dtype=bool)[np.arange(clips) % 5]
    if multi_label:
        targets[:, :5] |= random.random((clips, 5)) < 0.3
    scores = (random.normal(size=(clips, 6)) + targets).round(1)
    return scores, targets


def test_single_label_is_that_of_scikit_learn():
    scores, targets = predictions(multi_label=False)
    measured = classification_metrics(scores, targets, CLASSES, multi_label=False)
    true, predicted = targets.argmax(axis=1), scores.argmax(axis=1)
    assert 5 in predicted  # a class that does not occur takes clips from the others, and has no F1 of its own
    present = {"labels": range(5), "zero_division": 0.0}
    assert measured.metrics == pytest.approx(
        {
            "accuracy": accuracy_score(true, predicted),
            "macro F1": f1_score(true, predicted, average="macro", **present),
            "recall": recall_score(true, predicted, average="macro", **present),
        },
        abs=1e-12,
    )
    f1 = f1_score(true, predicted, average=None, **present)
    recall = recall_score(true, predicted, average=None, **present)
    precision = precision_score(true, predicted, average=None, **present)
    for index, (name, row) in enumerate(measured.per_class.items()):
        expected = {"recall": recall[index], "precision": precision[index], "f1": f1[index], "clips": 12}
        assert name == CLASSES[index]
        assert row == pytest.approx(expected, abs=1e-12)
    assert len(measured.per_class) == 5


def test_multi_label_is_that_of_scikit_learn():
    scores, targets = predictions(multi_label=True)
    measured = classification_metrics(scores, targets, CLASSES, multi_label=True)
    predicted = np.eye(6, dtype=bool)[scores.argmax(axis=1)]
    assert measured.metrics == pytest.approx(
        {
            "mAP": average_precision_score(targets[:, :5], scores[:, :5], average="macro"),
            "macro F1": f1_score(targets[:, :5], predicted[:, :5], average="macro", zero_division=0.0),
        },
        abs=1e-12,
    )
    each = average_precision_score(targets[:, :5], scores[:, :5], average=None)
    assert [row["average_precision"] for row in measured.per_class.values()] == pytest.approx(each, abs=1e-12)
    assert [row["clips"] for row in measured.per_class.values()] == targets[:, :5].sum(axis=0).tolist()


def test_single_label_by_hand():
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7]])
    targets = np.eye(3, dtype=bool)[[0, 0, 1, 1]]  # predicted: 0 1 1 2
    measured = classification_metrics(scores, targets, CLASSES[:3], multi_label=False)
    assert measured.metrics == pytest.approx({"accuracy": 1 / 2, "macro F1": (2 / 3 + 1 / 2) / 2, "recall": 1 / 2})
    assert measured.per_class == {
        "dog": pytest.approx({"recall": 1 / 2, "precision": 1, "f1": 2 / 3, "clips": 2}),
        "rain": pytest.approx({"recall": 1 / 2, "precision": 1 / 2, "f1": 1 / 2, "clips": 2}),
    }


def test_multi_label_by_hand():
    scores = np.array([[0.9, 0.5, 0], [0.8, 0.5, 0], [0.7, 0.5, 0], [0.6, 0.5, 0]])
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)
    measured = classification_metrics(scores, targets, CLASSES[:3], multi_label=True)
    # dog is first and third: (1/1 + 2/3) / 2; all clips tie for rain: its share, 3/4. "dog" is said of all four.
    assert measured.metrics == pytest.approx({"mAP": (5 / 6 + 3 / 4) / 2, "macro F1": (2 / 3 + 0) / 2})
    assert measured.per_class["dog"]["average_precision"] == pytest.approx(5 / 6)
    assert measured.per_class["rain"]["average_precision"] == pytest.approx(3 / 4)
    assert list(measured.per_class) == ["dog", "rain"]


def test_first_of_equal_scores_is_predicted():
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 3.0, 3.0]])
    assert best_class(scores).tolist() == [[True, False, False], [False, True, False], [True, False, False]]


@pytest.mark.parametrize("multi_label", [False, True])
def test_weights_of_one_change_nothing(multi_label):
    scores, targets = predictions(multi_label)
    for name, value in classification_metrics(scores, targets, CLASSES, multi_label).metrics.items():
        assert WEIGHTED[name](scores, targets)(np.ones((2, 60))) == pytest.approx([value, value], abs=1e-12)


@pytest.mark.parametrize("multi_label", [False, True])
def test_weights_are_clips_that_are_there_several_times(multi_label):
    scores, targets = predictions(multi_label)
    weights = np.random.default_rng(1).integers(0, 4, (3, 60))
    weights[2, targets[:, 0]] = 0  # a draw without the first class, which then does not count
    repeated = [
        classification_metrics(scores.repeat(row, axis=0), targets.repeat(row, axis=0), CLASSES, multi_label)
        for row in weights
    ]
    assert [len(measured.per_class) for measured in repeated] == [5, 5, 4]
    for name in repeated[0].metrics:
        expected = [measured.metrics[name] for measured in repeated]
        assert WEIGHTED[name](scores, targets)(weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 4, 50])
def test_chance_of_accuracy_and_recall(classes):
    targets = np.eye(classes, dtype=bool)[[0, 0, 1]]
    assert chance("accuracy", targets) == chance("recall", targets) == 1 / classes


@pytest.mark.parametrize(("clips", "positive"), [(6, 2), (6, 6), (5, 1), (1, 1)])
def test_chance_of_map_is_the_mean_over_all_orders(clips, positive):
    targets = np.arange(clips) < positive
    precisions = []
    for order in permutations(targets):
        hits = np.flatnonzero(order)
        precisions.append(np.mean(np.arange(1, positive + 1) / (hits + 1)))
    with_absent = np.stack([targets, np.zeros(clips, bool)], axis=1)  # a class without clips does not count
    assert chance("mAP", with_absent) == pytest.approx(np.mean(precisions), abs=1e-12)


def test_chance_of_map_is_the_mean_of_shuffles():
    _, targets = predictions(multi_label=True, clips=30)
    random = np.random.default_rng(2)
    measure = WEIGHTED["mAP"]
    values = [measure(random.random((30, 6)), targets)(np.ones((1, 30)))[0] for _ in range(1500)]
    assert chance("mAP", targets) == pytest.approx(np.mean(values), abs=4 * np.std(values) / 1500**0.5)


@pytest.mark.parametrize("metric", ["accuracy", "recall", "macro F1"])
def test_chance_is_that_of_guessing(metric):
    random = np.random.default_rng(3)
    targets = np.eye(4, dtype=bool)[random.choice(4, 2000, p=[0.6, 0.2, 0.15, 0.05])]
    ones = np.ones((1, 2000))
    values = [WEIGHTED[metric](random.random((2000, 4)), targets)(ones)[0] for _ in range(100)]
    assert chance(metric, targets) == pytest.approx(np.mean(values), abs=0.004)


def test_interval_of_a_proportion_is_the_normal_approximation():
    hits = np.arange(2000) < 1400
    low, high = bootstrap_interval([(2000, mean_of(hits))], seed=0)
    error = (0.7 * 0.3 / 2000) ** 0.5
    # 1000 resamples give the ends to about 0.085 standard errors
    assert [low, high] == pytest.approx([0.7 - 1.96 * error, 0.7 + 1.96 * error], abs=0.3 * error)


def test_interval_depends_on_the_seed_alone():
    measures = [(50, mean_of(np.random.default_rng(0).random(50)))]
    assert bootstrap_interval(measures, seed=1) == bootstrap_interval(measures, seed=1)
    assert bootstrap_interval(measures, seed=1) != bootstrap_interval(measures, seed=2)


def test_folds_are_averaged_whatever_their_size():
    sure = [(10, mean_of(np.ones(10))), (1000, mean_of(np.zeros(1000)))]
    assert bootstrap_interval(sure, seed=0) == pytest.approx((0.5, 0.5), abs=1e-12)
    halves = [(100, mean_of(np.arange(100) < 50)), (900, mean_of(np.arange(900) < 450))]
    low, high = bootstrap_interval(halves, seed=0)
    error = (0.25 / 100 + 0.25 / 900) ** 0.5 / 2
    assert [low, high] == pytest.approx([0.5 - 1.96 * error, 0.5 + 1.96 * error], abs=0.3 * error)


def spread(seed, clips, classes):
    """Scores of clips of one class each that are a little higher for it."""
    targets = np.eye(classes, dtype=bool)[np.arange(clips) % classes]
    return np.random.default_rng(seed).normal(size=targets.shape) + targets, targets


def test_interval_of_map_holds_the_value():
    """Clips that are drawn twice make the mAP of draws higher: uncorrected, all of the interval is above it."""
    measure = WEIGHTED["mAP"](*spread(0, clips=1000, classes=50))
    value = measure(np.ones((1, 1000)))[0]
    low, high = bootstrap_interval([(1000, measure)], seed=0, biased=True)
    assert (value, low, high) == pytest.approx((0.0963, 0.083, 0.1101), abs=5e-4)


def test_interval_of_map_holds_the_mean_in_19_of_20_cases(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 100)
    ones = np.ones((1, 200))
    mean = np.mean([WEIGHTED["mAP"](*spread(1000 + seed, 200, 40))(ones) for seed in range(100)])
    held = 0
    for seed in range(40):
        low, high = bootstrap_interval([(200, WEIGHTED["mAP"](*spread(seed, 200, 40)))], seed, biased=True)
        held += low <= mean <= high
    assert held >= 36  # without the correction 22


def test_corrected_intervals_stay_between_0_and_1():
    hits = [(4, lambda weights: (weights > 0).mean(axis=1))]  # 1 on the clips, about 0.68 on draws
    low, high = bootstrap_interval(hits, seed=0, biased=True)
    assert 0.8 < low < 1
    assert high == 1


def test_every_resample_draws_as_many_clips_as_there_are():
    drawn = []

    def measure(weights):
        drawn.append(weights.sum(axis=1))
        return weights[:, 0].astype(float)

    bootstrap_interval([(7, measure)], seed=0)
    assert np.concatenate(drawn).tolist() == [7] * 1000


@pytest.mark.parametrize("multi_label", [False, True])
def test_one_class_alone(multi_label):
    """As in a fold that has clips of one class only: scikit-learn takes a single column for yes and no."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    targets = np.array([[True, False]] * 3)
    measured = classification_metrics(scores, targets, ["a", "b"], multi_label)
    assert measured.metrics["macro F1"] == pytest.approx(0.8)
    assert measured.per_class["a"]["clips"] == 3
    assert measured.per_class["a"]["recall"] == pytest.approx(2 / 3)
    assert list(measured.per_class) == ["a"]


def test_reliability_in_closed_form():
    scores = np.array([0.05, 0.05, 0.55, 0.55, 0.55, 0.55, 1.0])
    right = np.array([False, True, True, True, True, False, True])
    measured = reliability(scores, right, bins=2)
    assert measured.predictions.tolist() == [2, 5]
    assert measured.score == pytest.approx([0.05, (4 * 0.55 + 1) / 5])
    assert measured.share == pytest.approx([0.5, 0.8])
    assert measured.error == pytest.approx((2 * 0.45 + 5 * (0.8 - 0.64)) / 7)


def test_scores_that_are_probabilities_are_reliable():
    scores = np.random.default_rng(0).uniform(size=200_000)
    right = np.random.default_rng(1).uniform(size=200_000) < scores
    assert reliability(scores, right).error < 0.005
    assert reliability(scores, ~right).error == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_task_of_one_class(multi_label):
    measured = classification_metrics(np.array([[0.9], [0.2]]), np.ones((2, 1), dtype=bool), ["a"], multi_label)
    assert measured.metrics["macro F1"] == 1
    assert (measured.per_class["a"]["recall"], measured.per_class["a"]["precision"]) == (1, 1)
