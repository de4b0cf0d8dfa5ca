"""Results come back from their files as they were, and files are whole."""

import dataclasses
import json
import os
import re

import pytest

from hf_clap.task_result import TaskResult, read_results, results_as_json, write_results

ACCURACY = TaskResult(
    task="esc50",
    title="ESC-50",
    setting="zero-shot",
    metric="accuracy",
    value=2 / 3,
    ci95=(0.1, 0.9),
    chance=0.02,
    n=3,
    metrics={"accuracy": 2 / 3, "macro F1": 0.5},
    per_class={"dog": {"recall": 1.0, "clips": 2}, 'a "bell", rung': {"recall": 0.0, "clips": 1}},
    folds={"1": 1.0, "2": 1 / 3},
    items=[
        {"file": "1.wav", "label": "dog", "predicted": "dog"},
        {"file": "ä.wav", "label": "dog", "predicted": "cat"},
    ],
    failed=[{"file": "2.wav", "error": "it is\nempty"}],
    model="a/model",
    model_revision="0" * 40,
    weights="1" * 64,
    prompt={"templates": ["{}"], "descriptions": {"dog": ["a bark"]}},
    seed=7,
    training={"epochs": 30, "lr": 1e-3},
    data={"source": "folder", "revision": None, "sha256": "2" * 64},
    versions={"torch": "2.0"},
)
RETRIEVAL = dataclasses.replace(
    ACCURACY,
    task="clotho",
    setting="retrieval",
    metric="text_to_audio_r@1",
    per_class={},
    folds={},
    items=[{"query": "a dog barks", "hit": True}],
    failed=[],
    model_revision=None,
    prompt=None,
    training=None,
)
KEYS = [
    "task",
    "title",
    "setting",
    "metric",
    "value",
    "ci95",
    "chance",
    "n",
    "metrics",
    "per_class",
    "folds",
    "items",
    "failed",
    "model",
    "model_revision",
    "weights",
    "prompt",
    "seed",
    "training",
    "data",
    "versions",
]


def test_one_result_is_an_object(tmp_path):
    file = tmp_path / "result.json"
    write_results([ACCURACY], file)
    written = json.loads(file.read_text(encoding="utf-8"))
    assert list(written) == KEYS
    assert written == json.loads(json.dumps(dataclasses.asdict(ACCURACY)))
    assert read_results([file]) == [ACCURACY]
    assert os.listdir(tmp_path) == ["result.json"]


def test_several_results_are_a_list(tmp_path):
    file = tmp_path / "results.json"
    write_results([ACCURACY, RETRIEVAL], file)
    written = json.loads(file.read_text(encoding="utf-8"))
    assert [fields["task"] for fields in written] == ["esc50", "clotho"]
    assert (written[1]["prompt"], written[1]["failed"], written[1]["per_class"]) == (None, [], {})
    assert read_results([file]) == [ACCURACY, RETRIEVAL]


def test_files_are_read_in_their_order(tmp_path):
    write_results([RETRIEVAL, ACCURACY], tmp_path / "two.json")
    write_results([ACCURACY], tmp_path / "one.json")
    assert read_results([tmp_path / "one.json", str(tmp_path / "two.json")]) == [ACCURACY, RETRIEVAL, ACCURACY]


def test_an_item_and_a_class_have_a_line_each():
    lines = results_as_json([ACCURACY]).splitlines()
    assert '  {"file": "ä.wav", "label": "dog", "predicted": "cat"}' in lines
    assert '  "dog": {"recall": 1.0, "clips": 2},' in lines
    assert ' "seed": 7,' in lines


def changed(**fields):
    return json.dumps(dataclasses.asdict(ACCURACY) | fields).encode()


def without(field):
    return json.dumps({name: value for name, value in dataclasses.asdict(ACCURACY).items() if name != field})


@pytest.mark.parametrize(
    "content",
    [
        b"accuracy: 0.5",
        b"\xff\xfe",
        b"12",
        b'{"name": "no result"}',
        b'["esc50"]',
        without("versions").encode(),
        without("ci95").encode(),
        changed(extra=1),
        changed(value=None),
        changed(ci95=[0.1]),
        changed(data={"source": "folder", "revision": None}),
        changed(items=[{"label": "dog", "predicted": "dog"}]),
        changed(items=["1.wav"]),
        changed(setting="retrieval"),  # then items are queries
        changed(failed=[{"file": "2.wav"}]),
        changed(setting="bar"),
        changed(metric="foo"),
        changed(value=float("nan")),
        changed(prompt={}),
        changed(training="x"),
        changed(versions=None),
        changed(per_class=["dog"]),
        changed(weights=5),
        changed(value=10**400),
        b"[" * 100_000,
    ],
)
def test_a_file_that_holds_no_results(tmp_path, content):
    write_results([ACCURACY], tmp_path / "good.json")
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{bad} holds no results (")) as error:
        read_results([tmp_path / "good.json", bad])
    assert str(error.value).endswith("; name a file that `hf-clap eval` wrote.")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.json holds no results \(.*No such file"):
        read_results([tmp_path / "missing.json"])


def test_a_file_is_whole_or_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    write_results([RETRIEVAL], file)

    def fail(source, destination):
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no room"):
        write_results([ACCURACY], file)
    assert os.listdir(tmp_path) == ["result.json"]
    assert read_results([file]) == [RETRIEVAL]


def test_nothing_is_written_of_what_json_cannot_hold(tmp_path):
    file = tmp_path / "result.json"
    with pytest.raises(TypeError):
        write_results([dataclasses.replace(ACCURACY, data={"source": object()})], file)
    assert os.listdir(tmp_path) == []
