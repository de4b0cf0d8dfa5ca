"""The clips of a task, from folders and from Parquet files as the Hub keeps them."""

import csv
import os
import re
from dataclasses import replace

import datasets
import pytest

from hf_clap.task_data import find_folders, load_task
from hf_clap.tasks import TASKS, HubData, Task

SOUNDS = Task(
    name="sounds",
    title="Some sounds",
    metric="accuracy",
    classes=("dog bark", "rain", "Car horn"),
    labels={"0": "dog bark", "honk": "Car horn"},
)
TAGS = replace(SOUNDS, metric="mAP", multi_label=True)
CAPTIONS = Task(name="captions", title="Some captions", metric="text_to_audio_r@1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def write_folder(folder, columns, *rows):
    """A folder with a metadata.csv."""
    folder.mkdir(exist_ok=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns.split(), *rows])
    return folder


def write_hub(tmp_path, task=SOUNDS, features=None, hub=None, **splits):
    """The task with its data in a local copy of a Hub repository: for each split, rows without their sound."""
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        rows = [
            {"audio": {"bytes": f"{split} {number}".encode(), "path": f"{number}.wav"}} | row
            for number, row in enumerate(rows)
        ]
        data = datasets.Dataset.from_list(rows)
        for column, feature in {"audio": datasets.Audio(), **(features or {})}.items():
            data = data.cast_column(column, feature)
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    fields = {"path": str(folder), "revision": "0" * 40, "splits": dict.fromkeys(splits)}
    return replace(task, hub=HubData(**fields | (hub or {})))


def labels_of(data):
    return [clip.labels for clip in data.clips]


def test_one_label_for_each_clip(tmp_path):
    folder = write_folder(
        tmp_path / "sounds", "label cluster file_name", ["rain", "", "b.wav"], ["dog bark", "street", "deep/a.wav"]
    )
    data = load_task(SOUNDS, [folder])
    assert (data.source, data.revision) == ("folder", None)
    assert [(clip.name, clip.labels, clip.captions, clip.fold, clip.cluster) for clip in data.clips] == [
        ("b.wav", (1,), (), None, None),
        ("deep/a.wav", (0,), (), None, "street"),
    ]
    assert [clip.audio() for clip in data.clips] == [str(folder / "b.wav"), str(folder / "deep/a.wav")]


def test_labels_however_they_are_written(tmp_path):
    ways = ["Dog_Bark", " dog bark ", "0", "HONK", "car_horn", "Car horn", "RAIN"]
    rows = [[f"{number}.wav", way] for number, way in enumerate(ways)]
    data = load_task(SOUNDS, [write_folder(tmp_path, "file_name label", *rows)])
    assert labels_of(data) == [(0,), (0,), (0,), (2,), (2,), (2,), (1,)]


def test_several_labels(tmp_path):
    rows = [["1.wav", "rain|Dog_bark"], ["2.wav", " honk | car horn |"], ["3.wav", "rain"]]
    data = load_task(TAGS, [write_folder(tmp_path, "file_name label", *rows)])
    assert labels_of(data) == [(1, 0), (2,), (1,)]  # two ways to write one class are one label


def test_captions(tmp_path):
    rows = [["1.wav", "a dog, barking | Rain falls|"], ["2.wav", "wind"]]
    data = load_task(CAPTIONS, [write_folder(tmp_path, "file_name caption", *rows)])
    assert [clip.captions for clip in data.clips] == [("a dog, barking", "Rain falls"), ("wind",)]
    assert labels_of(data) == [(), ()]


def test_folds(tmp_path):
    rows = [["1.wav", "rain", "test"], ["2.wav", "rain", "train"], ["3.wav", "rain", ""]]
    folder = write_folder(tmp_path, "file_name label fold", *rows)
    assert [clip.fold for clip in load_task(SOUNDS, [folder]).clips] == ["test", "train", None]
    write_folder(folder, "file_name label fold", ["1.wav", "rain", "left"])
    free = replace(SOUNDS, folds=())  # prescribes none, so that any name will do
    assert [clip.fold for clip in load_task(free, [folder]).clips] == ["left"]


def test_folds_with_spaces_around_them_and_in_upper_case(tmp_path):
    rows = [["1.wav", "rain", " test "], ["2.wav", "rain", " "], ["3.wav", "rain", "Train"]]
    folder = write_folder(tmp_path, "file_name label fold", *rows)
    assert [clip.fold for clip in load_task(SOUNDS, [folder]).clips] == ["test", None, "train"]


