"""
All benchmarks against transformers, one after the other, as one Markdown table.

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
    print(table(rows))


def table(rows: list[dict]) -> str:
    lines = ["| stage | against | ratio | least to most | at most | peak memory, GB |", "|---|---|---|---|---|---|"]
    for row in rows:
        peaks = row["peak_gb"]
        held = f"{peaks[row['ours']]:.2f} / {peaks[row['peer']]:.2f}" if peaks else ""
        spread = f"{row['least']:.1f} to {row['most']:.1f}"
        bound = f"{row['at_most']:.1f}" if row["at_most"] else ""
        lines.append(
            f"| {row['name']} | {row['peer'].split(', ')[0]} | {row['ratio']:.1f} | {spread} | {bound} | {held} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
