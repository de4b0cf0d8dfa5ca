import json
import pickle
import shutil
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file, save_file

import hf_clap
from conftest import SMALL_AUDIO, noise, tone
from hf_clap import AudioError, HfClapConfig, HfClapModel, HfClapPipeline, linear
from hf_clap.pipeline import CACHED_LABEL_SETS

LABELS = ["white noise", "church bell", "dog", "speech"]
RATE = 16000


def scores_by_label(predictions):
    return {prediction["label"]: prediction["score"] for prediction in predictions}


def assert_same_scores(one, other, tolerance=1e-5):
    one, other = scores_by_label(one), scores_by_label(other)
    assert one.keys() == other.keys()
    assert max(abs(one[label] - other[label]) for label in one) < tolerance


def as_predictions(scores):
    return [{"label": label, "score": score} for label, score in zip(LABELS, scores.tolist(), strict=True)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four recordings: lengths, rates, channels and formats differ."""
    folder = tmp_path_factory.mktemp("recordings")
    soundfile.write(folder / "noise.wav", noise(5.0), RATE)
    soundfile.write(folder / "stereo.flac", np.stack([noise(1.0, 44100), noise(1.0, 44100, 1)], axis=1), 44100)
    soundfile.write(folder / "tone.ogg", tone(3.0, 48000), 48000)
    soundfile.write(folder / "long.wav", noise(33.3, 8000), 8000)
    return [str(folder / name) for name in ("noise.wav", "stereo.flac", "tone.ogg", "long.wav")]


# --- results


def test_a_result_is_a_ranking(tiny_tagger):
    predictions = tiny_tagger(noise(), LABELS, sampling_rate=RATE)
    assert predictions[0]["label"] == "white noise"
    assert [prediction["score"] for prediction in predictions] == sorted(
        (prediction["score"] for prediction in predictions), reverse=True
    )
    assert sum(prediction["score"] for prediction in predictions) == pytest.approx(1, abs=1e-6)
    assert sorted(scores_by_label(predictions)) == sorted(LABELS)


def test_scores_are_the_models(tiny_tagger, tiny_model, processor):
    inputs = processor(text=[f"this is a sound of {label}" for label in LABELS], audio=noise(), sampling_rate=RATE)
    with torch.inference_mode():
        logits = tiny_model(**inputs).logits_per_audio[0]
    expected = [
        {"label": label, "score": score} for label, score in zip(LABELS, logits.softmax(0).tolist(), strict=True)
    ]
    assert_same_scores(tiny_tagger(noise(), LABELS, sampling_rate=RATE), expected, 1e-6)
    expected = [
        {"label": label, "score": score} for label, score in zip(LABELS, logits.sigmoid().tolist(), strict=True)
    ]
    assert_same_scores(tiny_tagger(noise(), LABELS, sampling_rate=RATE, multi_label=True), expected, 1e-6)


def test_top_k_and_threshold(tiny_tagger):
    everything = tiny_tagger(noise(), LABELS, sampling_rate=RATE)
    assert tiny_tagger(noise(), LABELS, sampling_rate=RATE, top_k=2) == everything[:2]
    assert tiny_tagger(noise(), LABELS, sampling_rate=RATE, top_k=99) == everything
    threshold = everything[1]["score"]
    assert tiny_tagger(noise(), LABELS, sampling_rate=RATE, threshold=threshold) == everything[:2]
    assert tiny_tagger(noise(), LABELS, sampling_rate=RATE, threshold=1.0) == []


def test_templates_are_averaged(tiny_tagger, tiny_model, processor):
    templates = ["{}", "a recording of {} outside"]
    sides = [
        tiny_model.encode_text(**processor(text=[template.replace("{}", label) for label in LABELS]))
        for template in templates
    ]
    mean = torch.nn.functional.normalize(sides[0] + sides[1], dim=-1)
    audio = tiny_model.encode_audio(**processor(audio=noise(), sampling_rate=RATE))
    expected = tiny_model.similarity(audio, mean)[0].softmax(0)
    predictions = tiny_tagger(noise(), LABELS, sampling_rate=RATE, hypothesis_template=templates)
    assert_same_scores(predictions, as_predictions(expected), 1e-6)


def test_labels_as_one_string(tiny_tagger):
    as_list = tiny_tagger(noise(), ["dog", "white noise"], sampling_rate=RATE)
    assert tiny_tagger(noise(), "dog, white noise", sampling_rate=RATE) == as_list


def test_every_kind_of_input_gives_the_same(tiny_tagger, files):
    expected = tiny_tagger(files[0], LABELS)
    with open(files[0], "rb") as file:
        data = file.read()
    waveform, _ = soundfile.read(files[0], dtype="float32")
    with open(files[0], "rb") as file:
        assert tiny_tagger(file, LABELS) == expected
    assert tiny_tagger(data, LABELS) == expected
    assert tiny_tagger({"array": waveform, "sampling_rate": RATE}, LABELS) == expected
    assert tiny_tagger(torch.from_numpy(waveform), LABELS, sampling_rate=RATE) == expected
    assert tiny_tagger(waveform.tolist(), LABELS, sampling_rate=RATE) == expected
    assert tiny_tagger({"bytes": data, "path": None}, LABELS) == expected


def test_a_list_an_iterator_and_singles_agree(tiny_tagger, files):
    singles = [tiny_tagger(file, LABELS) for file in files]
    for batch_size in (1, 3, 16):
        tagger = HfClapPipeline(tiny_tagger.model, tiny_tagger.processor, batch_size)
        for results in (tagger(files, LABELS), tagger(iter(files), LABELS)):
            for result, single in zip(results, singles, strict=True):
                assert_same_scores(result, single, 1e-6)
    assert tiny_tagger([], LABELS) == []


@pytest.mark.parametrize(
    ("count", "batch_size", "workers", "sizes"),
    [
        (100, 8, 2, [8] * 2 + [7] * 12),
        (100, 8, 3, [7] * 10 + [6] * 5),
        (17, 8, 2, [5, 4, 4, 4]),
        (16, 8, 2, [8, 8]),
        (5, 8, 4, [2, 1, 1, 1]),
        (3, 8, 4, [1, 1, 1]),
    ],
)
def test_a_list_is_shared_out_evenly(tiny_model, processor, monkeypatch, count, batch_size, workers, sizes):
    """Nobody computes one more group while the others are done."""
    tagger = hf_clap.HfClapPipeline(tiny_model, processor, batch_size)
    tagger.embedder.workers = workers
    seen = []
    windows = tagger.embedder.windows
    monkeypatch.setattr(
        tagger.embedder, "windows", lambda groups, *rest: windows((seen.append(len(g)) or g for g in groups), *rest)
    )
    clip = {"array": np.zeros(8000, np.float32), "sampling_rate": 16000}
    assert len(tagger([clip] * count, ["a", "b"])) == count
    assert seen == sizes


def test_an_iterator_is_read_no_further_than_needed(tiny_tagger):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield {"array": noise(1.0), "sampling_rate": RATE}

    results = tiny_tagger(endless(), LABELS)
    next(results)
    assert len(taken) <= tiny_tagger.embedder.batch_size * (2 * torch.get_num_threads() + 1)
    results.close()


def test_a_slow_iterator_does_not_hold_results_back(tiny_tagger):
    """A microphone's next stretch takes its time: what is known by then comes out before the one after it."""
    taken = []

    def slow():
        while True:
            time.sleep(0.5)
            taken.append(len(taken))
            yield {"array": noise(1.0), "sampling_rate": RATE}

    tagger = HfClapPipeline(tiny_tagger.model, tiny_tagger.processor, batch_size=1)
    results = tagger(slow(), LABELS)
    next(results)
    assert len(taken) <= 3
    results.close()


def test_stock_pipeline_gives_the_same_scores(tiny_tagger, files):
    stock = transformers.pipeline("zero-shot-audio-classification", model=hf_clap.TINY, device="cpu")
    assert isinstance(stock.model, HfClapModel)
    for file in files:  # the last is longer than a window
        waveform = hf_clap.load_audio(file, RATE)
        expected = stock(waveform, candidate_labels=LABELS, hypothesis_template="this is a sound of {}")
        assert_same_scores(tiny_tagger(file, LABELS), expected)


def test_stock_pipeline_takes_batches_of_mixed_lengths(tiny_tagger, files):
    stock = transformers.pipeline("zero-shot-audio-classification", model=hf_clap.TINY, device="cpu")
    waveforms = [hf_clap.load_audio(file, RATE) for file in files]
    results = stock(waveforms, candidate_labels=LABELS, hypothesis_template="this is a sound of {}", batch_size=4)
    for result, file in zip(results, files, strict=True):
        assert_same_scores(tiny_tagger(file, LABELS), result)


# --- time


def test_timestamps_follow_the_sound(tiny_tagger):
    clip = np.concatenate([noise(4.0), 0.001 * noise(4.0, seed=1), tone(3.5)])
    labels = ["white noise", "silence", "beep"]
    predictions = tiny_tagger(clip, labels, sampling_rate=RATE, return_timestamps=True, top_k=1)
    assert [prediction["timestamp"] for prediction in predictions] == [
        (0.0, 2.0),
        (2.0, 4.0),
        (4.0, 6.0),
        (6.0, 8.0),
        (8.0, 10.0),
        (9.5, 11.5),
    ]
    heard = [prediction["label"] for prediction in predictions]
    assert heard == ["white noise"] * 2 + ["silence"] * 2 + ["beep"] * 2
    for prediction in predictions:
        start, end = (round(seconds * RATE) for seconds in prediction["timestamp"])
        alone = tiny_tagger(clip[start:end], labels, sampling_rate=RATE, top_k=1)
        assert alone[0]["label"] == prediction["label"]
        assert alone[0]["score"] == pytest.approx(prediction["score"], abs=1e-5)


def test_windows_overlap_by_the_hop(tiny_tagger):
    predictions = tiny_tagger(
        noise(3.0), LABELS, sampling_rate=RATE, return_timestamps=True, top_k=1, window_s=1.0, hop_s=0.5
    )
    assert [prediction["timestamp"] for prediction in predictions] == [(0.5 * i, 0.5 * i + 1.0) for i in range(5)]


def test_a_long_clip_is_the_mean_of_its_windows(tiny_tagger, tiny_model, processor):
    clip = np.concatenate([noise(10.0), tone(10.0), noise(5.0, seed=1)])
    parts = [clip[: 10 * RATE], clip[10 * RATE : 20 * RATE], clip[15 * RATE :]]
    embeds = tiny_model.encode_audio(**processor(audio=parts, sampling_rate=RATE))
    text = tiny_model.encode_text(**processor(text=[f"this is a sound of {label}" for label in LABELS]))
    mean = torch.nn.functional.normalize(embeds.sum(dim=0), dim=0)[None]
    expected = tiny_model.similarity(mean, text)[0].softmax(0)
    assert_same_scores(tiny_tagger(clip, LABELS, sampling_rate=RATE), as_predictions(expected))


def test_an_hour_takes_little_memory(tmp_path):
    """With a tower of a few weights, so that the hour is read and cut for real in seconds."""
    config = HfClapConfig(
        text_config={"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        audio_config=SMALL_AUDIO["hf_clap_patch_cnn"] | {"stem_channels": 1, "channels": (1,), "strides": (2,)},
        projection_dim=4,
    )
    tagger = hf_clap.pipeline(HfClapModel(config), hf_clap.HfClapProcessor.from_pretrained(hf_clap.TINY), device="cpu")
    path = tmp_path / "hour.wav"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16") as file:
        for minute in range(60):
            file.write(noise(60.0, 8000, seed=minute))
    tagger(noise(1.0), ["a"], sampling_rate=RATE)
    tracemalloc.start()
    predictions = tagger(path, ["a", "b"], return_timestamps=True, window_s=10.0, top_k=1)
    _, peak = tracemalloc.get_traced_memory()  # numpy's and Python's memory
    tracemalloc.stop()
    assert len(predictions) == 360
    assert predictions[-1]["timestamp"] == (3590.0, 3600.0)
    assert peak < 20e6  # the hour at 16 kHz is 230 MB


def test_the_models_own_threshold(tiny_tagger, monkeypatch):
    options = {"sampling_rate": RATE, "multi_label": True}
    everything = tiny_tagger(noise(), LABELS, **options)
    assert tiny_tagger.model.config.multi_label_threshold == 0.1
    monkeypatch.setattr(tiny_tagger.model.config, "multi_label_threshold", everything[1]["score"])
    assert tiny_tagger(noise(), LABELS, threshold="model", **options) == everything[:2]
    monkeypatch.setattr(tiny_tagger.model.config, "multi_label_threshold", None)
    with pytest.raises(ValueError, match="as the model has none; pass a number from 0 to 1"):
        tiny_tagger(noise(), LABELS, threshold="model", **options)


def test_labels_are_encoded_once(tiny_tagger, monkeypatch):
    calls = []
    encode_text = tiny_tagger.model.encode_text
    monkeypatch.setattr(tiny_tagger.model, "encode_text", lambda **inputs: calls.append(1) or encode_text(**inputs))
    clips = [{"array": noise(1.0, seed=seed), "sampling_rate": RATE} for seed in range(20)]
    tiny_tagger(clips, ["one label", "another label"])
    tiny_tagger(clips, ["one label", "another label"])
    assert len(calls) == 1
    tiny_tagger(clips[0], ["another label", "one label"])
    assert len(calls) == 2


def test_labels_are_encoded_anew_after_training():
    tagger = hf_clap.pipeline(device="cpu")
    before = tagger(noise(), LABELS, sampling_rate=RATE)
    tagger.model.train()
    with torch.no_grad():
        prototypes = tagger.model.text_projection.prototypes
        prototypes.mul_(torch.linspace(-1, 1, len(prototypes))[:, None].sign())
        after_step = tagger(noise(), LABELS, sampling_rate=RATE)
        prototypes.data = torch.ones_like(prototypes).cumsum(dim=0).sin()
    assert before != after_step != tagger(noise(), LABELS, sampling_rate=RATE)
    after = tagger(noise(), LABELS, sampling_rate=RATE)
    assert not tagger.model.training
    fresh = HfClapPipeline(tagger.model, tagger.processor)(noise(), LABELS, sampling_rate=RATE)
    assert after == fresh != before


def test_few_label_sets_are_kept(tiny_tagger):
    for index in range(12):
        tiny_tagger(noise(0.1), [f"label {index}"], sampling_rate=RATE)
    assert len(tiny_tagger._label_embeds._kept.value) == CACHED_LABEL_SETS == 8


def test_labels_from_a_generator(tiny_tagger):
    predictions = tiny_tagger(noise(), (label for label in LABELS), sampling_rate=RATE, top_k=np.int64(1))
    assert predictions == tiny_tagger(noise(), LABELS, sampling_rate=RATE, top_k=1)


def test_a_column_of_datasets(tiny_tagger, files):
    datasets = pytest.importorskip("datasets")
    column = datasets.Dataset.from_dict({"audio": files[:3]}).cast_column("audio", datasets.Audio(decode=False))[
        "audio"
    ]
    assert tiny_tagger(column, LABELS) == tiny_tagger(files[:3], LABELS)


def test_a_thousand_labels(tiny_tagger, tiny_model, processor):
    labels = [f"sound number {index}" for index in range(1000)]
    predictions = tiny_tagger(noise(1.0), labels, sampling_rate=RATE, top_k=1000)
    assert len(predictions) == 1000
    assert sum(prediction["score"] for prediction in predictions) == pytest.approx(1, abs=1e-4)
    # sorted by length, encoded and put back in place
    embeds = tiny_tagger._encode_labels(labels, ["this is a sound of {}"])
    alone = tiny_model.encode_text(**processor(text=[f"this is a sound of {labels[321]}"]))
    assert (embeds[321] - alone[0]).abs().max() < 1e-6


# --- what cannot be used


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"candidate_labels": []}, ValueError, "There are no labels"),
        ({"candidate_labels": ["dog", "dog "]}, ValueError, "Label 'dog' is there twice"),
        ({"candidate_labels": ["dog", " "]}, ValueError, "Label 2 of 2 is empty"),
        ({"candidate_labels": [1, 2]}, TypeError, "as a list of str"),
        ({"candidate_labels": None}, TypeError, "as a list of str"),
        ({"hypothesis_template": "a sound"}, ValueError, "does not say where the label goes; write {}"),
        ({"hypothesis_template": ["{}", "{} and {}"]}, ValueError, "'{} and {}' does not say"),
        ({"hypothesis_template": []}, ValueError, "There is no template"),
        ({"top_k": -1}, ValueError, "top_k=-1 is not possible"),
        ({"top_k": 0}, ValueError, "top_k=0 is not possible"),
        ({"top_k": 1.5}, ValueError, "top_k=1.5 is not possible"),
        ({"threshold": "0.5"}, ValueError, "threshold='0.5' is not possible"),
        ({"return_timestamps": True, "window_s": "2"}, ValueError, "window_s='2' is not possible"),
        ({"hypothesis_template": None}, ValueError, "None does not say where the label goes"),
        ({"threshold": "model"}, ValueError, "as the model's is for multi_label=True; pass a number"),
        ({"threshold": 2}, ValueError, "threshold=2 is not possible"),
        ({"threshold": True}, ValueError, "threshold=True is not possible"),
        ({"candidate_labels": ["dog", "caf\udce9"]}, ValueError, "is not valid Unicode; pass it in UTF-8"),
        ({"hypothesis_template": "caf\udce9 {}"}, ValueError, "is not valid Unicode; pass it in UTF-8"),
        ({"topk": 3}, TypeError, "unexpected keyword argument 'topk'"),
        ({"on_error": "ignore"}, ValueError, "on_error='ignore' is not possible"),
        ({"window_s": 1.0}, ValueError, "pass return_timestamps=True too"),
        ({"hop_s": 1.0}, ValueError, "pass return_timestamps=True too"),
        ({"return_timestamps": True, "window_s": 0}, ValueError, "window_s=0 is not possible"),
        ({"return_timestamps": True, "window_s": 60}, ValueError, "at most 10.0 s at once"),
        ({"return_timestamps": True, "hop_s": 3.0}, ValueError, "at most window_s=2.0"),
        ({"sampling_rate": None}, AudioError, "pass source_rate|pass sampling_rate"),
        ({"sampling_rate": -1}, AudioError, "sampling rate of -1"),
    ],
)
def test_impossible_options_are_refused_in_a_sentence(tiny_tagger, options, error, message):
    arguments = {"candidate_labels": LABELS, "sampling_rate": RATE} | options
    with pytest.raises(error, match=message) as caught:
        tiny_tagger(noise(0.5), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.full(1000, np.nan, np.float32), "NaN or infinite"),
        (np.zeros((2, 2, 1000), np.float32), "is not a clip"),
        (np.zeros((16000, 2), np.float32), "array.T"),
    ],
)
def test_impossible_arrays_are_refused_in_a_sentence(tiny_tagger, audio, message):
    with pytest.raises(AudioError, match=message):
        tiny_tagger(audio, LABELS, sampling_rate=RATE)


