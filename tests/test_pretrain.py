"""examples/pretrain.py: killed at a random step and started again, it ends where it would have ended."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
STEPS = 14
LIMIT_S = 240


def command(processes, small_checkpoint, pair_shards, output):
    launch = [sys.executable]
    if processes == 2:
        config = str(EXAMPLES / "launch" / "cpu_2_processes.yaml")
        launch += ["-m", "accelerate.commands.launch", "--config_file", config]
    options = {"model": small_checkpoint, "output": output, "steps": STEPS, "batch-size": 8, "micro-batch-size": 3}
    options |= {"save-every": 3, "workers": 2, "warmup-steps": 2, "seed": 7}
    # two sources, so that the interleaving has a state too
    sources = ["--source", f"{pair_shards}:2", "--source", f"{pair_shards}/train-0000[01]*.parquet"]
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*launch, str(EXAMPLES / "pretrain.py"), *sources, *given]


def run(words, check=True):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=LIMIT_S)
    assert finished.returncode == 0 or not check, finished.stderr[-4000:]
    return finished


def kill_after(words, log, step):
    """Start a run and end it and all its processes, without a warning, when it has logged so many steps."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, start_new_session=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < deadline:
            if log.is_file() and len(log.read_text().splitlines()) >= step:
                break
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--freeze-audio", "--audio-learning-rate", "1"], "--freeze-audio leaves nothing to --audio-learning-rate"),
        (["--freeze-text", "--text-learning-rate", "0"], "--freeze-text leaves nothing to --text-learning-rate"),
    ],
)
def test_arguments_that_train_nothing_are_refused(monkeypatch, capsys, words, sentence):
    specification = importlib.util.spec_from_file_location("pretrain", EXAMPLES / "pretrain.py")
    pretrain = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(pretrain)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--source", "a", "--output", "b", *words])
    with pytest.raises(SystemExit):
        pretrain.parse_arguments()
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_started_again_is_as_if_never_killed(processes, small_checkpoint, pair_shards, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(command(processes, small_checkpoint, pair_shards, whole))
    assert len(losses(whole)) == STEPS
    step = random.SystemRandom().randint(4, STEPS - 2)
    kill_after(command(processes, small_checkpoint, pair_shards, broken), broken / "log.jsonl", step)
    assert not (broken / "model").exists()
    run(command(processes, small_checkpoint, pair_shards, broken))
    assert losses(broken) == losses(whole), f"killed after step {step}"
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (broken, whole))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), f"{name}, killed after step {step}"
    assert (whole / "loss.png").stat().st_size > 5000
    assert {path.name for path in whole.glob("checkpoint-*")} == {"checkpoint-12", "checkpoint-14"}
