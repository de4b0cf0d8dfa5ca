import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

import hf_clap
from hf_clap import unpadded_encoder
from hf_clap.linear import ONEDNN_DTYPES, through_onednn
from hf_clap.unpadded_encoder import UNPADDED

SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "max_position_embeddings": 40,
}
MASKS = {
    "none": None,
    "all": torch.ones(4, 9),
    "right": torch.tensor([[1] * length + [0] * (9 - length) for length in (9, 1, 4, 9)]),
    "holes": torch.tensor([[1, 0, 1] * 3, [1, 1, 0] * 3, [1] * 9, [1] + [0] * 7 + [1]]),
}
LEFT = MASKS["right"].flip(1)

torch.manual_seed(0)
WORDS = torch.randint(3, 50, (4, 9))


@pytest.fixture(params=[(BertModel, BertConfig), (RobertaModel, RobertaConfig)], ids=["bert", "roberta"])
def tower(request):
    """Every parameter off its default; scores spread."""
    model, config = request.param
    torch.manual_seed(0)
    tower = model(config(**SIZES)).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tower


@pytest.fixture
def reads(monkeypatch):
    """How many layers have been computed without padding."""
    reads, read = [], unpadded_encoder._read
    monkeypatch.setattr(unpadded_encoder, "_read", lambda *given: reads.append(1) or read(*given))
    return reads


def without_padding(tower):
    return unpadded_encoder.without_padding(through_onednn(tower))


def outputs(tower, mask=MASKS["right"], **options):
    with torch.inference_mode():
        return tower(WORDS, attention_mask=mask, **options)


def assert_same(mine, theirs, mask=MASKS["right"]):
    is_real = torch.ones(4, 9, dtype=torch.bool) if mask is None else mask.bool()
    difference = (mine.last_hidden_state - theirs.last_hidden_state).float()[is_real]
    # bfloat16 rounds between a layer and what follows it, which in one pass it does not
    tolerance = 0.02 if mine.last_hidden_state.dtype == torch.bfloat16 else 1e-6
    assert difference.norm() < tolerance * theirs.last_hidden_state.float()[is_real].norm()
    assert (mine.pooler_output - theirs.pooler_output).abs().max() < 50 * tolerance


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
@pytest.mark.parametrize("dtype", ONEDNN_DTYPES, ids=str)
def test_real_tokens_have_the_states_that_transformers_gives_them(tower, reads, dtype, mask):
    theirs = outputs(tower.to(dtype), mask)
    mine = outputs(without_padding(tower), mask)
    assert len(reads) == 3
    assert_same(mine, theirs, mask)
    if mask is not None:
        assert mine.last_hidden_state[~mask.bool()].eq(0).all()
    assert outputs(tower, mask).last_hidden_state.equal(mine.last_hidden_state)


def test_positions_may_be_given(tower, reads):
    positions = torch.arange(9).flip(0)[None]
    theirs = outputs(tower, position_ids=positions)
    assert (theirs.pooler_output - outputs(tower).pooler_output).abs().max() > 0.01
    assert_same(outputs(without_padding(tower), position_ids=positions), theirs)
    assert len(reads) == 3


def hook(tower):
    tower.encoder.layer[1].output.dense.register_forward_hook(lambda module, given, output: output * 2)


def adapter(tower):
    dense = tower.encoder.layer[1].intermediate.dense
    tower.encoder.layer[1].intermediate.dense = nn.Sequential(dense, nn.Hardtanh())


def own_forward(tower):
    tower.encoder.layer[2].forward = lambda hidden, *given, **options: hidden + 1


def other_activation(tower):
    tower.encoder.layer[0].intermediate.intermediate_act_fn = nn.GELU(approximate="tanh")


def other_norm(tower):
    tower.encoder.layer[0].output.LayerNorm = nn.RMSNorm(48)


def other_dropout(tower):
    tower.encoder.layer[0].output.dropout = nn.Hardtanh()


class Doubled(nn.Module):
    """As adapters of Houlsby et al. are put in the place of what they adapt, with its parts."""

    def __init__(self, output):
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = output.dense, output.LayerNorm, output.dropout

    def forward(self, hidden, residual):
        return self.LayerNorm(2 * self.dense(hidden) + residual)


def around_the_output(tower):
    tower.encoder.layer[2].attention.output = Doubled(tower.encoder.layer[2].attention.output)


def subclass(tower):
    heads = tower.encoder.layer[1].attention.self
    heads.__class__ = type(
        "Heads", (type(heads),), {"forward": lambda self, hidden, *given, **options: (hidden, None)}
    )


class Skip(nn.Module):
    def forward(self, hidden, *given, **options):
        return hidden


def left_out(tower):
    tower.encoder.layer[1] = Skip()