def test_folds_of_ones_own_keep_their_names(tmp_path):
    folder = write_folder(tmp_path, "file_name label fold", ["1.wav", "rain", "A"], ["2.wav", "rain", "b"])
    for folds, expected in (((), ["A", "b"]), (("A", "B"), ["A", "B"])):
        assert [clip.fold for clip in load_task(replace(SOUNDS, folds=folds), [folder]).clips] == expected


def test_what_is_no_folder_and_no_file_is_refused(tmp_path):
    folder = write_folder(tmp_path / "set", "file_name label", ["1.wav", "rain"], ["endless", "rain"])
    os.mkfifo(folder / "endless")
    with pytest.raises(ValueError, match=r"metadata\.csv: row 3 names a pipe or a device"):
        load_task(SOUNDS, [folder])
    with pytest.raises(NotADirectoryError, match=r"metadata\.csv is no folder; name the one that it is in"):
        load_task(SOUNDS, [folder / "metadata.csv"])


def test_several_folders_are_read_as_one(tmp_path):
    first = write_folder(tmp_path / "first", "file_name label", ["1.wav", "rain"])
    second = write_folder(tmp_path / "second", "file_name label", ["1.wav", "honk"], ["2.wav", "rain"])
    data = load_task(SOUNDS, [str(first), second])
    assert [clip.name for clip in data.clips] == ["first/1.wav", "second/1.wav", "second/2.wav"]
    assert labels_of(data) == [(1,), (2,), (1,)]
    assert [clip.audio() for clip in data.clips] == [
        str(first / "1.wav"),
        str(second / "1.wav"),
        str(second / "2.wav"),
    ]


