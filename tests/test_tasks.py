"""The rows of the benchmark: complete, pinned, and with the numbers that were published."""

import re

import pytest

from hf_clap.prompts import DEFAULT_TEMPLATE, check_templates
from hf_clap.tasks import SETTINGS, TASKS, TRAIN_AND_TEST, Task, find_task

# Elizalde et al. 2022: classes, metric, zero-shot, frozen probe, fine-tuned
PAPER = {
    "esc50": (50, "accuracy", 0.826, 0.931, 0.967),
    "fsd50k": (200, "mAP", 0.302, 0.591, 0.586),
    "urbansound8k": (10, "accuracy", 0.732, 0.839, 0.880),
    "dcase2017_task4": (17, "macro F1", 0.300, 0.533, 0.594),
    "audioset": (527, "mAP", 0.058, None, None),
    "tut2017": (15, "accuracy", 0.296, 0.710, 0.746),
    "gtzan_music_speech": (2, "accuracy", 1.00, 1.00, 1.00),
    "gtzan_genres": (10, "accuracy", 0.252, 0.793, 0.913),
    "mridangam_stroke": (10, "accuracy", 0.345, 0.775, 0.979),
    "mridangam_tonic": (6, "accuracy", 0.197, 0.639, 0.953),
    "beijing_opera": (4, "accuracy", 0.475, 0.775, 0.903),
    "crema_d": (6, "accuracy", 0.178, 0.283, 0.683),
    "ravdess": (8, "accuracy", 0.160, 0.452, 0.644),
    "speech_commands_v2": (12, "accuracy", 0.106, 0.371, 0.968),
    "vocal_sound": (6, "accuracy", 0.495, 0.841, 0.980),
    "libricount10": (11, "accuracy", 0.179, 0.572, 0.778),
}
CLASSES = {
    "esc10": 10,
    "vggsound": 309,
    "nsynth_instrument": 11,
    "nsynth_pitch": 88,
    "audiocaps": 0,
    "clotho": 0,
    "dcase2016_events": 11,
    "kitchen20": 20,
    "instruments": 10,
    "speech_commands": 12,
    "spoken_digits": 10,
    "emodb_emotion": 7,
    "speaker_gender": 2,
    "music_speech": 2,
    "clotho_captions": 0,
}
ZERO_SHOT_AFTER_IT = {
    "esc50": {"CLAP 2023": 0.939, "WavCaps": 0.948, "MGA-CLAP": 0.949, "tinyCLAP": 0.763},
    "urbansound8k": {"CLAP 2023": 0.823, "WavCaps": 0.814, "MGA-CLAP": 0.837, "tinyCLAP": 0.694},
    "gtzan_genres": {"CLAP 2023": 0.584, "LAION-CLAP": 0.472},
    "speech_commands_v2": {"CLAP 2023": 0.164},
}

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def published(name, model, setting):
    """The values of a row, without those of other runs of the same model."""
    return [
        number.value
        for number in TASKS[name].published
        if (number.model, number.setting) == (model, setting) and not number.source.startswith("another run")
    ]


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_rows(name):
    classes, metric, *values = PAPER[name]
    assert (len(TASKS[name].classes), TASKS[name].metric) == (classes, metric)
    for setting, value in zip(("zero-shot", "probe", "finetune"), values, strict=True):
        assert published(name, "CLAP 2022", setting) == ([] if value is None else [value])


def test_names_and_numbers_of_classes():
    counts = {name: len(task.classes) for name, task in TASKS.items()}
    assert counts == {name: row[0] for name, row in PAPER.items()} | CLASSES


def test_numbers_of_later_models():
    for name, values in ZERO_SHOT_AFTER_IT.items():
        for model, value in values.items():
            assert published(name, model, "zero-shot") == [value]
    other_runs = [
        (name, number.setting, number.value)
        for name, task in TASKS.items()
        for number in task.published
        if number.source.startswith("another run")
    ]
    assert other_runs == [("urbansound8k", "probe", 0.842), ("nsynth_instrument", "probe", 0.682)]
    recalls = {(number.model, number.metric): number.value for number in TASKS["audiocaps"].published}
    assert recalls == {
        ("LAION-CLAP", "text_to_audio_r@1"): 0.361,
        ("LAION-CLAP", "audio_to_text_r@1"): 0.468,
        ("CLAP 2023", "text_to_audio_r@1"): 0.356,
        ("CLAP 2023", "audio_to_text_r@1"): 0.425,
        ("WavLink-L", "text_to_audio_r@1"): 0.467,
        ("WavLink-L", "audio_to_text_r@1"): 0.600,
    }


def test_the_papers_templates():
    emotion, word = "this person is feeling {}", "{}"
    own = {
        "crema_d": emotion,
        "ravdess": emotion,
        "speech_commands_v2": word,
        "libricount10": "{} persons speaking",
    }
    assert {name: TASKS[name].templates for name in PAPER} == {
        name: (own.get(name, DEFAULT_TEMPLATE),) for name in PAPER
    }
    assert DEFAULT_TEMPLATE == "this is a sound of {}"


