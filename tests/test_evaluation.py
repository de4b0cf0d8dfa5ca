"""The benchmark with models whose results are known, on every row; folds, failures and what is not done twice."""

import dataclasses
import json
import re
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

import hf_clap
from conftest import noise, tone
from hf_clap import evaluation, metrics, task_embedding
from hf_clap.array_cache import ArrayCache
from hf_clap.embedding import ClipEmbedding, Embedder
from hf_clap.evaluation import evaluate
from hf_clap.prompts import Prompts
from hf_clap.supervised import finetune, probe
from hf_clap.task_data import Clip, TaskData, load_task
from hf_clap.task_embedding import embed_task
from hf_clap.task_result import results_as_json
from hf_clap.tasks import TASKS, TRAIN_AND_TEST, Task


class FakeEmbedder:
    """Knows what each clip is, from its first samples, and what each text says; may confuse the clips."""

    name, revision, weights_sha256, fingerprint, workers = "fake", None, "0" * 64, "fake cpu 8", 2

    def __init__(self, vectors, of_text, order=None):
        self.vectors, self.of_text, self.order = vectors, of_text, order
        self.embedded = []

    def texts(self, texts):
        return np.stack([self.of_text[text] for text in texts]).astype(np.float32)

    def clips(self, groups):
        for group in groups:
            numbers = [int(audio()["array"][0]) for audio in group]
            self.embedded += numbers
            heard = numbers if self.order is None else self.order[numbers]
            yield [ClipEmbedding(self.vectors[number], self.vectors[number]) for number in heard]


def audio_of(number):
    return {"array": np.array([number, 0.5], dtype=np.float32), "sampling_rate": 16000}


