"""HfClapTrainer and transformers' own Trainer on pairs."""

import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

import hf_clap
from conftest import SMALL_AUDIO, SMALL_TEXT, noise, tone
from hf_clap.losses import caption_groups, contrastive_loss
from hf_clap.modeling_hf_clap import bounded
from hf_clap.retrieval import retrieval_metrics
from hf_clap.training_checkpoint import last_checkpoint

CLIPS = 24


def small_model(processor, dropout=0.1):
    """A small model that reads with the bundled tokenizer."""
    torch.manual_seed(0)
    text = SMALL_TEXT | {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 256}
    text |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    audio = dict(SMALL_AUDIO["hf_clap_patch_cnn"])
    config = hf_clap.HfClapConfig(text_config=text, audio_config=audio, projection_dim=12, projection_dropout=dropout)
    return hf_clap.HfClapModel(config)


@pytest.fixture(scope="module")
def pairs():
    """Tones and noises of one second that a small model can tell apart."""
    sounds = [tone(1.0, 16000, 150.0 * 1.2**n) if n % 2 else noise(1.0, 16000, n) * n for n in range(CLIPS)]
    return [hf_clap.Pair(sound.astype(np.float32), f"sound number {n}") for n, sound in enumerate(sounds)]


def arguments(folder, **options):
    defaults = {"max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1}
    defaults |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3}
    return hf_clap.HfClapTrainingArguments(str(folder), **(defaults | options))


def trainer_of(model, processor, folder, pairs=None, eval_dataset=None, callbacks=None, **options):
    return hf_clap.HfClapTrainer(
        model,
        arguments(folder, **options),
        processing_class=processor,
        train_dataset=pairs,
        eval_dataset=eval_dataset,
        callbacks=callbacks,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def same_weights(model, other):
    return all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), other.parameters(), strict=True))


def test_training_lowers_the_loss_and_the_saved_model_is_the_trained_one(processor, pairs, tmp_path):
    model = small_model(processor, dropout=0.0)
    trainer = trainer_of(
        model, processor, tmp_path, pairs, pairs, max_steps=30, per_device_train_batch_size=24, learning_rate=1e-2
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.5
    assert after["eval_audio_to_text_r@10"] > before["eval_audio_to_text_r@10"]
    assert all(entry["pairs_per_s"] > 0 for entry in trainer.state.log_history[2:30])
    trainer.save_model()
    trainer.create_model_card(license="apache-2.0")
    reloaded = hf_clap.HfClapModel.from_pretrained(tmp_path)
    inputs = hf_clap.PairCollator(hf_clap.HfClapProcessor.from_pretrained(tmp_path))(pairs)
    with torch.no_grad():
        expected = model.eval()(**inputs)
        assert torch.allclose(reloaded(**inputs).logits_per_audio, expected.logits_per_audio, atol=1e-5)
    card = (tmp_path / "README.md").read_text()
    assert f"value: {after['eval_audio_to_text_r@10']}" in card
    assert "| batch_size | 24 |" in card


def test_transformers_trainer_does_the_same(processor, pairs, tmp_path):
    """In one process and one pass, its training and evaluation losses are ours."""
    options = {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1}
    options |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "seed": 3, "use_cpu": True}
    stock = Trainer(
        small_model(processor),
        TrainingArguments(str(tmp_path / "stock"), per_device_eval_batch_size=CLIPS, **options),
        data_collator=hf_clap.PairCollator(processor),
        train_dataset=pairs,
        eval_dataset=pairs,
    )
    stock.train()
    ours = trainer_of(small_model(processor), processor, tmp_path / "ours", pairs, pairs, **options)
    ours.train()
    assert losses(ours) == pytest.approx(losses(stock), abs=1e-6)
    assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], abs=1e-5)


def test_transformers_trainer_streams_too(processor, pair_shards, tmp_path):
    extractor = processor.feature_extractor
    stock = Trainer(
        small_model(processor),
        TrainingArguments(
            str(tmp_path),
            max_steps=2,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            accelerator_config={"dispatch_batches": False},  # otherwise Accelerate would join batches of other lengths
        ),
        data_collator=hf_clap.PairCollator(processor),
        train_dataset=hf_clap.load_pairs(pair_shards, extractor),
        eval_dataset=hf_clap.load_pairs(pair_shards, extractor, training=False),
    )
    assert math.isfinite(stock.train().training_loss)
    assert 0 < stock.evaluate()["eval_loss"] < 10