def test_numbers_of_numpy_are_numbers(tiny_tagger):
    options = {"return_timestamps": True, "window_s": 1.0, "threshold": 0.5}
    of_numpy = {"return_timestamps": True, "window_s": np.int64(1), "threshold": np.float32(0.5)}
    expected = tiny_tagger(noise(2.0), LABELS, sampling_rate=RATE, **options)
    assert tiny_tagger(noise(2.0), LABELS, sampling_rate=RATE, **of_numpy) == expected != []


@pytest.mark.parametrize("name", ["audio_projection.classifier.weight", "text_projection.values", "logit_scale"])
def test_a_model_that_has_diverged_gives_no_scores(processor, name):
    model = HfClapModel.from_pretrained(hf_clap.TINY)
    with torch.no_grad():
        model.get_parameter(name).fill_(torch.nan)
    tagger = HfClapPipeline(model.eval(), processor)
    with pytest.raises(ValueError, match=r"^The model gives NaN or infinite scores; check its weights, or choose "):
        tagger(noise(1.0, RATE), LABELS, sampling_rate=RATE)


class Told(list):
    """A list that says a length of its own."""

    def __len__(self):
        return 3


class Unknown:
    """What has `__len__`, as tqdm around a generator does, and no length."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        raise TypeError("of no length")


@pytest.mark.parametrize("kind", [Told, Unknown])
def test_inputs_are_all_heard_whatever_length_they_say(tiny_tagger, kind):
    sounds = [noise(0.5, RATE, seed) for seed in range(40)]
    expected, heard = (
        [
            {row["label"]: row["score"] for row in rows}
            for rows in tiny_tagger.iterate(inputs, LABELS, sampling_rate=RATE)
        ]
        for inputs in (iter(sounds), kind(sounds))
    )
    assert len(expected) == 40
    assert heard == [pytest.approx(scores, abs=1e-6) for scores in expected]


def test_a_clip_that_resampling_makes_too_loud_breaks_no_other(tiny_tagger, files):
    loud = {"array": np.sign(np.sin(np.arange(44100) * 0.1)).astype(np.float32) * 1e6, "sampling_rate": 44100}
    first, broken, last = tiny_tagger([files[0], loud, files[0]], LABELS, on_error="return")
    assert isinstance(broken, AudioError)
    assert first == last == tiny_tagger(files[0], LABELS)


def test_what_an_iterator_gave_before_it_failed_is_heard(tiny_tagger, files):
    def source():
        yield from files[:3]
        raise RuntimeError("the microphone is gone")

    results = tiny_tagger(source(), LABELS)
    for expected in tiny_tagger(files[:3], LABELS):
        assert_same_scores(next(results), expected, 1e-6)
    with pytest.raises(RuntimeError, match="the microphone is gone"):
        next(results)


def test_a_pipeline_travels_to_another_process(tiny_tagger, files):
    other = pickle.loads(pickle.dumps(tiny_tagger))
    assert other(files[0], LABELS) == tiny_tagger(files[0], LABELS)


@pytest.mark.parametrize("model", ["", 3, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match="is not a model; pass a folder, a Hub id or a HfClapModel"):
        hf_clap.pipeline(model)


def test_options_are_checked_before_anything_is_read(tiny_tagger):
    with pytest.raises(ValueError, match="top_k"):
        tiny_tagger.iterate(iter([]), LABELS, top_k=0)
    with pytest.raises(TypeError, match="iterate takes several inputs"):
        tiny_tagger.iterate("noise.wav", LABELS)


def test_a_broken_input_stops_or_is_returned(tiny_tagger, files, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_text("this is no sound")
    inputs = [files[0], str(broken), str(tmp_path / "missing.wav"), files[1]]
    with pytest.raises(AudioError, match=r"broken\.wav"):
        tiny_tagger(inputs, LABELS)
    results = tiny_tagger(iter([files[0], files[1], str(broken), files[2]]), LABELS)
    for expected in tiny_tagger(files[:2], LABELS):  # what came before it is not lost
        assert_same_scores(next(results), expected, 1e-6)
    with pytest.raises(AudioError, match=r"broken\.wav"):
        next(results)
    inputs += [{"bytes": "abc"}, {"path": 3}, {"array": noise() * 1e30, "sampling_rate": RATE}]
    results = tiny_tagger(inputs, LABELS, on_error="return")
    assert all(isinstance(result, AudioError) for result in results[4:])
    assert_same_scores(results[0], tiny_tagger(files[0], LABELS), 1e-6)
    assert isinstance(results[1], AudioError)
    assert isinstance(results[2], FileNotFoundError)
    assert_same_scores(results[3], tiny_tagger(files[1], LABELS), 1e-6)


class Rows(Sequence):
    """A column of a data set that decodes its rows: one of them is broken."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        if self.rows[number] is None:
            raise RuntimeError("Could not open input file\nframe #0")
        return self.rows[number]


