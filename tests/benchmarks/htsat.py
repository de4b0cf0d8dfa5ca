"""
HTS-AT forward: hf_clap's tower against transformers' `ClapAudioModel`, same weights, same log-mels, fp32.

    python tests/benchmarks/htsat.py [--batch-sizes 1 16] [--rounds 7] [--threads 2] [--json RESULT.json]

Both run in one process, in turns, HTS-AT tiny with random weights on 10 s of audio (1001 frames); their outputs must
agree to 1e-4.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

import hf_clap
from hf_clap.checkpoint_names import LAYOUTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    towers = make_towers()
    print(f"HTS-AT tiny, 10 s, {arguments.threads} threads, torch {torch.__version__}, transformers "
          f"{transformers.__version__}")  # fmt: skip
    results = [measure(towers, batch_size, arguments.rounds) for batch_size in arguments.batch_sizes]
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def make_towers() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    peer = transformers.ClapAudioModel(transformers.ClapAudioConfig()).eval()
    ours = hf_clap.HfClapHtsatModel(hf_clap.HfClapHtsatConfig()).eval()
    state = {f"audio_model.{name}": tensor for name, tensor in peer.state_dict().items()}
    names = [f"audio_model.{name}" for name in ours.state_dict()]
    renamed = LAYOUTS["transformers"].to_ours(state, names)
    renamed = {name.removeprefix("audio_model."): tensor for name, tensor in renamed.items()}
    ours.load_state_dict(ours.state_dict() | renamed)
    return {"hf_clap": ours, "transformers": peer}


@torch.inference_mode()
def measure(towers: dict[str, torch.nn.Module], batch_size: int, rounds: int) -> dict:
    features = torch.randn(batch_size, 1, 1001, 64) * 20 - 40
    outputs = {name: tower(features).pooler_output for name, tower in towers.items()}  # and warm up
    difference = (outputs["hf_clap"] - outputs["transformers"]).abs().max().item()
    assert difference < 1e-4, f"the towers disagree by {difference}"
    seconds = {name: [] for name in towers}
    for _ in tqdm(range(rounds), desc=f"batch {batch_size}", disable=None):
        for name, tower in towers.items():
            start = time.perf_counter()
            tower(features)
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        median = statistics.median(values) * 1e3
        print(f"batch {batch_size:3} {name:13} {median:8.1f} ms  (least {min(values) * 1e3:.1f}, "
              f"most {max(values) * 1e3:.1f})")  # fmt: skip
    ratios = [peer / ours for ours, peer in zip(seconds["hf_clap"], seconds["transformers"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"batch {batch_size:3} ratio         {ratio:8.2f}     (least {min(ratios):.2f}, most {max(ratios):.2f}), "
          f"outputs differ by {difference:.0e}")  # fmt: skip
    return {"batch_size": batch_size, "seconds": seconds, "ratio": ratio, "difference": difference}


if __name__ == "__main__":
    main()