@pytest.mark.parametrize("options", [{"micro_batch_size": 2}, {"loss_chunk_size": 3}])
def test_parts_of_a_batch_train_as_the_whole(processor, pairs, tmp_path, options):
    runs = []
    for extra in ({}, options):
        trainer = trainer_of(small_model(processor, dropout=0.0), processor, tmp_path, pairs, **extra)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[1] == pytest.approx(runs[0], abs=1e-4)


def test_accumulated_batches_count_by_their_mean(processor, pairs, tmp_path):
    """With a learning rate of 0 the logged loss is the mean of the two batches' losses."""
    model = small_model(processor, dropout=0.0)
    options = {"learning_rate": 0.0, "max_grad_norm": 0.0}
    single = trainer_of(copy.deepcopy(model), processor, tmp_path, pairs, max_steps=2, **options)
    single.train()
    double = trainer_of(model, processor, tmp_path, pairs, max_steps=1, gradient_accumulation_steps=2, **options)
    double.train()
    assert losses(double)[0] == pytest.approx(sum(losses(single)) / 2, abs=1e-5)


def test_towers_have_their_rates_and_frozen_ones_keep_still(processor, pairs, tmp_path):
    model = small_model(processor)
    start = copy.deepcopy(model.state_dict())
    trainer = trainer_of(
        model, processor, tmp_path, pairs, freeze_audio=True, text_learning_rate=1e-5, weight_decay=0.1, max_steps=2
    )
    trainer.train()
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {1e-3, 1e-5}
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]) == name.startswith("audio_model."), name


def test_logit_scale_stays_below_100(processor, pairs, tmp_path):
    model = small_model(processor)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100.0) + 1)
    trainer_of(model, processor, tmp_path, pairs, max_steps=1).train()
    assert model.logit_scale.item() == pytest.approx(math.log(100.0))


def test_evaluation_is_of_the_whole_set_whatever_the_batches(processor, pairs, pair_shards, tmp_path):
    model = small_model(processor)
    stream = hf_clap.load_pairs(pair_shards, processor.feature_extractor, training=False)
    inputs = hf_clap.PairCollator(processor)(list(stream))
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    groups = caption_groups(inputs["input_ids"], inputs["attention_mask"])
    embeds = outputs.audio_embeds, outputs.text_embeds
    expected = contrastive_loss(*embeds, bounded(model.logit_scale), groups=groups).item()
    for size in (5, 64):
        trainer = trainer_of(model, processor, tmp_path, eval_dataset=stream, per_device_eval_batch_size=size)
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-5)
        for name, value in retrieval_metrics(*embeds, groups).items():
            assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [{"bf16": True}, {"gradient_checkpointing": True}, {"torch_compile": True, "torch_compile_backend": "eager"}],
    ids=["bf16", "gradient_checkpointing", "torch_compile"],
)
def test_options_of_trainer_keep_the_loss(processor, pairs, tmp_path, options):
    runs = []
    for extra in ({}, options):
        trainer = trainer_of(small_model(processor, dropout=0.0), processor, tmp_path, pairs, max_steps=2, **extra)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[1] == pytest.approx(runs[0], abs=0.05 if "bf16" in options else 1e-4)


