"""
Files to embeddings: a hundred WAV files (44.1 kHz, 5 s), hf_clap against transformers' `ClapModel`, the same HTS-AT.

    python tests/benchmarks/corpus.py [--rounds 3] [--threads 2] [--json RESULT.json]

transformers gets batches of 16 arrays, which hf_clap's reader made in the timed part; hf_clap reads ahead as
`hf-clap embed` does. Normalised embeddings must agree to 1e-4, in bfloat16 with a cosine of at least 0.999.
"""

import torch
import transformers
from clap_pair import pair_folder
from side_by_side import DTYPES, Comparison, Run, agree_embeddings, count_flop, main
from tagging import CLIPS, files
from torch.nn import functional as F

import hf_clap
from hf_clap.embedding import Embedder

BATCH_SIZE = 16


def groups(paths: list[str], size: int) -> list[list[str]]:
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def peer() -> Run:
    folder, paths = pair_folder() / "transformers", files()
    model = transformers.ClapModel.from_pretrained(folder).eval()
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)

    def run() -> torch.Tensor:
        embeds = []
        for group in groups(paths, BATCH_SIZE):
            waveforms = [hf_clap.load_audio(path, 48000) for path in group]
            features = extractor(waveforms, sampling_rate=48000, return_tensors="pt")
            embeds.append(model.get_audio_features(**features).pooler_output)
        return F.normalize(torch.cat(embeds), dim=-1)

    return run


def ours(dtype: str) -> Run:
    folder, paths = pair_folder() / dtype, files()
    model = hf_clap.HfClapModel.from_pretrained(folder)
    embedder = Embedder(model, hf_clap.HfClapProcessor.from_pretrained(folder))

    def run() -> torch.Tensor:
        embedded = embedder.clips(groups(paths, embedder.batch_size))
        return torch.stack([torch.from_numpy(clip.embed) for group in embedded for clip in group]).to(model.dtype)

    return run


def flop(run: Run) -> int:
    """Of all clips, one by one in this thread: in the workers they are not counted."""
    model = hf_clap.HfClapModel.from_pretrained(pair_folder() / "float32")
    return CLIPS * count_flop(lambda: model.encode_audio(torch.zeros(1, 1, 1001, 64)))


if __name__ == "__main__":
    contenders = {"transformers": peer}
    comparisons = []
    for dtype in DTYPES:
        contenders[f"hf_clap, {dtype}"] = lambda dtype=dtype: ours(dtype)
        comparisons.append(
            Comparison(f"files to embeddings, {dtype}", f"hf_clap, {dtype}", "transformers", agree_embeddings, flop)
        )
    main(__doc__, contenders, comparisons, rounds=3)
