import csv
import io
import json
import os
import subprocess
import sys

import pytest
import soundfile

import hf_clap
from conftest import noise, tone
from hf_clap.cli import main

LABELS = ["--labels", "white noise, beep, dog"]


@pytest.fixture
def folder(tmp_path):
    """Two sounds, a broken one, and something that is no sound at all."""
    sounds = tmp_path / "sounds"
    (sounds / "deeper").mkdir(parents=True)
    soundfile.write(sounds / "a noise.wav", noise(2.0), 16000)
    soundfile.write(sounds / "deeper" / "tone.flac", tone(5.0, frequency=1000.0), 16000)
    (sounds / "broken.wav").write_text("this is no sound")
    (sounds / "notes.txt").write_text("nothing to hear")
    return sounds


def test_a_folder_as_json(folder, capsys):
    code = main(["tag", str(folder), *LABELS, "--format", "json", "--top-k", "2"])
    output = capsys.readouterr()
    rows = json.loads(output.out)
    assert code == 1
    assert [os.path.relpath(row["path"], folder) for row in rows] == ["a noise.wav", "broken.wav", "deeper/tone.flac"]
    assert rows[0]["predictions"][0]["label"] == "white noise"
    assert [len(row.get("predictions", [])) for row in rows] == [2, 0, 2]
    assert rows[1]["error"].startswith("broken.wav")
    assert output.err == f"hf-clap: {rows[1]['error']}\n"


def test_csv_has_a_line_for_each_prediction(folder, capsys):
    main(["tag", str(folder / "deeper/tone.flac"), *LABELS, "--format", "csv", "--timestamps", "--hop", "1"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 4 * 3
    assert [(row["start_s"], row["end_s"]) for row in rows[::3]] == [
        ("0.0", "2.0"),
        ("1.0", "3.0"),
        ("2.0", "4.0"),
        ("3.0", "5.0"),
    ]
    assert sum(float(row["score"]) for row in rows[:3]) == pytest.approx(1, abs=1e-6)


def test_csv_quotes_line_breaks(folder, capsys):
    (folder / "a noise.wav").rename(folder / "two\nlines.wav")
    main(["tag", str(folder / "two\nlines.wav"), *LABELS, "--format", "csv", "--top-k", "1"])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))
    assert row["path"].endswith("two\nlines.wav")


def test_csv_reports_errors(folder, capsys):
    assert main(["tag", str(folder / "broken.wav"), *LABELS, "--format", "csv"]) == 1
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["error"].startswith("broken.wav")
    assert row["label"] == ""


def test_table(folder, capsys):
    assert main(["tag", str(folder / "a noise.wav"), *LABELS, "--top-k", "1"]) == 0
    path, prediction = capsys.readouterr().out.splitlines()
    assert path == str(folder / "a noise.wav")
    assert prediction.split()[1:] == ["white", "noise"]
    main(["tag", str(folder / "a noise.wav"), *LABELS, "--top-k", "1", "--timestamps", "--window", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:21] for line in lines[1:]] == ["    0.00 -    1.00 s ", "    1.00 -    2.00 s "]


