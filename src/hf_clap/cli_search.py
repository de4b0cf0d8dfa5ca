"""`hf-clap embed`, `hf-clap search` and `hf-clap demo`: a sound library, from the shell."""

import argparse
import json
from pathlib import Path
from typing import Any

from .cli_options import add_batch_size, add_model, at_least_one, port, seconds, tidy_when_terminated
from .pipeline import pipeline


def add_embed(commands: Any) -> None:
    """Add `embed` to the parser's commands."""
    parser = commands.add_parser(
        "embed",
        help="embed a sound library, to be searched",
        description="Embed every window of every recording. Run again after a kill or when recordings have come, gone "
        "or changed: only what is missing is embedded.",
    )
    parser.set_defaults(run=run_embed)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder (searched through), audio file, Hub id of a data set or Parquet shards",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT.parquet", help="the index to write")
    add_model(parser)
    parser.add_argument("--split", default="train", help="of a data set (default: train)")
    parser.add_argument("--window", type=seconds, metavar="S", help="length of a window in s (default: the model's)")
    parser.add_argument("--hop", type=seconds, metavar="S", help="seconds from one to the next (default: the window)")
    add_batch_size(parser)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of what is printed")


def add_search(commands: Any) -> None:
    """Add `search` to the parser's commands."""
    parser = commands.add_parser(
        "search", help="find moments by words or by a sound", description="Find moments by words or by a sound."
    )
    parser.set_defaults(run=run_search)
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("query", nargs="?", metavar="QUERY", help="what to listen for, in plain words")
    query.add_argument("--audio", metavar="FILE", help="a sound to look for instead")
    parser.add_argument("--index", required=True, metavar="OUT.parquet", help="what `hf-clap embed` wrote")
    parser.add_argument("--top-k", type=at_least_one, default=10, help="how many moments (default: 10)")
    exactness = parser.add_mutually_exclusive_group()
    exactness.add_argument(
        "--approximate",
        action="store_true",
        default=None,
        help="through FAISS (default: with more than a million windows)",
    )
    exactness.add_argument("--exact", dest="approximate", action="store_false", help="window by window")
    add_model(parser)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="of what is printed")


def add_demo(commands: Any) -> None:
    """Add `demo` to the parser's commands."""
    parser = commands.add_parser(
        "demo", help="a page to tag and to search in", description="A page to tag and to search in, for a browser."
    )
    parser.set_defaults(run=run_demo)
    add_model(parser)
    parser.add_argument("--index", metavar="OUT.parquet", help="what `hf-clap embed` wrote, for a search tab")
    parser.add_argument("--sounds", type=Path, metavar="DIR", help="folder of the index' recordings, to play them")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=port, default=7860, help="default: 7860")
    parser.add_argument("--share", action="store_true", help="also by a temporary public address of Gradio's")


def run_embed(options: argparse.Namespace) -> int:
    """Embed a corpus; returns the exit code."""
    from .corpus import Corpus
    from .corpus_embedding import embed_corpus  # needs an extra

    tidy_when_terminated()
    corpus = Corpus(options.source, options.split)
    embedder = _pipeline(options, options.batch_size).embedder
    done = embed_corpus(corpus, options.output, embedder, options.window, options.hop)
    speed = (done.recordings - done.kept) / done.seconds
    if options.format == "json":
        failed = done.failed_file.read_text(encoding="utf-8").splitlines() if done.failed_file else []
        counts = {"recordings": done.recordings, "windows": done.windows, "kept": done.kept, "seconds": done.seconds}
        print(json.dumps({"output": str(done.output), **counts, "failed": [json.loads(line) for line in failed]}))
    else:
        print(
            f"{done.output}: {done.recordings} recordings, {done.windows} windows; {done.kept} were embedded before, "
            f"the others at {speed:.1f} clips/s"
        )
        if done.failed_file:
            print(f"{done.failed_file}: {done.failed} recordings that cannot be read")
    return 1 if done.failed else 0


def run_search(options: argparse.Namespace) -> int:
    """Search an index; returns the exit code."""
    from .search import SoundIndex  # needs an extra

    index = SoundIndex(options.index, _pipeline(options), options.approximate)
    moments = index.search(options.query, options.top_k, audio=options.audio)
    if options.format == "json":
        print(json.dumps(moments))
    for moment in moments if options.format == "table" else []:
        start, end = moment["timestamp"]
        print(f"{moment['score']:.3f}  {start:8.2f} - {end:8.2f} s  {moment['path']}")
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """Serve the page until it is interrupted; returns the exit code."""
    from .demo import build_demo, launch_demo  # needs an extra

    if options.sounds and not options.index:
        raise ValueError("--sounds is the folder of the recordings of --index; name both.")
    if options.sounds and not options.sounds.is_dir():
        raise ValueError(f"--sounds {options.sounds} is not a folder; name that of the recordings.")
    tagger = _pipeline(options)
    launch_demo(build_demo(tagger, options.index, options.sounds), options.host, options.port, options.share)
    return 0


def _pipeline(options: argparse.Namespace, batch_size: int = 8) -> Any:
    return pipeline(options.model, device=options.device, dtype=options.dtype, batch_size=batch_size)
