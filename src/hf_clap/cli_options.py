"""The command line's parser, options that several commands have, and what their values may be."""

import argparse
import math
import os
import signal
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NoReturn

from .pipeline import TINY


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model, and where and how it runs."""
    add_checkpoint(parser)
    parser.add_argument("--device", help="such as cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="such as bfloat16 (default: the checkpoint's)")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses a model."""
    parser.add_argument(
        "--model", default=TINY, help="folder or Hub id of a hf_clap checkpoint (default: the bundled one)"
    )


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """Add the option for how many windows go through a model at a time."""
    parser.add_argument("--batch-size", type=at_least_one, default=8, help="windows embedded at a time (default: 8)")


def at_least_one(text: str) -> int:
    """A count."""
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; choose a whole number of at least 1")
    return count


def seconds(text: str) -> float:
    """A stretch of time."""
    try:
        stretch = float(text)
    except ValueError:
        stretch = math.nan
    if not 0 < stretch < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; choose a number of seconds above 0")
    return stretch


def port(text: str) -> int:
    """Where a server listens."""
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; choose a whole number from 1 to {2**16 - 1}")
    return int(text)


def file_to_write(text: str) -> Path:
    """A file that can be made, or made anew; of a link, what it leads to, so that the link stays."""
    path = Path(os.path.realpath(text))
    try:
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "a device or a pipe"
            raise argparse.ArgumentTypeError(f"{text} is {what}; name a file")
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"the folder of {text} does not exist; make it, or choose another")
        with NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent):  # as it will be written
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written ({error.strerror}); choose another") from error
    return path


def tidy_when_terminated() -> None:
    """Leave by the way that tidies up when this process is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
