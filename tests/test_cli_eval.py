"""`hf-clap eval` and `hf-clap card` as people run them: real processes, real files."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard

import hf_clap
from conftest import noise, tone
from hf_clap import cli
from hf_clap.embedding import Embedder
from hf_clap.task_result import read_results
from hf_clap.tasks import TASKS

CLASSES = TASKS["esc10"].classes
CLIPS = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of tasks: ESC-10 with made-up sounds in five folds, and captions of the same sounds."""
    root = tmp_path_factory.mktemp("root")
    for name in ("esc10", "clotho_captions"):
        (root / name).mkdir()
    labels, captions = ["file_name,label,fold"], ["file_name,caption"]
    for number in range(CLIPS):
        label = CLASSES[number % 10]
        waveform = 0.1 * tone(1.5, 16000, 200.0 + 30 * number) + noise(1.5, 16000, number)
        soundfile.write(root / "esc10" / f"{number}.flac", waveform, 16000)
        labels.append(f"{number}.flac,{label.replace(' ', '_')},{(number // 10 + number) % 5 + 1}")
        if number < 5:
            soundfile.write(root / "clotho_captions" / f"{number}.flac", waveform, 16000)
            captions.append(f"{number}.flac,a sound of {label} | number {number}")
    (root / "esc10" / "metadata.csv").write_text("\n".join(labels) + "\n")
    (root / "clotho_captions" / "metadata.csv").write_text("\n".join(captions) + "\n")
    (root / "not_a_task").mkdir()
    (root / "only_sounds" / "esc10").mkdir(parents=True)
    return root


def run(*arguments):
    return cli.main(["eval", *map(str, arguments)])


def test_all_tasks_of_a_folder(root, tmp_path, capsys):
    output = tmp_path / "results.json"
    arguments = ["--task", "all", "--data-root", root, "--cache-dir", tmp_path / "cache", "--output", output]
    assert run(*arguments, "--plots", tmp_path / "plots") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["esc10", "zero-shot", "accuracy"],
        ["clotho_captions", "retrieval", "text_to_audio_r@1"],
    ]
    results = read_results([output])
    assert [(result.task, result.n) for result in results] == [("esc10", CLIPS), ("clotho_captions", 10)]
    assert f"{results[0].value:.4f}" in lines[1]
    assert sorted(file.name for file in (tmp_path / "plots").iterdir()) == [
        "esc10-zero-shot-classes.png",
        "esc10-zero-shot-confusion.png",
    ]
    first = output.read_text()
    assert str(root) not in first  # folders of a machine are nobody's business
    assert run(*arguments) == 0
    assert output.read_text() == first


def test_json_is_one_document_on_stdout(root, tmp_path, capsys):
    arguments = ["--task", "esc10", "--data-dir", root / "esc10", "--cache-dir", tmp_path, "--format", "json"]
    assert run(*arguments, "--setting", "probe", "--epochs", "2", "--seed", "3") == 0
    document = json.loads(capsys.readouterr().out)
    expected = {"task", "setting", "metric", "value", "ci95", "n", "per_class", "model", "prompt", "seed", "versions"}
    assert set(document) > expected
    assert (document["task"], document["setting"], document["seed"], document["n"]) == ("esc10", "probe", 3, CLIPS)
    assert document["prompt"] is None
    assert document["training"]["epochs"] == 2
    assert set(document["folds"]) == set("12345")
    assert set(document["per_class"]) == set(CLASSES)
    assert document["value"] == pytest.approx(np.mean(list(document["folds"].values())))
    assert document["model"] == "tiny"


def test_finetuning_leaves_stdout_to_the_document(root, tmp_path, capsys, small_checkpoint):
    arguments = ["--task", "esc10", "--data-root", root, "--cache-dir", tmp_path, "--model", small_checkpoint]
    assert run(*arguments, "--setting", "finetune", "--epochs", "1", "--format", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["setting"], document["n"], document["training"]["learning_rate"]) == ("finetune", CLIPS, 1e-4)


