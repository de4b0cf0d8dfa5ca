"""
Train CLAP by contrast in an explicit loop: Accelerate, streamed pairs, gradient caching, exact resume.

    pip install -e ".[train]"
    accelerate launch --config_file examples/launch/cpu_1_process.yaml examples/pretrain.py \\
        --source user/audiocaps --source user/clotho:0.5 --output run/

`--source` is anything that `load_pairs` reads, with a weight after a colon if there are several. `--model` is where to
begin: the folder or Hub id of a checkpoint, trained or not (`HfClapModel(config).save_pretrained` makes one without
training). `examples/launch/` has configurations for one process, two without a GPU, DDP and FSDP.

Started again with the same arguments, a run that was stopped, at whatever moment, goes on exactly where its last
checkpoint was written; with others it does not go on. run/log.jsonl has the loss of every step, run/loss.png the
curve, run/model the result. Several machines need a folder run/ that they share.
"""

import argparse
import csv
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.utils import broadcast_object_list, set_seed
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup
from transformers.trainer_utils import rotate_checkpoints

import hf_clap
from hf_clap.hub import push_to_hub
from hf_clap.model_card import training_card, write_card
from hf_clap.optimization import (
    clamp_logit_scale,
    freeze,
    hold_still,
    parameter_groups,
    scalars_to_vectors,
    vectors_to_scalars,
)
from hf_clap.plot import plot_training
from hf_clap.training_checkpoint import keep_settings, last_checkpoint, new_checkpoint
from hf_clap.whole_file import whole_file


