"""
Embed a sound library on a Ray cluster: decoding on CPU workers, the model on GPU or CPU actors, one index out.

    pip install ".[ray]"
    python examples/embed_ray.py SOURCE -o sounds.parquet --actors 4 --gpus-per-actor 1     # a local cluster
    ray job submit --working-dir . -- python examples/embed_ray.py SOURCE -o sounds.parquet # one that runs

The rows are those of `hf-clap embed`, which can also bring this index up to date, and the other way round. A worker or
an actor that dies is replaced and its recordings are embedded again; if the driver dies, run it again. SOURCE is a
folder; it and the model must be readable on every node. `embed_accelerate.py` also takes data sets.
"""

import argparse
import pickle
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import ray
import torch

import hf_clap
from hf_clap.corpus import Corpus
from hf_clap.corpus_embedding import (
    WindowReader,
    gather,
    groups_of,
    hear_part,
    index_info,
    read_recordings,
    window_reader,
    write_groups,
)
from hf_clap.index_file import EmbeddedRecording, IndexWriter

GROUPS_IN_A_TASK = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder of recordings")
    parser.add_argument("-o", "--output", required=True, help="the Parquet file to write")
    parser.add_argument("--model", default=hf_clap.TINY)
    parser.add_argument("--window", type=float, help="length of a window in s")
    parser.add_argument("--hop", type=float, help="seconds from one to the next")
    parser.add_argument("--batch-size", type=int, default=8, help="windows embedded at a time")
    parser.add_argument("--actors", type=int, default=1, help="models that run side by side")
    parser.add_argument("--gpus-per-actor", type=float, default=0)
    options = parser.parse_args()
    embed(options)


def embed(options: argparse.Namespace) -> None:
    # 1. What is to be done, and what has been done before
    corpus = Corpus(options.source)
    if corpus.folder is None:
        raise ValueError(
            f"{options.source} is a data set, whose rows one process has to read; use embed_accelerate.py."
        )
    embedder = hf_clap.pipeline(options.model, device="cpu", batch_size=options.batch_size).embedder
    reader = window_reader(embedder, options.window, options.hop)
    with IndexWriter(options.output, index_info(corpus, embedder, reader)) as writer:
        known = ray.put(writer.all_known())

        # 2. Recordings -> windows -> embeddings, in the order of the corpus
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        groups = [
            {"number": number, "group": pickle.dumps(group)}
            for number, group in enumerate(groups_of(corpus, options.batch_size))
        ]
        rows = ray.data.from_items(groups, override_num_blocks=-(-len(groups) // GROUPS_IN_A_TASK))
        # half a core, which also keeps Ray from making one stage of this and the actors
        rows = rows.flat_map(read, fn_args=(reader, known), num_cpus=0.5)
        rows = rows.map(
            Ear,
            fn_constructor_args=(options.model, options.batch_size, reader),
            num_cpus=1,
            num_gpus=options.gpus_per_actor,
            concurrency=options.actors,
        )

        # 3. Into the index, group by group
        write_groups(writer, gathered(groups, rows.iter_rows()), corpus.total)
    print(f"{writer.output}: {writer.recordings} recordings, {writer.windows} windows, {writer.kept} embedded before")
    if writer.failed:
        print(f"{writer.failed_file}: {writer.failed} recordings that cannot be read")


def read(row: dict[str, Any], reader: WindowReader, known: Any) -> Iterator[dict[str, Any]]:
    """On a CPU worker: the parts of a group."""
    torch.set_num_threads(1)
    done = ray.get(known)
    for part in read_recordings(reader, pickle.loads(row["group"]), lambda keys: done & set(keys)):
        yield {"number": row["number"], "part": pickle.dumps(part)}


class Ear:
    """On an actor: the model."""

    def __init__(self, model: str, batch_size: int, reader: WindowReader):
        torch.set_num_threads(1)
        self.embedder = hf_clap.pipeline(model, batch_size=batch_size).embedder
        self.reader = reader

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"part": pickle.dumps(hear_part(self.embedder, self.reader, pickle.loads(row["part"])))}


def gathered(groups: list[dict[str, Any]], rows: Iterable[dict[str, Any]]) -> Iterator[list[EmbeddedRecording]]:
    """On the driver: what became of each group, in order."""
    for number, parts in groupby(rows, key=itemgetter("number")):
        yield gather(pickle.loads(groups[number]["group"]), (pickle.loads(part["part"]) for part in parts))


if __name__ == "__main__":
    main()
