import copy
import json
import logging
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F
from transformers import AutoModelForAudioClassification, Trainer, TrainingArguments, pipeline

from conftest import SMALL_AUDIO, noise, tone
from hf_clap import TINY, HfClapConfig, HfClapFeatureExtractor, HfClapForAudioClassification, HfClapModel


def small_classifier(config, seed=0, **fields):
    config = copy.deepcopy(config)
    config.num_labels = 4
    for name, value in fields.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    return HfClapForAudioClassification(config).eval()


@pytest.fixture
def patch_cnn_config():
    return HfClapConfig(audio_config=dict(SMALL_AUDIO["hf_clap_patch_cnn"]), projection_dim=12)


@pytest.fixture
def features():
    return torch.randn(3, 1, 200, 64, generator=torch.Generator().manual_seed(0))


# --- values


def test_logits_are_a_linear_layer_over_the_towers_vector(small_config, features):
    model = small_classifier(small_config)
    with torch.inference_mode():
        pooled = model.audio_model(features).pooler_output.double().numpy()
        logits = model(features).logits.numpy()
    weight = model.classifier.weight.detach().double().numpy()
    bias = model.classifier.bias.detach().double().numpy()
    assert np.abs(weight).max() > 0
    assert np.abs(logits - (pooled @ weight.T + bias)).max() < 1e-5


def test_windows_of_a_clip_are_averaged_before_the_classifier(small_config, features):
    model = small_classifier(small_config)
    with torch.inference_mode():
        pooled = model.audio_model(features).pooler_output
        logits = model(features, windows_per_clip=torch.tensor([1, 2])).logits
        expected = model.classifier(torch.stack([pooled[0], (pooled[1] + pooled[2]) / 2]))
    assert torch.allclose(logits, expected, atol=1e-6)


def test_a_batch_is_its_singles(small_config, features):
    model = small_classifier(small_config)
    with torch.inference_mode():
        batch = model(features).logits
        for index in range(3):
            assert torch.allclose(model(features[index : index + 1]).logits[0], batch[index], atol=1e-6)


def test_padding_does_not_count(patch_cnn_config, features):
    model = small_classifier(patch_cnn_config)
    mask = torch.arange(200) < torch.tensor([[200], [120], [96]])
    with torch.inference_mode():
        logits = model(features, input_features_mask=mask).logits
        assert torch.allclose(logits[1], model(features[1:2, :, :120]).logits[0], atol=1e-6)
        assert not torch.allclose(logits[1], model(features[1:2]).logits[0], atol=1e-5)


def test_fused_clips_are_classified():
    audio_config = dict(SMALL_AUDIO["hf_clap_htsat"]) | {"fusion": True}
    model = small_classifier(HfClapConfig(audio_config=audio_config))
    features = torch.randn(2, 4, 200, 64)
    longer = torch.tensor([[True], [False]])
    with torch.inference_mode():
        logits = model(features, is_longer=longer).logits
        pooled = model.audio_model(features, is_longer=longer).pooler_output
        assert torch.equal(logits, model.classifier(pooled))
        other = model(features, is_longer=~longer).logits
    assert not torch.allclose(logits, other, atol=1e-6)


def test_dropout_is_before_the_classifier_and_in_training_only(patch_cnn_config, features):
    model = small_classifier(patch_cnn_config, classifier_dropout=0.5)
    with torch.inference_mode():
        assert torch.equal(model(features).logits, model(features).logits)
        pooled = model.audio_model(features).pooler_output
        model.train()
        torch.manual_seed(7)
        logits = model(features).logits
        torch.manual_seed(7)
        assert torch.allclose(logits, model.classifier(F.dropout(pooled, 0.5)), atol=1e-6)
    assert small_classifier(patch_cnn_config).train().dropout.p == 0.0


# --- loss


def test_one_label_per_clip_is_cross_entropy(small_config, features):
    model = small_classifier(small_config)
    labels = torch.tensor([2, 0, -100])
    with torch.inference_mode():
        output = model(features, labels=labels)
        as_tuple = model(features, labels=labels.int(), return_dict=False)
    likelihoods = output.logits.double().log_softmax(dim=1)
    expected = -(likelihoods[0, 2] + likelihoods[1, 0]) / 2  # -100 does not count
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert output.loss.item() == pytest.approx(F.cross_entropy(output.logits, labels).item(), abs=1e-6)
    assert torch.equal(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits)
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_any_number_of_labels_is_binary_cross_entropy(small_config, features, dtype):
    model = small_classifier(small_config)
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0.5, 1, 1, 1]], dtype=dtype)
    with torch.inference_mode():
        output = model(features, labels=labels)
    p = output.logits.double().sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert model.config.problem_type == "multi_label_classification"


