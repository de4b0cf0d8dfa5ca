import copy

import numpy as np
import pytest
import torch
from transformers import AutoModel, GenerationConfig

from conftest import SMALL_AUDIO
from hf_clap import HfClapCaptioningConfig, HfClapForAudioCaptioning, HfClapModel

SMALL_DECODER = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 64}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = HfClapCaptioningConfig(
        text_config=SMALL_DECODER | {"bos_token_id": 0, "eos_token_id": 0},
        audio_config=dict(SMALL_AUDIO["hf_clap_htsat"]),
        projection_dim=12,
        prefix_length=5,
        audio_length=3,
        mapper_layers=2,
        mapper_heads=4,
    )
    model = HfClapForAudioCaptioning(config).eval()
    with torch.no_grad():  # weights as large as trained ones, so that what is said depends on what is heard
        for parameter in (*model.decoder.parameters(), *model.mapper.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return model


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 200, 64, generator=generator) * torch.tensor([1.0, 5.0, 20.0, 60.0]).view(4, 1, 1, 1)


def mapper_in_numpy(state, embeds, heads):
    """msclap's `models/mapper.py`, TransformerMapper, written out."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    constants = state["prefix_const"]
    outputs = []
    for embed in embeds:
        hidden = np.concatenate([linear(embed, "linear").reshape(-1, constants.shape[1]), constants])
        for layer in range(2):
            attended = norm(hidden, f"layers.{layer}.norm1")
            queries = linear(attended, f"layers.{layer}.attention.query")
            keys, values = np.split(linear(attended, f"layers.{layer}.attention.key_value"), 2, axis=-1)
            mixed = []
            for head in np.split(np.arange(constants.shape[1]), heads):
                scores = queries[:, head] @ keys[:, head].T / np.sqrt(len(head))
                weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
                mixed.append(weights @ values[:, head])
            hidden = hidden + linear(np.concatenate(mixed, axis=1), f"layers.{layer}.attention.output")
            inner = np.maximum(linear(norm(hidden, f"layers.{layer}.norm2"), f"layers.{layer}.linear1"), 0)
            hidden = hidden + linear(inner, f"layers.{layer}.linear2")
        outputs.append(hidden[-len(constants) :])
    return np.stack(outputs)


def test_the_mapper_is_msclaps(model):
    torch.manual_seed(1)
    embeds = torch.nn.functional.normalize(torch.randn(3, 12), dim=-1)
    state = {name: tensor.double().numpy() for name, tensor in model.mapper.state_dict().items()}
    expected = mapper_in_numpy(state, embeds.double().numpy(), heads=4)
    with torch.inference_mode():
        assert np.abs(model.mapper(embeds).numpy() - expected).max() < 1e-5


def greedy_by_hand(model, features, tokens):
    """As msclap's `_generate_beam` with one beam and no stop: the whole sequence anew for each token."""
    with torch.inference_mode():
        _, embeds = model._embed_audio(features)
        hidden = model.mapper(embeds)
        said = []
        for _ in range(tokens):
            token = model.decoder(inputs_embeds=hidden).logits[:, -1].argmax(dim=-1)
            said.append(token)
            hidden = torch.cat([hidden, model.get_input_embeddings()(token)[:, None]], dim=1)
    return torch.stack(said, dim=1)


def test_greedy_captions_are_the_likeliest_tokens(model, features):
    expected = greedy_by_hand(model, features, 8)
    assert len({tuple(row) for row in expected.tolist()}) > 1  # clips are told apart
    said = model.generate(features, max_new_tokens=8, eos_token_id=None)
    assert torch.equal(said, expected)


def test_a_batch_is_its_singles_with_beams(model, features):
    options = {"num_beams": 3, "max_new_tokens": 6, "eos_token_id": 7, "pad_token_id": 0, "length_penalty": 1.0}
    together = model.generate(features, **options)
    assert torch.equal(together, model.generate(features, **options))
    for row, clip in zip(together, features, strict=True):
        alone = model.generate(clip[None], **options)[0]
        assert torch.equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()


