"""Streams of pairs over real files: every row once, every source, what is skipped, and states to go on from."""

import copy
import io
import json
import logging
import tarfile
import threading
import zipfile
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, islice, pairwise

import datasets
import numpy as np
import pyarrow as pa
import pytest
import soxr
import torch

from hf_clap import audio, pair_columns
from hf_clap.audio import load_audio
from hf_clap.data import interleave_pairs, load_pairs
from hf_clap.pair_columns import PairError
from hf_clap.waveform import AudioError
from numbered_clips import (
    CROP,
    FEATURES,
    RATE,
    SHARD_ROWS,
    assert_same_pairs,
    encoded,
    extractor,
    identify,
    numbers,
    row,
    samples_of,
    write_parquet,
    write_shards,
)

ROWS = sum(SHARD_ROWS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of eight Parquet shards of 52 clips in all."""
    return write_shards(tmp_path_factory.mktemp("shards"))


def rows_as(rows):
    """A data set of unknown features, as a generator gives it."""
    return datasets.IterableDataset.from_generator(lambda: iter(rows))


def epoch_of(stream, epoch):
    """The pairs of one epoch of training, the stream's next or a later one."""
    pairs = []
    for pair in stream:
        at = stream.state_dict()["epoch"]
        if at > epoch:
            break
        if at == epoch:
            pairs.append(pair)
    return pairs


def resumed(stream, state, count=None):
    stream = copy.copy(stream)
    stream.load_state_dict(json.loads(json.dumps(state)))
    return list(islice(stream, count))


# -- every row once


@pytest.mark.parametrize(
    "some",
    [
        lambda rows: rows.take(5),
        lambda rows: rows.skip(3).filter(lambda row: True),
        lambda rows: datasets.interleave_datasets([rows, rows.take(4)]),
        lambda rows: datasets.concatenate_datasets([rows, rows.take(2)]),
    ],
    ids=["take", "skip", "interleave", "concatenate"],
)
def test_some_rows_of_a_data_set_are_those_that_it_has(shards, some):
    """`datasets` itself takes a few of each shard, where it reads by shards."""
    stored = datasets.load_dataset("parquet", data_files=f"{shards}/*.parquet", split="train")
    rows = some(stored.to_iterable_dataset(num_shards=8))
    expected = [int(row["caption"].removeprefix("clip ")) for row in rows.decode(False)]
    one_pass, training = (load_pairs(rows, extractor(), training=training) for training in (False, True))
    assert numbers(one_pass) == expected
    parts = [numbers(one_pass.split(rank, 2)) for rank in range(2)]
    assert sorted(chain(*parts)) == sorted(expected)
    for rank, part in enumerate(parts):
        assert sorted(numbers(islice(training.split(rank, 2), len(part)))) == sorted(part)


@pytest.mark.parametrize(
    ("files", "readers"), [(8, 1), (8, 3), (8, 4), (8, 8), (3, 8), (1, 3)], ids=lambda number: str(number)
)
def test_all_readers_together_have_every_row_once_in_every_epoch(tmp_path, files, readers):
    folder = write_shards(tmp_path / "shards", SHARD_ROWS[-files:])
    stored = list(range(sum(SHARD_ROWS[-files:])))
    one_pass = load_pairs(folder, extractor(), training=False)
    parts = [numbers(one_pass.split(rank, readers)) for rank in range(readers)]
    assert all(parts)
    assert all(part == sorted(part) for part in parts)
    assert sorted(chain(*parts)) == stored

    training = load_pairs(folder, extractor(), buffer_size=4)
    orders = []
    for epoch in (0, 1, 2):
        order = numbers(chain(*(epoch_of(training.split(rank, readers), epoch) for rank in range(readers))))
        assert sorted(order) == stored
        orders.append(order)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_one_pass_is_in_the_stored_order_and_training_mixes_shards_and_rows(shards):
    assert numbers(load_pairs(shards, extractor(), training=False)) == list(range(ROWS))
    order = numbers(epoch_of(load_pairs(shards, extractor()), 0))  # in one buffer
    assert sorted(order) == list(range(ROWS))
    assert np.abs(np.corrcoef(order, range(ROWS))[0, 1]) < 0.4
    assert min(Counter(np.sign(np.diff(order))).values()) > ROWS / 4  # rows of a shard are not in a run


def test_every_block_of_every_epoch_has_an_order_of_its_own(tmp_path):
    stream = load_pairs(write_shards(tmp_path / "shards", (24,)), extractor(), buffer_size=8)
    order = np.array(numbers(islice(stream, 72))).reshape(9, 8)  # blocks of three epochs
    starts = [0, 8, 16] * 3
    assert [sorted(block) for block in order] == [list(range(start, start + 8)) for start in starts]
    assert len({tuple(block - start) for block, start in zip(order, starts, strict=True)}) == 9


def test_a_reader_without_rows_in_one_epoch_waits_for_the_next_one(tmp_path):
    folder = write_shards(tmp_path / "shards", (4, 4, 4, 4))
    stream = load_pairs(folder, extractor(), where=lambda row: row["caption"] in ("clip 0", "clip 1"))
    for rank in range(4):  # three of the four shards are empty for each
        assert set(numbers(islice(stream.split(rank, 4), 20))) == {0, 1}
    assert list(load_pairs(folder, extractor(), where=lambda row: False)) == []


def test_readers_beyond_the_rows_have_none(tmp_path):
    folder = write_shards(tmp_path / "shards", (2,))
    one_pass = load_pairs(folder, extractor(), training=False)
    training = load_pairs(folder, extractor())
    assert [numbers(one_pass.split(rank, 4)) for rank in range(4)] == [[0], [1], [], []]
    assert [numbers(islice(training.split(rank, 4), 2)) for rank in range(4)] == [[0, 0], [1, 1], [], []]


def test_a_process_must_be_one_of_those_there_are(shards):
    stream = load_pairs(shards, extractor())
    for rank, processes in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(PairError, match=f"^There is no process {rank} among {processes}; they count from 0.$"):
            stream.split(rank, processes)


def test_a_part_is_not_split_again(shards):
    """Its pairs differ from epoch to epoch: it is not what somebody holds out."""
    one, other = (load_pairs(shards, extractor()).split(rank, 2) for rank in range(2))
    assert set(numbers(epoch_of(one, 0))) & set(numbers(epoch_of(other, 1)))
    for again in ((0, 1), (1, 2)):
        with pytest.raises(PairError, match=r"^The stream is split already; pass the whole one, .* with `where`.$"):
            one.split(*again)


# -- sources


def with_paths(folder):
    for number in range(5):
        (folder / f"{number}.wav").write_bytes(encoded(samples_of(number)))
    return folder


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def parquet_folder(tmp_path):
    write_shards(tmp_path, (2, 3))
    return tmp_path, {}


def parquet_glob(tmp_path):
    write_shards(tmp_path, (2, 3))
    return f"{tmp_path}/train-*.parquet", {}


def parquet_file(tmp_path):
    write_shards(tmp_path, (5,))
    return tmp_path / "train-00000-of-00001.parquet", {}


def downloaded(tmp_path):
    return parquet_folder(tmp_path)[0], {"streaming": False}


def tar_with_json(tmp_path):
    for shard, some in enumerate(((0, 1, 2), (3, 4))):
        members = []
        for number in some:
            members += [
                (f"{number}.flac", encoded(samples_of(number), file_format="FLAC", subtype="PCM_24")),
                (f"{number}.json", json.dumps({"caption": f"clip {number}"}).encode()),
            ]
        tar_of(tmp_path / f"{shard}.tar", members)
    return f"{tmp_path}/*.tar", {"caption": "json.caption"}


def tar_with_text(tmp_path):
    members = []
    for number in range(5):
        members += [
            (f"{number}.flac", encoded(samples_of(number), file_format="FLAC", subtype="PCM_24")),
            (f"{number}.txt", f"clip {number}\n".encode()),
        ]
    tar_of(tmp_path / "clips.tar", members)
    return tmp_path / "clips.tar", {}


def audio_folder(tmp_path):
    lines = [f"{number}.wav,clip {number}" for number in range(5)]
    (with_paths(tmp_path) / "metadata.csv").write_text("\n".join(["file_name,caption", *lines]))
    return tmp_path, {}


def audio_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        for number in range(5):
            archive.writestr(f"{number}.wav", encoded(samples_of(number)))
        lines = [json.dumps({"file_name": f"{number}.wav", "caption": f"clip {number}"}) for number in range(5)]
        archive.writestr("metadata.jsonl", "\n".join(lines))
    return tmp_path, {}


def json_lines(tmp_path):
    lines = [json.dumps({"sound": f"{with_paths(tmp_path)}/{n}.wav", "text": f"clip {n}"}) for n in range(5)]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    return tmp_path / "clips.jsonl", {"audio": "sound"}


def comma_separated(tmp_path):
    lines = [f"{with_paths(tmp_path)}/{number}.wav,clip {number}" for number in range(5)]
    (tmp_path / "clips.csv").write_text("\n".join(["audio,text", *lines]))
    return tmp_path / "clips.csv", {}


def loaded(tmp_path):
    return datasets.load_dataset(str(parquet_folder(tmp_path)[0]), split="train"), {}


def streamed_as_tables(tmp_path):
    return streamed(tmp_path)[0].with_format("arrow"), {}


def dataset_dict(tmp_path):
    return datasets.DatasetDict(other=loaded(tmp_path)[0]), {"split": "other"}


def streamed(tmp_path):
    return datasets.load_dataset(str(parquet_folder(tmp_path)[0]), split="train", streaming=True), {}


def generated(tmp_path):
    rows = [{"audio": encoded(samples_of(n)), "caption": f"clip {n}", "label": n % 2} for n in range(5)]
    return datasets.IterableDataset.from_generator(lambda: iter(rows), features=FEATURES), {}


def of_unknown_features(tmp_path):
    rows = [
        {"wave": {"array": samples_of(n), "sampling_rate": RATE, "path": "zip://a::b"}, "said": {"en": f"clip {n}"}}
        for n in range(5)
    ]
    return rows_as(rows), {"audio": "wave", "caption": "said.en"}


@pytest.mark.parametrize(
    "source",
    [
        parquet_folder,
        parquet_glob,
        parquet_file,
        downloaded,
        tar_with_json,
        tar_with_text,
        audio_folder,
        audio_archive,
        json_lines,
        comma_separated,
        loaded,
        streamed_as_tables,
        dataset_dict,
        streamed,
        generated,
        of_unknown_features,
    ],
    ids=lambda source: source.__name__,
)
def test_every_source_gives_the_same_pairs(tmp_path, monkeypatch, source):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    data, options = source(tmp_path / "data")
    pairs = list(load_pairs(data, extractor(), training=False, **options))
    assert [(identify(pair), len(pair.audio), pair.caption) for pair in pairs] == [
        ((number, 0), 400 + 29 * number, f"clip {number}") for number in range(5)
    ]
    training = load_pairs(data, extractor(), **options)
    assert sorted(numbers(epoch_of(training, 0))) == list(range(5))


def test_the_data_set_that_is_given_stays_as_it_is(tmp_path):
    data = streamed(tmp_path)[0]
    features = data.features
    load_pairs(data, extractor())
    assert data.features == features == FEATURES


def test_folders_without_metadata_are_labels(tmp_path):
    for number, name in enumerate(("dog", "rain")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.wav").write_bytes(encoded(samples_of(number)))
    pairs = load_pairs(tmp_path, extractor(), training=False, template="the sound of {}")
    assert [pair.caption for pair in pairs] == ["the sound of dog", "the sound of rain"]


# -- captions


def captions(rows, **options):
    rows = [{"audio": encoded(samples_of(number))} | each for number, each in enumerate(rows)]
    options = {"training": False} | options
    return [pair.caption for pair in load_pairs(rows_as(rows), extractor(), **options)]


def test_labels_make_captions_where_there_are_none(tmp_path):
    features = datasets.Features(
        {**FEATURES, "label": datasets.List(datasets.ClassLabel(names=["rain", "a {dog}", "wind"]))}
    )
    rows = [row(0) | {"label": [0]}, row(1) | {"label": [1, 2], "caption": " "}, row(2) | {"label": [], "caption": ""}]
    rows += [row(3) | {"label": [2], "caption": None}]
    write_parquet(tmp_path / "a.parquet", rows, features)
    stream = load_pairs(tmp_path / "a.parquet", extractor(), training=False, template="{}!")
    assert [pair.caption for pair in stream] == ["clip 0", "a {dog}, wind!", "wind!"]
    assert stream.skipped == {"rows": 4, "audio": 0, "caption": 1}
    labels = load_pairs(
        tmp_path / "a.parquet", extractor(), training=False, label="label", template=("a {x} {}", "{}")
    )
    assert [pair.caption for pair in labels] == ["a {x} rain", "a {x} a {dog}, wind", "a {x} wind"]


def test_class_labels_are_named_and_unknown_ones_are_none(tmp_path):
    write_parquet(tmp_path / "a.parquet", [row(0), row(1), row(2) | {"label": -1}])
    stream = load_pairs(tmp_path, extractor(), training=False, label="label")
    assert [pair.caption for pair in stream] == ["this is a sound of rain", "this is a sound of a dog"]
    assert stream.skipped == {"rows": 3, "audio": 0, "caption": 1}


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_arrays_of_labels_are_read_as_lists_are(make):
    of_lists = datasets.Features({**FEATURES, "label": datasets.List(FEATURES["label"])})
    for label, kind, expected in ((make(1), FEATURES, "a dog"), (make([1, 0]), of_lists, "a dog, rain")):
        rows = [{"audio": encoded(samples_of(0)), "caption": None, "label": label}]
        source = datasets.IterableDataset.from_generator(lambda rows=rows: iter(rows), features=kind)
        stream = load_pairs(source, extractor(), training=False, label="label", template="{}")
        assert [pair.caption for pair in stream] == [expected]
    assert captions([{"captions": np.array(["", " one", "two"])}]) == ["one"]


def test_text_is_stripped_and_lists_of_labels_are_joined():
    rows = [{"caption": " a bell\n", "labels": "x"}, {"caption": None, "labels": ["a", " ", "b"]}]
    assert captions(rows) == ["a bell", "this is a sound of a, b"]
    assert captions([{"txt": "a bell"}]) == ["a bell"]


def test_one_caption_of_a_list_is_drawn_in_each_epoch_and_the_first_one_otherwise():
    choices = ["one", "two", "three"]
    assert captions([{"captions": ["", *choices]}] * 2) == ["one", "one"]
    rows = rows_as([{"audio": encoded(samples_of(0)), "captions": choices}] * 2)
    drawn = [pair.caption for pair in islice(load_pairs(rows, extractor()), 300)]
    assert min(Counter(drawn).values()) > 70
    assert set(Counter(drawn)) == set(choices)
    again = [pair.caption for pair in islice(load_pairs(rows, extractor()), 300)]
    other = [pair.caption for pair in islice(load_pairs(rows, extractor(), seed=1), 300)]
    assert drawn == again != other


def test_one_template_of_several_is_drawn_in_each_epoch_and_the_first_one_otherwise():
    templates = ["this is {}", "I hear {}"]
    assert captions([{"label": "rain"}], template=templates) == ["this is rain"]
    rows = rows_as([{"audio": encoded(samples_of(0)), "label": "rain"}])
    drawn = Counter(pair.caption for pair in islice(load_pairs(rows, extractor(), template=templates), 200))
    assert set(drawn) == {"this is rain", "I hear rain"}
    assert min(drawn.values()) > 70


def test_where_sees_rows_as_they_are_stored(shards):
    seen = []

    def where(row):
        seen.append(row)
        return row["label"] == 1

    assert numbers(load_pairs(shards, extractor(), training=False, where=where)) == list(range(1, ROWS, 2))
    np.testing.assert_array_equal(load_audio(seen[0]["audio"]["bytes"], RATE), samples_of(0))
    assert {**seen[0], "audio": None} == {"audio": None, "caption": "clip 0", "label": 0}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"caption": "text"}, "^There is no column text; there are audio, caption, label.$"),
        ({"audio": "json.wave"}, "^There is no column json.wave; there are audio, caption, label.$"),
        ({"buffer_size": 0}, "^buffer_size must be at least 1, and max_skipped a share between 0 and 1.$"),
        ({"max_skipped": 5}, "^buffer_size must be at least 1, and max_skipped a share between 0 and 1.$"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(shards, options, sentence):
    with pytest.raises(PairError, match=sentence):
        load_pairs(shards, extractor(), **options)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("a sound", "^Template 'a sound' does not say where the label goes; write {} in its place, once"),
        ([], "^There is no template; pass at least one"),
    ],
)
def test_templates_that_cannot_be_are_one_sentence(shards, template, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_pairs(shards, extractor(), template=template)


@pytest.mark.parametrize(
    ("features", "options", "sentence"),
    [
        (
            {"a": "Audio", "b": "Audio", "text": "string"},
            {},
            "^Which column is the audio? Pass audio=… with one of a, b",
        ),
        ({"wav": "string", "text": "string"}, {}, "^Which column is the audio? Pass audio=… with one of wav, text.$"),
        (
            {"audio": "Audio", "words": "string"},
            {},
            "^Which column is the caption? Pass caption=… or label=… of audio, ",
        ),
        (
            {"audio": "Audio", "label": "int64"},
            {},
            "^The column label holds numbers without names; map it to text, or",
        ),
    ],
)
def test_columns_that_are_missing_or_ambiguous_are_named(features, options, sentence):
    types = {name: datasets.Audio() if kind == "Audio" else datasets.Value(kind) for name, kind in features.items()}
    rows = datasets.Dataset(pa.Table.from_pylist([{}], schema=datasets.Features(types).arrow_schema))
    with pytest.raises(PairError, match=sentence.replace("?", r"\?")):
        load_pairs(rows, extractor(), **options)


def test_transforms_on_the_fly_are_refused(shards):
    rows = datasets.load_dataset("parquet", data_files=f"{shards}/*.parquet", split="train")
    with pytest.raises(PairError, match=r"Transforms on the fly .* are not read; use the data set's map"):
        load_pairs(rows.with_transform(lambda batch: batch), extractor())
    assert len(list(load_pairs(rows.with_format("torch", columns=["label"]), extractor(), training=False))) == ROWS


def test_no_rows_no_columns_and_no_split_are_one_sentence(tmp_path):
    with pytest.raises(PairError, match=r"^Which column is the audio"):
        load_pairs(rows_as([]), extractor())
    with pytest.raises(PairError, match=r"^There is no split train; pass split=… with one of other.$"):
        load_pairs(dataset_dict(tmp_path)[0], extractor())
    with pytest.raises(PairError, match=r"^The data set has no rows.$"):
        load_pairs(dataset_of(0, rows=0), extractor())


@pytest.mark.parametrize(("source", "kind"), [(None, "NoneType"), ([{"audio": [0.0] * 800}], "dict")])
def test_what_is_no_source_is_refused_by_its_kind(source, kind):
    sentence = f"^A {kind} is no source of rows; name files, or make rows a data set with datasets.Dataset.from_list.$"
    with pytest.raises(PairError, match=sentence):
        load_pairs(source, extractor())


def test_files_have_no_splits_and_names_are_not_empty(shards):
    with pytest.raises(PairError, match=r"^Files are of no split; name those of 'test' alone, and leave out split.$"):
        load_pairs(f"{shards}/*.parquet", extractor(), split="test")
    for source in ("", [""]):
        with pytest.raises(PairError, match=r"^An empty name is no source of rows; name a data set, "):
            load_pairs(source, extractor())


@pytest.mark.parametrize("member", [0, 4])
def test_archives_that_are_cut_are_one_sentence(tmp_path, member):
    file, _ = tar_with_text(tmp_path)
    with tarfile.open(file) as tar:
        end = tar.getmembers()[member].offset_data + 10
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(PairError, match=r" is damaged \(.*\); copy or download it again.$"):
        list(load_pairs(str(file), extractor(), training=False))


def test_a_file_is_read_from_its_address(shards):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    name = min(path.name for path in shards.glob("*.parquet"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=shards)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{name}"
        read = [identify(pair) for pair in load_pairs(address, extractor(), training=False)]
        server.shutdown()
    assert read == [identify(pair) for pair in load_pairs(str(shards / name), extractor(), training=False)]
    assert len(read) > 1


# -- audio


def test_audio_is_decoded_at_the_rate_of_the_extractor():
    generator = np.random.default_rng(0)
    clips = {rate: generator.uniform(-0.5, 0.5, (rate, 2)).astype(np.float32) for rate in (8000, 11_025, 44_100)}
    rows = [{"audio": encoded(samples, rate), "text": str(rate)} for rate, samples in clips.items()]
    for pair in load_pairs(rows_as(rows), extractor(), training=False):
        mono = clips[int(pair.caption)].mean(axis=1, dtype=np.float32)
        assert (pair.audio.dtype, pair.audio.shape) == (np.float32, (RATE,))
        np.testing.assert_allclose(pair.audio, soxr.resample(mono, int(pair.caption), RATE)[:RATE], atol=1e-6)


def crops(stream, count):
    return [(*identify(pair), len(pair.audio)) for pair in islice(stream, count)]


def test_crops_are_drawn_from_the_seed_and_lie_within_the_clip(shards):
    count = 6 * ROWS
    drawn = crops(load_pairs(shards, extractor()), count)
    lengths = [400 + 29 * number for number, _, _ in drawn]
    assert [length for _, _, length in drawn] == [min(CROP, length) for length in lengths]
    assert all(0 <= start <= max(0, length - CROP) for (_, start, _), length in zip(drawn, lengths, strict=True))
    shares = [start / (length - CROP) for (_, start, _), length in zip(drawn, lengths, strict=True) if length > CROP]
    assert abs(np.mean(shares) - 0.5) < 0.06  # 228 draws, 3 standard deviations
    assert np.histogram(shares, 4, (0, 1))[0].min() > 35
    assert crops(load_pairs(shards, extractor()), count) == drawn
    assert crops(load_pairs(shards, extractor(), seed=1), count) != drawn


def test_epochs_differ_in_the_crop_of_one_clip_also_when_started_anew(tmp_path):
    write_parquet(tmp_path / "a.parquet", [row(90)])
    stream = load_pairs(tmp_path, extractor())
    starts = [start for _, start, _ in crops(stream, 20)]
    assert len(set(starts)) > 15
    first = []
    for epoch in range(5):
        stream.set_epoch(epoch)
        first.append(crops(stream, 1)[0][1])
        assert stream.state_dict()["epoch"] == epoch
    assert first[0] == starts[0]
    assert len(set(first)) == 5


def test_a_crop_does_not_keep_the_whole_clip_in_memory(shards):
    assert all(pair.audio.base is None for pair in islice(load_pairs(shards, extractor()), ROWS))


def test_fusion_hears_whole_clips(shards):
    assert {start for _, start, _ in crops(load_pairs(shards, extractor(crop="fusion")), ROWS)} == {0}
    assert max(len(pair.audio) for pair in islice(load_pairs(shards, extractor(crop="fusion")), ROWS)) > CROP


@pytest.mark.parametrize("rate", [RATE, 11_025])
def test_a_long_clip_gives_the_stretch_that_a_crop_of_the_whole_gives(tmp_path, monkeypatch, rate):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (25 * rate, 2)).astype(np.float32)  # three blocks
    write_parquet(tmp_path / "a.parquet", [{"audio": {"bytes": encoded(samples, rate)}, "caption": "noise"}])
    crop = extractor(8000)
    whole = load_audio(encoded(samples, rate), 8000)
    expected = list(islice(load_pairs(tmp_path, crop), 8))
    monkeypatch.setattr(pair_columns, "LONG_CLIP_S", 3.0)
    pairs = list(islice(load_pairs(tmp_path, crop), 8))
    assert_same_pairs(pairs, expected)
    for pair in pairs:
        assert len(pair.audio) == 400
        (start,) = np.flatnonzero(whole == pair.audio[0])
        np.testing.assert_array_equal(whole[start : start + 400], pair.audio)
    monkeypatch.setattr(pair_columns, "LONG_CLIP_S", 0.01)  # shorter than the crop
    assert_same_pairs(islice(load_pairs(tmp_path, crop), 8), expected)
    monkeypatch.setattr(crop, "max_length_s", 30.0)
    np.testing.assert_array_equal(next(iter(load_pairs(tmp_path, crop))).audio, whole)


# -- what is skipped

WAV = encoded(samples_of(9))
BAD_AUDIO = {
    "truncated": {"bytes": WAV[: len(WAV) // 2]},
    "garbage": {"bytes": b"no audio" * 100},
    "empty": {"bytes": b""},
    "nothing": {"bytes": None},
    "missing": {"path": "/not/here.wav"},
    "in a missing archive": {"path": "zip://a.wav::/not/here.zip"},
    "of no protocol": {"path": "nothing://a.wav"},
    "not finite": {"bytes": encoded(np.full(400, np.nan, np.float32))},
}


@pytest.fixture
def records(caplog):
    caplog.set_level(logging.WARNING, logger="hf_clap")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("training", [False, True])
def test_bad_rows_are_skipped_counted_and_reported_once(tmp_path, records, training):
    bad = [row(30) | {"audio": audio} for audio in BAD_AUDIO.values()]
    bad += [row(31) | {"caption": caption, "label": None} for caption in ("", None)]
    write_parquet(tmp_path / "a.parquet", [*bad[:5], *map(row, range(30)), *bad[5:]])
    stream = load_pairs(tmp_path, extractor(), training=training, max_skipped=0.1)
    pairs = epoch_of(stream, 0) if training else list(stream)
    assert sorted(numbers(pairs)) == list(range(30))
    if training:
        # what is read of the next epoch adds to the numbers
        stream = load_pairs(tmp_path, extractor(), max_skipped=1.0)
        for _ in islice(stream, 300):
            pass
        assert 72 <= stream.skipped["audio"] <= 80
        assert 18 <= stream.skipped["caption"] <= 20
    else:
        assert stream.skipped == {"rows": 40, "audio": 8, "caption": 2}
    messages = records()
    assert len(messages) == (4 if training else 2)
    assert all(message.endswith("; it is skipped, and further ones are only counted.") for message in messages)
    assert any(message.startswith("A row has no text in caption or label;") for message in messages)


@pytest.mark.parametrize("kind", BAD_AUDIO)
def test_bad_audio_of_every_kind_is_named_in_the_warning(tmp_path, records, kind):
    write_parquet(tmp_path / "a.parquet", [row(0), row(1) | {"audio": BAD_AUDIO[kind]}])
    stream = load_pairs(tmp_path, extractor(), training=False)
    assert numbers(stream) == [0]
    assert stream.skipped == {"rows": 2, "audio": 1, "caption": 0}
    (message,) = records()
    named = {
        "truncated": "The encoded audio is truncated: its header promises 0.04 s and the file holds 0.02 s; copy or",
        "garbage": "The encoded audio is not an audio file that can be read; convert it to WAV or FLAC; it is",
        "empty": "The encoded audio is empty (0 bytes); record, copy or download it again; it is skipped",
        "nothing": "The audio dictionary holds no audio;",
        "missing": "here.wav does not exist in the folder '/not'; check the path; it is skipped",
        "in a missing archive": "a.wav cannot be read where it lies (FileNotFoundError); it is skipped",
        "of no protocol": "a.wav cannot be read where it lies (ValueError); it is skipped",
        "not finite": "The encoded audio holds NaN or infinite samples, or some beyond a million; write it again;",
    }
    assert message.startswith(named[kind])


def test_too_many_bad_rows_are_fatal_in_one_sentence(tmp_path):
    rows = [row(0) | {"audio": BAD_AUDIO["empty"]}] * 5 + [row(1)] * 10 + [row(0) | {"caption": None, "label": None}]
    write_parquet(tmp_path / "a.parquet", rows)
    assert len(list(load_pairs(tmp_path, extractor(), training=False, max_skipped=0.06))) == 10
    sentence = (
        "^Of 16 rows, 5 have audio that cannot be used and 1 have no caption; the last one: A row has no text in "
        r"caption or label. Mend the data, or raise max_skipped=0.05.$"
    )
    with pytest.raises(PairError, match=sentence):
        list(load_pairs(tmp_path, extractor(), training=False))
    with pytest.raises(PairError, match=r"^Of 1 rows, 1 have audio that cannot be used"):
        list(load_pairs(tmp_path, extractor(), training=False, max_skipped=0))


def test_the_share_counts_all_rows_once_there_are_many(tmp_path):
    """12 bad rows of 240 are 5 %; one more is too many, wherever it comes."""
    bad = row(0) | {"audio": BAD_AUDIO["empty"]}
    good = row(1)
    spread = ([*[good] * 19, bad]) * 12
    write_parquet(tmp_path / "a.parquet", spread)
    stream = load_pairs(tmp_path, extractor(), training=False)
    assert len(list(stream)) == 228
    assert stream.skipped == {"rows": 240, "audio": 12, "caption": 0}
    write_parquet(tmp_path / "a.parquet", [*spread, bad])
    with pytest.raises(PairError, match=r"^Of 241 rows, 13 have audio"):
        list(load_pairs(tmp_path, extractor(), training=False))


@pytest.mark.parametrize("training", [False, True])
def test_a_source_of_which_nothing_can_be_used_ends(tmp_path, training):
    write_parquet(tmp_path / "a.parquet", [row(0) | {"audio": BAD_AUDIO["garbage"]}] * 3)
    stream = load_pairs(tmp_path, extractor(), training=training, max_skipped=1.0)
    with pytest.raises(PairError, match=r"^Of 3 rows, 3 have audio that .* and not one can be used; mend the data.$"):
        next(iter(stream))


@pytest.fixture(scope="module")
def one_bad_shard(tmp_path_factory):
    """Four shards, of which the last has one row, which is broken."""
    folder = tmp_path_factory.mktemp("one bad")
    for shard in range(3):
        write_parquet(folder / f"{shard}.parquet", [row(4 * shard + number) for number in range(4)])
    write_parquet(folder / "3.parquet", [row(30) | {"audio": BAD_AUDIO["garbage"]}])
    return folder


def test_a_reader_of_nothing_but_a_broken_shard_leaves_the_rest_alone(one_bad_shard):
    stream = load_pairs(f"{one_bad_shard}/*.parquet", extractor(), training=False)
    assert [len(list(stream.split(reader, 4))) for reader in range(4)] == [4, 4, 4, 0]


@pytest.mark.parametrize("seed", range(6))
def test_a_broken_shard_is_another_readers_in_another_epoch(one_bad_shard, seed):
    stream = load_pairs(f"{one_bad_shard}/[23].parquet", extractor(), seed=seed, max_skipped=0.9)
    for reader in range(2):
        assert len(list(islice(stream.split(reader, 2), 12))) == 12


@pytest.mark.parametrize("training", [False, True])
def test_shards_of_which_nothing_can_be_used_end(tmp_path, training):
    for shard in range(2):
        write_parquet(tmp_path / f"{shard}.parquet", [row(30) | {"audio": BAD_AUDIO["garbage"]}])
    stream = load_pairs(f"{tmp_path}/*.parquet", extractor(), training=training, max_skipped=1.0)
    for reader in range(2):
        with pytest.raises(PairError, match=r"and not one can be used; mend the data.$"):
            list(stream.split(reader, 2))


def test_a_list_of_files(tmp_path):
    names = [tmp_path / f"{shard}.parquet" for shard in range(2)]
    for shard, name in enumerate(names):
        write_parquet(name, [row(4 * shard + number) for number in range(4)])
    whole = load_pairs(f"{tmp_path}/*.parquet", extractor(), training=False)
    assert_same_pairs(list(load_pairs(names, extractor(), training=False)), list(whole))
    with pytest.raises(PairError, match="are not files of one kind; pass files that all end with one of"):
        load_pairs([names[0], "x.tar"], extractor())


def test_a_damaged_archive_is_skipped_and_counted(tmp_path):
    for name in ("good", "bad"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("a.flac", row(0)["audio"]["bytes"])
    damaged = bytearray((tmp_path / "bad.zip").read_bytes())
    damaged[60] ^= 1  # in the member
    (tmp_path / "bad.zip").write_bytes(damaged)
    (tmp_path / "none.zip").write_text("no archive")
    write_parquet(
        tmp_path / "a.parquet",
        [row(0) | {"audio": {"path": f"zip://a.flac::{tmp_path}/{name}.zip"}} for name in ("good", "bad", "none")],
    )
    stream = load_pairs(tmp_path / "a.parquet", extractor(), training=False, max_skipped=0.1)
    assert len(list(stream)) == 1
    assert stream.skipped == {"rows": 3, "audio": 2, "caption": 0}


def test_a_sound_in_an_archive_is_not_read_without_end(tmp_path, monkeypatch):
    """A file of a few kilobytes may be gigabytes once it is unpacked."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("noise.wav", bytes(10**6))
    monkeypatch.setattr(audio, "MAX_DOWNLOAD_BYTES", 10**5)
    with pytest.raises(
        AudioError, match=r"^noise\.wav is larger than 100000 bytes; save it to a file and pass its path"
    ):
        pair_columns.fetch_audio(f"zip://noise.wav::{tmp_path}/bomb.zip")


# -- states


def interleaved(shards):
    one = load_pairs(f"{shards}/train-00007-*.parquet", extractor(), buffer_size=3, seed=2)
    return interleave_pairs([load_pairs(shards, extractor(), buffer_size=4), one], [3, 1])


def interleaved_once(shards):
    """One pass over three parts of the clips, of which the second one has five times the weight of the others."""
    wheres = [partial(is_third, third=third) for third in range(3)]
    parts = [load_pairs(shards, extractor(), training=False, where=where, seed=7) for where in wheres]
    return interleave_pairs(parts, [1, 5, 1])


def is_odd(row):
    return row["label"] == 1


def is_third(row, third):
    return int(row["caption"].split()[1]) % 3 == third


# name -> (stream over the shards, pairs of it that are read, epoch that they reach)
STREAMS = {
    "blocks of 4": (lambda shards: load_pairs(shards, extractor(), buffer_size=4), 120, 2),
    "one buffer": (lambda shards: load_pairs(shards, extractor()), 120, 2),
    "some rows": (lambda shards: load_pairs(shards, extractor(), buffer_size=5, where=is_odd), 90, 3),
    "second of 3": (lambda shards: load_pairs(shards, extractor(), buffer_size=4).split(1, 3), 60, 2),
    "last of 20": (lambda shards: load_pairs(shards, extractor(), buffer_size=4).split(19, 20), 30, 9),
    "one pass": (lambda shards: load_pairs(shards, extractor(), training=False), 52, 0),
    "interleaved": (lambda shards: interleaved(shards).split(1, 2), 90, None),
    "interleaved once": (lambda shards: interleaved_once(shards).split(1, 3), 21, None),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_goes_on_from_its_state_bit_for_bit(shards, name):
    make, count, epoch = STREAMS[name]
    stream = make(shards)
    whole, states = [], [stream.state_dict()]
    for pair in islice(stream, count):
        whole.append(pair)
        states.append(stream.state_dict())
    assert len(whole) == count
    if epoch is not None:
        assert states[-1]["epoch"] >= epoch
    for cut in [*range(0, count, 7 if count > 30 else 1), count - 1]:
        assert_same_pairs(resumed(make(shards), states[cut], count - cut), whole[cut:])
    assert len(resumed(make(shards), states[-1], 1)) == stream.training


def test_a_stream_that_was_given_a_state_has_it_before_its_first_pair(shards):
    stream = load_pairs(shards, extractor(), buffer_size=4)
    for _ in islice(stream, 9):
        pass
    state = stream.state_dict()
    other = load_pairs(shards, extractor(), buffer_size=4)
    other.load_state_dict(state)
    assert other.state_dict() == state
    pairs = iter(other)
    assert other.state_dict() == state
    assert_same_pairs([next(pairs)], resumed(stream, state, 1))
    assert other.state_dict() != state
    assert other.split(0, 2).state_dict()["index"] == 0


def test_an_iteration_without_a_state_starts_anew(shards):
    stream = load_pairs(shards, extractor(), buffer_size=4)
    first = list(islice(stream, 60))
    state = stream.state_dict()
    assert_same_pairs(islice(stream, 60), first)
    stream.load_state_dict(state)
    following = list(islice(stream, 10))  # the state is used once
    assert_same_pairs(islice(stream, 60), first)
    stream.load_state_dict(state)
    stream.forget_state()
    assert_same_pairs(islice(stream, 60), first)
    assert [pair.caption for pair in following] != [pair.caption for pair in first[:10]]


def test_an_iteration_begins_with_the_epoch_that_was_set(shards):
    stream = load_pairs(shards, extractor(), buffer_size=4)
    orders = {epoch: numbers(epoch_of(stream, epoch)) for epoch in (0, 1, 2)}
    stream.set_epoch(2)
    assert numbers(islice(stream, ROWS)) == orders[2]
    both = interleave_pairs([stream, stream])
    one, other = both.split(0, 2), both.split(1, 2)
    one.set_epoch(1)
    epochs = [[part["epoch"] for part in each.state_dict()["streams"]] for each in (one, other, both)]
    assert epochs == [[1, 1], [2, 2], [2, 2]]


def test_what_was_skipped_is_remembered_by_the_state(tmp_path, records):
    rows = [row(number) for number in range(30)]
    rows[3] |= {"audio": BAD_AUDIO["garbage"]}
    rows[7] |= {"caption": None, "label": None}
    write_parquet(tmp_path / "a.parquet", rows)
    stream = load_pairs(tmp_path, extractor(), buffer_size=4, max_skipped=0.1)
    for _ in islice(stream, 40):
        pass
    assert stream.skipped["audio"] in (1, 2)
    before = stream.skipped
    assert before["rows"] == before["audio"] + before["caption"] + 40
    again = load_pairs(tmp_path, extractor(), buffer_size=4, max_skipped=0.1)
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert again.skipped == before
    assert len(records()) == 2
    for _ in islice(again, 60):
        pass
    assert again.skipped["rows"] == again.skipped["audio"] + again.skipped["caption"] + 100
    assert again.skipped["audio"] in (3, 4)
    assert len(records()) == 2  # the first part's

    once = [load_pairs(tmp_path, extractor(), training=False)] * 2
    both = interleave_pairs(once)
    assert len(list(both)) == 56
    assert both.skipped == {"rows": 60, "audio": 2, "caption": 2}


def test_a_state_of_other_numbers_is_refused(shards):
    stream = load_pairs(shards, extractor())
    part = stream.split(1, 2)
    next(iter(part))
    state = part.state_dict()
    sentence = "^The state is that of 2 readers .processes times loader workers.; go on with as many, not 3.$"
    with pytest.raises(PairError, match=sentence):
        resumed(stream.split(1, 3), state)
    with pytest.raises(PairError, match=r"^The state is that of 2 loader workers; go on with as many, not 1.$"):
        resumed(stream, [state, state])


def two(shards, weights=None, **options):
    return interleave_pairs([load_pairs(shards, extractor()), load_pairs(shards, extractor(), **options)], weights)


# the stream of a state, another one, and what is told of them
OTHER_ORDERS = {
    "seed": (
        lambda shards: load_pairs(shards, extractor()),
        lambda shards: load_pairs(shards, extractor(), seed=1),
        "seed was 0, and here it is 1",
    ),
    "buffer": (
        lambda shards: load_pairs(shards, extractor(), buffer_size=20),
        lambda shards: load_pairs(shards, extractor(), buffer_size=5),
        "buffer_size was 20, and here it is 5",
    ),
    "shards": (
        lambda shards: load_pairs(shards, extractor()),
        lambda shards: load_pairs(f"{shards}/train-00000-*.parquet", extractor()),
        "number of shards was 8, and here it is 1",
    ),
    "one pass": (
        lambda shards: load_pairs(shards, extractor()),
        lambda shards: load_pairs(shards, extractor(), training=False),
        "training was True, and here it is False",
    ),
    "interleaved": (lambda shards: load_pairs(shards, extractor()), two, "number of streams was 1, and here it is 2"),
    "alone": (two, lambda shards: load_pairs(shards, extractor()), "number of streams was 2, and here it is 1"),
    "three": (
        two,
        lambda shards: interleave_pairs([load_pairs(shards, extractor())] * 3),
        "number of streams was 2, and here it is 3",
    ),
    "weights": (
        two,
        lambda shards: two(shards, [1, 9]),
        r"weights was \[1.0, 1.0\], and here it is \[1.0, 9.0\]",
    ),
    "inside": (two, lambda shards: two(shards, seed=4), r"seed \(stream 1\) was 0, and here it is 4"),
}


@pytest.mark.parametrize("name", OTHER_ORDERS)
def test_a_state_of_another_order_is_refused(shards, name):
    first, second, sentence = OTHER_ORDERS[name]
    stream = first(shards)
    states = [stream.state_dict()]
    next(iter(stream))
    states.append(stream.state_dict())
    for state in states:
        with pytest.raises(PairError, match=f"^The state is that of a stream whose {sentence}; go on with the same.$"):
            resumed(second(shards), state)


# -- several streams


def test_shares_of_interleaved_streams_follow_the_weights(shards):
    weights = {0: 5.0, 10: 3.0, 20: 2.0}
    parts = [load_pairs(dataset_of(number), extractor()) for number in weights]
    drawn = numbers(islice(interleave_pairs(parts, list(weights.values())), 2000))
    for number, weight in weights.items():
        share = weight / 10
        assert abs(drawn.count(number) / 2000 - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    assert drawn[:300] == numbers(islice(interleave_pairs(parts, [50, 30, 20]), 300))
    changes = sum(one != other for one, other in pairwise(drawn))
    assert abs(changes / 1999 - 0.62) < 0.04  # 1 - (0.5**2 + 0.3**2 + 0.2**2) if each draw is independent
    equal = Counter(numbers(islice(interleave_pairs(parts), 600)))
    assert min(equal.values()) > 160
    double = interleave_pairs([load_pairs(dataset_of(number, 2), extractor()) for number in weights])
    one, other = (numbers(islice(double.split(rank, 2), 50)) for rank in (0, 1))
    assert one != other


def dataset_of(number, rows=1):
    """A data set of one clip."""
    table = pa.Table.from_pylist([row(number)] * rows, schema=FEATURES.arrow_schema)
    return datasets.Dataset(table)


def test_a_stream_that_cannot_be_used_is_named_among_several(tmp_path):
    write_parquet(tmp_path / "a.parquet", [row(0) | {"audio": BAD_AUDIO["empty"]}] * 5)
    broken = load_pairs(tmp_path, extractor(), training=False)
    both = interleave_pairs([load_pairs(dataset_of(0), extractor(), training=False), broken])
    with pytest.raises(
        PairError, match=r"^Stream 1 of those interleaved: Of 5 rows, 5 have audio that cannot be used"
    ):
        list(both)


@pytest.mark.parametrize("readers", [1, 3])
def test_one_pass_over_interleaved_streams_has_every_pair_of_each_once(shards, readers):
    both = interleaved_once(shards)
    parts = [numbers(both.split(rank, readers)) for rank in range(readers)]
    assert sorted(chain(*parts)) == list(range(ROWS))
    first = parts[0][: ROWS // readers // 3]
    assert sum(number % 3 == 1 for number in first) > len(first) / 2
    nested = interleave_pairs([both, load_pairs(shards, extractor(), training=False, where=is_odd)])
    assert sorted(numbers(nested)) == sorted([*range(ROWS), *range(1, ROWS, 2)])


def test_streams_that_cannot_be_interleaved_are_refused_in_one_sentence(shards):
    stream = load_pairs(shards, extractor())
    for weights in ([1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], ["1", "2"], [1e308, 1e308]):
        with pytest.raises(PairError, match=r"^2 streams need as many positive weights; there are "):
            interleave_pairs([stream, stream], weights)
    with pytest.raises(PairError, match=r"^0 streams need"):
        interleave_pairs([])
    with pytest.raises(PairError, match=r"^A Dataset cannot be interleaved; pass streams of load_pairs.$"):
        interleave_pairs([stream, dataset_of(0)])
    with pytest.raises(PairError, match=r"^The streams differ in sampling_rate; load them for one model"):
        interleave_pairs([stream, load_pairs(shards, extractor(8000))])
    with pytest.raises(PairError, match=r"^The streams differ in training; load them for one model and one purpose.$"):
        interleave_pairs([stream, load_pairs(shards, extractor(), training=False)])
    with pytest.raises(PairError, match=r"^Interleave whole streams, and split the result: "):
        interleave_pairs([stream.split(0, 2), stream.split(0, 2)])
    empty = interleave_pairs([stream, load_pairs(shards, extractor(), where=lambda row: False)])
    with pytest.raises(PairError, match=r"^Stream 1 of those interleaved has no pairs for reader 1 of 2 "):
        list(empty.split(1, 2))
