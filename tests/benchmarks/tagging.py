"""
Tagging end to end: files to scores, hf_clap against transformers' `zero-shot-audio-classification` pipeline.

    python tests/benchmarks/tagging.py [--only bundled] [--rounds 3] [--threads 2] [--json RESULT.json]

A hundred five-second WAV files (44.1 kHz, 16 bit, synthesised) and fifty labels; loading models is not timed, encoding
labels is. transformers runs its own CLAP (HTS-AT tiny and RoBERTa base, random weights, 48 kHz) with its defaults and
with `batch_size=16`; hf_clap runs the same model, whose scores must agree to 1e-3, and its bundled checkpoint.
transformers would decode files with ffmpeg; here it gets arrays that hf_clap's faster reader made in the timed part.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import transformers
from clap_pair import TEMPLATE, labels, pair_folder
from side_by_side import DTYPES, Comparison, Run, count_flop, main

import hf_clap

RATE, CLIPS, LABELS = 44100, 100, labels(50)


def files() -> list[str]:
    """The clips, written once for this process and those that measure memory."""
    if "CLAP_CLIPS" not in os.environ:
        folder = tempfile.mkdtemp(prefix="clap_clips_")
        atexit.register(shutil.rmtree, folder)
        os.environ["CLAP_CLIPS"] = folder
        generator = np.random.default_rng(0)
        seconds = np.arange(5 * RATE) / RATE
        for index in range(CLIPS):
            tone = 0.3 * np.sin(2 * np.pi * generator.uniform(100, 4000) * seconds)
            noise = 0.05 * generator.normal(size=len(seconds))
            soundfile.write(Path(folder, f"{index}.wav"), tone + noise, RATE, subtype="PCM_16")
    return [str(Path(os.environ["CLAP_CLIPS"], f"{index}.wav")) for index in range(CLIPS)]


def peer(batch_size: int | None) -> Run:
    paths = files()
    tagger = transformers.pipeline(
        "zero-shot-audio-classification", model=str(pair_folder() / "transformers"), device="cpu"
    )
    options = {} if batch_size is None else {"batch_size": batch_size}

    def run() -> list:
        waveforms = [hf_clap.load_audio(path, 48000) for path in paths]
        return tagger(waveforms, candidate_labels=LABELS, hypothesis_template=TEMPLATE, **options)

    return run


def ours(model: str | None, dtype: str) -> Run:
    paths = files()
    tagger = hf_clap.pipeline(model or pair_folder() / dtype, device="cpu", dtype=dtype)

    def run(clips: int = CLIPS) -> list:
        tagger._label_embeds.clear()  # labels are encoded anew each round, as the peer does
        return tagger(paths[:clips], LABELS)

    return run


def flop(run: Any) -> int:
    """Of labels once and of all clips. A list of one clip is computed in this thread, where it can be counted."""
    labels = count_flop(lambda: run(0))
    return labels + CLIPS * (count_flop(lambda: run(1)) - labels)


def scores(results: list) -> np.ndarray:
    """(clips, labels)"""
    by_label: list[dict[str, Any]] = [{row["label"]: row["score"] for row in rows} for rows in results]
    return np.array([[scores[label] for label in LABELS] for scores in by_label])


def agree(mine: list, theirs: list) -> float:
    difference = np.abs(scores(mine) - scores(theirs)).max()
    assert difference < 1e-3, f"the scores disagree by {difference}"
    return float(difference)


if __name__ == "__main__":
    peers = {"transformers, its default": None, "transformers, batch_size=16": 16}
    contenders = {name: lambda size=size: peer(size) for name, size in peers.items()}
    comparisons = []
    for what, model in (("same model", None), ("bundled checkpoint", hf_clap.TINY)):
        for dtype in DTYPES:
            contenders[f"hf_clap, {what}, {dtype}"] = lambda model=model, dtype=dtype: ours(model, dtype)
            comparisons += [
                Comparison(
                    f"tagging, {what}, {dtype}, against {name.split(', ')[1]}",
                    f"hf_clap, {what}, {dtype}",
                    name,
                    agree if model is None else None,
                    flop,
                )
                for name in peers
            ]
    main(__doc__, contenders, comparisons, rounds=3)
