"""Corpora, the index file and what fills it; two examples that fill it from several processes are in test_search."""

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch

import hf_clap
from conftest import noise, tone
from hf_clap import cli, corpus_embedding, embedding, index_file
from hf_clap.array_cache import ArrayCache
from hf_clap.audio import audio_sha256
from hf_clap.corpus import Corpus, iter_audio_files
from hf_clap.corpus_embedding import embed_corpus, hear_part, index_info, read_recordings, window_reader
from hf_clap.embedding import Embedder
from hf_clap.index_file import EmbeddedRecording, IndexWriter, iter_index, read_info
from hf_clap.pipeline import HfClapPipeline
from hf_clap.search import SoundIndex

RATE = 16000
CLIPS = 40


@pytest.fixture(scope="module")
def embedder(tiny_tagger):
    return Embedder(tiny_tagger.model, tiny_tagger.processor)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Forty recordings of 0.3 to 2.3 s, in three folders."""
    folder = tmp_path_factory.mktemp("library")
    for number in range(CLIPS):
        place = folder / ("", "b", "b/c")[number % 3]
        place.mkdir(exist_ok=True, parents=True)
        sound = (
            noise(0.3 + number / 20, RATE, number) if number % 2 else tone(0.3 + number / 20, RATE, 90.0 + 9 * number)
        )
        soundfile.write(place / f"{number:02}.wav", sound, RATE)
    (folder / "notes.txt").write_text("not a sound")
    return folder


@pytest.fixture(scope="module")
def unbroken(library, embedder, tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken") / "sounds.parquet"
    embed_corpus(Corpus(library), output, embedder, window_s=1.0)
    return output


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded."""
    names = []
    read = embedding.iter_audio

    def spy(source, *rest):
        names.append(Path(source).name)
        return read(source, *rest)

    monkeypatch.setattr(embedding, "iter_audio", spy)
    return names


def rows(index):
    return pyarrow.parquet.read_table(index).to_pylist()


def left_beside(index):
    return sorted(path.name for path in index.parent.iterdir() if path != index)


def test_a_row_is_a_window(library, unbroken, embedder):
    table = pyarrow.parquet.read_table(unbroken)
    assert {field.name: str(field.type) for field in table.schema} == {
        "path": "string",
        "start": "double",
        "end": "double",
        "embedding": "fixed_size_list<element: halffloat not null>[553]",
        "content": "string",
        "model": "string",
        "revision": "string",
    }
    paths = [Path(path).relative_to(library).as_posix() for path in iter_audio_files(library)]
    expected = []
    for path in paths:
        samples = soundfile.info(library / path).frames
        whole = [(start, start + RATE) for start in range(0, samples - RATE + 1, RATE)]
        if not whole or whole[-1][1] < samples:  # a last window is moved back
            whole.append((max(0, samples - RATE), samples))
        expected += [(path, start / RATE, end / RATE) for start, end in whole]
    found = table.to_pylist()
    assert [(row["path"], row["start"], row["end"]) for row in found] == expected
    for row in found:
        assert row["content"] == hashlib.sha256((library / row["path"]).read_bytes()).hexdigest()
        assert (row["model"], row["revision"]) == ("tiny", None)
        waveform = soundfile.read(library / row["path"], dtype="float32")[0]
        window = waveform[round(row["start"] * RATE) : round(row["end"] * RATE)]
        [[alone]] = embedder.clips([[{"array": window, "sampling_rate": RATE}]])
        np.testing.assert_allclose(row["embedding"], alone.embed, atol=1e-3)  # float16


def test_the_file_says_what_it_was_made_from(library, unbroken, embedder):
    info = read_info(unbroken)
    assert (info.model, info.revision, info.dim) == ("tiny", None, 553)
    assert (info.window_s, info.hop_s, info.recordings, info.windows) == (1.0, 1.0, CLIPS, len(rows(unbroken)))
    assert (info.source, info.space_sha256) == (library.as_posix(), embedder.space_sha256)
    assert left_beside(unbroken) == [".sounds.parquet.lock"]


def test_datasets_read_it(unbroken, tmp_path):
    data = datasets.load_dataset("parquet", data_files=str(unbroken), split="train", cache_dir=str(tmp_path))
    assert data.features["embedding"] == datasets.List(datasets.Value("float16"), length=553)
    data.add_faiss_index("embedding")
    query = np.array(data[3]["embedding"], dtype=np.float32)
    scores, nearest = data.get_nearest_examples("embedding", query, k=1)
    assert (nearest["path"], scores[0]) == ([data[3]["path"]], 0.0)


