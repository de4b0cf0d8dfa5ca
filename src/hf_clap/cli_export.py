"""`hf-clap export`: a checkpoint for other runtimes, from the shell."""

import argparse
import sys
from typing import Any

from .cli_options import add_checkpoint, tidy_when_terminated
from .export import export_onnx
from .pipeline import TINY, pipeline


def add_export(commands: Any) -> None:
    """Add `export` to the parser's commands."""
    parser = commands.add_parser(
        "export",
        help="write a checkpoint for onnxruntime",
        description="Write a checkpoint as two ONNX graphs: waveforms to embeddings, with the log-mel inside, and "
        "tokens to embeddings.",
    )
    parser.set_defaults(run=run_export)
    parser.add_argument("output", metavar="OUT", help="folder to make")
    parser.add_argument("--format", choices=("onnx",), required=True, help="of what is written")
    add_checkpoint(parser)
    parser.add_argument("--int8", action="store_true", help="weights of linear layers and embeddings in 8 bits")


def run_export(options: argparse.Namespace) -> int:
    """Export; returns the exit code."""
    tidy_when_terminated()
    tagger = pipeline(options.model, device="cpu", dtype="float32")
    name = "the bundled checkpoint" if options.model == TINY else options.model
    print(f"exporting {name}, which takes a moment", file=sys.stderr)
    folder = export_onnx(tagger.model, tagger.processor, options.output, options.int8)
    sizes = [f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(folder.glob("*.onnx*"))]
    print(f"{folder}: {', '.join(sizes)}")
    return 0