def test_beams_find_a_likelier_caption_than_greed(model, features):
    def likelihood(ids):
        with torch.inference_mode():
            scores = model(features, ids).logits.log_softmax(dim=-1)
        return scores.gather(2, ids[..., None]).sum(dim=(1, 2))

    options = {"max_new_tokens": 6, "eos_token_id": None}
    greedy = likelihood(model.generate(features, **options))
    beams = likelihood(model.generate(features, num_beams=8, **options))
    assert (beams >= greedy - 1e-4).all()
    assert (beams > greedy + 1e-3).any()


def msclaps_beams(model, prefix, beams, tokens, stop):
    """
    The best caption by `CLAPWrapper._generate_beam` of msclap 1.3.4, for one clip: beams that have stopped stay among
    the others with the score they had, and all are ranked by their mean log-likelihood.
    """
    embed = model.get_input_embeddings()
    said = torch.zeros(1, 0, dtype=torch.long)
    scores, lengths, stopped = torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    for _ in range(tokens):
        hidden = torch.cat([prefix.expand(len(said), -1, -1), embed(said)], dim=1)
        log_likelihood = model.decoder(inputs_embeds=hidden).logits[:, -1].log_softmax(dim=-1)
        log_likelihood[stopped] = -torch.inf
        log_likelihood[stopped, 0] = 0.0
        lengths = lengths + (~stopped)
        means = (scores[:, None] + log_likelihood) / lengths[:, None]
        best, index = means.flatten().topk(beams)
        source, token = index // means.shape[1], index % means.shape[1]
        said = torch.cat([said[source], token[:, None]], dim=1)
        lengths, stopped = lengths[source], stopped[source] | (token == stop)
        scores = best * lengths
        if stopped.all():
            break
    best = int((scores / lengths).argmax())
    return said[best, : int(lengths[best])].tolist()


@pytest.mark.parametrize(("beams", "least"), [(2, 36), (5, 36)])
def test_beams_say_mostly_what_msclaps_do(model, beams, least):
    """The searches differ in how they rank finished beams against others, and so do a few captions of 40."""
    prefixes = torch.randn(40, 5, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 5, dtype=torch.long)
    options = {"num_beams": beams, "max_new_tokens": 12, "eos_token_id": 7, "pad_token_id": 0, "do_sample": False}
    same = 0
    with torch.inference_mode():
        for prefix in prefixes:
            said = model.decoder.generate(inputs_embeds=prefix[None], attention_mask=mask, **options)[0].tolist()
            same += said == msclaps_beams(model, prefix[None], beams, 12, stop=7)
    print(f"{same} of 40 captions are msclap's")
    assert same >= least


def test_sampling_is_repeatable_by_seed(model, features):
    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(features, do_sample=True, max_new_tokens=10, eos_token_id=None)

    assert torch.equal(sample(0), sample(0))
    assert not torch.equal(sample(0), sample(1))


def test_the_models_own_defaults_are_used_and_kept(tmp_path, model, features):
    model.generation_config = GenerationConfig(max_new_tokens=3, eos_token_id=49, pad_token_id=0)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, HfClapForAudioCaptioning)
    assert loaded.decoder.lm_head.weight is loaded.decoder.transformer.wte.weight
    assert torch.equal(loaded.generate(features), greedy_by_hand(model, features, 3))
    assert loaded.generate(features, max_new_tokens=5).shape == (4, 5)
    assert loaded.generation_config.max_new_tokens == 3