def made_up(task, copies, seed=0):
    """Clips of a task, and the embedder that knows them: classes are unit vectors, and so are captions."""
    clips = []
    random = np.random.default_rng(seed)
    if not task.classes:
        for number in range(copies):
            captions = tuple(f"caption {caption} of {number}" for caption in range(5))
            clips.append(Clip(f"{number}", partial(audio_of, number), captions=captions))
        vectors = np.eye(copies, dtype=np.float32)
        of_text = {caption: vectors[number] for number, clip in enumerate(clips) for caption in clip.captions}
        return TaskData(tuple(clips), "folder"), vectors, of_text
    units = np.eye(len(task.classes), dtype=np.float32)
    vectors = []
    for number in range(copies * len(task.classes)):
        labels = {number % len(task.classes)}
        if task.metric == "mAP" and number % 3 == 0:
            labels.add(int(random.integers(len(task.classes))))
        fold = (task.folds or (None,))[number // len(task.classes) % max(len(task.folds), 1)]
        clips.append(Clip(f"{number}", partial(audio_of, number), tuple(sorted(labels)), fold=fold))
        vectors.append(units[sorted(labels)].sum(axis=0) / np.sqrt(len(labels)))
    of_text = {
        text: unit
        for name, unit in zip(task.classes, units, strict=True)
        for text in Prompts(task.templates).texts_of(name)
    }
    return TaskData(tuple(clips), "folder"), np.stack(vectors), of_text


def wide(vectors):
    """The same in many dimensions, so that 30 epochs at the paper's rate outweigh a probe's first weights."""
    return 5 * np.repeat(vectors, 50, axis=1)


@pytest.fixture
def few_draws(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 6)
    monkeypatch.setattr(metrics, "RESAMPLES_AT_A_TIME", 3)


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_a_perfect_model_has_one_and_a_shuffled_one_chance(task, few_draws):
    copies = {"text_to_audio_r@1": 300}.get(task.metric, max(3, 1000 // max(len(task.classes), 1)))
    data, vectors, of_text = made_up(task, copies)
    perfect = FakeEmbedder(vectors, of_text)
    embedded = embed_task(task, data, perfect)
    result = evaluate(embedded, perfect)
    assert (result.value, result.ci95) == (pytest.approx(1.0), pytest.approx((1.0, 1.0)))
    if task.metric != "mAP":  # where clips have two classes, and the best is only one of them
        assert list(result.metrics.values()) == pytest.approx([1.0] * len(result.metrics))
    assert result.metrics[task.metric] == result.value

    values = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        unequal = vectors + random.normal(0, 1e-4, vectors.shape).astype(np.float32)  # an order without ties
        shuffled = FakeEmbedder(unequal, of_text, random.permutation(len(vectors)))
        result = evaluate(embed_task(task, data, shuffled), shuffled)
        values.append(result.value)
    tested = 3 * result.n
    if task.metric == "accuracy":
        assert result.chance == 1 / len(task.classes)
        deviation = np.sqrt(result.chance * (1 - result.chance) / tested)
        assert abs(np.mean(values) - result.chance) < 4 * deviation
    elif task.metric == "text_to_audio_r@1":
        assert result.chance == 1 / copies
        assert np.mean(values) < 5 / copies
    else:  # other classes of clips that have two are not independent
        assert np.mean(values) == pytest.approx(result.chance, rel=0.3)


@pytest.mark.parametrize("name", ["esc10", "audioset", "speech_commands_v2", "gtzan_genres"])
def test_a_probe_on_perfect_features_is_perfect(name, few_draws):
    """Five prescribed folds, several labels, train and test, and dealt folds."""
    task = dataclasses.replace(TASKS[name], classes=TASKS[name].classes[:10])
    data, vectors, of_text = made_up(task, 40)
    embedder = FakeEmbedder(wide(vectors), of_text)
    result = evaluate(embed_task(task, data, embedder), embedder, "probe")
    assert result.value == pytest.approx(1.0)
    assert result.prompt is None
    expected_folds = {"test": 1} if task.folds == TRAIN_AND_TEST else dict.fromkeys("12345", 1)
    assert set(result.folds) == set(expected_folds)
    assert result.n == (200 if task.folds == TRAIN_AND_TEST else 400)
    how = "as prescribed" if task.folds else "5 at most, dealt out by class and cluster"
    assert result.training == {
        "folds": how,
        "layers": 1,
        "epochs": 30,
        "batch_size": 32,
        "optimizer": "Adam",
        "learning_rate": 1e-3,
    }


def test_the_value_is_the_mean_over_folds(few_draws):
    """Fold 1 has 30 clips and is all right, fold 2 has 10 and is all wrong: 0.5, and not 0.75."""
    task = Task("two", "Two", "accuracy", classes=("a", "b"), folds=("1", "2"))
    clips = [
        Clip(str(number), partial(audio_of, number), (number % 2,), fold="12"[number >= 30]) for number in range(40)
    ]
    vectors = wide(np.eye(2, dtype=np.float32)[[clip.labels[0] for clip in clips]])
    embedder = FakeEmbedder(vectors, {})
    embedded = embed_task(task, TaskData(tuple(clips), "folder"), embedder)
    embedded = dataclasses.replace(embedded, pooled=np.where(np.arange(40)[:, None] < 30, vectors, vectors[:, ::-1]))
    result = evaluate(embedded, embedder, "probe", epochs=300)
    # what is learned of one fold is turned round in the other
    assert result.folds == {"1": 0.0, "2": 0.0}
    scores = np.eye(2)[[clip.labels[0] for clip in clips]]
    scores[30:] = scores[30:, ::-1]
    folds = {"1": np.arange(30), "2": np.arange(30, 40)}
    measured = evaluation._classify(embedded, scores, np.arange(40), folds, seed=0)
    assert (measured["value"], measured["folds"]) == (0.5, {"1": 1.0, "2": 0.0})
    assert measured["ci95"] == (0.5, 0.5)
    assert sum(item["label"] == item["predicted"] for item in measured["items"]) == 30


def test_dealt_folds_keep_clusters_together_and_classes_apart(few_draws):
    task = dataclasses.replace(TASKS["gtzan_genres"], classes=("a", "b"))
    clips = [
        Clip(str(number), partial(audio_of, number), (number % 2,), cluster=f"speaker {number // 4}")
        for number in range(80)
    ]
    embedder = FakeEmbedder(np.eye(80, dtype=np.float32), {})
    embedded = embed_task(task, TaskData(tuple(clips), "folder"), embedder)
    folds, _ = evaluation._folds(embedded, seed=0)
    assert list(folds) == ["1", "2", "3", "4", "5"]
    assert sorted(np.concatenate([test for _, test in folds.values()])) == list(range(80))
    for train, test in folds.values():
        assert len(test) == 16
        assert sum(number % 2 for number in test) == 8
        assert not {number // 4 for number in train} & {number // 4 for number in test}
    again, other = evaluation._folds(embedded, seed=0)[0], evaluation._folds(embedded, seed=1)[0]
    assert all(np.array_equal(again[name][1], folds[name][1]) for name in folds)
    assert not all(np.array_equal(other[name][1], folds[name][1]) for name in folds)


@pytest.mark.parametrize(
    ("folds", "setting", "sentence"),
    [
        (["1"] * 8 + ["2"] * 8, "probe", "Fold 3 of ESC-10 has no clips that can be read; add some to it."),
        ([None] * 16, "probe", r"ESC-10 needs a fold for each clip \(1, 2, 3, 4, 5\); add the column fold."),
        (["1"] * 15 + [None], "probe", "needs a fold for each clip"),
        (["1"] * 16, "probe", "All clips of ESC-10 are in fold 1; training needs others too."),
        (["1"] * 16, "retrieval", "ESC-10 cannot be done in the setting 'retrieval'; choose zero-shot or probe or"),
    ],
)
def test_what_cannot_be_done_is_said(folds, setting, sentence):
    task = TASKS["esc10"]
    clips = [
        Clip(str(number), partial(audio_of, number), (number % 10,), fold=fold) for number, fold in enumerate(folds)
    ]
    embedder = FakeEmbedder(np.eye(16, 10, dtype=np.float32), {})
    with pytest.raises(ValueError, match=sentence):
        evaluate(embed_task(task, TaskData(tuple(clips), "folder"), embedder), embedder, setting)


@pytest.mark.parametrize(
    ("fold", "sentence"),
    [("train", "All clips of ESC-10 are in fold train"), ("test", "All clips of ESC-10 are in fold test")],
)
def test_folds_of_the_data_need_both_parts(fold, sentence):
    task = dataclasses.replace(TASKS["esc10"], folds=())
    clips = [Clip(str(number), partial(audio_of, number), (number % 10,), fold=fold) for number in range(16)]
    embedder = FakeEmbedder(np.eye(16, 10, dtype=np.float32), {})
    with pytest.raises(ValueError, match=sentence):
        evaluate(embed_task(task, TaskData(tuple(clips), "folder"), embedder), embedder, "probe")


def test_dealt_folds_keep_copies_of_a_sound_together(few_draws):
    """Else a probe would be tested on what it has learned by heart."""
    task = Task("noises", "Noises", "accuracy", classes=("a", "b"), folds=())
    clips = [
        Clip(f"{copy}/{number}", partial(audio_of, number), (number % 2,)) for number in range(20) for copy in "xyz"
    ]
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    embedder = FakeEmbedder(vectors, {})
    embedded = embed_task(task, TaskData(tuple(clips), "folder"), embedder)
    for train, test in evaluation._folds(embedded, 0)[0].values():
        assert {embedded.contents[row] for row in train}.isdisjoint(embedded.contents[row] for row in test)


def test_no_dealt_fold_is_empty(few_draws):
    """As scikit-learn's may be, where each of few clusters is of one class."""
    clusters, labels = np.repeat(np.arange(5), [2, 5, 4, 3, 5]), np.repeat([0, 0, 1, 0, 1], [2, 5, 4, 3, 5])
    task = Task("voices", "Voices", "accuracy", classes=("a", "b"), folds=())
    clips = [
        Clip(f"{number}", partial(audio_of, number), (int(label),), cluster=f"{cluster}")
        for number, (cluster, label) in enumerate(zip(clusters, labels, strict=True))
    ]
    embedder = FakeEmbedder(np.eye(len(clips), dtype=np.float32), {})
    embedded = embed_task(task, TaskData(tuple(clips), "folder"), embedder)
    smallest = 99
    for seed in range(40):
        folds = evaluation._folds(embedded, seed)[0]
        smallest = min(smallest, len(folds))
        assert all(len(test) for _, test in folds.values())
        assert sorted(np.concatenate([test for _, test in folds.values()])) == list(range(len(clips)))
        assert list(folds) == [str(number) for number in range(1, len(folds) + 1)]
    assert smallest < 5  # there was one to leave out


def test_one_fold_to_test_on_may_have_another_to_validate_on_beside_it():
    task = dataclasses.replace(TASKS["esc10"], folds=())
    names = "train", "valid", "test", "train"
    clips = [
        Clip(str(number), partial(audio_of, number), (number % 10,), fold=names[number % 4]) for number in range(16)
    ]
    embedded = embed_task(task, TaskData(tuple(clips), "folder"), FakeEmbedder(np.eye(16, 10, dtype=np.float32), {}))
    folds, _ = evaluation._folds(embedded, seed=0)
    assert [(name, test.tolist()) for name, (_, test) in folds.items()] == [("test", [2, 6, 10, 14])]


def test_zero_shot_is_tested_on_the_fold_test(few_draws):
    task = TASKS["speech_commands_v2"]
    data, vectors, of_text = made_up(task, 4)
    embedder = FakeEmbedder(vectors, of_text)
    assert evaluate(embed_task(task, data, embedder), embedder).n == 24
    first, *others = data.clips
    some = TaskData((dataclasses.replace(first, fold=None), *others), "folder")
    with pytest.raises(ValueError, match="needs a fold for each clip or for none; complete the column fold"):
        evaluate(embed_task(task, some, embedder), embedder)
    only_train = TaskData(tuple(clip for clip in data.clips if clip.fold == "train"), "folder")
    with pytest.raises(ValueError, match="The fold test of Speech Commands V2 has no clips that can be read"):
        evaluate(embed_task(task, only_train, embedder), embedder)


def test_class_embeds_are_means_of_texts():
    of_text = {
        "a b": [1, 0, 0],
        "c b": [0, 1, 0],
        "a x": [0, 0, 1],
        "c x": [0, 0, 1],
        "a y": [1, 0, 0],
        "c y": [0, 1, 0],
    }
    prompts = Prompts(("a {}", "c {}"), {"d": ("x", "y")})
    embeds = evaluation.class_embeds(
        ["b", "d"], prompts, FakeEmbedder(None, {k: np.array(v) for k, v in of_text.items()})
    )
    expected = np.array([[1, 1, 0] / np.sqrt(2), [1, 1, 2] / np.sqrt(6)])
    assert np.abs(embeds - expected).max() < 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(bad, tmp_path):
    task = dataclasses.replace(TASKS["esc10"], classes=("a", "b"), folds=())
    clips = [Clip(f"{number}.wav", partial(audio_of, number), (number % 2,)) for number in range(10)]
    data, vectors = TaskData(tuple(clips), "folder"), np.eye(10, 2, dtype=np.float32)
    advice = "; check its weights, or choose dtype float32."
    cache = ArrayCache(tmp_path / "cache.sqlite")
    vectors[3] = vectors[9] = bad
    with pytest.raises(ValueError, match=re.escape(f"NaN or infinite embeddings for 3.wav{advice}")):
        embed_task(task, data, FakeEmbedder(vectors, {}), cache)
    assert cache.all_keys() == set()
    of_text = {"a": np.ones(2), "b": np.array([1, bad]), "c": np.array([bad, 1])}
    with pytest.raises(ValueError, match=re.escape(f"NaN or infinite embeddings for b, …{advice}")):
        evaluation.class_embeds(["a", "b", "c"], Prompts(("{}",)), FakeEmbedder(None, of_text))
    captioned = TaskData((Clip("1.wav", partial(audio_of, 0), captions=("a", "b")),), "folder")
    embedder = FakeEmbedder(np.eye(2, dtype=np.float32), of_text)
    embedded = embed_task(TASKS["clotho"], captioned, embedder)
    with pytest.raises(ValueError, match=re.escape(f"NaN or infinite embeddings for b{advice}")):
        evaluate(embedded, embedder)


def test_chance_is_the_mean_over_folds(few_draws):
    """Each fold has one clip of a class and three of the other: chance is not that of 4 of 8 clips."""
    task = Task("two", "Two", "mAP", classes=("a", "b"), multi_label=True, folds=("1", "2"))
    clips = [Clip(str(number), partial(audio_of, number), (int(number < 4),)) for number in range(8)]
    embedder = FakeEmbedder(np.eye(8, dtype=np.float32), {})
    embedded = embed_task(task, TaskData(tuple(clips), "folder"), embedder)
    folds = {"1": np.array([0, 1, 2, 7]), "2": np.array([3, 4, 5, 6])}
    measured = evaluation._classify(embedded, np.zeros((8, 2)), np.arange(8), folds, seed=0)
    harmonic = 25 / 12  # of four clips; Bestgen 2015
    of_one, of_three = (harmonic / 4, (harmonic + 2 / 3 * (4 - harmonic)) / 4)
    assert measured["chance"] == pytest.approx((of_one + of_three) / 2, abs=1e-12)


def test_retrieval_is_of_clips_and_all_their_captions(few_draws):
    """Two clips, of which the second is never found; one caption belongs to both."""
    task = TASKS["clotho"]
    captions = [("one", "first", "both"), ("two", "both")]
    clips = [Clip(str(number), partial(audio_of, number), captions=texts) for number, texts in enumerate(captions)]
    of_text = {"one": [1, 0], "first": [1, 0.1], "both": [0.6, 0.5], "two": [0.9, 0.2]}
    embedder = FakeEmbedder(np.array([[1, 0], [0, 1]], dtype=np.float32), {k: np.array(v) for k, v in of_text.items()})
    result = evaluate(embed_task(task, TaskData(tuple(clips), "folder"), embedder), embedder)
    assert result.n == 4
    assert {item["query"]: item["hit"] for item in result.items} == {
        "one": True,
        "first": True,
        "both": True,
        "two": False,
    }
    assert result.metrics["text_to_audio_r@1"] == result.value == 0.75
    assert result.metrics["text_to_audio_map@10"] == pytest.approx((1 + 1 + 1 + 1 / 2) / 4)
    # clip 2 hears "both" first
    assert result.metrics["audio_to_text_r@1"] == 1.0
    assert result.chance == pytest.approx((3 * 0.5 + 1) / 4)


def test_the_interval_of_retrieval_is_over_draws_of_clips():
    """Where all captions of a clip find the same, it is as wide as if each clip had one caption."""
    data, vectors, of_text = made_up(TASKS["clotho"], 30)
    order = np.arange(30)
    order[:10] = order[:10].reshape(5, 2)[:, ::-1].reshape(10)  # ten clips are taken for others
    embedder = FakeEmbedder(vectors, of_text, order)
    result = evaluate(embed_task(TASKS["clotho"], data, embedder), embedder)
    assert (result.value, result.n) == (pytest.approx(20 / 30), 150)
    assert result.ci95 == pytest.approx(metrics.bootstrap_interval([(30, metrics.mean_of(order == np.arange(30)))], 0))


def test_zero_shot_says_what_the_pipeline_says(tiny_tagger, tmp_path):
    """On real sounds, to the class."""
    names = ("siren", "rain", "church bell", "helicopter", "ticking clock", "dial tone")
    files = {name: f"examples/audio/{name.replace(' ', '_')}.flac" for name in names}
    task = Task("sounds", "Sounds", "accuracy", classes=names, folds=())
    clips = [Clip(name, partial(str, file), (number,)) for number, (name, file) in enumerate(files.items())]
    embedder = Embedder(tiny_tagger.model, tiny_tagger.processor)
    result = evaluate(embed_task(task, TaskData(tuple(clips), "folder"), embedder), embedder)
    for item, predictions in zip(result.items, tiny_tagger(list(files.values()), names, top_k=1), strict=True):
        assert item["predicted"] == predictions[0]["label"]
    assert result.value == 1.0
    assert result.model == "tiny"
    assert result.prompt == {"templates": ["this is a sound of {}"]}
    assert set(result.versions) >= {"hf_clap", "torch", "transformers", "scikit-learn", "numpy", "python"}


@pytest.fixture
def sounds(tmp_path):
    """An audiofolder of 40 tones and noises in two folds."""
    lines = ["file_name,label,fold"]
    for number in range(40):
        waveform = tone(1.0, 16000, 300.0 + 20 * number) if number % 2 else noise(1.0, 16000, number)
        soundfile.write(tmp_path / f"{number}.wav", waveform, 16000)
        lines.append(f"{number}.wav,{'tone' if number % 2 else 'noise'},{1 + number // 20}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


SOUNDS = Task("sounds", "Sounds", "accuracy", classes=("noise", "tone"), folds=("1", "2"))


def test_what_was_embedded_is_not_embedded_again(tiny_model, processor, sounds, monkeypatch):
    embedder = Embedder(tiny_model, processor)
    cache = ArrayCache(sounds / "cache.sqlite")
    first = embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder, cache)
    asked = []
    embed = Embedder.clips
    monkeypatch.setattr(Embedder, "clips", lambda self, groups: embed(self, (asked.append(g) or g for g in groups)))
    second = embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder, cache)
    assert asked == []
    assert np.array_equal(first.embeds, second.embeds)
    assert np.array_equal(first.pooled, second.pooled)

    (sounds / "0.wav").rename(sounds / "renamed.wav")  # by content: a name does not matter, another sound does
    soundfile.write(sounds / "2.wav", noise(1.0, 16000, 99), 16000)
    text = (sounds / "metadata.csv").read_text().replace("\n0.wav", "\nrenamed.wav")
    (sounds / "metadata.csv").write_text(text)
    embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder, cache)
    assert [len(group) for group in asked] == [1]

    other = Embedder(hf_clap.HfClapModel.from_pretrained(hf_clap.TINY), processor)
    next(other.model.audio_model.parameters()).data[0] += 0.1
    embed_task(SOUNDS, load_task(SOUNDS, [sounds]), other, cache)
    assert sum(map(len, asked)) == 41


def test_what_other_versions_have_embedded_is_embedded_again(tiny_model, processor, sounds, monkeypatch):
    embedder, cache = Embedder(tiny_model, processor), ArrayCache(sounds / "cache.sqlite")
    embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder, cache)
    before = cache.all_keys()
    monkeypatch.setattr(hf_clap, "__version__", "99")
    embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder, cache)
    assert len(cache.all_keys()) == 2 * len(before) == 80


