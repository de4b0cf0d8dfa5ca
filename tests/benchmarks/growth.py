"""
Does anything slow down or grow? Embedding from a hundred to ten thousand clips, and as many files into an index as
`hf-clap embed` does it, tagging from ten to 5,000 labels.

    python tests/benchmarks/growth.py [--clips 10000] [--threads 2] [--json RESULT.json]

The clips are two-second arrays made as they are asked for, the files are of one second, the model is the bundled
checkpoint. Clips/s and the memory held are printed for each thousand; labels are encoded before the time is taken, as
in every call after the first.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from clap_pair import labels
from side_by_side import memory
from tqdm import tqdm

import hf_clap
from hf_clap import corpus_embedding
from hf_clap.corpus import Corpus

RATE, SECONDS, GROUP = 16000, 2, 8
LABEL_COUNTS = (10, 100, 1000, 5000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15, help="of tagging")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tagger = hf_clap.pipeline(device="cpu")
    result = {
        "clips": embed(tagger, options.clips),
        "files": index_files(tagger, options.clips),
        "labels": tag(tagger, options.rounds),
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def groups(clips: int) -> Iterator[list[dict]]:
    generator = np.random.default_rng(0)
    for _ in range(clips // GROUP):
        noise = generator.normal(0, 0.1, (GROUP, SECONDS * RATE)).astype(np.float32)
        yield [{"array": clip, "sampling_rate": RATE} for clip in noise]


def embed(tagger: hf_clap.HfClapPipeline, clips: int) -> list[dict]:
    for _ in tagger.embedder.clips(groups(100)):  # warm up
        pass
    rows: list[dict] = []
    for _ in marked(
        tqdm(tagger.embedder.clips(groups(clips)), total=clips // GROUP, desc="groups", disable=None), rows
    ):
        pass
    print_rows("clips", rows)
    return rows


def index_files(tagger: hf_clap.HfClapPipeline, files: int) -> list[dict]:
    rows: list[dict] = []
    write_groups = corpus_embedding.write_groups
    corpus_embedding.write_groups = lambda writer, groups, total: write_groups(writer, marked(groups, rows), total)
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for number in range(files):
            soundfile.write(f"{folder}/{number:06}.wav", generator.normal(0, 0.1, RATE), RATE, subtype="PCM_16")
        corpus_embedding.embed_corpus(Corpus(folder), f"{folder}/sounds.parquet", tagger.embedder)
    corpus_embedding.write_groups = write_groups
    print_rows("files", rows)
    return rows


def marked(groups: Iterable[list], rows: list[dict]) -> Iterator[list]:
    """The groups; for each thousand of their clips there comes a row with its speed."""
    done, since, start = 0, 0, time.perf_counter()
    for group in groups:
        done += len(group)
        yield group
        if done >= (100 if not rows else len(rows) * 1000):
            now = time.perf_counter()
            rows.append({"clips": done, "clips_per_second": (done - since) / (now - start)})
            rows[-1]["held_gb"] = memory("VmRSS")
            since, start = done, now


def print_rows(kind: str, rows: list[dict]) -> None:
    for row in rows:
        print(f"to {row['clips']:6} {kind} {row['clips_per_second']:8.1f} clips/s  holds {row['held_gb']:.2f} GB")


def tag(tagger: hf_clap.HfClapPipeline, rounds: int) -> list[dict]:
    clip = np.random.default_rng(1).normal(0, 0.1, 5 * RATE).astype(np.float32)
    sets = {count: labels(count) for count in LABEL_COUNTS}
    firsts, seconds = {}, {count: [] for count in LABEL_COUNTS}
    for count, names in sets.items():
        start = time.perf_counter()
        tagger(clip, names, sampling_rate=RATE, top_k=5)
        firsts[count] = time.perf_counter() - start
    for _ in range(rounds):
        for count, names in sets.items():
            start = time.perf_counter()
            tagger(clip, names, sampling_rate=RATE, top_k=5)
            seconds[count].append(time.perf_counter() - start)
    rows = []
    for count in LABEL_COUNTS:
        rows.append({"labels": count, "first_seconds": firsts[count], "seconds": statistics.median(seconds[count])})
        print(f"{count:6} labels {1e3 * rows[-1]['seconds']:8.1f} ms  (the first call {firsts[count]:.2f} s)")
    return rows


if __name__ == "__main__":
    main()
