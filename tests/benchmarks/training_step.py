"""
A training step: hf_clap against transformers' `ClapModel`, the same HTS-AT and RoBERTa, AdamW as Trainer has it.

    python tests/benchmarks/training_step.py [--batch-size 16] [--rounds 5] [--threads 2] [--json RESULT.json]

Each model lives in a process of its own, so that its peak memory is its own; they take their steps in turns. A step is
forward, loss, backward and optimizer on 10 s of audio (1001 frames) and 32 tokens a pair, random weights. transformers
computes its own loss, which has no audio -> text part. Weights are float32; with bf16 autocast is on, as Trainer's
`bf16=True` does.

"step GB" is the peak during a step above what the process holds between steps: interpreter, weights, AdamW's moments.
It is measured in further steps for which the C library is told to give freed memory back at once, so that the peaks
are those of memory in use. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers
from side_by_side import GIVE_BACK, Machine, Run, count_flop, dtype_of, forget_peak, memory
from tqdm import tqdm

import hf_clap
from hf_clap.linear import ONEDNN_DTYPES

CHECKPOINTED = "hf_clap, gradient checkpointing"
PEER = "transformers"
# those that are in memory at the same time
GROUPS = (
    (PEER, "hf_clap", CHECKPOINTED, f"{CHECKPOINTED}, micro-batches of 4"),
    (PEER, "transformers, bf16", "hf_clap, bf16"),
)
TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--worker", choices=sorted({*GROUPS[0], *GROUPS[1]}), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.worker:
        work(arguments.worker, arguments.batch_size)
        return

    print(f"batch {arguments.batch_size}, {arguments.threads} threads, torch {torch.__version__}, transformers "
          f"{transformers.__version__}")  # fmt: skip
    print(
        f"{'':52} {'pairs/s':>8} {'ratio':>14} {'at most':>7} {'peak GB':>8} {'ratio':>6} {'step GB':>8} {'ratio':>6}"
    )
    groups = [names for names in GROUPS if dtype_of(names[-1]) in ONEDNN_DTYPES]
    rows = [row for names in groups for row in compare(names, arguments)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def compare(names: tuple[str, ...], arguments: argparse.Namespace) -> list[dict]:
    """Prints a line for each model, and returns those of ours and of the peer in another precision."""
    machine = Machine()
    taken = take_turns(names, arguments.rounds, arguments, {}, machine)
    seconds = {name: [step["seconds"] for step in steps] for name, steps in taken.items()}
    held = take_turns(names, 1, arguments, GIVE_BACK, machine)
    peaks = {kind: {name: steps[0][kind] for name, steps in held.items()} for kind in ("peak_gb", "step_gb")}
    rows = []
    for name in names:
        speed = arguments.batch_size / statistics.median(seconds[name])
        ratios = [peer / ours for peer, ours in zip(seconds[PEER], seconds[name], strict=True)]
        columns = [f"{speed:8.2f} {statistics.median(ratios):4.2f} {min(ratios):.2f}-{max(ratios):.2f}"]
        at_most = statistics.median(seconds[PEER]) / machine.least_seconds(name, taken[name][0]["flop"])
        columns += [f"{at_most:7.2f}", *(f"{of[name]:8.2f} {of[name] / of[PEER]:6.2f}" for of in peaks.values())]
        print(f"{name:52} {' '.join(columns)}", flush=True)
        row = {"name": f"training step, {name}", "ours": name, "peer": PEER, "ratio": statistics.median(ratios)}
        row |= {"least": min(ratios), "most": max(ratios), "at_most": at_most}
        rows.append(row | {"seconds": seconds[name], **peaks})
    return rows[1:]


def take_turns(
    names: tuple[str, ...],
    rounds: int,
    arguments: argparse.Namespace,
    environment: dict[str, str],
    machine: Machine,
) -> dict[str, list[dict]]:
    """The steps of each model, after one to warm up."""
    words = [sys.executable, __file__, "--batch-size", str(arguments.batch_size), "--threads", str(arguments.threads)]
    workers = {
        name: subprocess.Popen(
            [*words, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        for name in names
    }
    for worker in workers.values():
        answer(worker)  # ready
    steps = {name: [] for name in names}
    for number in tqdm(range(rounds + 1), desc="rounds", disable=None):
        for name, worker in workers.items():
            worker.stdin.write("step\n")
            worker.stdin.flush()
            result = answer(worker)
            if number:
                steps[name].append(result)
        machine.take_turn()
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return steps


def answer(worker: subprocess.Popen) -> dict:
    line = worker.stdout.readline()
    if not line:
        sys.exit("a model's process has ended; its error is above")
    return json.loads(line)


def work(name: str, batch_size: int) -> None:
    step = make_step(name, batch_size)
    flop = count_flop(step)
    print(json.dumps({"flop": flop}), flush=True)
    measures_memory = os.environ.items() >= GIVE_BACK.items()
    for _ in sys.stdin:
        before = forget_peak() if measures_memory else 0.0  # which gives memory back, that the step then fetches again
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        peak = memory("VmHWM")
        print(json.dumps({"seconds": seconds, "peak_gb": peak, "step_gb": peak - before, "flop": flop}), flush=True)


def make_step(name: str, batch_size: int) -> Run:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    batch = {
        "input_features": torch.randn(batch_size, 1, 1001, 64, generator=generator) * 20 - 40,
        "input_ids": torch.randint(5, 50000, (batch_size, TOKENS), generator=generator),
        "attention_mask": torch.ones(batch_size, TOKENS, dtype=torch.long),
    }
    longer = torch.zeros(batch_size, 1, dtype=torch.bool)
    model = make_model(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)  # adamw_torch_fused
    autocast = torch.autocast("cpu", torch.bfloat16, enabled="bf16" in name)

    def step() -> None:
        if "transformers" in name:
            with autocast:
                loss = model(**batch, is_longer=longer, return_loss=True).loss
            loss.backward()
        else:
            with autocast:
                hf_clap.contrastive_step(model, batch, micro_batch_size=4 if "micro" in name else None)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_model(name: str) -> torch.nn.Module:
    text = {"vocab_size": 50265, "max_position_embeddings": 514}
    if "transformers" in name:
        return transformers.ClapModel(transformers.ClapConfig(text_config=text))
    config = hf_clap.HfClapConfig(
        text_config={"model_type": "roberta", **text},
        audio_config={"model_type": "hf_clap_htsat"},
        projection="mlp",
        projection_dim=512,
        text_pooling="pooler",
    )
    model = hf_clap.HfClapModel(config)
    if "checkpointing" in name:
        model.gradient_checkpointing_enable()
    return model


if __name__ == "__main__":
    main()
