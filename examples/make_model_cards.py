"""
Write what is generated from measurements: the cards in `model_cards/`, and the README's table.

    hf-clap eval --task all --data-root EVAL --setting zero-shot --setting probe --setting retrieval --output R.json
    python examples/make_model_cards.py [R.json]

`model_cards/tiny_results.json` keeps the results of the bundled checkpoint without their clips; a new R.json takes
their place, and without one the cards are made anew from what is kept. `tiny_training.json` is what
`evaluate_tiny.py` has measured.
"""

import argparse
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import hf_clap
from hf_clap.benchmark_card import MEASURED_AS, benchmark_card, published_card, results_table
from hf_clap.model_card import table, write_card
from hf_clap.task_result import TaskResult, read_results, write_results

ROOT = Path(__file__).resolve().parents[1]
CARDS = ROOT / "model_cards"
START, END = "<!-- table of model_cards/tiny_results.json -->", "<!-- end of table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="of `hf-clap eval` with the bundled checkpoint")
    new = parser.parse_args().results
    kept = CARDS / "tiny_results.json"
    if new:
        write_results([dataclasses.replace(result, items=[]) for result in read_results(new)], kept)
    results = read_results([kept])

    # 1. The bundled checkpoint's card, which goes with it
    shutil.copy(CARDS / "tiny.md", Path(hf_clap.TINY) / "README.md")
    card = benchmark_card(hf_clap.TINY, results)
    card.text = with_training(card.text, json.loads((CARDS / "tiny_training.json").read_text()))
    write_card(hf_clap.TINY, card)
    shutil.copy(CARDS / "tiny_reliability.png", hf_clap.TINY)
    shutil.copy(Path(hf_clap.TINY) / "README.md", CARDS / "tiny.md")

    # 2. Those of the public checkpoints that `hf-clap convert` brings here
    for kind in MEASURED_AS:
        published_card(kind).save(CARDS / f"{kind}.md")

    # 3. The README's table
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), results), encoding="utf-8")


def with_training(text: str, measured: dict[str, Any]) -> str:
    """The bundled checkpoint's card with what `evaluate_tiny.py` has measured between its marks."""
    tasks = next(iter(measured["accuracy"].values()))
    ablations = table(
        ("", *tasks, "mean"),
        (
            (name, *(f"{value:.3f}" for value in values.values()), f"**{np.mean(list(values.values())):.3f}**")
            for name, values in measured["accuracy"].items()
        ),
    )
    errors = measured["calibration_error_by_task"]
    calibration = table(
        (
            "expected calibration error",
            "untrained, softmax",
            "trained, softmax",
            "untrained, sigmoid",
            "trained, sigmoid",
        ),
        [
            (task, *(f"{errors[model][task][kind]:.3f}" for kind in (0, 1) for model in ("untrained", "trained")))
            for task in tasks
        ],
    )
    failures = table(
        ("task", "class", "clips recognised", "clips taken for another class"),
        (
            (row["task"], row["class"], f"{row['recognised']} of {row['of']}", f"{row['clips']}: {row['taken_for']}")
            for row in measured["failures"]
        ),
    )
    for name, lines in (("ablations", ablations), ("calibration", calibration), ("failures", failures)):
        part = "\n".join([f"<!-- {name} -->", *lines, f"<!-- end of {name} -->"])
        text = re.sub(f"<!-- {name} -->.*?<!-- end of {name} -->", lambda _, part=part: part, text, flags=re.DOTALL)
    return text


def with_table(text: str, results: list[TaskResult]) -> str:
    """The README with the table of these results between its marks."""
    part = "\n".join([START, *results_table(results), END])
    return re.sub(f"{START}.*?{END}", lambda _: part, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
