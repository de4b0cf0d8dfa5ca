import numpy as np
import pytest
from matplotlib.image import imread

from hf_clap.plot import MAX_ROWS, plot_timeline


def columns_with_blue(picture):
    """Share of blue pixels in each column of the label half."""
    half = picture[picture.shape[0] // 2 :, :, :3]
    return ((half[..., 2] - half[..., 0]) > 0.3).mean(axis=0)


def test_bars_lie_where_the_label_is(tmp_path):
    predictions = [
        {"label": "dog", "score": 1.0, "timestamp": (0.0, 2.0)},
        {"label": "dog", "score": 0.0, "timestamp": (2.0, 4.0)},
    ]
    plot_timeline(tmp_path / "x.png", np.zeros(64000, np.float32), 16000, predictions)
    blue = np.flatnonzero(columns_with_blue(imread(tmp_path / "x.png")) > 0.1)
    width = imread(tmp_path / "x.png").shape[1]
    assert blue.min() < 0.15 * width
    assert 0.4 * width < blue.max() < 0.65 * width


def test_many_labels_and_tiny_clips(tmp_path):
    predictions = [{"label": f"label {i}", "score": i / 50, "timestamp": (0.0, 0.03)} for i in range(50)]
    plot_timeline(tmp_path / "many.png", np.zeros(480, np.float32), 16000, predictions)
    plot_timeline(tmp_path / "few.png", np.zeros(480, np.float32), 16000, predictions[-MAX_ROWS:])
    assert np.array_equal(imread(tmp_path / "many.png"), imread(tmp_path / "few.png"))


def test_a_failed_plot_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        plot_timeline(tmp_path / "x.png", np.zeros(480, np.float32), 16000, [{"label": "a", "score": 1.0}])
    assert list(tmp_path.iterdir()) == []