def main() -> None:
    arguments = parse_arguments()

    # 1. Processes, precision, trackers: as `accelerate launch` was told.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        log_with=arguments.tracker,
        project_dir=arguments.output,
        # models with fusion use some weights only where a clip of the batch is long
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=not arguments.gradient_checkpointing)],
    )
    if arguments.tracker and not accelerator.log_with:
        raise SystemExit(f"--tracker {arguments.tracker} needs its package; install it, or leave --tracker out.")
    accelerator.init_trackers("pretrain", config={name: str(value) for name, value in vars(arguments).items()})
    set_seed(arguments.seed, device_specific=True)
    keep_settings(
        arguments.output,
        {name: value for name, value in vars(arguments).items() if name not in FREE},
        accelerator.is_main_process,
    )
    clips = read_labelled(arguments.zero_shot) if arguments.zero_shot else []

    # 2. The model, and what prepares its inputs.
    model = hf_clap.HfClapModel.from_pretrained(arguments.model, dtype=torch.float32)
    processor = hf_clap.HfClapProcessor.from_pretrained(arguments.model)
    freeze(model, audio=arguments.freeze_audio, text=arguments.freeze_text)
    if model.config.loss == "softmax" and arguments.batch_size * accelerator.num_processes < 2:
        raise SystemExit("One pair has nothing to contrast it with; raise --batch-size.")
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if sharded and arguments.zero_shot:
        raise SystemExit("--zero-shot needs a whole model in one process; with FSDP evaluate the checkpoints instead.")
    scalars = scalars_to_vectors(model) if sharded else []

    # 3. Pairs: each process reads its own, each of its workers a part of those.
    streams, weights = [], []
    for source in arguments.source:
        name, weight = split_weight(source)
        streams.append(hf_clap.load_pairs(name, processor.feature_extractor, seed=arguments.seed))
        weights.append(weight)
    pairs = streams[0] if len(streams) == 1 else hf_clap.interleave_pairs(streams, weights)
    loader = hf_clap.PairLoader(
        pairs.split(accelerator.process_index, accelerator.num_processes),
        arguments.batch_size,
        hf_clap.PairCollator(processor),
        num_workers=arguments.workers,
    )

    # 4. Optimizer and schedule.
    groups = parameter_groups(
        model,
        arguments.learning_rate,
        audio_learning_rate=arguments.audio_learning_rate,
        text_learning_rate=arguments.text_learning_rate,
        weight_decay=arguments.weight_decay,
    )
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, arguments.warmup_steps, arguments.steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(schedule)

    # 5. Where the last run of this folder has stopped.
    log = Log(arguments.output / "log.jsonl", accelerator.is_main_process)
    first = 0
    if (checkpoint := broadcast_object_list([last_checkpoint(arguments.output)])[0]) is not None:
        first = int(checkpoint.name.partition("-")[2])
        accelerator.load_state(str(checkpoint))
        loader.load_state_dict(json.loads((checkpoint / f"pairs_{accelerator.process_index}.json").read_text()))
    log.forget_after(first)

    # 6. The loop.
    core = accelerator.unwrap_model(model)
    batches = iter(loader)
    pairs_in_step = arguments.batch_size * accelerator.num_processes
    progress = tqdm(
        range(first, arguments.steps),
        initial=first,
        total=arguments.steps,
        unit="step",
        disable=not accelerator.is_main_process,
    )
    for step in progress:
        began = time.perf_counter()
        model.train()
        hold_still(core, arguments.freeze_batch_norm)
        loss = hf_clap.contrastive_step(
            model,
            next(batches),
            micro_batch_size=arguments.micro_batch_size,
            chunk_size=arguments.loss_chunk_size,
            backward=accelerator.backward,
            no_sync=partial(accelerator.no_sync, model),
        )
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clamp_logit_scale(core)

        entry = {"step": step + 1, "loss": accelerator.reduce(loss, "mean").item()}
        entry["pairs_per_s"] = round(pairs_in_step / (time.perf_counter() - began), 2)
        entry |= {f"skipped_{reason}": loader.skipped[reason] for reason in ("audio", "caption")}
        if arguments.zero_shot and ((step + 1) % arguments.evaluate_every == 0 or step + 1 == arguments.steps):
            entry["zero_shot_accuracy"] = zero_shot(accelerator, core, processor, clips)
        log.add(entry)
        accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=step + 1)
        progress.set_postfix(loss=f"{entry['loss']:.3f}", pairs_per_s=entry["pairs_per_s"])
        if (step + 1) % arguments.save_every == 0 or step + 1 == arguments.steps:
            save(accelerator, loader, arguments.output / f"checkpoint-{step + 1}", arguments.keep)

    # 7. What came of it.
    state = vectors_to_scalars(accelerator.get_state_dict(model), scalars)
    if accelerator.is_main_process:
        finish(arguments, core, state, processor, log.entries)
    accelerator.end_training()


def read_labelled(folder: Path) -> list[tuple[str, str]]:
    """File and label of each clip of a folder, before the training, so that a wrong name costs nothing."""
    try:
        with (folder / "metadata.csv").open(encoding="utf-8-sig", newline="") as file:
            clips = [(str(folder / row["file_name"]), row["label"].replace("_", " ")) for row in csv.DictReader(file)]
    except (OSError, KeyError) as error:
        raise SystemExit(f"--zero-shot {folder} needs a metadata.csv with file_name and label ({error}).") from error
    if not clips:
        raise SystemExit(f"--zero-shot {folder} has no clips; fill its metadata.csv.")
    if missing := [file for file, _ in clips if not Path(file).is_file()]:
        raise SystemExit(f"--zero-shot {folder} lacks {len(missing)} of its files, such as {missing[0]}.")
    return clips


def zero_shot(accelerator: Accelerator, model: Any, processor: Any, clips: list[tuple[str, str]]) -> float:
    """Accuracy on labelled clips, in the main process; it draws nothing, so that the run is the same without."""
    share = 0.0
    if accelerator.is_main_process:
        files, labels = zip(*clips, strict=True)
        results = hf_clap.HfClapPipeline(model, processor).iterate(files, sorted(set(labels)), top_k=1)
        hits = [result[0]["label"] == label for result, label in zip(results, labels, strict=True)]
        share = sum(hits) / len(hits)
    accelerator.wait_for_everyone()
    return share