def test_a_row_that_cannot_be_decoded_spoils_no_other(tiny_tagger, files):
    broken = Rows([files[0], None, files[1]])
    first, error, last = tiny_tagger(broken, LABELS, on_error="return")
    assert (first, last) == tuple(tiny_tagger(files[:2], LABELS))
    assert str(error) == "Input 1 cannot be read (Could not open input file); mend it, or leave it out."
    for rows in (broken, Rows([None])):
        with pytest.raises(AudioError, match="cannot be read"):
            tiny_tagger(rows, LABELS)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_file_that_breaks_off_in_the_middle_spoils_no_other(tiny_tagger, files, tmp_path, batch_size):
    """Some of its windows are on their way when its end turns out to be missing."""
    whole = tmp_path / "whole.flac"
    soundfile.write(whole, noise(60.0), RATE)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    tagger = HfClapPipeline(tiny_tagger.model, tiny_tagger.processor, batch_size)
    results = tagger([files[0], str(cut), files[1], files[3]], LABELS, on_error="return")
    assert isinstance(results[1], AudioError)
    for result, file in zip([results[0], *results[2:]], [files[0], files[1], files[3]], strict=True):
        assert_same_scores(result, tiny_tagger(file, LABELS), 1e-6)


def test_a_label_of_600_words_is_cut(tiny_tagger):
    predictions = tiny_tagger(noise(1.0), ["dog " * 600, "white noise"], sampling_rate=RATE)
    assert predictions[0]["label"] == "white noise"


