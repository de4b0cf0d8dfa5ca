"""
Log-mels in float64, as transformers computes them: hf_clap with `double_precision` against `ClapFeatureExtractor`.

    python tests/benchmarks/features_float64.py [--rounds 7] [--threads 2] [--json RESULT.json]

In a process of its own, for what one contender frees decides what the C library keeps for all: after 32 clips in
float64 it keeps enough for transformers too, which has 28,000 page faults for as many clips then, and not 185,000.
"""

from features import compare, ours, peer
from side_by_side import main

if __name__ == "__main__":
    contenders, comparisons = {}, []
    for count in (1, 32):
        contenders |= {
            f"transformers, batch {count}": lambda count=count: peer(count),
            f"hf_clap in float64, batch {count}": lambda count=count: ours(count, double_precision=True),
        }
        comparisons.append(compare("hf_clap in float64", count))
    main(__doc__, contenders, comparisons)
