"""Pictures of results. Needs matplotlib (in the extra `eval`)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .whole_file import whole_file

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('Plots need matplotlib: run `pip install "hf_clap[eval]"`.') from error

MAX_LABELS = 12  # that are drawn, those with the highest scores; more cannot be read
COLUMNS = 500  # of the scores, along time: a pixel each at least, also beside long labels
ENVELOPE_S = 0.01  # of a waveform only the least and greatest sample of such a stretch are kept


def plot_timeline(
    output: Path, blocks: Iterable[np.ndarray], sampling_rate: int, predictions: list[dict[str, Any]]
) -> None:
    """
    Draw scores of labels over time under the waveform, as a PNG.

    Args:
        output: the file to write; it appears when it is complete.
        blocks: the waveform in consecutive pieces `(samples,)`, as `iter_audio` gives them.
        sampling_rate: its rate, in Hz.
        predictions: as `draw_timeline` takes them.
    """
    _save(draw_timeline(blocks, sampling_rate, predictions), output)


def draw_timeline(blocks: Iterable[np.ndarray], sampling_rate: int, predictions: list[dict[str, Any]]) -> Figure:
    """
    Scores of labels over time under the waveform.

    Args:
        blocks: the waveform in consecutive pieces `(samples,)`, as `iter_audio` gives them.
        sampling_rate: its rate, in Hz.
        predictions: what the pipeline returns with `return_timestamps=True`. Where windows overlap, the highest score
            is drawn.

    Returns:
        matplotlib.figure.Figure: the picture.
    """
    low, high, seconds = _envelope(blocks, sampling_rate)
    labels, scores = _score_grid(predictions, seconds)

    figure = Figure(figsize=(11, 2.2 + 0.35 * len(labels)), layout="constrained")
    wave_axes, label_axes = figure.subplots(2, 1, sharex=True, height_ratios=[2, max(2, len(labels))])
    wave_axes.fill_between(np.linspace(0, seconds, len(low)), low, high, color="0.35", linewidth=0)
    wave_axes.set(ylabel="waveform", xlim=(0, seconds))
    image = label_axes.imshow(
        scores,
        aspect="auto",
        cmap="Blues",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(0, seconds, len(labels) - 0.5, -0.5),
    )
    label_axes.set(yticks=range(len(labels)), yticklabels=map(_as_it_is, labels), xlabel="time (s)")
    label_axes.hlines(np.arange(len(labels) - 1) + 0.5, 0, seconds, color="white", linewidth=2)
    figure.colorbar(image, ax=label_axes, label="score", aspect=10)
    return figure


def plot_training(output: Path, logs: Sequence[Mapping[str, float]]) -> None:
    """
    Draw the loss over steps, and recalls over steps below it where there are any, as a PNG.

    Args:
        output: the file to write; it appears when it is complete.
        logs: as `trainer.state.log_history`: mappings with `step`, and with `loss`, `eval_loss` or metrics whose names
            hold `r@` or `accuracy`.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in logs:
        for name, value in entry.items():
            if name in ("loss", "eval_loss") or "r@" in name or "accuracy" in name:
                curves.setdefault(name, []).append((entry["step"], value))
    metrics = [name for name in curves if not name.endswith("loss")]
    figure = Figure(figsize=(9, 6 if metrics else 3.5), layout="constrained")
    axes = figure.subplots(2 if metrics else 1, 1, sharex=True, squeeze=False)[:, 0]
    for name, curve in curves.items():
        target = axes[-1] if name in metrics else axes[0]
        style = {"linewidth": 1} if name == "loss" else {"linewidth": 1.5, "marker": "o", "markersize": 4}
        label = _as_it_is(name.replace("eval_", "evaluation ").replace("_", " "))
        target.plot(*zip(*curve, strict=True), label=label, **style)
    axes[0].set(ylabel="loss")
    axes[-1].set(xlabel="step")
    if metrics:
        axes[-1].set(ylim=(0, 1))
        axes[-1].legend(fontsize="small", ncols=2)
    if "eval_loss" in curves:
        axes[0].legend(fontsize="small")
    for target in axes:
        target.grid(alpha=0.3)
    _save(figure, output)