def test_globs_labels_file_and_templates(folder, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("white noise\n\nbeep\ndog\n", encoding="utf-8-sig")  # as Windows editors do
    arguments = ["tag", str(folder / "**" / "*.flac"), "--labels-file", str(labels), "--format", "json"]
    assert main([*arguments, "--template", "{}", "--template", "the sound of {}"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert {prediction["label"] for prediction in row["predictions"]} == {"white noise", "beep", "dog"}
    main(arguments)
    (other,) = json.loads(capsys.readouterr().out)
    assert other["predictions"] != row["predictions"]


def test_multi_label_and_threshold(folder, capsys):
    arguments = ["tag", str(folder / "a noise.wav"), *LABELS, "--format", "json", "--multi-label"]
    main(arguments)
    scores = [prediction["score"] for prediction in json.loads(capsys.readouterr().out)[0]["predictions"]]
    main(
        [
            "tag",
            str(folder / "a noise.wav"),
            *LABELS,
            "--format",
            "json",
            "--multi-label",
            "--threshold",
            str(scores[0]),
        ]
    )
    (row,) = json.loads(capsys.readouterr().out)
    assert [prediction["score"] for prediction in row["predictions"]] == scores[:1]
    main([*arguments, "--threshold", "model"])
    (row,) = json.loads(capsys.readouterr().out)
    assert [prediction["score"] for prediction in row["predictions"]] == [score for score in scores if score >= 0.1]


def test_plot_is_a_png(folder, tmp_path, capsys):
    picture = tmp_path / "timeline.png"
    assert main(["tag", str(folder / "deeper/tone.flac"), *LABELS, "--plot", str(picture)]) == 0
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(tmp_path.glob(".timeline*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}", "--labels", "dog, dog"], "Label 'dog' is there twice"),
        (["{folder}"], "one of the arguments --labels --labels-file is required (see hf-clap tag --help)"),
        (["{folder}", "--labels", "dog", "--top-k", "-1"], "--top-k: '-1' is not possible; choose a whole number"),
        (["{folder}", "--labels", "dog", "--batch-size", "0"], "--batch-size: '0' is not possible; choose a whole"),
        (["{folder}", "--labels", "dog", "--threshold", "high"], "'high' is not possible; pass a number from 0 to 1"),
        (["{folder}", "--labels", "dog", "--threshold", "1.5"], "'1.5' is not possible; pass a number from 0 to 1"),
        (["{folder}", "--labels", "dog", "--timestamps", "--hop", "0"], "--hop: '0' is not possible; choose a number"),
        (["{folder}", "--labels", "dog", "--timestamps", "--hop", "nan"], "--hop: 'nan' is not possible"),
        (["{folder}", "--labels", "dog", "--template", "a sound"], "write {} in its place"),
        (["{folder}", "--labels", "dog", "--model", "no/such-model"], "neither a folder with a checkpoint"),
        (["{folder}", "--labels", "dog", "--plot", "x.png"], "--plot draws one file, but there are 3"),
        (["{folder}", "--labels", "dog", "--window", "3"], "add one of them, or leave them out"),
        (["{folder}/a noise.wav", "--labels", "dog", "--plot", "no/folder/x.png"], "the folder of no/folder/x.png"),
        (["{folder}/a noise.wav", "--labels", "dog", "--plot", "{folder}"], "is a folder; name a file"),
        (["/dev/null", "--labels", "dog", "--plot", "x.png"], "/dev/null can be read once; save it to a file first"),
        (["", "--labels", "dog"], "One of the paths is empty"),
        (["{folder}/*.mp3", "--labels", "dog"], "Nothing matches"),
        (["{folder}/empty", "--labels", "dog"], "There are no audio files"),
        (["{folder}", "--labels-file", "{folder}/none.txt"], "none.txt"),
    ],
)
def test_impossible_calls_exit_with_2_and_a_sentence(folder, capsys, arguments, message):
    (folder / "empty").mkdir()
    assert main(["tag", *(argument.replace("{folder}", str(folder)) for argument in arguments)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "--port: '99999' is not possible; choose a whole number from 1 to 65535"),
        (["--port", "x"], "--port: 'x' is not possible; choose a whole number from 1 to 65535"),
        (["--sounds", "."], "--sounds is the folder of the recordings of --index; name both"),
        (
            ["--sounds", "/no/such/folder", "--index", "x.parquet"],
            "--sounds /no/such/folder is not a folder; name that",
        ),
    ],
)
def test_impossible_calls_of_the_page(capsys, arguments, message):
    pytest.importorskip("gradio", reason="gradio is in the extra `demo`")
    assert main(["demo", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_link_leads_to_the_file_to_write(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    assert main(["tag", str(folder / "deeper/tone.flac"), *LABELS, "--plot", str(tmp_path / "link.png")]) == 0
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "elsewhere" / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"hf-clap {hf_clap.__version__}\n"


def test_the_package_runs_as_a_module():
    finished = subprocess.run([sys.executable, "-m", "hf_clap", "--version"], capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (0, f"hf-clap {hf_clap.__version__}\n")


def test_a_missing_folder_is_named_as_missing(capsys):
    assert main(["tag", "nope/", "--labels", "dog"]) == 1
    assert "'nope/' does not exist in the folder '.'; check the path" in capsys.readouterr().err


def test_a_missing_file_is_reported_and_the_rest_go_on(folder, capsys):
    assert main(["tag", str(folder / "none.wav"), str(folder / "a noise.wav"), *LABELS, "--format", "json"]) == 1
    missing, found = json.loads(capsys.readouterr().out)
    assert missing["error"].startswith("none.wav does not exist")
    assert found["predictions"][0]["label"] == "white noise"


def test_a_name_that_is_no_text_ends_nothing(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16000)
    os.rename(os.fsencode(tmp_path / "a.wav"), os.fsencode(tmp_path) + b"/caf\xe9.wav")
    (tmp_path / "folder.wav").mkdir()
    program = "\n".join(
        [
            "import sys",
            "from hf_clap.cli import main",
            'for output_format in ("json", "csv", "table"):',
            '    assert main([*sys.argv[1:], "--format", output_format]) == 0',
            '    print("end of document", flush=True)',
        ]
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, "tag", str(tmp_path), *LABELS],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (finished.returncode, finished.stderr) == (0, b"")
    as_json, as_csv, as_table, rest = finished.stdout.split(b"end of document\n")
    assert rest == b""
    assert all(b"white noise" in document for document in (as_json, as_csv, as_table))
    (row,) = json.loads(as_json)
    assert row["path"].endswith("caf\udce9.wav")


def test_programs_read_utf8_whatever_the_console_has(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    main(["tag", str(folder / "a noise.wav"), "--labels", "雨, café", "--format", "csv"])
    sys.stdout.flush()
    rows = csv.DictReader(io.StringIO(sys.stdout.buffer.getvalue().decode()))
    assert {row["label"] for row in rows} == {"雨", "café"}


def test_a_reader_that_has_had_enough(tmp_path):
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", noise(1.0), 16000)
    command = f"{sys.executable} -m hf_clap tag {tmp_path} --labels dog | true"
    finished = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert finished.stderr == ""


def test_the_installed_command_prints_only_the_document(folder):
    """As a script would call it: a process of its own, stdout a pipe."""
    finished = subprocess.run(
        [sys.executable, "-m", "hf_clap", "tag", str(folder), *LABELS, "--format", "json"],
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    assert len(json.loads(finished.stdout)) == 3
    assert finished.stderr.startswith("hf-clap: broken.wav")
    assert finished.stderr.count("\n") == 1