@pytest.mark.parametrize(
    ("kind", "samples"),
    [(np.int16, 2**15), (np.int32, 2**31), (np.float64, 1), (np.uint8, 2**7)],
)
def test_number_types_give_the_same_scores(tiny_tagger, kind, samples):
    waveform = noise(2.0)
    scaled = waveform * samples + (128 if kind == np.uint8 else 0)
    predictions = tiny_tagger(np.clip(scaled, -(2**31), 2**31 - 1).astype(kind), LABELS, sampling_rate=RATE)
    assert_same_scores(
        predictions, tiny_tagger(waveform, LABELS, sampling_rate=RATE), 0.02 if kind == np.uint8 else 1e-3
    )


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 96000, 192000])
def test_rates_and_surround_are_heard_alike(tiny_tagger, rate):
    surround = np.tile(tone(1.0, rate, 1000.0), (6, 1))
    predictions = tiny_tagger(surround, ["beep", "dog"], sampling_rate=rate)
    expected = tiny_tagger(tone(1.0, RATE, 1000.0), ["beep", "dog"], sampling_rate=RATE)
    assert_same_scores(predictions, expected, 0.02)


def test_thirty_milliseconds_are_repeated(tiny_tagger):
    clip = noise(0.03)
    repeated = np.tile(clip, 33)[: round(0.975 * RATE)]
    predictions = tiny_tagger(clip, LABELS, sampling_rate=RATE)
    assert predictions == tiny_tagger(repeated, LABELS, sampling_rate=RATE)


