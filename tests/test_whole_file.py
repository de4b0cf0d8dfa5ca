"""A file that is there when it is complete, and not before."""

import pytest

from hf_clap.whole_file import whole_file


def write_half(place):
    with whole_file(place) as unfinished:
        unfinished.write_text("half")
        raise OSError("no room")


def test_an_error_leaves_the_file_before_and_nothing_else(tmp_path):
    with pytest.raises(OSError, match="no room"):
        write_half(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []
    with whole_file(tmp_path / "a.txt") as unfinished:
        unfinished.write_text("whole")
    with pytest.raises(OSError, match="no room"):
        write_half(tmp_path / "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"