def test_the_same_sound_twice_is_embedded_once(tiny_model, processor, sounds, monkeypatch):
    (sounds / "3.wav").write_bytes((sounds / "1.wav").read_bytes())
    asked = []
    embed = Embedder.clips
    monkeypatch.setattr(Embedder, "clips", lambda self, groups: embed(self, (asked.append(g) or g for g in groups)))
    embedded = embed_task(SOUNDS, load_task(SOUNDS, [sounds]), Embedder(tiny_model, processor))
    assert sum(map(len, asked)) == 39
    assert np.array_equal(embedded.embeds[1], embedded.embeds[3])
    assert len(embedded.clips) == 40


def test_broken_clips_are_named_and_left_out(tiny_model, processor, sounds):
    (sounds / "5.wav").write_bytes(b"RIFF, but not really")
    (sounds / "7.wav").write_bytes((sounds / "7.wav").read_bytes()[:5000])
    (sounds / "9.wav").unlink()
    embedder = Embedder(tiny_model, processor)
    result = evaluate(embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder), embedder)
    assert result.n == 37
    assert {clip["file"]: clip["error"].split(";")[0] for clip in result.failed} == {
        "5.wav": "5.wav is not an audio file that can be read",
        "7.wav": "7.wav is truncated: its header promises 1.00 s and the file holds 0.15 s",
        "9.wav": f"9.wav does not exist in the folder {str(sounds)!r}",
    }
    assert not {"5.wav", "7.wav", "9.wav"} & {item["file"] for item in result.items}
    for file in sounds.glob("*.wav"):
        file.unlink()
    with pytest.raises(ValueError, match=r"No clip of Sounds can be read; the first says: 0.wav does not exist"):
        embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder)


