"""Checkpoints of a training run: a folder `checkpoint-STEP` is there when it is complete, and not before."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoint_file import writing

INCOMPLETE = "_incomplete"  # Trainer does not push what begins with an underscore


@contextmanager
def new_checkpoint(folder: str | os.PathLike[str], is_main: bool, wait: Callable[[], None]) -> Iterator[Path]:
    """
    Write a checkpoint that appears under its name when every process has written its part.

    Args:
        folder: such as `run/checkpoint-100`; replaced if it is there.
        is_main: whether this process is the one of its machine that makes and renames folders.
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