# --- models


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "nonsense with spaces"])
def test_unknown_checkpoint_is_refused_in_a_sentence(name):
    with pytest.raises(OSError, match="neither a folder with a checkpoint in it nor a model on the Hub") as caught:
        hf_clap.pipeline(name)
    assert "\n" not in str(caught.value)


def test_another_kind_of_checkpoint_is_refused(tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'bert' checkpoint, not a hf_clap one"):
        hf_clap.pipeline(tmp_path)
    (tmp_path / "audio.onnx").touch()
    with pytest.raises(ValueError, match="is exported to ONNX; tag with the backend onnx, or name what it was made"):
        hf_clap.pipeline(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"projection": "nope"}, "nope"),
        ({"projection_dim": -1}, "projection_dim=-1 is not possible; it must be more than 0"),
        ({"model_type": "nope"}, "nope"),
        ("{", "not a valid JSON file"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(content, reason, tmp_path):
    settings = json.loads(Path(hf_clap.TINY, "config.json").read_text())
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(settings | content))
    with pytest.raises(ValueError, match=rf"^The config\.json of .* cannot be used \(.*{reason}.*\); correct it\.$"):
        hf_clap.pipeline(tmp_path)


def test_a_checkpoint_without_a_tokenizer_is_said_in_a_sentence(tmp_path):
    names = ("tokenizer.json", "tokenizer_config.json")
    shutil.copytree(hf_clap.TINY, tmp_path / "mute", ignore=shutil.ignore_patterns(*names))
    with pytest.raises(OSError, match=r"^The processor of .* cannot be loaded \(.*\); save it there again\.$"):
        hf_clap.pipeline(tmp_path / "mute")


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (hf_clap.HfClapForAudioClassification, r'transformers\' pipeline\("audio-classification"\) takes it'),
        (hf_clap.HfClapAudioModelWithProjection, "load it by its own class, or choose the model that it is of"),
    ],
)
def test_a_model_that_knows_no_words_is_told_apart(tmp_path, model, advice):
    model.from_pretrained(hf_clap.TINY).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is a {model.__name__}, which is no whole CLAP; {advice}"):
        hf_clap.pipeline(tmp_path)