def test_probe_scores_come_from_the_cache(tiny_model, processor, sounds, monkeypatch):
    embedder = Embedder(tiny_model, processor)
    cache = ArrayCache(sounds / "cache.sqlite")
    embedded = embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder, cache)
    first = evaluate(embedded, embedder, "probe", epochs=3, cache=cache)
    calls = []
    monkeypatch.setattr(evaluation, "probe", lambda *args, **options: calls.append(1) or probe(*args, **options))
    again = evaluate(embedded, embedder, "probe", epochs=3, cache=cache)
    assert (calls, results_as_json([again])) == ([], results_as_json([first]))
    for options in ({"epochs": 2}, {"epochs": 3, "seed": 1}, {"epochs": 3, "layers": 3}):
        evaluate(embedded, embedder, "probe", cache=cache, **options)
    assert len(calls) == 6


def test_results_are_the_same_without_a_cache_and_with_any(tiny_model, processor, sounds, tmp_path):
    embedder = Embedder(tiny_model, processor)
    results = []
    for cache in (None, ArrayCache(tmp_path / "a.sqlite"), ArrayCache(tmp_path / "a.sqlite")):
        embedded = embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder, cache)
        results.append([evaluate(embedded, embedder, setting, cache=cache) for setting in ("zero-shot", "probe")])
    assert results_as_json(results[0]) == results_as_json(results[1]) == results_as_json(results[2])
    assert json.loads(results_as_json(results[0]))[1]["value"] > 0.9  # tones and noise