def test_bits_are_the_same_again(library, unbroken, embedder, tmp_path):
    again = embed_corpus(Corpus(library), tmp_path / "again.parquet", embedder, window_s=1.0).output
    assert again.read_bytes() == unbroken.read_bytes()


def test_killed_half_way_and_run_again(library, unbroken, embedder, tmp_path, decoded):
    """The same file, and what was done is not decoded again."""
    output = tmp_path / "sounds.parquet"
    program = (
        "import sys, time\n"
        "from hf_clap import cli, index_file\n"
        "index_file.JOURNAL_EVERY_S = -1.0\n"
        "add = index_file.IndexWriter.add\n"
        "def slowly(self, group):\n"
        "    add(self, group)\n"
        "    print('added', flush=True)\n"
        "    time.sleep(1)\n"
        "index_file.IndexWriter.add = slowly\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "embed", library, "-o", output, "--window", "1"]
    killed = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    groups = random.randint(1, 3)  # of five; anew each time
    for _ in range(groups):
        killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not output.exists()
    [journal] = tmp_path.glob(".sounds.parquet.*.journal")
    done = {key.split("/")[-1].split(" ")[-1] for key in ArrayCache(journal).all_keys()}
    assert len(done) in (8 * groups, 8 * groups + 8)  # the machine may be slow to kill it
    assert len(done) < CLIPS

    finished = embed_corpus(Corpus(library), output, embedder, window_s=1.0)
    assert (finished.recordings, finished.kept, finished.failed) == (CLIPS, len(done), 0)
    assert sorted(decoded) == sorted({Path(path).name for path in iter_audio_files(library)} - done)
    assert output.read_bytes() == unbroken.read_bytes()
    assert left_beside(output) == [".sounds.parquet.lock"]


def test_only_what_is_new_or_changed_is_embedded(library, unbroken, embedder, tmp_path, decoded):
    folder, output = tmp_path / "sounds", tmp_path / "sounds.parquet"
    shutil.copytree(library, folder)
    assert embed_corpus(Corpus(folder), output, embedder, window_s=1.0).kept == 0
    before = {(row["path"], row["start"]): row for row in rows(output)}

    decoded.clear()
    assert embed_corpus(Corpus(folder), output, embedder, window_s=1.0).kept == CLIPS
    assert decoded == []
    assert {(row["path"], row["start"]): row for row in rows(output)} == before

    (folder / "00.wav").unlink()
    soundfile.write(folder / "03.wav", noise(1.5, RATE, 99), RATE)
    soundfile.write(folder / "b" / "new.wav", tone(1.5, RATE, 600.0), RATE)
    done = embed_corpus(Corpus(folder), output, embedder, window_s=1.0)
    assert (done.recordings, done.kept) == (CLIPS, CLIPS - 2)
    assert sorted(decoded) == ["03.wav", "new.wav"]
    after = rows(output)
    fresh = rows(embed_corpus(Corpus(folder), tmp_path / "fresh.parquet", embedder, window_s=1.0).output)
    assert [(row["path"], row["start"], row["content"]) for row in after] == [
        (row["path"], row["start"], row["content"]) for row in fresh
    ]
    np.testing.assert_allclose(
        [row["embedding"] for row in after], [row["embedding"] for row in fresh], atol=1e-3
    )  # batches are others
    kept = [row for row in after if row["path"] not in ("03.wav", "b/new.wav")]
    assert all(row == before[row["path"], row["start"]] for row in kept)


def test_broken_files_are_listed(tmp_path, capfd):
    folder, output = tmp_path / "sounds", tmp_path / "sounds.parquet"
    folder.mkdir()
    soundfile.write(folder / "good.wav", noise(1.0), RATE)
    soundfile.write(folder / "cut.wav", noise(3.0), RATE)
    with (folder / "cut.wav").open("r+b") as file:
        file.truncate(40_000)
    (folder / "empty.flac").touch()
    (folder / "text.mp3").write_text("not a sound")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.wav")).write_bytes((folder / "good.wav").read_bytes())
    arguments = ["embed", str(folder), "-o", str(output), "--device", "cpu", "--format", "json"]
    assert cli.main(arguments) == 1
    printed = capfd.readouterr()
    report = json.loads(printed.out)
    assert (report["recordings"], report["windows"]) == (1, 1)
    errors = {row["path"]: row["error"] for row in report["failed"]}
    assert sorted(errors) == ["cut.wav", "empty.flac", "text.mp3", "\udcff.wav"]
    assert "shorter than" in errors["cut.wav"] or "cut" in errors["cut.wav"]
    assert errors["\udcff.wav"] == "The name '\\udcff.wav' is not text; rename the file."
    assert all(path in printed.err for path in ("cut.wav", "empty.flac", "text.mp3"))
    assert [row["path"] for row in rows(output)] == ["good.wav"]
    listed = [json.loads(line) for line in (tmp_path / "sounds.failed.jsonl").read_text().splitlines()]
    assert listed == report["failed"]

    for path in [*folder.glob("cut*"), *folder.glob("empty*"), *folder.glob("text*"), *folder.glob("*\udcff*")]:
        path.unlink()
    assert cli.main(arguments) == 0
    assert json.loads(capfd.readouterr().out)["kept"] == 1
    assert left_beside(output) == [".sounds.parquet.lock", "sounds"]


def test_nothing_readable_is_an_error_and_no_file(embedder, tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    (folder / "text.wav").write_text("not a sound")
    with pytest.raises(ValueError, match=r"^Not one recording can be read; the first says: text.wav "):
        embed_corpus(Corpus(folder), tmp_path / "sounds.parquet", embedder)
    assert not (tmp_path / "sounds.parquet").exists()


def test_an_interrupted_run_leaves_the_index_and_keeps_what_is_done(
    library, unbroken, embedder, tmp_path, monkeypatch
):
    output = tmp_path / "sounds.parquet"
    shutil.copy(unbroken, output)
    (tmp_path / "more").mkdir()
    info = replace(read_info(unbroken), recordings=0, windows=0, rows_sha256="")
    one = EmbeddedRecording("x.wav", "0" * 64, np.array([[0.0, 1.0]]), np.ones((1, 553), np.float16))
    with pytest.raises(KeyboardInterrupt):
        interrupted(IndexWriter(output, info), one)
    assert output.read_bytes() == unbroken.read_bytes()
    assert [name for name in left_beside(output) if "journal" not in name] == [".sounds.parquet.lock", "more"]
    with IndexWriter(output, info) as writer:
        assert writer.known([one.key, "another"]) == {one.key}
        writer.add([one._replace(spans=None, embeds=None)])
    [row] = rows(output)
    assert (row["path"], row["end"], row["embedding"]) == ("x.wav", 1.0, [1.0] * 553)


def interrupted(writer, recording):
    with writer:
        writer.add([recording])
        raise KeyboardInterrupt


def test_rows_come_back_in_groups_of_any_size(tmp_path, monkeypatch):
    """Recordings of 1 to 7 windows across row groups of at least five rows."""
    monkeypatch.setattr(index_file, "ROW_GROUP_ROWS", 5)
    generator = np.random.default_rng(0)
    given = []
    for number in range(30):
        windows = number % 7 + 1
        spans = np.stack([np.arange(windows), np.arange(windows) + 1.0], axis=1)
        embeds = generator.normal(size=(windows, 4)).astype(np.float16)
        given.append(EmbeddedRecording(f"{number}.wav", f"{number:064}", spans, embeds))
    info = index_file.IndexInfo("m", "r", "s", 4, 1.0, 1.0, "here")
    with IndexWriter(tmp_path / "x.parquet", info) as writer:
        writer.add(given[:11])
        writer.add(given[11:])
    back = list(iter_index(tmp_path / "x.parquet"))
    assert len(back) == 30
    for one, other in zip(given, back, strict=True):
        assert one[:2] == other[:2]
        np.testing.assert_array_equal(one.spans, other.spans)
        np.testing.assert_array_equal(one.embeds, other.embeds)
    with IndexWriter(tmp_path / "x.parquet", info) as writer:
        writer.add([one._replace(spans=None, embeds=None) for one in given])
    assert (writer.kept, writer.windows) == (30, sum(len(one.spans) for one in given))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"space_sha256": "f" * 64}, r"was made with model=tiny \(.{12}\), and this is tiny \(f{12}\); choose"),
        ({"window_s": 2.0}, r"was made with window_s=1.0, and this is 2.0; choose another name, or delete the file.$"),
        ({"hop_s": 0.5}, "was made with hop_s=1.0, and this is 0.5; choose another name"),
        ({"source": "elsewhere"}, "was made with source=.*library0, and this is elsewhere; choose another name"),
    ],
)
def test_an_index_of_something_else_is_not_replaced(unbroken, tmp_path, change, sentence):
    output = tmp_path / "sounds.parquet"
    shutil.copy(unbroken, output)
    with pytest.raises(ValueError, match=sentence), IndexWriter(output, replace(read_info(unbroken), **change)):
        pass
    assert output.read_bytes() == unbroken.read_bytes()


