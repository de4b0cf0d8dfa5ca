"""The command line. Results go to stdout, everything else to stderr."""

import argparse
import csv
import glob
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

from .audio import iter_audio
from .checkpoint_file import KINDS
from .cli_eval import add_card, add_eval
from .cli_export import add_export
from .cli_options import Parser, add_batch_size, add_model, at_least_one, file_to_write, seconds, tidy_when_terminated
from .cli_search import add_demo, add_embed, add_search
from .conversion import convert_checkpoint
from .conversion_back import BACK, convert_back
from .corpus import iter_audio_files
from .pipeline import pipeline
from .prompts import DEFAULT_TEMPLATE


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line.

    Args:
        arguments: the words after `hf-clap`; the process's own when absent.

    Returns:
        int: the exit code: 0 if all went well, 1 if a file could not be read, 2 if the call is wrong, 130 if it was
        interrupted.
    """
    logging.disable_progress_bar()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # programs read UTF-8, whatever this machine's consoles have; a file's name need not be text
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
    try:
        options = _parser().parse_args(arguments)
        return options.run(options)
    except KeyboardInterrupt:
        print("hf-clap: interrupted", file=sys.stderr)
        return 130  # as a shell has it
    except BrokenPipeError:  # whoever read has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it ends
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"hf-clap: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="hf-clap", description="Contrastive language-audio pretraining.")
    parser.add_argument("--version", action="version", version=f"hf-clap {sys.modules[__package__].__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    tag = commands.add_parser("tag", help="score labels for sound files", description="Score labels for sound files.")
    tag.set_defaults(run=_tag)
    tag.add_argument("audio", nargs="+", metavar="AUDIO", help="files, folders (searched through), globs or URLs")
    labels = tag.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", help='labels separated by commas, as in "dog, rain"')
    labels.add_argument("--labels-file", type=Path, help="a text file with one label on each line")
    tag.add_argument(
        "--template",
        action="append",
        help=f"sentence with {{}} for the label; may be given several times (default: {DEFAULT_TEMPLATE!r})",
    )
    add_model(tag)
    tag.add_argument("--top-k", type=at_least_one, help="how many labels to print for each file (default: all)")
    tag.add_argument(
        "--threshold",
        type=_threshold,
        help="least score to print, 0 to 1, or, with --multi-label, model: the checkpoint's own",
    )
    tag.add_argument("--multi-label", action="store_true", help="score each label on its own")
    tag.add_argument("--timestamps", action="store_true", help="score window by window")
    tag.add_argument("--window", type=seconds, metavar="S", help="length of these windows in s (default: 2)")
    tag.add_argument("--hop", type=seconds, metavar="S", help="seconds from one to the next (default: the window)")
    tag.add_argument(
        "--plot", type=file_to_write, metavar="PNG", help="draw the labels over time under the waveform of one file"
    )
    add_batch_size(tag)
    tag.add_argument("--backend", choices=("torch", "onnx"), default="torch", help="onnx for what `export` wrote")
    tag.add_argument("--format", choices=tuple(FORMATS), default="table", help="of what is printed")
    convert = commands.add_parser(
        "convert",
        help="turn another CLAP checkpoint into a hf_clap folder",
        description="Turn another CLAP checkpoint into a hf_clap folder, or back. Nothing is guessed or dropped in "
        "silence: what does not fit is an error, and then nothing is written.",
    )
    convert.set_defaults(run=_convert)
    convert.add_argument("source", metavar="SOURCE", help="file, folder or Hub id of the checkpoint")
    convert.add_argument("output", metavar="OUT", help="folder (with --to msclap-2022: file) to make")
    direction = convert.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="source_kind", choices=tuple(KINDS), help="what SOURCE is")
    direction.add_argument("--to", dest="output_kind", choices=tuple(BACK), help="what a hf_clap SOURCE shall become")
    convert.add_argument(
        "--tokenizer", metavar="DIR_OR_ID", help="the text tower's tokenizer (default: the published one)"
    )
    add_eval(commands)
    add_card(commands)
    add_export(commands)
    add_embed(commands)
    add_search(commands)
    add_demo(commands)
    return parser


def _convert(options: argparse.Namespace) -> int:
    tidy_when_terminated()
    if options.output_kind:
        if options.tokenizer:
            raise ValueError("--tokenizer is for --from; leave it out.")
        print(convert_back(options.source, options.output, options.output_kind))
    else:
        print(convert_checkpoint(options.source, options.output, options.source_kind, options.tokenizer))
    return 0


def _tag(options: argparse.Namespace) -> int:
    windows = {"window_s": options.window, "hop_s": options.hop}
    if windows != {"window_s": None, "hop_s": None} and not (options.timestamps or options.plot):
        raise ValueError("--window and --hop are for --timestamps and --plot; add one of them, or leave them out.")
    paths = list(_find_audio(options.audio))
    if options.plot:
        if len(paths) != 1:
            raise ValueError(f"--plot draws one file, but there are {len(paths)}; name one.")
        if Path(paths[0]).exists() and not Path(paths[0]).is_file():
            raise ValueError(f"--plot reads its file twice, and {paths[0]} can be read once; save it to a file first.")
        from .plot import plot_timeline  # matplotlib is an extra: say so before the work, not after it
    settings = {
        "candidate_labels": _read_labels(options),
        "hypothesis_template": options.template or DEFAULT_TEMPLATE,
        "multi_label": options.multi_label,
    }
    tagger = pipeline(
        options.model,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        backend=options.backend,
    )
    results = tagger.iterate(
        paths,
        top_k=options.top_k,
        threshold=options.threshold,
        return_timestamps=options.timestamps,
        on_error="return",
        **settings,
        **(windows if options.timestamps else {}),
    )
    progress = tqdm(results, total=len(paths), unit="file", file=sys.stderr, disable=None if len(paths) > 1 else True)
    failed = False

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal failed
        for path, result in zip(paths, progress, strict=True):
            if isinstance(result, Exception):
                failed = True
                tqdm.write(f"hf-clap: {result}", file=sys.stderr)
                yield {"path": path, "error": str(result)}
            else:
                yield {"path": path, "predictions": result}

    for line in FORMATS[options.format](rows()):
        tqdm.write(line)  # prints around the progress bar, to stdout
    if options.plot and not failed:
        timeline = tagger(paths[0], return_timestamps=True, **settings, **windows)
        blocks = iter_audio(paths[0], tagger.sampling_rate)
        plot_timeline(options.plot, blocks, tagger.sampling_rate, timeline)
    return 1 if failed else 0


def _find_audio(names: list[str]) -> Iterator[str]:
    """Files as they are named, the audio files in folders, what globs match. Missing files stay, to be reported."""
    for name in names:
        if not name:
            raise ValueError("One of the paths is empty; name a file, or . for this folder.")
        if name.startswith(("http://", "https://")):
            yield name
        elif Path(name).is_dir():
            found = list(iter_audio_files(name))
            if not found:
                raise ValueError(f"There are no audio files in {name}; name a folder that holds some, or the files.")
            yield from found
        elif not Path(name).exists() and glob.has_magic(name):
            found_by_glob = sorted(path for path in glob.glob(name, recursive=True) if not os.path.isdir(path))
            if not found_by_glob:
                raise ValueError(f"Nothing matches {name}; check the pattern.")
            yield from found_by_glob
        else:
            yield name


def _threshold(text: str) -> float | str:
    if text == "model":
        return text
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible; pass a number from 0 to 1, or model")
    return threshold


def _read_labels(options: argparse.Namespace) -> list[str] | str:
    if options.labels is not None:
        return options.labels
    try:
        lines = options.labels_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{options.labels_file} cannot be read as UTF-8 text ({error}); check --labels-file."
        ) from error
    return [line for line in lines if line.strip()]


def _table(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        if "error" in row:
            continue  # on stderr, as a sentence
        yield row["path"]
        for prediction in row["predictions"]:
            span = prediction.get("timestamp")
            time = f"{span[0]:8.2f} - {span[1]:7.2f} s" if span else ""
            yield f"{time}  {prediction['score']:.3f}  {prediction['label']}"


def _json(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """One document, row after row, so that nothing is held back."""
    separator = "["
    for row in rows:
        yield separator
        yield json.dumps(row)
        separator = ","
    yield "[]" if separator == "[" else "]"


def _csv(rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    """One line for each prediction; a failed file has one with its error."""
    yield _csv_line(["path", "start_s", "end_s", "label", "score", "error"])
    for row in rows:
        for prediction in row.get("predictions", []):
            start, end = prediction.get("timestamp", ("", ""))
            yield _csv_line([row["path"], start, end, prediction["label"], prediction["score"], ""])
        if "error" in row:
            yield _csv_line([row["path"], "", "", "", "", row["error"]])


def _csv_line(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().removesuffix("\n")


FORMATS: dict[str, Callable[[Iterator[dict[str, Any]]], Iterator[str]]] = {"table": _table, "json": _json, "csv": _csv}
