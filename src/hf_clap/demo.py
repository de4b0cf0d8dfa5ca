"""A page for a browser: tag a sound, and search a library. Nothing of the server but what is shown can be read."""

import html
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from .audio import iter_audio, stretch_of
from .pipeline import HfClapPipeline
from .waveform import AudioError

try:
    import gradio as gr

    from .plot import draw_timeline
except ImportError as error:
    raise ImportError('The page needs Gradio: run `pip install "hf_clap[demo]"`.') from error

MAX_UPLOAD = "20mb"
MAX_LENGTH_S = 600
MAX_LABELS = 100
MAX_LABEL_LENGTH = 200
MAX_MOMENTS = 50
KEPT_S = 3600  # that uploads stay on the server
LABELS = "bird singing, church bell, ticking clock, rain, siren, helicopter, dial tone, dog barking, speech, music"
# in the wheel, or in a clone of the repository
EXAMPLES = [Path(__file__).with_name("example_sounds"), Path(__file__).parents[2] / "examples" / "audio"]


def build_demo(tagger: HfClapPipeline, index: Any = None, sounds: Path | None = None) -> gr.Blocks:
    """
    Build the page.

    Args:
        tagger: the model.
        index: the Parquet file of an index that was made with it, for a tab to search in.
        sounds: the folder of its recordings, so that moments can be played; where the index says that it is when
            absent.

    Returns:
        gr.Blocks: for `launch_demo`, or a Space's own `launch`.

    Raises:
        ValueError, OSError: as `SoundIndex`.
    """
    with gr.Blocks(title="hf_clap", analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as page:
        gr.Markdown(f"# hf_clap\nWhat does it sound like? Say it in your own words ({tagger.embedder.name}).")
        with gr.Tab("Tag"):
            _tag_tab(tagger)
        if index is not None:
            with gr.Tab("Search"):
                _search_tab(tagger, index, sounds)
    return page


def launch_demo(page: gr.Blocks, host: str = "127.0.0.1", port: int = 7860, share: bool = False) -> None:
    """
    Serve the page until it is interrupted, with a limit on uploads.

    Raises:
        OSError: if the port is in use.
    """
    try:
        page.launch(
            server_name=host, server_port=port, share=share, max_file_size=MAX_UPLOAD, ssr_mode=False, footer_links=[]
        )
    except OSError as error:  # gradio's names settings of its own
        reason = str(error).split(". ")[0]
        raise OSError(f"The page cannot be served at {host}:{port} ({reason}); choose another port.") from error


def _tag_tab(tagger: HfClapPipeline) -> None:
    with gr.Row():
        with gr.Column():
            audio = gr.Audio(type="filepath", label=f"Sound, at most {MAX_LENGTH_S // 60} minutes")
            labels = gr.Textbox(LABELS, label="Labels, separated by commas", lines=2)
            multi_label = gr.Checkbox(label="Score each label on its own")
            button = gr.Button("Tag", variant="primary")
            if examples := [str(file) for folder in EXAMPLES for file in sorted(folder.glob("*.flac"))]:
                gr.Examples(examples, audio, label="Examples")
        with gr.Column():
            scores = gr.Label(label="Scores")
            timeline = gr.Plot(show_label=False)  # the label would cover the waveform

    def tag(path: str | None, labels: str, multi_label: bool) -> tuple[dict[str, float], Any]:
        if path is None:
            raise gr.Error(
                "There is no sound yet; upload one, record one or choose an example.", print_exception=False
            )
        try:
            waveform = _read(path, tagger.sampling_rate)
            _check_labels(labels)
            settings = {"multi_label": multi_label, "sampling_rate": tagger.sampling_rate}
            predictions = tagger(waveform, labels, **settings)
            over_time = tagger(waveform, labels, return_timestamps=True, **settings)
        except (ValueError, OSError) as error:  # the latter of an upload that is not kept any more
            raise _shown(error) from error
        figure = draw_timeline([waveform], tagger.sampling_rate, over_time)
        return {prediction["label"]: prediction["score"] for prediction in predictions}, figure

    gr.on([button.click, labels.submit], tag, [audio, labels, multi_label], [scores, timeline])


def _check_labels(labels: str) -> None:
    """That a picture of them is drawn in no time."""
    names = [name.strip() for name in labels.split(",")]
    if len(names) > MAX_LABELS:
        raise ValueError(f"There are more than {MAX_LABELS} labels; leave some out.")
    if max(map(len, names)) > MAX_LABEL_LENGTH:
        raise ValueError(f"A label is longer than {MAX_LABEL_LENGTH} characters; shorten it.")


def _search_tab(tagger: HfClapPipeline, index: Any, sounds: Path | None) -> None:
    from .search import SoundIndex  # needs an extra of its own

    library = SoundIndex(index, tagger)
    folder = Path(library.info.source) if sounds is None else sounds
    folder = folder.parent if folder.is_file() else folder  # an index of one recording
    with gr.Row():
        with gr.Column():
            query = gr.Textbox(label="Search for", placeholder="a dog barking in the distance")
            audio = gr.Audio(type="filepath", label="… or for what sounds like this")
            count = gr.Slider(1, MAX_MOMENTS, 10, step=1, label="Moments")
            button = gr.Button("Search", variant="primary")
        with gr.Column():
            found = gr.Dataframe(headers=["score", "start (s)", "end (s)", "recording"], label="Choose one to hear it")
            player = gr.Audio(label="Moment", interactive=False)
    moments = gr.State([])  # stays on the server, so that nobody can ask for another file

    def search(query: str, path: str | None, count: float) -> tuple[list[list[Any]], list[dict[str, Any]]]:
        try:
            if path is not None and query.strip():
                raise ValueError("There are words and a sound; search for one of both.")
            sound = path and {"array": _read(path, tagger.sampling_rate), "sampling_rate": tagger.sampling_rate}
            results = library.search(None if sound else query, min(int(count), MAX_MOMENTS), audio=sound)
        except (ValueError, OSError) as error:
            raise _shown(error) from error
        rows = [
            [round(moment["score"], 3), *(round(second, 2) for second in moment["timestamp"]), moment["path"]]
            for moment in results
        ]
        return rows, results

    def play(moments: list[dict[str, Any]], chosen: gr.SelectData) -> tuple[int, np.ndarray]:
        moment = moments[chosen.index[0]]
        file = _inside(folder, moment["path"])
        if file is None:
            raise _shown(f"{moment['path']} is not at hand, so it cannot be played.")
        start, end = (round(second * tagger.sampling_rate) for second in moment["timestamp"])
        try:
            return tagger.sampling_rate, stretch_of(iter_audio(file, tagger.sampling_rate), start, end - start)
        except (ValueError, OSError) as error:
            raise _shown(error) from error

    gr.on([button.click, query.submit], search, [query, audio, count], [found, moments])
    found.select(play, moments, player)


def _shown(error: Exception | str) -> gr.Error:
    """An error for the page, which takes it for HTML: it may hold the name of a file from elsewhere."""
    return gr.Error(html.escape(str(error), quote=False), print_exception=False)


def _inside(folder: Path, path: str) -> Path | None:
    """A recording in the folder, if it is there; an index that somebody else made may name anything."""
    named = PurePath(path)  # on Windows a drive alone leads elsewhere too
    if named.anchor or ".." in named.parts:
        return None
    file = folder / named
    return file if file.is_file() else None


def _read(path: str, sampling_rate: int) -> np.ndarray:
    """`(samples,)` float32, but not of a sound that is too long."""
    blocks, seconds = [], 0.0
    for block in iter_audio(path, sampling_rate):
        blocks.append(block)
        seconds += len(block) / sampling_rate
        if seconds > MAX_LENGTH_S:
            raise AudioError(f"The sound is longer than {MAX_LENGTH_S // 60} minutes; cut it.")
    return np.concatenate(blocks)