def test_killed_half_way_and_run_again(root, tmp_path, monkeypatch):
    """The same result file, and no clip embedded twice."""
    program = (
        "import sys, time\n"
        "from hf_clap import cli, task_embedding\n"
        "from hf_clap.embedding import Embedder\n"
        "task_embedding.WRITE_EVERY_S = -1.0\n"
        "embed = Embedder.clips\n"
        "def slowly(self, groups):\n"
        "    for group in embed(self, groups):\n"
        "        print('embedded', file=sys.stderr, flush=True)\n"
        "        yield group\n"
        "        time.sleep(0.3)\n"
        "Embedder.clips = slowly\n"
        "cli.main(sys.argv[1:])\n"
    )
    task = ["--task", "esc10", "--data-root", root, "--setting", "zero-shot", "--setting", "probe", "--epochs", "2"]
    one, two = ([*task, "--cache-dir", tmp_path / name, "--output", tmp_path / f"{name}.json"] for name in ("1", "2"))
    embedded, embed = [], Embedder.clips

    def counted(self, groups):
        return embed(self, (embedded.append(len(group)) or group for group in groups))

    monkeypatch.setattr(Embedder, "clips", counted)
    assert run(*one) == 0
    assert sum(embedded) == CLIPS
    groups = random.randint(2, 5)  # anew each time
    killed = subprocess.Popen(
        [sys.executable, "-c", program, "eval", *map(str, two)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    for line in killed.stderr:
        groups -= line.startswith("embedded")
        if groups == 0:
            break
    time.sleep(0.15)  # the group is kept by now, the next one is not there yet
    killed.send_signal(signal.SIGKILL)
    assert "embedded" not in killed.communicate()[1]
    assert not (tmp_path / "2.json").exists()
    embedded.clear()
    assert run(*two) == 0
    assert 0 < sum(embedded) < CLIPS
    assert (tmp_path / "2.json").read_text() == (tmp_path / "1.json").read_text()


def test_corrupt_audio_is_named(root, tmp_path, capsys):
    folder = tmp_path / "esc10"
    folder.mkdir()
    for file in (root / "esc10").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "7.flac").write_bytes(b"fLaC and then nothing")
    output = tmp_path / "result.json"
    assert run("--task", "esc10", "--data-dir", folder, "--cache-dir", tmp_path, "--output", output) == 1
    sentence = "7.flac is not an audio file that can be read; convert it to WAV or FLAC."
    assert f"hf-clap: esc10: 7.flac is left out: {sentence}" in capsys.readouterr().err
    [result] = read_results([output])
    assert (result.n, result.failed) == (CLIPS - 1, [{"file": "7.flac", "error": sentence}])


def test_prompts(root, tmp_path, capsys):
    data = ["--task", "esc10", "--data-root", root, "--cache-dir", tmp_path]
    output = tmp_path / "result.json"
    assert run(*data, "--template", "{}", "--template", "the sound of {}", "--output", output) == 0
    [ensemble] = read_results([output])
    assert ensemble.prompt == {"templates": ["{}", "the sound of {}"]}

    descriptions = tmp_path / "descriptions.json"
    descriptions.write_text(json.dumps({"dog": ["a dog barking"], "rain": "rain on a roof"}))
    assert run(*data, "--descriptions", descriptions, "--output", output) == 0
    [described] = read_results([output])
    assert described.prompt["descriptions"] == {"dog": ["a dog barking"], "rain": ["rain on a roof"]}

    capsys.readouterr()
    assert run(*data, "--prompt-sweep", "--template", "{}", "--template", "the sound of {}", "--output", output) == 0
    sweep = read_results([output])
    assert [result.prompt["templates"] for result in sweep] == [["{}"], ["the sound of {}"], ["{}", "the sound of {}"]]
    assert [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "{}",
        "the sound of {}",
        "{} + the sound of {}",
    ]
    assert sweep[2].items == ensemble.items
    assert run(*data, "--prompt-sweep", "--template", "{}", "--output", output) == 0
    assert [result.prompt["templates"] for result in read_results([output])] == [["{}"]]

    descriptions.write_text(json.dumps({"cat": ["a cat"]}))
    assert run(*data, "--descriptions", descriptions) == 2
    assert "describes 'cat', which is not a class; the classes are dog, rooster" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--task", "esc51"], "There is no task 'esc51'; choose all or one of esc50, fsd50k"),
        (["--task", "all", "--task", "esc10"], "--task all is all of them; leave the others out."),
        (["--task", "all", "--data-dir", "ROOT/esc10"], "--data-dir is the folder of one task; use --data-root"),
        (["--task", "esc50", "--data-root", "ROOT"], "has no folder esc50; add it, or leave esc50 out."),
        (["--task", "all", "--data-root", "ROOT/esc10"], "has no folder with the name of a task: esc50"),
        (
            ["--task", "all", "--data-root", "ROOT/none"],
            "is not a folder; name the one that holds the tasks' folders.",
        ),
        (["--task", "esc10", "--data-dir", "ROOT/none"], "has no metadata.csv; name a folder of ESC-10"),
        (["--task", "clotho", "--data-dir", "ROOT/esc10"], "has no column 'caption' but 'file_name', 'label', 'fold'"),
        (
            ["--task", "kitchen20", "--data-dir", "ROOT/esc10"],
            "row 2 is labelled 'dog', which is no class of Kitchen20",
        ),
        (
            ["--task", "fsd50k"],
            "FSD50K is not on the Hub in a form that can be pinned; https://zenodo.org/record/4060432",
        ),
        (["--task", "esc10", "--data-root", "ROOT", "--setting", "retrieval"], "ESC-10 cannot be done in the setting"),
        (["--task", "esc10", "--data-root", "ROOT", "--template", "no place"], "does not say where the label goes"),
        (
            ["--task", "esc10", "--setting", "probe", "--template", "{}"],
            "--template is for zero-shot, with classes; leave it out.",
        ),
        (
            ["--task", "esc10", "--setting", "probe", "--prompt-sweep"],
            "--prompt-sweep is zero-shot; leave --setting out.",
        ),
        (
            ["--task", "esc10", "--output", "ROOT/none/r.json"],
            "--output: the folder of ROOT/none/r.json does not exist; make it",
        ),
        (
            ["--task", "esc10", "--setting", "probe", "--epochs", "0"],
            "--epochs: '0' is not possible; choose a whole number of at least 1",
        ),
        (["--task", "esc10", "--epochs", "3"], "--epochs is for --setting probe and finetune; leave it out."),
        (
            ["--task", "esc10", "--setting", "finetune", "--layers", "3"],
            "--layers is for --setting probe; leave it out.",
        ),
        (["--compare", "ROOT/esc10/metadata.csv", "ROOT/esc10/metadata.csv"], "metadata.csv holds no results"),
        (["--compare", "a.json", "b.json", "--output", "c.json"], "with --format; leave out --output."),
        (
            ["--compare", "a.json", "b.json", "--layers", "3", "--seed", "9"],
            "with --format; leave out --layers, --seed",
        ),
        (["--task", "esc10", "--output", "ROOT"], "--output: ROOT is a folder; name a file"),
        (
            ["--task", "esc10", "--plots", "ROOT/esc10/metadata.csv"],
            "is a file; name a folder for --plots",
        ),
        (["--task", "esc10", "--output", "/dev/null"], "--output: /dev/null is a device or a pipe; name a file"),
        (
            ["--task", "esc10", "--output", f"ROOT/{'long' * 62}.json"],
            ".json cannot be written (File name too long); choose another",
        ),
        (
            ["--task", "esc10", "--plots", "ROOT/esc10/metadata.csv/plots"],
            "Nothing can be written to ROOT/esc10/metadata.csv/plots (Not a directory); choose another for --plots.",
        ),
        (
            ["--task", "clotho_captions", "--data-root", "ROOT", "--prompt-sweep"],
            "--prompt-sweep is for zero-shot, with classes; leave it out.",
        ),
        (
            ["--task", "clotho_captions", "--data-root", "ROOT", "--template", "{}"],
            "--template is for zero-shot, with classes; leave it out.",
        ),
        (
            ["--task", "clotho_captions", "--data-root", "ROOT", "--descriptions", "none.json"],
            "--descriptions is for zero-shot, with classes; leave it out.",
        ),
        (
            ["--task", "esc10", "--data-root", "ROOT", "--setting", "zero-shot", "--setting", "retrieval"],
            "ESC-10 cannot be done in the setting retrieval; choose zero-shot or probe or finetune.",
        ),
        (
            ["--task", "all", "--data-root", "ROOT/only_sounds", "--setting", "retrieval"],
            "No task can be done as retrieval; choose another --setting.",
        ),
        (["--task", "esc10", "--seed", "-1"], "--seed -1 is not possible; choose one from 0 to 4294967295."),
        (["--task", "esc10", "--batch-size", "0"], "--batch-size: '0' is not possible; choose a whole"),
    ],
)
def test_wrong_calls_say_what_to_do(root, tmp_path, capsys, arguments, sentence):
    filled = [argument.replace("ROOT", str(root)) for argument in arguments]
    cache = [] if "--compare" in arguments else ["--cache-dir", tmp_path]
    assert run(*filled, *cache) == 2
    captured = capsys.readouterr()
    assert sentence.replace("ROOT", str(root)) in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_one_task_that_fails_does_not_stop_the_others(root, tmp_path, capsys):
    broken = tmp_path / "root"
    for task in ("esc10", "clotho_captions"):
        (broken / task).mkdir(parents=True)
        for file in (root / task).iterdir():
            (broken / task / file.name).write_bytes(
                file.read_bytes() if file.suffix == ".csv" or task != "esc10" else b""
            )
    assert run("--task", "all", "--data-root", broken, "--cache-dir", tmp_path / "cache") == 1
    captured = capsys.readouterr()
    assert "hf-clap: esc10: No clip of ESC-10 can be read; the first says: 0.flac is empty (0 bytes)" in captured.err
    assert "clotho_captions" in captured.out


