"""examples/finetune.py: what it writes, and that a seed gives the same run twice."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def finetune():
    """The script as a module."""
    specification = importlib.util.spec_from_file_location("finetune", EXAMPLES / "finetune.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def command(source, model, output):
    options = ["--steps", "4", "--batch-size", "8", "--seed", "3"]
    options += ["--held-out-column", "number", "--held-out-every", "2"]
    return [str(EXAMPLES / "finetune.py"), str(source), "--model", str(model), "--output", str(output), *options]


def results_of(run):
    return json.loads((run / "results.json").read_text())


def test_the_split_is_the_same_wherever_the_data_lie(finetune):
    held_out = []
    for folder in ("/a", "/b/c"):
        paths = [f"{folder}/{number}.wav" for number in range(50)]
        paths += [f"zip://{number}.wav::{folder}/x.zip" for number in range(50)]
        rows = [{"audio": {"path": path, "bytes": None}, "caption": "rain"} for path in paths]
        held_out.append([finetune.belongs(row, None, 5, True) for row in rows])
    assert held_out[0] == held_out[1]
    assert held_out[0][:50] == held_out[0][50:]  # by name
    assert 3 <= sum(held_out[0][:50]) <= 20


def test_a_seed_gives_the_same_run_twice(finetune, pair_shards, small_checkpoint, tmp_path, monkeypatch):
    """Once as a command, then in this process, which takes a third of the time."""
    first = command(pair_shards, small_checkpoint, tmp_path / "first")
    finished = subprocess.run([sys.executable, *first], capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr[-4000:]
    results = results_of(tmp_path / "first")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))  # which the script would set for all that follows
    monkeypatch.setattr(sys, "argv", command(pair_shards, small_checkpoint, tmp_path / "second"))
    finetune.main()
    again = results_of(tmp_path / "second")
    timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    for moment in ("before", "after"):
        ours, theirs = ({k: v for k, v in of[moment].items() if k not in timing} for of in (results, again))
        assert ours == theirs
    weights, of_again = (load_file(tmp_path / run / "model.safetensors") for run in ("first", "second"))
    assert all(torch.equal(value, of_again[name]) for name, value in weights.items())
    before = load_file(small_checkpoint / "model.safetensors")
    for name, value in weights.items():  # the audio tower keeps still, the rest learns
        assert torch.equal(value, before[name]) == name.startswith("audio_model."), name

    before, recall = (results[moment]["eval_text_to_audio_r@1"] for moment in ("before", "after"))
    assert f"{'text_to_audio_r@1':24} {before:7.4f} {recall:7.4f}" in finished.stdout
    card = (tmp_path / "first" / "README.md").read_text()
    assert f"value: {recall}" in card
    assert str(tmp_path) not in card
    assert (tmp_path / "first" / "loss.png").stat().st_size > 5000

    (tmp_path / "first" / "results.json").unlink()  # as if stopped in the evaluation after the last step
    monkeypatch.setattr(sys, "argv", first)
    finetune.main()
    gone_on = results_of(tmp_path / "first")
    assert gone_on["after"]["eval_loss"] == results["after"]["eval_loss"]
    assert gone_on["before"] == results["before"]
