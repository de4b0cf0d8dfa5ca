"""A task's clips -> embeddings, kept on disk as they come, with the clips that cannot be read by name."""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from tqdm import tqdm

from .array_cache import ArrayCache
from .audio import audio_sha256
from .embedding import ClipEmbedding, Embedder, check_finite
from .task_data import Clip, TaskData
from .tasks import Task

CLIPS_TOGETHER = 8  # that are embedded as one, whatever a run before has left to do
WRITE_EVERY_S = 1.0


@dataclass(frozen=True)
class EmbeddedTask:
    """
    A task's clips and what the model makes of them.

    Args:
        task: the row.
        clips: that could be read.
        contents: SHA-256 of each of them.
        pooled: `(clips, hidden_size)`, what the audio tower gives.
        embeds: `(clips, dim)`, L2-normalised.
        failed: clips that could not be read, each with its `file` and `error`.
        provenance: where all the clips are from.
    """

    task: Task
    clips: Sequence[Clip]
    contents: Sequence[str]
    pooled: np.ndarray
    embeds: np.ndarray
    failed: Sequence[Mapping[str, str]]
    provenance: Mapping[str, Any]


def embed_task(task: Task, data: TaskData, embedder: Embedder, cache: ArrayCache | None = None) -> EmbeddedTask:
    """
    Embed the clips of a task, those that the cache does not have. Shows its progress on stderr.

    Args:
        task: of the benchmark, or one of your own.
        data: its clips.
        embedder: the model.
        cache: of what was computed before, with this model or others. What is done is kept after a second, whatever
            happens then.

    Returns:
        EmbeddedTask: what every setting starts from.

    Raises:
        ValueError: if no clip can be read, or the model gives NaN or infinite embeddings.
        OSError: if the cache cannot be used.
    """
    with ThreadPoolExecutor(embedder.workers) as pool:
        contents = list(pool.map(_content, data.clips))
    clips: dict[str, Clip] = {}
    for content, clip in zip(contents, data.clips, strict=True):
        clips.setdefault(content, clip)
    results = _embed(clips, embedder, cache, task.name)
    good, failed = [], []
    for number, (content, clip) in enumerate(zip(contents, data.clips, strict=True)):
        if isinstance(result := results[content], Exception):
            failed.append({"file": clip.name, "error": str(result)})
        else:
            good.append((number, result))
    if not good:
        raise ValueError(f"No clip of {task.title} can be read; the first says: {failed[0]['error']}")
    described = [
        (clip.name, content, clip.labels, clip.captions, clip.fold)
        for clip, content in zip(data.clips, contents, strict=True)
    ]
    return EmbeddedTask(
        task=task,
        clips=[data.clips[number] for number, _ in good],
        contents=[contents[number] for number, _ in good],
        pooled=np.stack([result.pooled for _, result in good]),
        embeds=np.stack([result.embed for _, result in good]),
        failed=failed,
        provenance={"source": data.source, "revision": data.revision, "sha256": sha256_of(described)},
    )


def versions() -> dict[str, str]:
    """Of what has a part in every number."""
    packages = ("torch", "transformers", "numpy", "scikit-learn", "soundfile", "soxr")
    return {
        "python": platform.python_version(),
        "hf_clap": sys.modules[__package__].__version__,  # of the code that runs, whatever pip last installed
        **{package: version(package) for package in packages},
    }


def sha256_of(value: Any) -> str:
    """Of anything that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _embed(
    clips: Mapping[str, Clip], embedder: Embedder, cache: ArrayCache | None, name: str
) -> dict[str, ClipEmbedding | Exception]:
    """
    By content. Clips are embedded by eights, in the order of the task, and each eight is kept as a whole: an embedding
    then has the same bits whether or not a run was broken off before.
    """
    fingerprint = f"{embedder.fingerprint} {sha256_of(versions())}"
    key_of = {content: f"{fingerprint} {content}" for content in clips}
    kept = cache.get(key_of.values()) if cache else {}
    results: dict[str, ClipEmbedding | Exception] = {
        content: ClipEmbedding(**kept[key]) for content, key in key_of.items() if key in kept
    }
    order = list(clips)
    eights = (order[start : start + CLIPS_TOGETHER] for start in range(0, len(order), CLIPS_TOGETHER))
    groups = [missing for eight in eights if (missing := [content for content in eight if content not in results])]
    unkept: dict[str, Mapping[str, np.ndarray]] = {}

    def keep() -> None:
        if cache and unkept:
            cache.put(unkept)
            unkept.clear()

    last = time.monotonic()
    progress = tqdm(total=len(clips), initial=len(results), desc=f"{name} embedding", unit="clip", disable=None)
    with progress:
        for group, embeddings in zip(
            groups, embedder.clips([clips[content].audio for content in group] for group in groups), strict=True
        ):
            for content, embedding in zip(group, embeddings, strict=True):
                results[content] = embedding
                if isinstance(embedding, ClipEmbedding):
                    unkept[key_of[content]] = _finite(embedding, clips[content])._asdict()
            if time.monotonic() - last > WRITE_EVERY_S:
                keep()
                last = time.monotonic()
            progress.update(len(group))
    keep()
    return results


def _finite(embedding: ClipEmbedding, clip: Clip) -> ClipEmbedding:
    check_finite(np.hstack(embedding)[None], [clip.name])
    return embedding


def _content(clip: Clip) -> str:
    """SHA-256 of a clip's file or samples. One that cannot be opened goes to the embedder all the same, to say why."""
    try:
        return audio_sha256(clip.audio())
    except (OSError, ValueError):  # such as for a null byte in its path
        return f"unreadable {clip.name}"