def test_half_embedded_groups_are_what_they_would_be(tiny_model, processor, sounds, monkeypatch):
    """A cache with some whole groups of the task, as a killed run leaves it, gives the bits of an unbroken run."""
    embedder = Embedder(tiny_model, processor)
    whole = embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder)
    monkeypatch.setattr(task_embedding, "WRITE_EVERY_S", -1.0)
    cache = ArrayCache(sounds / "cache.sqlite")
    put, puts = cache.put, []

    def put_twice_then_die(entries):
        if len(puts) == 2:
            raise KeyboardInterrupt
        puts.append(len(entries))
        put(entries)

    monkeypatch.setattr(cache, "put", put_twice_then_die)
    with pytest.raises(KeyboardInterrupt):
        embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder, cache)
    assert puts == [8, 8]
    monkeypatch.setattr(cache, "put", put)
    resumed = embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder, cache)
    assert np.array_equal(whole.embeds, resumed.embeds)


def test_finetuning_learns_and_leaves_the_model_alone(small_checkpoint, sounds):
    tagger = hf_clap.pipeline(small_checkpoint, device="cpu")
    before = {name: tensor.clone() for name, tensor in tagger.model.state_dict().items()}
    embedder = Embedder(tagger.model, tagger.processor)
    embedded = embed_task(SOUNDS, load_task(SOUNDS, [sounds]), embedder)
    result = evaluate(embedded, embedder, "finetune", epochs=40)
    once, twice = (evaluate(embedded, embedder, "finetune", epochs=2) for _ in range(2))
    assert result.value > 0.9  # tones and noise, by an untrained tower of a few thousand parameters
    assert results_as_json([once]) == results_as_json([twice])
    assert result.training["learning_rate"] == 1e-4
    assert all(torch.equal(tensor, before[name]) for name, tensor in tagger.model.state_dict().items())
    assert not tagger.model.training