def test_transformers_ways_of_calling_work(model, features):
    """As Seq2SeqTrainer and other callers of `generate` and `forward` do."""
    expected = model.generate(features, max_new_tokens=4, eos_token_id=None)
    ids = torch.zeros(4, 3, dtype=torch.long)
    batch = {"input_features": features, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    same = model.generate(**batch, generation_config=None, max_new_tokens=4, eos_token_id=None)
    assert torch.equal(same, expected)
    config = GenerationConfig(max_new_tokens=4)
    with_scores = model.generate(features, config, return_dict_in_generate=True, output_scores=True)
    assert len(with_scores.scores) == with_scores.sequences.shape[1]
    loss, logits = model(**batch, return_dict=False)
    assert torch.equal(logits, model(**batch).logits)
    assert torch.equal(loss, model(**batch).loss)


def test_lengths_are_those_of_the_caption(model, features):
    """Not of the caption and what the decoder hears before it."""
    expected = greedy_by_hand(model, features, 4)
    assert torch.equal(model.generate(features, max_length=4, eos_token_id=None), expected)
    assert torch.equal(model.generate(features, GenerationConfig(max_length=4), eos_token_id=None), expected)
    assert torch.equal(model.generate(features, max_new_tokens=None, max_length=4, eos_token_id=None), expected)
    first = expected[0, :1].item()  # a caption may end at once
    ended = model.generate(features[:1], max_length=4, eos_token_id=first)
    longer = model.generate(features[:1], max_length=4, min_length=3, eos_token_id=first)
    assert (ended.shape, longer.shape) == ((1, 1), (1, 4))


def test_captions_beyond_the_decoders_positions_are_refused(model, features):
    assert model.generate(features[:1], max_new_tokens=60, min_new_tokens=60).shape == (1, 60)  # the last is not heard
    sentence = "The caption does not fit the 64 positions of the decoder, of which the audio takes 5; shorten it"
    with pytest.raises(ValueError, match=sentence):
        model.generate(features[:1], max_new_tokens=61)
    with pytest.raises(ValueError, match=sentence):
        model(features[:1], torch.zeros(1, 60, dtype=torch.long))


def test_the_vocabulary_can_grow(model):
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(53)
    assert larger.decoder.lm_head.weight is larger.decoder.transformer.wte.weight
    assert larger.decoder.lm_head.weight.shape == (53, 16)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide the language model's width of 16"):
        HfClapCaptioningConfig(text_config=SMALL_DECODER, mapper_heads=3)


def test_windows_of_a_clip_make_one_caption(model, features):
    said = model.generate(features, windows_per_clip=torch.tensor([1, 3]), max_new_tokens=4, eos_token_id=None)
    assert said.shape == (2, 4)
    assert torch.equal(said[:1], model.generate(features[:1], max_new_tokens=4, eos_token_id=None))


def test_loss_is_the_mean_over_real_tokens(model, features):
    ids = torch.randint(0, 50, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.inference_mode():
        output = model(features, ids, attention_mask=mask, labels=ids)
        other = model(features, torch.where(mask.bool(), ids, 3), attention_mask=mask, labels=ids)
    scores = output.logits.double().log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]
    assert output.logits.shape == (4, 6, 50)
    assert output.loss.item() == pytest.approx(-scores[mask.bool()].mean().item(), abs=1e-5)
    assert other.loss.item() == pytest.approx(output.loss.item(), abs=1e-6)


def test_training_reaches_the_mapper_and_the_audio_tower(model, features):
    ids = torch.randint(0, 50, (4, 6))
    model.train()
    model(features, ids, labels=ids).loss.backward()
    model.eval()
    for parameter in (model.mapper.prefix_const, model.audio_model.patch_embed.projection.weight):
        assert parameter.grad.abs().max() > 0
    model.zero_grad()


def test_the_audio_side_is_claps(model, features):
    """The same tower and projection as in `HfClapModel`, so that weights of one fit the other."""
    audio = {name for name in model.state_dict() if name.startswith("audio_")}
    clap = HfClapModel.config_class(audio_config=model.config.audio_config, projection_dim=12)
    with torch.device("meta"):
        assert audio == {name for name in HfClapModel(clap).state_dict() if name.startswith("audio_")}
