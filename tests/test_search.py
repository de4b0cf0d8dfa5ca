"""Searching an index, by the class, by the command and by FAISS; and indexes made by several processes."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import soundfile

import hf_clap
from conftest import noise, tone
from hf_clap import SoundIndex, cli, search
from hf_clap.corpus import Corpus
from hf_clap.corpus_embedding import embed_corpus, index_info, window_reader
from hf_clap.index_file import EmbeddedRecording, IndexWriter, iter_index, read_info

ROOT = Path(__file__).resolve().parents[1]
SOUNDS = ROOT / "examples" / "audio"
DIM = 553


@pytest.fixture(scope="module")
def sounds(tiny_tagger, tmp_path_factory):
    """The index of the example sounds."""
    output = tmp_path_factory.mktemp("index") / "sounds.parquet"
    return embed_corpus(Corpus(SOUNDS), output, tiny_tagger.embedder, window_s=4.0).output


def write_vectors(output, tagger, embeds, hop_s=1.0):
    """An index of vectors, as if each recording had ten windows."""
    reader = window_reader(tagger.embedder, 1.0, hop_s)
    info = replace(index_info(Corpus(SOUNDS), tagger.embedder, reader), source="vectors")
    spans = np.stack([np.arange(10) * hop_s, np.arange(10) * hop_s + 1.0], axis=1)
    with IndexWriter(output, info) as writer:
        for number in range(0, len(embeds), 10):
            name, content = f"{number:06}.wav", f"{hash(embeds[number].tobytes()):064x}"
            writer.add([EmbeddedRecording(name, content, spans, embeds[number : number + 10])])
    return output


def random_vectors(count, seed=0):
    """Around 200 centers, L2-normalised float16."""
    generator = np.random.default_rng(seed)
    centers = generator.normal(size=(200, DIM))
    vectors = centers[generator.integers(200, size=count)] + generator.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def vectors():
    return random_vectors(20_000)


@pytest.fixture(scope="module")
def vector_index(vectors, tiny_tagger, tmp_path_factory):
    return write_vectors(tmp_path_factory.mktemp("vectors") / "vectors.parquet", tiny_tagger, vectors)


def test_exact_search_is_all_products(vectors, vector_index, tiny_tagger):
    index = SoundIndex(vector_index, tiny_tagger)
    assert (len(index), index.approximate) == (20_000, False)
    queries = random_vectors(7, seed=1).astype(np.float32)
    scores, rows = index.nearest(queries, 13)
    products = queries @ vectors.astype(np.float32).T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :13]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, axis=1), atol=1e-6)
    assert index.nearest(queries, 50_000)[1].shape == (7, 20_000)


def test_faiss_finds_what_exact_search_finds(vectors, vector_index, tiny_tagger, capfd):
    exact = SoundIndex(vector_index, tiny_tagger, approximate=False)
    index = SoundIndex(vector_index, tiny_tagger, approximate=True)
    queries = np.concatenate([vectors[::200], random_vectors(100, seed=1)]).astype(np.float32)
    found_scores, found = index.nearest(queries, 10)
    scores, rows = exact.nearest(queries, 10)
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, rows, strict=True)])
    assert recall >= 0.95
    same = found[:, 0] == rows[:, 0]
    assert same.mean() >= 0.95
    np.testing.assert_allclose(found_scores[same, 0], scores[same, 0], atol=2e-6)  # exact, for what is found

    [file] = vector_index.parent.glob("*.faiss")
    made = file.stat().st_mtime_ns
    again = SoundIndex(vector_index, tiny_tagger, approximate=True)
    assert file.stat().st_mtime_ns == made
    np.testing.assert_array_equal(again.nearest(queries, 10)[1], found)
    with open("/proc/self/maps") as maps:
        assert str(file) in maps.read()  # memory-mapped


def test_faiss_of_other_rows_is_made_anew(tiny_tagger, tmp_path):
    output = write_vectors(tmp_path / "x [1].parquet", tiny_tagger, random_vectors(500))
    SoundIndex(output, tiny_tagger, approximate=True)
    [first] = tmp_path.glob("x*.faiss")
    write_vectors(output, tiny_tagger, random_vectors(600, seed=2))
    index = SoundIndex(output, tiny_tagger, approximate=True)
    [second] = tmp_path.glob("x*.faiss")
    assert first != second
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x [1].parquet.lock", second.name, output.name]
    query = random_vectors(600, seed=2)[590].astype(np.float32)
    assert index.nearest(query[None], 1)[1].item() == 590


def test_a_damaged_faiss_index_is_one_sentence(tiny_tagger, tmp_path):
    output = write_vectors(tmp_path / "x.parquet", tiny_tagger, random_vectors(500))
    SoundIndex(output, tiny_tagger, approximate=True)
    [file] = tmp_path.glob("x*.faiss")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(OSError, match=r"\.faiss is damaged; delete it, and the next search makes it again\.$"):
        SoundIndex(output, tiny_tagger, approximate=True)
    file.unlink()
    assert len(SoundIndex(output, tiny_tagger, approximate=True)) == 500


def test_a_faiss_index_of_something_else_is_one_sentence(tiny_tagger, tmp_path):
    for name, count in (("a", 100), ("b", 200)):
        index = write_vectors(tmp_path / f"{name}.parquet", tiny_tagger, random_vectors(count))
        SoundIndex(index, tiny_tagger, approximate=True)
    [small], [large] = tmp_path.glob("a.*.faiss"), tmp_path.glob("b.*.faiss")
    small.write_bytes(large.read_bytes())
    with pytest.raises(OSError, match=r"\.faiss is damaged; delete it, and the next search makes it again\.$"):
        SoundIndex(tmp_path / "a.parquet", tiny_tagger, approximate=True)


def test_a_faiss_index_that_cannot_be_written_is_one_sentence(tiny_tagger, tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    output = write_vectors(tmp_path / "x.parquet", tiny_tagger, random_vectors(500))
    before = sorted(path.name for path in tmp_path.iterdir())
    write_index = faiss.write_index
    monkeypatch.setattr(faiss, "write_index", lambda index, _: write_index(index, "/dev/full"))
    with pytest.raises(OSError, match="cannot be written; make room there, or search without --approximate"):
        SoundIndex(output, tiny_tagger, approximate=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_beyond_a_million_windows_faiss_is_the_default(vector_index, tiny_tagger, monkeypatch):
    monkeypatch.setattr(search, "EXACT_WINDOWS", 19_999)
    assert SoundIndex(vector_index, tiny_tagger).approximate
    assert not SoundIndex(vector_index, tiny_tagger, approximate=False).approximate


@pytest.mark.parametrize("approximate", [False, True])
def test_windows_that_overlap_a_better_one_are_left_out(tiny_tagger, tmp_path, approximate):
    """Windows of 1 s each 0.5 s: of ten, 0.5 to 5.5 s, the best is the fifth, and every other one is left."""
    query = random_vectors(1)[0].astype(np.float32)
    other = random_vectors(20, seed=3).astype(np.float32)
    weights = np.array([5, 6, 7, 8, 10, 9, 4, 3, 2, 1] + [0] * 10)[:, None] / 10
    embeds = weights * query + (1 - weights) * other
    embeds = (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float16)
    output = write_vectors(tmp_path / "x.parquet", tiny_tagger, embeds, hop_s=0.5)
    index = SoundIndex(output, tiny_tagger, approximate=approximate)
    index.embed_query = lambda text, audio: query
    found = [(moment["path"], moment["timestamp"]) for moment in index.search("x", top_k=5)]
    assert found == [("000000.wav", (start, start + 1.0)) for start in (2.0, 1.0, 0.0, 3.0, 4.0)]
    assert len(index.search("x", top_k=100)) < 20  # all that there is


def test_words_and_sounds_find_moments(sounds, tiny_tagger):
    index = SoundIndex(sounds, tiny_tagger)
    for words, name, span in [
        ("an ambulance with its siren on", "siren.flac", (16.0, 20.0)),
        ("rain", "rain.flac", (12.0, 16.0)),
        ("a ticking clock", "ticking_clock.flac", (8.0, 12.0)),
    ]:
        found = index.search(words, top_k=2)
        assert {(moment["path"], moment["timestamp"][0]) for moment in found} >= {("long_scene.flac", span[0])}
        assert name in {moment["path"] for moment in found}
    [itself, like_it] = index.search(audio=SOUNDS / "helicopter.flac", top_k=2)
    assert itself["path"] == "helicopter.flac"
    assert itself["score"] == pytest.approx(1.0, abs=2e-3)
    assert (like_it["path"], like_it["timestamp"]) == ("long_scene.flac", (20.0, 24.0))


def test_scores_are_cosines(sounds, tiny_tagger):
    [best] = SoundIndex(sounds, tiny_tagger).search("rain", top_k=1)
    rows = pyarrow.parquet.read_table(sounds).to_pylist()
    query = tiny_tagger.embedder.texts(["rain"])[0]
    assert best["score"] == pytest.approx(max(np.array(row["embedding"]) @ query for row in rows), abs=1e-6)


def test_no_cosine_is_beyond_1(tiny_tagger, tmp_path, monkeypatch):
    """Embeddings are rounded to float16, some to a little more than length 1."""
    vectors = np.float16(1.001) * np.array([1, -1] * 5, np.float16)[:, None] * np.eye(1, DIM, dtype=np.float16)
    index = SoundIndex(write_vectors(tmp_path / "a.parquet", tiny_tagger, vectors), tiny_tagger)
    query = np.eye(1, DIM, dtype=np.float32)
    monkeypatch.setattr(index, "embed_query", lambda *_: query[0])
    assert abs(index.nearest(query, 10)[0]).min() > 1
    assert [moment["score"] for moment in index.search("x", top_k=10)] == [1.0] * 5 + [-1.0] * 5


def test_an_index_is_that_of_one_moment(tiny_tagger, tmp_path, monkeypatch):
    """Also while another one takes its place."""
    vectors = np.eye(20, DIM, dtype=np.float16)
    index = write_vectors(tmp_path / "a.parquet", tiny_tagger, vectors)
    other = write_vectors(tmp_path / "b.parquet", tiny_tagger, vectors[::-1])
    expected = SoundIndex(index, tiny_tagger).nearest(vectors[:1].astype(np.float32), 1)
    read = search._read_embeds

    def replaced_meanwhile(*arguments):
        os.replace(other, index)
        return read(*arguments)

    monkeypatch.setattr(search, "_read_embeds", replaced_meanwhile)
    found = SoundIndex(index, tiny_tagger).nearest(vectors[:1].astype(np.float32), 1)
    assert all(np.array_equal(one, another) for one, another in zip(found, expected, strict=True))
    assert expected[1].tolist() == [[0]]


def test_an_index_of_another_model_is_refused(sounds, small_checkpoint, tiny_tagger):
    with pytest.raises(
        ValueError, match=r"was made with tiny \(.{12}\), and this is small_checkpoint0 \(.{12}\), whose"
    ):
        SoundIndex(sounds, str(small_checkpoint))
    other = hf_clap.pipeline(device="cpu", dtype="bfloat16")  # the same model
    [exact], [rounded] = (SoundIndex(sounds, tagger).search("rain", top_k=1) for tagger in (tiny_tagger, other))
    assert (rounded["path"], rounded["timestamp"]) == (exact["path"], exact["timestamp"])
    assert rounded["score"] == pytest.approx(exact["score"], abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "^Search for a text or for audio; pass one of both.$"),
        ({"text": "rain", "audio": "rain.wav"}, "^Search for a text or for audio; pass one of both.$"),
        ({"text": " "}, "^' ' is nothing to search for; pass words"),
        ({"text": "rain", "top_k": 0}, "^top_k=0 is not possible; pass a whole number of at least 1.$"),
        ({"audio": b"no sound"}, "^The encoded audio "),
    ],
)
def test_bad_queries(sounds, tiny_tagger, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        SoundIndex(sounds, tiny_tagger).search(**arguments)


def test_files_that_are_no_index(tmp_path, tiny_tagger):
    with pytest.raises(FileNotFoundError, match=r"none.parquet does not exist; make it with `hf-clap embed SOURCE -o"):
        SoundIndex(tmp_path / "none.parquet", tiny_tagger)
    with pytest.raises(IsADirectoryError, match="is a folder; name the file in it"):
        SoundIndex(tmp_path, tiny_tagger)


def test_the_commands(tmp_path, capsys):
    index = str(tmp_path / "sounds.parquet")
    assert cli.main(["embed", str(SOUNDS), "-o", index, "--window", "4", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{index}: 8 recordings, 20 windows; 0 were embedded before, the others at ")
    assert cli.main(["search", "a siren", "--index", index, "--top-k", "2", "--format", "json"]) == 0
    moments = json.loads(capsys.readouterr().out)
    assert {moment["path"] for moment in moments} == {"siren.flac", "long_scene.flac"}
    assert cli.main(["search", "--audio", str(SOUNDS / "rain.flac"), "--index", index, "--top-k", "1"]) == 0
    assert re.fullmatch(r"1.000      [01].00 -     [45].00 s  rain.flac\n", capsys.readouterr().out)
    assert cli.main(["search", "a siren", "--index", index, "--approximate", "--top-k", "1"]) == 0
    assert len(list(tmp_path.glob("sounds.*.faiss"))) == 1
    capsys.readouterr()
    assert cli.main(["search", "a siren", "--index", str(tmp_path / "none.parquet")]) == 2
    assert capsys.readouterr().err.startswith(f"hf-clap: {tmp_path}/none.parquet does not exist; make it with")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A folder of 72 short sounds and a broken one."""
    folder = tmp_path_factory.mktemp("library")
    for number in range(72):
        sound = noise(0.5 + number / 40, seed=number) if number % 2 else tone(0.5, frequency=90.0 + 9 * number)
        soundfile.write(folder / f"{number:02}.wav", sound, 16000)
    (folder / "50.wav").write_text("not a sound")
    return folder