def test_damaged_checkpoints_are_refused(tmp_path, tiny_model, processor):
    processor.save_pretrained(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in state.items() if name != "logit_bias"},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(OSError, match="weights of a whole model, such as logit_bias"):
        hf_clap.pipeline(tmp_path)
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(OSError, match=r"has no vocabulary; add its tokenizer\.json"):
        hf_clap.pipeline(tmp_path)
    (tmp_path / "elsewhere.json").rename(tmp_path / "tokenizer.json")
    save_file({**state, "logit_scale": torch.ones(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"^1 weights of .*\.json says, such as logit_scale with \(2,\) for \(\)"):
        hf_clap.pipeline(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="are damaged"):
        hf_clap.pipeline(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "of_the_cpu", "is_said"),
    [
        ("bfloat16", (torch.float32,), True),
        ("bfloat16", (torch.float32, torch.bfloat16), False),
        ("float32", (torch.float32,), False),
        ("bfloat16", (), False),
    ],
)
def test_a_precision_that_the_cpu_lacks_is_said(monkeypatch, caplog, dtype, of_the_cpu, is_said):
    monkeypatch.setattr(linear, "ONEDNN_DTYPES", of_the_cpu)
    hf_clap.pipeline(device="cpu", dtype=dtype)
    said = ["This CPU has no bfloat16 arithmetic and takes many times as long; choose dtype float32."]
    assert [record.message for record in caplog.records] == (said if is_said else [])


@pytest.mark.parametrize("crop", ["start", "windows", "fusion"])
def test_another_default_device_changes_no_features(crop, processor):
    settings = processor.feature_extractor.to_dict() | {"crop": crop, "log_floor": 2e-6}  # seen by no cache yet
    if crop == "fusion":
        settings["min_length_s"] = None
    clips = [noise(30.0), noise(0.3)]
    with torch.device("meta"):  # which holds nothing, as a GPU does not hold what is on the CPU
        elsewhere = hf_clap.HfClapFeatureExtractor(**settings)(clips, sampling_rate=16000)
    features = hf_clap.HfClapFeatureExtractor(**settings)(clips, sampling_rate=16000)
    assert features.keys() == elsewhere.keys()
    for name, values in features.items():
        assert torch.equal(values, elsewhere[name])


def test_another_default_device_changes_no_scores(tiny_tagger):
    audio = [{"array": noise(seconds), "sampling_rate": 16000} for seconds in (1.0, 12.0)]
    settings = {"candidate_labels": ["dog", "rain"], "return_timestamps": True, "window_s": 3.0}
    scores = tiny_tagger(audio, **settings)  # labels too: the tokenizer's tensors are on the default device, rightly
    with torch.device("meta"):
        assert tiny_tagger(audio, **settings) == scores


def test_model_objects_and_dtypes(tiny_tagger):
    with pytest.raises(ValueError, match="needs its processor"):
        hf_clap.pipeline(tiny_tagger.model)
    with pytest.raises(ValueError, match="A model object has no revision to choose"):
        hf_clap.pipeline(tiny_tagger.model, tiny_tagger.processor, revision="v1")
    with pytest.raises(ValueError, match="dtype='int8' is not possible"):
        hf_clap.pipeline(dtype="int8")
    with pytest.raises(ValueError, match="device='gpu' is not possible on this machine"):
        hf_clap.pipeline(device="gpu")
    with pytest.raises(ValueError, match="device='meta:x' is not possible on this machine"):
        hf_clap.pipeline(device="meta:x")
    with pytest.raises(ValueError, match="batch_size=0 is not possible"):
        hf_clap.pipeline(batch_size=0)
    half = hf_clap.pipeline(device="cpu", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    expected = tiny_tagger(noise(), LABELS, sampling_rate=RATE)
    assert_same_scores(half(noise(), LABELS, sampling_rate=RATE), expected, 0.05)


def test_a_pipeline_has_one_model_and_one_batch_size(tiny_tagger):
    assert tiny_tagger.model is tiny_tagger.embedder.model
    assert tiny_tagger.processor is tiny_tagger.embedder.processor
    with pytest.raises(AttributeError):
        tiny_tagger.model = None


def test_a_folder_of_adapters_alone_is_one_sentence(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds adapters; load it by .* after merging them"):
        hf_clap.pipeline(str(tmp_path))