def test_folds_that_data_prescribe():
    assert TASKS["esc50"].folds == TASKS["esc10"].folds == tuple("12345")
    assert TASKS["urbansound8k"].folds == (*"123456789", "10")
    for task in TASKS.values():
        assert task.folds in ((), TRAIN_AND_TEST) or task.name in ("esc50", "esc10", "urbansound8k")


def test_names_are_the_rows_own_and_folders():
    assert [task.name for task in TASKS.values()] == list(TASKS)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in TASKS)
    titles = [task.title for task in TASKS.values()]
    assert len(set(titles)) == len(titles) == 31
    assert all(set(task.folders) <= set(TASKS) | {"music"} for task in TASKS.values())


@every_task
def test_classes_and_their_aliases(task):
    plain = [name.replace("_", " ").casefold() for name in task.classes]
    assert len(set(plain)) == len(plain)
    assert all(name == " ".join(name.split()) and "|" not in name for name in task.classes)  # | is between labels
    assert set(task.labels.values()) <= set(task.classes)
    # An alias is no other class: it would hide it
    known = dict(zip(plain, task.classes, strict=True))
    assert all(known.get(alias.casefold(), name) == name for alias, name in task.labels.items())


@every_task
def test_templates_and_settings(task):
    assert check_templates(task.templates) == list(task.templates)
    assert task.metric in ("accuracy", "mAP", "macro F1", "text_to_audio_r@1")
    assert (task.metric == "text_to_audio_r@1") == (not task.classes)
    assert (task.metric in ("mAP", "macro F1")) == task.multi_label
    assert task.settings == (SETTINGS[:3] if task.classes else SETTINGS[3:])


@every_task
def test_data_are_pinned_or_said_where(task):
    assert task.obtain.endswith(".")  # a sentence: messages go on after it
    if task.hub:
        assert re.fullmatch(r"[0-9a-f]{40}", task.hub.revision)
        assert re.fullmatch(r"[\w-]+/[\w.-]+", task.hub.path)
        assert task.hub.splits
        folds = {fold for fold in task.hub.splits.values() if fold is not None}
        assert folds <= set(task.folds)
        assert bool(folds) == (task.folds == TRAIN_AND_TEST)  # else a column says the fold, or there is none
        assert bool(task.hub.fold) == (bool(task.folds) and not folds)
        assert (task.hub.label is None, task.hub.caption is None) == (not task.classes, bool(task.classes))


@every_task
def test_published_values_are_of_what_the_row_measures(task):
    for number in task.published:
        assert 0 < number.value <= 1
        assert number.source
        assert number.setting in task.settings
        assert number.metric in (task.metric, "audio_to_text_r@1")


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("urbansound8k", "enginge idling", "engine idling"),
        ("mridangam_tonic", "d#", "D sharp"),
        ("crema_d", "fea", "fearful"),
        ("ravdess", "6", "disgust"),
        ("speech_commands_v2", "0", "yes"),
        ("speech_commands_v2", "9", "go"),
        ("speech_commands_v2", "34", "unknown"),
        ("speech_commands_v2", "35", "silence"),
        ("speech_commands_v2", "marvin", "unknown"),
        ("nsynth_pitch", "21", "A 0"),  # the lowest key of a piano
        ("nsynth_pitch", "60", "C 4"),  # middle C
        ("nsynth_pitch", "108", "C 8"),
        ("music_speech", "speech, male voice", "speech"),
        ("fsd50k", "Dishes and pots and pans", "Dishes, pots, and pans"),
        ("fsd50k", "Bird vocalization and bird call and bird song", "Bird vocalization, bird call, bird song"),
    ],
)
def test_labels_of_the_data(name, label, expected):
    assert TASKS[name].labels[label] == expected


def test_find_task():
    assert find_task("esc50") is TASKS["esc50"]
    with pytest.raises(
        ValueError, match=r"^There is no task 'esc51'; choose all or one of esc50, fsd50k, urbansound8k,"
    ):
        find_task("esc51")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"classes": ("Dog", "cat", "dog")}, "A set has the class 'dog' twice, but for upper case and _; rename one."),
        ({"classes": ("a_b", "a b")}, "A set has the class 'a b' twice, but for upper case and _; rename one."),
        ({"classes": ("a", "a")}, "A set has the class 'a' twice, but for upper case and _; rename one."),
        ({"metric": "mAP"}, "A set cannot have the metric 'mAP'; choose accuracy or macro F1 or recall."),
        ({"multi_label": True}, "A set cannot have the metric 'accuracy'; choose mAP or macro F1."),
        ({"classes": ()}, "A set cannot have the metric 'accuracy'; choose text_to_audio_r@1."),
    ],
)
def test_a_row_that_cannot_be(fields, sentence):
    row = {"name": "set", "title": "A set", "metric": "accuracy", "classes": ("a", "b")}
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Task(**row | fields)