def test_names_that_cannot_be_written(unbroken, tmp_path):
    info = read_info(unbroken)
    with pytest.raises(ValueError, match=r"^sounds.csv is not the name of an index; let it end with .parquet.$"):
        IndexWriter("sounds.csv", info)
    with pytest.raises(FileNotFoundError, match=r"^The folder of .*none/x.parquet does not exist; make it"):
        IndexWriter(tmp_path / "none" / "x.parquet", info)
    (tmp_path / "other.parquet").write_text("no Parquet")
    with pytest.raises(OSError, match=r"other.parquet is not an index that `hf-clap embed` wrote"):
        IndexWriter(tmp_path / "other.parquet", info).__enter__()
    for change in ({"windows": info.windows + 1}, {"windows": "6"}, {"dim": 4}):  # by somebody who wants a crash
        table = pyarrow.parquet.read_table(unbroken)
        stated = json.dumps(asdict(info) | change)
        pyarrow.parquet.write_table(
            table.replace_schema_metadata({index_file.METADATA_KEY: stated}), tmp_path / "other.parquet"
        )
        with pytest.raises(OSError, match=r"other.parquet is not an index that `hf-clap embed` wrote"):
            read_info(tmp_path / "other.parquet")


def test_two_processes_do_not_write_one_index(unbroken, tmp_path):
    output = tmp_path / "sounds.parquet"
    info = read_info(unbroken)
    program = (
        "import sys\n"
        "from hf_clap.index_file import IndexInfo, IndexWriter\n"
        "try:\n"
        "    IndexWriter(sys.argv[1], IndexInfo('m', None, 's', 4, 1.0, 1.0, 'here')).__enter__()\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    with IndexWriter(output, info):
        answer = subprocess.run([sys.executable, "-c", program, output], capture_output=True, text=True, check=True)
    assert answer.stdout == f"Another process writes {output}; wait for it, or choose another name.\n"


def test_a_recording_of_an_archive_has_its_own_name(tmp_path):
    paths = [f"zip://rain.wav::{tmp_path}/sounds.zip", "a::b/siren.wav", "zip://deep/dog.wav::https://x/y.zip"]
    data = datasets.Dataset.from_dict({"audio": paths}).cast_column("audio", datasets.Audio())
    assert [recording.path for recording in Corpus(data)] == ["0/rain.wav", "1/siren.wav", "2/dog.wav"]


def test_a_data_set_and_the_same_files_in_a_folder(pair_shards, embedder, tmp_path):
    from_rows = embed_corpus(Corpus(pair_shards), tmp_path / "rows.parquet", embedder)
    folder = tmp_path / "files"
    folder.mkdir()
    table = pyarrow.parquet.read_table(pair_shards).to_pylist()
    for number, row in enumerate(table):
        (folder / f"{number:02}.flac").write_bytes(row["audio"]["bytes"])
    from_files = embed_corpus(Corpus(folder), tmp_path / "files.parquet", embedder)
    assert (from_rows.recordings, from_files.recordings) == (64, 64)
    of_rows, of_files = rows(from_rows.output), rows(from_files.output)
    assert [row["path"] for row in of_rows] == [f"{number}/{number}.flac" for number in range(64)]
    for name in ("start", "end", "embedding", "content"):
        assert [row[name] for row in of_rows] == [row[name] for row in of_files]
    assert embed_corpus(Corpus(str(pair_shards)), tmp_path / "rows.parquet", embedder).kept == 64


def test_rows_without_audio_are_listed(embedder, tmp_path):
    sounds = [{"bytes": None, "path": None}, {"array": noise(0.5), "sampling_rate": RATE}]
    data = datasets.IterableDataset.from_generator(lambda: ({"audio": sound} for sound in sounds))
    done = embed_corpus(Corpus(data), tmp_path / "x.parquet", embedder)
    assert (done.recordings, done.failed) == (1, 1)
    [failed] = map(json.loads, done.failed_file.read_text().splitlines())
    assert failed == {"path": "0", "error": "There is no audio in this row; fill it in, or remove the row."}
    assert [row["path"] for row in rows(done.output)] == ["1"]


def test_odd_rows_are_listed_and_the_others_embedded(embedder, tmp_path):
    sounds = [
        {"bytes": None},
        {"path": "b\0.flac"},
        1,
        [1, 2],
        {"array": [[0.0], [0.0, 0.1]], "sampling_rate": RATE},
        {"array": [0.0, None], "sampling_rate": RATE},
        {"array": noise(0.5), "sampling_rate": RATE},
        {"path": "nowhere/gone.flac"},
    ]
    data = datasets.IterableDataset.from_generator(lambda: ({"audio": sound} for sound in sounds))
    done = embed_corpus(Corpus(data), tmp_path / "x.parquet", embedder)
    errors = [json.loads(line)["error"] for line in done.failed_file.read_text().splitlines()]
    assert errors[0] == errors[2] == "There is no audio in this row; fill it in, or remove the row."
    assert errors[1] == r"'1/b\x00.flac' cannot be opened (embedded null byte); check the row."
    assert "The array comes without its rate" in errors[3]
    assert all(error.startswith("The array in this row is no waveform (") for error in errors[4:6])
    assert errors[6] == "7/gone.flac (nowhere/gone.flac) cannot be opened (No such file or directory); check the file."
    assert [row["path"] for row in rows(done.output)] == ["6"]


def test_a_column_of_encoded_audio(library, embedder, tmp_path):
    files = sorted(library.glob("*.wav"))
    data = datasets.Dataset.from_dict({"audio": [file.read_bytes() for file in files]})
    done = embed_corpus(Corpus(data), tmp_path / "x.parquet", embedder)
    assert (done.recordings, done.failed) == (len(files), 0)


def test_an_index_of_another_folder_of_the_same_relative_name_is_not_replaced(embedder, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "x.wav", noise(0.5), RATE)
    monkeypatch.chdir(tmp_path / "a")
    assert embed_corpus(Corpus("."), tmp_path / "x.parquet", embedder).kept == 0
    monkeypatch.chdir(tmp_path)
    assert embed_corpus(Corpus("a"), tmp_path / "x.parquet", embedder).kept == 1
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(ValueError, match=r"was made with source=.*/a, and this is .*/b; choose another name"):
        embed_corpus(Corpus("."), tmp_path / "x.parquet", embedder)


def test_links_are_followed_but_not_around(tmp_path):
    for name in ("a/one", "a/two", "b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "b" / "b.wav").touch()
    (tmp_path / "a" / "one" / "1.wav").touch()
    (tmp_path / "a" / "file.wav").symlink_to(tmp_path / "b" / "b.wav")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "b")
    (tmp_path / "a" / "two" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "none")
    (tmp_path / "a" / "itself").symlink_to("itself")
    found = [os.path.relpath(path, tmp_path / "a") for path in iter_audio_files(tmp_path / "a")]
    assert found == ["file.wav", "linked/b.wav", "one/1.wav"]


def test_folders_that_link_to_each_other_are_read_once(tmp_path):
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.wav").touch()
        for other in range(8):
            (tmp_path / str(number) / f"to {other}").symlink_to(tmp_path / str(other))
    assert len(list(iter_audio_files(tmp_path))) == 8


def test_a_folder_that_goes_meanwhile_is_passed_over(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.wav").touch()
    paths = iter_audio_files(tmp_path)
    assert next(paths).endswith("a/x.wav")
    shutil.rmtree(tmp_path / "b")
    assert [os.path.relpath(path, tmp_path) for path in paths] == ["c/x.wav"]
    with pytest.raises(FileNotFoundError):
        next(iter_audio_files(tmp_path / "b"))


def test_recordings_that_are_gone_are_not_forgotten(library, embedder, tmp_path):
    """As when a disk is taken away: the index stays, and what was embedded is kept for the next run."""
    folder, output = tmp_path / "library", tmp_path / "sounds.parquet"
    shutil.copytree(library, folder)
    embed_corpus(Corpus(folder), output, embedder, window_s=1.0)
    before, corpus = output.read_bytes(), Corpus(folder)
    shutil.rmtree(folder / "b")
    sentence = f"^{folder} had {CLIPS} recordings, and now it has 14; look where the others are, and run it again.$"
    with pytest.raises(OSError, match=sentence):
        embed_corpus(corpus, output, embedder, window_s=1.0)
    assert output.read_bytes() == before
    shutil.copytree(library / "b", folder / "b")
    done = embed_corpus(Corpus(folder), output, embedder, window_s=1.0)
    assert (done.recordings, done.kept, output.read_bytes()) == (CLIPS, CLIPS, before)


def test_a_disk_that_is_full_at_the_end_leaves_the_journal_alone(library, embedder, tmp_path, monkeypatch):
    output, written = tmp_path / "sounds.parquet", IndexWriter._write_rows

    def full(writer):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexWriter, "_write_rows", full)
    sentence = rf"^{output} cannot be written \(.*No space left on device\); see that there is room, and that it is"
    with pytest.raises(OSError, match=sentence):
        embed_corpus(Corpus(library), output, embedder, window_s=1.0)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".journal", ".lock"]
    monkeypatch.setattr(IndexWriter, "_write_rows", written)
    done = embed_corpus(Corpus(library), output, embedder, window_s=1.0)
    assert (done.recordings, done.kept) == (CLIPS, CLIPS)