def test_integers_are_taken_for_many_labels_where_the_configuration_says_so(patch_cnn_config, features):
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]])
    model = small_classifier(patch_cnn_config, problem_type="multi_label_classification")
    with torch.inference_mode():
        output = model(features, labels=labels)
    expected = F.binary_cross_entropy_with_logits(output.logits, labels.float())
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_one_label_that_holds_or_not(patch_cnn_config, features):
    fields = {"num_labels": 1, "problem_type": "multi_label_classification"}
    model = small_classifier(patch_cnn_config, **fields)
    with torch.inference_mode():
        output = model(features, labels=torch.tensor([[1.0], [0.0], [1.0]]))
    p = output.logits[:, 0].sigmoid()
    assert output.loss.item() == pytest.approx(-(p[0] * (1 - p[1]) * p[2]).log().item() / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        (None, torch.tensor([1.0, 0.0, 2.0])),
        (None, torch.tensor([[0, 1, 0, 1]] * 3)),
        (None, torch.tensor([0, 1])),
        ("single_label_classification", torch.tensor([1.0, 0.0, 2.0])),
        ("single_label_classification", torch.ones(3, 4)),
        ("multi_label_classification", torch.tensor([1, 0, 2])),
        ("multi_label_classification", torch.ones(3, 5)),
    ],
)
def test_labels_that_do_not_fit_are_refused(patch_cnn_config, features, problem, labels):
    model = small_classifier(patch_cnn_config, problem_type=problem)
    with pytest.raises(ValueError, match=r"do not fit problem_type=.*pass \(3,\) integers .* or \(3, 4\) floats"):
        model(features, labels=labels)
    assert model.config.problem_type == problem  # what was refused is not remembered


def test_labels_out_of_range_are_refused(patch_cnn_config, features):
    model = small_classifier(patch_cnn_config)
    for label in (4, -1):
        with pytest.raises(ValueError, match=f"Labels such as {label} do not fit; pass classes from 0 to 3"):
            model(features, labels=torch.tensor([0, -100, label]))
    with pytest.raises(ValueError, match=r"Labels such as 5\.0 do not fit; pass floats from 0 to 1"):
        model(features, labels=torch.full((3, 4), 5.0))
    assert model.config.problem_type is None


def test_regression_is_refused(patch_cnn_config, features):
    for fields in ({"problem_type": "regression"}, {"num_labels": 1}):
        with pytest.raises(ValueError, match="There is no regression here; give at least two labels"):
            small_classifier(patch_cnn_config, **fields)(features, labels=torch.ones(3))


def test_gradient_checkpointing_changes_no_gradient(small_config, features):
    for name in ("block_dropout", "hidden_dropout"):
        if hasattr(small_config.audio_config, name):
            setattr(small_config.audio_config, name, 0.0)
    gradients = []
    for checkpointing in (False, True):
        model = small_classifier(small_config).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.audio_model.modules())
        model(features, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0]["classifier.weight"].abs().max() > 0
    assert all(torch.allclose(gradient, gradients[1][name], atol=1e-6) for name, gradient in gradients[0].items())


# --- loading


