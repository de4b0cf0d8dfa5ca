"""
Does streaming keep up? Pairs/s of the loader alone against those that a training step takes, in turns.

    python tests/benchmarks/loader.py SOURCE [--workers 2] [--batch-size 64] [--rounds 3] [--threads 2]

SOURCE is anything that `load_pairs` reads. The loader decodes, crops, computes log-mels and tokenizes; the step is
forward, loss, backward and AdamW of the bundled model, with all of its weights and, as `examples/finetune.py` has it,
with the audio tower frozen.
"""

import argparse
import statistics
import time

import torch
from tqdm import tqdm

import hf_clap
from hf_clap.optimization import freeze, hold_still, parameter_groups

BATCHES = 8  # of the loader in a round, after the first, for which workers start and fill their buffers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    processor = hf_clap.HfClapProcessor.from_pretrained(hf_clap.TINY)
    pairs = hf_clap.load_pairs(arguments.source, processor.feature_extractor)
    loader = hf_clap.PairLoader(pairs, arguments.batch_size, hf_clap.PairCollator(processor), arguments.workers)
    steps = {"step, all weights": make_step(frozen=False), "step, audio tower frozen": make_step(frozen=True)}
    speeds: dict[str, list[float]] = {"loader": [], **{name: [] for name in steps}}
    for _ in tqdm(range(arguments.rounds), desc="rounds", disable=None):
        batch, speed = measure_loader(loader, arguments.batch_size)
        speeds["loader"].append(speed)
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            speeds[name].append(arguments.batch_size / (time.perf_counter() - start))
    print(f"batch {arguments.batch_size}, {arguments.workers} workers, {arguments.threads} threads, torch "
          f"{torch.__version__}")  # fmt: skip
    for name, values in speeds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds["loader"], values, strict=True))
        print(f"{name:25} {statistics.median(values):8.1f} pairs/s  (least {min(values):.1f}, most {max(values):.1f})"
              f"   loader / this: {ratio:.1f}")  # fmt: skip


def measure_loader(loader: hf_clap.PairLoader, batch_size: int) -> tuple[dict, float]:
    """A batch, and pairs/s without what the workers have read ahead at the start."""
    batches = iter(loader)
    for _ in range(1 + loader.num_workers * (loader.prefetch_factor or 0)):
        batch = next(batches)
    start = time.perf_counter()
    for _ in range(BATCHES):
        batch = next(batches)
    return batch, BATCHES * batch_size / (time.perf_counter() - start)


def make_step(frozen: bool):
    model = hf_clap.HfClapModel.from_pretrained(hf_clap.TINY)
    freeze(model, audio=frozen)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-5))

    def step(batch: dict) -> None:
        model.train()
        hold_still(model)
        hf_clap.contrastive_step(model, batch)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()
