"""
Where the time goes: operators' shares of a forward pass of HTS-AT and of a training step, ours and transformers'.

    python tests/benchmarks/operators.py [--calls 5] [--threads 2]

By PyTorch's profiler, as one Markdown table in milliseconds a call, after a call to warm up. The last lines are the
rate of all matrix products (linear layers, attention, convolutions) and the best that the machine showed, in GFLOP/s.
"""

import argparse
from collections import Counter
from collections.abc import Callable

import torch
import transformers
from side_by_side import Machine, Run, count_flop, dtype_of
from torch.profiler import ProfilerActivity, profile
from towers import htsat, htsat_peer
from tqdm import tqdm
from training_step import PEER, make_step

from hf_clap.linear import ONEDNN_DTYPES

ALL: dict[str, Callable[[], Run]] = {
    "transformers, batch 1": lambda: htsat_peer(1),
    "float32, batch 1": lambda: htsat(1, torch.float32),
    "bfloat16, batch 1": lambda: htsat(1, torch.bfloat16),
    "transformers, batch 16": lambda: htsat_peer(16),
    "float32, batch 16": lambda: htsat(16, torch.float32),
    "bfloat16, batch 16": lambda: htsat(16, torch.bfloat16),
    "transformers, training": lambda: make_step(PEER, 16),
    "hf_clap, training": lambda: make_step("hf_clap", 16),
}
CONTENDERS = {name: make for name, make in ALL.items() if dtype_of(name) in ONEDNN_DTYPES}

# operators by what their names begin with, after the library's
PRODUCTS = "linear layers", "attention's products", "convolutions"
KINDS = dict(
    zip(PRODUCTS, (("_linear_pointwise", "addmm", "mm"), ("bmm", "baddbmm"), ("mkldnn_convolution",)), strict=True)
) | {
    "softmax": ("_softmax",),
    "GELU": ("gelu",),
    "layer norms": ("native_layer_norm",),
    "copies and other orders": ("copy_", "cat", "index", "gather", "constant_pad"),
    "sums, scales and masks": ("add", "sub", "mul", "div", "sum", "masked_fill", "where", "fill_", "zero_"),
    "optimizer": ("_fused_adamw_",),
}


def kind_of(operator: str) -> str:
    name = operator.partition("::")[2]
    for kind, beginnings in KINDS.items():
        if any(name in (beginning, f"{beginning}_") or name.startswith(f"{beginning}_") for beginning in beginnings):
            return kind
    return "all else"


def milliseconds(run: Run, calls: int) -> Counter[str]:
    """Of a call, by kind of operator."""
    run()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(calls):
            run()
    spent = Counter[str]()
    for operator in profiled.key_averages():
        spent[kind_of(operator.key)] += operator.self_cpu_time_total / 1e3 / calls
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    machine = Machine()
    columns, rates, best = [], [], []
    for name, make in tqdm(CONTENDERS.items(), disable=None):
        with torch.set_grad_enabled("training" in name):
            run = make()
            columns.append(milliseconds(run, options.calls))
            flop = count_flop(run)
        machine.take_turn()
        rates.append(flop / sum(columns[-1][kind] for kind in PRODUCTS) / 1e6)
        best.append(machine.best[dtype_of(name)] / 1e9)
    table = {kind: [column[kind] for column in columns] for kind in (*KINDS, "all else")}
    table |= {"all": [column.total() for column in columns], "GFLOP/s": rates, "the machine's best": best}
    print(f"| ms a call | {' | '.join(CONTENDERS)} |\n|{'---|' * (len(CONTENDERS) + 1)}")
    for name, cells in table.items():
        print(f"| {name} | {' | '.join(f'{cell:.1f}' if cell < 100 else f'{cell:.0f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
