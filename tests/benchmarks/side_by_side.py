"""What the benchmarks share: contenders in one process, in turns; ratios, outputs that must agree, peak memory."""

import argparse
import ctypes
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from hf_clap.linear import ONEDNN_DTYPES, onednn_linear

# The C library then gives freed memory back at once, so that peaks are those of memory in use.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000"}

# Before each turn: worker threads of the other's libraries (OpenBLAS, OpenMP) spin for a while after their last work.
PAUSE_S = 0.3
TURN_S = 0.3  # a turn has as many calls as fit in, at least one

# Rows, inputs and outputs of the product that says what the machine can do: it fits the cache, and few are faster.
PRODUCT = 1024, 1536, 384

# Those that the CPU computes in: a call in another takes ten times as long, on either side.
DTYPES = tuple(str(dtype).removeprefix("torch.") for dtype in ONEDNN_DTYPES)

Run = Callable[[], Any]


def dtype_of(contender: str) -> torch.dtype:
    """The precision that its name says."""
    return torch.bfloat16 if "bfloat16" in contender or "bf16" in contender else torch.float32


class Machine:
    """What it can do at most, in FLOP/s: packed matrix products of oneDNN's, in the same turns as the contenders."""

    def __init__(self) -> None:
        rows, inputs, outputs = PRODUCT
        self.best: dict[torch.dtype, float] = {}
        self.products = {}
        for dtype in ONEDNN_DTYPES:
            weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(outputs, inputs).to(dtype), rows)
            self.products[dtype] = torch.randn(rows, inputs).to(dtype), weight, None

    @torch.inference_mode()
    def take_turn(self) -> None:
        for dtype, product in self.products.items():
            for _ in range(5):
                start = time.perf_counter()
                onednn_linear(*product)
                rate = 2 * math.prod(PRODUCT) / (time.perf_counter() - start)
                self.best[dtype] = max(rate, self.best.get(dtype, 0))

    def least_seconds(self, contender: str, flop: int) -> float | None:
        """For so many operations, in the contender's precision; None without any."""
        return flop / self.best[dtype_of(contender)] if flop else None


def count_flop(run: Run) -> int:
    """Of matrix products and convolutions in one call, in this thread."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@dataclass
class Comparison:
    """
    Of two contenders.

    Args:
        name: of the row.
        ours, peer: names of the contenders.
        agree: takes what both returned and gives their difference, or raises AssertionError if they disagree.
        flop: counts the operations of ours in matrix products and convolutions, where a call in this thread does not
            show them.
    """

    name: str
    ours: str
    peer: str
    agree: Callable[[Any, Any], float] | None = None
    flop: Callable[[Run], int] | None = None


def main(
    description: str, contenders: dict[str, Callable[[], Run]], comparisons: list[Comparison], rounds: int = 7
) -> None:
    """
    Run a benchmark.

    Args:
        description: the script's own docstring.
        contenders: by name, what makes a contender ready (which is not timed) and returns what is timed.
        comparisons: rows of the result.
        rounds: how often each contender runs, by default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose name has one of these in it")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory, which runs all again")
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--peak-of", choices=list(contenders), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    if options.peak_of:
        run = contenders[options.peak_of]()
        forget_peak()
        run()
        print(json.dumps(memory("VmHWM")))
        return
    if options.only:
        comparisons = [row for row in comparisons if any(text in row.name for text in options.only)]
    used = list(dict.fromkeys(name for row in comparisons for name in (row.peer, row.ours)))
    runs = {name: contenders[name]() for name in used}
    machine = Machine()
    seconds, results = take_turns(runs, options.rounds, machine)
    least_seconds = {
        row.name: machine.least_seconds(row.ours, (row.flop or count_flop)(runs[row.ours])) for row in comparisons
    }
    peaks = {} if options.no_memory else {name: peak(name, options.threads) for name in tqdm(used, desc="memory")}
    print(f"{options.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}")
    rows = [summary(row, seconds, peaks, least_seconds[row.name], results) for row in comparisons]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def take_turns(runs: dict[str, Run], rounds: int, machine: Machine) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of a call in each round, after one to warm up, and what each contender returned."""
    results = {name: run() for name, run in tqdm(runs.items(), desc="warm-up", disable=None)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in tqdm(range(rounds), desc="rounds", disable=None):
        for name, run in runs.items():
            time.sleep(PAUSE_S)
            calls, start = 0, time.perf_counter()
            while not calls or time.perf_counter() - start < TURN_S:
                run()
                calls += 1
            seconds[name].append((time.perf_counter() - start) / calls)
        machine.take_turn()
    return seconds, results


def peak(name: str, threads: int) -> float:
    """Of a process that makes one contender and runs it once, in GiB. Linux only."""
    command = [sys.executable, sys.argv[0], "--threads", str(threads), "--peak-of", name]
    return json.loads(subprocess.run(command, env=os.environ | GIVE_BACK, check=True, capture_output=True).stdout)


def memory(field: str) -> float:
    """Of this process, in GiB: `VmRSS`, what it holds, or `VmHWM`, the most that it held. Linux counts in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def forget_peak() -> float:
    """Let the peak begin anew, at what is held now, which is returned: without what is free but not given back."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def agree_embeddings(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference in float32, which may be 1e-4; in other precisions 1 - the least cosine, at most 1e-3."""
    if mine.dtype == torch.float32:
        difference = (mine - theirs).abs().max().item()
        assert difference < 1e-4, f"the towers disagree by {difference}"
        return difference
    distance = 1 - F.cosine_similarity(mine.float(), theirs).min().item()
    assert distance <= 1e-3, f"the least cosine is {1 - distance}"
    return distance


def summary(
    row: Comparison,
    seconds: dict[str, list[float]],
    peaks: dict[str, float],
    least_seconds: float | None,
    results: dict[str, Any],
) -> dict[str, Any]:
    """
    Prints a row and returns it: medians, the ratio of each round, peaks, and as `at_most` the ratio that would be if
    ours took no longer than its matrix products and convolutions at the machine's best rate.
    """
    difference = row.agree(results[row.ours], results[row.peer]) if row.agree else None
    ratios = [peer / ours for ours, peer in zip(seconds[row.ours], seconds[row.peer], strict=True)]
    result = {
        "name": row.name,
        "ours": row.ours,
        "peer": row.peer,
        "seconds": {name: seconds[name] for name in (row.ours, row.peer)},
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "at_most": least_seconds and statistics.median(seconds[row.peer]) / least_seconds,
        "difference": difference,
        "peak_gb": {name: peaks[name] for name in (row.ours, row.peer) if name in peaks},
    }
    print(row.name)
    for name in (row.ours, row.peer):
        times = sorted(1e3 * second for second in seconds[name])
        held = f"  peak {peaks[name]:.2f} GB" if peaks else ""
        print(f"  {name:34} {statistics.median(times):9.1f} ms  ({times[0]:.1f} to {times[-1]:.1f}){held}")
    agreement = "" if difference is None else f"  outputs differ by {difference:.0e}"
    spread = f"({result['least']:.2f} to {result['most']:.2f})"
    bound = f"  at most {result['at_most']:.2f}" if result["at_most"] else ""
    print(f"  {'ratio':34} {result['ratio']:9.2f}     {spread}{bound}{agreement}")
    return result
