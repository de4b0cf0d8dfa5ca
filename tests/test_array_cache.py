"""What was put is there, whole, whoever writes beside and whatever is killed."""

import random
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from hf_clap import array_cache
from hf_clap.array_cache import ArrayCache

# A process of its own, with the module alone: the whole package would take seconds to import.
START = "import runpy, sys, numpy as np; cache = runpy.run_path(sys.argv[1])['ArrayCache'](sys.argv[2])"

# Each number is put under four keys at once, over the last number, and told when it is there.
OVERWRITE = """
for number in range(int(sys.argv[3]), 10**9):
    cache.put({f"part {part}": {"number": np.full(50_000, number)} for part in range(4)})
    print(number, flush=True)
"""

PUT_FORTY = """
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    cache.put({f"{sys.argv[3]} {number}": {"number": np.array([number])}})
"""


def start(script, path, argument):
    """Run a script on the cache at `path`."""
    return subprocess.Popen(
        [sys.executable, "-c", START + script, array_cache.__file__, str(path), str(argument)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_arrays_come_back_to_the_bit(tmp_path):
    numbers = np.random.default_rng(0)
    arrays = {
        "float32": numbers.normal(size=(3, 5)).astype(np.float32),
        "float64": np.array([np.pi, -0.0, np.inf, np.nan]),
        "float16": numbers.normal(size=7).astype(np.float16),
        "int64": np.array([[2**62], [-1]]),
        "uint8": np.arange(256, dtype=np.uint8),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(1.5),
    }
    ArrayCache(tmp_path / "cache.sqlite").put({"a clip": arrays, "no arrays": {}})
    found = ArrayCache(tmp_path / "cache.sqlite").get(["a clip", "no arrays"])  # an instance that did not write them
    assert found["no arrays"] == {}
    assert found["a clip"].keys() == arrays.keys()
    for name, array in arrays.items():
        again = found["a clip"][name]
        assert (again.dtype, again.shape, again.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_only_what_is_asked_for_and_there(tmp_path):
    cache = ArrayCache(tmp_path / "new" / "folder" / "cache.sqlite")
    assert cache.get(["a", "b"]) == {}
    cache.put({name: {"x": np.array([number])} for number, name in enumerate("abc")})
    cache.put({"b": {"x": np.array([7])}})  # the last one counts
    found = cache.get(iter(["c", "missing", "b", "B"]))
    assert {name: arrays["x"].tolist() for name, arrays in found.items()} == {"c": [2], "b": [7]}


def test_a_put_that_fails_leaves_nothing(tmp_path):
    cache = ArrayCache(tmp_path / "cache.sqlite")
    cache.put({"old": {"x": np.array([1])}})
    with pytest.raises(UnicodeEncodeError):  # at the second row, after the first was written
        cache.put({"old": {"x": np.array([2])}, "\ud800": {"x": np.array([2])}})
    assert cache.get(["old"])["old"]["x"].tolist() == [1]


def test_a_killed_process_leaves_all_or_nothing_of_each_put(tmp_path):
    cache = ArrayCache(tmp_path / "cache.sqlite")
    keys = [f"part {part}" for part in range(4)]
    delays = random.Random(0)
    told = -1
    for _ in range(6):
        process = start(OVERWRITE, cache.path, told + 1)
        told = int(process.stdout.readline())
        time.sleep(delays.uniform(0, 0.1))
        process.kill()
        told = int((process.communicate()[0].splitlines() or [told])[-1])
        found = cache.get(keys)
        numbers = {number for key in keys for number in np.unique(found[key]["number"]).tolist()}
        assert len(numbers) == 1  # all four are of one put
        assert numbers <= {told, told + 1}  # the last that was told, or the next, which could not be told any more
        told = max(numbers)
    assert told >= 5  # at least one put of each process


def test_two_processes_at_once_lose_nothing(tmp_path):
    path = tmp_path / "cache.sqlite"
    writers = [start(PUT_FORTY, path, name) for name in ("first", "second")]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:  # both are there: now they start together
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    found = ArrayCache(path).get(f"{name} {number}" for name in ("first", "second") for number in range(40))
    assert [arrays["number"][0] for arrays in found.values()] == [*range(40), *range(40)]


def test_a_file_that_is_not_a_cache(tmp_path):
    path = tmp_path / "cache.sqlite"
    path.write_text("These are notes, and no database. " * 50)
    with pytest.raises(OSError, match=re.escape(f"The cache {path} cannot be used (file is not a database)")):
        ArrayCache(path)
    assert path.read_text().startswith("These are notes")  # and it is not written over


def test_a_file_that_is_damaged_later(tmp_path):
    cache = ArrayCache(tmp_path / "cache.sqlite")
    cache.path.write_text("Something else. " * 100)
    for use in (lambda: cache.get(["a"]), lambda: cache.put({"a": {"x": np.ones(1)}})):
        with pytest.raises(OSError, match=re.escape(f"The cache {cache.path} cannot be used")):
            use()


@pytest.mark.parametrize("value", [b"no arrays", None, "text"])
def test_an_entry_that_is_damaged(tmp_path, value):
    cache = ArrayCache(tmp_path / "cache.sqlite")
    with closing(sqlite3.connect(cache.path)) as connection, connection:
        connection.execute("INSERT INTO arrays VALUES ('a', ?)", (value,))
    with pytest.raises(OSError, match=re.escape(f"The cache {cache.path} cannot be used")):
        cache.get(["a"])


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    sentence = f"The folder {tmp_path / 'file'} cannot be made for a cache (File exists); choose another."
    with pytest.raises(OSError, match=f"^{re.escape(sentence)}$"):
        ArrayCache(tmp_path / "file" / "cache.sqlite")


def test_views_come_back_as_they_look(tmp_path):
    cache = ArrayCache(tmp_path / "cache.sqlite")
    arrays = {"strided": np.arange(10)[::2], "transposed": np.arange(6.0).reshape(2, 3).T, "scalar": np.float32(3)}
    cache.put({"key": arrays})
    for name, array in cache.get(["key"])["key"].items():
        assert np.array_equal(array, arrays[name])


def test_which_keys_are_there(tmp_path):
    cache = ArrayCache(tmp_path / "cache.sqlite")
    cache.put({key: {"x": np.ones(1)} for key in "abc"})
    assert cache.having(["a", "c", "d"]) == {"a", "c"}
    assert cache.all_keys() == {"a", "b", "c"}
