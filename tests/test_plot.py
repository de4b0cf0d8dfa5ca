import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from hf_clap import plot
from hf_clap.plot import (
    COLUMNS,
    MAX_LABELS,
    _envelope,
    _score_grid,
    plot_classes,
    plot_confusion,
    plot_reliability,
    plot_timeline,
    plot_training,
)

SILENCE = [np.zeros(64000, np.float32)]


def test_scores_lie_where_and_as_they_are():
    predictions = [
        {"label": "dog", "score": 0.25, "timestamp": (0.0, 2.0)},
        {"label": "dog", "score": 0.5, "timestamp": (1.0, 3.0)},
        {"label": "cat", "score": 0.75, "timestamp": (3.0, 4.0)},
    ]
    labels, grid = _score_grid(predictions, 4.0)
    second = COLUMNS // 4
    assert labels == ["cat", "dog"]
    assert [sorted(set(row[i * second : (i + 1) * second])) for row in grid for i in range(4)] == [
        *([0.0], [0.0], [0.0], [0.75]),
        *([0.25], [0.5], [0.5], [0.0]),
    ]


def test_every_window_of_a_long_recording_is_drawn():
    spans = [(start, start + 2.0) for start in range(0, 10800, 2)]  # 3 h
    for loud in spans[100::700]:
        predictions = [{"label": "dog", "score": float(span == loud), "timestamp": span} for span in spans]
        assert _score_grid(predictions, 10800.0)[1].max() == 1.0


def test_envelope_holds_every_peak():
    waveform = np.zeros(48000, np.float32)
    waveform[12345], waveform[40000] = 0.5, -0.25
    low, high, seconds = _envelope(np.split(waveform, 3), 16000)
    assert seconds == 3.0
    assert len(low) == len(high) == 300
    assert (high.argmax(), high.max(), low.argmin(), low.min()) == (77, 0.5, 250, -0.25)


def test_picture_is_blue_where_the_label_is(tmp_path):
    predictions = [
        {"label": "dog", "score": 1.0, "timestamp": (0.0, 2.0)},
        {"label": "dog", "score": 0.0, "timestamp": (2.0, 4.0)},
    ]
    plot_timeline(tmp_path / "x.png", SILENCE, 16000, predictions)
    picture = imread(tmp_path / "x.png")[..., :3]
    blue = (picture[..., 2] - picture[..., 0] > 0.3).mean(axis=0)
    width = len(blue)
    assert blue[int(0.2 * width)] > 0.2
    assert blue[int(0.7 * width)] == 0


def test_many_labels_and_tiny_clips(tmp_path):
    predictions = [{"label": f"label {i}", "score": i / 50, "timestamp": (0.0, 0.03)} for i in range(50)]
    clip = [np.zeros(480, np.float32)]
    plot_timeline(tmp_path / "many.png", clip, 16000, predictions)
    plot_timeline(tmp_path / "few.png", clip, 16000, predictions[-MAX_LABELS:])
    assert np.array_equal(imread(tmp_path / "many.png"), imread(tmp_path / "few.png"))


def test_a_failed_plot_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        plot_timeline(tmp_path / "none" / "x.png", SILENCE, 16000, [{"label": "a", "score": 1.0, "timestamp": (0, 4)}])
    assert list(tmp_path.iterdir()) == []


def test_loss_falls_in_the_picture_as_in_the_log(tmp_path):
    logs = [{"step": step, "loss": 4.0 - step / 10} for step in range(1, 31)] + [{"step": 30, "train_loss": 9.0}]
    plot_training(tmp_path / "loss.png", logs)
    picture = imread(tmp_path / "loss.png")[..., :3]
    rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 0.3)  # of the blue curve
    assert np.corrcoef(rows, columns)[0, 1] > 0.99  # further right is further down
    metrics = [{"step": 30, "eval_loss": 3.0, "eval_audio_to_text_r@10": 0.5}]
    plot_training(tmp_path / "both.png", logs + metrics)
    assert len(imread(tmp_path / "both.png")) > 1.5 * len(picture)  # a second panel


def test_confusions_are_in_their_cells(tmp_path):
    """Dark cells lie on the falling diagonal where all is right, and on the rising one where all is wrong."""
    for name, counts in {"right": np.diag([9, 4]), "wrong": np.diag([9, 4])[:, ::-1]}.items():
        plot_confusion(tmp_path / f"{name}.png", "two classes", ["a", "b"], counts)
        picture = imread(tmp_path / f"{name}.png")[:, :, :3]
        picture = picture[:, : picture.shape[1] * 7 // 10]  # without the colour bar
        down, across = np.nonzero(np.abs(picture - np.array([8, 48, 107]) / 255).max(axis=2) < 0.02)
        assert len(down) > 1000
        assert np.corrcoef(down, across)[0, 1] * (1 if name == "right" else -1) > 0.5


def test_bars_are_as_long_as_the_values_say(tmp_path):
    plot_classes(tmp_path / "bars.png", "three classes", {"low": 0.2, "high": 0.8, "half": 0.5}, "f1")
    picture = imread(tmp_path / "bars.png")[:, :, :3]
    blue = (np.abs(picture - np.array([31, 119, 180]) / 255).max(axis=2) < 0.02).sum(axis=1)  # pixels of each row
    bars = blue[blue > 10]
    longest = bars.max()
    assert bars[0] == pytest.approx(longest, rel=0.02)  # the best is on top
    assert bars[-1] == pytest.approx(longest * 0.2 / 0.8, rel=0.05)
    assert np.median(bars) == pytest.approx(longest * 0.5 / 0.8, rel=0.05)


def test_reliability(tmp_path):
    nan = float("nan")
    curve = (0.1, np.array([0.2, nan]), np.array([0.3, nan]), np.array([4, 0]))
    for name, curves in (("one", {"a": curve}), ("two", {"a": curve, "b": curve})):
        plot_reliability(tmp_path / f"{name}.png", curves)
    one, two = (imread(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert two.shape[1] == 2 * one.shape[1]


def test_dollar_signs_are_no_formulas(tmp_path, monkeypatch):
    """Nor are they where the formula would be wrong."""
    names = ["$x$", r"$\frac$"]

    def draw(folder):
        folder.mkdir()
        plot_classes(folder / "classes.png", names[0], dict.fromkeys(names, 0.5), "f1")
        plot_confusion(folder / "confusion.png", names[1], names, np.eye(2, dtype=int))
        prediction = {"label": names[1], "score": 1.0, "timestamp": (0.0, 4.0)}
        plot_timeline(folder / "timeline.png", SILENCE, 16000, [prediction])
        plot_training(folder / "training.png", [{"step": 1, "loss": 1.0, "r@1 of $x$": 0.5}])
        nan = float("nan")
        curve = (0.1, np.array([0.2, nan]), np.array([0.3, nan]), np.array([4, 0]))
        plot_reliability(folder / "reliability.png", {names[1]: curve})
        return [imread(file) for file in sorted(folder.iterdir())]

    pictures = draw(tmp_path / "ours")
    monkeypatch.setattr(plot, "_as_it_is", str)
    with matplotlib.rc_context({"text.parse_math": False}):
        expected = draw(tmp_path / "without_formulas")
    assert len(pictures) == 5
    assert all(np.array_equal(*pair) for pair in zip(pictures, expected, strict=True))
