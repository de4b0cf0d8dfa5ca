"""
All benchmarks against transformers, one after the other, as two Markdown tables: README's, and every row.

    python tests/benchmarks/table.py [--threads 2] [--output FOLDER]

Takes about half an hour on two cores. FOLDER gets each script's JSON; what is there already is not run again. "At
most" is the ratio that would be if our matrix products and convolutions ran at the best rate that the machine showed
in the same turns, and all else took no time.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

STAGES = (  # README's
    "features, 10 s at 48 kHz, batch 1",
    "features, 10 s at 48 kHz, batch 32",
    "HTS-AT, batch 1",
    "HTS-AT, batch 16",
    "Cnn14, batch 1",
    "Cnn14, batch 16",
    "text tower, 50 prompts",
    "tagging, same model, against its default",
    "tagging, same model, against batch_size=16",
    "tagging, bundled checkpoint, against its default",
    "tagging, bundled checkpoint, against batch_size=16",
    "files to embeddings",
    "training step, hf_clap",
)
SCRIPTS = ("features", "features_float64", "towers", "text", "tagging", "corpus", "training_step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"))
    options = parser.parse_args()
    options.output.mkdir(exist_ok=True)
    rows = []
    for script in SCRIPTS:
        result = options.output / f"{script}.json"
        if not result.exists():
            command = [sys.executable, str(Path(__file__).with_name(f"{script}.py"))]
            subprocess.run([*command, "--threads", str(options.threads), "--json", str(result)], check=True)
        rows += json.loads(result.read_text())
    print(summary(rows), table(rows), sep="\n\n")


def summary(rows: list[dict]) -> str:
    found = {row["name"].replace(", float32", "").replace("bfloat16", "bf16"): row for row in rows}
    lines = ["| stage | against | float32 | bfloat16 | peak memory in float32, GB |", "|---|---|---|---|---|"]
    for stage in STAGES:
        half = next((row for name, row in found.items() if name.replace(", bf16", "") == stage != name), None)
        faster = f"{half['ratio']:.1f}x" if half else ""
        row = found[stage]
        lines.append(f"| {stage} | {row['peer'].split(', ')[0]} | {row['ratio']:.1f}x | {faster} | {held(row)} |")
    return "\n".join(lines)


def table(rows: list[dict]) -> str:
    lines = ["| stage | against | ratio | least to most | at most | peak memory, GB |", "|---|---|---|---|---|---|"]
    for row in rows:
        spread = f"{row['least']:.1f} to {row['most']:.1f}"
        bound = f"{row['at_most']:.1f}" if row["at_most"] else ""
        lines.append(
            f"| {row['name']} | {row['peer'].split(', ')[0]} | {row['ratio']:.1f} | {spread} | {bound} | {held(row)} |"
        )
    return "\n".join(lines)


def held(row: dict) -> str:
    peaks = row["peak_gb"]
    return f"{peaks[row['ours']]:.2f} / {peaks[row['peer']]:.2f}" if peaks else ""


if __name__ == "__main__":
    main()