def test_a_task_that_does_not_fit_the_setting(root, tmp_path, capsys):
    arguments = ["--data-root", root, "--cache-dir", tmp_path, "--setting", "retrieval"]
    assert run("--task", "clotho_captions", "--task", "esc10", *arguments) == 1
    captured = capsys.readouterr()
    assert "hf-clap: esc10 is left out: it cannot be done as retrieval\n" in captured.err
    assert [line.split()[0] for line in captured.out.splitlines()] == ["task", "clotho_captions"]
    assert run("--task", "all", *arguments) == 0  # which names no task
    assert "left out" not in capsys.readouterr().err


def test_compare(root, tmp_path, capsys):
    data = ["--task", "esc10", "--data-root", root, "--cache-dir", tmp_path]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    assert run(*data, "--output", files[0]) == 0
    assert run(*data, "--setting", "probe", "--output", files[1]) == 0
    capsys.readouterr()
    assert run("--compare", *files) == 0
    lines = capsys.readouterr().out.splitlines()
    zero_shot, probe = read_results(files)
    assert lines[2].split()[:5] == [
        "esc10",
        "accuracy",
        f"{zero_shot.value:.4f}",
        f"{probe.value:.4f}",
        f"{probe.value - zero_shot.value:+.4f}",
    ]
    assert run("--compare", *files, "--format", "json") == 0
    [document] = json.loads(capsys.readouterr().out)
    outcomes = [[item["label"] == item["predicted"] for item in result.items] for result in (zero_shot, probe)]
    better = sum(b and not a for a, b in zip(*outcomes, strict=True))
    worse = sum(a and not b for a, b in zip(*outcomes, strict=True))
    assert document["n"] == CLIPS
    assert document["difference"] == pytest.approx((better - worse) / CLIPS)
    assert document["test"] == "McNemar, exact"