CHANGES = [
    hook,
    adapter,
    own_forward,
    other_activation,
    other_norm,
    other_dropout,
    around_the_output,
    subclass,
    left_out,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_changed_in_a_layer_takes_part(tower, reads, change):
    changed = copy.deepcopy(tower)
    change(changed)
    changed.eval()
    theirs = outputs(changed)
    assert (theirs.pooler_output - outputs(tower).pooler_output).abs().max() > 1e-4
    without_padding(tower)
    outputs(tower)
    reads.clear()
    change(tower)
    tower.eval()
    assert_same(outputs(tower), theirs)
    assert not reads


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.output.dense.weight.mul_(2),
        lambda layer: layer.attention.self.query.weight.data.mul_(2),  # as LoRA is merged
        lambda layer: setattr(layer.attention.self, "scaling", 3 * layer.attention.self.scaling),
    ],
)
def test_what_a_layer_computes_with_may_change_between_calls(tower, reads, change):
    without_padding(tower)
    before = outputs(tower)
    with torch.no_grad():
        change(tower.encoder.layer[1])
    changed = outputs(tower)
    tower.encoder.__class__ = type(tower.encoder).__mro__[2]
    assert (changed.pooler_output - before.pooler_output).abs().max() > 0.01
    assert_same(changed, outputs(tower))
    assert len(reads) == 6


def test_modules_are_called_in_training_and_for_gradients(tower, reads):
    without_padding(tower)
    expected = outputs(tower)
    reads.clear()
    states = tower(WORDS, attention_mask=MASKS["right"])
    assert_same(states, expected)
    states.pooler_output.sum().backward()
    assert tower.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0
    tower.encoder.layer[0].train()
    dropped = outputs(tower)
    assert (dropped.pooler_output - expected.pooler_output).abs().max() > 0.01
    assert not reads


@pytest.mark.parametrize("name", ["attentions", "hidden_states"])
def test_what_is_asked_for_is_given(tower, reads, name):
    tower.set_attn_implementation("eager")  # SDPA has no attention weights to give
    theirs = outputs(tower, **{f"output_{name}": True})
    mine = outputs(without_padding(tower), **{f"output_{name}": True})
    assert_same(mine, theirs)
    for ours, expected in zip(mine[name], theirs[name], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert not reads


def test_masks_that_are_not_of_padding_are_left_to_transformers(tower, reads):
    causal = torch.ones(9, 9, dtype=torch.bool).tril().expand(4, 1, 9, 9)
    theirs = outputs(tower, causal)
    assert (theirs.last_hidden_state - outputs(tower, None).last_hidden_state).abs().max() > 0.1
    assert_same(outputs(without_padding(tower), causal), theirs, None)
    assert not reads


@pytest.mark.parametrize(
    "mask", [LEFT, torch.tensor([[1] * 9] * 3 + [[0] * 9])], ids=["left", "a text without tokens"]
)
def test_texts_that_begin_with_padding_are_left_to_transformers(tower, reads, mask):
    """The pooler takes the first token, padding or not."""
    theirs = outputs(tower, mask)
    assert_same(outputs(without_padding(tower), mask), theirs, mask)
    assert not reads


def test_the_encoder_may_be_called_by_itself(tower, reads):
    hidden = torch.randn(9, 4, 48).transpose(0, 1)
    with torch.inference_mode():
        theirs = tower.encoder(hidden).last_hidden_state
        encoder = without_padding(tower).encoder
        for given in ((), (None,), (None, None)):
            torch.testing.assert_close(encoder(hidden, *given).last_hidden_state, theirs, atol=1e-5, rtol=1e-5)
    assert len(reads) == 9


def test_nothing_keeps_an_encoder_alive_that_is_gone(tower):
    without_padding(tower)
    outputs(tower)
    encoder = tower._modules.pop("encoder")
    weight = weakref.ref(encoder.layer[0].output.dense.weight)
    gc.collect()
    gc.disable()
    try:
        del encoder
        assert weight() is None
    finally:
        gc.enable()


def test_a_decoder_stays_one(reads):
    torch.manual_seed(0)
    tower = BertModel(BertConfig(**SIZES, is_decoder=True)).eval()
    theirs = outputs(tower, torch.ones(4, 9))
    assert_same(outputs(without_padding(tower), torch.ones(4, 9)), theirs, None)
    assert not reads


def test_copies_decide_for_themselves(tower, reads):
    without_padding(tower)
    expected = outputs(tower)
    for duplicate in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))):
        reads.clear()
        assert outputs(duplicate).last_hidden_state.equal(expected.last_hidden_state)
        assert len(reads) == 3
        hook(duplicate)
        assert (outputs(duplicate).pooler_output - expected.pooler_output).abs().max() > 0.01
        assert outputs(tower).last_hidden_state.equal(expected.last_hidden_state)


def test_models_have_it(tiny_model, reads):
    assert type(tiny_model.text_model.encoder) in UNPADDED.values()
    assert type(hf_clap.HfClapModel(hf_clap.HfClapConfig()).text_model.encoder) in UNPADDED.values()
    parameters = {name: value.shape for name, value in tiny_model.text_model.state_dict().items()}
    plain = BertModel(tiny_model.text_model.config, add_pooling_layer=False)
    assert parameters == {name: value.shape for name, value in plain.state_dict().items()}
    with torch.inference_mode():
        tiny_model.encode_text(WORDS)
    assert len(reads) == tiny_model.config.text_config.num_hidden_layers