def plot_confusion(output: Path, title: str, classes: Sequence[str], counts: np.ndarray) -> None:
    """
    Draw which classes were taken for which, as a PNG.

    Args:
        output: the file to write; it appears when it is complete.
        title: of the picture.
        classes: names.
        counts: `(classes, classes)`: how many clips of the row's class were predicted to be of the column's.
    """
    inches = min(4 + 0.28 * len(classes), 40)
    figure = Figure(figsize=(inches + 1, inches), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks, names = range(len(classes)), list(map(_as_it_is, classes))
    axes.set(title=_as_it_is(title), xlabel="predicted", ylabel="true class", yticks=ticks, yticklabels=names)
    axes.set_xticks(ticks, names, rotation=90)
    if len(classes) <= 40:  # more numbers cannot be read
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axes, label="share of the clips of a class", shrink=0.8)
    _save(figure, output)


def plot_classes(output: Path, title: str, values: Mapping[str, float], metric: str) -> None:
    """
    Draw a bar for each class, the best on top, as a PNG.

    Args:
        output: the file to write; it appears when it is complete.
        title: of the picture.
        values: of the classes, between 0 and 1.
        metric: what they are.
    """
    ranked = sorted(values.items(), key=lambda item: item[1])
    figure = Figure(figsize=(7, min(1.2 + 0.24 * len(ranked), 80)), layout="constrained")
    axes = figure.subplots()
    axes.barh([_as_it_is(name) for name, _ in ranked], [value for _, value in ranked], color="tab:blue")
    axes.set(title=_as_it_is(title), xlim=(0, 1), xlabel=metric, ylim=(-0.6, len(ranked) - 0.4))
    axes.grid(axis="x", alpha=0.3)
    _save(figure, output)


def plot_reliability(output: Path, curves: Mapping[str, tuple[float, np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """
    Draw reliability diagrams side by side, as a PNG: scores on the diagonal are as often right as they say.

    Args:
        output: the file to write; it appears when it is complete.
        curves: by title, each as `hf_clap.metrics.reliability` gives it.
    """
    figure = Figure(figsize=(4.2 * len(curves), 4.4), layout="constrained")
    all_axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (title, (error, score, share, count)) in zip(all_axes, curves.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="dashed")
        width = 1 / len(count)
        axes.bar(np.arange(len(count)) * width, share, width, align="edge", color="tab:blue", alpha=0.35)
        axes.plot(score, share, color="tab:blue", marker="o", markersize=4)
        axes.set(title=f"{_as_it_is(title)}\nexpected calibration error {error:.3f}", xlim=(0, 1), ylim=(0, 1))
        axes.set(xlabel="score", ylabel="share that is right", aspect="equal")
    _save(figure, output)


def _save(figure: Figure, output: Path) -> None:
    with whole_file(output) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")


def _as_it_is(text: str) -> str:
    """Matplotlib takes what stands between two dollar signs for a formula."""
    return text.replace("$", r"\$")


def _envelope(blocks: Iterable[np.ndarray], sampling_rate: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Least and greatest sample of every stretch of 10 ms, and the length in seconds."""
    lows, highs, samples = [], [], 0
    for block in blocks:
        count = max(1, round(len(block) / (ENVELOPE_S * sampling_rate)))
        starts = np.arange(count) * len(block) // count
        lows.append(np.minimum.reduceat(block, starts))
        highs.append(np.maximum.reduceat(block, starts))
        samples += len(block)
    return np.concatenate(lows), np.concatenate(highs), samples / sampling_rate


def _score_grid(predictions: list[dict[str, Any]], seconds: float) -> tuple[list[str], np.ndarray]:
    """The labels that score highest anywhere, best first, and their scores `(labels, COLUMNS)` over time."""
    best: dict[str, float] = {}
    for prediction in predictions:
        best[prediction["label"]] = max(best.get(prediction["label"], 0.0), prediction["score"])
    labels = sorted(best, key=lambda label: -best[label])[:MAX_LABELS]
    grid = np.zeros((len(labels), COLUMNS))
    for prediction in predictions:
        if prediction["label"] in labels:
            start, end = (second / seconds * COLUMNS for second in prediction["timestamp"])
            touched = slice(math.floor(start), math.ceil(end))  # a column at least, however long the recording is
            row = grid[labels.index(prediction["label"])]
            row[touched] = np.maximum(row[touched], prediction["score"])
    return labels, grid
