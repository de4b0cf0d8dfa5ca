"""`Trainer` for audio-caption pairs: negatives of all processes, gradient caching, exact resume, retrieval metrics."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from .collator import PairCollator
from .contrastive_step import contrastive_step, unwrapped, whole
from .data import PairStream
from .losses import LOSSES, caption_groups
from .model_card import training_card, write_card
from .modeling_hf_clap import bounded
from .optimization import (
    clamp_logit_scale,
    freeze,
    hold_still,
    parameter_groups,
    scalars_to_vectors,
    vectors_to_scalars,
)
from .pair_loader import PairLoader
from .retrieval import retrieval_metrics
from .training_arguments import (
    HfClapTrainingArguments,
    check_effects,
    check_evaluated,
    check_model,
    check_pairs,
)
from .training_checkpoint import check_complete, last_checkpoint, new_checkpoint

EVALUATION_CHUNK = 1024  # rows of the logits of the whole evaluation set that are in memory at a time

SETTINGS_OF_CARD = (
    "max_steps",
    "learning_rate",
    "audio_learning_rate",
    "text_learning_rate",
    "freeze_audio",
    "freeze_text",
    "micro_batch_size",
    "seed",
)


class HfClapTrainer(Trainer):
    """
    transformers' `Trainer` for `HfClapModel` and pairs.

    * The loss contrasts the pairs of all processes, with gradients, in one batch of any size (`micro_batch_size`).
    * A `PairStream` for training goes on exactly where a checkpoint was written; it needs `max_steps`.
    * A checkpoint is there when it is complete: killed while writing one, the run goes on from the one before.
    * Evaluation gives the loss of the whole evaluation set as one batch, and `retrieval_metrics`.

    Args:
        model: an `HfClapModel`, also with adapters of peft; none where `model_init` makes it, as for
            `hyperparameter_search`.
        args: `HfClapTrainingArguments`.
        processing_class: the `HfClapProcessor`, saved with the model; makes the batches, unless there is a
            `data_collator`.
        train_dataset, eval_dataset: streams of `load_pairs`, or data sets of `Pair` with a length; to train in one
            process also an `IterableDataset` of them.
        options: further arguments of `Trainer`, but for `compute_metrics`, `preprocess_logits_for_metrics` and
            `compute_loss_func`.

    Raises:
        TypeError, ValueError: for arguments that cannot be used, or that would have no effect.

    Example:

    ```python
    processor = HfClapProcessor.from_pretrained(hf_clap.TINY)
    trainer = HfClapTrainer(
        HfClapModel.from_pretrained(hf_clap.TINY),
        HfClapTrainingArguments("finetuned", max_steps=500, per_device_train_batch_size=128, freeze_audio=True),
        processing_class=processor,
        train_dataset=load_pairs("user/sounds", processor.feature_extractor),
    )
    trainer.train()
    ```
    """

    args: HfClapTrainingArguments
    eval_dataset: Any

    def __init__(
        self,
        model: Any = None,
        args: HfClapTrainingArguments | None = None,
        *,
        processing_class: Any,
        data_collator: Any = None,
        **options: Any,
    ):
        if not isinstance(args, HfClapTrainingArguments):
            raise TypeError(f"args is a {type(args).__name__}; pass HfClapTrainingArguments.")
        check_effects(args, options)
        self.args, self.train_dataset = args, options.get("train_dataset")
        if options.get("model_init") is None:
            self._take(model)
        if isinstance(self.train_dataset, PairStream):
            args.ignore_data_skip = True  # the stream's own state leads to the place, without reading up to it
        evaluated = options.get("eval_dataset")
        for dataset in evaluated.values() if isinstance(evaluated, dict) else [evaluated]:
            if dataset is not None:
                check_evaluated(dataset)
        collator = PairCollator(processing_class) if data_collator is None else data_collator
        self._loader: PairLoader | None = None
        self._last_log: tuple[float, int] | None = None
        self._staging: Path | None = None
        self._logged_in_training = 0  # entries of the log
        super().__init__(model, args, data_collator=collator, processing_class=processing_class, **options)
        self.add_callback(_ClampLogitScale())
        if args.enable_jit_checkpoint:
            self.add_callback(_SaveWhenTerminated(self))
        self._scalars = scalars_to_vectors(cast("Any", self.model)) if self.is_fsdp_enabled else []

    def _take(self, model: Any) -> None:
        """See that the model can be trained, and freeze what is to be frozen."""
        check_model(model)
        if self.train_dataset is not None:
            check_pairs(self.train_dataset, self.args, model.config.loss)
        freeze(model, audio=self.args.freeze_audio, text=self.args.freeze_text)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        model = super().call_model_init(trial)
        self._take(model)
        if getattr(self, "is_fsdp_enabled", False):  # the first model is made before that is known
            self._scalars = scalars_to_vectors(model)
        return model

    def train(
        self,
        resume_from_checkpoint: str | os.PathLike[str] | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """
        See `Trainer.train`.

        Raises:
            ValueError: if the run to resume has done all of its `max_steps`, or was one of other data or other groups
                of parameters.
            FileNotFoundError: if it is not a checkpoint.
        """
        if resume_from_checkpoint is True and (last := last_checkpoint(str(self.args.output_dir))) is not None:
            resume_from_checkpoint = str(last)
        if resume_from_checkpoint is not None and not isinstance(resume_from_checkpoint, bool):
            resume_from_checkpoint = os.fspath(resume_from_checkpoint)
            state = Path(resume_from_checkpoint, TRAINER_STATE_NAME)
            if not state.is_file():
                raise FileNotFoundError(f"{resume_from_checkpoint} has no {TRAINER_STATE_NAME}; name a checkpoint.")
            check_complete(Path(resume_from_checkpoint))
            steps = TrainerState.load_from_json(str(state)).global_step
            if 0 < self.args.max_steps <= steps:
                raise ValueError(f"{resume_from_checkpoint} is the end of its run of {steps} steps; raise max_steps.")
        self._last_log, self._logged_in_training = None, 0
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self._logged_in_training = len(self.state.log_history)
        return output

    def get_train_dataloader(self) -> DataLoader:
        if not isinstance(self.train_dataset, PairStream):
            return super().get_train_dataloader()
        part = self.train_dataset.split(self.args.process_index, self.args.world_size)
        self._loader = self._pair_loader(part, self._train_batch_size)
        return self._loader

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As for evaluation."""
        return self.get_eval_dataloader(test_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """This process's share of the evaluation set."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        rank, processes = self.args.process_index, self.args.world_size
        check_evaluated(dataset)
        if isinstance(dataset, PairStream):
            return self._pair_loader(dataset.split(rank, processes), self.args.eval_batch_size)
        share = Subset(dataset, range(rank, len(dataset), processes))
        return DataLoader(
            share,
            self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            generator=torch.Generator(),  # it would draw a number of those that the training's dropout has
        )

    def _pair_loader(self, pairs: PairStream, batch_size: int) -> PairLoader:
        args = self.args
        options = {"pin_memory": args.dataloader_pin_memory, "prefetch_factor": args.dataloader_prefetch_factor}
        return PairLoader(pairs, batch_size, self.data_collator, args.dataloader_num_workers, **options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        args = self.args
        if self.optimizer is not None or (args.audio_learning_rate is None and args.text_learning_rate is None):
            return super().create_optimizer(model)
        model = self.model if model is None else model
        make, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(args, model)
        if not {"params", "model", "optimizer_dict"}.isdisjoint(options):
            raise ValueError(f"optim={args.optim} groups parameters itself; leave the towers' learning rates out.")
        groups = parameter_groups(
            model,
            args.learning_rate,
            audio_learning_rate=args.audio_learning_rate,
            text_learning_rate=args.text_learning_rate,
            weight_decay=args.weight_decay,
        )
        self.optimizer = make(groups, **options)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        if callable(set_mode := getattr(self.optimizer, "train", None)):  # schedule-free optimizers
            set_mode()
        hold_still(unwrapped(model), self.args.freeze_batch_norm)
        share = self.current_gradient_accumulation_steps
        loss = contrastive_step(
            model,
            inputs,
            micro_batch_size=self.args.micro_batch_size,
            chunk_size=self.args.loss_chunk_size,
            backward=lambda loss: self.accelerator.backward(loss / share),
            no_sync=partial(self.accelerator.no_sync, model),
        )
        return loss / share

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loss of all pairs as one batch, whatever the batch size and number of processes, and their retrieval."""
        from accelerate.utils import gather_object  # Trainer has needed it before

        # not through DDP, which would wait for processes that have more batches
        model: Any = self.model_wrapped if self.is_fsdp_enabled else self.model
        core = unwrapped(model)
        model.eval()
        self.callback_handler.eval_dataloader = dataloader  # what the progress bar counts
        parts = []
        for batch in dataloader:
            batch = self._prepare_inputs({name: value for name, value in batch.items() if name != "return_loss"})
            with self.accelerator.autocast():  # which the model has of itself from the first training on only
                outputs = model(**batch)
            groups = caption_groups(batch["input_ids"], batch.get("attention_mask"))
            embeds = outputs.audio_embeds, outputs.text_embeds
            parts.append((*(embed.float().cpu() for embed in embeds), groups.cpu()))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        parts = gather_object(parts)  # process after process
        if not parts:
            raise ValueError("The evaluation set holds no pairs; check eval_dataset.")
        audio_embeds, text_embeds, groups = map(torch.cat, zip(*parts, strict=True))
        scale = bounded(whole(core.logit_scale)).float().cpu()
        bias = None if core.logit_bias is None else whole(core.logit_bias).float().cpu()
        loss = LOSSES[core.config.loss](
            audio_embeds, text_embeds, scale, bias, groups=groups, chunk_size=EVALUATION_CHUNK
        )
        metrics = {"loss": loss.item(), **retrieval_metrics(audio_embeds, text_embeds, groups)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=len(groups))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds `pairs_per_s` of all processes since the last log, and the rows skipped in this process, if any."""
        if "loss" in logs:
            now = time.perf_counter(), self.state.global_step
            if self._last_log is not None and now[1] > self._last_log[1]:
                pairs = (now[1] - self._last_log[1]) * self.get_total_train_batch_size(self.args)
                logs["pairs_per_s"] = round(pairs / (now[0] - self._last_log[0]), 2)
            self._last_log = now
            if self._loader is not None:
                self.state.epoch = self.state.global_step / self.state.max_steps  # Trainer counts from the resume
                skipped = self._loader.skipped
                logs |= {f"skipped_{reason}": skipped[reason] for reason in ("audio", "caption") if skipped[reason]}
        super().log(logs, start_time)

    def create_model_card(  # type: ignore[override]
        self,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | list[str] | None = None,
    ) -> None:
        """
        Writes our card, with the settings and the metrics of the last evaluation of these weights; arguments are
        those of `Trainer`.
        """
        if not self.is_world_process_zero():
            return
        model = unwrapped(self.model)
        sets = {"eval_": {"dataset_name": "evaluation set"}}
        if isinstance(self.eval_dataset, dict):  # huggingface_hub puts what differs in the name alone together
            sets = {f"eval_{name}_": {"dataset_name": name, "dataset_config": name} for name in self.eval_dataset}
        measured = {"task_type": "retrieval", "dataset_type": "held-out"}
        results = [
            measured | of_set | {"metric_type": name.removeprefix(prefix), "metric_value": value}
            for prefix, of_set in sets.items()
            for name, value in self._last_evaluation(prefix).items()
            if name.startswith(prefix) and "r@" in name
        ]
        output, processor = str(self.args.output_dir), cast("Any", self.processing_class)
        card = training_card(
            model_name or self.hub_model_id or Path(output).name,
            model.get_base_model() if hasattr(model, "get_base_model") else model,  # inside adapters
            processor.feature_extractor,
            results=results,
            settings={name: getattr(self.args, name) for name in SETTINGS_OF_CARD}
            | {"batch_size": self.get_total_train_batch_size(self.args)},
            base_model=finetuned_from,
            datasets=[dataset] if isinstance(dataset, str) else dataset or (),
            license=license,
        )
        cast("Any", card.data).tags += [tags] if isinstance(tags, str) else tags or []
        write_card(output, card)

    def _last_evaluation(self, prefix: str) -> dict[str, float]:
        """The log's last entry with metrics of that prefix: of the best weights, if the training ended with these."""
        log, best = self.state.log_history, self.state.best_model_checkpoint
        if self._logged_in_training and self.args.load_best_model_at_end and best is not None:
            step = int(best.rpartition("-")[2])
            in_training = [entry for entry in log[: self._logged_in_training] if entry["step"] == step]
            log = in_training + log[self._logged_in_training :]
        return next((entry for entry in reversed(log) if f"{prefix}loss" in entry), {})

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, None if state_dict is None else vectors_to_scalars(state_dict, self._scalars))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        args = self.args
        run = Path(super()._get_output_dir(trial))
        folder = run / f"checkpoint-{self.state.global_step}"
        with new_checkpoint(folder, args.should_save, self.accelerator.wait_for_everyone) as written:
            self._staging = written.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            if self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(folder)
                if args.should_save:
                    self.state.save_to_json(str(written / TRAINER_STATE_NAME))
        if args.should_save:
            # by time: those of an older, longer run in the folder have higher numbers
            rotate_checkpoints(str(run), args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)
        if args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # otherwise the folder is about to be renamed
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._loader is not None:  # here, because this is what every process saves
            Path(output_dir, self._loader_state_name()).write_text(json.dumps(self._loader.state_dict()))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            raise ValueError(
                f"{checkpoint} has other groups of parameters ({error}); go on with the same towers frozen, and rates "
                "of the same ones given."
            ) from error

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        was_streamed = any(Path(checkpoint).glob("pairs_*.json"))
        if was_streamed != (self._loader is not None):
            kind = "a stream" if was_streamed else "a list"
            raise ValueError(f"{checkpoint} was written in training on {kind} of pairs; go on with the same.")
        if self._loader is None:
            return
        path = Path(checkpoint, self._loader_state_name())
        if not path.is_file():
            raise FileNotFoundError(
                f"{checkpoint} does not say where process {self.args.process_index} was in its pairs; go on with as "
                "many processes as wrote it."
            )
        self._loader.load_state_dict(json.loads(path.read_text()))

    def _loader_state_name(self) -> str:
        return f"pairs_{self.args.process_index}.json"


class _ClampLogitScale(TrainerCallback):
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clamp_logit_scale(unwrapped(kwargs["model"]))


class _SaveWhenTerminated(TrainerCallback):
    """
    transformers' `enable_jit_checkpoint`: after a SIGTERM, a checkpoint and the end of the training; here with the end
    of a step, as in its midst a stream is past the batches that the weights have not met. All processes stop together.
    """

    def __init__(self, trainer: Trainer):
        self.accelerator = trainer.accelerator
        self.of_transformers: Any = trainer.pop_callback(JITCheckpointCallback)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        manager = self.of_transformers.jit_manager
        requested = torch.tensor(float(manager.is_checkpoint_requested), device=self.accelerator.device)
        if self.accelerator.reduce(requested) > 0:
            manager.is_checkpoint_requested = False
            control.should_save = control.should_training_stop = True

    def on_train_end(self, *arguments: Any, **options: Any) -> None:
        self.of_transformers.on_train_end(*arguments, **options)