def test_probe_and_finetune_take_several_labels(small_checkpoint, sounds):
    tagger = hf_clap.pipeline(small_checkpoint, device="cpu")
    clips = load_task(SOUNDS, [sounds]).clips
    targets = np.zeros((40, 3), dtype=bool)
    targets[::2, 0] = targets[1::2, 1] = targets[:, 2] = True  # every clip has the third
    options = {"epochs": 1, "seed": 0}
    logits = finetune(tagger.model, tagger.processor.feature_extractor, clips[:8], targets[:8], clips[8:12], **options)
    assert logits.shape == (4, 3)
    features = np.random.default_rng(0).normal(size=(40, 50)) + wide(2.0 * targets[:, :1] - 1)
    scores = probe(features[:30], targets[:30], features[30:], layers=1, epochs=2000, seed=0)
    assert ((scores[:, 0] > 0.5) == targets[30:, 0]).mean() > 0.9
    assert scores[:, 2].mean() > 0.6
    with pytest.raises(ValueError, match="A probe has 1 or 3 layers, not 2"):
        probe(features, targets, features, layers=2, epochs=1, seed=0)


def test_a_class_without_clips_to_learn_from_is_never_predicted():
    features, targets = wide(np.eye(3)).repeat(10, axis=0), np.eye(4, dtype=bool)[[0, 1, 3]].repeat(10, axis=0)
    scores = probe(features, targets, features, layers=1, epochs=100, seed=0)
    assert (scores[:, 2] == 0).all()
    assert (scores.argmax(axis=1) == targets.argmax(axis=1)).all()
    one = probe(features, np.eye(4, dtype=bool)[[2] * 30], features, layers=1, epochs=1, seed=0)
    assert (one == np.eye(4)[2]).all()


@pytest.mark.parametrize("name", ["esc10"])
def test_esc10_on_real_sounds(shared, tiny_tagger, name):
    """Zero-shot as the model card has it; the probe of the paper, five folds, at least 0.95."""
    folder = shared / "data" / "eval" / name
    if not folder.is_dir():
        pytest.skip(f"the evaluation set {name} is not here")
    embedder = Embedder(tiny_tagger.model, tiny_tagger.processor)
    embedded = embed_task(TASKS[name], load_task(TASKS[name], [folder]), embedder)
    assert evaluate(embedded, embedder).value == pytest.approx(0.9325, abs=0.005)
    result = evaluate(embedded, embedder, "probe")
    assert result.value >= 0.95
    assert len(result.folds) == 5
