import copy
import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from conftest import SMALL_AUDIO, SMALL_TEXT, noise, tone
from hf_clap import (
    HfClapAudioModelWithProjection,
    HfClapConfig,
    HfClapModel,
    HfClapTextModelWithProjection,
    contrastive_loss,
)
from hf_clap.losses import LOSSES
from hf_clap.modeling_hf_clap import mean_of_windows


def small_model(config, seed=0):
    torch.manual_seed(seed)
    return HfClapModel(config).eval()


def assert_same_outputs(one, other, tolerance=0.0):
    for name in ("audio_embeds", "text_embeds", "logits_per_audio"):
        assert torch.allclose(one[name], other[name], atol=tolerance, rtol=0), name


# --- what every transformers model must do, for each audio tower


def test_save_and_load_gives_the_same_outputs(tmp_path, small_config, small_inputs):
    model = small_model(small_config)
    model.save_pretrained(tmp_path)
    for loaded in (HfClapModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, HfClapModel)
        with torch.inference_mode():
            assert_same_outputs(loaded(**small_inputs), model(**small_inputs))


def test_loading_fills_every_tensor(tmp_path, small_config):
    """Loading goes through the meta device: a tensor that is made at construction only would be garbage after it."""
    model = small_model(small_config)
    model.save_pretrained(tmp_path)
    loaded, information = HfClapModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(information[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    buffers = dict(model.named_buffers())  # also those that are not stored
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in loaded.named_buffers())


def test_halves_load_from_the_whole_checkpoint(tmp_path, small_config, small_inputs):
    model = small_model(small_config)
    model.save_pretrained(tmp_path)
    audio, audio_loading = HfClapAudioModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    text, text_loading = HfClapTextModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    for information in (audio_loading, text_loading):
        assert not information["missing_keys"]
        assert not information["unexpected_keys"]
    text_inputs = {name: small_inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        whole = model(**small_inputs)
        assert torch.equal(audio(small_inputs["input_features"]).audio_embeds, whole.audio_embeds)
        assert torch.equal(text(**text_inputs).text_embeds, whole.text_embeds)


def test_outputs_are_consistent(small_config, small_inputs):
    model = small_model(small_config)
    with torch.inference_mode():
        output = model(**small_inputs, return_loss=True)
        as_tuple = model(**small_inputs, return_dict=False)
        audio = model.get_audio_features(small_inputs["input_features"])
    assert torch.allclose(output.audio_embeds.norm(dim=-1), torch.ones(3), atol=1e-6)
    assert torch.allclose(output.text_embeds.norm(dim=-1), torch.ones(3), atol=1e-6)
    cosines = output.audio_embeds @ output.text_embeds.T
    assert torch.allclose(output.logits_per_audio, cosines / 0.07, atol=1e-4)
    assert torch.equal(output.logits_per_text, output.logits_per_audio.T)
    assert output.loss.item() == pytest.approx(
        contrastive_loss(output.audio_embeds, output.text_embeds, 1 / 0.07).item(), abs=1e-5
    )
    assert torch.equal(as_tuple[0], output.logits_per_audio)
    assert torch.equal(audio.pooler_output, output.audio_embeds)
    # the towers' own vectors, before the projections
    with torch.inference_mode():
        tower = model.audio_model(small_inputs["input_features"])
    assert torch.equal(output.audio_model_output.pooler_output, tower.pooler_output)
    assert output.audio_model_output.pooler_output.shape == (3, 16)
    assert torch.equal(output.text_model_output.pooler_output, output.text_model_output.last_hidden_state[:, 0])


@pytest.mark.parametrize("shape", [(1, 200, 64), (1, 1, 200, 128), (1, 2, 200, 64)])
def test_features_of_another_shape_are_refused(small_config, shape):
    with pytest.raises(ValueError, match=r"do not fit; pass \(batch, 1, frames, 64\)"):
        small_model(small_config).encode_audio(torch.zeros(shape))


def test_loss_needs_pairs(small_config, small_inputs):
    model = small_model(small_config)
    with pytest.raises(ValueError, match="2 clips and 3 texts; pass one caption for each clip"):
        model(**small_inputs | {"input_features": small_inputs["input_features"][:2]}, return_loss=True)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_captions_that_read_the_same_are_not_contrasted(small_config, small_inputs, name):
    small_config.loss, small_config.logit_bias_init_value = name, -2.0
    model = small_model(small_config)
    inputs = copy.deepcopy(small_inputs)
    inputs["input_ids"][1] = inputs["input_ids"][0]
    with torch.inference_mode():
        output = model(**inputs, return_loss=True)
    sides = (output.audio_embeds, output.text_embeds, 1 / 0.07, -2.0)
    expected = LOSSES[name](*sides, groups=torch.tensor([0, 0, 1]))
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert output.loss.item() < LOSSES[name](*sides).item()


def test_a_batch_is_its_singles(small_config, small_inputs):
    model = small_model(small_config)
    with torch.inference_mode():
        batch = model(**small_inputs)
        for index in range(3):
            single = model(**{name: tensor[index : index + 1] for name, tensor in small_inputs.items()})
            assert torch.allclose(batch.audio_embeds[index], single.audio_embeds[0], atol=1e-6)
            assert torch.allclose(batch.text_embeds[index], single.text_embeds[0], atol=1e-6)


@pytest.mark.parametrize("gradients", [False, True])
def test_hooks_see_all_clips_at_once(small_config, gradients):
    tower = HfClapModel(small_config).eval().audio_model
    clips, kept = torch.randn(50, 1, 200, 64), {}
    with torch.set_grad_enabled(gradients):
        expected = tower(clips).pooler_output
        for name, part in tower.named_modules():
            if name and not isinstance(part, torch.nn.ModuleList):
                part.register_forward_hook(lambda part, inputs, output, name=name: kept.update({name: len(output)}))
        output = tower(clips).pooler_output
    assert torch.allclose(output, expected, atol=1e-6)
    assert min(kept.values()) >= 50  # more where a part of a clip is an entry: a patch, a window


def test_gradient_checkpointing_changes_no_gradient(small_config, small_inputs):
    small_config.projection_dropout = small_config.text_config.hidden_dropout_prob = 0.0
    small_config.text_config.attention_probs_dropout_prob = 0.0
    for name in ("block_dropout", "hidden_dropout"):
        if hasattr(small_config.audio_config, name):
            setattr(small_config.audio_config, name, 0.0)
    gradients = []
    for checkpointing in (False, True):
        model = small_model(copy.deepcopy(small_config)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.audio_model.modules())
        model(**small_inputs, return_loss=True).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_sdpa_is_eager(tmp_path, small_config, small_inputs):
    small_model(small_config).save_pretrained(tmp_path)
    with torch.inference_mode():
        outputs = [
            HfClapModel.from_pretrained(tmp_path, attn_implementation=attention)(**small_inputs)
            for attention in ("sdpa", "eager")
        ]
    assert_same_outputs(*outputs, tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(tmp_path, small_config, small_inputs, dtype):
    model = small_model(small_config)
    model.save_pretrained(tmp_path)
    half = HfClapModel.from_pretrained(tmp_path, dtype=dtype)
    assert half.dtype == dtype
    with torch.inference_mode():
        expected, output = model(**small_inputs), half(**small_inputs)
    assert F.cosine_similarity(output.audio_embeds.float(), expected.audio_embeds).min() > 0.999
    assert F.cosine_similarity(output.text_embeds.float(), expected.text_embeds).min() > 0.999


@pytest.mark.parametrize("tower", ["hf_clap_cnn14", "hf_clap_htsat"])
def test_torch_export_gives_the_same_audio_embeddings(tower):
    """The fixed-window towers are one graph."""
    config = HfClapConfig(text_config=copy.deepcopy(SMALL_TEXT), audio_config=dict(SMALL_AUDIO[tower]))
    model = small_model(config)
    features = torch.randn(2, 1, 64, 64)
    expected = model.audio_model(features).pooler_output
    for gradients in (True, False):  # SDPA lays out its output otherwise
        with torch.set_grad_enabled(gradients):
            exported = torch.export.export(model.audio_model, (features,)).module()
        with torch.inference_mode():
            assert torch.allclose(exported(features)["pooler_output"], expected, atol=1e-6)
        assert torch.allclose(exported(features)["pooler_output"], expected, atol=1e-6)


def test_compiles_without_a_break_for_any_batch(small_config):
    """One graph for each tower, and no second one for another number of clips, windows or texts."""
    model = small_model(small_config)
    torch._dynamo.reset()
    options = {"backend": "eager", "fullgraph": True, "dynamic": True}
    audio, text = torch.compile(model.encode_audio, **options), torch.compile(model.encode_text, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (20, 27):
            features = torch.randn(batch, 1, 200, 64, generator=generator) * 20 - 40
            assert torch.allclose(audio(features), model.encode_audio(features), atol=1e-5)
            texts = {
                "input_ids": torch.randint(5, 30, (batch, batch - 5), generator=generator),
                "attention_mask": torch.ones(batch, batch - 5, dtype=torch.long),
            }
            assert torch.allclose(text(**texts), model.encode_text(**texts), atol=1e-5)


def test_a_replica_without_parameters_runs(small_config, small_inputs):
    """`DataParallel`, which Trainer takes on several GPUs, makes parameters plain attributes of its replicas."""
    model = small_model(small_config)
    with torch.inference_mode():
        expected = model(**small_inputs)
        replica = copy.deepcopy(model)
        for module in replica.modules():
            for name in list(module._parameters):
                parameter = module._parameters.pop(name)
                module.__dict__[name] = None if parameter is None else parameter.data
        assert not list(replica.parameters())
        assert_same_outputs(replica(**small_inputs), expected, tolerance=1e-5)


# --- parts


def test_a_decoder_is_pooled_at_its_last_token(small_inputs):
    config = HfClapConfig(
        text_config={"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 60},
        audio_config=dict(SMALL_AUDIO["hf_clap_patch_cnn"]),
        text_pooling="last",
        projection="mlp",
        projection_dim=8,
    )
    model = small_model(config)
    ids, mask = small_inputs["input_ids"], small_inputs["attention_mask"]
    other = torch.where(mask.bool(), ids, (ids + 1) % 60)  # other padding tokens
    with torch.inference_mode():
        assert torch.allclose(
            model.encode_text(ids, attention_mask=mask), model.encode_text(other, attention_mask=mask)
        )


@pytest.mark.parametrize("tokens", [38, 39])
def test_robertas_positions_start_late(tokens):
    text_config = copy.deepcopy(SMALL_TEXT) | {"model_type": "roberta", "pad_token_id": 1}
    model = small_model(HfClapConfig(text_config=text_config, audio_config=dict(SMALL_AUDIO["hf_clap_patch_cnn"])))
    ids = torch.full((1, tokens), 5)
    if tokens == 38:
        assert model.encode_text(ids).norm().item() == pytest.approx(1, abs=1e-6)
    else:
        with pytest.raises(ValueError, match="39 tokens does not fit the 38 positions"):
            model.encode_text(ids)


def test_of_an_encoder_decoder_only_the_encoder_is_built(tmp_path, small_inputs):
    text_config = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = HfClapConfig(
        text_config=text_config | {"vocab_size": 60},
        audio_config=dict(SMALL_AUDIO["hf_clap_patch_cnn"]),
        text_pooling="mean",
    )
    model = small_model(config)
    assert not [name for name, _ in model.named_parameters() if "decoder" in name]
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        assert_same_outputs(HfClapModel.from_pretrained(tmp_path)(**small_inputs), model(**small_inputs))


@pytest.mark.parametrize("model_type", ["bart", "clip", "siglip_text_model"])
def test_texts_that_no_encoder_takes_alone_are_refused(model_type):
    text_config = AutoConfig.for_model(model_type)
    config = HfClapConfig(text_config=text_config, audio_config=dict(SMALL_AUDIO["hf_clap_patch_cnn"]))
    with pytest.raises(
        ValueError, match=f"transformers has no text encoder for '{model_type}' that runs alone; choose"
    ):
        HfClapModel(config)


def test_xlnet_reads_texts_of_any_length():
    text_config = {"model_type": "xlnet", "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "vocab_size": 60}
    audio_config = dict(SMALL_AUDIO["hf_clap_patch_cnn"])
    model = small_model(HfClapConfig(text_config=text_config, audio_config=audio_config, text_pooling="mean"))
    with torch.inference_mode():
        assert model.encode_text(torch.ones(1, 600, dtype=torch.long)).norm().item() == pytest.approx(1)


def test_a_text_that_is_too_long_is_refused(small_config):
    with pytest.raises(ValueError, match="41 tokens does not fit the 40 positions"):
        small_model(small_config).encode_text(torch.ones(1, 41, dtype=torch.long))


def test_no_pooler_that_nothing_uses(small_config):
    assert small_model(small_config).text_model.pooler is None
    small_config.text_pooling = "pooler"
    assert small_model(small_config).text_model.pooler is not None


def test_windows_of_a_clip_are_averaged(small_config, small_inputs):
    model = small_model(small_config)
    features = small_inputs["input_features"]
    with torch.inference_mode():
        windows = model.encode_audio(features)
        clips = model.encode_audio(features, windows_per_clip=torch.tensor([1, 2]))
    expected = torch.stack([windows[0], F.normalize(windows[1] + windows[2], dim=0)])
    assert torch.allclose(clips, expected, atol=1e-6)
    means = mean_of_windows(torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([1, 2]))
    assert means.tolist() == [[1.0], [4.0]]


def test_logits_are_scaled_and_shifted(small_config):
    small_config.logit_scale_init_value, small_config.logit_bias_init_value = math.log(7), -3
    model = small_model(small_config)
    audio, text = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    expected = torch.tensor([[7.0, 4.2, 0.0], [0.0, 5.6, -7.0]]) - 3
    assert torch.allclose(model.similarity(audio, text), expected, atol=1e-5)
    assert model.logit_scale_text is None
    model.logit_scale.data.fill_(9.0)
    assert model.similarity(audio, text)[0, 0].item() == pytest.approx(97.0)  # clamped at 100


def test_texts_may_have_a_logit_scale_of_their_own(tmp_path, small_config, small_inputs):
    small_config.logit_scale_text_value = math.log(3)
    model = small_model(small_config)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        output = HfClapModel.from_pretrained(tmp_path)(**small_inputs)
    cosine = output.audio_embeds @ output.text_embeds.T
    assert torch.allclose(output.logits_per_audio, cosine / 0.07, atol=1e-5)
    assert torch.allclose(output.logits_per_text, 3 * cosine.T, atol=1e-5)


def test_the_same_clip_alone_in_a_batch_and_twice(tiny_model, processor):
    clips = [
        noise(5.0),
        tone(0.03),
        noise(0.4, seed=1),
        tone(1.0),
        noise(2.2, seed=2),
        tone(10.0),
        noise(23.0, seed=3),
    ]

    def embed(batch):
        with torch.inference_mode():
            return tiny_model.encode_audio(**processor(audio=batch, sampling_rate=16000))

    together = embed(clips)
    assert together.shape == (7, 553)
    assert torch.equal(together, embed(clips))
    for index, clip in enumerate(clips):
        alone = embed(clip)
        assert torch.equal(alone, embed(clip))
        assert (together[index] - alone[0]).abs().max() < 1e-6


def test_a_text_configuration_may_be_of_another_precision(small_config, small_inputs):
    small_config.text_config.dtype = "bfloat16"
    model = HfClapModel(small_config).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        assert model(**small_inputs).logits_per_audio.isfinite().all()
