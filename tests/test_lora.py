"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by peft: on either tower of every model."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

import hf_clap
from conftest import SMALL_AUDIO, SMALL_TEXT, noise
from hf_clap import HfClapConfig, HfClapForAudioClassification, HfClapModel
from hf_clap.optimization import hold_still

# What a fine-tuner would adapt: the layers that hold most weights. `query` and `value` are names of BERT's attention
# as well as of HTS-AT's, so that they mean both towers.
TARGETS = {
    "hf_clap_cnn14": r"audio_model\.blocks\.\d+\.convs\.\d+|text_model\..*\.(query|value)",
    "hf_clap_htsat": ["query", "value"],
    "hf_clap_patch_cnn": ["pointwise", "query", "value"],
}
TOWERS = sorted(TARGETS)


def saved_base(tower, folder, kind=HfClapModel, **fields):
    """The folder of a model of random weights."""
    config = HfClapConfig(
        audio_config=dict(SMALL_AUDIO[tower]), text_config=copy.deepcopy(SMALL_TEXT), projection_dim=12, **fields
    )
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return folder


def adapted(base, tower):
    """`base` with adapters that change what it says: peft makes them so that they change nothing yet."""
    modules_to_save = ["classifier"] if isinstance(base, HfClapForAudioClassification) else None
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=TARGETS[tower], modules_to_save=modules_to_save))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def outputs(model, inputs):
    with torch.inference_mode():
        return model(**inputs)


def assert_close(one, other, tolerance=0.0):
    for name in ("audio_embeds", "text_embeds", "logits_per_audio"):
        assert torch.allclose(one[name], other[name], atol=tolerance, rtol=0), name


def assert_differ(one, other):
    for name in ("audio_embeds", "text_embeds"):
        assert (one[name] - other[name]).abs().max() > 1e-3, name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tower", TOWERS)
def test_only_adapters_get_gradients(tmp_path, small_inputs, tower, checkpointing):
    base = HfClapModel.from_pretrained(saved_base(tower, tmp_path))
    if checkpointing:
        base.gradient_checkpointing_enable()
    model = adapted(base, tower).train()
    model(**small_inputs, return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        assert (parameter.grad is not None) == ("lora_" in name), name
    for side in ("audio_model", "text_model"):
        gradients = [parameter.grad for name, parameter in model.named_parameters() if f".{side}." in name]
        assert sum(gradient.abs().sum() for gradient in gradients if gradient is not None) > 0, side


@pytest.mark.parametrize("tower", TOWERS)
def test_adapters_alone_are_saved_and_loaded(tmp_path, small_inputs, tower):
    base = saved_base(tower, tmp_path / "base")
    untouched = outputs(HfClapModel.from_pretrained(base), small_inputs)
    model = adapted(HfClapModel.from_pretrained(base), tower)
    expected = outputs(model, small_inputs)
    assert_differ(expected, untouched)
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    by_peft = PeftModel.from_pretrained(HfClapModel.from_pretrained(base), tmp_path / "adapter").eval()
    assert_close(outputs(by_peft, small_inputs), expected)
    with by_peft.disable_adapter():
        # where nothing is around a convolution, Cnn14 folds the norm after it
        assert_close(outputs(by_peft, small_inputs), untouched, tolerance=1e-5)
    # transformers' own way: the adapter's folder names its base
    assert_close(outputs(HfClapModel.from_pretrained(tmp_path / "adapter").eval(), small_inputs), expected)


@pytest.mark.parametrize("tower", TOWERS)
def test_merged_adapters_give_the_same_embeddings(tmp_path, small_inputs, tower):
    model = adapted(HfClapModel.from_pretrained(saved_base(tower, tmp_path / "base")), tower)
    expected = outputs(model, small_inputs)
    merged = model.merge_and_unload()
    assert type(merged) is HfClapModel
    assert_close(outputs(merged, small_inputs), expected, tolerance=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded, information = HfClapModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not information["missing_keys"]
    assert not information["unexpected_keys"]
    assert_close(outputs(loaded, small_inputs), expected, tolerance=1e-5)


def test_training_adapters_lowers_the_loss(tmp_path, small_inputs):
    base = HfClapModel.from_pretrained(saved_base("hf_clap_htsat", tmp_path))
    before = copy.deepcopy(base.state_dict())
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["query", "value"]))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.03)
    losses = []
    for _ in range(30):
        loss = model(**small_inputs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    after = model.unload().state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if "running_" not in name)


@pytest.mark.parametrize("tower", ["hf_clap_cnn14", "hf_clap_htsat"])
def test_adapters_that_are_loaded_are_the_trained_ones(tmp_path, small_inputs, tower):
    """The statistics of the base's batch norms are in no adapter, and so the training leaves them alone."""
    base = saved_base(tower, tmp_path / "base")
    model = adapted(HfClapModel.from_pretrained(base), tower)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running_" in name}
    start = outputs(model, small_inputs)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.5)
    for _ in range(3):
        model.train()
        hold_still(model)
        model(**small_inputs, return_loss=True).loss.backward()
        optimizer.step()
    trained = outputs(model.eval(), small_inputs)
    assert_differ(trained, start)
    assert len(before) >= 2
    assert all(torch.equal(model.get_buffer(name), value) for name, value in before.items())
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(HfClapModel.from_pretrained(base), tmp_path / "adapter").eval()
    assert_close(outputs(loaded, small_inputs), trained)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_classifier_is_trained_beside_its_adapters(tmp_path, small_inputs, tower):
    base = saved_base(tower, tmp_path / "base", HfClapForAudioClassification, num_labels=4)
    inputs = {"input_features": small_inputs["input_features"], "labels": torch.tensor([0, 1, 3])}
    model = adapted(HfClapForAudioClassification.from_pretrained(base), tower)
    model(**inputs).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[2] for name in trained} == {"audio_model", "classifier"}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].bias += torch.arange(4)
    expected = outputs(model, inputs).logits
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(HfClapForAudioClassification.from_pretrained(base), tmp_path / "adapter")
    assert torch.equal(outputs(loaded.eval(), inputs).logits, expected)
    assert torch.allclose(outputs(loaded.merge_and_unload(), inputs).logits, expected, atol=1e-5)


def test_labels_are_those_of_the_adapters_that_are_on():
    tagger = hf_clap.pipeline(device="cpu")
    sound, labels = noise(1.0), ["white noise", "a church bell", "rain"]

    def same_as_a_fresh_one():
        scores = tagger(sound, labels, sampling_rate=16000)
        fresh = hf_clap.HfClapPipeline(tagger.model, tagger.processor)
        assert scores == fresh(sound, labels, sampling_rate=16000)
        return scores

    plain = same_as_a_fresh_one()
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(tagger.model, config)
    adapted = same_as_a_fresh_one()
    assert adapted != plain
    by_peft = hf_clap.pipeline(model, tagger.processor, device="cpu")  # a PeftModel is taken too
    assert by_peft(sound, labels, sampling_rate=16000) == adapted
    model.add_adapter("other", config)
    model.set_adapter("other")
    assert same_as_a_fresh_one() not in (plain, adapted)
    with model.disable_adapter():
        assert same_as_a_fresh_one() == plain
    model.set_adapter("default")
    assert same_as_a_fresh_one() == adapted
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", 3.0)
    assert same_as_a_fresh_one() not in (plain, adapted)
    model.merge_and_unload()
    assert same_as_a_fresh_one() != plain
