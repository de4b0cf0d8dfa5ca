"""Cards with results: what the Hub reads of them, what stays of the card before, and that ours are generated."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

import hf_clap
from hf_clap.benchmark_card import END, MEASURED_AS, START, benchmark_card, published_card, results_table
from hf_clap.checkpoint_file import KINDS
from hf_clap.model_card import write_card
from hf_clap.task_result import TaskResult, read_results
from hf_clap.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]


def result(**fields):
    return TaskResult(
        **{
            "task": "esc50",
            "title": "ESC-50",
            "setting": "zero-shot",
            "metric": "accuracy",
            "value": 0.71251,
            "ci95": (0.69, 0.733),
            "chance": 0.02,
            "n": 2000,
            "metrics": {"accuracy": 0.71251},
            "per_class": {},
            "folds": {},
            "items": [],
            "failed": [],
            "model": "tiny",
            "model_revision": None,
            "weights": "abc" * 10,
            "prompt": {"templates": ["{}", "the sound of {}"]},
            "seed": 0,
            "training": None,
            "data": {"source": "mteb/esc50", "revision": "3" * 40, "sha256": "4" * 64},
            "versions": {"torch": "2.13.0"},
        }
        | fields
    )


PROBE = result(
    setting="probe", value=0.85, ci95=(0.8, 0.9), prompt=None, training={"epochs": 30, "learning_rate": 0.001}
)
LOCAL = result(
    task="esc10",
    title="ESC-10",
    data={"source": "folder", "revision": None, "sha256": "5" * 64},
    failed=[{"file": "a.wav", "error": "a.wav is empty"}],
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    text = "---\nlicense: mit\ntags:\n- audio\n---\n# My CLAP\n\nHow it came about.\n\n## Limits\n\nMany.\n"
    (tmp_path / "README.md").write_text(text)
    return tmp_path


def test_published_numbers_stand_beside_ours():
    lines = results_table([result(), PROBE])
    others = (
        "CLAP 2022 0.826, CLAP 2023 0.939, LAION-CLAP music_speech_audioset 0.900, WavCaps 0.948, MGA-CLAP 0.949, "
        "tinyCLAP 0.763"
    )
    assert lines[2] == f"| ESC-50 | zero-shot | accuracy | **0.713** | 0.690 - 0.733 | 0.020 | 2000 | {others} |"
    assert lines[3] == "| ESC-50 | probe | accuracy | **0.850** | 0.800 - 0.900 | 0.020 | 2000 | CLAP 2022 0.931 |"
    assert results_table([LOCAL])[0].endswith("| clips or queries |")  # nobody has published any


def test_the_hub_reads_the_results(folder):
    write_card(folder, benchmark_card(folder, [result(), PROBE, LOCAL]))
    metadata = metadata_load(folder / "README.md")
    assert (metadata["license"], metadata["tags"]) == ("mit", ["audio"])
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "My CLAP"
    found = [
        (r.task_type, r.dataset_type, r.dataset_name, r.dataset_revision, r.metric_name, r.metric_value)
        for r in results
    ]
    assert found == [
        ("zero-shot-audio-classification", "mteb/esc50", "ESC-50", "3" * 40, "accuracy (zero-shot)", 0.71251),
        ("audio-classification", "mteb/esc50", "ESC-50", "3" * 40, "accuracy (probe)", 0.85),
        ("zero-shot-audio-classification", "esc10", "ESC-10", None, "accuracy (zero-shot)", 0.71251),
    ]


def test_the_rest_of_the_card_stays_and_results_are_replaced(folder):
    write_card(folder, benchmark_card(folder, [result(), LOCAL]))
    first = (folder / "README.md").read_text()
    assert "How it came about.\n\n## Limits\n\nMany.\n\n## Benchmark\n\n" + START in first
    assert "- `{}`, `the sound of {}`: ESC-50; ESC-10" in first
    assert "- ESC-10: a.wav\n" in first
    write_card(folder, benchmark_card(folder, [PROBE]))
    second = ModelCard.load(folder / "README.md")
    assert second.text.count(START) == second.text.count(END) == 1
    assert "- probe, epochs 30, learning rate 0.001: ESC-50" in second.text
    assert "zero-shot" not in second.text
    assert [r.metric_value for r in second.data.eval_results] == [0.85]
    write_card(folder, benchmark_card(folder, [result(), LOCAL]))
    assert (folder / "README.md").read_text() == first


def test_results_of_your_own_task_are_replaced(folder):
    for value in (0.1, 0.2):
        own = dataclasses.replace(result(), task="mine", title="My set", value=value)
        write_card(folder, benchmark_card(folder, [own]))
    assert [r.metric_value for r in ModelCard.load(folder / "README.md").data.eval_results] == [0.2]


@pytest.mark.parametrize(("mark", "instead"), [(START, ""), (END, ""), (START, f"{START}\n{START}")])
def test_a_mark_that_is_alone_is_refused(folder, mark, instead):
    write_card(folder, benchmark_card(folder, [result()]))
    before = (folder / "README.md").read_text().replace(mark, instead)
    (folder / "README.md").write_text(before)
    with pytest.raises(ValueError, match=f"README.md must have {START} and {END} once each"):
        benchmark_card(folder, [PROBE])
    assert (folder / "README.md").read_text() == before


def test_results_of_others_stay(folder):
    before = ModelCard.load(folder / "README.md")
    data = ModelCardData(
        model_name="Mine",
        eval_results=model_index_to_eval_results(
            [
                {
                    "name": "Mine",
                    "results": [
                        {
                            "task": {"type": "audio-classification"},
                            "dataset": {"type": "user/own", "name": "own sounds"},
                            "metrics": [{"type": "accuracy", "value": 0.5}],
                        }
                    ],
                }
            ]
        )[1],
    )
    before.data = data
    before.save(folder / "README.md")
    card = benchmark_card(folder, [result()])
    assert card.data.model_name == "Mine"
    assert {r.dataset_name: r.metric_value for r in card.data.eval_results} == {"own sounds": 0.5, "ESC-50": 0.71251}


def with_own_results(folder, *rows):
    """The card with results that its user has put there: rows of data set, metric and value."""
    own = [
        EvalResult("audio-classification", f"own/{name}", name, "accuracy", value, metric_name=m)
        for name, m, value in rows
    ]
    card = ModelCard.load(folder / "README.md")
    card.data.model_name, card.data.eval_results = "Mine", own
    card.save(folder / "README.md")


def in_index(folder):
    found = ModelCard.load(folder / "README.md").data.eval_results
    return [(result.dataset_name, result.metric_name, result.metric_value) for result in found]


def test_own_results_on_data_of_the_benchmark_stay(folder):
    own = [("ESC-50", "top 5 accuracy", 0.5), ("ESC-10", "accuracy (probe)", 0.6), ("a|b", "accuracy (mine)", 0.7)]
    with_own_results(folder, *own, ("ESC-50", "accuracy (probe)", 0.8))
    odd = result(task="odd", title="a|b")
    for value in (0.1, 0.2):  # the second time our row of a|b stands in the card
        probe = dataclasses.replace(PROBE, value=value)
        write_card(folder, benchmark_card(folder, [probe, odd]))
        assert in_index(folder) == [
            *own,
            ("ESC-50", "accuracy (probe)", value),
            ("a|b", "accuracy (zero-shot)", 0.71251),
        ]
    write_card(folder, benchmark_card(folder, [probe]))
    assert in_index(folder) == [*own, ("ESC-50", "accuracy (probe)", 0.2)]


def test_a_sweep_says_its_prompts(folder):
    sweep = [result(prompt={"templates": [template]}, value=value) for template, value in (("{}", 0.1), ("a|{}", 0.2))]
    card = benchmark_card(folder, [*sweep, PROBE])
    cells = [line.split(" | ")[1] for line in card.text.splitlines() if line.startswith("| ESC-50 |")]
    assert cells == ["zero-shot, `{}`", "zero-shot, `a\\|{}`", "probe"]
    write_card(folder, card)
    assert in_index(folder) == [("ESC-50", "accuracy (zero-shot)", 0.1), ("ESC-50", "accuracy (probe)", 0.85)]
    write_card(folder, benchmark_card(folder, [LOCAL]))
    assert in_index(folder) == [("ESC-10", "accuracy (zero-shot)", 0.71251)]
    layers = [dataclasses.replace(PROBE, training={"layers": count}) for count in (1, 3)]
    assert [line.split(" | ")[1] for line in results_table(layers)[2:]] == ["probe, layers 1", "probe, layers 3"]


def test_results_of_several_runs(folder):
    with pytest.raises(ValueError, match=r"^A result of ESC-50 \(probe\) is given twice; name each file once\.$"):
        benchmark_card(folder, [PROBE, LOCAL, PROBE])
    other = dataclasses.replace(LOCAL, model="big", weights="def" * 10)
    sentence = (
        r"^The results are of several models \(tiny abcabcabcabcabca, big defdefdefdefdefd\); write a card for each"
    )
    with pytest.raises(ValueError, match=sentence):
        benchmark_card(folder, [PROBE, other])
    seeded = [dataclasses.replace(PROBE, seed=1), dataclasses.replace(LOCAL, versions={"torch": "2.6.0"})]
    lines = benchmark_card(folder, [result(), *seeded, LOCAL]).text.splitlines()
    weights = "Weights `abcabcabcabcabca`, seed"
    assert [line for line in lines if line.startswith("Weights")] == [
        f"{weights} 0; torch 2.13.0.",
        f"{weights} 1; torch 2.13.0.",
        f"{weights} 0; torch 2.6.0.",
    ]


def test_folders_of_a_machine_are_not_in_the_card(folder):
    failed = [
        {"file": f"{folder}/a.wav", "error": f"a.wav does not exist in {folder}"},
        {"file": "b/c.wav", "error": ""},
    ]
    text = benchmark_card(folder, [dataclasses.replace(LOCAL, failed=failed)]).text
    assert "- ESC-10: a.wav\n- ESC-10: b/c.wav\n" in text
    assert str(folder) not in text


def test_recall_can_be_on_a_card(folder):
    [indexed] = benchmark_card(folder, [result(metric="recall")]).data.eval_results
    assert (indexed.metric_type, indexed.metric_name) == ("recall", "recall (zero-shot)")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"---\nlicense: [mit\n---\n# A\n", "while parsing a flow sequence"),
        (b"---\n- mit\n---\n# A\n", "repo card metadata block should be a dict"),
        (b"---\nlicense: mit\n---\n# \xff\n", "'utf-8' codec can't decode"),
        (b"---\nmodel-index:\n- name: a\n---\n# A\n", "Invalid `model_index` in metadata cannot be parsed"),
        (b"---\nmodel-index: some\n---\n# A\n", "Invalid `model_index` in metadata cannot be parsed"),
    ],
)
def test_a_card_that_cannot_be_read(folder, content, reason):
    (folder / "README.md").write_bytes(content)
    sentence = f"{folder / 'README.md'} cannot be read as a model card in UTF-8 ({reason}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}[^\n]*; correct it\\.$"):
        benchmark_card(folder, [result()])


def test_line_ends_of_windows_stay(folder):
    readme = folder / "README.md"
    readme.write_bytes(readme.read_bytes().replace(b"\n", b"\r\n"))
    for _ in range(2):
        write_card(folder, benchmark_card(folder, [result()]))
        assert readme.read_bytes().count(b"\n") == readme.read_bytes().count(b"\r\n") > 20
        assert metadata_load(readme)["model-index"][0]["name"] == "My CLAP"


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="There are no results; give those of at least one task"):
        benchmark_card(hf_clap.TINY, [])
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; name a folder that save_pretrained has written"):
        benchmark_card(tmp_path, [result()])


def test_public_checkpoints_have_what_others_measured():
    assert set(MEASURED_AS) == set(KINDS)
    card = published_card("msclap-2022")
    assert (card.data.license, card.data.base_model) == ("mit", "microsoft/msclap")
    assert "hf-clap convert microsoft/msclap msclap-2022 --from msclap-2022" in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("| ") and "arXiv 2206.04769, results" in line]
    assert len(rows) == 16 + 15 + 15  # AudioSet is zero-shot alone
    assert "| ESC-50 | zero-shot | accuracy | 0.826 | arXiv 2206.04769, results table |" in rows
    indexed = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert indexed["ESC-50", "accuracy (finetune)"] == 0.967
    assert indexed["UrbanSound8K", "accuracy (probe)"] == 0.839
    assert "What others have measured" not in published_card("clapcap").text


def test_cards_and_readme_are_generated():
    """Run `python examples/make_model_cards.py` after a change to what they are made of."""
    spec = importlib.util.spec_from_file_location("make_model_cards", ROOT / "examples" / "make_model_cards.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    results = read_results([ROOT / "model_cards" / "tiny_results.json"])
    assert len({result.task for result in results}) == 10
    assert str(benchmark_card(hf_clap.TINY, results)) == (ROOT / "model_cards" / "tiny.md").read_text()
    for kind in MEASURED_AS:
        assert str(published_card(kind)) == (ROOT / "model_cards" / f"{kind}.md").read_text()
    readme = (ROOT / "README.md").read_text()
    assert script.with_table(readme, results) == readme
    changed = [dataclasses.replace(results[0], value=0.12345), *results[1:]]
    assert "**0.123**" in script.with_table(readme, changed)
    assert {result.task for result in results} <= set(TASKS)