class StopAt(TrainerCallback):
    """Leaves the training as an error would, after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def streamed(processor, pair_shards, folder, callbacks=None, workers=2, **options):
    model = small_model(processor)  # with dropout: what it draws must go on too
    stream = hf_clap.load_pairs(pair_shards, processor.feature_extractor, buffer_size=10, seed=5)
    options = {"max_steps": 9, "save_strategy": "steps", "save_steps": 2, "dataloader_num_workers": workers} | options
    return trainer_of(model, processor, folder, stream, callbacks=callbacks, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_stopped_goes_on_to_the_bit(processor, pair_shards, tmp_path, workers):
    whole = streamed(processor, pair_shards, tmp_path / "whole", workers=workers)
    whole.train()
    broken = streamed(processor, pair_shards, tmp_path / "broken", [StopAt(7)], workers=workers, save_total_limit=2)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert last_checkpoint(tmp_path / "broken").name == "checkpoint-6"
    assert len(list((tmp_path / "broken").iterdir())) == 2  # save_total_limit
    resumed = streamed(processor, pair_shards, tmp_path / "broken", workers=workers)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)  # 9 steps: the first 6 from the checkpoint, the others done again
    assert [entry["epoch"] for entry in resumed.state.log_history if "loss" in entry][-1] == 1.0
    assert same_weights(resumed.model, whole.model)
    with pytest.raises(ValueError, match="is the end of its run of 9 steps; raise max_steps"):
        streamed(processor, pair_shards, tmp_path / "broken", workers=workers).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("moment", ["on_step_begin", "on_pre_optimizer_step", "on_optimizer_step"])
def test_a_run_that_is_terminated_goes_on_to_the_bit(processor, pair_shards, tmp_path, moment):
    """After a SIGTERM that comes at any moment of a step, with all of its batches fetched."""
    handler = signal.getsignal(signal.SIGTERM)
    options = {"workers": 0, "gradient_accumulation_steps": 2}
    whole = streamed(processor, pair_shards, tmp_path / "whole", **options)
    whole.train()
    stopped = streamed(processor, pair_shards, tmp_path / "stopped", **options, enable_jit_checkpoint=True)
    terminating = TrainerCallback()
    setattr(terminating, moment, lambda _, state, *__, **___: terminate(stopped) if state.global_step == 4 else None)
    stopped.add_callback(terminating)
    stopped.train()
    assert last_checkpoint(tmp_path / "stopped").name == "checkpoint-5"
    assert signal.getsignal(signal.SIGTERM) is handler
    resumed = streamed(processor, pair_shards, tmp_path / "stopped", **options)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    assert same_weights(resumed.model, whole.model)


def terminate(trainer):
    """This process by a SIGTERM, of which the trainer knows at once."""
    [callback] = [one for one in trainer.callback_handler.callbacks if hasattr(one, "of_transformers")]
    manager = callback.of_transformers.jit_manager
    manager.kill_wait = 0
    os.kill(os.getpid(), signal.SIGTERM)
    while not manager.is_checkpoint_requested:
        time.sleep(0.01)


def test_a_new_run_keeps_its_checkpoints_beside_those_of_a_longer_one(processor, pairs, tmp_path):
    for steps in (20, 30):
        (tmp_path / f"checkpoint-{steps}").mkdir()
        os.utime(tmp_path / f"checkpoint-{steps}", (steps, steps))  # long ago
    options = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    trainer_of(small_model(processor), processor, tmp_path, pairs, **options).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4"]


def test_a_model_made_by_the_trainer_is_the_one_that_is_given(processor, pairs, tmp_path):
    """`model_init`, with which `hyperparameter_search` makes a new one for every trial."""
    start = small_model(processor)
    given = trainer_of(copy.deepcopy(start), processor, tmp_path, pairs, freeze_audio=True)
    given.train()
    made = hf_clap.HfClapTrainer(
        args=arguments(tmp_path, freeze_audio=True),
        model_init=lambda: copy.deepcopy(start),
        processing_class=processor,
        train_dataset=pairs,
    )
    for _ in range(2):
        made.train()
        assert same_weights(made.model, given.model)
        assert not any(weight.requires_grad for weight in made.model.audio_model.parameters())
    for model_init in (lambda: torch.nn.Linear(1, 1), lambda: "model"):
        with pytest.raises(TypeError, match="pass an HfClapModel"):
            hf_clap.HfClapTrainer(args=arguments(tmp_path), model_init=model_init, processing_class=processor)


def test_a_full_disk_leaves_the_checkpoint_before(processor, pair_shards, tmp_path, monkeypatch):
    trainer = streamed(processor, pair_shards, tmp_path, workers=0, save_steps=3)
    save = trainer._save_optimizer_and_scheduler

    def full_at_6(folder):
        if trainer.state.global_step == 6:
            raise OSError(28, "No space left on device")
        save(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", full_at_6)
    with pytest.raises(OSError, match="checkpoint-6 cannot be written"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    whole = streamed(processor, pair_shards, tmp_path / "whole", workers=0)
    whole.train()
    resumed = streamed(processor, pair_shards, tmp_path, workers=0)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)


KEEP_BEST = {
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "save_total_limit": 1,
}


def test_best_checkpoint_is_found_under_its_final_name(processor, pairs, tmp_path):
    trainer = trainer_of(small_model(processor), processor, tmp_path, pairs, pairs, **KEEP_BEST)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / f"checkpoint-{trainer.state.best_global_step}")
    assert json.loads((last_checkpoint(tmp_path) / "trainer_state.json").read_text())["best_model_checkpoint"] in {
        str(path) for path in tmp_path.iterdir()
    }


def card_results(folder):
    results = ModelCard.load(folder / "README.md").data.eval_results
    return {(result.dataset_name, result.metric_type): result.metric_value for result in results}


def test_the_card_has_the_numbers_of_its_weights(processor, pairs, tmp_path):
    options = KEEP_BEST | {"learning_rate": 0.3, "max_steps": 6}
    trainer = trainer_of(small_model(processor), processor, tmp_path, pairs, pairs, **options)
    trainer.train()
    assert trainer.state.best_global_step < 6
    trainer.create_model_card()
    before = card_results(tmp_path)
    metrics = trainer.evaluate()
    assert before == {
        ("evaluation set", name.removeprefix("eval_")): value for name, value in metrics.items() if "r@" in name
    }
    trainer.create_model_card()
    assert card_results(tmp_path) == before


@pytest.mark.parametrize(("kept", "step"), [("run/checkpoint-2", 2), (None, 3)])
def test_the_best_weights_are_those_that_were_saved(processor, pairs, tmp_path, kept, step):
    """Trainer evaluates more often than it saves, if it is told to."""
    trainer = trainer_of(small_model(processor), processor, tmp_path, pairs, pairs, **KEEP_BEST)
    trainer.state.log_history = [{"step": number, "eval_loss": 1.0 / number} for number in (1, 2, 3)]
    trainer.state.best_global_step, trainer.state.best_model_checkpoint = 3, kept
    trainer._logged_in_training = 3
    assert trainer._last_evaluation("eval_")["step"] == step
    trainer.state.log_history.append({"step": 3, "eval_loss": 0.5})  # asked for after training
    assert trainer._last_evaluation("eval_")["eval_loss"] == 0.5


def test_the_card_of_adapters_says_how_they_are_used(processor, pairs, tmp_path, small_checkpoint):
    model = hf_clap.HfClapModel.from_pretrained(small_checkpoint)
    adapted = get_peft_model(model, LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    name = str(tmp_path / "adapters")
    trainer = trainer_of(adapted, processor, name, pairs)
    trainer.save_model()
    trainer.create_model_card(model_name=name)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "adapters" / "README.md").read_text(), re.DOTALL)[1]
    tagger = {}
    exec(code.rpartition("print")[0], tagger)
    sounds = [np.zeros(16000, np.float32), pairs[0].audio]
    expected = hf_clap.pipeline(adapted, processor=processor)(sounds, ["a", "b"], sampling_rate=16000)
    assert tagger["tagger"](sounds, ["a", "b"], sampling_rate=16000) == expected


def test_the_card_names_each_evaluation_set(processor, pairs, tmp_path):
    sets = {"even": pairs[::2], "odd": pairs[1::2]}
    trainer = trainer_of(small_model(processor), processor, tmp_path, pairs, sets, eval_strategy="steps", eval_steps=2)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.create_model_card()
    results = card_results(tmp_path)
    assert {name for name, _ in results} == {"even", "odd"}
    for (name, metric), value in results.items():
        assert metrics[f"eval_{name}_{metric}"] == value


def test_evaluation_in_bfloat16_is_the_same_before_and_after_training(processor, pairs, tmp_path):
    options = {"bf16": True, "learning_rate": 0.0, "freeze_batch_norm": True, "max_steps": 1}
    trainer = trainer_of(small_model(processor), processor, tmp_path, pairs, pairs, **options)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == before
    exact = trainer_of(small_model(processor), processor, tmp_path, eval_dataset=pairs).evaluate()["eval_loss"]
    assert 1e-6 < abs(before - exact) < 0.05


def test_bad_settings_are_refused(processor, pairs, tmp_path):
    trainer = trainer_of(small_model(processor), processor, tmp_path, pairs)
    with pytest.raises(ValueError, match="needs eval_dataset"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="holds no pairs"):
        trainer.evaluate([])
    with pytest.raises(TypeError, match="pass HfClapTrainingArguments"):
        hf_clap.HfClapTrainer(small_model(processor), TrainingArguments(str(tmp_path)), processing_class=processor)
    with pytest.raises(ValueError, match="compute_metrics is not called here"):
        hf_clap.HfClapTrainer(
            small_model(processor), arguments(tmp_path), processing_class=processor, compute_metrics=lambda _: {}
        )
    with pytest.raises(ValueError, match="compute_loss_func is not called here"):
        hf_clap.HfClapTrainer(
            small_model(processor), arguments(tmp_path), processing_class=processor, compute_loss_func=print
        )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    with pytest.raises(ValueError, match="optimizers has its own rates; leave out audio_learning_rate and"):
        hf_clap.HfClapTrainer(
            small_model(processor),
            arguments(tmp_path, text_learning_rate=1e-5),
            processing_class=processor,
            optimizers=(optimizer, None),
        )
    with pytest.raises(TypeError, match="A dict is not a Pair; read the data with load_pairs"):
        trainer_of(small_model(processor), processor, tmp_path, [{"audio": 1, "text": 2}] * 8).train()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect"),
        ({"auto_find_batch_size": True}, "would leave negatives out; set micro_batch_size where memory is short"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length is for texts, and pairs are none; leave it"),
        ({"fp16": True, "use_cpu": True}, "choose bf16=True, or neither"),
        ({"freeze_audio": True, "audio_learning_rate": 1e-3}, "freeze_audio=True leaves nothing to"),
        ({"per_device_train_batch_size": 1}, "nothing to contrast it with; raise per_device_train_batch_size"),
        ({"audio_learning_rate": -1.0}, "audio_learning_rate=-1.0 is not possible; it must be at least 0"),
        ({"text_learning_rate": math.nan}, "text_learning_rate=nan is not possible; it must be at least 0"),
        ({"bf16_full_eval": True}, "fp16_full_eval and bf16_full_eval have no effect here; choose bf16=True"),
    ],
)
def test_options_without_effect_are_refused(processor, pairs, tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        trainer_of(small_model(processor), processor, tmp_path, pairs, **options)


@pytest.mark.parametrize("kind", [hf_clap.HfClapForAudioClassification, str, type(None)])
def test_what_is_no_model_and_no_processor_is_refused(processor, tmp_path, small_checkpoint, kind):
    model = None if kind is type(None) else small_checkpoint
    if kind is hf_clap.HfClapForAudioClassification:
        model = kind.from_pretrained(small_checkpoint, num_labels=2)
    sentence = rf"^model is a {type(model).__name__}; pass an HfClapModel, also with adapters of peft\.$"
    with pytest.raises(TypeError, match=sentence):
        trainer_of(model, processor, tmp_path)
    with pytest.raises(TypeError, match=r"^A NoneType makes no batches; pass the model's HfClapProcessor\.$"):
        trainer_of(small_model(processor), None, tmp_path)


class Iterated(torch.utils.data.IterableDataset):
    """Pairs of one's own, with a length but without numbers."""

    def __iter__(self):
        return iter([])

    def __len__(self):
        return CLIPS