@pytest.fixture(scope="module")
def in_one_process(library, tiny_tagger, tmp_path_factory):
    output = tmp_path_factory.mktemp("one") / "sounds.parquet"
    return embed_corpus(Corpus(library), output, tiny_tagger.embedder, window_s=1.0).output


def test_accelerate_with_two_processes_writes_the_same_file(library, in_one_process, tmp_path):
    output = tmp_path / "sounds.parquet"
    configuration = ROOT / "examples" / "launch" / "cpu_2_processes.yaml"
    launch = ["-m", "accelerate.commands.launch", "--config_file", configuration]
    script = [ROOT / "examples" / "embed_accelerate.py", library, "-o", output, "--window", "1"]
    command = [sys.executable, *launch, *script]
    with IndexWriter(output, replace(read_info(in_one_process), recordings=0, windows=0, rows_sha256="")) as writer:
        writer.add(list(iter_index(in_one_process))[:40])
    finished = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    assert f"71 recordings, {read_info(output).windows} windows, 40 kept" in finished.stdout
    assert f"{output.with_suffix('.failed.jsonl')}: 1 recordings that cannot be read\n" in finished.stdout
    assert output.read_bytes() == in_one_process.read_bytes()
    assert json.loads(output.with_suffix(".failed.jsonl").read_text())["path"] == "50.wav"


