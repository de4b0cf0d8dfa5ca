"""What a training is asked for: settings, a model, data; and a sentence where that cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from .data import PairStream


@dataclass
class HfClapTrainingArguments(TrainingArguments):
    """
    transformers' `TrainingArguments`, and what training on pairs adds to them.

    Args:
        audio_learning_rate, text_learning_rate: of the towers; `learning_rate`, which the projections have, when
            absent.
        freeze_audio, freeze_text: whether that tower stays as it is.
        freeze_batch_norm: whether batch norms keep the statistics of the checkpoint.
        micro_batch_size: pairs that are on the device at a time; the negatives are still those of the whole batch
            (gradient caching). `per_device_train_batch_size`, in one pass, when absent.
        loss_chunk_size: rows of the batch's logits that are in memory at a time; all when absent.
    """

    audio_learning_rate: float | None = None
    text_learning_rate: float | None = None
    freeze_audio: bool = False
    freeze_text: bool = False
    freeze_batch_norm: bool = False
    micro_batch_size: int | None = None
    loss_chunk_size: int | None = None

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise processes without a GPU do not find each other
            self.dataloader_pin_memory = False
        super().__post_init__()
        if self.fp16 and self.use_cpu:  # accelerate would train in float32
            raise ValueError("fp16=True is for GPUs; choose bf16=True, or neither.")
        if self.label_smoothing_factor:
            raise ValueError("label_smoothing_factor has no effect on a contrastive loss; leave it out.")
        if self.auto_find_batch_size:
            raise ValueError(
                "auto_find_batch_size=True would leave negatives out; set micro_batch_size where memory is short."
            )
        if self.fp16_full_eval or self.bf16_full_eval:
            raise ValueError("fp16_full_eval and bf16_full_eval have no effect here; choose bf16=True, or neither.")
        if self.world_size > 1 and not cast("Any", self.accelerator_config).even_batches:
            raise ValueError("even_batches=False lets processes wait for others that have no batch; leave it out.")
        for tower in ("audio", "text"):
            rate = getattr(self, f"{tower}_learning_rate")
            if getattr(self, f"freeze_{tower}") and rate is not None:
                raise ValueError(f"freeze_{tower}=True leaves nothing to {tower}_learning_rate; choose one of them.")
            if rate is not None and not rate >= 0:
                raise ValueError(f"{tower}_learning_rate={rate} is not possible; it must be at least 0.")


def check_model(model: Any) -> None:
    """A TypeError where it is no `HfClapModel`, nor has one inside."""
    inside = model.modules() if isinstance(model, nn.Module) else ()  # of adapters and other wrappers
    # by name, as a model that came with its code is of a class of its own
    if not any(parent.__name__ == "HfClapModel" for part in inside for parent in type(part).__mro__):
        raise TypeError(f"model is a {type(model).__name__}; pass an HfClapModel, also with adapters of peft.")


def check_effects(args: HfClapTrainingArguments, options: dict[str, Any]) -> None:
    """A ValueError where one of Trainer's `options` would have no effect."""
    for name in ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func"):
        if options.get(name) is not None:
            raise ValueError(f"{name} is not called here; there are the model's own loss and retrieval metrics.")
    optimizer, _ = options.get("optimizers") or (None, None)
    if optimizer is not None and (args.audio_learning_rate, args.text_learning_rate) != (None, None):
        raise ValueError("optimizers has its own rates; leave out audio_learning_rate and text_learning_rate.")


def check_pairs(dataset: Any, args: HfClapTrainingArguments, loss: str) -> None:
    """A TypeError or ValueError where a model with this loss cannot be trained on the data set."""
    if args.train_sampling_strategy == "group_by_length":
        raise ValueError("train_sampling_strategy=group_by_length is for texts, and pairs are none; leave it out.")
    if isinstance(dataset, PairStream):
        if not dataset.training:
            raise ValueError("train_dataset is a stream of one pass in stored order; load it with training=True.")
        if args.train_sampling_strategy != "random":
            raise ValueError(f"train_sampling_strategy={args.train_sampling_strategy} is for lists; leave it out.")
    elif hasattr(dataset, "column_names"):
        raise _of_rows("train_dataset", dataset)
    elif isinstance(dataset, IterableDataset):
        if args.world_size > 1:
            raise TypeError(
                f"A {type(dataset).__name__} cannot be shared among processes; pass a stream of load_pairs, or pairs "
                "with numbers and a length."
            )
    elif not _has_items(dataset):
        raise TypeError(
            f"train_dataset is a {type(dataset).__name__}; pass a stream of load_pairs, or pairs with a length."
        )
    elif len(dataset) < (least := 2 if loss == "softmax" else 1):
        raise ValueError(f"train_dataset has a length of {len(dataset)}; it must be at least {least}.")
    if loss == "softmax" and args.train_batch_size * args.world_size < 2:
        raise ValueError(
            "A batch of one pair has nothing to contrast it with; raise per_device_train_batch_size, and set "
            "micro_batch_size where memory is short (gradient accumulation adds no negatives)."
        )
    is_left_alone = loss == "softmax" and _has_items(dataset) and len(dataset) % args.train_batch_size == 1
    if is_left_alone and args.world_size == 1 and not args.dataloader_drop_last:  # several processes fill it up
        raise ValueError(
            f"The last batch of {len(dataset)} pairs would be one alone, with nothing to contrast it with; set "
            "dataloader_drop_last=True, or another per_device_train_batch_size."
        )


def check_evaluated(dataset: Any) -> None:
    """A TypeError or ValueError where no model can be evaluated on the data set."""
    if isinstance(dataset, PairStream):
        if dataset.training:
            raise ValueError("eval_dataset is a stream that never ends; load it with training=False.")
    elif hasattr(dataset, "column_names"):
        raise _of_rows("eval_dataset", dataset)
    elif not _has_items(dataset):
        raise ValueError("The evaluation needs eval_dataset: a stream of load_pairs, or pairs with a length.")


def _of_rows(name: str, dataset: Any) -> TypeError:
    return TypeError(
        f"{name} is a {type(dataset).__name__} of rows; pass load_pairs(dataset, processor.feature_extractor"
        f"{', training=False' if name == 'eval_dataset' else ''}), with its split if it has several."
    )


def _has_items(dataset: Any) -> bool:
    """Whether its pairs have numbers: torch's `IterableDataset` has a method for them, which is not to be called."""
    names = ("__len__", "__getitem__")
    return all(hasattr(dataset, name) for name in names) and not isinstance(dataset, IterableDataset)