def test_data_sets_of_the_wrong_kind_are_refused(processor, pairs, tmp_path):
    model = small_model(processor)
    trainer_of(model, processor, tmp_path, Iterated())  # which one process may read
    with pytest.raises(TypeError, match="train_dataset is a set; pass a stream of load_pairs, or pairs with a length"):
        trainer_of(model, processor, tmp_path, set(range(3)))
    rows = datasets.Dataset.from_dict({"audio": ["a.wav"] * 3, "text": ["a"] * 3})
    for data in (rows, rows.to_iterable_dataset(), datasets.DatasetDict({"train": rows})):
        with pytest.raises(TypeError, match=rf"is a {type(data).__name__} of rows; pass load_pairs\(dataset, proc"):
            trainer_of(model, processor, tmp_path, data)
    for evaluation in (Iterated(), set(range(3))):
        with pytest.raises(ValueError, match="needs eval_dataset: a stream of load_pairs, or pairs with a length"):
            trainer_of(model, processor, tmp_path).evaluate(evaluation)
    for held_out in (rows, {"one": pairs, "other": rows}):
        with pytest.raises(TypeError, match=r"eval_dataset is a Dataset of rows; pass load_pairs\(.*training=False"):
            trainer_of(model, processor, tmp_path, pairs, held_out)
    for few in ([], pairs[:1]):
        with pytest.raises(ValueError, match=f"train_dataset has a length of {len(few)}; it must be at least 2"):
            trainer_of(model, processor, tmp_path, few)
    model.config.loss = "sigmoid"
    with pytest.raises(ValueError, match="train_dataset has a length of 0; it must be at least 1"):
        trainer_of(model, processor, tmp_path, [])
    trainer_of(model, processor, tmp_path, pairs[:1])