def test_another_split_is_another_source(library, tmp_path, capfd):
    (tmp_path / "data").mkdir()
    for split, name in (("train", "00.wav"), ("test", "03.wav")):
        audio = {"bytes": (library / name).read_bytes(), "path": name}
        data = datasets.Dataset.from_dict({"audio": [audio]}).cast_column("audio", datasets.Audio(RATE))
        data.to_parquet(tmp_path / "data" / f"{split}-00000.parquet")
    arguments = ["embed", str(tmp_path / "data"), "-o", str(tmp_path / "x.parquet")]
    assert cli.main(arguments) == 0
    before = (tmp_path / "x.parquet").read_bytes()
    capfd.readouterr()
    assert cli.main([*arguments, "--split", "test"]) == 2
    said = capfd.readouterr().err
    assert f"source=rows in {tmp_path}/data, and this is rows in {tmp_path}/data, split test; choose" in said
    shutil.copy(library / "00.wav", tmp_path / "data" / "sample.wav")  # beside the shards, of which none would be read
    assert cli.main(arguments) == 2
    assert f"source=rows in {tmp_path}/data, and this is {tmp_path}/data; choose" in capfd.readouterr().err
    assert (tmp_path / "x.parquet").read_bytes() == before


def test_sources_without_splits_and_names_are_one_sentence(library, capfd):
    with pytest.raises(ValueError, match=r"^.* holds sounds as files, which have no splits; leave out split='test'.$"):
        Corpus(library, "test")
    assert cli.main(["embed", "", "-o", "x.parquet"]) == 2
    assert capfd.readouterr().err == (
        "hf-clap: An empty name is no source of sounds; pass a folder, a file or a data set.\n"
    )


