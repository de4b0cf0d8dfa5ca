"""
How well and how fast are sounds found by words?

    python tests/benchmarks/search.py --data-root EVAL [--vectors 1000000] [--threads 2] [--json RESULT.json]

First, folders of labelled sounds (`metadata.csv` with `file_name,label`) as one corpus: each label is a query, and of
the ten best moments so many are of recordings with that label, by exact search and through FAISS. Then, that many
synthetic vectors (blends of two of 5,000 random directions, with noise, float16): time of a query, recall of the ten
best against exact search, time and memory of building the FAISS file.
"""

import argparse
import csv
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import torch
from side_by_side import memory
from tqdm import tqdm

import hf_clap
from hf_clap.corpus import Corpus
from hf_clap.corpus_embedding import embed_corpus, index_info, window_reader
from hf_clap.index_file import EmbeddedRecording, IndexWriter

QUERIES = 200
DIRECTIONS = 5_000
CHUNK = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--window", type=float)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    tagger = hf_clap.pipeline(device="cpu")
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.data_root:
            result["precision"] = precision(tagger, options.data_root, Path(folder), options.window)
        if options.vectors:
            result["vectors"] = vectors(tagger, options.vectors, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def precision(tagger: hf_clap.HfClapPipeline, root: Path, folder: Path, window: float | None) -> list[dict]:
    done = embed_corpus(Corpus(root), folder / "sounds.parquet", tagger.embedder, window_s=window)
    exact, approximate = (hf_clap.SoundIndex(done.output, tagger, approximate=way) for way in (False, True))
    labels, task_of = {}, {}
    for metadata in sorted(root.glob("*/metadata.csv")):
        with metadata.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("label"):
                    labels[f"{metadata.parent.name}/{row['file_name']}"] = row["label"]
                    task_of.setdefault(row["label"], metadata.parent.name)
    rows = []
    for label, task in task_of.items():
        words = label.replace("_", " ")
        found = [[moment["path"] for moment in index.search(words, 10)] for index in (exact, approximate)]
        hits = [sum(labels.get(path) == label for path in paths) / 10 for paths in found]
        recordings = sum(other == label for other in labels.values())
        row = {"set": task, "label": words, "recordings": recordings, "exact": hits[0], "faiss": hits[1]}
        rows.append(row | {"shared": len(set(found[0]) & set(found[1])) / len(set(found[0]))})
    print(f"{done.recordings} recordings, {done.windows} windows, {done.failed} broken")
    print(f"{'label':30} {'recordings':>10} {'P@10 exact':>10} {'P@10 FAISS':>10} {'same ten':>9}")
    for row in rows:
        values = f"{row['exact']:10.1f} {row['faiss']:10.1f} {row['shared']:9.2f}"
        print(f"{row['label']:30} {row['recordings']:10} {values}")
    print(f"{'set':18} {'labels':>6} {'P@10 exact':>10} {'P@10 FAISS':>10} {'same ten':>9}")
    for task in [*dict.fromkeys(task_of.values()), "all"]:
        of_task = [row for row in rows if task in (row["set"], "all")]
        means = [statistics.mean(row[name] for row in of_task) for name in ("exact", "faiss", "shared")]
        print(f"{task:18} {len(of_task):6} {means[0]:10.3f} {means[1]:10.3f} {means[2]:9.3f}")
    return rows


def vectors(tagger: hf_clap.HfClapPipeline, count: int, folder: Path) -> dict:
    generator = np.random.default_rng(0)
    output = folder / "vectors.parquet"
    dim = tagger.model.config.projection_dim
    directions = unit(generator.normal(size=(DIRECTIONS, dim)))

    def blends(number: int) -> np.ndarray:
        first, second = generator.integers(DIRECTIONS, size=(2, number))
        weight = generator.uniform(0.5, 1, size=(number, 1))
        noise = generator.normal(0, 0.5 / dim**0.5, size=(number, dim))
        return unit(weight * directions[first] + (1 - weight) * directions[second] + noise)

    reader = window_reader(tagger.embedder)
    info = replace(index_info(Corpus("examples/audio"), tagger.embedder, reader), source="vectors")
    span = np.array([[0.0, 10.0]])
    with IndexWriter(output, info) as writer:
        for start in tqdm(range(0, count, CHUNK), desc="vectors", unit_scale=CHUNK, disable=None):
            embeds = blends(min(CHUNK, count - start)).astype(np.float16)
            writer.add(
                [
                    EmbeddedRecording(f"{start + place}.wav", f"{start + place:064x}", span, embed[None])
                    for place, embed in enumerate(embeds)
                ]
            )
    queries = blends(QUERIES).astype(np.float32)
    before, start = memory("VmRSS"), time.perf_counter()
    index = hf_clap.SoundIndex(output, tagger, approximate=True)
    result = {
        "vectors": count,
        "dim": dim,
        "build_seconds": time.perf_counter() - start,
        "build_peak_gb": memory("VmHWM") - before,
    }
    [file] = folder.glob("vectors.*.faiss")
    result["file_gb"] = file.stat().st_size / 1e9
    start = time.perf_counter()
    index = hf_clap.SoundIndex(output, tagger, approximate=True)
    result["open_seconds"] = time.perf_counter() - start
    result["faiss"], found = timed(index, queries)
    start = time.perf_counter()
    exact = hf_clap.SoundIndex(output, tagger, approximate=False)
    result["exact_open_seconds"] = time.perf_counter() - start
    result["exact"], expected = timed(exact, queries[:50])
    _, expected = exact.nearest(queries, 10)
    shared = [len(set(one) & set(other)) / 10 for one, other in zip(found, expected, strict=True)]
    result["recall"] = statistics.mean(shared)
    print(
        f"{count} vectors of {dim}: FAISS file of {result['file_gb']:.2f} GB made in {result['build_seconds']:.0f} s"
    )
    print(
        f"held at most while building {result['build_peak_gb']:.2f} GB, opened again in {result['open_seconds']:.2f} s"
    )
    for way in ("faiss", "exact"):
        print(f"{way:6} query {result[way]['median']:7.1f} ms  (99th percentile {result[way]['p99']:.1f})")
    print(f"recall@10 of FAISS against exact {result['recall']:.3f}")
    return result


def timed(index: hf_clap.SoundIndex, queries: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Milliseconds of single queries, and the rows that they find."""
    index.nearest(queries[:1], 10)
    seconds, found = [], []
    for query in queries:
        start = time.perf_counter()
        _, rows = index.nearest(query[None], 10)
        seconds.append(time.perf_counter() - start)
        found.append(rows[0])
    return {"median": 1e3 * statistics.median(seconds), "p99": 1e3 * float(np.quantile(seconds, 0.99))}, np.stack(
        found
    )


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
