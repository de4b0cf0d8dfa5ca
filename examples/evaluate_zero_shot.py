"""
Zero-shot accuracy on labelled folders of sounds.

    python examples/evaluate_zero_shot.py FOLDER… [--model M] [--template "this is a sound of {}"]

A folder holds audio files and a `metadata.csv` with the columns `file_name` and `label`; every label is a candidate.
"""

import argparse
import csv
from pathlib import Path

from tqdm import tqdm

import hf_clap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default=hf_clap.TINY)
    parser.add_argument("--template", default="this is a sound of {}")
    arguments = parser.parse_args()

    tagger = hf_clap.pipeline(arguments.model)
    print(f"{'task':20} {'clips':>6} {'classes':>8} {'chance':>7} {'accuracy':>9}   prompt: {arguments.template}")
    for folder in arguments.folders:
        rows = read_rows(folder)
        classes = len({row["label"] for row in rows})
        score = accuracy(tagger, folder, rows, arguments.template)
        print(f"{folder.name:20} {len(rows):6} {classes:8} {1 / classes:7.3f} {score:9.4f}")


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def accuracy(
    tagger: hf_clap.HfClapPipeline,
    folder: Path,
    rows: list[dict[str, str]],
    template: str = "this is a sound of {}",
) -> float:
    """Share of the rows whose label is the best of all labels."""
    labels = [row["label"].replace("_", " ") for row in rows]
    files = (str(folder / row["file_name"]) for row in rows)
    results = tagger.iterate(files, sorted(set(labels)), hypothesis_template=template, top_k=1)
    progress = tqdm(results, total=len(rows), desc=folder.name, unit="clip", leave=False, disable=None)
    hits = sum(predictions[0]["label"] == label for predictions, label in zip(progress, labels, strict=True))
    return hits / len(rows)


if __name__ == "__main__":
    main()