def test_only_the_classifier_is_new_in_a_clap_checkpoint(processor, tiny_model):
    names = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    model, information = HfClapForAudioClassification.from_pretrained(TINY, **names, output_loading_info=True)
    assert information["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not information["unexpected_keys"]
    assert not information["mismatched_keys"]
    assert (model.config.num_labels, model.config.id2label) == (3, names["id2label"])
    assert not model.training
    inputs = processor(audio=[tone(1.0), noise(12.0)], sampling_rate=16000)
    with torch.inference_mode():
        tower = tiny_model.audio_model(inputs["input_features"], input_features_mask=inputs["input_features_mask"])
        pooled = tower.pooler_output  # (3, hidden): the second clip has two windows
        expected = model.classifier(torch.stack([pooled[0], pooled[1:].mean(dim=0)]))
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"logit_bias_init_value": -10, "logit_scale_text_value": 1.0}])
def test_only_the_classifier_is_new_for_every_tower(tmp_path, small_config, fields):
    for name, value in fields.items():
        setattr(small_config, name, value)
    HfClapModel(small_config).save_pretrained(tmp_path)
    _, information = HfClapForAudioClassification.from_pretrained(tmp_path, num_labels=5, output_loading_info=True)
    assert information["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not information["unexpected_keys"]


def test_save_and_load_gives_the_same_logits(tmp_path, small_config, features):
    model = small_classifier(small_config, classifier_dropout=0.25)
    with torch.inference_mode():
        expected = model(features, labels=torch.rand(3, 4)).logits
        model.save_pretrained(tmp_path)
        for kind in (HfClapForAudioClassification, AutoModelForAudioClassification):
            loaded, information = kind.from_pretrained(tmp_path, output_loading_info=True)
            assert isinstance(loaded, HfClapForAudioClassification)
            assert not any(information[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
            assert torch.equal(loaded(features).logits, expected)
    assert loaded.config.problem_type == "multi_label_classification"
    assert loaded.dropout.p == 0.25


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_the_stock_pipeline_works(tmp_path, caplog, monkeypatch, problem):
    """For clips of one window and of several, one by one and in batches."""
    torch.manual_seed(0)
    labels = {"id2label": {0: "tone", 1: "noise"}, "label2id": {"tone": 0, "noise": 1}}
    model = HfClapForAudioClassification.from_pretrained(TINY, **labels, problem_type=problem)
    extractor = HfClapFeatureExtractor.from_pretrained(TINY)
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    clips = [tone(1.0), noise(12.0), noise(3.0)]
    with torch.inference_mode():
        logits = model(**extractor(clips, sampling_rate=16000)).logits
    scores = logits.softmax(dim=1) if problem == "single_label_classification" else logits.sigmoid()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    classifier = pipeline("audio-classification", model=str(tmp_path), device="cpu")
    sources = [{"array": clip, "sampling_rate": 16000} for clip in clips]
    for results in (classifier(sources), classifier(sources, batch_size=3)):
        for result, row in zip(results, scores, strict=True):
            assert result[0]["score"] >= result[1]["score"]
            found = {entry["label"]: entry["score"] for entry in result}
            assert found == pytest.approx({"tone": row[0].item(), "noise": row[1].item()}, abs=1e-5)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# --- training


@pytest.fixture
def clips():
    """24 clips of a tone or of noise, as features without batch axis; every third is of two windows."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(24):
        window = torch.randn(1, 110, 64, generator=generator)
        if index % 2:
            window[:, :, 20:36] += 12
        rows.append({"window": window, "windows": 2 if index % 3 == 0 else 1, "label": index % 2})
    return rows


def collate(rows):
    return {
        "input_features": torch.stack([row["window"] for row in rows for _ in range(row["windows"])]),
        "windows_per_clip": torch.tensor([row["windows"] for row in rows]),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def train(model, rows, folder, collate=collate, **options):
    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        report_to="none",
        remove_unused_columns=False,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=5,
        learning_rate=3e-2,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        **options,
    )
    return Trainer(
        model,
        arguments,
        data_collator=collate,
        train_dataset=rows,
        eval_dataset=rows[:17],  # not a multiple of the batch
        compute_metrics=lambda predicted: {
            "clips": len(predicted.label_ids),
            "accuracy": float((predicted.predictions.argmax(axis=1) == predicted.label_ids).mean()),
        },
    )


def test_trainer_collates_what_the_extractor_gives(tmp_path, patch_cnn_config):
    """Without a collator of one's own: Trainer makes one of `processing_class`."""
    extractor = HfClapFeatureExtractor.from_pretrained(TINY)
    rows = []
    for number in range(8):
        of_clip = extractor(noise(1.0, 16000, number), sampling_rate=16000, crop="center")
        rows.append({name: value[0] for name, value in of_clip.items()} | {"label": number % 4})
    trainer = train(small_classifier(patch_cnn_config), rows, tmp_path, collate=None, max_steps=1)
    trainer = Trainer(trainer.model, trainer.args, train_dataset=rows, processing_class=extractor)
    assert trainer.train().training_loss > 0


def test_trainer_learns_evaluates_and_saves(tmp_path, patch_cnn_config, clips):
    model = small_classifier(patch_cnn_config, num_labels=2)
    trainer = train(model, clips, tmp_path / "run", num_train_epochs=6)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 18
    assert losses[-1] < 0.2 < 0.5 < losses[0]
    assert after["eval_loss"] < before["eval_loss"] / 2
    assert (after["eval_clips"], after["eval_accuracy"]) == (17, 1.0)
    trainer.save_model(tmp_path / "saved")
    loaded = HfClapForAudioClassification.from_pretrained(tmp_path / "saved")
    batch = collate(clips[:5])
    with torch.inference_mode():
        assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)


def test_trainer_divides_the_loss_of_accumulated_batches_once(tmp_path, patch_cnn_config, clips):
    """8 clips at once and 4 + 4 clips make the same step."""
    steps = []
    for accumulated in (1, 2):
        model = small_classifier(patch_cnn_config, num_labels=2)
        options = {"gradient_accumulation_steps": accumulated, "max_steps": 1, "optim": "sgd"}
        trainer = train(model, clips[:8], tmp_path, **options)
        trainer.args.per_device_train_batch_size = trainer._train_batch_size = 8 // accumulated
        before = model.classifier.weight.detach().clone()
        trainer.train()
        steps.append(model.classifier.weight.detach() - before)
    assert steps[0].abs().max() > 1e-4
    assert torch.allclose(*steps, atol=1e-7)


def test_trainer_learns_many_labels(tmp_path, patch_cnn_config, clips):
    def collate_many(rows):
        batch = collate(rows)
        return batch | {"labels": torch.stack([batch["labels"], torch.ones(len(rows))], dim=1)}

    model = small_classifier(patch_cnn_config, num_labels=2)
    trainer = train(model, clips, tmp_path, collate_many, num_train_epochs=6)
    trainer.compute_metrics = None
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before / 2
    assert model.config.problem_type == "multi_label_classification"
    batch = collate(clips)
    with torch.inference_mode():
        scores = model.eval()(**batch | {"labels": None}).logits.sigmoid()
    assert torch.equal(scores[:, 0] > 0.5, batch["labels"] == 1)
    assert (scores[:, 1] > 0.5).all()


@pytest.mark.parametrize("frozen", [True, False])
def test_the_example_trains_and_tests_a_classifier_for_each_fold(tmp_path, monkeypatch, capsys, frozen):
    """With Cnn14, whose batch norms and dropouts would not stay still in a tower that is merely without gradients."""
    config = HfClapConfig(audio_config=dict(SMALL_AUDIO["hf_clap_cnn14"]), projection_dim=12)
    extractor = HfClapFeatureExtractor(sampling_rate=16000, f_max=8000, max_length_s=0.5)
    torch.manual_seed(0)
    base = HfClapForAudioClassification(config)
    base.save_pretrained(tmp_path / "base")
    extractor.save_pretrained(tmp_path / "base")
    rows = ["file_name,label,fold"]
    for index in range(14):
        label, fold = "noise" if index % 2 else "tone", 1 if index < 6 else 2
        clip = noise(0.5, seed=index) if label == "noise" else tone(0.5, frequency=400 + 40 * index)
        soundfile.write(tmp_path / f"{index}.wav", clip, 16000)
        rows.append(f"{index}.wav,{label},{fold}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))

    script = Path(__file__).parents[1] / "examples" / "finetune_classifier.py"
    options = ["--model", tmp_path / "base", "--output", tmp_path / "out", "--epochs", 2, "--batch-size", 4]
    arguments = [script, tmp_path, *options, *(["--freeze-tower"] if frozen else [])]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    runpy.run_path(str(script), run_name="__main__")

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["mean"] == pytest.approx((results["accuracy"]["1"] + results["accuracy"]["2"]) / 2)
    assert f"mean accuracy of 2 folds: {results['mean']:.4f}" in capsys.readouterr().out
    for fold, clips in (("1", range(6)), ("2", range(6, 14))):
        model = HfClapForAudioClassification.from_pretrained(tmp_path / "out" / f"fold-{fold}")
        assert model.config.id2label == {0: "noise", 1: "tone"}
        waveforms = [soundfile.read(tmp_path / f"{index}.wav")[0] for index in clips]
        with torch.inference_mode():
            found = model(**extractor(waveforms, sampling_rate=16000)).logits.argmax(dim=1).tolist()
        hits = [index % 2 == 1 - label for index, label in zip(clips, found, strict=True)]
        assert results["accuracy"][fold] == pytest.approx(np.mean(hits))
        tower = model.audio_model.state_dict()
        same = [torch.equal(tensor, tower[name]) for name, tensor in base.audio_model.state_dict().items()]
        assert all(same) if frozen else not any(same)
        assert not torch.equal(model.classifier.weight, base.classifier.weight)