def test_card_of_a_checkpoint(root, tmp_path, capsys, small_checkpoint):
    folder = tmp_path / "my-clap"
    model = hf_clap.HfClapModel.from_pretrained(small_checkpoint)
    model.save_pretrained(folder)
    hf_clap.HfClapProcessor.from_pretrained(small_checkpoint).save_pretrained(folder)
    output = tmp_path / "results.json"
    arguments = ["--task", "all", "--data-root", root, "--cache-dir", tmp_path / "cache", "--output", output]
    assert run(*arguments, "--setting", "zero-shot", "--setting", "retrieval", "--model", folder) == 0
    capsys.readouterr()
    assert cli.main(["card", str(folder), "--results", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    zero_shot, retrieval = read_results([output])
    card = ModelCard.load(Path(folder) / "README.md")
    assert [(result.dataset_name, result.metric_type, result.metric_value) for result in card.data.eval_results] == [
        ("ESC-10", "accuracy", zero_shot.value),
        ("Clotho, seven clips", "recall_at_1", retrieval.value),
    ]
    assert f"| ESC-10 | zero-shot | accuracy | **{zero_shot.value:.3f}** |" in card.text
    assert cli.main(["card", str(folder), "--results", str(tmp_path / "none.json")]) == 2
    assert "none.json holds no results" in capsys.readouterr().err


def test_a_card_is_of_the_weights_that_were_measured(root, tmp_path, capsys, small_checkpoint):
    folder, output = tmp_path / "my-clap", tmp_path / "results.json"
    model = hf_clap.HfClapModel.from_pretrained(small_checkpoint)
    model.save_pretrained(folder)
    hf_clap.HfClapProcessor.from_pretrained(small_checkpoint).save_pretrained(folder)
    arguments = ["--task", "esc10", "--data-root", root, "--cache-dir", tmp_path / "cache", "--output", output]
    assert run(*arguments, "--model", folder, "--dtype", "bfloat16") == 0
    renamed = folder.rename(tmp_path / "renamed")
    assert cli.main(["card", str(renamed), "--results", str(output)]) == 0
    before = (renamed / "README.md").read_bytes()
    with torch.no_grad():
        model.logit_scale += 0.5
    model.save_pretrained(renamed)  # as after some more training
    capsys.readouterr()
    assert cli.main(["card", str(renamed), "--results", str(output)]) == 2
    assert f"{renamed} has others; run `hf-clap eval` with it, and name what that writes." in capsys.readouterr().err
    assert (renamed / "README.md").read_bytes() == before