RAY_PROGRAM = """
import os, time
import psutil
import ray
from ray.cluster_utils import Cluster
import embed_ray

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
nodes = sum(node["Alive"] for node in ray.nodes())

def kill_an_actor():
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker(Map(Ear))"):
            if process.environ().get("HF_CLAP_TEST") == os.environ["HF_CLAP_TEST"]:  # and not somebody else's
                process.kill()
                print("killed an actor", flush=True)
                return

write_groups = embed_ray.write_groups
def write_and_kill(writer, groups, total):
    def watched():
        for number, group in enumerate(groups):
            if number == 2:
                kill_an_actor()
            yield group
    write_groups(writer, watched(), total)

embed_ray.write_groups = write_and_kill
embed_ray.GROUPS_IN_A_TASK = 1
embed_ray.main()
print("nodes", nodes)
ray.shutdown()
cluster.shutdown()
"""


def test_ray_on_two_nodes_with_an_actor_killed_writes_the_same_file(library, in_one_process, tmp_path):
    output = tmp_path / "sounds.parquet"
    finished = subprocess.run(
        [sys.executable, "-c", RAY_PROGRAM, library, "-o", output, "--window", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT / "examples"), "HF_CLAP_TEST": str(tmp_path)},
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "killed an actor\n" in finished.stdout
    assert f"{output.with_suffix('.failed.jsonl')}: 1 recordings that cannot be read\n" in finished.stdout
    assert "nodes 2\n" in finished.stdout
    assert output.read_bytes() == in_one_process.read_bytes()
    assert json.loads(output.with_suffix(".failed.jsonl").read_text())["path"] == "50.wav"
