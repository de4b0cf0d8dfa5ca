"""
Fine-tune CLAP on audio-caption pairs with `HfClapTrainer`.

    pip install -e ".[train]"
    python examples/finetune.py SOURCE --held-out-column cluster --output finetuned/
    accelerate launch --config_file examples/launch/cpu_2_processes.yaml examples/finetune.py SOURCE --output out/

SOURCE is anything that `load_pairs` reads: a Hub id, a folder or glob of Parquet shards or WebDataset tars, a folder
of audio with a `metadata.csv`. One row in `--held-out-every` is kept for evaluation; with `--held-out-column` the rows
that share a value of that column stay together, so that clips of one recording never lie on both sides.

By default the audio tower keeps still: its projection and the text tower learn, which is quick and forgets little.
Started again with the same arguments, a run that was stopped goes on exactly where its last checkpoint was written;
with others it does not go on.
"""

import argparse
import json
import os
import statistics
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

import hf_clap
from hf_clap.hub import push_to_hub
from hf_clap.model_card import training_card, write_card
from hf_clap.plot import plot_training
from hf_clap.training_checkpoint import keep_settings, last_checkpoint
from hf_clap.whole_file import whole_file

FREE = ("output", "push_to_hub", "report_to", "workers")  # arguments that have no part in the result
LOCAL = ("model", "source", *FREE)  # and those that a card does not show


def main() -> None:
    arguments = parse_arguments()
    set_seed(arguments.seed)

    # 1. The model and what prepares its inputs.
    model = hf_clap.HfClapModel.from_pretrained(arguments.model)
    processor = hf_clap.HfClapProcessor.from_pretrained(arguments.model)

    # 2. The pairs: an endless shuffled stream to train on, and one pass over those that are held out.
    load = partial(
        hf_clap.load_pairs,
        arguments.source,
        processor.feature_extractor,
        template=arguments.template,
        seed=arguments.seed,
    )
    side = partial(belongs, column=arguments.held_out_column, every=arguments.held_out_every)
    train_pairs = load(where=partial(side, held_out=False))
    test_pairs = load(where=partial(side, held_out=True), training=False)

    # 3. Training: negatives come from the whole batch of all processes.
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(arguments.output / "runs"))  # else that of the current folder
    trainer = hf_clap.HfClapTrainer(
        model,
        hf_clap.HfClapTrainingArguments(
            str(arguments.output),
            max_steps=arguments.steps,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=32,
            micro_batch_size=arguments.micro_batch_size,
            learning_rate=arguments.learning_rate,
            audio_learning_rate=arguments.audio_learning_rate,
            text_learning_rate=arguments.text_learning_rate,
            freeze_audio=arguments.audio_learning_rate is None,
            freeze_batch_norm=True,
            lr_scheduler_type="cosine",
            warmup_steps=arguments.steps // 10,
            weight_decay=0.01,
            logging_steps=1,
            save_steps=max(1, arguments.steps // 4),
            save_total_limit=2,
            dataloader_num_workers=arguments.workers,
            seed=arguments.seed,
            report_to=arguments.report_to,
        ),
        processing_class=processor,
        train_dataset=train_pairs,
        eval_dataset=test_pairs,
    )
    keep_settings(
        arguments.output,
        {name: value for name, value in vars(arguments).items() if name not in FREE},
        trainer.is_world_process_zero(),
    )
    last = last_checkpoint(arguments.output)
    before = json.loads((arguments.output / "before.json").read_text()) if last else trainer.evaluate()
    if last is None and trainer.is_world_process_zero():
        write_json(arguments.output / "before.json", before)
    if last and last.name == f"checkpoint-{arguments.steps}":  # stopped after its last step
        trainer._load_from_checkpoint(str(last))
        trainer.state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
    else:
        trainer.train(resume_from_checkpoint=last)
    after = trainer.evaluate()

    # 4. What came of it: the model with its card, the curve, and the numbers.
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    plot_training(arguments.output / "loss.png", trainer.state.log_history)
    metrics = [name for name in after if "r@" in name]
    settings = {name: value for name, value in vars(arguments).items() if name not in LOCAL}
    speeds = [entry["pairs_per_s"] for entry in trainer.state.log_history if "pairs_per_s" in entry]
    results = {"before": before, "after": after, "pairs_per_s": statistics.median(speeds) if speeds else None}
    write_json(arguments.output / "results.json", results | {"settings": settings})
    measured = {"dataset_type": "held-out", "dataset_name": Path(arguments.source).name, "task_type": "retrieval"}
    results_for_card = [
        measured | {"metric_type": name.removeprefix("eval_"), "metric_value": after[name]} for name in metrics
    ]
    name = arguments.push_to_hub or arguments.output.name
    write_card(
        arguments.output,
        training_card(name, model, processor.feature_extractor, results=results_for_card, settings=settings),
    )
    print(f"{'held out':24} {'before':>7} {'after':>7} {'change':>7}")
    for name in metrics:
        change = after[name] / before[name] - 1 if before[name] else float("inf")
        print(f"{name.removeprefix('eval_'):24} {before[name]:7.4f} {after[name]:7.4f} {change:+7.0%}")
    speed = f"{results['pairs_per_s']:.1f} pairs/s; " if speeds else ""  # which a single step does not show
    print(f"{speed}{arguments.output}/ holds the model, results.json and loss.png")
    if arguments.push_to_hub:
        print(push_to_hub(arguments.output, arguments.push_to_hub))


def belongs(row: dict[str, Any], column: str | None, every: int, held_out: bool) -> bool:
    """
    Whether a row is on one side of the split: by a hash, so that it is on the same side in every epoch and run, and
    wherever the data lie.
    """
    if column and column not in row:
        raise ValueError(f"The pairs have no column {column!r} but {', '.join(row)}; choose one of them.")
    key = row[column] if column else {name: without_folder(value) for name, value in row.items()}
    return (zlib.crc32(str(key).encode()) % every == 0) == held_out


def without_folder(value: Any) -> Any:
    """Audio that is a file, by its name alone."""
    if isinstance(value, dict) and value.get("path") and value.get("bytes") is None:
        return Path(value["path"].split("::")[0]).name  # zip://rain.wav::/data/sounds.zip
    return value


def write_json(path: Path, values: dict[str, Any]) -> None:
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(values, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default=hf_clap.TINY)
    parser.add_argument("--template", default="{}", help="of captions for rows that have a label only")
    parser.add_argument("--held-out-column", help="whose values are not split, such as a recording's id")
    parser.add_argument("--held-out-every", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128, help="pairs in a step of each process")
    parser.add_argument("--micro-batch-size", type=int, help="of them, pairs in memory at a time")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="of the projections")
    parser.add_argument("--text-learning-rate", type=float, default=1e-4)
    parser.add_argument("--audio-learning-rate", type=float, help="of the audio tower, which keeps still without one")
    parser.add_argument("--workers", type=int, default=2, help="processes that read and decode")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-to", default="none", help="tensorboard, wandb, …")
    parser.add_argument("--push-to-hub", metavar="USER/NAME")
    arguments = parser.parse_args()
    if arguments.held_out_every < 2 or arguments.steps < 1:
        parser.error("--held-out-every must be at least 2, and --steps at least 1")
    return arguments


if __name__ == "__main__":
    main()
