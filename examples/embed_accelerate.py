"""
Embed a sound library with several processes, each on its own GPU or cores, on one machine or many; one index out.

    pip install ".[search]" accelerate
    accelerate launch --num_processes 8 examples/embed_accelerate.py SOURCE -o sounds.parquet

SOURCE is what `hf-clap embed` takes, readable by every process. The rows are those of `hf-clap embed`, which can also
bring this index up to date, and the other way round. If a process dies, run it again: what was done is kept.
"""

import argparse
from contextlib import nullcontext
from itertools import islice, takewhile
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

import hf_clap
from hf_clap.corpus import Corpus
from hf_clap.corpus_embedding import (
    gather,
    groups_of,
    hear_part,
    index_info,
    read_recordings,
    window_reader,
    write_groups,
)
from hf_clap.index_file import IndexWriter

GROUPS_IN_A_ROUND = 32  # of each process, between two exchanges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="as `hf-clap embed` takes it")
    parser.add_argument("-o", "--output", required=True, help="the Parquet file to write")
    parser.add_argument("--model", default=hf_clap.TINY)
    parser.add_argument("--window", type=float, help="length of a window in s")
    parser.add_argument("--hop", type=float, help="seconds from one to the next")
    parser.add_argument("--batch-size", type=int, default=8, help="windows embedded at a time")
    embed(parser.parse_args())


def embed(options: argparse.Namespace) -> None:
    # 1. Every process has the model on its own device; the first one has the index
    state = PartialState(cpu=not torch.accelerator.is_available())  # else processes without a GPU stay apart
    corpus = Corpus(options.source)
    embedder = hf_clap.pipeline(options.model, device=state.device, batch_size=options.batch_size).embedder
    reader = window_reader(embedder, options.window, options.hop)
    info = index_info(corpus, embedder, reader)
    with IndexWriter(options.output, info) if state.is_main_process else nullcontext() as writer:
        done = broadcast_object_list([writer and writer.all_known()])[0]

        # 2. Each takes its groups of every round, which are put together in the order of the corpus
        def embed_group(group: Any, stopped: Any) -> Any:
            parts = read_recordings(reader, group, lambda keys: done & set(keys))
            wanted = takewhile(lambda _: not stopped.is_set(), parts)
            return gather(group, (hear_part(embedder, reader, part) for part in wanted))

        def rounds() -> Any:
            groups = groups_of(corpus, options.batch_size)
            while turn := list(islice(groups, GROUPS_IN_A_ROUND * state.num_processes)):
                own = turn[state.process_index :: state.num_processes]
                parts = gather_object([list(embedder.map(embed_group, own))])  # a list of groups for each process
                yield from (parts[number % len(parts)][number // len(parts)] for number in range(len(turn)))

        # 3. The first one writes
        if writer:
            write_groups(writer, rounds(), corpus.total)
        else:
            for _ in rounds():
                pass
    if writer:
        print(f"{writer.output}: {writer.recordings} recordings, {writer.windows} windows, {writer.kept} kept")
        if writer.failed:
            print(f"{writer.failed_file}: {writer.failed} recordings that cannot be read")


if __name__ == "__main__":
    main()
