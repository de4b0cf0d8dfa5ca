"""
Log-mels: hf_clap's feature extractor against transformers' `ClapFeatureExtractor`, ten seconds at 48 kHz.

    python tests/benchmarks/features.py [--rounds 7] [--threads 2] [--json RESULT.json]

The clips are noise of full length; where there is energy (above -60 dB) the two must agree to 0.002 dB. "The Fourier
transforms alone" are PyTorch's for as many frames, and what the log-mels' ratio could be at most. transformers
computes in float64, as hf_clap does with `double_precision`: see `features_float64.py`.
"""

from typing import Any

import numpy as np
import torch
import transformers
from side_by_side import Comparison, Run, main

from hf_clap import HfClapFeatureExtractor

RATE = 48000


def clips(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).normal(0, 0.1, 10 * RATE).astype(np.float32) for seed in range(count)]


def peer(count: int) -> Run:
    extractor, waveforms = transformers.ClapFeatureExtractor(truncation="rand_trunc"), clips(count)
    return lambda: extractor(waveforms, sampling_rate=RATE, return_tensors="pt")


def ours(count: int, double_precision: bool = False) -> Run:
    fields: dict[str, Any] = {"sampling_rate": RATE, "hop_length": 480, "f_min": 0, "max_length_s": 10.0}
    extractor, waveforms = HfClapFeatureExtractor(**fields, double_precision=double_precision), clips(count)
    return lambda: extractor(waveforms, sampling_rate=RATE)


def transforms(count: int) -> Run:
    """Nothing but the Fourier transforms, clip by clip of one that stays in the cache, as their spectra do."""
    frames = torch.randn(1001, 1024)

    def run() -> None:
        for _ in range(count):
            torch.fft.rfft(frames)

    return run


def agree(mine: Any, theirs: Any) -> float:
    mine, theirs = mine["input_features"], theirs["input_features"]
    assert mine.shape == theirs.shape
    difference = (mine - theirs).abs()[theirs > -60].max().item()
    assert difference < 2e-3, f"the log-mels disagree by {difference} dB"
    return difference


def compare(name: str, count: int) -> Comparison:
    peer_name, no_products = f"transformers, batch {count}", lambda run: 0  # products are the least of it
    title = f"features, 10 s at 48 kHz, batch {count}{', float64' if '64' in name else ''}"
    return Comparison(title, f"{name}, batch {count}", peer_name, agree, no_products)


if __name__ == "__main__":
    contenders, comparisons = {}, []
    for count in (1, 32):
        contenders |= {
            f"transformers, batch {count}": lambda count=count: peer(count),
            f"hf_clap, batch {count}": lambda count=count: ours(count),
            f"its Fourier transforms alone, batch {count}": lambda count=count: transforms(count),
        }
        comparisons.append(compare("hf_clap", count))
        comparisons.append(
            Comparison(
                f"the Fourier transforms alone, batch {count}",
                f"its Fourier transforms alone, batch {count}",
                f"transformers, batch {count}",
                flop=lambda run: 0,
            )
        )
    main(__doc__, contenders, comparisons)