def test_a_rest_of_one_pair_is_refused(processor, pairs, tmp_path):
    """Its loss is 0, and the optimizer would move the weights by what it remembers."""
    model = small_model(processor)
    with pytest.raises(ValueError, match=r"The last batch of 17 pairs would be one alone.*dataloader_drop_last=True"):
        trainer_of(model, processor, tmp_path, pairs[:17])
    trainer_of(model, processor, tmp_path, pairs[:18])
    dropping = trainer_of(model, processor, tmp_path, pairs[:17], dataloader_drop_last=True)
    dropping.train()
    assert min(losses(dropping)) > 0


def test_parts_of_streams_are_refused(processor, pair_shards, tmp_path):
    """What is in a part differs from epoch to epoch, so that the pairs of the other part are not held out."""
    train = hf_clap.load_pairs(pair_shards, processor.feature_extractor).split(0, 2)
    test = hf_clap.load_pairs(pair_shards, processor.feature_extractor, training=False).split(1, 2)
    trainer = trainer_of(small_model(processor), processor, tmp_path, train, test)
    for run in (trainer.train, trainer.evaluate):
        with pytest.raises(hf_clap.PairError, match="The stream is split already; pass the whole one"):
            run()


def test_streams_of_the_wrong_kind_are_refused(processor, pair_shards, tmp_path):
    endless = hf_clap.load_pairs(pair_shards, processor.feature_extractor)
    once = hf_clap.load_pairs(pair_shards, processor.feature_extractor, training=False)
    with pytest.raises(ValueError, match="load it with training=True"):
        trainer_of(small_model(processor), processor, tmp_path, once)
    with pytest.raises(ValueError, match="load it with training=False"):
        trainer_of(small_model(processor), processor, tmp_path, endless).evaluate(endless)
    for evaluated in (endless, {"name": endless}):  # before the training
        with pytest.raises(ValueError, match="load it with training=False"):
            trainer_of(small_model(processor), processor, tmp_path, endless, evaluated)
    with pytest.raises(ValueError, match="train_sampling_strategy=sequential is for lists; leave it out"):
        trainer_of(small_model(processor), processor, tmp_path, endless, train_sampling_strategy="sequential")


