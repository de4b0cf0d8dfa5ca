"""Real loader workers: every row once, states that go on bit for bit, nothing touched or left behind."""

import functools
import json
import os
import random
import re
import signal
import time
from itertools import islice

import numpy as np
import pytest
import torch

from hf_clap import PairCollator, PairLoader
from hf_clap.data import interleave_pairs, load_pairs
from hf_clap.pair_columns import PairError
from numbered_clips import (
    FEATURES,
    SHARD_ROWS,
    assert_same_pairs,
    extractor,
    numbers,
    row,
    write_parquet,
    write_shards,
)

ROWS = sum(SHARD_ROWS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of eight Parquet shards of 52 clips in all."""
    return write_shards(tmp_path_factory.mktemp("shards"))


def labelled(row, label):
    return row["label"] == label


def is_odd(row):
    return row["label"] == 1


def loader_of(pairs, batch_size=4, workers=0, **options):
    return PairLoader(pairs, batch_size, list, workers, **options)


def torch_iterator(batches):
    """What holds the workers, behind an iteration of ours that has not ended."""
    return batches.gi_frame.f_locals["batches"]


def error_of(loader, after=lambda workers: None):
    """
    The error that an iteration ends with; `after` the first batch. The workers are ended at once: in a cycle of
    references with its error, torch's iterator would take 5 s and more for it, whenever it is collected.
    """
    iterator = None
    try:
        batches = iter(loader)
        iterator = torch_iterator(batches)
        for number, _ in enumerate(batches):
            if number == 0:
                after(iterator._workers)
            assert number < 1000
    except (PairError, RuntimeError) as error:
        return error
    finally:
        if hasattr(iterator, "_workers"):
            iterator._shutdown_workers()
    return None


def captions(pairs):
    return [pair.caption for pair in pairs]


def assert_same_batches(batches, expected):
    assert len(batches) == len(expected)
    for batch, same in zip(batches, expected, strict=True):
        assert_same_pairs(batch, same)


# -- every row once


@pytest.mark.parametrize(("files", "processes", "workers"), [(8, 2, 2), (3, 2, 4), (1, 1, 3)])
def test_workers_of_all_processes_have_every_row_once(tmp_path, files, processes, workers):
    folder = write_shards(tmp_path / "shards", SHARD_ROWS[-files:])
    stored = list(range(sum(SHARD_ROWS[-files:])))
    once, first_epoch, ends = [], [], []
    for rank in range(processes):
        part = load_pairs(folder, extractor(), training=False).split(rank, processes)
        for batch in loader_of(part, 4, workers):
            once += numbers(batch)
            ends.append(len(batch))
        # one pair at a time, until each worker has come to its second epoch
        loader = loader_of(load_pairs(folder, extractor(), buffer_size=3).split(rank, processes), 1, workers)
        done = set()
        for batch in loader:
            state = loader.state_dict()["workers"][-1]
            if state["epoch"] == 0:
                first_epoch += numbers(batch)
            else:
                done.add(state["worker"])
                if len(done) == workers:
                    break
    assert sorted(once) == stored
    assert sorted(first_epoch) == stored
    assert set(ends) > {4}  # the last batch of a worker may be smaller


def test_batches_of_training_are_full(shards):
    assert [len(batch) for batch in islice(loader_of(load_pairs(shards, extractor()), 7), 20)] == [7] * 20


def test_without_a_full_batch_the_sentence_says_what_to_do(shards):
    empty = load_pairs(shards, extractor(), where=functools.partial(labelled, label=5)).split(1, 2)
    for workers in (0, 2):
        error = error_of(loader_of(empty, 4, workers))
        assert isinstance(error, PairError)
        assert str(error).startswith("Process 1 of 2 has no full batch of 4 pairs; use fewer processes or ")
    assert list(loader_of(load_pairs(shards, extractor(), training=False, where=lambda row: False))) == []


# -- states


def sources(shards):
    return {
        "training": load_pairs(shards, extractor(), buffer_size=4, seed=3),
        "second of 2": load_pairs(shards, extractor(), buffer_size=4).split(1, 2),
        "interleaved": interleave_pairs(
            [load_pairs(shards, extractor(), buffer_size=4), load_pairs(shards, extractor(), seed=1)], [1, 2]
        ),
        "one pass": load_pairs(shards, extractor(), training=False),
    }


@pytest.mark.parametrize("source", ["training", "second of 2", "interleaved", "one pass"])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_loader_goes_on_from_its_state_bit_for_bit(shards, source, workers):
    loader = loader_of(sources(shards)[source], 3, workers)
    batches, states = [], [json.dumps(loader.state_dict())]
    for batch in islice(loader, 40):
        batches.append(batch)
        states.append(json.dumps(loader.state_dict()))
    if source == "one pass":
        assert sum(len(batch) for batch in batches) == ROWS
    else:
        assert len(batches) == 40
    if source == "training":
        assert max(state["epoch"] for state in loader.state_dict()["workers"]) >= (2 if workers < 3 else 1)
    for cut in (0, 1, 8, len(batches) - 4, len(batches) - 1):
        again = loader_of(sources(shards)[source], 3, workers)
        again.load_state_dict(json.loads(states[cut]))
        assert json.dumps(again.state_dict()) == states[cut]
        assert_same_batches(list(islice(again, len(batches) - cut)), batches[cut:])
        assert json.dumps(again.state_dict()) == states[-1]
    if source == "one pass":
        again = loader_of(sources(shards)[source], 3, workers)
        again.load_state_dict(json.loads(states[-1]))
        assert list(again) == []


def test_workers_that_ended_are_remembered(tmp_path):
    """One pass over shards of 2, 9 and 5 rows: the workers end one after the other."""
    stream = load_pairs(write_shards(tmp_path / "shards", (2, 9, 5)), extractor(), training=False)
    loader = loader_of(stream, 2, 3)
    batches, states = [], [loader.state_dict()]
    for batch in loader:
        batches.append(batch)
        states.append(loader.state_dict())
    assert [numbers(batch) for batch in batches] == [
        *([0, 1], [2, 3], [11, 12]),
        *([4, 5], [13, 14], [6, 7], [15], [8, 9], [10]),
    ]
    for cut, state in enumerate(states):
        again = loader_of(stream, 2, 3)
        again.load_state_dict(state)
        assert_same_batches(list(again), batches[cut:])


def test_states_go_from_no_worker_to_one_and_back(shards):
    stream = load_pairs(shards, extractor(), buffer_size=4)
    batches, states = [], {}
    for workers in (0, 1):
        loader = loader_of(stream, 4, workers)
        batches = list(islice(loader, 5))
        states[workers] = loader.state_dict()
    assert states[0] == states[1]
    assert len(batches) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_states_of_other_numbers_are_refused(shards, workers):
    stream = load_pairs(shards, extractor())
    loader = loader_of(stream.split(0, 2), 4, workers)
    next(iter(loader))
    state = loader.state_dict()
    for processes, others in ((2, 3), (1, workers), (3, workers)):
        again = loader_of(stream.split(0, processes), 4, others)
        again.load_state_dict(state)
        reached = []
        error = error_of(again, reached.append)
        assert isinstance(error, PairError)
        assert re.search(r"The state is that of \d (loader workers|readers .*); go on with as many, not", str(error))
        assert not reached  # it does not begin to go wrong


def test_states_of_another_order_are_refused(shards):
    loader = loader_of(load_pairs(shards, extractor(), buffer_size=20))
    states = [loader.state_dict()]
    next(iter(loader))
    for state in [*states, loader.state_dict()]:
        again = loader_of(load_pairs(shards, extractor(), buffer_size=5))
        again.load_state_dict(state)
        assert str(error_of(again)) == (
            "The state is that of a stream whose buffer_size was 20, and here it is 5; go on with the same."
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_without_a_state_starts_anew_and_sets_the_epoch(shards, workers):
    loader = loader_of(load_pairs(shards, extractor(), buffer_size=4), 4, workers)
    start = loader.state_dict()
    first = list(islice(loader, 6))
    state = loader.state_dict()
    assert state != start
    assert_same_batches(list(islice(loader, 6)), first)
    loader.load_state_dict(state)
    following = list(islice(loader, 6))
    assert_same_batches(list(islice(loader, 6)), first)  # the state is used once
    loader.set_epoch(1)
    other = list(islice(loader, 6))
    assert {each["epoch"] for each in loader.state_dict()["workers"]} == {1}
    assert len({tuple(numbers(pairs[0] + pairs[1])) for pairs in (first, following, other)}) == 3
    loader.load_state_dict(state)  # comes before the epoch that was set
    assert_same_batches(list(islice(loader, 6)), following)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_skipped_is_counted_over_workers_and_resumes(tmp_path, workers):
    rows = [row(number) for number in range(20)]
    rows[5] |= {"audio": {"bytes": b"no audio"}}
    rows[19] |= {"caption": None, "label": None}  # behind the last pair
    for shard in range(2):
        write_parquet(tmp_path / f"{shard}.parquet", rows, FEATURES)
    loader = loader_of(load_pairs(tmp_path, extractor(), training=False), 5, workers)
    assert loader.skipped == {"rows": 0, "audio": 0, "caption": 0}
    assert sum(len(batch) for batch in loader) == 36
    assert loader.skipped == {"rows": 40, "audio": 2, "caption": 2}

    training = load_pairs(tmp_path, extractor(), buffer_size=4, max_skipped=0.2)
    loader = loader_of(training, 5, workers)
    for _ in islice(loader, 8):
        pass
    skipped, state = loader.skipped, loader.state_dict()
    assert skipped["rows"] == 40 + skipped["audio"] + skipped["caption"]
    assert skipped["audio"] >= 1
    again = loader_of(training, 5, workers)
    again.load_state_dict(state)
    assert again.skipped == skipped
    for _ in islice(again, 8):
        pass
    assert again.skipped["rows"] == 80 + again.skipped["audio"] + again.skipped["caption"]
    assert again.skipped["audio"] > skipped["audio"]


# -- workers


def seeds():
    return torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_numbers_stay_as_they_are(shards, workers):
    before = seeds()
    loader = loader_of(load_pairs(shards, extractor()), 4, workers)
    for _ in range(2):
        list(islice(loader, 3))
    loader.load_state_dict(loader.state_dict())
    list(islice(loader, 3))
    assert seeds() == before


def test_errors_of_workers_arrive(shards):
    error = error_of(loader_of(load_pairs(shards, extractor(), audio="caption"), 4, 2))
    assert isinstance(error, PairError)
    assert re.search(
        r"Of \d rows, \d have audio that cannot be used and 0 have no caption; the last one: clip", str(error)
    )


def test_a_worker_that_is_killed_is_an_error_and_no_hang(shards):
    loader = loader_of(load_pairs(shards, extractor()), 4, 2, prefetch_factor=1)
    start = time.monotonic()
    error = error_of(loader, lambda workers: os.kill(workers[1].pid, signal.SIGKILL))
    assert re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(error))
    assert time.monotonic() - start < 10


def test_workers_end_with_an_iteration_that_is_left(shards):
    batches = iter(loader_of(load_pairs(shards, extractor()), 4, 2))
    next(batches)
    workers = list(torch_iterator(batches)._workers)
    assert all(worker.is_alive() for worker in workers)
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


def test_workers_may_be_spawned(shards):
    parts = [load_pairs(shards, extractor(), where=where) for where in (is_odd, functools.partial(labelled, label=0))]
    stream = interleave_pairs(parts, [1, 3])
    whole = loader_of(stream)
    expected = list(islice(whole, 3))
    state = whole.state_dict()
    expected = list(islice(whole, 6))[3:]
    loader = loader_of(stream, 4, 1, multiprocessing_context="spawn")
    loader.load_state_dict(state)
    assert_same_batches(list(islice(loader, 3)), expected)


def test_workers_that_outlive_an_iteration_are_refused(shards):
    with pytest.raises(PairError, match=r"^persistent_workers=True would keep workers that know nothing of a state"):
        loader_of(load_pairs(shards, extractor()), 4, 1, persistent_workers=True)


# -- real data


def test_the_development_data_stream_as_they_are(shared):
    loader = PairLoader(load_pairs(shared / "data" / "train", extractor(44_100), training=False), 64, captions, 2)
    read = [caption for batch in loader for caption in batch]
    assert len(read) == 4146
    assert all(caption.strip() for caption in read)
    assert loader.skipped == {"rows": 4146, "audio": 0, "caption": 0}


def test_features_are_computed_in_the_workers(shards, processor):
    stream = load_pairs(shards, processor.feature_extractor)
    loaders = [PairLoader(stream, 4, PairCollator(processor), workers) for workers in (0, 1)]
    for batch, same in zip(*(islice(loader, 3) for loader in loaders), strict=True):
        assert batch.keys() == same.keys()
        for name in batch.keys() - {"return_loss"}:
            assert torch.equal(batch[name], same[name]), name
