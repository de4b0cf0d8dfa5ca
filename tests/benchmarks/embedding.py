"""
Do decoding and features cost anything? Clips/s from files to embeddings, against the audio tower alone, in turns.

    python tests/benchmarks/embedding.py [--clips 2000] [--seconds 5] [--rate 44100] [--rounds 3] [--threads 2]

The clips are WAV files of 16 bits and differ from each other; those at another rate than the model's are resampled.
"tower" is `model.encode_audio` on features that are ready, in batches of the size that is fastest on this machine.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

import hf_clap
from hf_clap.embedding import ClipEmbedding
from hf_clap.task_embedding import CLIPS_TOGETHER

TOWER_CLIPS = 256  # that the tower alone is timed on; their features are in memory
BATCH_SIZES = (1, 4, 8, 16, 32)
GROUPS_IN_A_TURN = 50  # short turns, so that other load on the machine falls on both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=int, default=44100, help="of the files, in Hz")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default=hf_clap.TINY)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tagger = hf_clap.pipeline(options.model, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        files = write_clips(Path(folder), options.clips, options.seconds, options.rate)
        groups = [files[start : start + CLIPS_TOGETHER] for start in range(0, len(files), CLIPS_TOGETHER)]
        waveforms = [hf_clap.load_audio(file, tagger.sampling_rate) for file in files[:TOWER_CLIPS]]
        features = tagger.processor.feature_extractor(waveforms, sampling_rate=tagger.sampling_rate)
        batch_size = fastest_batch_size(tagger.model, features)
        speeds: dict[str, list[float]] = {"files": [], "tower": []}
        before = tower_speed(tagger.model, features, batch_size)
        turns = [groups[first : first + GROUPS_IN_A_TURN] for first in range(0, len(groups), GROUPS_IN_A_TURN)]
        for turn in tqdm(turns * options.rounds, desc="turns", disable=None):
            start = time.perf_counter()
            embeddings = [embedding for group in tagger.embedder.clips(turn) for embedding in group]
            speeds["files"].append(len(embeddings) / (time.perf_counter() - start))
            after = tower_speed(tagger.model, features, batch_size)
            speeds["tower"].append((before + after) / 2)
            before = after
            assert all(isinstance(embedding, ClipEmbedding) for embedding in embeddings)
    ratios = [files / tower for files, tower in zip(speeds["files"], speeds["tower"], strict=True)]
    print(f"{options.clips} clips of {options.seconds} s at {options.rate} Hz, {options.threads} threads")
    for name, values in (("files to embeddings", speeds["files"]), (f"tower, batch {batch_size}", speeds["tower"])):
        print(f"{name:20} {statistics.median(values):8.1f} clips/s  (least {min(values):.1f}, most {max(values):.1f})")
    print(f"{'ratio':20} {statistics.median(ratios):8.2f}          (least {min(ratios):.2f}, most {max(ratios):.2f})")


def write_clips(folder: Path, clips: int, seconds: float, rate: int) -> list[str]:
    files = []
    for number in range(clips):
        noise = np.random.default_rng(number).normal(0, 0.1, round(seconds * rate))
        files.append(str(folder / f"{number}.wav"))
        soundfile.write(files[-1], noise, rate, subtype="PCM_16")
    return files


def fastest_batch_size(model: hf_clap.HfClapModel, features: dict[str, torch.Tensor]) -> int:
    """By the median of turns, for one measurement may catch other load on the machine."""
    turns = [[tower_speed(model, features, size) for size in BATCH_SIZES] for _ in range(5)]
    medians = [statistics.median(speeds) for speeds in zip(*turns, strict=True)]
    return BATCH_SIZES[medians.index(max(medians))]


@torch.inference_mode()
def tower_speed(model: hf_clap.HfClapModel, features: dict[str, torch.Tensor], batch_size: int) -> float:
    """Clips/s on features that are ready."""
    clips = len(features["input_features"])
    start = time.perf_counter()
    for first in range(0, clips, batch_size):
        model.encode_audio(**{name: values[first : first + batch_size] for name, values in features.items()})
    return clips / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