def test_evaluation_leaves_the_training_as_it_was(processor, pairs, tmp_path):
    runs = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = trainer_of(small_model(processor), processor, tmp_path, pairs, pairs[:4], **options)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[1]) == losses(runs[0])  # with dropout
    assert same_weights(runs[1].model, runs[0].model)


def test_what_cannot_be_gone_on_from_is_refused(processor, pairs, pair_shards, tmp_path):
    done = trainer_of(small_model(processor), processor, tmp_path, pairs, save_strategy="steps", save_steps=4)
    done.train()
    with pytest.raises(ValueError, match=r"checkpoint-4 is the end of its run of 4 steps; raise max_steps\."):
        done.train(resume_from_checkpoint=tmp_path / "checkpoint-4")
    with pytest.raises(FileNotFoundError, match=r"none has no trainer_state\.json; name a checkpoint\."):
        done.train(resume_from_checkpoint=str(tmp_path / "none"))
    options = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True}
    stream = hf_clap.load_pairs(pair_shards, processor.feature_extractor)
    streamed = trainer_of(small_model(processor), processor, tmp_path / "weights", stream, **options)
    streamed.train()
    with pytest.raises(FileNotFoundError, match="lacks optimizer, scheduler, rng_state and cannot be gone on from"):
        streamed.train(resume_from_checkpoint=str(tmp_path / "weights" / "checkpoint-2"))
    (tmp_path / "checkpoint-4" / "scheduler.pt").unlink()
    longer = trainer_of(small_model(processor), processor, tmp_path, pairs, max_steps=6)
    with pytest.raises(FileNotFoundError, match="checkpoint-4 lacks scheduler and cannot be gone on from; write"):
        longer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("first", "second", "options", "sentence"),
    [
        ("a stream", "a list", {}, "checkpoint-2 was written in training on a stream of pairs; go on with the same"),
        ("a list", "a stream", {}, "checkpoint-2 was written in training on a list of pairs; go on with the same"),
        ("a stream", "two", {}, "stream whose number of streams was 1, and here it is 2; go on with the same"),
        ("a stream", "a stream", {"text_learning_rate": 1e-5}, "checkpoint-2 has other groups of parameters"),
        ("a stream", "a stream", {"freeze_audio": True}, "checkpoint-2 has other groups of parameters"),
    ],
)
def test_a_run_of_another_kind_is_not_gone_on_with(
    processor, pairs, pair_shards, tmp_path, first, second, options, sentence
):
    stream = hf_clap.load_pairs(pair_shards, processor.feature_extractor)
    data = {"a list": pairs, "a stream": stream, "two": hf_clap.interleave_pairs([stream, stream])}
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer_of(small_model(processor), processor, tmp_path, data[first], max_steps=2, **saving).train()
    other = trainer_of(small_model(processor), processor, tmp_path, data[second], **saving, **options)
    with pytest.raises(ValueError, match=sentence):
        other.train(resume_from_checkpoint=True)


WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_trainer import *
processor = hf_clap.HfClapProcessor.from_pretrained(hf_clap.TINY)
stream = hf_clap.load_pairs(sys.argv[2], processor.feature_extractor, seed=5)
held_out = hf_clap.load_pairs(sys.argv[2], processor.feature_extractor, training=False)
trainer = trainer_of(small_model(processor), processor, sys.argv[3], stream, held_out, per_device_eval_batch_size=5)
trainer.train()
metrics = trainer.evaluate()
few = list(held_out)[:13]
losses_of = [trainer.evaluate(few)["eval_loss"]]
losses_of += [trainer.predict(data).metrics["test_loss"] for data in (few, held_out)]
if trainer.is_world_process_zero():
    trainer.save_model()

class TerminateOne(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 2 and args.process_index == 1:
            terminate(stopped)

stopped = trainer_of(
    small_model(processor), processor, sys.argv[3] + "-stopped", stream, callbacks=[TerminateOne()], max_steps=9,
    enable_jit_checkpoint=True,
)
stopped.train()
assert stopped.state.global_step == 3, stopped.state.global_step
if trainer.is_world_process_zero():
    print(json.dumps([trainer.args.world_size, losses(trainer), metrics, losses_of]))
"""


def test_two_processes(processor, pair_shards, tmp_path):
    """Their evaluation is that of one process; the loss is that of the batch of both, of 16 pairs."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    finished = subprocess.run(
        [*command, os.path.dirname(__file__), str(pair_shards), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    world_size, of_run, metrics, (of_few, predicted_few, predicted) = json.loads(finished.stdout.splitlines()[-1])
    assert world_size == 2
    assert last_checkpoint(tmp_path / "run-stopped").name == "checkpoint-3"  # of both, when one was terminated
    assert (predicted_few, predicted) == (of_few, metrics["eval_loss"])
    model = hf_clap.HfClapModel.from_pretrained(tmp_path / "run")
    held_out = hf_clap.load_pairs(pair_shards, processor.feature_extractor, training=False)
    alone = trainer_of(model, processor, tmp_path / "alone", eval_dataset=held_out).evaluate()
    for name in alone:
        if "loss" in name or "r@" in name:
            assert metrics[name] == pytest.approx(alone[name], abs=1e-5), name

    # the first step by hand: each process's first 8 pairs, as one batch
    stream = hf_clap.load_pairs(pair_shards, processor.feature_extractor, seed=5)
    batch = [pair for rank in range(2) for _, pair in zip(range(8), stream.split(rank, 2), strict=False)]
    model = small_model(processor, dropout=0.0)  # evaluation of the same weights: see the tolerance
    loss = model.eval()(**hf_clap.PairCollator(processor)(batch)).loss.item()
    assert of_run[0] == pytest.approx(loss, rel=0.25)
    assert of_run[0] > math.log(8)