def test_a_model_that_has_diverged_makes_no_index(library, tiny_tagger, tmp_path):
    model = hf_clap.HfClapModel.from_pretrained(hf_clap.TINY).eval()
    with torch.no_grad():
        model.audio_projection.classifier.bias.fill_(torch.nan)
    with pytest.raises(
        ValueError, match=r"^The model gives NaN or infinite embeddings for 00.wav; check its weights, or choose "
    ):
        embed_corpus(Corpus(library), tmp_path / "x.parquet", Embedder(model, tiny_tagger.processor))
    assert left_beside(tmp_path / "x.parquet") == [".x.parquet.lock"]


def test_a_link_leads_to_the_index(library, embedder, unbroken, tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "sounds.parquet"
    link.symlink_to(tmp_path / "real" / "other.parquet")
    for _ in range(2):
        embed_corpus(Corpus(library), link, embedder, window_s=1.0)
        assert link.is_symlink()
        assert (tmp_path / "real" / "other.parquet").read_bytes() == unbroken.read_bytes()


def test_damaged_rows_are_noticed(library, embedder, unbroken, tmp_path):
    output = tmp_path / "sounds.parquet"
    content = bytearray(unbroken.read_bytes())
    middle = len(content) // 2  # among the embeddings
    content[middle : middle + 100] = bytes(byte ^ 0x5A for byte in content[middle : middle + 100])
    output.write_bytes(content)
    sentence = rf"^{output} is damaged \(.*\); delete it and embed the corpus again.$"
    with pytest.raises(OSError, match=sentence):
        list(iter_index(output))
    with pytest.raises(OSError, match=sentence):
        embed_corpus(Corpus(library), output, embedder, window_s=1.0)
    for approximate in (False, True):
        with pytest.raises(OSError, match=sentence):
            SoundIndex(output, HfClapPipeline(embedder.model, embedder.processor), approximate)
    assert output.read_bytes() == bytes(content)


def test_who_is_interrupted_does_not_wait_for_a_long_recording(embedder, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", noise(60.0), RATE)
    parts = []

    def counted(*arguments):
        for part in read_recordings(*arguments):
            parts.append(part)
            yield part

    def interrupted(*arguments):
        if len(parts) == 2:  # its content and its first windows
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        time.sleep(0.1)  # in which the main thread hears of it
        return hear_part(*arguments)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus_embedding, "read_recordings", counted)
    monkeypatch.setattr(corpus_embedding, "hear_part", interrupted)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            embed_corpus(Corpus(tmp_path), tmp_path / "x.parquet", embedder, window_s=1.0, hop_s=0.1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(parts) < 20  # of 75


def test_one_file_is_a_corpus(library, embedder, tmp_path):
    corpus = Corpus(library / "b" / "01.wav")
    assert [recording.path for recording in corpus] == ["01.wav"]
    assert corpus.total == 1


def test_sources_that_are_none(tmp_path):
    (tmp_path / "notes.txt").write_text("not a sound")
    for source in (str(tmp_path), str(tmp_path / "none"), str(tmp_path / "notes.txt")):
        with pytest.raises(OSError, match="is neither a folder with audio files in it nor a data set of sounds"):
            Corpus(source)


def test_a_recording_longer_than_a_batch_has_all_its_windows(embedder, tmp_path):
    soundfile.write(tmp_path / "long.wav", noise(21.0), RATE)
    done = embed_corpus(Corpus(tmp_path), tmp_path / "x.parquet", embedder, window_s=2.0, hop_s=1.0)
    assert done.windows == 20
    assert [(row["start"], row["end"]) for row in rows(done.output)] == [(s, s + 2.0) for s in range(20)]


def test_the_space_does_not_depend_on_the_dtype_or_on_being_saved(small_checkpoint, processor, tmp_path):
    models = [hf_clap.HfClapModel.from_pretrained(small_checkpoint, dtype=dtype) for dtype in ("float32", "bfloat16")]
    one, other = (Embedder(model, processor) for model in models)
    assert one.space_sha256 == other.space_sha256
    assert one.weights_sha256 != other.weights_sha256
    models[0].save_pretrained(tmp_path)  # which adds to the settings
    processor.save_pretrained(tmp_path)
    saved = hf_clap.pipeline(str(tmp_path), device="cpu").embedder
    assert saved.space_sha256 == one.space_sha256
    assert saved.weights_sha256 == one.weights_sha256
    with torch.no_grad():
        next(models[0].audio_model.parameters()).mul_(1.01)
    assert Embedder(models[0], processor).space_sha256 != other.space_sha256


def test_a_wrong_window_is_refused(embedder):
    with pytest.raises(
        ValueError,
        match=r"^window_s=11.0 is not possible; .* at most 10.0 s at once.$",
    ):
        window_reader(embedder, 11.0)
    with pytest.raises(
        ValueError, match=r"^hop_s=3.0 is not possible; it must be more than 0 and at most window_s=2.0"
    ):
        window_reader(embedder, 2.0, 3.0)


def test_what_is_read_can_be_sent_to_another_process(embedder, library):
    reader = window_reader(embedder, 1.0)
    assert len(pickle.dumps(reader)) < 100_000  # no weights
    assert index_info(Corpus(library), embedder, pickle.loads(pickle.dumps(reader))).window_s == 1.0


def test_contents_are_those_of_the_files(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    expected = hashlib.sha256(b"abc").hexdigest()
    for source in (tmp_path / "x", {"path": str(tmp_path / "x"), "bytes": None}, {"bytes": b"abc", "path": None}):
        assert audio_sha256(source) == expected
    assert audio_sha256(b"abc") == expected
    arrays = [np.zeros(3), np.zeros(3, np.float32), np.zeros((1, 3))]
    hashes = {audio_sha256({"array": array, "sampling_rate": rate}) for array in arrays for rate in (8000, 16000)}
    assert len(hashes) == 6