def test_metadata_with_a_byte_order_mark(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("\ufefffile_name,label\r\nä.wav,rain\r\n".encode())  # as Excel writes it
    assert [clip.name for clip in load_task(SOUNDS, [tmp_path]).clips] == ["ä.wav"]


def test_find_folders(tmp_path):
    pair = replace(SOUNDS, folders=("one", "two"))
    (tmp_path / "one").mkdir()
    assert find_folders(SOUNDS, tmp_path) == find_folders(pair, tmp_path) == []
    (tmp_path / "two").mkdir()
    (tmp_path / "sounds").mkdir()
    assert find_folders(pair, tmp_path) == [tmp_path / "one", tmp_path / "two"]
    assert find_folders(SOUNDS, tmp_path) == [tmp_path / "sounds"]


NO_COLUMN = "{metadata} has no column %r but %s; rename the one that Some %s needs."
NO_CLASS = "{metadata}: row %d is labelled %r, which is no class of Some sounds; %s"
NEAR = "did you mean 'rain'?"
FAR = "choose one of dog bark, rain, Car horn."
RAIN = ["1.wav", "rain"]


@pytest.mark.parametrize(
    ("task", "columns", "rows", "sentence"),
    [
        (SOUNDS, "file_name class", [RAIN], NO_COLUMN % ("label", "'file_name', 'class'", "sounds")),
        (SOUNDS, "file label", [RAIN], NO_COLUMN % ("file_name", "'file', 'label'", "sounds")),
        (CAPTIONS, "file_name label", [RAIN], NO_COLUMN % ("caption", "'file_name', 'label'", "captions")),
        (SOUNDS, "file_name label", [RAIN, ["2.wav", "Rian"]], NO_CLASS % (3, "Rian", NEAR)),
        (SOUNDS, "file_name label", [["1.wav", "xylophone"]], NO_CLASS % (2, "xylophone", FAR)),
        (SOUNDS, "file_name label", [["1.wav", "dog bark|honk|rain"]], NO_CLASS % (2, "dog bark|honk|rain", "")),
        (TAGS, "file_name label", [["1.wav", "rain|xylophone"]], NO_CLASS % (2, "xylophone", FAR)),
        (TAGS, "file_name label", [["1.wav", " | "]], "{metadata}: row 2 has no label; give each clip of Some sounds"),
        (CAPTIONS, "file_name caption", [["1.wav", "|"]], "{metadata}: row 2 has no caption; give each clip of Some"),
        (
            SOUNDS,
            "file_name label fold",
            [[*RAIN, "dev"]],
            "{metadata}: row 2 is in fold 'dev', but Some sounds has train, test; correct the fold.",
        ),
        (
            SOUNDS,
            "file_name label label",
            [[*RAIN, "honk"]],
            "{metadata} has the column 'label' twice; leave one of them out.",
        ),
        (SOUNDS, "file_name label", [RAIN, ["", "rain"]], "{metadata}: row 3 names no file; fill in file_name."),
        (SOUNDS, "file_name label", [RAIN, RAIN], "1.wav is there twice among the clips of sounds; name each file"),
        (SOUNDS, "file_name label", [RAIN, ["./1.wav", "rain"]], "1.wav is there twice among the clips of sounds;"),
        (
            CAPTIONS,
            "file_name caption",
            [["1.wav", "rain"], ["2.wav", "rain", " then thunder"]],
            "{metadata}: row 3 has more cells than there are columns; put what has a comma in quotes.",
        ),
        (SOUNDS, "file_name label", [], "There are no clips of sounds; check {folder}."),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path, task, columns, rows, sentence):
    folder = write_folder(tmp_path, columns, *rows)
    sentence = sentence.format(metadata=folder / "metadata.csv", folder=folder)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        load_task(task, [folder])


def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path):
    (tmp_path / "metadata.csv").write_text('file_name,caption\n1.wav,"rain\n2.wav,wind\n')
    with pytest.raises(ValueError, match=r"cannot be read as CSV in UTF-8 \(unexpected end of data\); write it again"):
        load_task(CAPTIONS, [tmp_path])


def test_metadata_that_are_not_utf_8(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("file_name,label\nä.wav,rain\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"metadata\.csv cannot be read as CSV in UTF-8 \('utf-8' codec.*write it again"
    ):
        load_task(SOUNDS, [tmp_path])


@pytest.mark.parametrize(("task", "column"), [(SOUNDS, "label"), (CAPTIONS, "caption")])
def test_a_folder_without_metadata(tmp_path, task, column):
    for folder in (tmp_path, tmp_path / "missing"):
        sentence = (
            f"{folder} has no metadata.csv; name a folder of {task.title} with the columns file_name and {column}"
        )
        with pytest.raises(FileNotFoundError, match=re.escape(sentence)):
            load_task(task, [folder])


def test_numbered_classes_of_the_hub(tmp_path):
    order = datasets.ClassLabel(names=["rain", "car_horn", "Dog bark"])  # another order than the task's
    rows = [{"label": number} for number in (0, 1, 2, 0)]
    task = write_hub(tmp_path, features={"label": order}, train=rows)
    data = load_task(task)
    assert labels_of(data) == [(1,), (2,), (0,), (1,)]
    assert (data.source, data.revision) == (str(tmp_path / "repository"), "0" * 40)
    assert [clip.name for clip in data.clips] == ["train/0", "train/1", "train/2", "train/3"]


def test_sound_of_the_hub_is_the_very_bytes(tmp_path):
    task = write_hub(tmp_path, train=[{"label": "rain"}, {"label": "honk"}])
    data = load_task(task)
    assert [clip.audio() for clip in data.clips][::-1] == [
        {"bytes": b"train 1", "path": "1.wav"},
        {"bytes": b"train 0", "path": "0.wav"},
    ]


def test_plain_numbers_by_alias(tmp_path):
    aliases = {"3": "rain", "10": "Car horn"}
    task = write_hub(tmp_path, replace(SOUNDS, labels=aliases), train=[{"label": 10}, {"label": 3}])
    assert labels_of(load_task(task)) == [(2,), (1,)]


@pytest.mark.parametrize("numbered", [False, True])
def test_lists_of_labels(tmp_path, numbered):
    if numbered:
        features = {"label": datasets.List(datasets.ClassLabel(names=["honk", "rain", "dog_bark"]))}
        rows = [{"label": [1, 2]}, {"label": [0]}]
    else:
        features = {"label": datasets.List(datasets.Value("string"))}
        rows = [{"label": ["rain", "Dog_Bark"]}, {"label": ["honk", "Car horn"]}]
    assert labels_of(load_task(write_hub(tmp_path, TAGS, features, train=rows))) == [(1, 0), (2,)]


def test_splits_are_folds(tmp_path):
    splits = {"splits": {"validation": "train", "test": "test"}}
    rows = {"validation": [{"label": "rain"}] * 2, "test": [{"label": "honk"}], "train": [{"label": "not read"}]}
    data = load_task(write_hub(tmp_path, hub=splits, **rows))
    assert [(clip.name, clip.labels, clip.fold) for clip in data.clips] == [
        ("validation/0", (1,), "train"),
        ("validation/1", (1,), "train"),
        ("test/0", (2,), "test"),
    ]
    assert data.clips[2].audio()["bytes"] == b"test 0"


def test_a_column_of_folds_and_labels_of_others(tmp_path):
    columns = {"label": "category", "fold": "fold", "skip_other_labels": True}
    rows = [
        {"category": category, "fold": fold}
        for category, fold in [("dog", 1), ("pig", 1), ("sea_waves", 5), ("cow", 2), ("rain", 3)]
    ]
    data = load_task(write_hub(tmp_path, TASKS["esc10"], hub=columns, train=rows))
    names = [TASKS["esc10"].classes[clip.labels[0]] for clip in data.clips]
    assert names == ["dog", "sea waves", "rain"]
    assert [clip.fold for clip in data.clips] == ["1", "5", "3"]
    assert [clip.audio()["bytes"] for clip in data.clips] == [b"train 0", b"train 2", b"train 4"]


def test_labels_of_others_are_an_error_elsewhere(tmp_path):
    task = write_hub(tmp_path, train=[{"label": "rain"}, {"label": "pig"}])
    sentence = f"{task.hub.path}: train/1 is labelled 'pig', which is no class of Some sounds; "
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_task(task)


def test_rows_of_one_clip_are_merged(tmp_path):
    columns = {"label": None, "caption": "text", "clip": "id"}
    rows = [
        {"text": text, "id": clip}
        for text, clip in [("a dog", "x"), ("wind", "y"), ("a bark", "x"), ("a breeze", "y"), ("a whine", "x")]
    ]
    data = load_task(write_hub(tmp_path, CAPTIONS, hub=columns, train=rows))
    assert [clip.captions for clip in data.clips] == [("a dog", "a bark", "a whine"), ("wind", "a breeze")]
    assert [(clip.name, clip.audio()["bytes"]) for clip in data.clips] == [
        ("train/0", b"train 0"),
        ("train/1", b"train 1"),
    ]


@pytest.mark.parametrize("merged", [False, True])
def test_lists_of_captions(tmp_path, merged):
    columns = {"label": None, "caption": "texts"} | ({"clip": "id"} if merged else {})
    rows = [{"texts": ["a dog", "a|bark"], "id": 1}, {"texts": ["wind"], "id": 2}, {"texts": ["a whine"], "id": 1}]
    data = load_task(write_hub(tmp_path, CAPTIONS, hub=columns, train=rows))
    dog = ("a dog", "a|bark")  # here | is a letter like others
    expected = [(*dog, "a whine"), ("wind",)] if merged else [dog, ("wind",), ("a whine",)]
    assert [clip.captions for clip in data.clips] == expected


@pytest.mark.parametrize(
    ("task", "hub", "column"),
    [
        (SOUNDS, {"label": "class"}, "class"),
        (SOUNDS, {"audio": "sound"}, "sound"),
        (SOUNDS, {"fold": "fold"}, "fold"),
        (CAPTIONS, {"label": None, "caption": "text"}, "text"),
        (CAPTIONS, {"caption": "label", "clip": "id"}, "id"),
    ],
)
def test_columns_that_the_hub_does_not_have(tmp_path, task, hub, column):
    task = write_hub(tmp_path, task, hub=hub, train=[{"label": "rain"}])
    sentence = f"{task.hub.path} has no column {column!r} but 'audio', 'label'; correct the row of {task.name}."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_task(task)


def test_no_clips_are_left(tmp_path):
    task = write_hub(tmp_path, hub={"skip_other_labels": True}, train=[{"label": "pig"}])
    with pytest.raises(ValueError, match=r"^There are no clips of sounds; check the task\.$"):
        load_task(task)


@pytest.mark.parametrize("name", ["fsd50k", "kitchen20"])
def test_data_that_are_not_on_the_hub(name):
    task = TASKS[name]
    sentence = f"{task.title} is not on the Hub in a form that can be pinned; {task.obtain} Then name its folder with"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_task(task)


def test_empty_cells_of_the_hub_are_nothing(tmp_path):
    """-1 is `datasets`' number for no class, not the last class."""
    features = {"label": datasets.ClassLabel(names=["rain", "honk"])}
    task = write_hub(tmp_path, features=features, train=[{"label": 0}, {"label": -1}])
    with pytest.raises(ValueError, match="train/1 has no label"):
        load_task(task)
    task = write_hub(
        tmp_path / "captions", CAPTIONS, hub={"label": None, "caption": "text"}, train=[{"text": "a"}, {"text": None}]
    )
    with pytest.raises(ValueError, match="train/1 has no caption"):
        load_task(task)


def test_the_hub_is_asked_for_the_pinned_commit(tmp_path, monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        raise ConnectionError("no route to the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sentence = (
        "agkphysics/AudioSet cannot be read from the Hub (no route to the Hub); check the network, or get the data"
    )
    with pytest.raises(OSError, match=re.escape(sentence)):
        load_task(TASKS["audioset"])
    revision = "0c609e8302cf139307f639c57652032af0a88041"
    assert asked == [(("agkphysics/AudioSet", "balanced"), {"split": "train", "revision": revision})]
