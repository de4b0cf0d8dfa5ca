"""Tests of two results equal those by hand, and what cannot be compared says so."""

import re
from math import comb

import pytest
from scipy.stats import binomtest, wilcoxon

from hf_clap.comparison import compare
from hf_clap.task_result import TaskResult


def result(metric="accuracy", *, outcomes=(), values=None, task="esc50", sha256="a" * 64, prompt="{}", **fields):
    """A result of outcomes, one for each clip or query, or of values, one for each class."""
    if metric == "accuracy":
        items = [
            {"file": f"{n}.wav", "label": "dog", "predicted": "dog" if hit else "cat"}
            for n, hit in enumerate(outcomes)
        ]
    else:
        items = [{"query": f"caption {n}", "hit": bool(hit)} for n, hit in enumerate(outcomes)]
    measured = {"mAP": "average_precision", "macro F1": "f1", "recall": "recall"}.get(metric)
    units = list((values or {}).values()) or list(outcomes)
    defaults = {
        "task": task,
        "title": task.upper(),
        "setting": "zero-shot",
        "metric": metric,
        "value": sum(units) / len(units),
        "ci95": (0.0, 1.0),
        "chance": 0.5,
        "n": len(units),
        "metrics": {},
        "per_class": {name: {"recall": 0.5, measured: value} for name, value in (values or {}).items()},
        "folds": {},
        "items": items,
        "failed": [],
        "model": "a model",
        "model_revision": None,
        "weights": "b" * 64,
        "prompt": {"templates": [prompt]},
        "seed": 0,
        "training": None,
        "data": {"sha256": sha256},
        "versions": {},
    }
    return TaskResult(**defaults | fields)


def outcomes(better, worse, both=3, neither=2):
    """Outcomes of two models of which the second is better on so many clips and worse on so many."""
    first = [0] * better + [1] * worse + [1] * both + [0] * neither
    second = [1] * better + [0] * worse + [1] * both + [0] * neither
    return first, second


@pytest.mark.parametrize("metric", ["accuracy", "text_to_audio_r@1"])
@pytest.mark.parametrize(("better", "worse"), [(5, 0), (0, 5), (1, 0), (8, 2), (3, 3), (12, 25)])
def test_mcnemar_by_hand(metric, better, worse):
    first, second = outcomes(better, worse)
    [compared] = compare([result(metric, outcomes=first)], [result(metric, outcomes=second)])
    changed, least = better + worse, min(better, worse)
    by_hand = min(1.0, 2 * sum(comb(changed, count) for count in range(least + 1)) * 0.5**changed)
    assert compared.p_value == pytest.approx(by_hand, rel=1e-9)
    assert compared.p_value == pytest.approx(binomtest(better, changed, 0.5).pvalue, rel=1e-12)
    assert compared.test == "McNemar, exact"
    assert compared.n == changed + 5
    assert compared.difference == pytest.approx((better - worse) / (changed + 5))


def test_five_better_and_none_worse():
    first, second = outcomes(5, 0)
    [compared] = compare([result(outcomes=first)], [result(outcomes=second)])
    assert compared.p_value == pytest.approx(2 * 0.5**5)


@pytest.mark.parametrize("metric", ["mAP", "macro F1", "recall"])
def test_classes_by_wilcoxon(metric):
    first = {"dog": 0.1, "rain": 0.2, "wind": 0.3, "bell": 0.4, "siren": 0.5, "train": 0.6}
    gains = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    second = {name: value + gain for (name, value), gain in zip(first.items(), gains, strict=True)}
    [compared] = compare([result(metric, values=first)], [result(metric, values=second)])
    assert compared.p_value == pytest.approx(2 * 0.5**6)  # of 64 ways to sign six ranks, the two where all agree
    assert (compared.test, compared.n) == ("Wilcoxon signed-rank", 6)
    assert compared.difference == pytest.approx(0.035)


def test_classes_that_are_all_found_or_all_missed():
    names = ("dog", "rain", "wind", "bell", "siren", "train")
    [compared] = compare(
        [result("mAP", values=dict.fromkeys(names, 0.0))], [result("mAP", values=dict.fromkeys(names, 1.0))]
    )
    assert compared.test == "Wilcoxon signed-rank"


