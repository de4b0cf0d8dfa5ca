"""Pictures of results. Needs matplotlib (extra `eval`)."""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError("Plots need matplotlib: run `pip install 'hf-clap[eval]'`.") from error

MAX_ROWS = 12  # labels that are drawn, those with the highest scores; more cannot be read
WAVEFORM_COLUMNS = 2000


def plot_timeline(output: Path, waveform: np.ndarray, sampling_rate: int, predictions: list[dict[str, Any]]) -> None:
    """
    Draw scores of labels over time under the waveform, as a PNG.

    Args:
        output: the file to write; it appears when it is complete.
        waveform: `(samples,)`.
        sampling_rate: its rate, in Hz.
        predictions: what the pipeline returns with `return_timestamps=True`.
    """
    best: dict[str, float] = {}
    for prediction in predictions:
        best[prediction["label"]] = max(best.get(prediction["label"], 0.0), prediction["score"])
    labels = sorted(sorted(best, key=best.__getitem__)[-MAX_ROWS:], key=best.__getitem__)
    seconds = len(waveform) / sampling_rate

    figure = Figure(figsize=(11, 2.2 + 0.35 * len(labels)), layout="constrained")
    wave_axes, label_axes = figure.subplots(2, 1, sharex=True, height_ratios=[2, max(2, len(labels))])
    low, high = _envelope(waveform)
    wave_axes.fill_between(np.linspace(0, seconds, len(low)), low, high, color="0.35", linewidth=0)
    wave_axes.set(ylabel="waveform", xlim=(0, seconds))
    for prediction in predictions:
        if prediction["label"] in labels:
            start, end = prediction["timestamp"]
            row = labels.index(prediction["label"])
            label_axes.barh(row, end - start, left=start, height=0.9, color="C0", alpha=min(1.0, prediction["score"]))
    label_axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="time (s)", ylim=(-0.5, len(labels) - 0.5))
    figure.suptitle("score of each label over time (0 white, 1 blue)", fontsize="medium")

    # a killed run leaves no half picture behind
    with tempfile.NamedTemporaryFile(
        dir=output.parent, prefix=f".{output.name}-", suffix=".png", delete=False
    ) as file:
        temporary = Path(file.name)
    try:
        figure.savefig(temporary, dpi=120)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)


def _envelope(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest sample of each picture column."""
    columns = np.array_split(waveform, min(len(waveform), WAVEFORM_COLUMNS))
    return np.array([column.min() for column in columns]), np.array([column.max() for column in columns])
