"""
Write what is generated from measurements: the cards in `model_cards/`, and the README's table.

    hf-clap eval --task all --data-root EVAL --setting zero-shot --setting probe --setting retrieval --output R.json
    python examples/make_model_cards.py [R.json]

`model_cards/tiny_results.json` keeps the results of the bundled checkpoint without their clips; a new R.json takes
their place, and without one the cards are made anew from what is kept.
"""

import argparse
import dataclasses
import re
import shutil
from pathlib import Path

import hf_clap
from hf_clap.benchmark_card import MEASURED_AS, benchmark_card, published_card, results_table
from hf_clap.model_card import write_card
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
    write_card(hf_clap.TINY, benchmark_card(hf_clap.TINY, results))
    shutil.copy(Path(hf_clap.TINY) / "README.md", CARDS / "tiny.md")

    # 2. Those of the public checkpoints that `hf-clap convert` brings here
    for kind in MEASURED_AS:
        published_card(kind).save(CARDS / f"{kind}.md")

    # 3. The README's table
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), results), encoding="utf-8")


def with_table(text: str, results: list[TaskResult]) -> str:
    """The README with the table of these results between its marks."""
    part = "\n".join([START, *results_table(results), END])
    return re.sub(f"{START}.*?{END}", lambda _: part, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