def test_classes_that_gain_and_lose():
    first = {"dog": 0.5, "rain": 0.5, "wind": 0.5, "bell": 0.5, "siren": 0.5}
    second = {"dog": 0.75, "rain": 0.375, "wind": 1.0, "bell": 0.4375, "siren": 0.46875}
    [compared] = compare([result("mAP", values=first)], [result("mAP", values=second)])
    # Of the ranks 1 to 5 the losses are 1, 2, 3: as many or fewer in 13 of 32 ways to sign them; both sides
    below = sum(sum(rank for rank in range(1, 6) if mask >> rank & 1) <= 6 for mask in range(0, 64, 2))
    assert compared.p_value == pytest.approx(2 * below / 32)
    assert compared.p_value == pytest.approx(wilcoxon([second[name] - first[name] for name in first]).pvalue)


@pytest.mark.parametrize(
    "same",
    [
        result(outcomes=[1, 0, 1]),
        result("mAP", values={"dog": 0.25, "rain": 0.5}),
        result("text_to_audio_r@1", outcomes=[0, 1]),
    ],
)
def test_identical_results(same):
    [compared] = compare([same], [same])
    assert (compared.p_value, compared.difference, compared.test) == (1.0, 0.0, "none needed")


def test_only_common_clips_are_tested():
    first = result(outcomes=[0, 0, 0, 0, 1])
    second = result(outcomes=[1, 1, 1])  # the two others could not be read
    [compared] = compare([first], [second])
    assert (compared.n, compared.p_value) == (3, pytest.approx(2 * 0.5**3))


def test_single_results_are_a_pair_whatever_their_setting_and_prompt():
    first, second = outcomes(4, 0)
    [compared] = compare([result(outcomes=first)], [result(outcomes=second, setting="probe", prompt=None)])
    assert (compared.first.setting, compared.second.setting) == ("zero-shot", "probe")
    assert compared.p_value == pytest.approx(2 * 0.5**4)


def test_lists_pair_by_task_and_setting():
    def run(value, prompt):
        return [
            result(outcomes=[1], value=value + shift, task=task, setting=setting, prompt=prompt)
            for shift, task, setting in [(0.0, "a", "zero-shot"), (0.1, "a", "probe"), (0.2, "b", "zero-shot")]
        ]

    alone = result(outcomes=[1], task="c")
    compared = compare([*run(0.25, "{}"), alone], run(0.5, "a sound of {}")[::-1])
    assert [(one.first.task, one.first.setting) for one in compared] == [
        ("a", "zero-shot"),
        ("a", "probe"),
        ("b", "zero-shot"),
    ]
    assert all((one.second.task, one.second.setting) == (one.first.task, one.first.setting) for one in compared)
    assert [one.difference for one in compared] == pytest.approx([0.25] * 3)


def test_several_prompts_of_a_task_pair_by_prompt():
    first = [result(outcomes=[1], prompt=prompt) for prompt in ("{}", "a {}", "the {}")]
    second = [result(outcomes=[1], prompt=prompt) for prompt in ("a {}", "one {}", "{}")]
    compared = compare(first, second)
    assert [(one.first.prompt, one.second.prompt) for one in compared] == [
        ({"templates": [prompt]}, {"templates": [prompt]}) for prompt in ("{}", "a {}")
    ]
    [compared] = compare(first, second[:1])  # which of three it belongs to is told by the prompt
    assert compared.first is first[1]
    assert compared.second is second[0]


@pytest.mark.parametrize(
    ("first", "second", "sentence"),
    [
        (
            [result(outcomes=[1])],
            [result(outcomes=[0], sha256="c" * 64)],
            "The two results on esc50 are of different data (SHA-256 aaaaaaaa and cccccccc); run both on the same "
            "folder or revision.",
        ),
        (
            [result(outcomes=[1])],
            [result("macro F1", values={"dog": 0.5})],
            "accuracy of esc50 and macro F1 of esc50 cannot be compared; choose results of one task.",
        ),
        (
            [result(outcomes=[1])],
            [result(outcomes=[1], task="esc10")],
            "accuracy of esc50 and accuracy of esc10 cannot be compared; choose results of one task.",
        ),
        (
            [result(outcomes=[1]), result(outcomes=[1], task="a")],
            [result(outcomes=[1], task="b"), result(outcomes=[1], setting="probe")],
            "The files have no task in the same setting in common; compare results of the same tasks.",
        ),
        ([], [], "The files have no task in the same setting in common; compare results of the same tasks."),
        (
            [result(outcomes=[1])],
            [result(outcomes=[1], items=[{"file": "other.wav", "label": "dog", "predicted": "dog"}])],
            "The two results on esc50 have no clip in common; run both on the same clips.",
        ),
    ],
)
def test_what_cannot_be_compared(first, second, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        compare(first, second)
