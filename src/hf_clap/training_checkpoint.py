"""Checkpoints of a training run: a folder `checkpoint-STEP` is there when it is complete, and not before."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .whole_file import whole_file, writing

INCOMPLETE = "_incomplete"  # Trainer does not push what begins with an underscore
SETTINGS = ".settings.json"  # hidden, and so not pushed: it has paths of this machine


@contextmanager
def new_checkpoint(folder: str | os.PathLike[str], is_main: bool, wait: Callable[[], None]) -> Iterator[Path]:
    """
    Write a checkpoint that appears under its name when every process has written its part.

    Args:
        folder: such as `run/checkpoint-100`; replaced if it is there.
        is_main: whether this process is the one that makes and renames folders, of all that see them.
        wait: returns when all processes have called it.

    Yields:
        Path: the folder to write to, of the same name, in `run/_incomplete`.

    Raises:
        OSError: if the disk is full; there is then no such checkpoint, and those before it are untouched.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_clap.training_checkpoint import last_checkpoint, new_checkpoint

    >>> with tempfile.TemporaryDirectory() as run:
    ...     with new_checkpoint(f"{run}/checkpoint-100", is_main=True, wait=lambda: None) as folder:
    ...         _ = (folder / "weights").write_text("1 2 3")
    ...         before = last_checkpoint(run)
    ...     before, last_checkpoint(run).name
    (None, 'checkpoint-100')

    ```
    """
    final = Path(folder)
    staging = final.parent / INCOMPLETE
    with writing(final):
        if is_main:
            shutil.rmtree(staging, ignore_errors=True)  # what a killed run has left
            (staging / final.name).mkdir(parents=True)
        wait()
        try:
            yield staging / final.name
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)  # of no use, and a full disk needs the room
            raise
        wait()
        if is_main:
            if final.exists():
                os.replace(final, staging / "replaced")
            os.replace(staging / final.name, final)
            shutil.rmtree(staging)
        wait()


def last_checkpoint(run: str | os.PathLike[str]) -> Path | None:
    """The checkpoint with the most steps in the folder of a run; None if there is none."""
    found = [path for path in Path(run).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


def check_complete(checkpoint: Path) -> None:
    """A FileNotFoundError where a checkpoint of `Trainer` lacks what a run goes on from beside its weights."""
    parts = ["optimizer", "scheduler", "rng_state"]
    missing = [part for part in parts if not any(checkpoint.glob(f"{part}*"))]
    if missing and not any(checkpoint.glob("global_step*")):  # DeepSpeed keeps its own
        raise FileNotFoundError(
            f"{checkpoint} lacks {', '.join(missing)} and cannot be gone on from; write checkpoints without "
            "save_only_model, or load its weights into a new run."
        )


def keep_settings(run: str | os.PathLike[str], settings: Mapping[str, Any], is_main: bool = True) -> None:
    """
    Keep what a run is started with, in its folder, so that it goes on with the same or not at all: a checkpoint holds
    the schedule and the place in the data, and what a model card says of the run should be true.

    Args:
        run: folder of the run.
        settings: what has a part in its result, by name; anything that `str` tells apart.
        is_main: whether this process is the one that writes.

    Raises:
        ValueError: if the run has a checkpoint and was started with others.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_clap.training_checkpoint import keep_settings

    >>> with tempfile.TemporaryDirectory() as run:
    ...     keep_settings(run, {"seed": 0})
    ...     keep_settings(run, {"seed": 1})  # there is no checkpoint yet

    ```
    """
    file = Path(run) / SETTINGS
    given = {name: str(value) for name, value in settings.items()}
    if last_checkpoint(run) is not None and file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name in sorted(before.keys() | given.keys()):
            had, has = (kept.get(name, "None") for kept in (before, given))
            if had != has:
                raise ValueError(
                    f"{run} was started with {name}={had}, and this is {has}; go on with the same, or choose another "
                    "folder."
                )
    elif is_main:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as unfinished:
            unfinished.write_text(json.dumps(given, indent=2) + "\n", encoding="utf-8")