def save(accelerator: Accelerator, loader: hf_clap.PairLoader, folder: Path, keep: int) -> None:
    with new_checkpoint(folder, accelerator.is_main_process, accelerator.wait_for_everyone) as written:
        accelerator.save_state(str(written))
        state = json.dumps(loader.state_dict())
        (written / f"pairs_{accelerator.process_index}.json").write_text(state)
    if accelerator.is_main_process:
        rotate_checkpoints(str(folder.parent), keep)


def finish(arguments: argparse.Namespace, model: Any, state: Any, processor: Any, entries: list[dict]) -> None:
    folder = arguments.output / "model"
    model.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)
    plot_training(arguments.output / "loss.png", entries)
    results = []
    if arguments.zero_shot:
        results.append(
            {
                "task_type": "zero-shot-audio-classification",
                "dataset_type": "audiofolder",
                "dataset_name": arguments.zero_shot.name,
                "metric_type": "accuracy",
                "metric_value": entries[-1]["zero_shot_accuracy"],
            }
        )
    settings = {name: value for name, value in vars(arguments).items() if name not in LOCAL}
    name = arguments.push_to_hub or arguments.output.name
    write_card(folder, training_card(name, model, processor.feature_extractor, results=results, settings=settings))
    if arguments.push_to_hub:
        print(push_to_hub(folder, arguments.push_to_hub))


class Log:
    """The losses of a run as JSON lines, written by the main process as they come."""

    def __init__(self, path: Path, is_main: bool):
        self.path = path
        self.is_main = is_main
        self.entries: list[dict[str, float]] = []

    def forget_after(self, step: int) -> None:
        """Keep what an earlier start of this run has logged up to the step from which it goes on."""
        if not self.is_main:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        # a killed run may have left half a line at the end, which is of a later step in any case
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        self.entries = [entry for entry in entries if entry["step"] <= step]
        with whole_file(self.path) as unfinished:
            unfinished.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))

    def add(self, entry: dict[str, float]) -> None:
        self.entries.append(entry)
        if self.is_main:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def split_weight(source: str) -> tuple[str, float]:
    """`name:0.5` -> its two parts; a name without a weight has 1."""
    name, _, weight = source.rpartition(":")
    try:
        return (name, float(weight)) if name else (source, 1.0)
    except ValueError:
        return source, 1.0


# Arguments that have no part in the result, and others that say nothing about the model: folders of this machine.
FREE = ("output", "push_to_hub", "tracker", "workers", "save_every", "evaluate_every", "keep")
LOCAL = ("source", "model", "zero_shot", *FREE)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", required=True, help="several times to interleave: NAME[:WEIGHT]")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default=hf_clap.TINY)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64, help="pairs in a step of each process")
    parser.add_argument("--micro-batch-size", type=int, help="of them, pairs on the device at a time")
    parser.add_argument("--loss-chunk-size", type=int, help="rows of the logits in memory at a time")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--audio-learning-rate", type=float)
    parser.add_argument("--text-learning-rate", type=float)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--freeze-audio", action="store_true")
    parser.add_argument("--freeze-text", action="store_true")
    parser.add_argument("--freeze-batch-norm", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="processes that read and decode, for each process")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--keep", type=int, default=2, help="checkpoints")
    parser.add_argument("--zero-shot", type=Path, help="folder with a metadata.csv to evaluate on during the training")
    parser.add_argument("--evaluate-every", type=int, default=100)
    parser.add_argument("--tracker", help="tensorboard, wandb, …")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--push-to-hub", metavar="USER/NAME")
    arguments = parser.parse_args()
    for tower in ("audio", "text"):
        if getattr(arguments, f"freeze_{tower}") and getattr(arguments, f"{tower}_learning_rate") is not None:
            parser.error(f"--freeze-{tower} leaves nothing to --{tower}-learning-rate; choose one of them")
    return arguments


if __name__ == "__main__":
    main()
