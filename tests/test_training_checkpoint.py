"""A checkpoint is there when it is complete, whatever happens while it is written."""

import signal
import subprocess
import sys

import pytest

from hf_clap.training_checkpoint import keep_settings, last_checkpoint, new_checkpoint


def write(run, step, text="weights"):
    with new_checkpoint(run / f"checkpoint-{step}", True, lambda: None) as folder:
        (folder / "model").write_text(text)


def test_the_last_one_is_that_of_most_steps(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "no such run") is None
    for step in (5, 100, 20):
        write(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path).name == "checkpoint-100"


def test_one_that_is_there_is_replaced(tmp_path):
    write(tmp_path, 5, "old")
    write(tmp_path, 5, "new")
    assert (tmp_path / "checkpoint-5" / "model").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def write_until_the_disk_is_full(run, step):
    with new_checkpoint(run / f"checkpoint-{step}", True, lambda: None) as folder:
        (folder / "model").write_text("half")
        raise OSError("no room")


def test_an_error_leaves_the_one_before_and_nothing_else(tmp_path):
    write(tmp_path, 5)
    with pytest.raises(OSError, match=r"checkpoint-6 cannot be written \(no room\)"):
        write_until_the_disk_is_full(tmp_path, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_run_goes_on_with_the_same_settings_only(tmp_path):
    run = tmp_path / "run"
    keep_settings(run, {"seed": 0, "steps": 3})
    keep_settings(run, {"seed": 1, "steps": 4})  # nothing was done with the first ones
    keep_settings(run, {"seed": 2, "steps": 4}, is_main=False)
    write(run, 2)
    keep_settings(run, {"seed": 1, "steps": 4, "rate": None})  # an option that there was not
    with pytest.raises(ValueError, match="run was started with seed=1, and this is 2; go on with the same, or choose"):
        keep_settings(run, {"seed": 2, "steps": 4})
    with pytest.raises(ValueError, match=r"run was started with rate=None, and this is 0\.5; go on"):
        keep_settings(run, {"seed": 1, "steps": 4, "rate": 0.5})


SLOW = """
import sys, time
from hf_clap.training_checkpoint import new_checkpoint
with new_checkpoint(sys.argv[1], True, lambda: None) as folder:
    (folder / "model").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_killed_while_writing(tmp_path):
    write(tmp_path, 5)
    command = [sys.executable, "-c", SLOW, str(tmp_path / "checkpoint-6")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert last_checkpoint(tmp_path).name == "checkpoint-5"
    write(tmp_path, 6)
    assert last_checkpoint(tmp_path).name == "checkpoint-6"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", "checkpoint-6"}
